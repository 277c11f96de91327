//! Checks of names, and of the file by which an application finds who knows them.

use super::Seen;
use crate::{names, schema::Lab, world::World};
use nsm_api::{Error, Result};
use std::{collections::BTreeSet, net::IpAddr};

/// What the client sees as /etc/resolv.conf.
fn resolv_conf(world: &World, client: &str) -> Result<String> {
    let path = world.files.resolv_conf(client);
    std::fs::read_to_string(&path).map_err(|error| Error::internal(format!("file {}", path.display()), error.to_string()))
}

/// The name servers of a client's resolv.conf know a name by exactly these addresses.
pub(super) async fn resolves(world: &World, pod: &str, name: &str, to: &[IpAddr]) -> Result<Seen> {
    let servers = names::servers(&resolv_conf(world, pod)?);
    let netns = &world.places.get(&world.file.lab.namespace(pod))?.netns;
    let found = names::resolve(netns, &servers, name).await?;
    let words: Vec<String> = found.iter().map(ToString::to_string).collect();
    let text = if words.is_empty() { "no such name".to_owned() } else { words.join(" ") };
    Ok(Seen::new(found == to.iter().copied().collect::<BTreeSet<_>>(), text))
}

/// A client's resolv.conf names the resolver beside it and nobody else, or says what it said at first.
pub(super) fn file(world: &World, pod: &str, rewritten: bool) -> Result<Seen> {
    let text = resolv_conf(world, pod)?;
    if Some(text.as_str()) == written(&world.file.lab, pod) {
        return Ok(Seen::new(!rewritten, "as it was"));
    }
    let servers = names::servers(&text);
    let words: Vec<String> = servers.iter().map(ToString::to_string).collect();
    let beside = servers.len() == 1 && servers.iter().all(IpAddr::is_loopback);
    Ok(Seen::new(rewritten && beside, format!("names {}", words.join(" "))))
}

fn written<'a>(lab: &'a Lab, client: &str) -> Option<&'a str> {
    lab.client(client)?.resolv_conf.as_deref()
}
