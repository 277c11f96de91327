//! The roles: each puts parts of the other crates together, reads its settings, and serves until it is told to stop.
//!
//! Composition only. What a role does with a Request is decided in `nsm-hop`.

use crate::program::Program;

/// Every role, in the order of `--help`.
pub fn all() -> Vec<Program> {
    // One line for each: Program::role("manager", "The manager of a node", manager::OPTIONS, manager::run)
    vec![]
}
