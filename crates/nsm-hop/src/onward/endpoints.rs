//! A forwarder's choice of an endpoint, and its offer to the next hop.

use super::{avoid::Avoided, lookup, take_over_but_mechanism};
use crate::{
    mechanism::Offer,
    role::{Candidate, Draft, Issuer, Next, Onward, Sent},
    select::{self, RoundRobin},
};
use async_trait::async_trait;
use nsm_api::*;
use std::{collections::BTreeSet, sync::Arc};
use tracing::debug;

/// Finds endpoints by name, or by matching the client's labels.
pub struct Endpoints {
    registry: Arc<dyn RegistryApi>,
    offers: Vec<Box<dyn Offer>>,
    turns: RoundRobin,
    avoided: Avoided,
    issuer: Arc<dyn Issuer>,
}

#[async_trait]
impl Onward for Endpoints {
    async fn next(&self, draft: &Draft, before: Option<&Sent>) -> Result<Next> {
        let found = match &draft.connection.network_service_endpoint_name {
            Some(name) => self.named(draft, name).await,
            None => self.matched(draft, before).await,
        };
        // Losing the registry, or a registry that has lost its memory, freezes the choice; it does not undo it.
        match (found, before.map(|sent| &sent.candidate)) {
            (Err(error), Some(in_use)) if same_endpoint(&draft.connection, in_use) => {
                debug!(%error, "the endpoint in use stays");
                Ok(Next::Hops(vec![in_use.clone()]))
            }
            (found, _) => found,
        }
    }

    fn request(&self, draft: &Draft, candidate: &Candidate, before: Option<&Sent>) -> Result<Request> {
        let mut draft = draft.clone();
        if candidate.payload != Payload::Unset {
            draft.connection.payload = candidate.payload.clone();
        }
        let class = if candidate.target.is_local() { Class::Local } else { Class::Remote };
        // What was agreed with another node means nothing to this one: its identifier may be somebody else's there, and the node
        // that was left still sends to it. A local endpoint that restarted has another socket.
        let same = |sent: &&Sent| sent.candidate.target == candidate.target || class == Class::Local;
        let agreed = before.filter(same).and_then(|sent| sent.connection.mechanism.clone()).filter(|mechanism| mechanism.class == class);
        let able = self.offers.iter().filter(|offer| offer.class() == class);
        let agreed = agreed.map(|agreed| match self.offers.iter().find(|offer| offer.kind() == agreed.kind) {
            Some(offer) => offer.again(&draft, agreed),
            None => agreed,
        });
        let offers: Vec<(Mechanism, Option<u32>)> =
            able.filter_map(|offer| Some((offer.offer(&draft, agreed.as_ref())?, offer.mtu()))).collect();
        if offers.is_empty() {
            return Err(nothing_to_offer(&draft.connection, &class));
        }
        let mut connection = draft.connection;
        if let Some(mtu) = offers.iter().filter_map(|(_, mtu)| *mtu).min() {
            crate::mechanism::lower(&mut connection.context.mtu, mtu);
        }
        connection.network_service_endpoint_name.clone_from(&candidate.registered);
        connection.mechanism = agreed;
        // Only what the next hop itself sent goes back to it; the client's namespace stays here.
        let mut files = Files::default();
        if let Some((key, sent)) = connection.mechanism.as_ref().and_then(Mechanism::inode).zip(before)
            && let Some(file) = sent.files.get(key)
        {
            files.insert(key, file.clone());
        }
        Ok(Request { connection, preferences: offers.into_iter().map(|(offer, _)| offer).collect(), files })
    }

    fn accept(&self, draft: &mut Draft, answer: &Answer) {
        take_over_but_mechanism(draft, answer);
    }

    fn asked(&self, candidate: &Candidate, agreed: std::result::Result<(), &Error>) {
        self.avoided.asked(candidate, agreed);
    }

    async fn moved(&self, candidate: &Candidate) -> Option<Candidate> {
        lookup::moved(self.registry.as_ref(), candidate).await
    }
}

impl Endpoints {
    /// `registry` is as the node's manager shows it: local endpoints with their sockets. `offers` is what this forwarder
    /// can make, best first; `issuer` has the wall clock for expired records.
    pub fn new(registry: Arc<dyn RegistryApi>, offers: Vec<Box<dyn Offer>>, issuer: Arc<dyn Issuer>) -> Endpoints {
        Endpoints { registry, offers, turns: RoundRobin::default(), avoided: Avoided::default(), issuer }
    }

    async fn named(&self, draft: &Draft, name: &EndpointName) -> Result<Next> {
        let payload = match draft.connection.payload {
            Payload::Unset => lookup::service(self.registry.as_ref(), &draft.connection).await?.payload,
            ref payload => payload.clone(),
        };
        let found = lookup::named(self.registry.as_ref(), name).await?;
        let gone = || {
            let object = format!("endpoint {:?}", name.as_str());
            Error::new(Kind::NotFound, object, "is not registered (any more)", "start it, or ask without naming an endpoint")
        };
        Ok(Next::Hops(vec![candidate(found.ok_or_else(gone)?, &payload)?]))
    }

    async fn matched(&self, draft: &Draft, before: Option<&Sent>) -> Result<Next> {
        let connection = &draft.connection;
        let (registry, now) = (self.registry.as_ref(), self.issuer.now());
        let service = lookup::service(registry, connection).await?;
        let lives = |endpoint: &NetworkServiceEndpoint| endpoint.expiration_time.is_none_or(|end| end > now);
        // Who could not be reached just now is not chosen, so that a lesser rule may apply; unless there is nobody else.
        let well = |endpoint: &NetworkServiceEndpoint| lives(endpoint) && !self.avoided.avoids(endpoint);
        let mut selection = lookup::matched(registry, &service, &connection.labels, well).await?;
        // The way that was left is still in the path. Who was on it may be the one that carries nothing: last choice.
        let reselects = connection.state == State::ReselectRequested;
        let behind = connection.path.segments.iter().skip(connection.path.index as usize + 1).filter(|_| reselects);
        let left: BTreeSet<&str> = behind.map(|segment| segment.name.as_str()).collect();
        if selection.candidates.iter().all(|found| left.contains(found.endpoint.0.name.as_str())) {
            selection = lookup::matched(registry, &service, &connection.labels, lives).await?;
        }
        debug!(reasons = ?selection.reasons, "endpoints matched");
        if selection.candidates.is_empty() {
            let labels: Vec<String> = connection.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let reason = format!("no endpoint for a client with labels {{{}}}: {}", labels.join(","), selection.reasons.join("; "));
            let object = format!("network service {:?}", service.name.as_str());
            return Err(Error::new(
                Kind::NotFound,
                object,
                reason,
                "start an endpoint with the wanted labels, or change the service's matches",
            ));
        }
        // Several destinations may yield the same one.
        let mut names = BTreeSet::new();
        let in_order = select::order(&selection.candidates, self.turns.next(&service.name));
        let once = in_order.into_iter().filter(|(endpoint, _)| names.insert(&endpoint.name));
        let mut candidates: Vec<Candidate> = once.map(|found| candidate(found.clone(), &service.payload)).collect::<Result<_>>()?;
        if reselects {
            candidates.sort_by_key(|candidate| candidate.registered.as_ref().is_some_and(|name| left.contains(name.as_str())));
        } else if let Some(before) = before {
            // A Request that comes again moves nobody, also when the registry does not know the endpoint at the moment.
            let known = candidates.iter().position(|candidate| candidate.registered == before.candidate.registered);
            let in_use = known.map_or_else(|| before.candidate.clone(), |at| candidates.remove(at));
            candidates.insert(0, in_use);
        }
        Ok(Next::Hops(candidates))
    }
}

/// Whether the Request may be answered by the endpoint in use: it names that, or none.
fn same_endpoint(connection: &Connection, in_use: &Candidate) -> bool {
    connection.network_service_endpoint_name.as_ref().is_none_or(|name| in_use.registered.as_ref() == Some(name))
}

fn candidate((endpoint, socket): (NetworkServiceEndpoint, Files), payload: &Payload) -> Result<Candidate> {
    Ok(Candidate { target: Target::parse(&endpoint.url)?, socket, registered: Some(endpoint.name), payload: payload.clone() })
}

fn nothing_to_offer(connection: &Connection, class: &Class) -> Error {
    let (payload, object) = (connection.payload.as_str(), format!("connection {:?}", connection.id.as_str()));
    let (place, fix) = match class {
        Class::Remote => (
            "an endpoint on another node",
            "give the service the payload ETHERNET, or start the forwarder with --tunnel-ip and a mechanism for this payload",
        ),
        Class::Local | Class::Other(_) => ("an endpoint on this node", "use a forwarder that can"),
    };
    Error::new(Kind::Unsupported, object, format!("this forwarder has no mechanism for payload {payload} to {place}"), fix)
}
