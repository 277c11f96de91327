//! The tools of a user: each asks, shows, and ends.

mod apply;
mod delete;
mod describe;
mod doctor;
mod export;
mod get;
mod mesh;
mod rules;
mod sim;
mod table;
mod watch;

use crate::program::Program;

/// Every tool, in the order of `--help`.
pub(crate) fn all() -> Vec<Program> {
    vec![
        Program::tool("apply", "Register services and endpoints from YAML files", apply::OPTIONS, apply::run),
        Program::tool("export", "Print the whole registry as YAML, which apply takes back", export::OPTIONS, export::run),
        Program::tool("get services", "List network services", get::REGISTRY_OPTIONS, get::services),
        Program::tool("get endpoints", "List endpoints", get::ENDPOINT_OPTIONS, get::endpoints),
        Program::tool("get connections", "List the connections that pass a manager", get::CONNECTION_OPTIONS, get::connections),
        Program::tool("get nodes", "List the managers that have registered something", get::REGISTRY_OPTIONS, get::nodes),
        Program::tool("get rules", "List what firewalls in this network namespace have decided", &[], rules::run),
        Program::tool("describe service", "Show a network service whole", describe::REGISTRY_OPTIONS, describe::service),
        Program::tool("describe endpoint", "Show an endpoint whole", describe::REGISTRY_OPTIONS, describe::endpoint),
        Program::tool(
            "describe connection",
            "Show a connection whole, by any of its ids",
            describe::CONNECTION_OPTIONS,
            describe::connection,
        ),
        Program::job("watch services", "Print network services and every change", get::REGISTRY_OPTIONS, watch::services),
        Program::job("watch endpoints", "Print endpoints and every change", get::ENDPOINT_OPTIONS, watch::endpoints),
        Program::job(
            "watch connections",
            "Print the connections of a manager and every change",
            get::CONNECTION_OPTIONS,
            watch::connections,
        ),
        Program::tool("delete service", "Remove network services from the registry", delete::OPTIONS, delete::services),
        Program::tool("delete endpoint", "Remove endpoints from the registry", delete::OPTIONS, delete::endpoints),
        Program::tool("doctor", "Say whether this machine can carry the mesh, and what to do if not", doctor::OPTIONS, doctor::run),
        Program::tool("sim run", "Play a topology with everything that can go wrong, in simulated time", sim::OPTIONS, sim::run),
        Program::tool("sim what-if", "Say what becomes of a topology when something happens to it", sim::WHAT_IF_OPTIONS, sim::what_if),
        Program::tool("sim script", "Play a script of a small domain, and show what it says", sim::SCRIPT_OPTIONS, sim::script),
    ]
}
