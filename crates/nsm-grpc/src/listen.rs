//! Sockets that listen: made, and removed again.

use crate::{descriptors::inode_key, dial::Resolver, limits::LISTEN_BACKLOG, socket::Socket};
use nsm_api::{Error, InodeKey, Kind, Result, Target};
use rustix::{
    fs::{Mode, OFlags},
    net::sockopt,
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixStream};

/// Pods run as anybody: who may do what is decided by TLS.
const SOCKET_MODE: u32 = 0o777;

/// A bound socket.
pub(crate) enum Listener {
    Unix { listener: UnixListener, _file: SocketFile },
    Tcp(TcpListener),
}

impl Listener {
    /// Binds, and returns the address with its real port.
    pub(crate) async fn bind(target: &Target, resolver: &Resolver) -> Result<(Listener, Target)> {
        match target {
            Target::Unix(path) => Ok((bind_unix(path).await?, target.clone())),
            Target::Tcp { host, port } => {
                let listener = bind_tcp(host, *port, resolver).await?;
                let port = listener.local_addr().map_err(|error| failed(target, &error))?.port();
                Ok((Listener::Tcp(listener), Target::Tcp { host: host.clone(), port }))
            }
            Target::Inode(_) | Target::InProcess(_) => {
                Err(Error::invalid(format!("address {target}"), "nobody can listen there", "write unix:///path or tcp://host:port"))
            }
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<Socket> {
        match self {
            Listener::Unix { listener, .. } => Ok(Socket::unix(listener.accept().await?.0)),
            Listener::Tcp(listener) => Socket::tcp(listener.accept().await?.0),
        }
    }
}

/// A socket file of ours. Dropping it removes the file, unless somebody else's lies there by now.
pub(crate) struct SocketFile {
    path: PathBuf,
    key: InodeKey,
}

impl SocketFile {
    /// Opens the file to everybody. The path is resolved once, never through a symbolic link at its end.
    fn open_up(path: &Path) -> io::Result<SocketFile> {
        let file = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        rustix::fs::chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), Mode::from_raw_mode(SOCKET_MODE))?;
        Ok(SocketFile { path: path.to_owned(), key: inode_key(&file)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = |file: std::fs::Metadata| (file.dev(), file.ino()) == (self.key.dev, self.key.ino);
        if std::fs::symlink_metadata(&self.path).is_ok_and(ours) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

async fn bind_unix(path: &Path) -> Result<Listener> {
    let target = Target::Unix(path.to_owned());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|error| failed(&target, &error))?;
    }
    remove_stale(path).await?;
    let listener = UnixListener::bind(path).map_err(|error| failed(&target, &error))?;
    let file = SocketFile::open_up(path).map_err(|error| failed(&target, &error))?;
    Ok(Listener::Unix { listener, _file: file })
}

/// Removes a socket at which nobody listens any more, and nothing else.
async fn remove_stale(path: &Path) -> Result<()> {
    let object = || format!("address unix://{}", path.display());
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(Error::new(Kind::Conflict, object(), "something that is not a socket lies there", "remove it, or listen elsewhere"));
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|error| failed(&Target::Unix(path.to_owned()), &error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(Error::new(Kind::Conflict, object(), "another process listens there", "stop that process, or listen elsewhere")),
    }
}

async fn bind_tcp(host: &str, port: u16, resolver: &Resolver) -> Result<TcpListener> {
    let target = Target::Tcp { host: host.to_owned(), port };
    let addresses = match host {
        // One socket for both families, where the kernel has both.
        "" => vec![IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from(Ipv4Addr::UNSPECIFIED)],
        name => resolver.addresses(name).await?,
    };
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match listen_tcp(SocketAddr::new(address, port)) {
            Ok(listener) => return Ok(listener),
            // What is taken is taken; only a family that the kernel lacks is worth another try.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(failed(&target, &error)),
            Err(error) => last = error,
        }
    }
    Err(failed(&target, &last))
}

fn listen_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

fn failed(target: &Target, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::AddrInUse => Kind::Conflict,
        io::ErrorKind::PermissionDenied => Kind::Denied,
        _ => Kind::Kernel,
    };
    Error::new(kind, format!("address {target}"), format!("cannot listen there: {error}"), "choose an address that is free and allowed")
}
