//! What to do so that what is becomes what should be. One pure function; it is undo, repair and restart.

use crate::kernel::{Iface, Op, Wire, Wires};
use std::collections::BTreeSet;

/// Removals first, last-made first; then additions in the order of creation. Nothing is removed one by one from
/// a link that goes as a whole, and what should stay on such a link is made again.
pub fn diff(desired: &Wires, observed: &Wires) -> Vec<Op> {
    let doomed: Vec<&Wire> = observed.iter().filter(|wire| matches!(wire, Wire::Link(_)) && !desired.contains(wire)).collect();
    let gone: BTreeSet<&Iface> =
        doomed.iter().filter_map(|wire| if let Wire::Link(link) = wire { Some(link.ifaces()) } else { None }).flatten().collect();
    let falls = |wire: &Wire| wire.needs().iter().any(|iface| gone.contains(iface));

    let goes = |wire: &Wire| if falls(wire) { !wire.goes_with_its_link() } else { !desired.contains(wire) };
    let dels = observed.iter().rev().filter(|wire| goes(wire));
    let adds = desired.iter().filter(|wire| !observed.contains(wire) || falls(wire));
    dels.cloned().map(Op::Del).chain(adds.cloned().map(Op::Add)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{IfName, Link, Netns, Traffic};
    use nsm_api::InodeKey;

    fn iface(ns: u64, name: &str) -> Iface {
        Iface { netns: Netns { key: InodeKey { dev: 4, ino: ns }, file: None }, name: IfName::new(name).unwrap() }
    }
    fn veth(peer: u64) -> Wire {
        Wire::Link(Link::Veth { a: iface(1, "nsm-1"), b: iface(peer, "e") })
    }
    fn address(text: &str) -> Wire {
        Wire::Address { on: iface(1, "nsm-1"), address: text.parse().unwrap() }
    }

    #[test]
    fn equal_sets_need_nothing() {
        let wires = Wires::from([veth(2), address("10.0.0.1/32")]);
        assert_eq!(diff(&wires, &wires), []);
    }

    #[test]
    fn additions_follow_the_order_of_creation_and_removals_reverse_it() {
        let wires = Wires::from([address("10.0.0.1/32"), veth(2)]);
        assert_eq!(diff(&wires, &Wires::new()), [Op::Add(veth(2)), Op::Add(address("10.0.0.1/32"))]);
        let two = Wires::from([veth(2), address("10.0.0.1/32"), address("10.0.0.2/32")]);
        assert_eq!(diff(&Wires::from([veth(2)]), &two), [Op::Del(address("10.0.0.2/32")), Op::Del(address("10.0.0.1/32"))]);
    }

    /// E-21
    #[test]
    fn a_policy_is_removed_before_its_link_and_made_again_after_it() {
        let traffic = Traffic { ipv6: false, from: None, protocol: Some(6), dst_ports: None, src_ports: None };
        let policy = Wire::Policy { on: iface(1, "nsm-1"), rank: 0, traffic, routes: BTreeSet::new() };
        let with = |peer| Wires::from([veth(peer), policy.clone()]);
        let del = |peer| vec![Op::Del(policy.clone()), Op::Del(veth(peer))];
        assert_eq!(diff(&Wires::new(), &with(2)), del(2));
        let again = [Op::Add(veth(3)), Op::Add(policy.clone())];
        assert_eq!(diff(&with(3), &with(2)), [del(2).as_slice(), &again].concat());
        assert_eq!(diff(&with(2), &with(2)), []);
    }

    #[test]
    fn a_replaced_link_takes_its_addresses_along_and_gets_them_back() {
        let before = Wires::from([veth(2), address("10.0.0.1/32"), address("10.0.0.9/32")]);
        let after = Wires::from([veth(3), address("10.0.0.1/32")]);
        assert_eq!(diff(&after, &before), [Op::Del(veth(2)), Op::Add(veth(3)), Op::Add(address("10.0.0.1/32"))]);
        assert_eq!(diff(&Wires::new(), &before), [Op::Del(veth(2))]);
    }
}
