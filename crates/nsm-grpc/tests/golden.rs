//! Messages as another implementation sends them: what we read and send on is what it said. See `golden/README.md`.
//!
//! Byte for byte, except where the other side wrote a map in its own order: there the messages are compared.
#![allow(clippy::unwrap_used)] // a test's helpers fail like its body

use buffa::Message;
use nsm_api::{
    Connection, ConnectionEvent, EndpointQuery, EndpointUpdate, Error, NetworkService, NetworkServiceEndpoint, Request, Selector,
    ServiceQuery, ServiceUpdate,
    proto::{connection as pc, networkservice as pn, registry as pr},
};

macro_rules! golden {
    ($name:literal) => {
        include_bytes!(concat!("golden/", $name, ".bin")).as_slice()
    };
}

/// Reads, converts to the domain type and back, and writes.
fn through<M, D>(golden: &[u8]) -> M
where
    M: Message + Default + Clone + PartialEq + From<D> + std::fmt::Debug,
    D: TryFrom<M, Error = Error>,
{
    let message = M::decode_from_slice(golden).unwrap();
    assert_eq!(message.encode_to_vec().len(), golden.len(), "the message itself is read whole");
    M::from(D::try_from(message).unwrap())
}

/// Nothing is added, nothing lost, nothing in another place.
fn unchanged<M, D>(golden: &[u8])
where
    M: Message + Default + Clone + PartialEq + From<D> + std::fmt::Debug,
    D: TryFrom<M, Error = Error>,
{
    assert_eq!(through::<M, D>(golden).encode_to_vec(), golden);
}

/// Nothing is added and nothing lost, but maps are in our order.
fn ordered_anew<M, D>(golden: &[u8])
where
    M: Message + Default + Clone + PartialEq + From<D> + std::fmt::Debug,
    D: TryFrom<M, Error = Error>,
{
    let again = through::<M, D>(golden);
    assert_eq!(again, M::decode_from_slice(golden).unwrap());
    assert_eq!(again.encode_to_vec().len(), golden.len());
}

#[test]
fn connections_pass_unchanged() {
    ordered_anew::<pn::NetworkServiceRequest, Request>(golden!("request-refresh"));
    unchanged::<pc::Connection, Connection>(golden!("request-answer"));
    unchanged::<pc::Connection, Connection>(golden!("close"));
}

#[test]
fn a_first_request_only_gains_the_contexts_that_endpoints_rely_on() {
    let mut expected = pn::NetworkServiceRequest::decode_from_slice(golden!("request-first")).unwrap();
    let connection = expected.connection.get_or_insert_default();
    connection.context.get_or_insert_default().ip_context.get_or_insert_default();
    assert_eq!(through::<pn::NetworkServiceRequest, Request>(golden!("request-first")), expected);
}

#[test]
fn what_monitors_say_passes_unchanged() {
    unchanged::<pc::MonitorScopeSelector, Selector>(golden!("monitor-selector-id"));
    unchanged::<pc::MonitorScopeSelector, Selector>(golden!("monitor-selector"));
    ordered_anew::<pc::ConnectionEvent, ConnectionEvent>(golden!("monitor-initial"));
    unchanged::<pc::ConnectionEvent, ConnectionEvent>(golden!("monitor-update"));
}

#[test]
fn registrations_pass_unchanged() {
    unchanged::<pr::NetworkService, NetworkService>(golden!("service-register"));
    unchanged::<pr::NetworkService, NetworkService>(golden!("service-register-answer"));
    unchanged::<pr::NetworkService, NetworkService>(golden!("service-unregister"));
    unchanged::<pr::NetworkServiceEndpoint, NetworkServiceEndpoint>(golden!("endpoint-register"));
    unchanged::<pr::NetworkServiceEndpoint, NetworkServiceEndpoint>(golden!("endpoint-register-answer"));
    unchanged::<pr::NetworkServiceEndpoint, NetworkServiceEndpoint>(golden!("endpoint-unregister"));
}

#[test]
fn questions_to_a_registry_and_answers_pass_unchanged() {
    unchanged::<pr::NetworkServiceQuery, ServiceQuery>(golden!("service-find"));
    unchanged::<pr::NetworkServiceResponse, ServiceUpdate>(golden!("service-found"));
    unchanged::<pr::NetworkServiceEndpointQuery, EndpointQuery>(golden!("endpoint-find"));
    unchanged::<pr::NetworkServiceEndpointResponse, EndpointUpdate>(golden!("endpoint-gone"));
}
