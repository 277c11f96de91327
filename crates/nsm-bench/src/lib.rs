//! `nsm bench`: what a wire carries beside a bare kernel device, what it costs to set one up, and what a registry costs.
//!
//! `wire`, `wireguard` and `setup` run against real processes of a lab that [`nsm_lab::inside`] brings up and takes away. `wire`
//! and `wireguard` alternate between a vWire and its peer (`turns`), so that whatever disturbs the machine disturbs both; `setup`
//! asks for connections as clients do and times every part. `registry` asks engines in this process. `row` is what comes out.
//!
//! Not here: any check of function (the lab has those), and any generator of load that is not a client.

#![forbid(unsafe_code)]

mod bare;
mod cli;
mod meter;
mod parts;
mod process;
mod program;
mod registry;
mod row;
mod setup;
mod stats;
mod turns;
mod wire;
mod wireguard;

use nsm_lab::client;

pub use cli::{BenchCommand, RegistryArgs, SetupArgs, WireArgs, WireguardArgs, cli};
