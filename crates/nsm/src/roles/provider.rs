//! What all kinds of endpoints have: settings, a hop, a socket, a registration, and an end.

use super::{
    authorize, guard,
    process::{self, Common, Process},
    registration::{Registration, own_socket, register_services},
};
use crate::{context::Context, settings::Settings, shutdown::Shutdown};
use nsm_api::*;
use nsm_hop::{
    hop::Hop,
    kernel::{Kernel, Netns},
    role::{Onward, Reserve, Role, Standing, Timing, Wiring},
};
use nsm_linux::net::Net;
use nsm_policy::PolicySet;
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// Looks within one idle time.
const IDLE_LOOKS: u32 = 20;

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
