//! Checks that send packets.

use super::Seen;
use crate::{look::GREETING, schema::Expect, world::World};
use nsm_api::Result;
use nsm_linux::{net::Net, probe};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

/// Between two echo requests of one check.
const INTERVAL: Duration = Duration::from_millis(2);
/// How long an echo may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long an echo that should not come is waited for.
const PATIENCE_NONE: Duration = Duration::from_millis(250);
/// Probes of one isolation check.
const PROBES: u32 = 20;
/// Bytes of each, so that whatever carried one is told from the kernel's own chatter.
const PROBE_BYTES: usize = 1000;

/// Sends echoes out of a pod.
pub(super) async fn ping(world: &World, from: &str, to: IpAddr, (count, expect): (u32, Expect)) -> Result<Seen> {
    let netns = &world.places.get(&world.file.lab.namespace(from))?.netns;
    let timeout = if expect == Expect::All { PATIENCE } else { PATIENCE_NONE };
    let options = probe::PingOptions { count, interval: INTERVAL, timeout, ..probe::PingOptions::once(to) };
    let report = probe::ping(netns, options).await?;
    let ok = match expect {
        Expect::All => report.complete(),
        Expect::None => report.received == 0,
    };
    let time = report.rtt_median.map(|rtt| format!(", {} µs", rtt.as_micros())).unwrap_or_default();
    let error = report.send_error.map(|error| format!(" ({error})")).unwrap_or_default();
    Ok(Seen::new(ok, format!("{} of {} echoes{time}{error}", report.received, report.sent)))
}

/// Opens a TCP connection out of a pod and expects back what it sends.
pub(super) async fn tcp(world: &World, from: &str, to: SocketAddr) -> Result<Seen> {
    let netns = &world.places.get(&world.file.lab.namespace(from))?.netns;
    let answer = probe::tcp_get(netns, to, GREETING, PATIENCE).await?;
    let text = if answer == GREETING { "connects and echoes".to_owned() } else { format!("answers {} other bytes", answer.len()) };
    Ok(Seen::new(answer == GREETING, text))
}

/// Namespace and interface.
type Spot = (String, String);

/// Sends probes along one vWire and looks which interfaces of the whole lab carried as much as one of them. Expected are
/// the interface that the sender's kernel routes to `to`, the one that has this address, and tunnels' underlay.
pub(super) async fn isolation(world: &World, from: &str, to: IpAddr) -> Result<Seen> {
    let sender = world.places.get(&world.file.lab.namespace(from))?;
    let mut expected = BTreeSet::from([(world.file.lab.namespace(from), sender.net.route_get(to, None)?.dev)]);
    for (name, place) in world.places.iter() {
        let owners = place.net.addresses()?.into_iter().filter(|address| address.address.addr() == to);
        expected.extend(owners.map(|address| (name.to_owned(), address.dev)));
    }
    let spots = spots(world)?;
    let before = carried(&spots)?;
    let options = probe::PingOptions { count: PROBES, interval: INTERVAL, size: PROBE_BYTES, ..probe::PingOptions::once(to) };
    let report = probe::ping(&sender.netns, options).await?;
    let after = carried(&spots)?;
    let bytes = |spot: &Spot| after[spot].saturating_sub(before[spot]);
    let silent: Vec<&Spot> =
        expected.iter().filter(|spot| !after.contains_key(*spot) || bytes(spot) < u64::from(PROBES) * PROBE_BYTES as u64).collect();
    let leaks: Vec<&Spot> = after.keys().filter(|spot| !expected.contains(*spot) && bytes(spot) >= PROBE_BYTES as u64).collect();
    let ok = report.complete() && silent.is_empty() && leaks.is_empty();
    let mut text = format!("{} of {} echoes, at its two ends", report.received, report.sent);
    if !leaks.is_empty() {
        text = format!("leaked to {}", list(&leaks));
    } else if !silent.is_empty() {
        text = format!("never passed {}", list(&silent));
    } else if ok {
        text.push_str(" only");
    }
    Ok(Seen::new(ok, text))
}

fn list(spots: &[&Spot]) -> String {
    spots.iter().map(|(netns, dev)| format!("{netns}/{dev}")).collect::<Vec<_>>().join(", ")
}

/// Every interface that could show a packet of somebody else: all but the underlay between nodes, which carries tunnels.
fn spots(world: &World) -> Result<BTreeMap<Spot, Arc<Net>>> {
    let underlay: BTreeSet<Spot> = (world.plan.cables.iter().take(world.file.lab.nodes.len()))
        .flat_map(|cable| [&cable.a, &cable.b])
        .map(|end| (end.netns.clone(), end.interface.clone()))
        .collect();
    let fabric = world.file.lab.namespace(crate::plan::FABRIC);
    let mut spots = BTreeMap::new();
    for (name, place) in world.places.iter().filter(|(name, _)| *name != fabric) {
        for link in place.net.links()? {
            let spot = (name.to_owned(), link.name);
            if !underlay.contains(&spot) {
                spots.insert(spot, place.net.clone());
            }
        }
    }
    Ok(spots)
}

/// Bytes that each interface has sent and received.
fn carried(spots: &BTreeMap<Spot, Arc<Net>>) -> Result<BTreeMap<Spot, u64>> {
    let count = |(spot, net): (&Spot, &Arc<Net>)| net.stats(&spot.1).map(|stats| (spot.clone(), stats.rx_bytes + stats.tx_bytes));
    spots.iter().map(count).collect()
}
