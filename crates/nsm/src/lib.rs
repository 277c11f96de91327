//! The program `nsm`: command line, settings, telemetry, shutdown, and the roles.
//!
//! [`settings`] turns flags, variables and a file into one checked configuration; [`roles`] puts the
//! parts of the other crates together; `commands` are the tools of a user; [`sdk`] is for endpoints of your own. Not here: anything a hop
//! decides, anything the kernel does.

#![forbid(unsafe_code)]

mod cli;
mod commands;
pub mod context;
pub mod exit;
mod journal;
pub mod metrics;
pub mod notify;
pub mod nsurl;
pub mod packet_engine;
pub mod private;
pub mod program;
pub mod roles;
pub mod sdk;
pub mod settings;
pub mod shutdown;
mod start;
pub mod telemetry;
pub mod watched;

pub use start::main;

/// Every subcommand that does something, in the order of `--help`.
fn programs() -> Vec<program::Program> {
    roles::all().into_iter().chain(commands::all()).collect()
}
