//! The roles: each puts parts of the other crates together, reads its settings, and serves until it is told to stop.
//!
//! Composition only. What a role does with a Request is decided in `nsm-hop`.

pub mod authorize;
pub mod client;
mod direct;
pub mod endpoint;
mod engine;
pub mod firewall;
pub mod forwarder;
pub mod gateway;
pub mod guard;
pub mod identity;
mod ids;
pub mod ipam;
mod keep;
mod liveness;
pub mod manager;
mod names;
pub mod node;
pub mod packet;
pub mod process;
mod provider;
pub mod registration;
pub mod registry;
mod store;
pub mod supplier;
mod tunnels;
pub mod vl3;
mod vl3_names;

use crate::program::Program;

/// Every role, in the order of `--help`.
pub fn all() -> Vec<Program> {
    vec![
        Program::role("node", "Identity, registry, manager and forwarder of one node in one process", node::OPTIONS, node::run),
        Program::role("identity", "An authority that gives processes their SPIFFE identity", identity::OPTIONS, identity::run),
        Program::role("registry", "Services and endpoints of one domain", registry::OPTIONS, registry::run),
        Program::role("manager", "The control plane of one node", manager::OPTIONS, manager::run),
        Program::role("forwarder", "Makes the wires of one node", forwarder::OPTIONS, forwarder::run),
        Program::role("packet", "Carries encrypted packets where the kernel cannot", packet::OPTIONS, packet::run),
        Program::role("ipam", "Lends prefixes to the endpoints of a distributed layer 3", ipam::OPTIONS, ipam::run),
        Program::role("client", "Asks for network services and keeps them", client::OPTIONS, client::run),
        Program::role(
            "endpoint icmp-responder",
            "Gives clients addresses, answers pings, offers routes",
            endpoint::ICMP_RESPONDER,
            endpoint::icmp_responder,
        ),
        Program::role(
            "endpoint passthrough",
            "Joins each client to the next endpoint of the service",
            endpoint::PASSTHROUGH,
            endpoint::passthrough,
        ),
        Program::role(
            "endpoint firewall",
            "Joins each client to the next endpoint of the service as far as rules permit",
            firewall::OPTIONS,
            firewall::run,
        ),
        Program::role("endpoint router", "Routes to networks behind its pod, behind its own address", &gateway::ROUTER, gateway::router),
        Program::role(
            "endpoint vpn-gateway",
            "Routes to a network at the other end of a WireGuard tunnel",
            &gateway::VPN_GATEWAY,
            gateway::vpn_gateway,
        ),
        Program::role("endpoint supplier", "Starts an endpoint when somebody needs one", supplier::OPTIONS, supplier::run),
        Program::role("endpoint vl3", "One network for the clients of all endpoints of its service", vl3::OPTIONS, vl3::run),
    ]
}
