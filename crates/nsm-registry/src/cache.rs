//! What a manager knows of the registry above, so that a choice costs no round trip and goes on while that is away.
//!
//! One watch of services and one of endpoints feed an index (`feed`). A Find is answered from it if something in it
//! matches; what is not found here may be new, and is asked for above. An endpoint stays as long as it was registered
//! for, whether or not the registry is there; a service until the registry tells of its end.
//!
//! Asked above instead: everything until the index is complete, also after the watch was interrupted; names of other
//! domains (`name@domain`); everything, where the registry holds more than [`MAX_CACHED`]. Watches of endpoints always are: who
//! registers takes the end of one for the loss of the registry. Watches of services are answered from the index, so
//! that nobody acts on news before a choice does.

mod feed;
#[cfg(test)]
mod tests;

use crate::{
    WallClock,
    engine::{Change, Engine, Record, Revision, Store},
    memory::MemoryEngine,
};
use async_trait::async_trait;
use feed::Mode;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use nsm_api::{
    Caller, EndpointQuery, EndpointUpdate, EndpointUpdates, Error, Files, Kind, NetworkService, NetworkServiceEndpoint, RegistryApi,
    Result, ServiceQuery, ServiceUpdate, ServiceUpdates,
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{sync::watch, task::AbortHandle};

/// Services, and endpoints, that a manager remembers. Where the registry holds more, it is asked each time.
pub const MAX_CACHED: usize = 16_384;
/// How long the registry may take before what is remembered is answered, while its watch is interrupted.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// The registry above, and what is remembered of it.
pub struct Cache {
    inner: Arc<Inner>,
    feeds: [AbortHandle; 2],
}

struct Inner {
    upstream: Arc<dyn RegistryApi>,
    wall: WallClock,
    index: MemoryEngine,
    services: watch::Sender<Mode>,
    endpoints: watch::Sender<Mode>,
}

impl Cache {
    /// Begins to watch `upstream`. Needs a runtime.
    pub fn new(upstream: Arc<dyn RegistryApi>, wall: WallClock) -> Cache {
        Cache::bounded(upstream, wall, MAX_CACHED)
    }

    fn bounded(upstream: Arc<dyn RegistryApi>, wall: WallClock, bound: usize) -> Cache {
        let mode = || watch::Sender::new(Mode::Behind);
        let index = MemoryEngine::holding(bound);
        let inner = Arc::new(Inner { upstream, wall, index, services: mode(), endpoints: mode() });
        let services = tokio::spawn(feed::run::<NetworkService>(inner.clone())).abort_handle();
        let endpoints = tokio::spawn(feed::run::<NetworkServiceEndpoint>(inner.clone())).abort_handle();
        Cache { inner, feeds: [services, endpoints] }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.feeds.iter().for_each(AbortHandle::abort);
    }
}

/// A kind of record, as it is asked for above.
#[async_trait]
trait Told: Record {
    fn mode(inner: &Inner) -> &watch::Sender<Mode>;
    fn store(index: &MemoryEngine) -> &dyn Store<Self>;
    async fn ask(upstream: &dyn RegistryApi, query: Self::Query, caller: Caller) -> Result<BoxStream<'static, Result<Change<Self>>>>;
    /// All of them.
    fn everything(watch: bool) -> Self::Query;
    /// When it ends unless it is registered again.
    fn end(&self) -> Option<SystemTime>;
    /// Names of another domain are in it.
    fn leads_away(query: &Self::Query) -> bool;
}

#[async_trait]
impl Told for NetworkService {
    fn mode(inner: &Inner) -> &watch::Sender<Mode> {
        &inner.services
    }
    fn store(index: &MemoryEngine) -> &dyn Store<NetworkService> {
        index.services()
    }
    async fn ask(upstream: &dyn RegistryApi, query: ServiceQuery, caller: Caller) -> Result<BoxStream<'static, Result<Change<Self>>>> {
        let change = |update: ServiceUpdate| Change { record: Arc::new(update.service), deleted: update.deleted };
        Ok(upstream.find_services(query, caller).await?.map_ok(change).boxed())
    }
    fn everything(watch: bool) -> ServiceQuery {
        ServiceQuery { watch, ..ServiceQuery::default() }
    }
    fn end(&self) -> Option<SystemTime> {
        None
    }
    fn leads_away(query: &ServiceQuery) -> bool {
        query.name.as_ref().is_some_and(|name| foreign(name.as_str()))
    }
}

#[async_trait]
impl Told for NetworkServiceEndpoint {
    fn mode(inner: &Inner) -> &watch::Sender<Mode> {
        &inner.endpoints
    }
    fn store(index: &MemoryEngine) -> &dyn Store<NetworkServiceEndpoint> {
        index.endpoints()
    }
    async fn ask(upstream: &dyn RegistryApi, query: EndpointQuery, caller: Caller) -> Result<BoxStream<'static, Result<Change<Self>>>> {
        let change = |(update, _): (EndpointUpdate, Files)| Change { record: Arc::new(update.endpoint), deleted: update.deleted };
        Ok(upstream.find_endpoints(query, caller).await?.map_ok(change).boxed())
    }
    fn everything(watch: bool) -> EndpointQuery {
        EndpointQuery { watch, ..EndpointQuery::default() }
    }
    fn end(&self) -> Option<SystemTime> {
        self.expiration_time
    }
    fn leads_away(query: &EndpointQuery) -> bool {
        let services = query.services.iter().chain(query.labels.keys()).map(nsm_api::ServiceName::as_str);
        query.name.iter().map(nsm_api::EndpointName::as_str).chain(services).any(foreign)
    }
}

fn foreign(name: &str) -> bool {
    name.contains('@')
}

impl Inner {
    /// What is remembered and answers `query`, if that may be said now.
    async fn remembered<R: Told>(&self, query: &R::Query, caller: &Caller) -> Option<Vec<Arc<R>>> {
        let mode = *R::mode(self).borrow();
        if R::leads_away(query) || mode == Mode::Off {
            return None;
        }
        let found = R::store(&self.index).find(query).await.ok().filter(|found| !found.is_empty())?;
        match mode {
            Mode::Complete | Mode::Away => Some(found),
            Mode::Behind | Mode::Off => Some(self.asked::<R>(query, caller).await.unwrap_or(found)),
        }
    }

    /// What the registry above answers, if it does so soon.
    async fn asked<R: Told>(&self, query: &R::Query, caller: &Caller) -> Result<Vec<Arc<R>>> {
        let limit = caller.timeout.map_or(ASK_TIMEOUT, |timeout| timeout.min(ASK_TIMEOUT));
        let read = async {
            let changes = R::ask(&*self.upstream, query.clone(), Caller::within(limit)).await?;
            changes.try_filter(|change| std::future::ready(!change.deleted)).map_ok(|change| change.record).try_collect().await
        };
        let late = |_| Err(Error::new(Kind::Timeout, "the registry above the manager", "did not answer", "look whether it runs"));
        tokio::time::timeout(limit, read).await.unwrap_or_else(late)
    }

    /// The last write of this name that is remembered.
    async fn revision<R: Told>(&self, name: &R::Name) -> Option<Revision> {
        R::store(&self.index).get(name).await.ok().flatten().map(|stored| stored.revision)
    }

    /// Remembers what this manager has just registered, before the watch tells of it. Where it already did, that counts.
    async fn learn<R: Told>(&self, record: &R, before: Option<Revision>, name: &str) {
        if *R::mode(self).borrow() != Mode::Off && !foreign(name) {
            let _ = feed::put(self, Arc::new(record.clone()), before).await;
        }
    }

    async fn forget<R: Told>(&self, name: &R::Name, before: Option<Revision>) {
        if let Some(before) = before {
            let _ = R::store(&self.index).remove(name, before).await;
        }
    }
}

#[async_trait]
impl RegistryApi for Cache {
    async fn register_service(&self, service: NetworkService, caller: Caller) -> Result<NetworkService> {
        let before = self.inner.revision::<NetworkService>(&service.name).await;
        let answer = self.inner.upstream.register_service(service, caller).await?;
        self.inner.learn(&answer, before, answer.name.as_str()).await;
        Ok(answer)
    }

    async fn find_services(&self, query: ServiceQuery, caller: Caller) -> Result<ServiceUpdates> {
        if query.watch {
            return self.watch_services(query, caller).await;
        }
        let update = |service| Ok(ServiceUpdate { service: Arc::unwrap_or_clone(service), deleted: false });
        match self.inner.remembered::<NetworkService>(&query, &caller).await {
            Some(found) => Ok(stream::iter(found).map(update).boxed()),
            None => self.inner.upstream.find_services(query, caller).await,
        }
    }

    async fn unregister_service(&self, service: NetworkService, caller: Caller) -> Result<()> {
        let (name, before) = (service.name.clone(), self.inner.revision::<NetworkService>(&service.name).await);
        self.inner.upstream.unregister_service(service, caller).await?;
        self.inner.forget::<NetworkService>(&name, before).await;
        Ok(())
    }

    async fn register_endpoint(&self, endpoint: NetworkServiceEndpoint, files: Files, caller: Caller) -> Result<NetworkServiceEndpoint> {
        let before = self.inner.revision::<NetworkServiceEndpoint>(&endpoint.name).await;
        let answer = self.inner.upstream.register_endpoint(endpoint, files, caller).await?;
        self.inner.learn(&answer, before, answer.name.as_str()).await;
        Ok(answer)
    }

    async fn find_endpoints(&self, query: EndpointQuery, caller: Caller) -> Result<EndpointUpdates> {
        if query.watch {
            return self.inner.upstream.find_endpoints(query, caller).await;
        }
        let update = |endpoint| Ok((EndpointUpdate { endpoint: Arc::unwrap_or_clone(endpoint), deleted: false }, Files::default()));
        match self.inner.remembered::<NetworkServiceEndpoint>(&query, &caller).await {
            Some(found) => Ok(stream::iter(found).map(update).boxed()),
            None => self.inner.upstream.find_endpoints(query, caller).await,
        }
    }

    async fn unregister_endpoint(&self, endpoint: NetworkServiceEndpoint, caller: Caller) -> Result<()> {
        let (name, before) = (endpoint.name.clone(), self.inner.revision::<NetworkServiceEndpoint>(&endpoint.name).await);
        self.inner.upstream.unregister_endpoint(endpoint, caller).await?;
        self.inner.forget::<NetworkServiceEndpoint>(&name, before).await;
        Ok(())
    }
}

impl Cache {
    /// Ends with an error when there are too many services to be remembered; the next one goes to the registry above.
    async fn watch_services(&self, query: ServiceQuery, caller: Caller) -> Result<ServiceUpdates> {
        let mut mode = self.inner.services.subscribe();
        if NetworkService::leads_away(&query) || *mode.borrow_and_update() == Mode::Off {
            return self.inner.upstream.find_services(query, caller).await;
        }
        let changes = self.inner.index.services().watch(query).await?;
        let off = async move { mode.wait_for(|mode| *mode == Mode::Off).await.map(drop) };
        let over = Error::new(Kind::Unavailable, "watch of services", "there are too many to be remembered here", "watch again");
        let update =
            |change: Change<NetworkService>| ServiceUpdate { service: Arc::unwrap_or_clone(change.record), deleted: change.deleted };
        let updates = changes.map(move |change| change.map(update)).take_until(off);
        Ok(updates.chain(stream::once(async { Err(over) })).boxed())
    }
}
