//! `nsm identity`: an authority of our own that serves the SPIFFE Workload API.

use crate::{
    context::Context,
    settings::{Opt, Settings, Shape},
};
use nsm_api::{Error, Result, Target};
use nsm_identity::{Authority, Identity, WorkloadSocket};
use std::path::PathBuf;

/// Settings of `nsm identity`.
pub const OPTIONS: &[Opt] = &[
    SOCKET,
    TRUST_DOMAIN,
    AUTHORITY_DIR,
    Opt::new("workload", "", "", Shape::List, "NAME=SOCKET: a socket that gives spiffe://<trust domain>/NAME to whoever may open it"),
];
/// Where every process of the machine may ask.
pub(super) const SOCKET: Opt =
    Opt::new("socket", "NSM_WORKLOAD_SOCKET", "unix:///run/nsm/workload.sock", Shape::Target, "Socket that gives an identity by user id");
/// Whose identities.
pub(super) const TRUST_DOMAIN: Opt =
    Opt::new("trust-domain", "NSM_TRUST_DOMAIN", "nsm.local", Shape::Text, "Trust domain of the authority");
/// Where the root key is kept.
pub(super) const AUTHORITY_DIR: Opt =
    Opt::new("authority-dir", "NSM_AUTHORITY_DIR", "", Shape::Directory, "Where the root key is kept over restarts; empty: in memory only");

/// Serves until it is told to stop.
pub async fn run(mut settings: Settings, context: Context) -> Result<()> {
    let (socket, domain, dir): (Target, String, Option<PathBuf>) =
        (settings.text("socket"), settings.text("trust-domain"), settings.optional("authority-dir"));
    let workloads: Vec<String> = settings.list("workload");
    settings.finish()?;

    let authority = authority(&domain, dir)?;
    let mut sockets = vec![WorkloadSocket::new(socket_path(&socket)?, Identity::PeerUser)];
    for workload in &workloads {
        let bad =
            || Error::invalid(format!("--workload {workload:?}"), "is not NAME=SOCKET", "write for instance client=/run/nsm/client.sock");
        let (name, path) = workload.split_once('=').ok_or_else(bad)?;
        let id = authority.id(&name.split('/').collect::<Vec<_>>())?;
        sockets.push(WorkloadSocket::new(path, Identity::Fixed(id)));
    }
    let shutdown = context.shutdown.clone();
    let serving = authority.serve(sockets, async move { shutdown.started().await })?;
    context.notify.ready();
    serving.await
}

/// The authority, with the root that it had before where it keeps one.
pub(super) fn authority(domain: &str, dir: Option<PathBuf>) -> Result<Authority> {
    match dir {
        Some(dir) => Authority::load_or_create(&dir, domain),
        None => Authority::new(domain),
    }
}

/// The path of a unix socket.
pub(super) fn socket_path(target: &Target) -> Result<PathBuf> {
    match target {
        Target::Unix(path) => Ok(path.clone()),
        other => Err(Error::invalid(format!("socket {other}"), "is not a unix socket", "write unix:///path")),
    }
}
