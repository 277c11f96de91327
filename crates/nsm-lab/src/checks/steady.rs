//! A vWire under the death of processes: echoes go on while each is killed and started again.

use super::Seen;
use crate::{schema::Ending, world::World};
use nsm_api::{Error, Kind, Result};
use nsm_linux::probe;
use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Between two echoes.
const INTERVAL: Duration = Duration::from_millis(2);
/// Echoes in a row, after which is looked whether it is over.
const ROW: u32 = 25;
/// How long one echo may take.
const PATIENCE: Duration = Duration::from_millis(500);
/// Echoes go on for so long after each process is ready: it may do damage when it has come to its senses.
const AFTERMATH: Duration = Duration::from_millis(700);

/// Kills and starts `restarts` while echoes pass.
pub(super) async fn steady(
    world: &mut World,
    (client, interface, to): (&str, &str, IpAddr),
    restarts: &[String],
    most_lost: u32,
) -> Result<Seen> {
    let before = index(world, client, interface)?;
    let netns = world.places.get(&world.file.lab.namespace(client))?.netns.clone();
    let over = Arc::new(AtomicBool::new(false));
    let until = over.clone();
    let probing = tokio::spawn(async move {
        let (mut sent, mut received) = (0, 0);
        while !until.load(Ordering::Relaxed) {
            let options = probe::PingOptions { count: ROW, interval: INTERVAL, timeout: PATIENCE, ..probe::PingOptions::once(to) };
            let report = probe::ping(&netns, options).await?;
            (sent, received) = (sent + report.sent, received + report.received);
        }
        Ok::<_, Error>((sent, received))
    });
    let mut restarted = Ok(());
    for process in restarts {
        if restarted.is_ok() {
            restarted = world.restart(process, Ending::Kill).await;
            tokio::time::sleep(AFTERMATH).await;
        }
    }
    over.store(true, Ordering::Relaxed);
    let (sent, received) = probing.await.map_err(|error| Error::internal("the echoes of a check", error.to_string()))??;
    restarted?;
    let (same, lost) = (index(world, client, interface)? == before, sent - received);
    let words = if same { "same interface" } else { "another interface" };
    Ok(Seen::new(sent > 0 && same && lost <= most_lost, format!("{lost} of {sent} echoes lost, {words}")))
}

fn index(world: &World, client: &str, interface: &str) -> Result<u32> {
    let link = world.places.get(&world.file.lab.namespace(client))?.net.link_named(interface)?;
    let missing = || {
        let object = format!("interface {interface} of {client}");
        Error::new(Kind::NotFound, object, "is gone", "look at nsm get connections while the lab is up")
    };
    Ok(link.ok_or_else(missing)?.index)
}
