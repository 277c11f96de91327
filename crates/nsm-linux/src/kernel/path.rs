//! Whether the way to another node carries packets as large as its tunnels need (E-22): one large probe for each other node
//! proves it. When it does not arrive and a small one does, the largest that passes is found, and tunnels are made for that
//! from then on; the Request that found out is refused with this as its reason, and its repetition succeeds.
//!
//! Nothing is concluded where the other node answers no echo at all.

use crate::probe::{self, Fragments, PingOptions};
use nsm_api::{Error, Kind, Result};
use nsm_hop::kernel::{Iface, Link, Netns, Op, UnderlayMtu, Wire};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tracing::{debug, warn};

/// Other nodes whose ways are remembered; of more, the first is asked again.
const MAX_KNOWN: usize = 4096;
/// Longest wait for an echo.
const PATIENCE: Duration = Duration::from_millis(400);
/// A large probe is sent so often before its loss means something.
const TRIES: usize = 2;
/// What every way carries.
const SMALLEST: u32 = 576;
/// Bytes of an echo request without its payload, over IPv4 and over IPv6.
const ECHO: (u32, u32) = (28, 48);

/// What is known about the ways from this node.
pub(super) struct Paths {
    /// The node's namespace.
    netns: Netns,
    /// The largest packet that has arrived at each other node.
    carried: Mutex<BTreeMap<IpAddr, u32>>,
    /// What tunnels are made for.
    limit: UnderlayMtu,
}

impl Paths {
    pub(super) fn new(netns: Netns, limit: UnderlayMtu) -> Paths {
        Paths { netns, carried: Mutex::default(), limit }
    }
    fn carried(&self) -> MutexGuard<'_, BTreeMap<IpAddr, u32>> {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn remember(&self, remote: IpAddr, bytes: u32) {
        let mut carried = self.carried();
        if carried.len() >= MAX_KNOWN {
            carried.pop_first();
        }
        carried.insert(remote, bytes);
    }

    /// Proves the ways of the tunnels that were just made.
    pub(super) async fn prove(&self, ops: &[Op]) -> Result<()> {
        for (remote, bytes) in ops.iter().filter_map(|op| wanted(op, ops)) {
            if self.carried().get(&remote).is_none_or(|carried| *carried < bytes) {
                self.prove_one(remote, bytes).await?;
            }
        }
        Ok(())
    }

    async fn prove_one(&self, remote: IpAddr, bytes: u32) -> Result<()> {
        for _ in 0..TRIES {
            if self.passes(remote, bytes).await {
                self.remember(remote, bytes);
                return Ok(());
            }
        }
        if !self.passes(remote, SMALLEST).await {
            debug!(%remote, "the other node answers no echo: how large packets to it may be is not known");
            self.remember(remote, bytes);
            return Ok(());
        }
        let (mut passes, mut fails) = (SMALLEST, bytes);
        while fails - passes > 1 {
            let middle = u32::midpoint(passes, fails);
            if self.passes(remote, middle).await { passes = middle } else { fails = middle }
        }
        self.remember(remote, passes);
        self.limit.lower(passes);
        let reason = format!("packets of {bytes} bytes do not arrive there, the largest that do have {passes}");
        warn!(%remote, "{reason}; tunnels are made for that from now on");
        let fix = "send the Request again, tunnels are smaller now; or allow larger packets on the way (MTU of devices and tunnels)";
        Err(Error::new(Kind::Unavailable, format!("the way to node {remote}"), reason, fix))
    }

    /// Whether an IP packet of so many bytes arrives, whole, and one like it comes back.
    async fn passes(&self, remote: IpAddr, bytes: u32) -> bool {
        let header = if remote.is_ipv4() { ECHO.0 } else { ECHO.1 };
        let options = PingOptions {
            size: bytes.saturating_sub(header) as usize,
            timeout: PATIENCE,
            fragments: Fragments::Forbidden,
            ..PingOptions::once(remote)
        };
        probe::ping(&self.netns, options).await.is_ok_and(|report| report.received > 0)
    }
}

/// The other node of a tunnel that is added, and the bytes that packets to it will have.
fn wanted(op: &Op, ops: &[Op]) -> Option<(IpAddr, u32)> {
    let Op::Add(Wire::Link(link)) = op else { return None };
    let (at, remote) = match link {
        Link::Vxlan { at, remote, .. } => (at, *remote),
        Link::Wireguard { at, remote, .. } => (at, remote.ip()),
        Link::Veth { .. } => return None,
    };
    let inner = |iface: &Iface| {
        ops.iter().find_map(|op| match op {
            Op::Add(Wire::Mtu { on, mtu }) if on == iface => Some(*mtu),
            _ => None,
        })
    };
    Some((remote, inner(at)? + link.overhead()))
}
