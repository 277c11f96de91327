//! The registry as a manager shows it to its node.
//!
//! The registry above knows every endpoint of this node by the manager's own URL. Here stands how each of them is
//! really reached: a socket that came as a file, an address, or a role of this process. Nothing of this leaves the
//! node, and no path that a peer sends is kept.

mod local;

use crate::{
    WallClock,
    registry::{DEFAULT_EXPIRE_PERIOD, life},
    timer::Timer,
};
use async_trait::async_trait;
use futures::{FutureExt, StreamExt, TryStreamExt, future, stream};
use local::{Address, Local, Locals, Trust, Turns};
use nsm_api::{
    Caller, EndpointName, EndpointQuery, EndpointUpdate, EndpointUpdates, Error, Files, Kind, Labels, NetworkService,
    NetworkServiceEndpoint, RegistryApi, Result, ServiceQuery, ServiceUpdates,
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::Semaphore, time::Instant};

/// Endpoints that one manager serves on its node; each may hold one open file.
pub const MAX_LOCAL_ENDPOINTS: usize = 16_384;
/// Registrations of endpoints, and their ends, that one manager works on at once.
pub const MAX_CALLS_IN_FLIGHT: usize = 4096;
/// Endpoints of this node that are looked for one by one; where more may answer, the registry above is asked once for all.
pub const MAX_LOOKED_UP: usize = 64;
/// How long the registry above may take for one of them when the caller does not say.
pub const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(15);

/// The manager's registry.
///
/// Callers that come over a socket may register endpoints that are reached through a socket sent along as a file
/// (`inode://`), or by address (`tcp://`). Roles of this very process use [`LocalBypass::in_process`].
#[derive(Clone)]
pub struct LocalBypass {
    inner: Arc<Inner>,
    trust: Trust,
}

struct Inner {
    upstream: Arc<dyn RegistryApi>,
    url: String,
    environment: Labels,
    wall: WallClock,
    locals: Arc<Locals>,
    timer: Timer,
    turns: Turns,
    calls: Arc<Semaphore>,
}

impl LocalBypass {
    /// Over the registry `upstream`, for a manager that others reach at `url`. The labels of `environment` (such as
    /// `nodeName`) are added to every label entry of an endpoint that registers here and does not say them.
    pub fn new(upstream: Arc<dyn RegistryApi>, url: impl Into<String>, environment: Labels, wall: WallClock) -> LocalBypass {
        let inner = Inner {
            upstream,
            url: url.into(),
            environment,
            wall,
            locals: Arc::default(),
            timer: Timer::default(),
            turns: Turns::default(),
            calls: Arc::new(Semaphore::new(MAX_CALLS_IN_FLIGHT)),
        };
        LocalBypass { inner: Arc::new(inner), trust: Trust::Peer }
    }

    /// The same registry for roles of this process, which may also name `unix://` and `inproc://` addresses. Never
    /// hand it to the edge: what comes in here is dialled as it is.
    pub fn in_process(&self) -> LocalBypass {
        LocalBypass { inner: self.inner.clone(), trust: Trust::OwnProcess }
    }
}

#[async_trait]
impl RegistryApi for LocalBypass {
    async fn register_service(&self, mut service: NetworkService, caller: Caller) -> Result<NetworkService> {
        begin_path(&mut service.path_ids, &caller);
        self.inner.upstream.register_service(service, onward(&caller)).await
    }
    async fn find_services(&self, query: ServiceQuery, caller: Caller) -> Result<ServiceUpdates> {
        self.inner.upstream.find_services(query, onward(&caller)).await
    }
    async fn unregister_service(&self, mut service: NetworkService, caller: Caller) -> Result<()> {
        begin_path(&mut service.path_ids, &caller);
        self.inner.upstream.unregister_service(service, onward(&caller)).await
    }
    async fn register_endpoint(&self, endpoint: NetworkServiceEndpoint, files: Files, caller: Caller) -> Result<NetworkServiceEndpoint> {
        let address = Address::read(&endpoint, &files, self.trust)?;
        detached(&self.inner, |inner| async move { inner.register_endpoint(endpoint, address, caller).await }).await
    }
    async fn find_endpoints(&self, query: EndpointQuery, caller: Caller) -> Result<EndpointUpdates> {
        self.inner.find_endpoints(query, caller).await
    }
    async fn unregister_endpoint(&self, endpoint: NetworkServiceEndpoint, caller: Caller) -> Result<()> {
        detached(&self.inner, |inner| async move { inner.unregister_endpoint(endpoint, caller).await }).await
    }
}

/// Runs `work` to its end even if the caller leaves: what was asked of the registry above must be remembered here.
async fn detached<T, F>(inner: &Arc<Inner>, work: impl FnOnce(Arc<Inner>) -> F) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let permit = inner.calls.clone().try_acquire_owned().map_err(|_| {
        let reason = format!("works on {MAX_CALLS_IN_FLIGHT} registrations already");
        Error::new(Kind::Exhausted, "the manager's registry", reason, "try again later")
    })?;
    let work = work(inner.clone());
    let task = tokio::spawn(async move {
        let _permit = permit;
        work.await
    });
    task.await.unwrap_or_else(|failed| Err(Error::internal("registration", failed.to_string())))
}

/// The call as it goes on: the edge adds the manager's own identity and token to the way so far.
fn onward(caller: &Caller) -> Caller {
    Caller { timeout: caller.timeout, trail: caller.trail.clone(), ..Caller::default() }
}

/// A registration's path begins at this node's manager: whoever calls is its first process, whatever they say.
fn begin_path(path_ids: &mut Vec<String>, caller: &Caller) {
    if let Some(identity) = &caller.identity {
        *path_ids = vec![identity.to_string()];
    }
}

impl Inner {
    async fn register_endpoint(
        &self,
        mut endpoint: NetworkServiceEndpoint,
        address: Address,
        caller: Caller,
    ) -> Result<NetworkServiceEndpoint> {
        begin_path(&mut endpoint.path_ids, &caller);
        let name = endpoint.name.clone();
        let _turn = within(&caller, self.turns.take(&name).map(Ok)).await?;
        let life = life(&mut endpoint, &caller, (self.wall)(), DEFAULT_EXPIRE_PERIOD)?;
        self.add_environment(&mut endpoint);
        let given = std::mem::replace(&mut endpoint.url, self.url.clone());
        let (owner, services) = (endpoint.path_ids.first().cloned(), endpoint.network_service_names.clone());
        let local = Local { address, owner, services, deadline: Instant::now() + life };
        // Known before it is asked for, because a watch may tell of it before the answer is here.
        let before = self.locals.remember(&name, local.clone())?;
        let answer = within(&caller, self.upstream.register_endpoint(endpoint, Files::default(), onward(&caller))).await;
        let settled = answer.and_then(|answer| self.keep(&name, local, answer));
        if settled.as_ref().map(|answer| &answer.name) != Ok(&name) {
            self.locals.restore(&name, before);
        }
        self.timer.wake(&self.locals);
        settled.map(|answer| NetworkServiceEndpoint { url: given, ..answer })
    }

    /// Remembers what the registry above answered: it may have promised a shorter life, or chosen another name.
    fn keep(&self, name: &EndpointName, local: Local, answer: NetworkServiceEndpoint) -> Result<NetworkServiceEndpoint> {
        let promised = answer.expiration_time.and_then(|end| end.duration_since((self.wall)()).ok());
        let deadline = promised.map_or(local.deadline, |promised| local.deadline.min(Instant::now() + promised));
        if answer.name != *name || deadline != local.deadline {
            self.locals.remember(&answer.name, Local { deadline, ..local })?;
        }
        Ok(answer)
    }

    /// Labels of this node, where the endpoint has labels for a service and does not say otherwise.
    fn add_environment(&self, endpoint: &mut NetworkServiceEndpoint) {
        for labels in endpoint.network_service_labels.values_mut() {
            for (key, value) in &self.environment {
                labels.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
    }

    async fn find_endpoints(&self, query: EndpointQuery, caller: Caller) -> Result<EndpointUpdates> {
        let updates = if query.url == self.url && !query.watch {
            self.find_own(query, &caller).await?
        } else {
            self.upstream.find_endpoints(query, onward(&caller)).await?
        };
        let (locals, url) = (self.locals.clone(), self.url.clone());
        let seen = move |update: Result<(EndpointUpdate, Files)>| {
            future::ready(match update {
                Ok((update, files)) => localised(&locals, &url, update, files).map(Ok),
                Err(error) => Some(Err(error)),
            })
        };
        Ok(updates.filter_map(seen).boxed())
    }

    /// Only endpoints of this node are asked for, so that it does not matter how many others there are.
    async fn find_own(&self, query: EndpointQuery, caller: &Caller) -> Result<EndpointUpdates> {
        let names = self.locals.serving(&query);
        if names.len() > MAX_LOOKED_UP {
            return self.upstream.find_endpoints(query, onward(caller)).await;
        }
        let mut found = Vec::new();
        for name in names {
            let query = EndpointQuery { name: Some(name), ..query.clone() };
            found.extend(self.upstream.find_endpoints(query, onward(caller)).await?.collect::<Vec<_>>().await);
        }
        Ok(stream::iter(found).boxed())
    }

    async fn unregister_endpoint(&self, mut endpoint: NetworkServiceEndpoint, caller: Caller) -> Result<()> {
        begin_path(&mut endpoint.path_ids, &caller);
        let _turn = within(&caller, self.turns.take(&endpoint.name).map(Ok)).await?;
        if !self.locals.knows(&endpoint.name) && !self.is_said_to_be_here(&endpoint.name, &caller).await? {
            return Ok(());
        }
        let name = endpoint.name.clone();
        endpoint.url = self.url.clone();
        within(&caller, self.upstream.unregister_endpoint(endpoint, onward(&caller))).await?;
        self.locals.restore(&name, None);
        Ok(())
    }

    /// A former life of this manager may have registered it. What another manager registered since is not ours to remove.
    async fn is_said_to_be_here(&self, name: &EndpointName, caller: &Caller) -> Result<bool> {
        let query = EndpointQuery { name: Some(name.clone()), url: self.url.clone(), ..EndpointQuery::default() };
        let mut found = within(caller, self.upstream.find_endpoints(query, onward(caller))).await?;
        while let Some((update, _)) = within(caller, found.try_next()).await? {
            if !update.deleted && update.endpoint.name == *name && update.endpoint.url == self.url {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The update as this node sees it; `None` for an endpoint of this node that nobody here knows any more.
fn localised(locals: &Locals, own_url: &str, mut update: EndpointUpdate, mut files: Files) -> Option<(EndpointUpdate, Files)> {
    // Another URL means another manager, even for a name that was ours until just now: the endpoint has moved.
    if update.endpoint.url != own_url {
        return Some((update, files));
    }
    match locals.get(&update.endpoint.name, update.endpoint.path_ids.first()) {
        Some(address) => {
            update.endpoint.url = address.url;
            if let Some((key, file)) = address.file {
                files.insert(key, file);
            }
            Some((update, files))
        }
        None => update.deleted.then_some((update, files)),
    }
}

/// Waits for the registry above as long as the caller does, but never for ever.
async fn within<T>(caller: &Caller, call: impl Future<Output = Result<T>>) -> Result<T> {
    let limit = caller.timeout.map_or(UPSTREAM_TIMEOUT, |timeout| timeout.min(UPSTREAM_TIMEOUT));
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
        let reason = format!("did not answer within {limit:?}");
        Err(Error::new(Kind::Timeout, "the registry above the manager", reason, "check that it runs and is reached from this node"))
    })
}
