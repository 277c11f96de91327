//! The way in from other processes: a unix socket of whole messages, over which namespaces travel as descriptors.
//!
//! `codec` is the bytes of a message, `message` what they mean, `server` the engine's side, `client` the other. Each
//! message is one request or one answer and carries the version; a client may come and go as it likes.

mod client;
mod codec;
mod message;
mod server;

pub use client::Client;
pub use server::{RunOptions, run};

use crate::error::refused;
use nsm_api::{Error, Kind, Result};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with, sockopt},
};
use std::{os::fd::OwnedFd, path::Path};

/// Bytes of the longest message.
const MAX_MESSAGE: usize = 64 << 10;
/// Devices in one answer to a list; the longest of them takes less than 700 bytes.
const PAGE: usize = 64;

fn open(path: &Path) -> Result<(OwnedFd, SocketAddrUnix)> {
    let object = format!("control socket {}", path.display());
    let failed = |doing: &'static str| {
        let object = object.clone();
        move |errno: Errno| refused(object, doing, errno)
    };
    let address = SocketAddrUnix::new(path).map_err(failed("use its path"))?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(failed("open it"))?;
    Ok((socket, address))
}

/// Keys go over this socket: the other side must be root, or who we are.
fn trusted(socket: &OwnedFd) -> Result<()> {
    let credentials = sockopt::socket_peercred(socket).map_err(|errno| refused("a control connection", "say who is there", errno))?;
    if credentials.uid.is_root() || credentials.uid == rustix::process::geteuid() {
        return Ok(());
    }
    let reason = format!("the process at the other end belongs to user {}", credentials.uid.as_raw());
    Err(Error::new(Kind::Denied, "a control connection", reason, "run both sides as the same user or as root"))
}
