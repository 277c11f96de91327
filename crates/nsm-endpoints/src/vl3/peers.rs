//! The other endpoints of the network: who is there, and who dials whom.
//!
//! Of each pair the younger dials: the one that was registered later, or has the greater name. Wires keep and mend
//! themselves (`nsm-hop`); here is only who is wanted.

use super::{Changes, Dialled};
use futures::{StreamExt, future::join_all};
use nsm_api::*;
use nsm_hop::{
    hop::Hop,
    kernel::Netns,
    mechanism::{own_kernel, service_interface_name},
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tracing::{info, warn};

/// Endpoints of one network that are dialled.
pub const MAX_PEERS: usize = 256;
/// Longest try to get one wire.
const TRY: Duration = Duration::from_secs(15);
/// How long the first wires are waited for.
const FIRST: Duration = Duration::from_secs(5);
/// Pauses between tries, doubled from the first to the last, with jitter.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Longest wait for a question to the registry, and for the end of a wire.
const CALL: Duration = Duration::from_secs(5);

/// What is known of an endpoint: when it was first registered, and its name. The smaller is the older.
type Age = (SystemTime, EndpointName);

/// Dials the older endpoints of a network.
pub struct Peers {
    /// The hop at which wires to them begin. [`Dialled`] is one of its parts.
    pub hop: Hop,
    /// Where they are found.
    pub registry: Arc<dyn RegistryApi>,
    /// Knows to whom each wire goes.
    pub dialled: Dialled,
    /// Our own name there.
    pub own: EndpointName,
    /// The services of the network; the first is asked for.
    pub services: Vec<ServiceName>,
    /// Labels of the Requests.
    pub labels: Labels,
    /// Where wires end here.
    pub netns: Netns,
    /// When to ask for all wires again.
    pub changes: Changes,
}

/// A wire that is wanted.
struct Wire {
    id: ConnectionId,
    task: JoinHandle<()>,
}

impl Peers {
    /// Dials all that are there, and then whoever comes, until it is dropped. `first` is called when all that were there
    /// at first are connected, or too slow.
    pub async fn run(&self, first: impl FnOnce()) {
        let (mut known, mut wires) = (BTreeMap::new(), BTreeMap::new());
        match timeout(CALL, self.here()).await {
            Ok(Ok(here)) => known = here,
            Ok(Err(error)) => warn!(%error, "other endpoints of this network are not known yet"),
            Err(_) => warn!("other endpoints of this network are not known yet: the registry does not answer"),
        }
        self.reconcile(&known, &mut wires);
        let dialling = wires.values_mut().map(|wire: &mut Wire| &mut wire.task);
        if timeout(FIRST, join_all(dialling)).await.is_err() {
            warn!("not all endpoints of this network are connected yet");
        }
        first();
        let mut again = self.changes.listen();
        let ask = async {
            while again.changed().await.is_ok() {
                self.renew().await;
            }
        };
        tokio::join!(ask, self.follow(known, wires));
    }

    /// Asks for all wires again, with what is true now.
    async fn renew(&self) {
        let again = |connection: Arc<Connection>| {
            let mut files = Files::default();
            own_kernel(&self.netns, None, &mut files);
            let preferences = connection.mechanism.iter().cloned().collect();
            let connection = Connection { state: State::Up, ..Connection::clone(&connection) };
            self.hop.request(Request { connection, preferences, files }, Caller::within(TRY))
        };
        for error in join_all(self.hop.monitors().snapshot().into_iter().map(again)).await.into_iter().filter_map(Result::err) {
            warn!(%error, "another endpoint knows our new prefix or MTU only from the next refresh on");
        }
    }

    /// Ends all wires.
    pub async fn close(&self) {
        let all = self.hop.monitors().snapshot();
        let close = |connection: &Arc<Connection>| self.hop.close(Connection::clone(connection), Files::default(), Caller::within(CALL));
        for error in join_all(all.iter().map(close)).await.into_iter().filter_map(Result::err) {
            warn!(%error, "not closed everywhere in time; what is left ends with its token");
        }
    }

    fn query(&self, watch: bool) -> EndpointQuery {
        EndpointQuery { services: self.services.clone(), watch, ..EndpointQuery::default() }
    }

    async fn here(&self) -> Result<BTreeMap<EndpointName, SystemTime>> {
        let mut updates = self.registry.find_endpoints(self.query(false), Caller::within(CALL)).await?;
        let mut known = BTreeMap::new();
        while let Some(update) = updates.next().await {
            learn(&mut known, &update?.0);
        }
        Ok(known)
    }

    /// Watches who comes and goes. A watch that breaks says nothing about anybody: who was there stays.
    async fn follow(&self, mut known: BTreeMap<EndpointName, SystemTime>, mut wires: BTreeMap<EndpointName, Wire>) {
        let mut pause = PAUSE.0;
        loop {
            if let Ok(mut updates) = self.registry.find_endpoints(self.query(true), Caller::default()).await {
                while let Some(Ok((update, _))) = updates.next().await {
                    pause = PAUSE.0;
                    learn(&mut known, &update);
                    self.reconcile(&known, &mut wires);
                }
            }
            sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Begins what is wanted and not there, ends what is there and not wanted.
    fn reconcile(&self, known: &BTreeMap<EndpointName, SystemTime>, wires: &mut BTreeMap<EndpointName, Wire>) {
        let wanted = older(known, &self.own);
        let gone: Vec<EndpointName> = wires.keys().filter(|name| !wanted.contains(name)).cloned().collect();
        for wire in gone.iter().filter_map(|name| wires.remove(name)) {
            wire.task.abort();
            self.dialled.forget(&wire.id);
            let hop = self.hop.clone();
            tokio::spawn(async move {
                if let Some(connection) = hop.monitors().get(&wire.id) {
                    let _ = hop.close(Connection::clone(&connection), Files::default(), Caller::within(CALL)).await;
                }
            });
        }
        for name in wanted.into_iter().take(MAX_PEERS) {
            if wires.contains_key(&name) {
                continue;
            }
            match self.request(&name) {
                Ok(request) => {
                    let id = request.connection.id.clone();
                    self.dialled.name(id.clone(), name.clone());
                    let task = tokio::spawn(dial(self.hop.clone(), request));
                    wires.insert(name, Wire { id, task });
                }
                Err(error) => warn!(%error, endpoint = %name, "cannot be dialled"),
            }
        }
    }

    fn request(&self, endpoint: &EndpointName) -> Result<Request> {
        let service = self.services.first().cloned();
        let service = service.ok_or_else(|| Error::invalid("--service-names", "names no service", "name that of the network"))?;
        let id = ConnectionId::new(format!("{}-{endpoint}", self.own))?;
        let mut files = Files::default();
        let mechanism = own_kernel(&self.netns, Some(&service_interface_name(&service, &id)), &mut files);
        let mut connection = Connection::new(id, service);
        connection.network_service_endpoint_name = Some(endpoint.clone());
        connection.payload = Payload::Ip;
        connection.labels = self.labels.clone();
        Ok(Request { connection, preferences: vec![mechanism], files })
    }
}

/// Takes note of an update.
fn learn(known: &mut BTreeMap<EndpointName, SystemTime>, update: &EndpointUpdate) {
    let EndpointUpdate { endpoint, deleted } = update;
    if *deleted {
        known.remove(&endpoint.name);
    } else {
        known.insert(endpoint.name.clone(), endpoint.initial_registration_time.unwrap_or(SystemTime::UNIX_EPOCH));
    }
}

/// Those that we dial: all that are older. Nobody while we are not known ourselves.
fn older(known: &BTreeMap<EndpointName, SystemTime>, own: &EndpointName) -> Vec<EndpointName> {
    let age = |name: &EndpointName| known.get(name).map(|since| -> Age { (*since, name.clone()) });
    let Some(ours) = age(own) else { return vec![] };
    known.keys().filter(|name| age(name).is_some_and(|theirs| theirs < ours)).cloned().collect()
}

/// Asks until there is a wire.
async fn dial(hop: Hop, request: Request) {
    let mut pause = PAUSE.0;
    loop {
        match hop.request(request.clone(), Caller::within(TRY)).await {
            Ok(answer) => {
                let endpoint = answer.connection.network_service_endpoint_name;
                return info!(endpoint = endpoint.as_ref().map_or("", EndpointName::as_str), "connected");
            }
            Err(error) => warn!(%error, "not connected"),
        }
        sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Makes whoever has connections at this hop ask for them again: their refresh is requested, as their monitors see.
pub fn ask_again(hop: &Hop) {
    for connection in hop.monitors().snapshot() {
        let mut connection = Connection::clone(&connection);
        connection.state = State::RefreshRequested;
        hop.monitors().update(connection);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(list: &[(&str, u64)]) -> BTreeMap<EndpointName, SystemTime> {
        list.iter().map(|(name, since)| (name.parse().unwrap(), SystemTime::UNIX_EPOCH + Duration::from_secs(*since))).collect()
    }

    /// wire.md 10.2: of each pair exactly one dials.
    #[test]
    fn the_younger_dials() {
        let all = known(&[("a", 30), ("b", 10), ("c", 10), ("d", 20)]);
        let dialled = |name: &str| older(&all, &name.parse().unwrap()).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(["a", "b", "c", "d"].map(dialled), ["b c d", "", "b", "b c"]);
        assert_eq!(dialled("stranger"), "", "who is not registered (yet) knows nothing");
        let names: Vec<EndpointName> = all.keys().cloned().collect();
        for (i, one) in names.iter().enumerate() {
            for other in &names[i + 1..] {
                assert_ne!(older(&all, one).contains(other), older(&all, other).contains(one), "{one} {other}");
            }
        }
    }
}
