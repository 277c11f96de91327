//! Whether packets pass over a client's wires: echoes from each of its addresses to each of the other end.

use futures::future::join_all;
use nsm_api::*;
use nsm_hop::{kernel::Netns, role::Liveness};
use nsm_linux::probe::Pinger;
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

/// Pause between echoes while none is answered. When all is well there is one echo for each look.
const ECHO_PAUSE: Duration = Duration::from_millis(100);
/// The same after bad news, and the least patience then.
const DOUBT: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));
/// Patience after bad news, in usual times of an answer.
const DOUBT_ANSWERS: u32 = 4;
/// What is left of the longest answer after another one.
const FADING: f64 = 0.95;
/// Pairs of addresses with a socket of their own; of one connection no more are looked at.
const MAX_PAIRS: usize = 64;

/// One address of ours and one of the other end.
type Pair = (IpAddr, IpAddr);
type Slot = Arc<tokio::sync::Mutex<Line>>;

/// The way to one address.
#[derive(Default)]
struct Line {
    pinger: Option<Pinger>,
    /// How long an answer takes: the longest of late.
    usual: Duration,
}

/// Why somebody looks.
#[derive(Clone, Copy)]
enum Look {
    AsAlways,
    InDoubt,
}

/// Looks at the wires in one namespace.
pub(super) struct Echoes {
    netns: Netns,
    interval: Duration,
    timeout: Duration,
    /// A socket is kept, so that a look costs two packets and nothing else.
    pingers: Mutex<BTreeMap<Pair, Slot>>,
}

impl Echoes {
    /// Looks every `interval`; a wire is dead when nothing came back for `timeout`.
    pub(super) fn new(netns: Netns, interval: Duration, timeout: Duration) -> Echoes {
        Echoes { netns, interval, timeout, pingers: Mutex::default() }
    }

    fn slot(&self, pair: Pair) -> Slot {
        let mut pingers = self.pingers.lock().unwrap_or_else(PoisonError::into_inner);
        if pingers.len() >= MAX_PAIRS && !pingers.contains_key(&pair) {
            pingers.clear(); // most are of former addresses; the others open again
        }
        pingers.entry(pair).or_default().clone()
    }

    async fn answers(&self, pair: Pair, look: Look) -> bool {
        let (slot, begun) = (self.slot(pair), Instant::now());
        let mut line = slot.lock().await;
        let (pause, patience) = match look {
            Look::AsAlways => (ECHO_PAUSE, self.timeout),
            Look::InDoubt => (DOUBT.0, (line.usual * DOUBT_ANSWERS).max(DOUBT.1).min(self.timeout)),
        };
        let end = begun + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let problem = match line.pinger.as_mut() {
                Some(pinger) => {
                    let asked = Instant::now();
                    let answered = pinger.answered(pause, left).await;
                    line.usual = if answered { asked.elapsed().max(line.usual.mul_f64(FADING)) } else { line.usual };
                    return answered;
                }
                None => match Pinger::open(&self.netns, pair.0, pair.1).await {
                    Ok(pinger) => {
                        line.pinger = Some(pinger);
                        continue;
                    }
                    Err(error) if error.kind == Kind::Denied => {
                        warn!(%error, "wires cannot be looked at, and are taken to be alive");
                        return true;
                    }
                    Err(error) => error,
                },
            };
            debug!(from = %pair.0, to = %pair.1, error = %problem, "no echo");
            if left.is_zero() {
                return false;
            }
            sleep(pause.min(left)).await;
        }
    }

    /// Alive when every pair answers; also when there is nothing to look at.
    async fn look(&self, connection: &Connection, look: Look) -> bool {
        let pairs = pairs(connection);
        let dead = join_all(pairs.iter().map(|pair| self.answers(*pair, look))).await.iter().position(|answered| !answered);
        if let Some((from, to)) = dead.map(|at| pairs[at]) {
            warn!(connection = %connection.id, %from, %to, "no answer in time");
        }
        dead.is_none()
    }
}

#[async_trait::async_trait]
impl Liveness for Echoes {
    async fn alive(&self, connection: &Connection) -> bool {
        self.look(connection, Look::AsAlways).await
    }
    async fn alive_still(&self, connection: &Connection) -> bool {
        self.look(connection, Look::InDoubt).await
    }
    fn interval(&self) -> Duration {
        self.interval
    }
}

/// What is to be asked: each of our addresses and each of the other end's, of one family. Only kernel interfaces are in
/// this namespace.
fn pairs(connection: &Connection) -> Vec<Pair> {
    if connection.mechanism.as_ref().is_none_or(|mechanism| mechanism.kind != MechanismKind::Kernel) {
        return vec![];
    }
    let context = &connection.context.ip_context;
    let each = context.src_ip_addrs.iter().flat_map(|src| context.dst_ip_addrs.iter().map(|dst| (src.addr(), dst.addr())));
    each.filter(|(src, dst)| src.is_ipv4() == dst.is_ipv4()).take(MAX_PAIRS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// E-09
    #[test]
    fn each_address_is_asked_from_each_of_its_family() {
        let mut connection = Connection::new("c".parse().unwrap(), "svc".parse().unwrap());
        let context = &mut connection.context.ip_context;
        context.src_ip_addrs = ["10.0.0.1/32", "10.0.0.2/32", "2001:db8::1/128"].iter().map(|text| text.parse().unwrap()).collect();
        context.dst_ip_addrs = ["10.0.0.0/32", "2001:db8::/128"].iter().map(|text| text.parse().unwrap()).collect();
        assert!(pairs(&connection).is_empty(), "without a mechanism there is nothing to ask");
        connection.mechanism = Some(Mechanism::new(Class::Local, MechanismKind::Kernel));
        let shown: Vec<String> = pairs(&connection).iter().map(|(src, dst)| format!("{src}>{dst}")).collect();
        assert_eq!(shown, ["10.0.0.1>10.0.0.0", "10.0.0.2>10.0.0.0", "2001:db8::1>2001:db8::"]);
    }
}
