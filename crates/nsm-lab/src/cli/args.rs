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
