//! `nsm manager`: the control plane of one node. Chooses a forwarder; shows its node the registry.

use super::{
    authorize, guard,
    process::{self, Common, DIAL_TIMEOUT, MAX_TOKEN_LIFETIME, Process, STATE_DIR, WORKLOAD_API},
    registry,
};
use crate::{
    context::Context,
    settings::{Opt, Settings, Shape},
    watched::{self, Watched},
};
use nsm_api::*;
use nsm_hop::{
    hop::Hop,
    onward::Forwarders,
    reserve::{Environment, Excluded},
    role::{Dial, NoWires, Role, Standing, Timing},
    services,
};
use nsm_policy::PolicySet;
use nsm_registry::{Cache, LocalBypass};
use std::{path::PathBuf, sync::Arc, time::SystemTime};

/// Settings of `nsm manager`.
pub const OPTIONS: &[Opt] = &[
    WORKLOAD_API,
    MAX_TOKEN_LIFETIME,
    DIAL_TIMEOUT,
    STATE_DIR,
    NAME,
    LISTEN_ON,
    REGISTRY_URL,
    FORWARDER_SERVICE,
    EXCLUDED_PREFIXES,
    guard::SERVER_POLICIES,
    guard::CLIENT_POLICIES,
];
const NAME: Opt = Opt::new("name", "NSM_NAME", "nmgr", Shape::Text, "Name of this process in paths");
pub(super) const LISTEN_ON: Opt = Opt::new(
    "listen-on",
    "NSM_LISTEN_ON",
    "unix:///var/lib/networkservicemesh/nsm.io.sock",
    Shape::Targets,
    "Where to listen; the first tcp:// address is the one that other nodes dial",
);
pub(super) const REGISTRY_URL: Opt =
    Opt::new("registry-url", "NSM_REGISTRY_URL", "tcp://localhost:5001", Shape::Target, "The registry; empty: one in this process");
pub(super) const FORWARDER_SERVICE: Opt = Opt::new(
    "forwarder-network-service-name",
    "NSM_FORWARDER_NETWORK_SERVICE_NAME",
    "forwarder",
    Shape::Text,
    "Service under which forwarders register",
);
/// Prefixes that no endpoint may give out here.
pub(super) const EXCLUDED_PREFIXES: Opt = Opt::new(
    "excluded-prefixes-file",
    "NSM_EXCLUDED_PREFIXES_FILE",
    "/var/lib/networkservicemesh/config/excluded_prefixes.yaml",
    Shape::Text,
    "File with prefixes that no endpoint may give to clients of this node; read again when it changes",
);

/// Serves until it is told to stop.
pub async fn run(mut settings: Settings, context: Context) -> Result<()> {
    let common = Common::read(&mut settings);
    let config = Config::read(&mut settings);
    settings.finish()?;

    let process = Process::start(&common, &context).await?;
    let registry = config.registry(&process, &context)?;
    let hop = config.hop(&process, process.dial(), Arc::new(registry.clone()), &context)?;
    tokio::spawn(services::follow(hop.clone(), Arc::new(registry.clone())));
    let registry = guard::server(Arc::new(registry), config.server_policies);
    let served = process.serve(config.listen_on, Some(Arc::new(hop)), Some(registry), &context).await?;
    context.notify.ready();
    process::ended(served).await
}

/// A manager's own settings.
pub(super) struct Config {
    pub(super) name: HopName,
    pub(super) listen_on: Vec<Target>,
    registry_url: Option<Target>,
    excluded_prefixes: PathBuf,
    pub(super) forwarder_service: ServiceName,
    pub(super) server_policies: PolicySet,
    client_policies: PolicySet,
}

impl Config {
    pub(super) fn read(settings: &mut Settings) -> Config {
        Config {
            name: settings.text("name"),
            listen_on: settings.list("listen-on"),
            registry_url: settings.optional("registry-url"),
            excluded_prefixes: settings.text("excluded-prefixes-file"),
            forwarder_service: settings.text("forwarder-network-service-name"),
            server_policies: guard::server_policies(settings),
            client_policies: guard::client_policies(settings),
        }
    }

    /// The registry as this node sees it.
    pub(super) fn registry(&self, process: &Process, context: &Context) -> Result<LocalBypass> {
        let upstream: Arc<dyn RegistryApi> = match &self.registry_url {
            Some(url) => {
                let above = guard::client(process.dialer.registry(url), self.client_policies.clone());
                Arc::new(Cache::new(above, Arc::new(SystemTime::now)))
            }
            None => registry::memory(nsm_registry::DEFAULT_EXPIRE_PERIOD),
        };
        Ok(LocalBypass::new(upstream, self.own_url()?, context.labels.clone(), Arc::new(SystemTime::now)))
    }

    /// The hop.
    pub(super) fn hop(&self, process: &Process, dial: Arc<dyn Dial>, registry: Arc<dyn RegistryApi>, context: &Context) -> Result<Hop> {
        Ok(process.hop(Role {
            name: self.name.clone(),
            standing: Standing::Server,
            issuer: process.issuer.clone(),
            admit: authorize::server(&process.issuer)?,
            reserve: vec![
                Box::new(Environment(context.labels.clone())),
                Box::new(Excluded(Watched::open(&self.excluded_prefixes, watched::excluded_prefixes)?.into_current())),
            ],
            onward: Box::new(Forwarders { registry, service: self.forwarder_service.clone(), own_url: self.own_url()? }),
            dial,
            wiring: Box::new(NoWires),
            kernel: Arc::new(nsm_linux::LinuxKernel::new()?),
            generation: process.generation,
            timing: Timing::default(),
        }))
    }

    /// The address that other nodes dial: the first of `tcp://`, its empty host replaced by one of this node's addresses.
    fn own_url(&self) -> Result<String> {
        let public = self.listen_on.iter().find(|target| !target.is_local()).or(self.listen_on.first());
        Ok(match public {
            Some(Target::Tcp { host, port }) if host.is_empty() || host == "0.0.0.0" || host == "::" => {
                Target::Tcp { host: process::node_address()?.to_string(), port: *port }.to_string()
            }
            Some(target) => target.to_string(),
            None => return Err(Error::invalid("--listen-on", "names no address", "name at least a unix:// socket")),
        })
    }
}
