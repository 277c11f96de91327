//! Checks that send packets.

use super::Seen;
use crate::{look::GREETING, schema::Expect, world::World};
use nsm_api::Result;
use nsm_linux::probe;
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Between two echo requests of one check.
const INTERVAL: Duration = Duration::from_millis(2);
/// How long an echo may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long an echo that should not come is waited for.
const PATIENCE_NONE: Duration = Duration::from_millis(250);

/// What is sent, and what should come back.
pub(super) struct Echoes {
    pub(super) count: u32,
    pub(super) expect: Expect,
    /// Bytes of each.
    pub(super) size: usize,
    /// None may be split.
    pub(super) whole: bool,
}

/// Sends echoes out of a pod.
pub(super) async fn ping(world: &World, from: &str, to: IpAddr, Echoes { count, expect, size, whole }: Echoes) -> Result<Seen> {
    let netns = &world.places.get(&world.file.lab.namespace(from))?.netns;
    let timeout = if expect == Expect::All { PATIENCE } else { PATIENCE_NONE };
    let fragments = if whole { probe::Fragments::Forbidden } else { probe::Fragments::Allowed };
    let options = probe::PingOptions { count, interval: INTERVAL, timeout, size, fragments, ..probe::PingOptions::once(to) };
    let report = probe::ping(netns, options).await?;
    let ok = match expect {
        Expect::All => report.complete(),
        Expect::None => report.received == 0,
    };
    let time = report.rtt_median.map(|rtt| format!(", {} µs", rtt.as_micros())).unwrap_or_default();
    let error = report.send_error.map(|error| format!(" ({error})")).unwrap_or_default();
    Ok(Seen::new(ok, format!("{} of {} echoes{time}{error}", report.received, report.sent)))
}

/// Opens a TCP connection out of a pod, sends something and expects it back, or nothing at all.
pub(super) async fn tcp(world: &World, from: &str, to: SocketAddr, (expect, send): (Expect, Option<&str>)) -> Result<Seen> {
    let netns = &world.places.get(&world.file.lab.namespace(from))?.netns;
    let sent = send.map_or(GREETING, str::as_bytes);
    if expect == Expect::None {
        let answer = probe::tcp_get(netns, to, sent, PATIENCE_NONE).await;
        return Ok(Seen::new(answer.is_err(), if answer.is_err() { "no echo" } else { "connects and echoes" }));
    }
    let answer = probe::tcp_get(netns, to, sent, PATIENCE).await?;
    let text = if answer == sent { "connects and echoes".to_owned() } else { format!("answers {} other bytes", answer.len()) };
    Ok(Seen::new(answer == sent, text))
}
