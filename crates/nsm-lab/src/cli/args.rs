//! The arguments of `nsm lab ...`.

use clap::{Args, Subcommand};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

/// What `nsm lab` can do.
#[derive(Clone, Debug, Subcommand)]
pub enum LabCommand {
    /// Bring each example up, run its checks, show a table, take everything away.
    Run(RunArgs),
    /// Bring a lab up and leave it running.
    Up(UpArgs),
    /// End labs and remove all they made.
    Down(DownArgs),
    /// List the processes of running labs.
    Ps(PsArgs),
    /// Run a command inside a pod, node or host of a running lab.
    Exec(ExecArgs),
    /// Draw a lab, with its vWires while it runs.
    Graph(GraphArgs),
    /// Become another program, which ends with the lab.
    #[command(hide = true)]
    Start(StartArgs),
    /// Every role meets every fault, alone and in pairs, under traffic; a table of what was lost.
    Chaos(ChaosArgs),
    /// How long until packets pass by another endpoint when one dies or falls silent
    Heals(HealsArgs),
    /// Create and close vWires for a long time under faults: nothing may grow
    Soak(SoakArgs),
    /// Show what a process here sees: interfaces, addresses, routes, and whether a peer answers.
    Look(LookArgs),
}

/// Arguments of `lab run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Lab files, or directories of them.
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// Only labs whose name contains this.
    #[arg(long)]
    pub filter: Option<String>,
    /// End with one line of JSON instead of the table.
    #[arg(long)]
    pub json: bool,
    /// Keep the directories with the logs.
    #[arg(long)]
    pub keep: bool,
}

/// Arguments of `lab up`.
#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// The lab file.
    pub path: PathBuf,
    /// Stay until Ctrl-C instead of going to the background.
    #[arg(long)]
    pub foreground: bool,
    /// Keep the directory with the logs afterwards.
    #[arg(long)]
    pub keep: bool,
}

/// Arguments of `lab down`.
#[derive(Clone, Debug, Args)]
pub struct DownArgs {
    /// Lab names or files; all that run when none is given.
    pub labs: Vec<String>,
}

/// Arguments of `lab ps`.
#[derive(Clone, Debug, Args)]
pub struct PsArgs {
    /// Lab names or files; all that run when none is given.
    pub labs: Vec<String>,
    /// A list of objects.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `lab exec`.
#[derive(Clone, Debug, Args)]
pub struct ExecArgs {
    /// The lab's name or file; needed only when several running labs have such a pod.
    #[arg(long)]
    pub lab: Option<String>,
    /// Pod, node or host.
    pub pod: String,
    /// The command and its arguments.
    #[arg(required = true, last = true)]
    pub command: Vec<String>,
}

/// Arguments of `lab graph`.
#[derive(Clone, Debug, Args)]
pub struct GraphArgs {
    /// The lab file.
    pub path: PathBuf,
    /// An object instead of Mermaid.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `lab start`, by which a lab starts a program of somebody else, or this one with a file of its own, where
/// `--netns` says.
#[derive(Clone, Debug, Args)]
pub struct StartArgs {
    /// What it sees as /etc/resolv.conf.
    #[arg(long)]
    pub resolv_conf: Option<PathBuf>,
    /// The program and its arguments.
    #[arg(required = true, last = true)]
    pub command: Vec<PathBuf>,
}

/// Arguments of `lab chaos`.
#[derive(Clone, Debug, Args)]
pub struct ChaosArgs {
    /// Decides which process of a role it is, the order, and the times.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// vWires that carry packets meanwhile.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(8..=2000))]
    pub vwires: u32,
    /// Every role alone, and no pairs.
    #[arg(long)]
    pub alone: bool,
    /// Only cases with all of these words, for instance `kill,client-0`; each is as in the whole matrix.
    #[arg(long, value_delimiter = ',')]
    pub filter: Vec<String>,
    /// Write chaos.md, chaos.svg and chaos.json into this directory.
    #[arg(long, value_name = "DIR")]
    pub write: Option<PathBuf>,
    /// One line of JSON instead of the table.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `lab heals`.
#[derive(Clone, Debug, Args)]
pub struct HealsArgs {
    /// Heals of each kind at each round trip.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// Round trips between two nodes, milliseconds.
    #[arg(long, value_delimiter = ',', default_value = "0.2,20,100")]
    pub rtt: Vec<f64>,
    /// Instead: no heal at all for so many minutes over links that lose five percent, with jitter.
    #[arg(long, value_name = "MINUTES")]
    pub lossy: Option<f64>,
    /// The chance that the links play with.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// One line of JSON instead of the table.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `lab soak`.
#[derive(Clone, Debug, Args)]
pub struct SoakArgs {
    /// How long.
    #[arg(long, default_value_t = 30.0)]
    pub minutes: f64,
    /// vWires that are created in a second; each is closed a little later.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub rate: u32,
    /// Decides which faults there are and when.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// One line of JSON instead of the table.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `lab look`.
#[derive(Clone, Debug, Args)]
pub struct LookArgs {
    /// Send an echo there.
    #[arg(long)]
    pub ping: Option<IpAddr>,
    /// Expect a TCP echo server there.
    #[arg(long)]
    pub tcp: Option<SocketAddr>,
    /// An object.
    #[arg(long)]
    pub json: bool,
}
