//! `nsm registry`: services and endpoints of one domain.

use super::{
    guard,
    process::{self, Common, DIAL_TIMEOUT, MAX_TOKEN_LIFETIME, Process, WORKLOAD_API},
};
use crate::{
    context::Context,
    settings::{Opt, Settings, Shape},
};
use nsm_api::{RegistryApi, Result, Target};
use nsm_registry::{MemoryEngine, Registry};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Settings of `nsm registry`.
pub const OPTIONS: &[Opt] = &[
    WORKLOAD_API,
    MAX_TOKEN_LIFETIME,
    DIAL_TIMEOUT,
    Opt::new("listen-on", "NSM_LISTEN_ON", "tcp://:5002", Shape::Targets, "Where to listen"),
    Opt::new("expire-period", "NSM_EXPIRE_PERIOD", "1m", Shape::Duration, "Longest life of an endpoint without another Register"),
    Opt::accepted("proxy-registry-url", "NSM_PROXY_REGISTRY_URL"),
    guard::SERVER_POLICIES,
    // For the registry of other domains, which is not asked yet.
    Opt::accepted("registry-client-policies", "NSM_REGISTRY_CLIENT_POLICIES"),
];

/// Serves until it is told to stop.
pub async fn run(mut settings: Settings, context: Context) -> Result<()> {
    let common = Common::read(&mut settings);
    let listen: Vec<Target> = settings.list("listen-on");
    let expire: Duration = settings.duration("expire-period");
    let policies = guard::server_policies(&mut settings);
    settings.finish()?;

    let process = Process::start(&common, &context).await?;
    let served = process.serve(listen, None, Some(guard::server(memory(expire), policies)), &context).await?;
    context.notify.ready();
    process::ended(served).await
}

/// A registry that forgets when the process ends; its endpoints register again by themselves.
pub(super) fn memory(expire: Duration) -> Arc<dyn RegistryApi> {
    Arc::new(Registry::new(Arc::new(MemoryEngine::new()), Arc::new(SystemTime::now)).with_expire_period(expire))
}
