//! Unix sockets that listen: what may be removed to make room, who may open them, what is left behind.

use nsm_api::{Error, Kind, Result};
use rustix::{
    fs::Mode,
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use std::{
    io,
    os::unix::{fs::FileTypeExt, fs::MetadataExt, fs::PermissionsExt, net},
    path::{Path, PathBuf},
};
use tokio::net::UnixListener;

/// Connections that may wait for us to accept them.
const BACKLOG: i32 = 1024;

/// A listening socket; its file goes with it, unless somebody else's has taken the place.
pub(crate) struct Socket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for Socket {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|now| now == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path` with the given permission bits, in a directory that is made where it is missing.
pub(crate) fn listen(path: &Path, mode: u32) -> Result<Socket> {
    let failed = |error: io::Error| {
        fail(path, Kind::Unavailable, error.to_string(), "let this user write to its directory, and keep the path under 108 bytes")
    };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    make_room(path)?;
    let listener = bind(path, mode).map_err(failed)?;
    Ok(Socket { listener, path: path.to_owned(), inode: inode(path).map_err(failed)? })
}

fn fail(path: &Path, kind: Kind, reason: impl Into<String>, fix: &str) -> Error {
    Error::new(kind, format!("socket {}", path.display()), reason, fix)
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    path.symlink_metadata().map(|meta| (meta.dev(), meta.ino()))
}

/// Removes a socket that nobody listens on any more, and nothing else.
fn make_room(path: &Path) -> Result<()> {
    let Ok(found) = path.symlink_metadata() else { return Ok(()) };
    if !found.file_type().is_socket() {
        let what = if found.is_symlink() { "is a symbolic link" } else { "is a file of another kind" };
        return Err(fail(path, Kind::Conflict, what, "remove it, or choose another path"));
    }
    if probe(path) != Err(Errno::CONNREFUSED) {
        return Err(fail(path, Kind::Conflict, "another process listens there", "stop it, or choose another path"));
    }
    std::fs::remove_file(path).map_err(|error| fail(path, Kind::Unavailable, error.to_string(), "let this user write to its directory"))
}

/// Tries to connect without waiting.
pub(crate) fn probe(path: &Path) -> Result<(), Errno> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
}

fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The file takes the socket's own mode, so that it is never open to more than its owner before we say so.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    rustix::net::listen(&socket, BACKLOG)?;
    UnixListener::from_std(net::UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Dir;
    use std::os::unix::fs::symlink;

    #[tokio::test]
    async fn listening_makes_room_only_where_nobody_is() {
        let dir = Dir::new();
        let path = dir.path("deep/er/w.sock");
        let first = listen(&path, 0o600).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
        assert!(listen(&path, 0o600).err().unwrap().reason.contains("another process"));
        drop(first);
        assert!(!path.exists(), "the file goes with the listener");

        drop(net::UnixListener::bind(&path).unwrap());
        let second = listen(&path, 0o666).unwrap();
        assert_eq!(probe(&path), Ok(()), "a stale socket is replaced");
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o666);

        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "mine").unwrap();
        drop(second);
        assert_eq!(std::fs::read(&path).unwrap(), b"mine", "what others put there stays");
        assert!(listen(&path, 0o600).err().unwrap().reason.contains("another kind"));
        symlink(dir.path("target"), dir.path("link")).unwrap();
        assert!(listen(&dir.path("link"), 0o600).err().unwrap().reason.contains("symbolic link"));
        assert!(!dir.path("target").exists());
    }
}
