//! `nsm forwarder`: makes the wires of one node. Chooses the endpoint, joins client and endpoint in the kernel.

use super::{
    authorize, guard,
    identity::socket_path,
    process::{self, CONNECT_TO, Common, DIAL_TIMEOUT, MAX_TOKEN_LIFETIME, Process, STATE_DIR, WORKLOAD_API},
    registration::{Registration, own_socket},
    tunnels::{ENCRYPTED_ONLY, MECHANISM_PRIORITY, PACKET_ENGINE, TUNNEL_IP, Tunnel, Tunnels, VXLAN_PORT, WIREGUARD_PORT},
};
use crate::{
    context::Context,
    metrics::{Metrics, TlsFiles},
    settings::{Opt, Settings, Shape},
};
use nsm_api::*;
use nsm_hop::{
    hop::Hop,
    mechanism::{KernelLeg, KernelOffer, Negotiate},
    onward::Endpoints,
    reserve::UnknownMtu,
    role::{Dial, Role, Standing, Timing},
    wiring::ForwarderWiring,
};
use std::{path::PathBuf, sync::Arc};

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
    WIREGUARD_PORT,
    PACKET_ENGINE,
    guard::CLIENT_POLICIES,
    METRICS,
    METRICS_CERTIFICATE,
    METRICS_KEY,
    METRICS_AUTHORITIES,
    METRICS_WATCHED,
    METRICS_PATIENCE,
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
    MECHANISM_PRIORITY,
    ENCRYPTED_ONLY,
];
const NAME: Opt = Opt::new("name", "NSM_NAME", "forwarder", Shape::Text, "Name of this process in paths and in the registry");
const LABELS: Opt = Opt::new("labels", "NSM_LABELS", "p2p:true", Shape::Map, "Labels of this forwarder, which services may ask for");
const SERVICE: Opt = Opt::new("ns-name", "NSM_NSNAME", "forwarder", Shape::Text, "Service under which it registers");
/// Where counters can be had.
pub(super) const METRICS: Opt = Opt::new(
    "prometheus-listen-on",
    "NSM_PROMETHEUS_LISTEN_ON",
    "",
    Shape::Text,
    "Address for GET /metrics, for instance 127.0.0.1:8081, or :8081 for all; empty: none",
);
pub(super) const METRICS_CERTIFICATE: Opt = Opt::new(
    "prometheus-cert-file",
    "NSM_PROMETHEUS_CERT_FILE",
    "",
    Shape::File,
    "Certificate for GET /metrics over TLS, PEM; empty: plain HTTP",
);
pub(super) const METRICS_KEY: Opt =
    Opt::new("prometheus-key-file", "NSM_PROMETHEUS_KEY_FILE", "", Shape::File, "Private key of that certificate, PEM");
pub(super) const METRICS_AUTHORITIES: Opt = Opt::new(
    "prometheus-ca-file",
    "NSM_PROMETHEUS_CA_FILE",
    "",
    Shape::File,
    "Authorities of which a collector must show a certificate, PEM; empty: none is asked for",
);
pub(super) const METRICS_WATCHED: Opt = Opt::new(
    "prometheus-monitor-certificate",
    "NSM_PROMETHEUS_MONITOR_CERTIFICATE",
    "false",
    Shape::Bool,
    "These files may change while the process runs",
);
pub(super) const METRICS_PATIENCE: Opt = Opt::new(
    "prometheus-server-header-timeout",
    "NSM_PROMETHEUS_SERVER_HEADER_TIMEOUT",
    "5s",
    Shape::Duration,
    "Longest wait for what a collector asks",
);
/// The largest packet of a wire within a node, when nobody says otherwise: what every network behind it can carry.
const DEFAULT_MTU: u32 = 1500;

/// Serves until it is told to stop. Wires stay when it ends: they are the kernel's.
pub async fn run(mut settings: Settings, context: Context) -> Result<()> {
    let common = Common::read(&mut settings);
    let (name, labels, service): (HopName, Labels, ServiceName) = (settings.text("name"), settings.map("labels"), settings.text("ns-name"));
    let (manager, listen): (Target, Target) = (settings.text("connect-to"), settings.text("listen-on"));
    let tunnel = Tunnel::read(&mut settings);
    let policies = guard::client_policies(&mut settings);
    let metrics = metrics(&mut settings);
    settings.finish()?;

    let process = Process::start(&common, &context).await?;
    let registry = guard::client(process.dialer.registry(&manager), policies);
    let hop = hop(name.clone(), &process, process.dial(), registry.clone(), tunnel).await?;
    if let Some(metrics) = metrics {
        crate::metrics::serve(metrics, vec![hop.clone()], context.shutdown.clone()).await?;
    }
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

/// Whether and how counters can be had.
pub(super) fn metrics(settings: &mut Settings) -> Option<Metrics> {
    // `:8081` is port 8081 of every address.
    let address = settings.read("prometheus-listen-on", |text| {
        let full = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
        let bad = || format!("{text:?} is no address and port such as 127.0.0.1:8081 or :8081");
        if text.is_empty() { Ok(None) } else { full.parse().map(Some).map_err(|_| bad()) }
    });
    let mut file = |flag: &str| settings.optional::<PathBuf>(flag);
    let (certificate, key, authorities) = (file("prometheus-cert-file"), file("prometheus-key-file"), file("prometheus-ca-file"));
    let (watched, patience) = (settings.boolean("prometheus-monitor-certificate"), settings.duration("prometheus-server-header-timeout"));
    let tls = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key, authorities, watched }),
        (None, None) if authorities.is_none() => None,
        _ => {
            settings.mistake("metrics over TLS need both --prometheus-cert-file and --prometheus-key-file");
            None
        }
    };
    if tls.is_some() && address.is_none() {
        settings.mistake("--prometheus-cert-file is set, but no --prometheus-listen-on at which it would be used");
    }
    address.map(|address| Metrics { address, tls, patience })
}

/// The hop.
pub(super) async fn hop(
    name: HopName,
    process: &Process,
    dial: Arc<dyn Dial>,
    registry: Arc<dyn RegistryApi>,
    tunnel: Tunnel,
) -> Result<Hop> {
    let Tunnels { kernel, mut accepts, mut offers, keys } = tunnel.make(process).await?;
    accepts.insert(0, Box::new(KernelLeg));
    offers.insert(0, Box::new(KernelOffer));
    let hop = process.hop(Role {
        name,
        standing: Standing::Server,
        issuer: process.issuer.clone(),
        admit: authorize::forwarder(&process.issuer)?,
        reserve: vec![Box::new(Negotiate(accepts)), Box::new(UnknownMtu(DEFAULT_MTU))],
        onward: Box::new(Endpoints::new(registry, offers, process.issuer.clone())),
        dial,
        wiring: Box::new(ForwarderWiring { keys }),
        kernel: Arc::new(kernel.clone()),
        generation: process.generation,
        timing: Timing::default(),
    });
    process.sweep(&hop, kernel);
    Ok(hop)
}
