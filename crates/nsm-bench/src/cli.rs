//! The command `nsm bench ...`: what it takes and what it prints.

use crate::{
    registry,
    row::{json, table},
    setup, wire, wireguard,
};
use clap::{Args, Subcommand, builder::TypedValueParser};
use nsm_api::{Error, Kind, Result};
use std::{
    io::{ErrorKind, Write},
    path::PathBuf,
};

/// What `nsm bench` can measure.
#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    /// What a vWire carries, beside a bare kernel device: throughput, packet rate, round trip.
    Wire(WireArgs),
    /// What an encrypted vWire between nodes carries beside another program; what many cost.
    Wireguard(WireguardArgs),
    /// From Request to first packet: one at a time, many at once, memory, every part.
    Setup(SetupArgs),
    /// What a registry costs: Register, Find, changes to many watchers, memory, restart.
    Registry(RegistryArgs),
}

/// Arguments of `bench wire`.
#[derive(Clone, Debug, Args)]
pub struct WireArgs {
    /// One line of JSON instead of the table.
    #[arg(long)]
    pub json: bool,
    /// Length of one round on each side, seconds; the two sides take turns of a fifth of a second.
    #[arg(long, value_name = "S", default_value = "1", value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,
    /// Rounds of each figure; the median of all turns counts.
    #[arg(long, value_name = "N", default_value = "9", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
}

/// Arguments of `bench wireguard`.
#[derive(Clone, Debug, Args)]
pub struct WireguardArgs {
    /// One line of JSON instead of the table.
    #[arg(long)]
    pub json: bool,
    /// A WireGuard program to compare with, once or several times; inside the source tree wireguard-go, that of 2022 and
    /// gotatun are built when none is named. It is called as crates/nsm-packet/tests/wireguard-go/main.go is.
    #[arg(long, value_name = "PROGRAM")]
    pub peer: Vec<PathBuf>,
    /// Only the figures that have this in their name.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub only: String,
    /// Length of one round on each side, seconds; the two sides take turns of a fifth of a second.
    #[arg(long, value_name = "S", default_value = "1", value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,
    /// Rounds of each figure; the median of all turns counts.
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Encrypted vWires that one node holds at the same time; 0 for leaving that out.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(0..=2000))]
    pub devices: u32,
}

/// Arguments of `bench setup`.
#[derive(Clone, Debug, Args)]
pub struct SetupArgs {
    /// One line of JSON instead of the table.
    #[arg(long)]
    pub json: bool,
    /// Clients that ask at the same moment.
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=900))]
    pub clients: u32,
    /// Connections made one after the other, of each kind.
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub samples: u32,
    /// vWires that one node holds at the same time.
    #[arg(long, value_name = "N", default_value = "500", value_parser = clap::value_parser!(u32).range(1..=900))]
    pub wires: u32,
}

/// Arguments of `bench registry`.
#[derive(Clone, Debug, Args)]
pub struct RegistryArgs {
    /// One line of JSON instead of the table.
    #[arg(long)]
    pub json: bool,
    /// How many endpoints are registered; several counts show how it grows.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "10000,100000", value_parser = endpoints)]
    pub endpoints: Vec<usize>,
    /// Watchers of one service that are all told of each change to it.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1000,5000", value_parser = watchers())]
    pub watchers: Vec<usize>,
    /// Nodes, each with an endpoint and a forwarder, among which is chosen; the same is done with a tenth of them.
    #[arg(long, value_name = "N", default_value = "5000", value_parser = watchers())]
    pub nodes: usize,
    /// Writes a picture (SVG) of how the figures grow with the number of endpoints.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

fn watchers() -> impl TypedValueParser<Value = usize> {
    clap::value_parser!(u16).range(10..=10_000).map(usize::from)
}

fn endpoints(text: &str) -> std::result::Result<usize, String> {
    let allowed = |count: &usize| count.is_multiple_of(100) && (100..=500_000).contains(count);
    text.parse().ok().filter(allowed).ok_or_else(|| "must be a multiple of 100 up to 500000".to_owned())
}

/// Measures what was asked and prints it. Call it while the process has one thread and no async runtime: without root
/// it enters namespaces of its own, which the kernel allows only then.
pub fn cli(command: BenchCommand) -> Result<()> {
    let (rows, as_json) = match command {
        BenchCommand::Wire(args) => (wire::run(&args)?, args.json),
        BenchCommand::Wireguard(args) => (wireguard::run(&args)?, args.json),
        BenchCommand::Setup(args) => (setup::run(&args)?, args.json),
        BenchCommand::Registry(args) => (registry::run(&args)?, args.json),
    };
    say(&if as_json { json(&rows) } else { table(&rows) })
}

/// Prints text and a line end. A reader that has seen enough is no error.
fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(problem) if problem.kind() != ErrorKind::BrokenPipe => {
            Err(Error::new(Kind::Kernel, "standard output", problem.to_string(), "check where the output goes"))
        }
        _ => Ok(()),
    }
}
