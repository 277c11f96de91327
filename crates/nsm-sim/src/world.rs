//! Everything of one run that more than one part needs: who lives, what lies on disks, who cannot reach whom, the clock.

use crate::{chance::Chance, events::Events, flag::Flag, life::Life, packets::Packets, run::Options, topology::Topology};
use nsm_api::*;
use nsm_hop::{hop::Hop, journal::Record, kernel::Netns, testing::FakeKernel};
use nsm_registry::MemoryEngine;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    net::{IpAddr, Ipv4Addr},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::{task::AbortHandle, time::Instant};

/// Device numbers of the invented namespaces and sockets.
pub(crate) const NETNS_DEV: u64 = 0x5e7;
pub(crate) const SOCKET_DEV: u64 = 0x50c;
/// Begin of all runs by the wall clock, in seconds since 1970.
const EPOCH: u64 = 1_800_000_000;

/// A process that runs or has run.
#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) node: usize,
    pub(crate) life: Life,
    pub(crate) hop: Option<Hop>,
    pub(crate) registry: Option<Arc<dyn RegistryApi>>,
    /// It was asked to end in order.
    pub(crate) stop: Flag,
    pub(crate) main: Option<AbortHandle>,
}

/// What makes calls fail and take their time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    /// Of a thousand calls between nodes so many never arrive.
    pub(crate) lost: u64,
    /// Of a thousand answers between nodes so many never arrive.
    pub(crate) unheard: u64,
    /// Of a thousand Requests so many arrive twice.
    pub(crate) twice: u64,
    /// Longest further delay of a message between nodes, milliseconds.
    pub(crate) slow: u64,
    /// Of a thousand kernel calls so many fail.
    pub(crate) kernel: u64,
}

/// Calls to the outside that all processes together may make in one moment: more, and time stands still.
const MAX_AT_ONCE: u64 = 200_000;

#[derive(Default)]
pub(crate) struct State {
    pub(crate) processes: BTreeMap<String, Process>,
    pub(crate) journals: BTreeMap<String, BTreeMap<ConnectionId, Record>>,
    /// Which process listens on which socket, by inode. A successor has another socket.
    pub(crate) sockets: BTreeMap<u64, (String, Life)>,
    pub(crate) pods: BTreeMap<String, Netns>,
    pub(crate) wanted: BTreeSet<String>,
    pub(crate) weather: Weather,
    /// When each client last found its wire silent.
    pub(crate) silent: BTreeMap<ConnectionId, Instant>,
    /// Nodes of endpoints that are not where the topology placed them.
    pub(crate) homes: BTreeMap<String, usize>,
    /// Pods that take no packets.
    pub(crate) deaf: BTreeSet<u64>,
    /// Clients that have gone without a word, with their pods.
    pub(crate) vanished: BTreeSet<String>,
    /// Nothing goes wrong, and nothing that did is left.
    pub(crate) quiet: bool,
    packets: Option<Arc<Packets>>,
    /// Counts the changes on which the way of packets depends.
    version: u64,
    numbers: u64,
    moment: Option<(Instant, u64)>,
}

pub(crate) struct Inner {
    topology: Topology,
    options: Options,
    chance: Chance,
    events: Events,
    start: Instant,
    kernels: Vec<FakeKernel>,
    /// Whether nothing passes between two nodes, the lower first.
    cuts: BTreeMap<(usize, usize), Flag>,
    pub(crate) engine: Arc<MemoryEngine>,
    /// The open file that stands for every namespace and every socket: nothing reads it.
    file: Arc<OwnedFd>,
    state: Mutex<State>,
}

/// Clones are the same world.
#[derive(Clone)]
pub(crate) struct World(Arc<Inner>);

impl World {
    /// Nothing runs yet. Called on the paused clock of the run.
    pub(crate) fn new(topology: &Topology, options: &Options, seed: u64) -> Result<World> {
        let file = File::open("/dev/null")
            .map_err(|error| Error::new(Kind::Kernel, "/dev/null", error.to_string(), "raise the limit of open files (ulimit -n)"))?;
        let kernels: Vec<FakeKernel> = topology.nodes.iter().map(|_| FakeKernel::default()).collect();
        for (node, kernel) in kernels.iter().enumerate() {
            kernel.set_underlay(address(node), 1500);
        }
        Ok(World(Arc::new(Inner {
            topology: topology.clone(),
            options: options.clone(),
            chance: Chance::new(seed),
            events: Events::new(options.shown),
            start: Instant::now(),
            kernels,
            cuts: pairs(topology.nodes.len()).map(|pair| (pair, Flag::default())).collect(),
            engine: Arc::new(MemoryEngine::new()),
            file: Arc::new(file.into()),
            state: Mutex::default(),
        })))
    }
    pub(crate) fn topology(&self) -> &Topology {
        &self.0.topology
    }
    pub(crate) fn options(&self) -> &Options {
        &self.0.options
    }
    pub(crate) fn chance(&self) -> &Chance {
        &self.0.chance
    }
    pub(crate) fn events(&self) -> &Events {
        &self.0.events
    }
    pub(crate) fn engine(&self) -> Arc<MemoryEngine> {
        self.0.engine.clone()
    }
    pub(crate) fn file(&self) -> Arc<OwnedFd> {
        self.0.file.clone()
    }
    pub(crate) fn kernel(&self, node: usize) -> &FakeKernel {
        &self.0.kernels[node]
    }
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn elapsed(&self) -> Duration {
        self.0.start.elapsed()
    }
    pub(crate) fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH) + self.elapsed()
    }
    /// A number that was never given before.
    pub(crate) fn number(&self) -> u64 {
        let mut state = self.state();
        state.numbers += 1;
        state.numbers
    }
    pub(crate) fn note(&self, what: fmt::Arguments<'_>) {
        self.0.events.note(self.elapsed(), what);
    }
    pub(crate) fn violate(&self, sentence: String) {
        self.0.events.violate(self.elapsed(), sentence);
    }

    /// A call to the outside. Does not return in a moment that has no end.
    pub(crate) async fn tick(&self) {
        let now = Instant::now();
        let count = {
            let mut state = self.state();
            let (moment, count) = state.moment.get_or_insert((now, 0));
            *count = if *moment == now { *count + 1 } else { 0 };
            *moment = now;
            *count
        };
        if count > MAX_AT_ONCE {
            self.violate(format!("I9: {MAX_AT_ONCE} calls to the outside in one moment, and no end of them"));
            std::future::pending::<()>().await;
        }
    }

    /// The process of this name, if it lives.
    pub(crate) fn process(&self, name: &str) -> Option<Process> {
        self.state().processes.get(name).filter(|process| !process.life.is_over()).cloned()
    }
    /// The process behind an address.
    pub(crate) fn at(&self, target: &Target) -> Option<Process> {
        match target {
            Target::Inode(key) => {
                let (name, life) = self.state().sockets.get(&key.ino).cloned()?;
                self.process(&name).filter(|_| !life.is_over())
            }
            Target::Unix(path) => self.process(path.file_stem()?.to_str()?),
            Target::Tcp { host, .. } => {
                let node = (0..self.0.kernels.len()).find(|node| address(*node).to_string() == *host)?;
                self.process(&crate::topology::manager(&self.0.topology.nodes[node]))
            }
            Target::InProcess(name) => self.process(name),
        }
    }
    /// The pod of a client or endpoint.
    pub(crate) fn pod(&self, name: &str) -> Netns {
        let known = self.state().pods.get(name).cloned();
        known.unwrap_or_else(|| self.new_pod(name))
    }
    /// A pod that has nothing in it yet.
    pub(crate) fn new_pod(&self, name: &str) -> Netns {
        let netns = Netns { key: InodeKey { dev: NETNS_DEV, ino: self.number() }, file: Some(self.file()) };
        self.state().pods.insert(name.to_owned(), netns.clone());
        netns
    }

    fn flag(&self, a: usize, b: usize) -> Option<&Flag> {
        self.0.cuts.get(&(a.min(b), a.max(b)))
    }
    /// Whether nothing passes between two nodes.
    pub(crate) fn is_cut(&self, a: usize, b: usize) -> bool {
        self.flag(a, b).is_some_and(Flag::is)
    }
    pub(crate) fn cut(&self, a: usize, b: usize, cut: bool) {
        if let Some(flag) = self.flag(a, b) {
            flag.set(cut);
        }
        self.changed();
    }
    /// Resolves when something passes between two nodes.
    pub(crate) async fn joined(&self, a: usize, b: usize) {
        if let Some(flag) = self.flag(a, b) {
            flag.until(false).await;
        }
    }
    /// Resolves when nothing has passed between two nodes for so long; never within a node.
    pub(crate) async fn severed(&self, a: usize, b: usize, patience: Duration) {
        let Some(flag) = self.flag(a, b) else { return std::future::pending().await };
        loop {
            flag.until(true).await;
            if tokio::time::timeout(patience, flag.until(false)).await.is_err() {
                return;
            }
        }
    }

    /// Something has changed on which the way of packets depends.
    pub(crate) fn changed(&self) {
        let mut state = self.state();
        state.packets = None;
        state.version += 1;
    }
    pub(crate) fn version(&self) -> u64 {
        self.state().version
    }
    /// Where packets go now.
    pub(crate) fn packets(&self) -> Arc<Packets> {
        let known = self.state().packets.clone();
        known.unwrap_or_else(|| {
            let packets = Arc::new(Packets::of(self));
            self.state().packets = Some(packets.clone());
            packets
        })
    }
}

/// All pairs of so many nodes, the lower first.
pub(crate) fn pairs(nodes: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..nodes).flat_map(|b| (0..b).map(move |a| (a, b)))
}

/// The address of a node.
pub(crate) fn address(node: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, (node / 250) as u8, (node % 250 + 1) as u8))
}

/// The address of a node's manager.
pub(crate) fn url(node: usize) -> String {
    format!("tcp://{}:5001", address(node))
}
