//! Looks whether a lab is as its checks say.
//!
//! A check of a state is looked at again until it holds or its bound is over. A check that sends packets is tried once:
//! a vWire that is reported up must carry the first packet.

mod descriptors;
mod isolation;
mod life;
mod mesh;
mod names;
mod packets;
mod state;
mod steady;

use crate::{
    report::CheckResult,
    schema::Check,
    world::{POLL, World},
};
use nsm_api::Result;
use std::time::Duration;
use tokio::time::Instant;

/// How long a state may take to come about.
const STATE_BOUND: Duration = Duration::from_secs(3);

pub(crate) use descriptors::descriptors;
pub(crate) use isolation::links;
pub(crate) use mesh::{Listed, connections_at, connections_of, listed};
pub(crate) use steady::pods as client_pods;

/// Between two looks at a state that may take long: each look starts processes.
const LONG_PAUSE: Duration = Duration::from_millis(200);

/// One look.
pub(crate) struct Seen {
    pub(crate) ok: bool,
    pub(crate) text: String,
}

impl Seen {
    pub(crate) fn new(ok: bool, text: impl Into<String>) -> Seen {
        Seen { ok, text: text.into() }
    }
}

/// Runs one check.
pub(crate) async fn run(world: &mut World, check: &Check) -> CheckResult {
    let begun = Instant::now();
    let seen = settle(world, check).await;
    CheckResult::new(check.to_string(), check.expected(), seen.text, seen.ok, begun.elapsed())
}

async fn settle(world: &mut World, check: &Check) -> Seen {
    if let Check::Close { client } = check
        && let Err(error) = mesh::end(world, client).await
    {
        return Seen::new(false, error.to_string());
    }
    let (bound, pause) = match check {
        Check::Connections { within: Some(span), .. } | Check::Lasts { within: Some(span), .. } => (span.0, LONG_PAUSE),
        _ => (STATE_BOUND, POLL),
    };
    let until = Instant::now() + bound;
    loop {
        let seen = look(world, check).await.unwrap_or_else(|error| Seen::new(false, error.to_string()));
        if let (true, Check::Close { client } | Check::Kill { client }) = (seen.ok, check) {
            world.births.remove(client);
        }
        if seen.ok || is_tried_once(check) || Instant::now() > until {
            return seen;
        }
        tokio::time::sleep(pause).await;
    }
}

fn is_tried_once(check: &Check) -> bool {
    match check {
        Check::Ping { .. } | Check::Tcp { .. } | Check::Isolation { .. } | Check::App { .. } => true,
        Check::Lasts { within, .. } => within.is_none(),
        Check::Kill { .. } | Check::End { .. } | Check::Restart { .. } | Check::Do(_) => true,
        Check::Write { .. } | Check::Apply { .. } | Check::Steady(_) => true,
        Check::Interface { .. } | Check::Addresses { .. } | Check::Route { .. } | Check::Connections { .. } => false,
        Check::Way { .. } | Check::Resolves { .. } | Check::ResolvConf { .. } | Check::Descriptors { .. } => false,
        Check::Ready { .. } | Check::Refusal { .. } | Check::Close { .. } | Check::Unchanged { .. } => false,
    }
}

async fn look(world: &mut World, check: &Check) -> Result<Seen> {
    match check {
        Check::Ping { from, to, count, expect, size, whole } => {
            packets::ping(world, from, *to, packets::Echoes { count: *count, expect: *expect, size: *size, whole: *whole }).await
        }
        Check::Tcp { from, to, port, expect, send } => packets::tcp(world, from, (*to, *port).into(), (*expect, send.as_deref())).await,
        Check::Isolation { from, to, at } => isolation::isolation(world, from, *to, at.as_deref()).await,
        Check::Interface { pod, name, present, mtu } => state::interface(world, pod, name, (*present, *mtu)),
        Check::Addresses { pod, interface, equal, inside } => state::addresses(world, pod, interface, (equal, *inside)),
        Check::Route { pod, to, via, dev, present } => {
            state::route(world, pod, *to, &state::Way { via: *via, dev: dev.as_deref(), present: *present })
        }
        Check::Way { pod, packet, sought } => state::way(world, pod, packet, sought),
        Check::Resolves { pod, name, to } => names::resolves(world, pod, name, to).await,
        Check::ResolvConf { pod, rewritten } => names::file(world, pod, *rewritten),
        Check::Write { file, text } => world.write(file, text).map(|()| Seen::new(true, "written")),
        Check::Apply { name, text } => world.apply(name, text).await.map(|()| Seen::new(true, "registered")),
        Check::Unchanged { pods } => state::unchanged(world, pods),
        Check::App { client, interface, route, reaches } => state::app(world, client, (interface.as_deref(), *route, *reaches)),
        Check::Connections { of, expected, .. } => mesh::connections(world, of, expected).await,
        Check::Ready { client } => mesh::ready(world, client).await,
        Check::End { process, ending } => world.end(process, *ending).await.map(|()| Seen::new(true, "ended")),
        Check::Restart { process, ending } => world.restart(process, *ending).await.map(|()| Seen::new(true, "ready again")),
        Check::Refusal { client, hop, contains } => mesh::refusal(world, client, hop.as_deref(), contains),
        Check::Lasts { client, interface, span, .. } => life::lasts(world, client, interface, *span).await,
        Check::Do(fault) => world.fault(fault).await.map(|()| Seen::new(true, "done")),
        Check::Steady(asked) => steady::steady(world, asked).await,
        Check::Descriptors { spare } => descriptors(world, *spare).await,
        Check::Kill { client } => life::kill(world, client).await,
        Check::Close { client } => mesh::closed(world, client).await,
    }
}
