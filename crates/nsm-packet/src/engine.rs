//! Devices, and the threads that carry their packets.
//!
//! `tun` is the interface in the pod, `path` the socket in the node, `tunnel` one device with both, `encap` and `decap`
//! the two ways of a packet, `worker` the threads, `timers` what is due without a packet. Buffers belong to workers: a
//! device at rest has its two descriptors and its keys.

mod decap;
mod encap;
mod path;
mod shared;
mod timers;
mod tun;
mod tunnel;
mod worker;

use crate::{MAX_DEVICES, PresharedKey, PrivateKey, PublicKey, netns, wireguard::timing::Timing};
use nsm_api::{Error, InodeKey, Kind, Result};
use path::Path;
use shared::Shared;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tunnel::Tunnel;

/// Bytes of the longest name of an interface.
const MAX_NAME_BYTES: usize = 15;
/// Bytes of the longest tag; the kernel keeps 255 of an alias.
const MAX_TAG_BYTES: usize = 255;
/// The smallest and the largest MTU: what IPv4 needs at least, and what a datagram can carry.
const MTU: std::ops::RangeInclusive<u32> = 576..=65_450;
/// Threads of an engine that was not told how many.
const DEFAULT_WORKERS: usize = 4;
/// More threads than this never helped.
const MAX_WORKERS: usize = 64;

/// How an engine works. `Options::default()` fits a node.
#[derive(Debug, Default)]
pub struct Options {
    /// Threads that carry packets; 0 for as many as there are processors, at most four.
    pub workers: usize,
    /// The namespace of the node, in which the UDP sockets are; `None` for that of the process.
    pub node: Option<OwnedFd>,
    /// The constants of the protocol.
    pub timing: Timing,
}

/// A device that should exist.
#[derive(Debug)]
pub struct Device {
    /// The namespace of the pod, in which the interface is.
    pub netns: OwnedFd,
    /// The interface's name: 1 to 15 bytes.
    pub name: String,
    /// Whose it is: becomes the interface's alias. 1 to 255 bytes, `OWNER:NUMBER` or without the number, which grows with
    /// every start of the owner. An interface of another owner is never touched.
    pub tag: String,
    /// The interface's group, by which its owner finds it.
    pub group: u32,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// This side's key.
    pub private: PrivateKey,
    /// The other side's key.
    pub peer: PublicKey,
    /// A further secret of both sides.
    pub preshared: Option<PresharedKey>,
    /// The node's address and port. Several devices may share them.
    pub listen: SocketAddr,
    /// The other node's address and port. Datagrams from elsewhere are not looked at.
    pub endpoint: SocketAddr,
}

/// Which device: one interface name in one namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceId {
    /// The namespace.
    pub netns: InodeKey,
    /// The interface's name.
    pub name: String,
}

/// What went through a device since it was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Counters {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub rx_dropped: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub tx_dropped: u64,
}

/// A device as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// Which it is.
    pub id: DeviceId,
    /// Index of the interface in its namespace.
    pub index: u32,
    /// Whose it is.
    pub tag: String,
    /// The interface's group.
    pub group: u32,
    /// Largest packet, bytes, as it was asked for.
    pub mtu: u32,
    /// This side's public key.
    pub public: PublicKey,
    /// The other side's.
    pub peer: PublicKey,
    /// The node's address and port.
    pub listen: SocketAddr,
    /// The other node's.
    pub endpoint: SocketAddr,
    /// Packets inside the tunnel.
    pub counters: Counters,
    /// Time since the last handshake was completed; `None` when none ever was.
    pub handshake_age: Option<Duration>,
    /// The interface has vanished, with its namespace or by somebody's hand; only removing it is left.
    pub gone: bool,
}

/// A running engine. Dropping it ends its threads and leaves the interfaces, which it finds again when the same devices
/// are added to the next one.
pub struct Engine {
    shared: Arc<Shared>,
    node: Option<OwnedFd>,
    table: Mutex<Table>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Table {
    devices: BTreeMap<DeviceId, Arc<Tunnel>>,
    /// Sockets by our and the other's address.
    paths: BTreeMap<(SocketAddr, SocketAddr), Arc<Path>>,
    next: u32,
}

impl Engine {
    /// Starts the threads. There are no devices yet.
    pub fn start(options: Options) -> Result<Engine> {
        let workers = workers(options.workers);
        let shared = Arc::new(Shared::new(workers, options.timing)?);
        let mut engine = Engine { shared: shared.clone(), node: options.node, table: Mutex::default(), threads: Vec::new() };
        for number in 0..workers as u32 {
            let shared = shared.clone();
            engine.threads.push(spawn(format!("wg-{number}"), move || worker::run(number, &shared))?);
        }
        engine.threads.push(spawn("wg-timers".into(), move || timers::run(&shared))?);
        Ok(engine)
    }

    /// Makes a device, or finds its interface again. The same device again is a success; with other keys, addresses or
    /// size it changes, and its interface stays.
    ///
    /// Conflict: the name is taken by an interface with another tag. Exhausted: [`MAX_DEVICES`].
    pub fn add(&self, device: Device) -> Result<DeviceState> {
        check(&device)?;
        let id = DeviceId { netns: netns::key(&device.netns)?, name: device.name.clone() };
        let mut table = self.table();
        if let Some(known) = table.devices.get(&id) {
            if owner(known.tag()) != owner(&device.tag) {
                return Err(taken(&id.name, known.tag()));
            }
            if known.is(&device) && tun::in_place(&device, known.tun())? {
                return Ok(known.state(id));
            }
        } else if table.devices.len() >= MAX_DEVICES {
            let reason = format!("the engine has {MAX_DEVICES} devices");
            return Err(Error::new(Kind::Exhausted, format!("device {:?}", id.name), reason, "close connections first"));
        }
        let replaced = table.devices.get(&id).cloned();
        let result = self.make(&mut table, device, replaced.as_ref()).and_then(|tunnel| {
            if let Some(old) = table.devices.insert(id.clone(), tunnel.clone()) {
                self.shared.detach(&old);
            }
            self.shared.attach(&tunnel).inspect_err(|_| {
                table.devices.remove(&id);
                self.shared.detach(&tunnel);
            })?;
            Ok(tunnel.state(id))
        });
        self.forget_unused(&mut table);
        result
    }
    fn make(&self, table: &mut Table, device: Device, replaced: Option<&Arc<Tunnel>>) -> Result<Arc<Tunnel>> {
        let path = self.path(table, device.listen, device.endpoint)?;
        if path.has_other(&device.private.public()?, replaced.map(|old| old.number)) {
            let reason = "another device between the same addresses has the same key, and nobody could tell them apart";
            return Err(Error::new(Kind::Conflict, format!("device {:?}", device.name), reason, "make a key for each device"));
        }
        let tun = tun::open(&device, replaced.map(|old| old.tun()))?;
        table.next = table.next.wrapping_add(1).max(1);
        // One worker for both ways of a device, which wakes less; the devices that share a socket spread over all.
        let home = match replaced {
            Some(old) => old.home,
            None if path.is_used() => table.next,
            None => path.number,
        };
        Ok(Arc::new(Tunnel::new((table.next, home), device, tun, path, self.shared.parts())?))
    }

    /// Removes a device and its interface. One that is not there is a success.
    pub fn remove(&self, id: &DeviceId) -> Result<()> {
        let mut table = self.table();
        let Some(tunnel) = table.devices.remove(id) else { return Ok(()) };
        self.shared.detach(&tunnel);
        self.forget_unused(&mut table);
        drop(table); // the kernel takes its time
        if tunnel.gone() { Ok(()) } else { tun::delete(tunnel.tun()) }
    }

    /// One device.
    pub fn find(&self, id: &DeviceId) -> Option<DeviceState> {
        self.table().devices.get(id).map(|tunnel| tunnel.state(id.clone()))
    }

    /// All devices, in the order of their ids.
    pub fn list(&self) -> Vec<DeviceState> {
        self.table().devices.iter().map(|(id, tunnel)| tunnel.state(id.clone())).collect()
    }

    /// Whether there is no device.
    pub fn is_empty(&self) -> bool {
        self.table().devices.is_empty()
    }

    /// At most `limit` devices after `after` in the order of their ids.
    pub(crate) fn page(&self, after: Option<&DeviceId>, limit: usize) -> Vec<DeviceState> {
        use std::ops::Bound::{Excluded, Unbounded};
        let start = after.map_or(Unbounded, Excluded);
        let table = self.table();
        table.devices.range((start, Unbounded)).take(limit).map(|(id, tunnel)| tunnel.state(id.clone())).collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn path(&self, table: &mut Table, listen: SocketAddr, endpoint: SocketAddr) -> Result<Arc<Path>> {
        if let Some(path) = table.paths.get(&(listen, endpoint)) {
            return Ok(path.clone());
        }
        table.next = table.next.wrapping_add(1).max(1);
        let number = table.next;
        let node = self.node.as_ref().map(AsFd::as_fd);
        let path = Arc::new(netns::run_in(node, || Path::open(number, listen, endpoint))?);
        table.paths.insert((listen, endpoint), path.clone());
        self.shared.watch(&path)?;
        Ok(path)
    }
    /// Closes the sockets that no device uses any more.
    fn forget_unused(&self, table: &mut Table) {
        table.paths.retain(|_, path| {
            let used = path.is_used();
            if !used {
                self.shared.unwatch(path);
            }
            used
        });
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for tunnel in std::mem::take(&mut *self.table()).devices.values() {
            self.shared.detach(tunnel);
        }
        self.shared.stop();
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({} devices)", self.table().devices.len())
    }
}

fn workers(wanted: usize) -> usize {
    match wanted {
        0 => std::thread::available_parallelism().map_or(1, usize::from).min(DEFAULT_WORKERS),
        wanted => wanted.min(MAX_WORKERS),
    }
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(name).spawn(work);
    thread.map_err(|error| {
        let reason = format!("it cannot be started: {error}");
        Error::new(Kind::Exhausted, "a thread of the packet engine", reason, "raise the limit of processes (ulimit -u, pids cgroup)")
    })
}

fn check(device: &Device) -> Result<()> {
    let named = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    let wrong = if device.name.is_empty() || device.name.len() > MAX_NAME_BYTES || !device.name.bytes().all(named) {
        Some(("its name is not 1 to 15 bytes of A-Z a-z 0-9 . _ -", "choose another name"))
    } else if device.tag.is_empty() || device.tag.len() > MAX_TAG_BYTES || device.tag.contains('\0') {
        Some(("its tag is not 1 to 255 bytes without a zero", "say whose device it is"))
    } else if !MTU.contains(&device.mtu) {
        Some(("its MTU is not from 576 to 65450", "take that of the underlay less 60 for IPv4 or 80 for IPv6"))
    } else if device.listen.is_ipv4() != device.endpoint.is_ipv4() {
        Some(("its two ends are of different address families", "use IPv4 or IPv6 on both nodes"))
    } else if device.listen.port() == 0 || device.endpoint.port() == 0 || device.endpoint.ip().is_unspecified() {
        Some(("an address or a port of its ends is missing", "name address and port of both nodes"))
    } else {
        None
    };
    match wrong {
        Some((reason, fix)) => Err(Error::invalid(format!("device {:?}", device.name.escape_debug().to_string()), reason, fix)),
        None => Ok(()),
    }
}

/// Somebody else has an interface of this name.
fn taken(name: &str, tag: &str) -> Error {
    let whose = if tag.is_empty() { "nobody we know".to_owned() } else { format!("{tag:?}") };
    Error::new(Kind::Conflict, format!("interface {name:?}"), format!("it belongs to {whose}"), "choose another name or remove it")
}

/// Whose a tag is: what stands before its last colon. Behind it is a number that grows with every start of the owner.
fn owner(tag: &str) -> &str {
    tag.rsplit_once(':').map_or(tag, |(owner, _)| owner)
}

/// The time since `then`.
fn age(then: Option<Instant>) -> Option<Duration> {
    then.map(|then| then.elapsed())
}
