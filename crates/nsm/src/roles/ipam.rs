//! `nsm ipam`: lends prefixes to the endpoints of a distributed layer 3.

use super::process::{self, Common, DIAL_TIMEOUT, MAX_TOKEN_LIFETIME, Process, WORKLOAD_API};
use crate::{
    context::Context,
    settings::{Opt, Settings, Shape},
};
use ipnet::IpNet;
use nsm_api::*;
use nsm_endpoints::prefixes::{PrefixServer, Times};
use std::{path::PathBuf, sync::Arc};

/// Its settings.
pub const OPTIONS: &[Opt] = &[
    WORKLOAD_API,
    MAX_TOKEN_LIFETIME,
    DIAL_TIMEOUT,
    Opt::new("listen-on", "NSM_LISTEN_ON", "unix:///listen.on.socket", Shape::Targets, "Where it listens"),
    Opt::new("prefix", "NSM_PREFIX", "169.254.0.0/16", Shape::Text, "What it lends prefixes of"),
    Opt::new("client-prefix-len", "NSM_CLIENT_PREFIX_LEN", "24", Shape::Number(128), "Length of the prefixes"),
    Opt::new(
        "state-file",
        "NSM_STATE_FILE",
        "",
        Shape::File,
        "Keeps what is lent over restarts; empty: nowhere, and after each start fresh prefixes wait for the settling time",
    ),
    Opt::new("grace", "NSM_GRACE", "10m", Shape::Duration, "How long a prefix waits for its holder after a lost stream"),
    Opt::new(
        "settling",
        "NSM_SETTLING",
        "3s",
        Shape::Duration,
        "How long after a start without a state file only those get prefixes who name what they had",
    ),
];

/// `nsm ipam`
pub async fn run(mut settings: Settings, context: Context) -> Result<()> {
    let common = Common::read(&mut settings);
    let listen: Vec<Target> = settings.list("listen-on");
    let (all, length): (IpNet, u8) = (settings.text("prefix"), settings.text("client-prefix-len"));
    let times = Times { grace: settings.duration("grace"), settling: settings.duration("settling") };
    let file: Option<PathBuf> = settings.optional("state-file");
    settings.finish()?;

    let server = PrefixServer::open(all, length, times, file)?;
    let process = Process::start(&common, &context).await?;
    let served = process.serve_prefixes(listen, Arc::new(server), &context).await?;
    context.notify.ready();
    process::ended(served).await
}
