//! A client, a manager, a forwarder and endpoints as real hops in one process, between them lines that can break. All
//! of them can be killed and started again with an empty memory; the kernel and what lies in it stays.
#![allow(unreachable_pub, missing_docs)]

use async_trait::async_trait;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use nsm_api::*;
use nsm_hop::{
    hop::Hop,
    kernel::*,
    mechanism::Offer,
    onward::{End, Endpoints, Fixed, Forwarders},
    role::*,
    testing::{FakeKernel, FaultPlan},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

pub const LIFE: Duration = Duration::from_secs(600);
/// How soon a wire is to be whole again, in the time of the test: reliability.md 1.2 allows 0.36 s for a death that shows, a
/// silence shows after the look's own second.
pub const SOON: Duration = Duration::from_millis(500);

/// How the streams of a process end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Never,
    /// In order, as at a shutdown.
    Normal,
    /// As when a connection breaks.
    Broken,
    /// As if we had cancelled it ourselves.
    Cancelled,
}

/// What was asked of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    pub requests: usize,
    pub reselects: usize,
    pub closes: usize,
    pub monitors: usize,
}

struct Process {
    hop: Hop,
    streams: watch::Sender<Ending>,
}

#[derive(Default)]
struct State {
    processes: BTreeMap<String, Process>,
    calls: BTreeMap<String, Calls>,
    registered: BTreeMap<EndpointName, NetworkServiceEndpoint>,
    /// Whom the rules want first.
    preferred: Option<String>,
    /// Endpoints to which no packet passes.
    cut: BTreeSet<String>,
    /// Processes that do not let themselves be monitored.
    secretive: BTreeSet<String>,
    /// Processes that answer nothing but take their time.
    mute: BTreeSet<String>,
    starts: u64,
    /// How much later than the answers of calls the events of streams arrive, save the first of each stream.
    lag: Duration,
}

fn labelled(name: &str) -> Labels {
    [("name".to_owned(), name.to_owned())].into()
}

/// Everything. Clones are the same.
#[derive(Clone)]
pub struct World {
    state: Arc<Mutex<State>>,
    pub kernel: FakeKernel,
    clock: (SystemTime, Instant),
    random: Arc<AtomicU64>,
}

impl World {
    /// Manager `m`, forwarder `f`, endpoints `e1` and `e2`; the first is the one that is chosen.
    pub fn new() -> World {
        let world = World {
            state: Arc::default(),
            kernel: FakeKernel::new(FaultPlan::default()),
            clock: (SystemTime::now(), Instant::now()),
            random: Arc::default(),
        };
        for name in ["m", "f", "e1", "e2"] {
            world.start(name);
        }
        world.register("f", "forwarder");
        world.register("e1", "svc");
        world
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn register(&self, name: &str, service: &str) {
        let url = Target::InProcess(name.to_owned()).to_string();
        let mut endpoint = NetworkServiceEndpoint::new(name.parse().unwrap(), vec![service.parse().unwrap()], url);
        let mut labels = labelled(name);
        labels.insert("p2p".to_owned(), "true".to_owned()); // forwarders are wanted with it where a service has rules
        endpoint.network_service_labels = [(service.parse().unwrap(), labels)].into();
        self.state().registered.insert(endpoint.name.clone(), endpoint);
    }

    /// From now on the rules of all services give this endpoint to everybody, as long as there is it.
    pub fn prefer(&self, name: &str) {
        self.state().preferred = Some(name.to_owned());
    }

    /// Starts a process, or starts it again with an empty memory.
    pub fn start(&self, name: &str) {
        self.kill(name, Ending::Broken);
        let hop = self.hop(name);
        self.state().processes.insert(name.to_owned(), Process { hop, streams: watch::Sender::new(Ending::Never) });
    }

    /// Ends a process; its streams end so.
    pub fn kill(&self, name: &str, ending: Ending) {
        let process = self.state().processes.remove(name);
        if let Some(process) = process {
            process.streams.send_replace(ending);
        }
    }

    /// Ends the streams of a process that lives on.
    pub fn end_streams(&self, name: &str, ending: Ending) {
        let mut state = self.state();
        let process = state.processes.get_mut(name).unwrap();
        std::mem::replace(&mut process.streams, watch::Sender::new(Ending::Never)).send_replace(ending);
    }

    pub fn cut(&self, endpoint: &str) {
        self.state().cut.insert(endpoint.to_owned());
    }
    pub fn secretive(&self, name: &str) {
        self.state().secretive.insert(name.to_owned());
    }
    pub fn mute(&self, name: &str, mute: bool) {
        if mute {
            self.state().mute.insert(name.to_owned())
        } else {
            self.state().mute.remove(name)
        };
    }
    pub fn lag(&self, lag: Duration) {
        self.state().lag = lag;
    }
    pub fn at(&self, name: &str) -> Hop {
        self.state().processes[name].hop.clone()
    }
    pub fn calls(&self, name: &str) -> Calls {
        self.state().calls.get(name).copied().unwrap_or_default()
    }

    fn role(&self, name: &str, standing: Standing, onward: Box<dyn Onward>, wiring: Box<dyn Wiring>) -> Role {
        let generation = {
            let mut state = self.state();
            state.starts += 1;
            state.starts
        };
        Role {
            name: HopName::new(name).unwrap(),
            standing,
            issuer: Arc::new(self.clone()),
            admit: vec![],
            reserve: vec![],
            onward,
            dial: Arc::new(Dialler(self.clone(), name.to_owned())),
            wiring,
            kernel: Arc::new(self.kernel.clone()),
            generation,
            timing: Timing { retry_max: Duration::from_secs(2), ..Timing::default() },
        }
    }

    fn hop(&self, name: &str) -> Hop {
        let registry: Arc<dyn RegistryApi> = Arc::new(self.clone());
        let onward: Box<dyn Onward> = match name.as_bytes()[0] {
            b'm' => Box::new(Forwarders { registry, service: "forwarder".parse().unwrap(), own_url: String::new() }),
            b'f' | b'F' => Box::new(Endpoints::new(registry, vec![Box::new(Anything)], Arc::new(self.clone()))),
            _ => Box::new(End),
        };
        let wiring: Box<dyn Wiring> = if name.starts_with(['f', 'F']) { Box::new(ToEndpoint(name.to_owned())) } else { Box::new(NoWires) };
        Hop::new(self.role(name, Standing::Server, onward, wiring))
    }

    /// A client with or without eyes for its packets.
    pub fn client(&self, name: &str, looks: bool) -> Client {
        let onward = Box::new(Fixed(Target::InProcess("m".into())));
        let hop = Hop::new(self.role(name, Standing::Origin, onward, Box::new(NoWires)));
        let hop = if looks { hop.with_liveness(Arc::new(self.clone())) } else { hop };
        Client { hop, world: self.clone(), id: ConnectionId::new(format!("{name}-0")).unwrap() }
    }

    /// The endpoints that are wired, one for each connection.
    pub fn wired(&self) -> Vec<u64> {
        let links = self.kernel.wires().into_iter().filter_map(|wire| match wire {
            Wire::Link(link) => Some(link.ifaces()[1].netns.key.ino),
            _ => None,
        });
        links.collect()
    }
}

/// A client with one connection.
pub struct Client {
    pub hop: Hop,
    pub world: World,
    pub id: ConnectionId,
}

impl Client {
    pub fn wanted(&self) -> Request {
        let connection = Connection::new(self.id.clone(), "svc".parse().unwrap());
        Request { connection, preferences: vec![], files: Files::default() }
    }
    pub async fn connect(&self) {
        self.hop.request(self.wanted(), Caller::within(Duration::from_secs(15))).await.unwrap();
    }
    pub async fn close(&self) {
        self.hop.close(self.wanted().connection, Files::default(), Caller::within(Duration::from_secs(15))).await.unwrap();
    }
    pub fn connection(&self) -> Option<Arc<Connection>> {
        self.hop.monitors().get(&self.id)
    }
    pub fn endpoint(&self) -> String {
        self.connection()
            .and_then(|connection| connection.network_service_endpoint_name.clone())
            .map_or(String::new(), |name| name.to_string())
    }
    /// What hop `name` shows of the connection.
    pub fn seen_at(&self, name: &str) -> Option<Arc<Connection>> {
        let all = self.world.at(name).monitors().snapshot();
        all.into_iter().find(|connection| connection.path.segments[0].id == self.id)
    }
    pub fn state_at(&self, name: &str) -> Option<State2> {
        self.seen_at(name).map(|connection| connection.state)
    }
    /// All is well: every hop of the way has the connection, up, and it is wired to `endpoint`, and only there.
    pub fn whole(&self, endpoint: &str) -> bool {
        let up = |name: &str| self.state_at(name) == Some(State2::Up);
        let wired = self.world.wired();
        let own = self.connection().is_some_and(|connection| connection.state == State2::Up);
        own && self.endpoint() == endpoint && ["m", "f", endpoint].into_iter().all(up) && wired == [number(endpoint)]
    }
}

pub use nsm_api::State as State2;

/// Waits until it is so.
pub async fn until(what: &str, within: Duration, so: impl Fn() -> bool) {
    let end = Instant::now() + within;
    while !so() {
        assert!(Instant::now() < end, "{what}: not within {within:?}");
        sleep(Duration::from_millis(1)).await;
    }
}

fn number(name: &str) -> u64 {
    name.bytes().fold(0, |sum, byte| sum * 256 + u64::from(byte))
}

/// One link from the client's pod to the endpoint's, named after the forwarder that makes it.
struct ToEndpoint(String);

impl Wiring for ToEndpoint {
    fn wires(&self, draft: &Draft, sent: Option<&Sent>) -> Result<WirePlan> {
        let endpoint = sent.unwrap().candidate.registered.as_ref().unwrap().to_string();
        let client = number(draft.connection.path.segments[0].name.as_str());
        let iface =
            |ino: u64, name: &str| Iface { netns: Netns { key: InodeKey { dev: 4, ino }, file: None }, name: IfName::new(name).unwrap() };
        let link = Link::Veth { a: iface(client, &self.0), b: iface(number(&endpoint), &format!("{}-{client}", self.0)) };
        Ok(WirePlan { now: Wires::from([Wire::Link(link)]), later: Wires::new() })
    }
}

struct Anything;

impl Offer for Anything {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Kernel
    }
    fn class(&self) -> Class {
        Class::Local
    }
    fn offer(&self, _: &Draft, _: Option<&Mechanism>) -> Option<Mechanism> {
        Some(Mechanism::new(Class::Local, MechanismKind::Kernel))
    }
}

#[async_trait]
impl Liveness for World {
    /// There is a wire, and it is not cut. As with real echoes, silence takes a second to be sure of.
    async fn alive(&self, connection: &Connection) -> bool {
        let name = connection.network_service_endpoint_name.as_ref().map_or("", EndpointName::as_str);
        let wired = self.wired().contains(&number(name));
        let alive = wired && !self.state().cut.contains(name);
        if !alive {
            sleep(Duration::from_secs(1)).await;
        }
        alive
    }
    fn interval(&self) -> Duration {
        Duration::from_millis(200)
    }
}

impl Issuer for World {
    fn token(&self, _: &Caller) -> Result<(String, SystemTime)> {
        Ok((format!("t{}", self.random.fetch_add(1, Ordering::Relaxed)), self.now() + LIFE))
    }
    fn connection_id(&self, path: &Path, _: &Caller) -> ConnectionId {
        ConnectionId::new(format!("{}.", path.segments[path.index as usize].id)).unwrap()
    }
    fn gave(&self, _: &ConnectionId, _: &Path, _: &Caller) -> bool {
        true
    }
    fn now(&self) -> SystemTime {
        self.clock.0 + self.clock.1.elapsed()
    }
    fn random(&self, below: u64) -> u64 {
        self.random.fetch_add(7, Ordering::Relaxed) % below.max(1)
    }
}

/// How the process of this name reaches others.
struct Dialler(World, String);

impl Dial for Dialler {
    fn dial(&self, target: &Target, _: &Files) -> Arc<dyn NetworkServiceApi> {
        let Target::InProcess(to) = target else { panic!("{target}") };
        Arc::new(Line { world: self.0.clone(), from: self.1.clone(), to: to.clone() })
    }
}

struct Line {
    world: World,
    from: String,
    to: String,
}

impl Line {
    async fn reach(&self, count: impl Fn(&mut Calls)) -> Result<Hop> {
        tokio::task::yield_now().await;
        count(self.world.state().calls.entry(self.to.clone()).or_default());
        if self.world.state().mute.contains(&self.to) {
            std::future::pending::<()>().await;
        }
        let gone = || Error::new(Kind::Unavailable, self.to.clone(), "is not there", "start it");
        self.world.state().processes.get(&self.to).map(|process| process.hop.clone()).ok_or_else(gone)
    }
    fn signed(&self, caller: Caller) -> Caller {
        let (token, end) = self.world.token(&caller).unwrap();
        let identity = SpiffeId::new(format!("spiffe://test/{}", self.from)).unwrap();
        Caller { identity: Some(identity), token, token_expires: Some(end), ..caller }
    }
    /// An answer reaches nobody if its process died meanwhile.
    fn still<T>(&self, hop: &Hop, result: Result<T>) -> Result<T> {
        let state = self.world.state();
        let lives = state.processes.get(&self.to).is_some_and(|process| std::ptr::eq(process.hop.name(), hop.name()));
        if lives { result } else { Err(Error::new(Kind::Unavailable, self.to.clone(), "died", "start it")) }
    }
}

#[async_trait]
impl NetworkServiceApi for Line {
    async fn request(&self, request: Request, caller: Caller) -> Result<Answer> {
        let reselect = request.connection.state == State2::ReselectRequested;
        let hop = self
            .reach(|calls| {
                calls.requests += 1;
                calls.reselects += usize::from(reselect);
            })
            .await?;
        let answer = hop.request(request, self.signed(caller)).await;
        if let Ok(answer) = &answer {
            assert_eq!(answer.connection.state, State2::Up, "{} answers", self.to);
        }
        self.still(&hop, answer)
    }
    async fn close(&self, connection: Connection, files: Files, caller: Caller) -> Result<()> {
        let hop = self.reach(|calls| calls.closes += 1).await?;
        let closed = hop.close(connection, files, self.signed(caller)).await;
        self.still(&hop, closed)
    }
    async fn monitor(&self, selector: Selector, caller: Caller) -> Result<Events> {
        let hop = self.reach(|calls| calls.monitors += 1).await?;
        if self.world.state().secretive.contains(&self.to) {
            return Err(Error::new(Kind::Unsupported, self.to.clone(), "is not monitored", "nothing"));
        }
        let mut end = self.world.state().processes[&self.to].streams.subscribe();
        let lag = self.world.state().lag;
        let late = move |(number, event)| async move {
            if number > 0 {
                sleep(lag).await;
            }
            event
        };
        let events = hop.monitor(selector, caller).await?.enumerate().then(late).boxed();
        let ended = async move { end.wait_for(|ending| *ending != Ending::Never).await.map_or(Ending::Broken, |ending| *ending) };
        Ok(ending(events, ended))
    }
}

/// `events` until `ended` says how they end.
fn ending(events: Events, ended: impl Future<Output = Ending> + Send + 'static) -> Events {
    let (told, mut tells) = watch::channel(Ending::Never);
    let until = async move {
        let _ = told.send(ended.await);
    };
    let last = async move {
        let ending = *tells.borrow_and_update();
        let error = |reason: &str| Some(Err(Error::new(Kind::Unavailable, "a stream", reason, "open it again")));
        match ending {
            Ending::Broken => error("the connection broke"),
            Ending::Cancelled => error("cancelled"),
            Ending::Normal | Ending::Never => None,
        }
    };
    let last: BoxStream<'static, Result<ConnectionEvent>> = stream::once(last).filter_map(async |item| item).boxed();
    events.take_until(until).chain(last).boxed()
}

#[async_trait]
impl RegistryApi for World {
    async fn register_service(&self, service: NetworkService, _: Caller) -> Result<NetworkService> {
        Ok(service)
    }
    async fn find_services(&self, query: ServiceQuery, _: Caller) -> Result<ServiceUpdates> {
        let mut service = NetworkService::new(query.name.unwrap(), Payload::Ip);
        if let Some(preferred) = &self.state().preferred {
            let to = |destination_selector| vec![Destination { destination_selector, ..Destination::default() }];
            let first = Match { routes: to(labelled(preferred)), fallthrough: true, ..Match::default() };
            service.matches = vec![first, Match { routes: to(Labels::new()), ..Match::default() }];
        }
        Ok(stream::iter([Ok(ServiceUpdate { service, deleted: false })]).boxed())
    }
    async fn unregister_service(&self, _: NetworkService, _: Caller) -> Result<()> {
        Ok(())
    }
    async fn register_endpoint(&self, endpoint: NetworkServiceEndpoint, _: Files, _: Caller) -> Result<NetworkServiceEndpoint> {
        Ok(endpoint)
    }
    async fn find_endpoints(&self, query: EndpointQuery, _: Caller) -> Result<EndpointUpdates> {
        let fits = |endpoint: &&NetworkServiceEndpoint| {
            query.name.as_ref().is_none_or(|name| *name == endpoint.name)
                && query.services.iter().all(|service| endpoint.network_service_names.contains(service))
        };
        let found: Vec<_> = self.state().registered.values().filter(fits).cloned().collect();
        Ok(stream::iter(found).map(|endpoint| Ok((EndpointUpdate { endpoint, deleted: false }, Files::default()))).boxed())
    }
    async fn unregister_endpoint(&self, endpoint: NetworkServiceEndpoint, _: Caller) -> Result<()> {
        self.state().registered.remove(&endpoint.name);
        Ok(())
    }
}
