//! KERNEL: an interface in the network namespace of each end. The forwarder makes it; the ends only say where.

use super::{Accept, Offer};
use crate::{
    kernel::{IfName, MAX_IFNAME_BYTES, Netns},
    role::Draft,
};
use nsm_api::*;

/// The forwarder's side towards a client: the client's namespace must have come along, the name may be given.
pub struct KernelLeg;

impl Accept for KernelLeg {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Kernel
    }
    fn accept(&self, draft: &mut Draft, mut offer: Mechanism) -> Result<Mechanism> {
        if offer.file(&draft.files).is_none() {
            let object = format!("connection {:?}", draft.connection.id.as_str());
            let reason = "the network namespace of its client did not come along";
            return Err(Error::invalid(object, reason, "connect to the manager over its unix socket and send the namespace's descriptor"));
        }
        match offer.get(params::NAME) {
            Some(name) => drop(IfName::new(name)?),
            None => offer.set(params::NAME, service_interface_name(&draft.connection.network_service, &draft.connection.id)),
        }
        Ok(offer)
    }
}

/// An endpoint's side: its own namespace, and a name for this connection's interface there.
pub struct KernelEnd(pub Netns);

impl Accept for KernelEnd {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Kernel
    }
    fn accept(&self, draft: &mut Draft, mut offer: Mechanism) -> Result<Mechanism> {
        place(&mut offer, &self.0, &mut draft.files);
        match offer.get(params::NAME) {
            Some(name) => drop(IfName::new(name)?),
            None => offer.set(params::NAME, endpoint_interface_name(&draft.connection.network_service, &draft.connection.id)),
        }
        Ok(offer)
    }
}

/// A forwarder's offer to an endpoint: the endpoint fills in where and how it is called.
pub struct KernelOffer;

impl Offer for KernelOffer {
    fn kind(&self) -> MechanismKind {
        MechanismKind::Kernel
    }
    fn class(&self) -> Class {
        Class::Local
    }
    fn offer(&self, _: &Draft, _: Option<&Mechanism>) -> Option<Mechanism> {
        Some(Mechanism::new(Class::Local, MechanismKind::Kernel))
    }
}

/// What a process offers that wants an interface in its own namespace: a client, or the far side of a passthrough endpoint.
pub fn own_kernel(netns: &Netns, name: Option<&str>, files: &mut Files) -> Mechanism {
    let mut mechanism = Mechanism::new(Class::Local, MechanismKind::Kernel);
    place(&mut mechanism, netns, files);
    if let Some(name) = name {
        mechanism.set(params::NAME, name);
    }
    mechanism
}

fn place(mechanism: &mut Mechanism, netns: &Netns, files: &mut Files) {
    mechanism.set(params::INODE_URL, netns.key);
    if let Some(file) = &netns.file {
        files.insert(netns.key, file.clone());
    }
}

/// A client's interface when it names none: ten characters of the service, a dash, four that are this connection's own.
pub fn service_interface_name(service: &ServiceName, id: &ConnectionId) -> String {
    generated(service, id, 10)
}

/// An endpoint's interface: it may have thousands, so more of the name is the connection's own.
pub fn endpoint_interface_name(service: &ServiceName, id: &ConnectionId) -> String {
    generated(service, id, 6)
}

/// The same connection always gets the same name, so that a repeated Request makes no second interface.
fn generated(service: &ServiceName, id: &ConnectionId, keep: usize) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '.' || c == '_' { c } else { '_' };
    let mut name: String = service.as_str().chars().take(keep).map(safe).collect();
    name.push('-');
    // FNV-1a: stable over versions and machines, which the standard hasher does not promise.
    let mut hash =
        id.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    while name.len() < MAX_IFNAME_BYTES {
        name.push(char::from(DIGITS[(hash % 62) as usize]));
        hash = (hash / 62) ^ hash.rotate_left(23).wrapping_mul(0x0100_0000_01b3);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn generated_names_are_legal_distinct_and_stable() {
        let service = ServiceName::new("my service@domain").unwrap();
        let id = |i: u32| ConnectionId::new(format!("client-{i}")).unwrap();
        let names: BTreeSet<String> = (0..10_000).map(|i| endpoint_interface_name(&service, &id(i))).collect();
        assert_eq!(names.len(), 10_000);
        for name in &names {
            assert_eq!(IfName::new(name).unwrap().as_str().len(), MAX_IFNAME_BYTES);
        }
        assert_eq!(service_interface_name(&service, &id(1)), service_interface_name(&service, &id(1)));
        assert!(service_interface_name(&service, &id(1)).starts_with("my_service-"));
    }
}
