//! The registry: who may write what, how long it lives, and who is told.

use crate::{
    WallClock,
    engine::{Change, Engine, Record, Revision, Store, Stored},
};
use async_trait::async_trait;
use futures::{StreamExt, stream};
use nsm_api::{
    Caller, EndpointQuery, EndpointUpdate, EndpointUpdates, Error, Files, Kind, Labels, Match, NetworkService, NetworkServiceEndpoint,
    Payload, RegistryApi, Result, ServiceQuery, ServiceUpdate, ServiceUpdates,
    limits::{MAX_MAP_VALUE_BYTES, MAX_NAME_BYTES, MAX_PATH_SEGMENTS},
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

/// How long an endpoint lives after its last registration, unless it or its caller's token asks for less.
pub const DEFAULT_EXPIRE_PERIOD: Duration = Duration::from_secs(60);
/// How often a write is tried again because another registry over the same store was faster.
pub const MAX_WRITE_TRIES: usize = 16;
/// Bytes of text in one record; less than what any engine can keep.
pub const MAX_RECORD_BYTES: usize = 1 << 20;

/// The registry over an engine.
///
/// The owner of a name is the first of `path_ids`, or the caller where that is empty. The edge has put the proven
/// identities there: a registry that peers reach directly must not be given `path_ids` as they came.
pub struct Registry {
    engine: Arc<dyn Engine>,
    wall: WallClock,
    expire_period: Duration,
}

impl Registry {
    /// A registry over `engine`; `wall` dates what it stores.
    pub fn new(engine: Arc<dyn Engine>, wall: WallClock) -> Registry {
        Registry { engine, wall, expire_period: DEFAULT_EXPIRE_PERIOD }
    }

    /// The same with another period than [`DEFAULT_EXPIRE_PERIOD`].
    pub fn with_expire_period(self, expire_period: Duration) -> Registry {
        Registry { expire_period, ..self }
    }
}

#[async_trait]
impl RegistryApi for Registry {
    async fn register_service(&self, mut service: NetworkService, caller: Caller) -> Result<NetworkService> {
        sign::<NetworkService>(&service.name, &mut service.path_ids, &caller)?;
        check_service(&service)?;
        if service.payload == Payload::Unset {
            service.payload = Payload::Ip;
        }
        let store = self.engine.services();
        for _ in 0..MAX_WRITE_TRIES {
            let present = store.get(&service.name).await?;
            let revision = owned(present.as_ref(), |present| &present.path_ids, service.path_ids.first())?;
            if store.put(Arc::new(service.clone()), revision, None).await?.is_some() {
                return Ok(service);
            }
        }
        Err(outrun::<NetworkService>(&service.name))
    }

    async fn find_services(&self, query: ServiceQuery, _: Caller) -> Result<ServiceUpdates> {
        let store = self.engine.services();
        if query.watch {
            let changes = store.watch(query).await?;
            let update =
                |change: Change<NetworkService>| ServiceUpdate { service: Arc::unwrap_or_clone(change.record), deleted: change.deleted };
            return Ok(changes.map(move |change| change.map(update)).boxed());
        }
        let present = store.find(&query).await?;
        Ok(stream::iter(present).map(|service| Ok(ServiceUpdate { service: Arc::unwrap_or_clone(service), deleted: false })).boxed())
    }

    async fn unregister_service(&self, service: NetworkService, caller: Caller) -> Result<()> {
        let claimant = claimant(&service.path_ids, &caller);
        unregister(self.engine.services(), &service.name, |present| &present.path_ids, claimant.as_ref()).await
    }

    async fn register_endpoint(&self, mut endpoint: NetworkServiceEndpoint, _: Files, caller: Caller) -> Result<NetworkServiceEndpoint> {
        check_url(&endpoint)?;
        sign::<NetworkServiceEndpoint>(&endpoint.name, &mut endpoint.path_ids, &caller)?;
        let labels = endpoint.network_service_labels.values().map(size).sum::<usize>();
        check_size::<NetworkServiceEndpoint>(&endpoint.name, labels)?;
        let now = (self.wall)();
        let life = life(&mut endpoint, &caller, now, self.expire_period)?;
        let store = self.engine.endpoints();
        let asked = endpoint.initial_registration_time.filter(|asked| *asked <= now);
        for _ in 0..MAX_WRITE_TRIES {
            let present = store.get(&endpoint.name).await?;
            let revision = owned(present.as_ref(), |present| &present.path_ids, endpoint.path_ids.first())?;
            // What the endpoint says counts only for a name that is new here: it knows the time from before a restart of ours.
            let first = present.and_then(|present| present.record.initial_registration_time);
            endpoint.initial_registration_time = first.or(asked).or(Some(now));
            if store.put(Arc::new(endpoint.clone()), revision, Some(life)).await?.is_some() {
                return Ok(endpoint);
            }
        }
        Err(outrun::<NetworkServiceEndpoint>(&endpoint.name))
    }

    async fn find_endpoints(&self, query: EndpointQuery, _: Caller) -> Result<EndpointUpdates> {
        let store = self.engine.endpoints();
        if query.watch {
            let changes = store.watch(query).await?;
            let update = |change: Change<NetworkServiceEndpoint>| {
                (EndpointUpdate { endpoint: Arc::unwrap_or_clone(change.record), deleted: change.deleted }, Files::default())
            };
            return Ok(changes.map(move |change| change.map(update)).boxed());
        }
        let present = store.find(&query).await?;
        let update = |endpoint| Ok((EndpointUpdate { endpoint: Arc::unwrap_or_clone(endpoint), deleted: false }, Files::default()));
        Ok(stream::iter(present).map(update).boxed())
    }

    async fn unregister_endpoint(&self, endpoint: NetworkServiceEndpoint, caller: Caller) -> Result<()> {
        let claimant = claimant(&endpoint.path_ids, &caller);
        unregister(self.engine.endpoints(), &endpoint.name, |present| &present.path_ids, claimant.as_ref()).await
    }
}

/// Removes the record if it is there and `claimant` owns it.
async fn unregister<R: Record>(
    store: &dyn Store<R>,
    name: &R::Name,
    path_ids: impl Fn(&R) -> &Vec<String>,
    claimant: Option<&String>,
) -> Result<()> {
    for _ in 0..MAX_WRITE_TRIES {
        let present = store.get(name).await?;
        let Some(revision) = owned(present.as_ref(), &path_ids, claimant)? else { return Ok(()) };
        if store.remove(name, revision).await? {
            return Ok(());
        }
    }
    Err(outrun::<R>(name))
}

/// Who writes: the start of the registration's path.
fn claimant(path_ids: &[String], caller: &Caller) -> Option<String> {
    path_ids.first().cloned().or_else(|| caller.identity.as_ref().map(ToString::to_string))
}

/// Adds the caller to the registration's path, unless a refresh brought it back.
fn sign<R: Record>(name: &R::Name, path_ids: &mut Vec<String>, caller: &Caller) -> Result<()> {
    if let Some(identity) = &caller.identity
        && !path_ids.iter().any(|id| id == identity.as_str())
    {
        path_ids.push(identity.to_string());
    }
    if let Some(long) = path_ids.iter().map(String::len).find(|bytes| *bytes > MAX_MAP_VALUE_BYTES) {
        let reason = format!("was passed on by an identity of {long} bytes, the limit is {MAX_MAP_VALUE_BYTES}");
        return Err(Error::invalid(R::object(name), reason, "give the processes on its way shorter SPIFFE IDs"));
    }
    if path_ids.len() <= MAX_PATH_SEGMENTS {
        return Ok(());
    }
    let reason = format!("was passed on by {} processes, the limit is {MAX_PATH_SEGMENTS}", path_ids.len());
    Err(Error::invalid(R::object(name), reason, "look for registries that pass it on in a circle"))
}

/// The revision to write over, if `claimant` may: the name is free, has no owner, or is theirs.
fn owned<R: Record>(
    present: Option<&Stored<R>>,
    path_ids: impl Fn(&R) -> &Vec<String>,
    claimant: Option<&String>,
) -> Result<Option<Revision>> {
    let Some(present) = present else { return Ok(None) };
    match path_ids(&present.record).first() {
        Some(owner) if claimant != Some(owner) => Err(denied(R::object(present.record.name()), owner, claimant)),
        Some(_) | None => Ok(Some(present.revision)),
    }
}

/// The refusal of a name that somebody else owns.
pub(crate) fn denied(object: String, owner: &str, claimant: Option<&String>) -> Error {
    let claimant = claimant.map_or("a caller without identity", String::as_str);
    let reason = format!("belongs to {owner}, not to {claimant}");
    Error::new(Kind::Denied, object, reason, "use another name, or have the owner unregister it")
}

fn outrun<R: Record>(name: &R::Name) -> Error {
    Error::new(Kind::Conflict, R::object(name), format!("is written by others all the time ({MAX_WRITE_TRIES} tries)"), "try again")
}

fn check_service(service: &NetworkService) -> Result<()> {
    let payload = service.payload.as_str().len();
    if payload > MAX_NAME_BYTES {
        let reason = format!("has a payload of {payload} bytes, the limit is {MAX_NAME_BYTES}");
        return Err(Error::invalid(NetworkService::object(&service.name), reason, "register it with payload IP or ETHERNET"));
    }
    let routes = |rule: &Match| rule.routes.iter().map(|route| size(&route.destination_selector)).sum::<usize>();
    let of = |rule: &Match| size(&rule.source_selector) + routes(rule) + rule.metadata.as_ref().map_or(0, size);
    check_size::<NetworkService>(&service.name, service.matches.iter().map(of).sum())
}

fn size(labels: &Labels) -> usize {
    labels.iter().map(|(key, value)| key.len() + value.len()).sum()
}

fn check_size<R: Record>(name: &R::Name, bytes: usize) -> Result<()> {
    if bytes <= MAX_RECORD_BYTES {
        return Ok(());
    }
    let reason = format!("holds {bytes} bytes of labels, the limit is {MAX_RECORD_BYTES}");
    Err(Error::invalid(R::object(name), reason, "use fewer or shorter ones"))
}

fn check_url(endpoint: &NetworkServiceEndpoint) -> Result<()> {
    let reason = match endpoint.url.len() {
        0 => "has no URL".to_owned(),
        bytes if bytes > MAX_MAP_VALUE_BYTES => format!("has a URL of {bytes} bytes, the limit is {MAX_MAP_VALUE_BYTES}"),
        _ => return Ok(()),
    };
    let fix = "register it with the address it is reached at, such as tcp://10.0.0.1:5001";
    Err(Error::invalid(NetworkServiceEndpoint::object(&endpoint.name), reason, fix))
}

/// How long the endpoint lives from `now`: as it asks, but not longer than its caller's token or `period`. Also
/// dates its end.
pub(crate) fn life(endpoint: &mut NetworkServiceEndpoint, caller: &Caller, now: SystemTime, period: Duration) -> Result<Duration> {
    let ends = [endpoint.expiration_time, caller.token_expires, now.checked_add(period)].into_iter().flatten().min();
    let life = ends.and_then(|end| end.duration_since(now).ok()).filter(|life| !life.is_zero());
    let Some(life) = life else {
        let what = if caller.token_expires == ends { "the caller's token" } else { "its expiration time" };
        let reason = format!("{what} has passed by the clock of this registry");
        return Err(Error::invalid(
            NetworkServiceEndpoint::object(&endpoint.name),
            reason,
            "set the clocks of both machines, then register it again",
        ));
    };
    endpoint.expiration_time = ends;
    Ok(life)
}
