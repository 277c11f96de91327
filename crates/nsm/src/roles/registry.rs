//! `nsm registry`: services and endpoints of one domain.

use super::{
    guard,
    process::{self, Common, DIAL_TIMEOUT, MAX_TOKEN_LIFETIME, Process, WORKLOAD_API},
    store::{self, Store},
};
use crate::{
    context::Context,
    settings::{Opt, Settings, Shape},
};
use nsm_api::{RegistryApi, Result, Target};
use nsm_registry::{Engine, MemoryEngine, Registry};
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
    store::STORE,
    store::STATE_DIR,
    store::ETCD_CA,
    store::ETCD_CERTIFICATE,
    store::ETCD_KEY,
    store::BACKUP_DIR,
    store::BACKUP_PERIOD,
    store::RESTORE_FROM,
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
    let store = Store::read(&mut settings);
    let policies = guard::server_policies(&mut settings);
    settings.finish()?;

    let registry = over(store.open().await?, expire);
    let process = Process::start(&common, &context).await?;
    let served = process.serve(listen, None, Some(guard::server(registry, policies)), &context).await?;
    context.notify.ready();
    process::ended(served).await
}

/// A registry that forgets when the process ends; its endpoints register again by themselves.
pub(super) fn memory(expire: Duration) -> Arc<dyn RegistryApi> {
    over(Arc::new(MemoryEngine::new()), expire)
}

fn over(engine: Arc<dyn Engine>, expire: Duration) -> Arc<dyn RegistryApi> {
    Arc::new(Registry::new(engine, Arc::new(SystemTime::now)).with_expire_period(expire))
}
