//! Names of a vL3 endpoint's clients, and its own: the name server in its pod.

use super::endpoint::Config;
use nsm_api::*;
use nsm_dns::{Resolver, Zone};
use nsm_endpoints::vl3::{Addresses, Names, Template};
use std::net::{Ipv4Addr, SocketAddr};
use tracing::warn;

/// A name server that has `zone`. Without one the network carries packets all the same.
async fn name_server(address: SocketAddr, zone: Zone) -> Option<Resolver> {
    let started = Resolver::start_with(address, zone.clone()).await;
    let started = match (started, address) {
        (Err(error), SocketAddr::V6(v6)) if v6.ip().is_unspecified() && error.kind == Kind::Kernel => {
            Resolver::start_with((Ipv4Addr::UNSPECIFIED, v6.port()).into(), zone).await // a pod without IPv6
        }
        (started, _) => started,
    };
    started.inspect_err(|error| warn!(%error, "clients of this endpoint have no names")).ok()
}

/// The workload at the beginning of a path, by the token that it gave its manager, which has verified it.
fn identity(connection: &Connection) -> Option<String> {
    connection.path.segments.first().and_then(|segment| nsm_policy::jwt::subject(&segment.token))
}

/// What the endpoint itself is called.
pub(super) struct OwnNames {
    pub(super) names: Names,
    pub(super) labels: Labels,
    pub(super) service: ServiceName,
    pub(super) id: SpiffeId,
}

impl OwnNames {
    pub(super) fn publish(&self) {
        self.names.publish_own(&self.labels, &self.service, self.id.as_str());
    }
}

/// The names of this endpoint's clients, where it can answer for them.
pub(super) async fn named(config: &Config, templates: Vec<Template>, addresses: &Addresses, listen: SocketAddr) -> Option<Names> {
    let zone = Zone::new(config.services.iter().map(ServiceName::as_str));
    let server = name_server(listen, zone.clone()).await?;
    Some(Names::new(addresses.clone(), templates, identity, (server, zone)))
}
