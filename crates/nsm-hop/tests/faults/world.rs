//! A hop with fakes all around it.

use async_trait::async_trait;
use nsm_api::*;
use nsm_hop::{
    hop::Hop,
    kernel::*,
    monitor::Monitors,
    onward::End,
    reserve::{Ipam, IpamPolicy},
    role::*,
    testing::{FakeKernel, FaultPlan, MemoryJournal},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// What a hop can change outside itself: its own kernel, and the connections that next hops hold. One plan counts
/// the calls to both.
#[derive(Clone, Default)]
pub(crate) struct World {
    pub(crate) faults: FaultPlan,
    pub(crate) kernel: FakeKernel,
    held: Arc<Mutex<BTreeMap<(String, ConnectionId), Connection>>>,
    /// What the next hops tell.
    pub(crate) monitors: Arc<Mutex<BTreeMap<String, Monitors>>>,
    /// A next hop that cannot be reached.
    pub(crate) dead: Arc<Mutex<Option<&'static str>>>,
}

/// What a hop has around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Next hops and wires.
    Forwarder,
    /// Next hops, no wires.
    Manager,
    /// Neither, but addresses.
    Endpoint,
}

impl Shape {
    pub(crate) const ALL: [Shape; 3] = [Shape::Forwarder, Shape::Manager, Shape::Endpoint];
}

impl World {
    fn new() -> World {
        let faults = FaultPlan::default();
        World { kernel: FakeKernel::new(faults.clone()), faults, held: Arc::default(), monitors: Arc::default(), dead: Arc::default() }
    }
    pub(crate) fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, ConnectionId), Connection>> {
        self.held.lock().unwrap()
    }
    pub(crate) fn monitors(&self, name: &str) -> Monitors {
        self.monitors.lock().unwrap().entry(name.to_owned()).or_default().clone()
    }
    fn reach(&self, name: &str) -> Result<()> {
        match *self.dead.lock().unwrap() {
            Some(dead) if name.ends_with(dead) => Err(Error::new(Kind::Unavailable, name, "is dead", "nothing")),
            _ => Ok(()),
        }
    }
    fn as_seen_by_another(&self) -> World {
        let faults = FaultPlan::default();
        World { kernel: self.kernel.seen_with(faults.clone()), faults, ..self.clone() }
    }
    pub(crate) fn empty(&self) -> bool {
        self.kernel.wires().is_empty() && self.held().is_empty()
    }
}

/// A next hop that holds whatever it is asked for until it is closed.
struct NextHop {
    world: World,
    name: String,
}

#[async_trait]
impl NetworkServiceApi for NextHop {
    async fn request(&self, request: Request, _: Caller) -> Result<Answer> {
        self.world.reach(&self.name)?;
        let mut connection = request.connection;
        let key = (self.name.clone(), connection.id.clone());
        connection.path.segments.truncate(connection.path.index as usize + 1);
        let mut own =
            Segment::new(HopName::new(&self.name).unwrap(), ConnectionId::new(format!("{}-of-{}", self.name, connection.id)).unwrap());
        own.expires = connection.path.segments[0].expires;
        connection.path.segments.push(own);
        self.world
            .faults
            .act(|| {
                self.world.held().insert(key, connection.clone());
                let mut seen = connection.clone();
                seen.path.index += 1;
                seen.id = seen.path.segments[seen.path.index as usize].id.clone();
                self.world.monitors(&self.name).update(seen);
                Ok(Answer { connection, files: Files::default(), certificate: None })
            })
            .await
    }
    async fn close(&self, connection: Connection, _: Files, _: Caller) -> Result<()> {
        self.world.reach(&self.name)?;
        let key = (self.name.clone(), connection.id);
        self.world
            .faults
            .act(|| {
                self.world.held().remove(&key);
                self.world.monitors(&self.name).delete(&ConnectionId::new(format!("{}-of-{}", self.name, key.1))?);
                Ok(())
            })
            .await
    }
    async fn monitor(&self, selector: Selector, _: Caller) -> Result<Events> {
        self.world.reach(&self.name)?;
        self.world.faults.act(|| Ok(self.world.monitors(&self.name).watch(selector))).await
    }
}

impl Dial for World {
    fn dial(&self, target: &Target, _: &Files) -> Arc<dyn NetworkServiceApi> {
        Arc::new(NextHop { world: self.clone(), name: target.to_string() })
    }
}

/// Two candidates, the one in use first.
pub(crate) struct TwoWays(World);

#[async_trait]
impl Onward for TwoWays {
    async fn next(&self, _: &Draft, before: Option<&Sent>) -> Result<Next> {
        let mut ways = vec!["one", "two"];
        if before.is_some_and(|sent| sent.candidate.target == Target::InProcess("two".into())) {
            ways.reverse();
        }
        let way = |name: &str| Candidate {
            target: Target::InProcess(name.into()),
            socket: Files::default(),
            registered: None,
            payload: Payload::Unset,
        };
        self.0.faults.act(|| Ok(Next::Hops(ways.into_iter().map(way).collect()))).await
    }
    fn request(&self, draft: &Draft, _: &Candidate, _: Option<&Sent>) -> Result<Request> {
        Ok(Request { connection: draft.connection.clone(), preferences: vec![], files: Files::default() })
    }
    fn accept(&self, draft: &mut Draft, answer: &Answer) {
        draft.connection = answer.connection.clone();
    }
}

/// A link, an address and a route, all from the connection alone.
struct ThreeWires;

impl Wiring for ThreeWires {
    fn wires(&self, draft: &Draft, _: Option<&Sent>) -> Result<WirePlan> {
        // Every client has a pod of its own; they share the endpoint's.
        let pod = draft.connection.id.as_str().bytes().fold(10, |sum, byte| sum * 31 + u64::from(byte));
        let iface =
            |ino: u64, name: &str| Iface { netns: Netns { key: InodeKey { dev: 4, ino }, file: None }, name: IfName::new(name).unwrap() };
        let (a, b) = (iface(pod, "nsm-1"), iface(2, &format!("peer-{}", pod % 1_000_000)));
        let address = draft.connection.context.ip_context.src_ip_addrs[0];
        let now = Wires::from([
            Wire::Link(Link::Veth { a: a.clone(), b }),
            Wire::Address { on: a.clone(), address },
            Wire::Route { on: a, prefix: draft.connection.context.ip_context.dst_ip_addrs[0], via: None },
        ]);
        Ok(WirePlan { now, later: Wires::new() })
    }
}

/// Ids from the caller's, the wall clock, counted randomness.
struct TestIssuer(Clock, AtomicU64);

/// A wall clock that goes as the paused one does.
#[derive(Clone, Copy)]
struct Clock {
    start: SystemTime,
    begun: Instant,
}

impl Clock {
    fn now(&self) -> SystemTime {
        self.start + self.begun.elapsed()
    }
}

impl Issuer for TestIssuer {
    fn token(&self, _: &Caller) -> Result<(String, SystemTime)> {
        Ok((String::new(), self.0.now() + LIFE))
    }
    fn connection_id(&self, path: &Path, _: &Caller) -> ConnectionId {
        ConnectionId::new(format!("hop-{}", path.segments[path.index as usize].id)).unwrap()
    }
    fn gave(&self, _: &ConnectionId, _: &Path, _: &Caller) -> bool {
        true
    }
    fn now(&self) -> SystemTime {
        self.0.now()
    }
    fn random(&self, below: u64) -> u64 {
        self.1.fetch_add(7, Ordering::Relaxed) % below.max(1)
    }
}

pub(crate) const LIFE: Duration = Duration::from_secs(600);
/// Long enough for every retry, far shorter than the life of a connection.
pub(crate) const CALM: Duration = Duration::from_secs(60);

fn role(world: &World, (shape, clock): (Shape, Clock), generation: u64) -> Role {
    Role {
        name: HopName::new("hop").unwrap(),
        standing: Standing::Server,
        issuer: Arc::new(TestIssuer(clock, AtomicU64::new(0))),
        admit: vec![],
        // One pair of addresses: a pair that is not given back makes the next connection fail.
        reserve: vec![Box::new(Ipam::new(vec![vec!["10.0.0.0/31".parse().unwrap()]], IpamPolicy::Polite))],
        onward: if shape == Shape::Endpoint { Box::new(End) } else { Box::new(TwoWays(world.clone())) },
        dial: Arc::new(world.clone()),
        wiring: if shape == Shape::Forwarder { Box::new(ThreeWires) } else { Box::new(NoWires) },
        kernel: Arc::new(world.kernel.clone()),
        generation,
        timing: Timing::default(),
    }
}

pub(crate) struct Bench {
    pub(crate) world: World,
    pub(crate) hop: Hop,
    pub(crate) journal: Arc<MemoryJournal>,
    pub(crate) shape: Shape,
    clock: Clock,
    generation: u64,
}

impl Bench {
    /// A hop without a journal.
    pub(crate) fn new() -> Bench {
        Bench::of(Shape::Forwarder)
    }
    fn of(shape: Shape) -> Bench {
        let world = World::new();
        let journal = MemoryJournal::new(world.faults.clone());
        let clock = Clock { start: SystemTime::now(), begun: Instant::now() };
        Bench { hop: Hop::new(role(&world, (shape, clock), 1)), world, journal: Arc::new(journal), shape, clock, generation: 1 }
    }
    /// A hop with a journal.
    pub(crate) fn with_journal() -> Bench {
        Bench::with_journal_of(Shape::Forwarder)
    }
    pub(crate) fn with_journal_of(shape: Shape) -> Bench {
        let bench = Bench::of(shape);
        Bench { hop: bench.hop.with_journal(bench.journal.clone(), vec![]), ..bench }
    }
    /// The next life of this hop, in the same world; the former one goes on, unless it was stopped.
    pub(crate) fn succeed(&self) -> Bench {
        let world = self.world.as_seen_by_another();
        let (journal, records) = self.journal.succeed(world.faults.clone());
        let (journal, generation) = (Arc::new(journal), self.generation + 1);
        let hop = Hop::new(role(&world, (self.shape, self.clock), generation)).with_journal(journal.clone(), records);
        Bench { world, hop, journal, shape: self.shape, clock: self.clock, generation }
    }
    /// The same, and the journal is lost.
    pub(crate) fn succeed_without_journal(&self) -> Bench {
        let (world, generation) = (self.world.as_seen_by_another(), self.generation + 1);
        let journal = Arc::new(MemoryJournal::new(world.faults.clone()));
        let hop = Hop::new(role(&world, (self.shape, self.clock), generation)).with_journal(journal.clone(), vec![]);
        Bench { world, hop, journal, shape: self.shape, clock: self.clock, generation }
    }
    pub(crate) fn connection(&self, client: &str) -> Connection {
        let mut connection = Connection::new(ConnectionId::new(client).unwrap(), "svc".parse().unwrap());
        connection.path.segments.push(Segment::new(HopName::new("client").unwrap(), connection.id.clone()));
        connection
    }
    pub(crate) fn caller(&self) -> Caller {
        Caller { token_expires: Some(self.clock.now() + LIFE), timeout: Some(Duration::from_secs(15)), ..Caller::default() }
    }
    pub(crate) async fn request(&self, client: &str) -> Result<Answer> {
        self.again(self.connection(client)).await
    }
    pub(crate) async fn again(&self, connection: Connection) -> Result<Answer> {
        self.hop.request(Request { connection, preferences: vec![], files: Files::default() }, self.caller()).await
    }
    pub(crate) async fn close(&self, connection: Connection) -> Result<()> {
        self.hop.close(connection, Files::default(), self.caller()).await
    }
    /// The connection as the next hop shows it; `answer` is ours.
    pub(crate) fn seen_at_next_hop(&self, answer: &Connection) -> Connection {
        let mut seen = answer.clone();
        seen.path.index = 2;
        seen.id = seen.path.segments[2].id.clone();
        seen
    }
    /// The faults are over; time passes.
    pub(crate) async fn calm(&self) {
        self.world.faults.set([]);
        tokio::time::sleep(CALM).await;
    }
    /// Nothing anywhere, and the address can be had again.
    pub(crate) async fn assert_nothing(&self, why: &str) {
        assert!(self.world.empty(), "{why}: {:?} {:?}", self.world.kernel.wires(), self.world.held());
        assert_eq!(self.hop.busy(), 0, "{why}: a task is left");
        assert!(self.hop.monitors().snapshot().is_empty(), "{why}: a monitor entry is left");
        assert!(self.journal.is_empty(), "{why}: a record is left");
        let answer = self.request("probe").await.unwrap_or_else(|error| panic!("{why}: {error}"));
        self.close(answer.connection).await.unwrap();
    }
    /// All wires, and exactly one next hop that holds exactly what is committed here.
    pub(crate) fn assert_whole(&self, client: &str, why: &str) {
        let id = ConnectionId::new(format!("hop-{client}")).unwrap();
        let wires = if self.shape == Shape::Forwarder { 3 } else { 0 };
        assert_eq!(self.world.kernel.wires().len(), wires, "{why}: wires are missing");
        assert_eq!(self.hop.monitors().snapshot().len(), 1, "{why}: it is not listed");
        if self.shape == Shape::Endpoint {
            return;
        }
        let held = self.world.held();
        let holders: Vec<&Connection> = held.iter().filter(|((_, held), _)| *held == id).map(|(_, connection)| connection).collect();
        assert_eq!(holders.len(), 1, "{why}: held by {:?}", held.keys());
        let ours = &self.hop.monitors().snapshot()[0];
        assert_eq!(holders[0].context, ours.context, "{why}: the next hop holds something else");
    }
}
