//! How stretches of a vWire are agreed: the side that answers an offer, and the side that makes one.

mod kernel;
mod vxlan;
mod wireguard;

pub use kernel::{KernelEnd, KernelLeg, KernelOffer, endpoint_interface_name, own_kernel, service_interface_name};
pub(crate) use vxlan::lower;
pub use vxlan::{VniPool, Vxlan};
pub(crate) use wireguard::key_of;
pub use wireguard::{MAX_PORTS, PortPool, Ports, TunnelKeys, Wireguard};

use crate::{
    journal::Agreed,
    role::{Draft, Reserve},
};
use nsm_api::*;

/// Answers offers of one kind.
pub trait Accept: Send + Sync {
    /// The kind it answers.
    fn kind(&self) -> MechanismKind;
    /// Completes an offer of the previous hop. The same connection gets the same answer.
    fn accept(&self, draft: &mut Draft, offer: Mechanism) -> Result<Mechanism>;
    /// A former process agreed on these for the connection, towards its client and towards its endpoint.
    fn restore(&self, _id: &ConnectionId, _near: Option<&Mechanism>, _far: Option<&Mechanism>) {}
    /// The connection has ended.
    fn release(&self, _id: &ConnectionId) {}
}

/// Makes offers of one kind to the next hop.
pub trait Offer: Send + Sync {
    /// The kind it offers.
    fn kind(&self) -> MechanismKind;
    /// Whether it joins places of one node or of two.
    fn class(&self) -> Class;
    /// An offer for this connection; `before` is what the two agreed on last time. `None` when it cannot carry the payload.
    fn offer(&self, draft: &Draft, before: Option<&Mechanism>) -> Option<Mechanism>;
    /// What the two agreed on last time, brought up to date.
    fn again(&self, _draft: &Draft, agreed: Mechanism) -> Mechanism {
        agreed
    }
    /// The largest inner packet it can carry, when it is smaller than a link's.
    fn mtu(&self) -> Option<u32> {
        None
    }
}

/// Offers in the order that an operator wants: the kinds of `priority` first, then the rest as they stand.
pub fn prioritised(mut offers: Vec<Box<dyn Offer>>, priority: &[MechanismKind]) -> Vec<Box<dyn Offer>> {
    let rank = |offer: &dyn Offer| priority.iter().position(|kind| *kind == offer.kind()).unwrap_or(priority.len());
    offers.sort_by_key(|offer| rank(offer.as_ref()));
    offers
}

/// Chooses the mechanism of the stretch towards the client: the one in use, or the first offer that anybody here can do.
pub struct Negotiate(pub Vec<Box<dyn Accept>>);

impl Negotiate {
    fn of(&self, kind: &MechanismKind) -> Option<&dyn Accept> {
        self.0.iter().find(|accept| accept.kind() == *kind).map(Box::as_ref)
    }
    fn unsupported(&self, draft: &Draft, offered: &[Mechanism]) -> Error {
        let names = |kinds: Vec<&str>| if kinds.is_empty() { "nothing".to_owned() } else { kinds.join(", ") };
        let offers = names(offered.iter().map(|offer| offer.kind.as_str()).collect());
        let ours: Vec<MechanismKind> = self.0.iter().map(|accept| accept.kind()).collect();
        let ours = names(ours.iter().map(MechanismKind::as_str).collect());
        let object = format!("connection {:?}", draft.connection.id.as_str());
        Error::new(
            Kind::Unsupported,
            object,
            format!("mechanism {offers} is not supported here, {ours} is"),
            "ask for a supported mechanism, for instance kernel://",
        )
    }
}

impl Reserve for Negotiate {
    fn reserve(&self, draft: &mut Draft) -> Result<()> {
        if let Some(current) = draft.connection.mechanism.clone() {
            let accept = self.of(&current.kind).ok_or_else(|| self.unsupported(draft, std::slice::from_ref(&current)))?;
            draft.connection.mechanism = Some(accept.accept(draft, current)?);
            return Ok(());
        }
        let mut last = None;
        for offer in draft.preferences.clone() {
            let Some(accept) = self.of(&offer.kind) else { continue };
            match accept.accept(draft, offer) {
                Ok(mechanism) => {
                    draft.connection.mechanism = Some(mechanism);
                    return Ok(());
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| self.unsupported(draft, &draft.preferences)))
    }
    fn restore(&self, Agreed { connection, sent, .. }: &Agreed) {
        let far = sent.as_ref().and_then(|sent| sent.connection.mechanism.as_ref());
        for accept in &self.0 {
            let kind = accept.kind();
            let of_kind = |mechanism: Option<&Mechanism>| mechanism.filter(|mechanism| mechanism.kind == kind).cloned();
            accept.restore(&connection.id, of_kind(connection.mechanism.as_ref()).as_ref(), of_kind(far).as_ref());
        }
    }
    fn release(&self, id: &ConnectionId) {
        for accept in &self.0 {
            accept.release(id);
        }
    }
}
