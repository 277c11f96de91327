//! `nsm packet`: carries encrypted packets where the kernel cannot. Forwarders ask it over a socket; it knows nothing else
//! of the mesh.

use super::identity::socket_path;
use crate::{
    context::Context,
    private::private_dir,
    settings::{Opt, Settings, Shape},
};
use nsm_api::{Error, Result, Target};
use nsm_packet::{Options, RunOptions};
use std::time::Duration;

/// Settings of `nsm packet`.
pub const OPTIONS: &[Opt] = &[
    Opt::new("socket", "NSM_PACKET_SOCKET", "unix:///run/nsm/packet.sock", Shape::Target, "Socket at which forwarders ask"),
    Opt::new("workers", "NSM_PACKET_WORKERS", "0", Shape::Number(64), "Threads that carry packets; 0: as many as processors, at most four"),
    Opt::new(
        "idle-exit",
        "NSM_PACKET_IDLE_EXIT",
        "0s",
        Shape::Duration,
        "End after so long without a device and without a caller; 0: never",
    ),
];

/// Serves until it is told to stop. Its devices stay, silent, until another engine takes them over.
pub async fn run(mut settings: Settings, context: Context) -> Result<()> {
    let socket: Target = settings.text("socket");
    let (workers, idle): (usize, Duration) = (settings.text("workers"), settings.duration("idle-exit"));
    settings.finish()?;

    let socket = socket_path(&socket)?;
    if let Some(dir) = socket.parent() {
        private_dir(dir)?;
    }
    let engine = Options { workers, ..Options::default() };
    let file = socket.clone();
    let options = RunOptions { socket, engine, idle_exit: (!idle.is_zero()).then_some(idle) };
    let ready = context.notify.clone();
    let serving = tokio::task::spawn_blocking(move || nsm_packet::run(options, || ready.ready()));
    tokio::select! {
        ended = serving => ended.map_err(|panic| Error::internal("the packet engine", panic.to_string()))?,
        () = context.shutdown.started() => {
            let _ = std::fs::remove_file(file); // so that nobody waits for an answer
            std::process::exit(0) // its threads wait in the kernel, and have nothing to put in order
        }
    }
}
