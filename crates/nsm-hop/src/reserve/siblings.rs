//! The vWires of one client beside each other: an address that one of them has must not come again through another.
//!
//! The client excludes what its other connections use, and refuses an answer that uses it all the same. Connections of
//! one awareness group know of each other and may overlap.

use crate::role::{Draft, Reserve};
use ipnet::IpNet;
use nsm_api::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// What one connection uses, and what was excluded on its behalf.
#[derive(Default)]
struct Wire {
    used: BTreeSet<IpNet>,
    excluded: BTreeSet<IpNet>,
}

/// The connections of one client.
pub struct Siblings {
    groups: Vec<BTreeSet<ConnectionId>>,
    wires: Mutex<BTreeMap<ConnectionId, Wire>>,
}

impl Siblings {
    /// No connections yet; those of one group may overlap.
    pub fn new(groups: Vec<BTreeSet<ConnectionId>>) -> Siblings {
        Siblings { groups, wires: Mutex::default() }
    }
    fn wires(&self) -> MutexGuard<'_, BTreeMap<ConnectionId, Wire>> {
        self.wires.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn strangers(&self, a: &ConnectionId, b: &ConnectionId) -> bool {
        a != b && !self.groups.iter().any(|group| group.contains(a) && group.contains(b))
    }
    /// What the others use.
    fn others(&self, wires: &BTreeMap<ConnectionId, Wire>, id: &ConnectionId) -> BTreeSet<IpNet> {
        wires.iter().filter(|(other, _)| self.strangers(id, other)).flat_map(|(_, wire)| wire.used.iter().copied()).collect()
    }
}

/// The addresses of both ends, and the host routes: what must not be anybody else's.
fn used(context: &IpContext) -> BTreeSet<IpNet> {
    let host = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
    let addresses = context.src_ip_addrs.iter().chain(&context.dst_ip_addrs).map(|net| IpNet::from(net.addr()));
    let routes = context.src_routes.iter().chain(&context.dst_routes).map(|route| route.prefix).filter(host);
    addresses.chain(routes).collect()
}

impl Reserve for Siblings {
    fn reserve(&self, draft: &mut Draft) -> Result<()> {
        let mut wires = self.wires();
        let id = draft.connection.id.clone();
        let others = self.others(&wires, &id);
        let wire = wires.entry(id).or_default();
        let list = &mut draft.connection.context.ip_context.excluded_prefixes;
        // Those of last time first go: a sibling may have left.
        list.retain(|prefix| !wire.excluded.contains(prefix));
        wire.excluded = others.into_iter().filter(|prefix| !list.contains(prefix)).collect();
        list.extend(&wire.excluded);
        Ok(())
    }

    fn review(&self, draft: &Draft) -> Result<()> {
        let mut wires = self.wires();
        let (id, answered) = (&draft.connection.id, used(&draft.connection.context.ip_context));
        if let Some(taken) = self.others(&wires, id).intersection(&answered).next() {
            return Err(Error::new(
                Kind::Unavailable,
                format!("connection {:?}", id.as_str()),
                format!("its endpoint gave it {taken}, which another connection of this client uses"),
                "give the endpoints different --cidr-prefix, or put the services into one of --awareness-groups",
            ));
        }
        // From here on others see it, so that two answers at the same time cannot both be taken.
        wires.entry(id.clone()).or_default().used.extend(answered);
        Ok(())
    }

    fn keep(&self, connection: &Connection) {
        self.wires().entry(connection.id.clone()).or_default().used = used(&connection.context.ip_context);
    }
    fn release(&self, id: &ConnectionId) {
        self.wires().remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ConnectionId {
        ConnectionId::new(text).unwrap()
    }
    fn draft(name: &str) -> Draft {
        Draft { connection: Connection::new(id(name), "svc".parse().unwrap()), preferences: vec![], files: Files::default() }
    }
    fn answered(name: &str, src: &str) -> Draft {
        let mut draft = draft(name);
        draft.connection.context.ip_context.src_ip_addrs = vec![src.parse().unwrap()];
        draft
    }
    fn up(siblings: &Siblings, name: &str, src: &str) -> Result<()> {
        siblings.reserve(&mut draft(name))?;
        let answer = answered(name, src);
        siblings.review(&answer)?;
        siblings.keep(&answer.connection);
        Ok(())
    }
    fn excluded(siblings: &Siblings, draft: &mut Draft) -> Vec<String> {
        siblings.reserve(draft).unwrap();
        draft.connection.context.ip_context.excluded_prefixes.iter().map(ToString::to_string).collect()
    }

    /// E-18, X-039
    #[test]
    fn what_one_connection_uses_is_excluded_for_the_others_while_it_lasts() {
        let siblings = Siblings::new(vec![]);
        up(&siblings, "a", "10.0.0.1/24").unwrap();
        let mut second = draft("b");
        second.connection.context.ip_context.excluded_prefixes = vec!["192.0.2.0/24".parse().unwrap()];
        assert_eq!(excluded(&siblings, &mut second), ["192.0.2.0/24", "10.0.0.1/32"]);
        assert_eq!(excluded(&siblings, &mut second), ["192.0.2.0/24", "10.0.0.1/32"], "a refresh adds nothing");
        assert_eq!(excluded(&siblings, &mut answered("a", "10.0.0.1/24")), Vec::<String>::new(), "its own addresses are its own");
        siblings.release(&id("a"));
        assert_eq!(excluded(&siblings, &mut second), ["192.0.2.0/24"]);
    }

    /// E-18
    #[test]
    fn an_answer_with_an_address_in_use_is_refused_also_when_both_come_at_once() {
        let siblings = Siblings::new(vec![]);
        let (a, b) = (answered("a", "10.0.0.1/32"), answered("b", "10.0.0.1/32"));
        siblings.reserve(&mut draft("a")).unwrap();
        siblings.reserve(&mut draft("b")).unwrap();
        siblings.review(&a).unwrap();
        let error = siblings.review(&b).unwrap_err();
        assert!(error.retryable() && error.to_string().contains("10.0.0.1/32"), "{error}");
    }

    ///
    #[test]
    fn those_of_one_group_may_overlap() {
        let siblings = Siblings::new(vec![BTreeSet::from([id("a"), id("b")])]);
        up(&siblings, "a", "10.0.0.1/32").unwrap();
        up(&siblings, "b", "10.0.0.1/32").unwrap();
        assert!(up(&siblings, "c", "10.0.0.1/32").is_err());
    }
}
