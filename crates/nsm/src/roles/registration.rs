//! Keeps an endpoint in the registry: registers, registers again before it expires and when the registry forgot it. And
//! registers services, once.

use crate::context::Context;
use futures::{StreamExt, TryStreamExt};
use nsm_api::*;
use nsm_hop::kernel::Netns;
use rustix::fs::{Mode, OFlags, open};
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};
use tracing::{info, warn};

/// Longest wait for one answer. Other implementations forget an endpoint this much before its end, so it must leave
/// room for the renewal at two thirds of its life.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Pauses between tries, doubled from the first to the last, with jitter.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Longest wait for the registry to take a service, and the pause before it is asked again.
const SERVICE_TIMEOUT: Duration = Duration::from_secs(15);
const SERVICE_PAUSE: Duration = Duration::from_millis(500);
/// How long the farewell may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// A registration that is kept until it is ended.
pub struct Registration {
    registry: Arc<dyn RegistryApi>,
    endpoint: NetworkServiceEndpoint,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Registration {
    /// Registers, however often it takes, and keeps it so. Returns once the registry has agreed, or at the shutdown.
    pub async fn start(registry: Arc<dyn RegistryApi>, endpoint: NetworkServiceEndpoint, socket: Files, context: &Context) -> Registration {
        let (agreed, mut first) = watch::channel(false);
        let (stop, stopped) = oneshot::channel();
        let keeper = Keeper { registry: registry.clone(), endpoint: endpoint.clone(), socket, agreed, context: context.clone() };
        let task = tokio::spawn(keeper.run(stopped));
        tokio::select! {
            _ = first.wait_for(|agreed| *agreed) => {}
            () = context.shutdown.started() => {}
        }
        Registration { registry, endpoint, stop, task }
    }

    /// Takes the endpoint out of the registry, as far as that can be reached.
    pub async fn end(self) {
        // A registration on its way must not arrive after the farewell.
        drop(self.stop);
        let mut task = self.task;
        if tokio::time::timeout(FAREWELL, &mut task).await.is_err() {
            task.abort();
        }
        let farewell = self.registry.unregister_endpoint(self.endpoint, Caller::within(FAREWELL));
        match tokio::time::timeout(FAREWELL, farewell).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "not unregistered; the record expires by itself"),
            Err(_) => warn!("not unregistered in time; the record expires by itself"),
        }
    }
}

struct Keeper {
    registry: Arc<dyn RegistryApi>,
    endpoint: NetworkServiceEndpoint,
    socket: Files,
    agreed: watch::Sender<bool>,
    context: Context,
}

impl Keeper {
    /// Until it is told to stop, which does not interrupt a call.
    async fn run(self, mut stopped: oneshot::Receiver<()>) {
        let mut failures = 0;
        loop {
            let pause = match self.register().await {
                Ok(stored) => {
                    failures = 0;
                    if !self.agreed.send_replace(true) {
                        info!(endpoint = %stored.name, "registered");
                    }
                    let left = stored.expiration_time.and_then(|end| end.duration_since(SystemTime::now()).ok());
                    // Two thirds of the life; without an end nothing needs to be repeated, but a lost registry is noticed.
                    let again = Instant::now() + left.map_or(Duration::from_secs(3600), |left| left.mul_f64(2.0 / 3.0));
                    tokio::select! {
                        () = sleep_until(again) => continue,
                        pause = self.lost() => {
                            info!("the registry lost this endpoint; registering again");
                            pause
                        }
                        _ = &mut stopped => return,
                    }
                }
                Err(error) => {
                    warn!(%error, "not registered; trying again");
                    self.context.notify.status(&error.to_string());
                    failures += 1;
                    PAUSE.0.saturating_mul(1 << failures.min(10)).min(PAUSE.1).mul_f64(rand::random_range(0.5..1.0))
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                _ = &mut stopped => {
                    // A manager that does not know us (any more) may not pass on the farewell.
                    let _ = self.register().await;
                    return;
                }
            }
        }
    }

    async fn register(&self) -> Result<NetworkServiceEndpoint> {
        self.registry.register_endpoint(self.endpoint.clone(), self.socket.clone(), Caller::within(CALL_TIMEOUT)).await
    }

    /// Resolves when the registry no longer has the endpoint, or has gone; with the time until the next try.
    async fn lost(&self) -> Duration {
        let query = EndpointQuery { name: Some(self.endpoint.name.clone()), watch: true, ..EndpointQuery::default() };
        let Ok(mut updates) = self.registry.find_endpoints(query, Caller::default()).await else { return PAUSE.1 };
        while let Some(Ok((update, _))) = updates.next().await {
            if update.deleted {
                return Duration::ZERO;
            }
        }
        // Everybody notices a lost registry at the same time, and must not come back at the same time.
        PAUSE.0.mul_f64(rand::random_range(0.0..5.0))
    }
}

/// Registers each of the services, however often it takes. One that is there already is left as it is: it may have
/// rules that we do not know.
pub async fn register_services(registry: &dyn RegistryApi, services: &[NetworkService], context: &Context) -> Result<()> {
    for service in services {
        while let Err(error) = register_unless_there(registry, service).await {
            warn!(%error, "service not registered");
            context.notify.status(&error.to_string());
            if !error.retryable() {
                return Err(error);
            }
            tokio::select! {
                () = sleep(SERVICE_PAUSE) => {}
                () = context.shutdown.started() => return Ok(()),
            }
        }
    }
    Ok(())
}

async fn register_unless_there(registry: &dyn RegistryApi, service: &NetworkService) -> Result<()> {
    let query = ServiceQuery { name: Some(service.name.clone()), ..ServiceQuery::default() };
    let found: Vec<ServiceUpdate> = registry.find_services(query, Caller::within(SERVICE_TIMEOUT)).await?.try_collect().await?;
    if found.iter().any(|update| !update.deleted && update.service.name == service.name) {
        return Ok(());
    }
    registry.register_service(service.clone(), Caller::within(SERVICE_TIMEOUT)).await.map(drop)
}

/// The address and the file of a socket of ours, as others on this node can be given it.
pub fn own_socket(path: &Path) -> Result<(String, Files)> {
    let failed = |error: rustix::io::Errno| {
        Error::new(Kind::Kernel, format!("socket {}", path.display()), error.to_string(), "check its directory's permissions")
    };
    let file = Arc::new(open(path, OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()).map_err(failed)?);
    let stat = rustix::fs::fstat(&file).map_err(failed)?;
    let key = InodeKey { dev: stat.st_dev, ino: stat.st_ino };
    let mut files = Files::default();
    files.insert(key, file);
    Ok((key.to_string(), files))
}

/// The network namespace of this process.
pub fn own_netns() -> Result<Netns> {
    nsm_linux::netns::current()
}
