//! `nsm endpoint KIND`: provides network services.
//!
//! `icmp-responder` gives its clients addresses and answers their pings; networks behind it become their routes.
//! `passthrough` joins each client to the next endpoint of the same service, chosen by labels of its own. `vl3` is in
//! a file of its own.

use super::{
    authorize, guard,
    process::{self, CONNECT_TO, Common, DIAL_TIMEOUT, MAX_TOKEN_LIFETIME, Process, STATE_DIR, WORKLOAD_API},
    registration::{Registration, own_netns, own_socket, register_services},
};
use crate::{
    context::Context,
    settings::{self, Opt, Settings, Shape},
    shutdown::Shutdown,
    watched::{self, Watched},
};
use ipnet::IpNet;
use nsm_api::*;
use nsm_hop::{
    hop::Hop,
    kernel::{Kernel, Netns},
    mechanism::{KernelEnd, Negotiate},
    onward::{Chain, End},
    reserve::{Dns, Ipam, IpamPolicy, Policies, Routes},
    role::{NoWires, Onward, Reserve, Role, Standing, Timing, Wiring},
    wiring::SpliceWiring,
};
use nsm_linux::net::Net;
use nsm_policy::PolicySet;
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// Settings of `nsm endpoint icmp-responder`.
pub const ICMP_RESPONDER: &[Opt] = &[
    WORKLOAD_API,
    MAX_TOKEN_LIFETIME,
    DIAL_TIMEOUT,
    STATE_DIR,
    CONNECT_TO,
    NAME,
    DIR,
    SERVICES,
    PAYLOAD,
    LABELS,
    REGISTER_SERVICE,
    UNREGISTER,
    guard::CLIENT_POLICIES,
    Opt::new("cidr-prefix", "NSM_CIDR_PREFIX", "169.254.0.0/16", Shape::Prefixes, "Addresses for endpoint and clients"),
    Opt::new("route", "NSM_ROUTES", "", Shape::List, "Networks behind this endpoint, as routes for its clients"),
    Opt::new(
        "ipam-policy",
        "NSM_IPAM_POLICY",
        "polite",
        Shape::OneOf(&["polite", "strict"]),
        "What happens to addresses that a client brings from another endpoint: polite keeps them, strict removes them",
    ),
    Opt::new(
        "dns-configs",
        "NSM_DNS_CONFIGS",
        "[]",
        Shape::Text,
        "Resolvers for its clients: [{\"dns_server_ips\":[\"10.0.0.53\"],\"search_domains\":[\"corp\"]}]",
    ),
    Opt::new(
        "pbr-config-path",
        "NSM_PBR_CONFIG_PATH",
        "/etc/policy-based-routing/config.yaml",
        Shape::Text,
        "File with policy routes for its clients; read again when it changes",
    ),
    IDLE_TIMEOUT,
];
/// Settings of `nsm endpoint passthrough`.
pub const PASSTHROUGH: &[Opt] = &[
    WORKLOAD_API,
    MAX_TOKEN_LIFETIME,
    DIAL_TIMEOUT,
    STATE_DIR,
    CONNECT_TO,
    NAME,
    DIR,
    SERVICES,
    PAYLOAD,
    LABELS,
    REGISTER_SERVICE,
    UNREGISTER,
    guard::CLIENT_POLICIES,
    IDLE_TIMEOUT,
    CLIENT_LABELS,
];
const NAME: Opt = Opt::new("name", "NSM_NAME", "icmp-server", Shape::Text, "Name of this process in paths and in the registry");
pub(crate) const DIR: Opt = Opt::new("dir", "NSM_BASE_DIR", "./", Shape::Directory, "Where its socket is made");
const SERVICES: Opt = Opt::new("service-names", "NSM_SERVICE_NAMES", "icmp-responder", Shape::List, "Services that it provides");
pub(crate) const PAYLOAD: Opt =
    Opt::new("payload", "NSM_PAYLOAD", "ETHERNET", Shape::OneOf(&["ETHERNET", "IP"]), "What the services carry, if it registers them");
pub(crate) const LABELS: Opt = Opt::new("labels", "NSM_LABELS", "", Shape::Map, "Labels that it advertises for its services");
pub(crate) const REGISTER_SERVICE: Opt =
    Opt::new("register-service", "NSM_REGISTER_SERVICE", "true", Shape::Bool, "Register the services, too");
pub(crate) const UNREGISTER: Opt = Opt::accepted("unregister-itself", "NSM_UNREGISTER_ITSELF");
pub(crate) const CLIENT_LABELS: Opt =
    Opt::new("client-labels", "NSM_CLIENT_LABELS", "", Shape::Map, "Labels of the onward Request, instead of the client's");
pub(crate) const IDLE_TIMEOUT: Opt =
    Opt::new("idle-timeout", "NSM_IDLE_TIMEOUT", "0", Shape::Duration, "End after so long without any client; 0: never");
/// Looks within one idle time.
const IDLE_LOOKS: u32 = 20;

/// `nsm endpoint icmp-responder`
pub async fn icmp_responder(mut settings: Settings, context: Context) -> Result<()> {
    let config = Config::read(&mut settings);
    let (parts, _) = responder(&mut settings)?;
    settings.finish()?;
    config.serve(parts, context).await
}

/// The parts of an endpoint that gives addresses and what belongs to them, and its pools.
pub(crate) fn responder(settings: &mut Settings) -> Result<(Parts, Vec<IpNet>)> {
    let pools = settings.prefix_groups("cidr-prefix");
    let routes: Vec<IpNet> = settings.list("route");
    let strictness = if settings.choice("ipam-policy") == "strict" { IpamPolicy::Strict } else { IpamPolicy::Polite };
    let dns: Vec<DnsConfig> = settings.read("dns-configs", settings::dns_configs);
    let policies: PathBuf = settings.text("pbr-config-path");
    let all = pools.concat();
    let parts = Parts {
        reserve: vec![
            Box::new(Negotiate(vec![Box::new(KernelEnd(own_netns()?))])),
            Box::new(Ipam::new(pools, strictness)),
            Box::new(Routes(routes)),
            Box::new(Policies(Watched::open(&policies, watched::policy_routes)?.into_current())),
            Box::new(Dns(dns)),
        ],
        onward: Box::new(End),
        wiring: Box::new(NoWires),
    };
    Ok((parts, all))
}

/// Lets the kernel of this pod route. One where that is not ours to say may do so already.
pub(crate) fn forward(here: &Netns) -> Result<()> {
    let net = Net::new(here)?;
    for switch in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        if let Err(error) = net.set_sysctl(switch, "1") {
            tracing::warn!(%error, "packets find their way only where the kernel of this pod routes already");
        }
    }
    Ok(())
}

/// `nsm endpoint passthrough`
pub async fn passthrough(mut settings: Settings, context: Context) -> Result<()> {
    let config = Config::read(&mut settings);
    let labels = settings.map("client-labels");
    settings.finish()?;

    let netns = own_netns()?;
    let parts = Parts {
        reserve: vec![Box::new(Negotiate(vec![Box::new(KernelEnd(netns.clone()))]))],
        onward: Box::new(Chain { manager: config.manager.clone(), labels, netns }),
        wiring: Box::new(SpliceWiring),
    };
    config.serve(parts, context).await
}

/// What distinguishes one kind of endpoint from another.
pub(crate) struct Parts {
    pub(crate) reserve: Vec<Box<dyn Reserve>>,
    pub(crate) onward: Box<dyn Onward>,
    pub(crate) wiring: Box<dyn Wiring>,
}

/// What all kinds have.
pub(crate) struct Config {
    pub(crate) common: Common,
    pub(crate) name: HopName,
    pub(crate) manager: Target,
    dir: PathBuf,
    pub(crate) services: Vec<ServiceName>,
    payload: Payload,
    labels: Labels,
    register_service: bool,
    policies: PolicySet,
    idle: Duration,
}

impl Config {
    pub(crate) fn read(settings: &mut Settings) -> Config {
        Config {
            common: Common::read(settings),
            name: settings.text("name"),
            manager: settings.text("connect-to"),
            dir: settings.text("dir"),
            services: settings.list("service-names"),
            payload: if settings.has("payload") { settings.choice("payload").into() } else { Payload::Ip },
            labels: settings.map("labels"),
            register_service: settings.boolean("register-service"),
            policies: guard::client_policies(settings),
            idle: if settings.has("idle-timeout") { settings.duration("idle-timeout") } else { Duration::ZERO },
        }
    }

    pub(crate) async fn serve(self, parts: Parts, context: Context) -> Result<()> {
        self.serve_with(parts, None, context).await
    }

    /// The same with a kernel that is not the plain one.
    pub(crate) async fn serve_with(self, parts: Parts, kernel: Option<Arc<dyn Kernel>>, context: Context) -> Result<()> {
        let process = Process::start(&self.common, &context).await?;
        let mut role = self.role(&process, parts)?;
        role.kernel = kernel.unwrap_or(role.kernel);
        let hop = process.hop(role);
        let (served, registration) = self.open(&process, hop.clone(), &context).await?;
        context.notify.ready();
        let idle = tokio::spawn(end_when_idle(hop, self.idle, |_| true, context.shutdown.clone()));
        let ended = process::ended(served).await;
        idle.abort();
        registration.end().await;
        ended
    }

    pub(crate) fn role(&self, process: &Process, parts: Parts) -> Result<Role> {
        Ok(Role {
            name: self.name.clone(),
            standing: Standing::Server,
            issuer: process.issuer.clone(),
            admit: authorize::server(&process.issuer)?,
            reserve: parts.reserve,
            onward: parts.onward,
            dial: process.dial(),
            wiring: parts.wiring,
            kernel: Arc::new(nsm_linux::LinuxKernel::new()?),
            generation: process.generation,
            timing: Timing::default(),
        })
    }

    /// Listens, and is registered.
    pub(crate) async fn open(&self, process: &Process, hop: Hop, context: &Context) -> Result<(nsm_grpc::Served, Registration)> {
        let path = self.socket();
        let served = process.serve(vec![Target::Unix(path.clone())], Some(Arc::new(hop)), None, context).await?;
        let registry = self.registry(process);
        if self.register_service {
            let services: Vec<_> = self.services.iter().map(|name| NetworkService::new(name.clone(), self.payload.clone())).collect();
            register_services(registry.as_ref(), &services, context).await?;
        }
        let (url, socket) = own_socket(&path)?;
        Ok((served, Registration::start(registry, self.record(url, context)?, socket, context).await))
    }

    /// The registry, as its manager shows it.
    pub(crate) fn registry(&self, process: &Process) -> Arc<dyn RegistryApi> {
        guard::client(process.dialer.registry(&self.manager), self.policies.clone())
    }

    fn socket(&self) -> PathBuf {
        let safe = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
        self.dir.join(format!("{}.sock", self.name.as_str().chars().map(safe).collect::<String>()))
    }

    /// What another endpoint beside this one is told by variables.
    pub(crate) fn told(&self) -> BTreeMap<String, String> {
        let dir = self.dir.display().to_string();
        BTreeMap::from([("NSM_CONNECT_TO".to_owned(), self.manager.to_string()), ("NSM_BASE_DIR".to_owned(), dir)])
    }

    /// Those of the place and those that are set.
    pub(crate) fn all_labels(&self, context: &Context) -> Labels {
        context.labels.clone().into_iter().chain(self.labels.clone()).collect()
    }

    /// An entry for every service, even without labels: the manager adds those of the node to each entry.
    fn record(&self, url: String, context: &Context) -> Result<NetworkServiceEndpoint> {
        let mut endpoint = NetworkServiceEndpoint::new(self.name.as_str().parse()?, self.services.clone(), url);
        let labels = self.all_labels(context);
        endpoint.network_service_labels = self.services.iter().map(|service| (service.clone(), labels.clone())).collect();
        Ok(endpoint)
    }
}

/// Starts the end of the process when for `idle` nobody was connected whom `counts` counts. Zero: never.
pub(crate) async fn end_when_idle(hop: Hop, idle: Duration, counts: fn(&Connection) -> bool, shutdown: Shutdown) {
    if idle.is_zero() {
        return;
    }
    let mut since = Instant::now();
    while since.elapsed() < idle {
        sleep(idle / IDLE_LOOKS).await;
        let busy = |id: &ConnectionId| hop.monitors().get(id).is_none_or(|connection| counts(&connection));
        if hop.known().iter().any(busy) {
            since = Instant::now();
        }
    }
    tracing::info!(?idle, "no client for so long: ending");
    shutdown.start();
}
