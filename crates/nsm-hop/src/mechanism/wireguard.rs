//! WIREGUARD: an encrypted IP tunnel between two nodes, its device inside the pod, a key pair of its own for each connection.

use super::{Accept, Offer, lower};
use crate::{
    kernel::{PublicKey, TunnelKey, UnderlayMtu, WIREGUARD_OVERHEAD},
    role::Draft,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use nsm_api::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// The key pair of a connection: always the same for the same one, also after a restart.
pub type TunnelKeys = Arc<dyn Fn(&ConnectionId) -> TunnelKey + Send + Sync>;

/// Ports of one node's tunnels, from the first on, where each needs one of its own.
pub const MAX_PORTS: u16 = 4096;

/// Which port a tunnel has.
#[derive(Clone)]
pub enum Ports {
    /// All the same one: who makes them tells packets apart by what is in them.
    Shared(u16),
    /// Each one of its own, from a first one on.
    Each(Arc<Mutex<PortPool>>),
}

/// Ports in use, by connection.
pub struct PortPool {
    first: u16,
    held: BTreeMap<ConnectionId, u16>,
}

impl PortPool {
    /// Up to [`MAX_PORTS`] ports from `first` on.
    pub fn new(first: u16) -> PortPool {
        PortPool { first, held: BTreeMap::new() }
    }
    /// The port of `id`: the one it says it has if that is free, the one it holds, or the lowest free one.
    fn reserve(&mut self, id: &ConnectionId, given: Option<u16>) -> Option<u16> {
        let last = self.first.saturating_add(MAX_PORTS - 1);
        let used: BTreeSet<u16> = self.held.iter().filter(|(other, _)| *other != id).map(|(_, port)| *port).collect();
        let given = given.filter(|port| (self.first..=last).contains(port) && !used.contains(port));
        let port = given.or_else(|| self.held.get(id).copied()).or_else(|| (self.first..=last).find(|port| !used.contains(port)))?;
        self.held.insert(id.clone(), port);
        Some(port)
    }
}

impl Ports {
    fn of(&self, id: &ConnectionId, given: Option<u16>) -> Option<u16> {
        match self {
            Ports::Shared(port) => Some(*port),
            Ports::Each(pool) => pool.lock().unwrap_or_else(PoisonError::into_inner).reserve(id, given),
        }
    }
    fn release(&self, id: &ConnectionId) {
        if let Ports::Each(pool) = self {
            pool.lock().unwrap_or_else(PoisonError::into_inner).held.remove(id);
        }
    }
}

/// Both sides of the mechanism on one node.
#[derive(Clone)]
pub struct Wireguard {
    /// This node's tunnel address.
    pub tunnel_ip: IpAddr,
    /// This node's tunnel ports.
    pub ports: Ports,
    /// The underlay's largest packet.
    pub underlay_mtu: UnderlayMtu,
    /// Where keys come from.
    pub keys: TunnelKeys,
}

impl Wireguard {
    fn tunnel_mtu(&self) -> u32 {
        let overhead = if self.tunnel_ip.is_ipv4() { WIREGUARD_OVERHEAD.0 } else { WIREGUARD_OVERHEAD.1 };
        self.underlay_mtu.get().saturating_sub(overhead)
    }
}

/// A key as it travels.
pub(crate) fn key_text(key: PublicKey) -> String {
    BASE64_STANDARD.encode(key.0)
}

/// Reads a key parameter.
pub(crate) fn key_of(mechanism: &Mechanism, parameter: &str) -> Option<PublicKey> {
    let bytes = BASE64_STANDARD.decode(mechanism.get(parameter)?).ok()?;
    // The key of which everybody knows the private half.
    Some(PublicKey(bytes.try_into().ok()?)).filter(|key| key.0 != [0; 32])
}

impl Accept for Wireguard {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Wireguard
    }
    fn accept(&self, draft: &mut Draft, mut offer: Mechanism) -> Result<Mechanism> {
        let id = &draft.connection.id;
        let missing = |what: &str| {
            let reason = format!("its WireGuard offer has no usable {what}");
            Error::invalid(format!("connection {:?}", id.as_str()), reason, "check the other node's forwarder")
        };
        offer.parse::<IpAddr>(params::SRC_IP).ok_or_else(|| missing("source address"))?;
        offer.parse::<u16>(params::SRC_PORT).filter(|port| *port > 0).ok_or_else(|| missing("source port"))?;
        key_of(&offer, params::SRC_PUBLIC_KEY).ok_or_else(|| missing("key"))?;
        let full = || {
            let reason = format!("all {MAX_PORTS} ports for encrypted tunnels of this node are in use");
            Error::new(Kind::Exhausted, format!("connection {:?}", id.as_str()), reason, "close connections that are not needed")
        };
        let port = self.ports.of(id, offer.parse(params::DST_PORT)).ok_or_else(full)?;
        offer.set(params::DST_IP, self.tunnel_ip);
        offer.set(params::DST_PORT, port);
        offer.set(params::DST_PUBLIC_KEY, key_text((self.keys)(id).public));
        let mtu = self.tunnel_mtu().min(offer.parse(params::MTU).filter(|mtu| *mtu > 0).unwrap_or(u32::MAX));
        offer.set(params::MTU, mtu);
        lower(&mut draft.connection.context.mtu, mtu);
        Ok(offer)
    }
    fn restore(&self, id: &ConnectionId, near: Option<&Mechanism>, far: Option<&Mechanism>) {
        let ours = near.and_then(|near| near.parse(params::DST_PORT)).or_else(|| far?.parse(params::SRC_PORT));
        if ours.is_some() {
            self.ports.of(id, ours);
        }
    }
    fn release(&self, id: &ConnectionId) {
        self.ports.release(id);
    }
}

impl Offer for Wireguard {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Wireguard
    }
    fn class(&self) -> Class {
        Class::Remote
    }
    fn offer(&self, draft: &Draft, before: Option<&Mechanism>) -> Option<Mechanism> {
        if draft.connection.payload == Payload::Ethernet {
            return None;
        }
        let before = before.filter(|before| before.kind == MechanismKind::Wireguard);
        let port = self.ports.of(&draft.connection.id, before.and_then(|before| before.parse(params::SRC_PORT)))?;
        let offer = Mechanism::new(Class::Remote, MechanismKind::Wireguard)
            .with(params::SRC_IP, self.tunnel_ip)
            .with(params::SRC_PORT, port)
            .with(params::SRC_PUBLIC_KEY, key_text((self.keys)(&draft.connection.id).public))
            .with(params::MTU, self.tunnel_mtu());
        Some(offer)
    }
    fn again(&self, draft: &Draft, mut agreed: Mechanism) -> Mechanism {
        // The same as before, unless this process has started without its former keys.
        agreed.set(params::SRC_PUBLIC_KEY, key_text((self.keys)(&draft.connection.id).public));
        agreed
    }
    fn mtu(&self) -> Option<u32> {
        Some(self.tunnel_mtu())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wireguard(ip: &str, seed: u8) -> Wireguard {
        let keys = move |id: &ConnectionId| TunnelKey { public: PublicKey([seed ^ id.as_str().len() as u8; 32]), private: None };
        Wireguard {
            tunnel_ip: ip.parse().unwrap(),
            ports: Ports::Shared(51820),
            underlay_mtu: UnderlayMtu::new(1500),
            keys: Arc::new(keys),
        }
    }
    fn draft(payload: Payload) -> Draft {
        let mut connection = Connection::new(ConnectionId::new("c1").unwrap(), "svc".parse().unwrap());
        connection.payload = payload;
        Draft { connection, preferences: vec![], files: Files::default() }
    }

    /// wire.md 7.5, 7.7, E-22
    #[test]
    fn both_sides_agree_on_addresses_keys_and_the_smaller_size() {
        let (near, far) = (wireguard("10.0.0.1", 5), Wireguard { underlay_mtu: UnderlayMtu::new(1400), ..wireguard("10.0.0.2", 6) });
        assert!(near.offer(&draft(Payload::Ethernet), None).is_none(), "frames do not fit into an IP tunnel");
        let mut asked = draft(Payload::Ip);
        let offer = near.offer(&asked, None).unwrap();
        let agreed = far.accept(&mut asked, offer.clone()).unwrap();
        let get = |key: &str| agreed.get(key).unwrap();
        assert_eq!((get(params::SRC_IP), get(params::DST_IP)), ("10.0.0.1", "10.0.0.2"));
        assert_eq!((get(params::SRC_PORT), get(params::DST_PORT), get(params::MTU)), ("51820", "51820", "1340"));
        assert_eq!(asked.connection.context.mtu, 1340);
        assert_eq!(key_of(&agreed, params::DST_PUBLIC_KEY).unwrap(), (far.keys)(&asked.connection.id).public);
        assert_eq!(far.accept(&mut asked, agreed.clone()).unwrap(), agreed, "a refresh changes nothing");
        assert_eq!(wireguard("fd00::1", 1).tunnel_mtu(), 1420);
    }

    /// The kernel shares no port between devices.
    #[test]
    fn ports_of_their_own_are_kept_given_back_and_run_out() {
        let near = Wireguard { ports: Ports::Each(Arc::new(Mutex::new(PortPool::new(61000)))), ..wireguard("10.0.0.1", 5) };
        let draft_of = |id: &str| {
            let mut draft = draft(Payload::Ip);
            draft.connection.id = ConnectionId::new(id).unwrap();
            draft
        };
        let port = |id: &str, before: Option<&Mechanism>| near.offer(&draft_of(id), before)?.parse::<u16>(params::SRC_PORT);
        assert_eq!((port("a", None), port("b", None), port("a", None)), (Some(61000), Some(61001), Some(61000)));
        near.release(&ConnectionId::new("a").unwrap());
        assert_eq!(port("c", None), Some(61000));
        // After a restart of this process: what the path says it has, holds, unless somebody else has it now.
        let says = |port: u16| Mechanism::new(Class::Remote, MechanismKind::Wireguard).with(params::SRC_PORT, port);
        assert_eq!((port("d", Some(&says(61007))), port("e", Some(&says(61007)))), (Some(61007), Some(61002)));
        for i in 4..usize::from(MAX_PORTS) {
            assert!(port(&format!("x{i}"), None).is_some());
        }
        assert_eq!(port("one-more", None), None);
    }

    /// T1
    #[test]
    fn offers_that_cannot_work_are_refused() {
        let far = wireguard("10.0.0.2", 6);
        let good = wireguard("10.0.0.1", 5).offer(&draft(Payload::Ip), None).unwrap();
        for (key, value) in [
            (params::SRC_IP, "nonsense"),
            (params::SRC_PORT, "0"),
            (params::SRC_PORT, "65536"),
            (params::SRC_PUBLIC_KEY, ""),
            (params::SRC_PUBLIC_KEY, "c2hvcnQ="),
            (params::SRC_PUBLIC_KEY, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        ] {
            let error = far.accept(&mut draft(Payload::Ip), good.clone().with(key, value)).unwrap_err();
            assert_eq!(error.kind, Kind::Invalid, "{error}");
        }
    }
}
