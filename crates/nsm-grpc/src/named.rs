//! Which files a message names. Works on messages as they arrive, so that their files are claimed even when the
//! message is refused afterwards.

use nsm_api::{
    InodeKey, params,
    proto::{connection as pc, networkservice as pn, registry as pr},
};
use std::collections::BTreeSet;

/// By all mechanisms of a Request.
pub(crate) fn in_request(request: &pn::NetworkServiceRequest) -> BTreeSet<InodeKey> {
    let mut keys = in_connection(&request.connection);
    keys.extend(request.mechanism_preferences.iter().filter_map(in_mechanism));
    keys
}

/// By the mechanism of a connection.
pub(crate) fn in_connection(connection: &pc::Connection) -> BTreeSet<InodeKey> {
    in_mechanism(&connection.mechanism).into_iter().collect()
}

/// By the URL of an endpoint.
pub(crate) fn in_endpoint(endpoint: &pr::NetworkServiceEndpoint) -> BTreeSet<InodeKey> {
    InodeKey::parse(&endpoint.url).into_iter().collect()
}

fn in_mechanism(mechanism: &pc::Mechanism) -> Option<InodeKey> {
    InodeKey::parse(mechanism.parameters.get(params::INODE_URL)?)
}
