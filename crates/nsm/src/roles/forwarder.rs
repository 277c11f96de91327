//! `nsm forwarder`: makes the wires of one node. Chooses the endpoint, joins client and endpoint in the kernel.

use super::{
    authorize, guard,
    identity::socket_path,
    process::{self, CONNECT_TO, Common, DIAL_TIMEOUT, MAX_TOKEN_LIFETIME, Process, STATE_DIR, WORKLOAD_API},
    registration::{Registration, own_socket},
};
use crate::{
    context::Context,
    settings::{Opt, Settings, Shape},
};
use nsm_api::*;
use nsm_hop::{
    hop::Hop,
    kernel::Kernel,
    mechanism::{KernelLeg, KernelOffer, Negotiate, VniPool, Vxlan},
    onward::Endpoints,
    reserve::UnknownMtu,
    role::{Dial, Role, Standing, Timing},
    select::RoundRobin,
    wiring::ForwarderWiring,
};
use nsm_linux::LinuxKernel;
use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
};
use tracing::warn;

/// Settings of `nsm forwarder`.
pub const OPTIONS: &[Opt] = &[
    WORKLOAD_API,
    MAX_TOKEN_LIFETIME,
    DIAL_TIMEOUT,
    STATE_DIR,
    CONNECT_TO,
    NAME,
    LABELS,
    SERVICE,
    Opt::new(
        "listen-on",
        "NSM_LISTEN_ON",
        "unix:///listen.on.socket",
        Shape::Target,
        "Where to listen; a unix:// socket that the manager can reach",
    ),
    TUNNEL_IP,
    VXLAN_PORT,
    guard::CLIENT_POLICIES,
    Opt::accepted("prometheus-listen-on", "NSM_PROMETHEUS_LISTEN_ON"),
    Opt::accepted("prometheus-ca-file", "NSM_PROMETHEUS_CA_FILE"),
    Opt::accepted("prometheus-key-file", "NSM_PROMETHEUS_KEY_FILE"),
    Opt::accepted("prometheus-cert-file", "NSM_PROMETHEUS_CERT_FILE"),
    Opt::accepted("prometheus-monitor-certificate", "NSM_PROMETHEUS_MONITOR_CERTIFICATE"),
    Opt::accepted("prometheus-server-header-timeout", "NSM_PROMETHEUS_SERVER_HEADER_TIMEOUT"),
    Opt::accepted("prometheus-max-bind-threshold", "NSM_PROMETHEUS_MAX_BIND_THRESHOLD"),
    Opt::accepted("vpp-api-socket", "NSM_VPP_API_SOCKET"),
    Opt::accepted("vpp-init", "NSM_VPP_INIT"),
    Opt::accepted("vpp-init-params", "NSM_VPP_INIT_PARAMS"),
    Opt::accepted("vpp-min-operation-timeout", "NSM_VPP_MIN_OPERATION_TIMEOUT"),
    Opt::accepted("resource-poll-timeout", "NSM_RESOURCE_POLL_TIMEOUT"),
    Opt::accepted("device-plugin-path", "NSM_DEVICE_PLUGIN_PATH"),
    Opt::accepted("pod-resources-path", "NSM_POD_RESOURCES_PATH"),
    Opt::accepted("device-selector-file", "NSM_DEVICE_SELECTOR_FILE"),
    Opt::accepted("sriov-config-file", "NSM_SRIOV_CONFIG_FILE"),
    Opt::accepted("pci-devices-path", "NSM_PCI_DEVICES_PATH"),
    Opt::accepted("pci-drivers-path", "NSM_PCI_DRIVERS_PATH"),
    Opt::accepted("cgroup-path", "NSM_CGROUP_PATH"),
    Opt::accepted("vfio-path", "NSM_VFIO_PATH"),
    Opt::accepted("mechanism-priority", "NSM_MECHANISM_PRIORITY"),
];
const NAME: Opt = Opt::new("name", "NSM_NAME", "forwarder", Shape::Text, "Name of this process in paths and in the registry");
const LABELS: Opt = Opt::new("labels", "NSM_LABELS", "p2p:true", Shape::Map, "Labels of this forwarder, which services may ask for");
const SERVICE: Opt = Opt::new("ns-name", "NSM_NSNAME", "forwarder", Shape::Text, "Service under which it registers");
pub(super) const TUNNEL_IP: Opt = Opt::new(
    "tunnel-ip",
    "NSM_TUNNEL_IP",
    "",
    Shape::Address,
    "Address of this node for tunnels; empty: its first address besides loopback",
);
pub(super) const VXLAN_PORT: Opt =
    Opt::new("vxlan-port", "NSM_VXLAN_PORT", "0", Shape::Number(65535), "UDP port of VXLAN, the same on all nodes; 0: 4789");
/// The port that the standard gives to VXLAN.
const DEFAULT_VXLAN_PORT: u16 = 4789;
/// The largest packet of a wire within a node, when nobody says otherwise: what every network behind it can carry.
const DEFAULT_MTU: u32 = 1500;

/// Serves until it is told to stop. Wires stay when it ends: they are the kernel's.
pub async fn run(mut settings: Settings, context: Context) -> Result<()> {
    let common = Common::read(&mut settings);
    let (name, labels, service): (HopName, Labels, ServiceName) = (settings.text("name"), settings.map("labels"), settings.text("ns-name"));
    let (manager, listen): (Target, Target) = (settings.text("connect-to"), settings.text("listen-on"));
    let tunnel = Tunnel::read(&mut settings);
    let policies = guard::client_policies(&mut settings);
    settings.finish()?;

    let process = Process::start(&common, &context).await?;
    let registry = guard::client(process.dialer.registry(&manager), policies);
    let hop = hop(name.clone(), &process, process.dial(), registry.clone(), tunnel).await?;
    let served = process.serve(vec![listen.clone()], Some(Arc::new(hop)), None, &context).await?;

    let (url, socket) = own_socket(&socket_path(&listen)?)?;
    let mut endpoint = NetworkServiceEndpoint::new(name.as_str().parse()?, vec![service.clone()], url);
    endpoint.network_service_labels.insert(service, labels);
    let registration = Registration::start(registry, endpoint, socket, &context).await;
    context.notify.ready();
    let ended = process::ended(served).await;
    registration.end().await;
    ended
}

/// Where tunnels to other nodes begin.
pub(super) struct Tunnel {
    ip: Option<IpAddr>,
    port: u16,
}

impl Tunnel {
    pub(super) fn read(settings: &mut Settings) -> Tunnel {
        let port: u16 = settings.text("vxlan-port");
        Tunnel { ip: settings.optional("tunnel-ip"), port: if port == 0 { DEFAULT_VXLAN_PORT } else { port } }
    }
    /// VXLAN, when this node has an underlay to carry it. A node alone needs none.
    async fn vxlan(&self, kernel: &LinuxKernel, process: &Process) -> Result<Option<Vxlan>> {
        let tunnel_ip = match (self.ip, process::node_address()) {
            (Some(ip), _) | (None, Ok(ip)) => ip,
            (None, Err(error)) => {
                warn!(%error, "no tunnels to other nodes");
                return Ok(None);
            }
        };
        let underlay_mtu = kernel.underlay_mtu(tunnel_ip).await?;
        Ok(Some(Vxlan {
            tunnel_ip,
            port: self.port,
            underlay_mtu,
            issuer: process.issuer.clone(),
            vnis: Arc::new(Mutex::new(VniPool::default())),
        }))
    }
}

/// The hop.
pub(super) async fn hop(
    name: HopName,
    process: &Process,
    dial: Arc<dyn Dial>,
    registry: Arc<dyn RegistryApi>,
    tunnel: Tunnel,
) -> Result<Hop> {
    let kernel = LinuxKernel::new()?;
    let vxlan = tunnel.vxlan(&kernel, process).await?;
    let mut negotiate = Negotiate(vec![Box::new(KernelLeg)]);
    let mut offers: Vec<Box<dyn nsm_hop::mechanism::Offer>> = vec![Box::new(KernelOffer)];
    if let Some(vxlan) = vxlan {
        negotiate.0.push(Box::new(vxlan.clone()));
        offers.push(Box::new(vxlan));
    }
    Ok(Hop::new(Role {
        name,
        standing: Standing::Server,
        issuer: process.issuer.clone(),
        admit: authorize::server(&process.issuer),
        reserve: vec![Box::new(negotiate), Box::new(UnknownMtu(DEFAULT_MTU))],
        onward: Box::new(Endpoints { registry, offers, turns: RoundRobin::default(), issuer: process.issuer.clone() }),
        dial,
        wiring: Box::new(ForwarderWiring { keys: None }),
        kernel: Arc::new(kernel),
        generation: process.generation,
        timing: Timing::default(),
    }))
}
