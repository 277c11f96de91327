//! What processes hold open, judged by what lives.

use super::{Seen, mesh};
use crate::{judges::descriptors::Held, plan::Role, world::World};
use nsm_api::Result;
use std::collections::BTreeSet;

/// Descriptors that a process may hold for each connection that it has a part in.
const EACH: usize = 2;

/// No process of ours holds a namespace in which no process of the lab lives, nor many descriptors.
pub(crate) async fn descriptors(world: &mut World, spare: usize) -> Result<Seen> {
    let connections = mesh::everywhere(world).await?.len();
    let mut living = BTreeSet::new();
    for (name, process) in &mut world.processes {
        if !process.has_ended() {
            living.insert((name.clone(), process.pid, process.spec.netns.clone(), process.spec.role));
        }
    }
    let mut inodes = BTreeSet::new();
    for (_, _, netns, _) in &living {
        inodes.insert(world.places.get(netns)?.netns.key.ino);
    }
    let (mut problems, mut most) = (Vec::new(), (0, String::new()));
    let ours: BTreeSet<u64> = world.places.iter().map(|(_, place)| place.netns.key.ino).collect();
    for (name, pid, _, role) in living.iter().filter(|(.., role)| *role != Role::App) {
        let held = Held::of(*pid)?;
        let dead = held.namespaces.iter().filter(|inode| ours.contains(inode) && !inodes.contains(inode)).count();
        problems.extend((dead > 0).then(|| format!("{name} holds {dead} namespaces of pods that are dead")));
        // Each connection of a packet engine is a device with a socket, too.
        let limit = spare + EACH * connections * if *role == Role::Packet { 2 } else { 1 };
        problems.extend((held.count > limit).then(|| format!("{name} holds {}, at most {limit}", held.words())));
        most = most.max((held.count, name.clone()));
    }
    let text = format!("{} processes, most with {}: {}", living.len(), most.1, most.0);
    Ok(if problems.is_empty() { Seen::new(true, text) } else { Seen::new(false, problems.join("; ")) })
}
