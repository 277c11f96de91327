//! What has passed over a connection's wire: asked from the kernel when somebody wants to know, and written into the
//! path at every refresh (E-23). Nothing is counted here, and nothing is asked while nobody looks.

use super::{Conn, Plan};
use crate::kernel::{Counters, Iface, Wire};
use nsm_api::*;
use std::collections::BTreeMap;
use tracing::debug;

/// The end of a wire, as seen from the hop that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Towards the client: this hop is its server.
    Server,
    /// Towards the endpoint: this hop is its client.
    Client,
}

impl Side {
    /// As metrics spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Side::Server => "server",
            Side::Client => "client",
        }
    }
}

/// One connection's counters, for those of its ends that are on this node.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The connection, by this hop's id.
    pub connection: ConnectionId,
    /// Its service.
    pub service: ServiceName,
    /// Its endpoint.
    pub endpoint: Option<EndpointName>,
    /// What passed at each end. Received is what the pod at that end received.
    pub ends: BTreeMap<Side, Counters>,
}

impl Conn {
    /// What has passed over the wire that is up.
    pub(super) async fn measure(&self) -> Option<Measured> {
        let plan = self.up.as_ref()?;
        let connection = &plan.connection;
        Some(Measured {
            connection: connection.id.clone(),
            service: connection.network_service.clone(),
            endpoint: connection.network_service_endpoint_name.clone(),
            ends: self.ends(plan).await,
        })
    }

    async fn ends(&self, plan: &Plan) -> BTreeMap<Side, Counters> {
        let ifaces: Vec<Iface> = plan.wires.now.iter().filter_map(link_of).flatten().cloned().collect();
        if ifaces.is_empty() {
            return BTreeMap::new();
        }
        match self.role.kernel.counters(&self.owner, &ifaces).await {
            Ok(counters) => ifaces.iter().zip(counters).filter_map(|(iface, counters)| Some((side(plan, iface), counters?))).collect(),
            Err(error) => {
                debug!(%error, "no counters");
                BTreeMap::new()
            }
        }
    }

    /// Writes interfaces and counters into this hop's own segment.
    pub(super) async fn note_metrics(&self, plan: &mut Plan) {
        let interfaces = interfaces(plan);
        // What is made just now has carried nothing yet.
        let ends = if self.up.is_some() { self.ends(plan).await } else { BTreeMap::new() };
        let path = &mut plan.connection.path;
        let Some(segment) = path.segments.get_mut(path.index as usize) else { return };
        segment.metrics.extend(interfaces);
        for (side, counters) in ends {
            // The hop's own view: what a pod sent is what the hop received from it.
            let values = [
                ("rx_packets", counters.tx_packets),
                ("rx_bytes", counters.tx_bytes),
                ("tx_packets", counters.rx_packets),
                ("tx_bytes", counters.rx_bytes),
                ("drops", counters.drops),
            ];
            segment.metrics.extend(values.map(|(name, value)| (format!("{}_{name}", side.as_str()), value.to_string())));
        }
    }
}

fn link_of(wire: &Wire) -> Option<Vec<&Iface>> {
    if let Wire::Link(link) = wire { Some(link.ifaces()) } else { None }
}

/// The client's end is the one that the mechanism towards the client names.
fn side(plan: &Plan, iface: &Iface) -> Side {
    let names = |mechanism: &Mechanism| {
        mechanism.kind == MechanismKind::Kernel
            && mechanism.inode() == Some(iface.netns.key)
            && mechanism.get(params::NAME) == Some(iface.name.as_str())
    };
    if plan.connection.mechanism.as_ref().is_some_and(names) { Side::Server } else { Side::Client }
}

/// `server_interface` and `client_interface`, as dashboards know them.
fn interfaces(plan: &Plan) -> Vec<(String, String)> {
    if plan.wires.now.is_empty() {
        return vec![];
    }
    let far = plan.sent.as_ref().and_then(|sent| sent.connection.mechanism.as_ref());
    let both = [(Side::Server, plan.connection.mechanism.as_ref()), (Side::Client, far)];
    let text = |mechanism: &Mechanism| format!("{}/{}", mechanism.kind, mechanism.get(params::NAME).unwrap_or("unknown"));
    both.into_iter().filter_map(|(side, mechanism)| Some((format!("{}_interface", side.as_str()), text(mechanism?)))).collect()
}
