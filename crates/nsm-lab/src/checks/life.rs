//! Checks of how long a vWire lives: as long as its client, no longer than its client's token, and without a break.

use super::{
    Seen,
    mesh::{Listed, closed, everywhere, of_client},
};
use crate::{
    schema::Span,
    world::{POLL, World},
};
use ipnet::IpNet;
use nsm_api::{Error, Kind, Result};
use nsm_linux::probe;
use std::{
    net::IpAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Between two echoes of a vWire that lasts.
const INTERVAL: Duration = Duration::from_millis(20);
/// Echoes in a row, after which the time is looked at; the first row with a loss is the last.
const ROW: u32 = 25;
/// How long one echo may take.
const PATIENCE: Duration = Duration::from_millis(500);
/// Longest life of a token whose end is waited for.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// How long after the end of a token its vWires may be there.
const GRACE: Duration = Duration::from_secs(1);

/// What must go on and what must stay the same.
struct Moment {
    /// Index of the client's interface.
    index: u32,
    /// The other end.
    peer: IpAddr,
    /// When the tokens of the path end, in seconds of the Unix time.
    ends: Vec<f64>,
}

/// Sends echoes over one vWire for a while; its interface must be the same afterwards, its tokens others.
pub(super) async fn lasts(world: &World, client: &str, interface: &str, span: Span) -> Result<Seen> {
    let before = moment(world, client, interface).await?;
    let (sent, received) = echoes(world, client, before.peer, span).await?;
    let after = moment(world, client, interface).await?;
    let renewed = before.ends.iter().zip(&after.ends).map(|(before, after)| after - before).fold(f64::INFINITY, f64::min);
    let same = before.index == after.index;
    let ok = sent > 0 && sent == received && same && renewed > 0.0 && before.ends.len() == after.ends.len();
    let same = if same { "same interface" } else { "another interface" };
    let tokens = if renewed > 0.0 { format!("tokens renewed by {renewed:.1} s") } else { "tokens not renewed".to_owned() };
    Ok(Seen::new(ok, format!("{received} of {sent} echoes, {same}, {tokens}")))
}

async fn moment(world: &World, client: &str, interface: &str) -> Result<Moment> {
    let missing = |what: &str| {
        let object = format!("vWire {interface} of {client}");
        Error::new(Kind::NotFound, object, what, "look at nsm get connections while the lab is up")
    };
    let all = of_client(everywhere(world).await?, client, Some(interface));
    let whole = all.iter().max_by_key(|listed| listed.path.path_segments.len()).ok_or_else(|| missing("no manager lists it"))?;
    let ends: Option<Vec<f64>> = whole.path.path_segments.iter().map(|segment| segment.expires).collect();
    let peer = all.iter().find_map(Listed::peer).ok_or_else(|| missing("its other end has no address"))?;
    let link = world.places.get(&world.file.lab.namespace(client))?.net.link_named(interface)?;
    Ok(Moment {
        index: link.ok_or_else(|| missing("the interface is gone"))?.index,
        peer,
        ends: ends.ok_or_else(|| missing("a token of its path never ends"))?,
    })
}

/// How many echoes were sent and how many came back.
async fn echoes(world: &World, client: &str, to: IpAddr, Span(span): Span) -> Result<(u32, u32)> {
    let netns = &world.places.get(&world.file.lab.namespace(client))?.netns;
    let (begun, mut sent, mut received) = (Instant::now(), 0, 0);
    while begun.elapsed() < span && sent == received {
        let options = probe::PingOptions { count: ROW, interval: INTERVAL, timeout: PATIENCE, ..probe::PingOptions::once(to) };
        let report = probe::ping(netns, options).await?;
        (sent, received) = (sent + report.sent, received + report.received);
    }
    Ok((sent, received))
}

/// Kills a client; what it had must be gone soon after its tokens have ended.
pub(super) async fn kill(world: &mut World, client: &str) -> Result<Seen> {
    world.process(client)?.kill().await?;
    let left = remaining(&everywhere(world).await?, client)?;
    if left > MAX_WAIT {
        let reason = format!("its token lives {} s more, longer than anybody waits here", left.as_secs());
        return Err(Error::invalid(format!("client {client:?}"), reason, "give the client a short lifetime, as 3s"));
    }
    let begun = Instant::now();
    loop {
        let late = begun.elapsed() > left + GRACE;
        let seen = closed(world, client).await?;
        if seen.ok || late {
            let (after, left) = (begun.elapsed().as_secs_f64(), left.as_secs_f64());
            return Ok(Seen::new(seen.ok, format!("after {after:.1} s {}; its token had {left:.1} s", seen.text)));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// How long the last token lives that this client made.
fn remaining(all: &[Listed], client: &str) -> Result<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let first = all.iter().filter_map(|listed| listed.path.path_segments.first()).filter(|segment| segment.name == client);
    let end = first.filter_map(|segment| segment.expires).max_by(f64::total_cmp);
    let end = end.ok_or_else(|| {
        Error::new(
            Kind::NotFound,
            format!("connection of {client:?}"),
            "no manager lists one with an end",
            "kill a client that has a vWire",
        )
    })?;
    Ok(Duration::try_from_secs_f64(end - now).unwrap_or_default())
}

impl Listed {
    /// The address of the side that was asked.
    fn peer(&self) -> Option<IpAddr> {
        self.context.ip_context.dst_ip_addrs.first().map(IpNet::addr)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::listed, *};

    #[test]
    fn the_life_that_is_left_is_that_of_the_clients_own_token() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let path = |client: &str, end: f64| {
            format!(
                r#"{{"path":{{"path_segments":[{{"name":"{client}","id":"1","expires":{end}}},{{"name":"m","id":"2","expires":9e9}}]}}}}"#
            )
        };
        let all = listed(&format!("[{},{},{}]", path("c", now + 2.0), path("c", now + 3.0), path("d", now + 50.0))).unwrap();
        let left = remaining(&all, "c").unwrap();
        assert!(left > Duration::from_millis(2500) && left <= Duration::from_secs(3), "{left:?}");
        assert!(remaining(&all, "m").is_err());
        assert_eq!(remaining(&listed(&format!("[{}]", path("c", now - 5.0))).unwrap(), "c").unwrap(), Duration::ZERO);
    }

    #[test]
    fn the_peer_is_the_address_of_the_side_that_was_asked() {
        let all = listed(r#"[{"context":{"ip_context":{"src_ip_addrs":["10.0.0.1/32"],"dst_ip_addrs":["10.0.0.0/32"]}}}]"#).unwrap();
        assert_eq!(all[0].peer(), Some("10.0.0.0".parse().unwrap()));
    }
}
