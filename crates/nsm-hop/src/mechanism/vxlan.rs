//! VXLAN: an Ethernet tunnel between two nodes, its device inside the pod.

use super::{Accept, Offer};
use crate::{
    kernel::{UnderlayMtu, VXLAN_OVERHEAD},
    role::{Draft, Issuer},
};
use nsm_api::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// One more than the largest network identifier.
const VNI_END: u32 = 1 << 24;
/// Draws before the space counts as full.
const MAX_DRAWS: usize = 1000;

/// Network identifiers in use on this node, by connection.
#[derive(Default)]
pub struct VniPool {
    held: BTreeMap<ConnectionId, u32>,
    used: BTreeSet<u32>,
}

impl VniPool {
    /// The identifier of `id`: the one it says it has, the one it holds, or a free one of the wanted parity.
    ///
    /// Parity by address order keeps two nodes that draw at the same time from drawing the same.
    pub fn reserve(&mut self, id: &ConnectionId, given: Option<u32>, odd: bool, random: impl Fn(u64) -> u64) -> Option<u32> {
        if let Some(vni) = given.or_else(|| self.held.get(id).copied()) {
            self.release(id);
            self.held.insert(id.clone(), vni);
            self.used.insert(vni);
            return Some(vni);
        }
        for _ in 0..MAX_DRAWS {
            let vni = (random(u64::from(VNI_END / 2)) as u32) << 1 | u32::from(odd);
            if vni != 0 && self.used.insert(vni) {
                self.held.insert(id.clone(), vni);
                return Some(vni);
            }
        }
        None
    }
    /// Gives it back.
    pub fn release(&mut self, id: &ConnectionId) {
        if let Some(vni) = self.held.remove(id) {
            self.used.remove(&vni);
        }
    }
}

/// Both sides of the mechanism on one node.
#[derive(Clone)]
pub struct Vxlan {
    /// This node's tunnel address.
    pub tunnel_ip: IpAddr,
    /// This node's tunnel port; both nodes must use the same.
    pub port: u16,
    /// The underlay's largest packet.
    pub underlay_mtu: UnderlayMtu,
    /// Randomness.
    pub issuer: Arc<dyn Issuer>,
    /// Identifiers in use, shared by both sides.
    pub vnis: Arc<Mutex<VniPool>>,
}

impl Vxlan {
    fn tunnel_mtu(&self) -> u32 {
        let overhead = if self.tunnel_ip.is_ipv4() { VXLAN_OVERHEAD.0 } else { VXLAN_OVERHEAD.1 };
        self.underlay_mtu.get().saturating_sub(overhead)
    }
    fn vnis(&self) -> std::sync::MutexGuard<'_, VniPool> {
        self.vnis.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Accept for Vxlan {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Vxlan
    }
    fn accept(&self, draft: &mut Draft, mut offer: Mechanism) -> Result<Mechanism> {
        let object = || format!("connection {:?}", draft.connection.id.as_str());
        if offer.parse::<IpAddr>(params::SRC_IP).is_none() {
            return Err(Error::invalid(
                object(),
                "its VXLAN offer has no source address",
                "start the other node's forwarder with --tunnel-ip",
            ));
        }
        offer.set(params::DST_IP, self.tunnel_ip);
        offer.set(params::DST_PORT, self.port);
        let given = match offer.parse::<u32>(params::VNI).unwrap_or(0) {
            0 => None,
            vni if vni < VNI_END => Some(vni),
            vni => {
                return Err(Error::invalid(object(), format!("its VXLAN identifier {vni} has more than 24 bits"), "let this side choose"));
            }
        };
        let odd = wants_odd(&offer);
        let vni = self.vnis().reserve(&draft.connection.id, given, odd, |below| self.issuer.random(below));
        let full =
            || Error::new(Kind::Exhausted, object(), "no VXLAN identifier is free on this node", "close connections that are not needed");
        offer.set(params::VNI, vni.ok_or_else(full)?);
        let mtu = self.tunnel_mtu().min(offer.parse(params::MTU).filter(|mtu| *mtu > 0).unwrap_or(u32::MAX));
        offer.set(params::MTU, mtu);
        lower(&mut draft.connection.context.mtu, mtu);
        Ok(offer)
    }
    fn restore(&self, id: &ConnectionId, near: Option<&Mechanism>, _: Option<&Mechanism>) {
        if let Some(vni) = near.and_then(|near| near.parse::<u32>(params::VNI)).filter(|vni| (1..VNI_END).contains(vni)) {
            self.vnis().reserve(id, Some(vni), false, |_| 0);
        }
    }
    fn release(&self, id: &ConnectionId) {
        self.vnis().release(id);
    }
}

impl Offer for Vxlan {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Vxlan
    }
    fn class(&self) -> Class {
        Class::Remote
    }
    fn offer(&self, draft: &Draft, _before: Option<&Mechanism>) -> Option<Mechanism> {
        (draft.connection.payload == Payload::Ethernet).then(|| {
            Mechanism::new(Class::Remote, MechanismKind::Vxlan)
                .with(params::SRC_IP, self.tunnel_ip)
                .with(params::SRC_PORT, self.port)
                .with(params::MTU, self.tunnel_mtu())
        })
    }
    fn mtu(&self) -> Option<u32> {
        Some(self.tunnel_mtu())
    }
}

/// Lowers a largest packet; 0 means it was not known.
pub(crate) fn lower(mtu: &mut u32, to: u32) {
    if *mtu == 0 || *mtu > to {
        *mtu = to;
    }
}

/// Even when the source is not above the destination, odd otherwise. Addresses before rewriting count where their key is
/// present at all, even empty: an unreadable source is even, an unreadable destination odd.
fn wants_odd(mechanism: &Mechanism) -> bool {
    let address = |original: &str, plain: &str| {
        let text = mechanism.parameters.get(original).or_else(|| mechanism.parameters.get(plain));
        text.and_then(|text| text.parse::<IpAddr>().ok()).map(sixteen)
    };
    match (address(params::ORIG_SRC_IP, params::SRC_IP), address(params::ORIG_DST_IP, params::DST_IP)) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(src), Some(dst)) => src > dst,
    }
}

fn sixteen(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => Ipv6Addr::from(address.octets()),
    }
    .octets()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(i: u32) -> ConnectionId {
        ConnectionId::new(format!("c{i}")).unwrap()
    }

    #[test]
    fn identifiers_are_kept_unique_and_of_the_wanted_parity() {
        let mut pool = VniPool::default();
        let seed = std::cell::Cell::new(1u64);
        let random = |below: u64| {
            seed.set(seed.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
            (seed.get() >> 33) % below
        };
        let all: BTreeSet<u32> = (0..2000).map(|i| pool.reserve(&id(i), None, i % 2 == 1, random).unwrap()).collect();
        assert_eq!(all.len(), 2000);
        assert!(!all.contains(&0));
        let first = pool.reserve(&id(1), None, true, random).unwrap();
        assert_eq!(first % 2, 1);
        assert_eq!(pool.reserve(&id(1), Some(77), true, random), Some(77), "what a refresh says it has, holds");
        pool.release(&id(1));
        assert!(!pool.used.contains(&77) && !pool.used.contains(&first));
    }

    /// wire.md 7.4 and 9.4
    #[test]
    fn parity_follows_the_addresses_before_rewriting() {
        let odd = |pairs: &[(&str, &str)]| {
            let mechanism = pairs.iter().fold(Mechanism::new(Class::Remote, MechanismKind::Vxlan), |m, (key, value)| m.with(key, value));
            wants_odd(&mechanism)
        };
        assert!(!odd(&[("src_ip", "10.0.0.1"), ("dst_ip", "10.0.0.2")]));
        assert!(!odd(&[("src_ip", "10.0.0.1"), ("dst_ip", "10.0.0.1")]));
        assert!(odd(&[("src_ip", "10.0.0.2"), ("dst_ip", "10.0.0.1")]));
        assert!(!odd(&[("src_ip", "10.0.0.2"), ("dst_ip", "10.0.0.1"), ("orig_src_ip", "")]));
        assert!(odd(&[("src_ip", "10.0.0.1"), ("dst_ip", "10.0.0.2"), ("orig_dst_ip", "")]));
        assert!(odd(&[("src_ip", "fd00::2"), ("dst_ip", "10.0.0.1")]));
    }
}
