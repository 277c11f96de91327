//! A connected stream socket of either family, below TLS.
//!
//! A write to a peer that has closed counts as done. What the peer said before it closed is still to be read, for
//! instance which calls it did not process; an error now would hide that, and reading tells of the end anyway.

use crate::{
    descriptors::Descriptors,
    fd_stream::FdStream,
    limits::{TCP_KEEPALIVE_IDLE, TCP_KEEPALIVE_INTERVAL, TCP_KEEPALIVE_PROBES},
};
use rustix::net::sockopt;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

/// See the module.
pub(crate) enum Socket {
    Unix(FdStream),
    Tcp(TcpStream),
}

impl Socket {
    pub(crate) fn unix(socket: UnixStream) -> Socket {
        Socket::Unix(FdStream::new(socket))
    }

    /// Small calls go out at once, and a peer whose node died is noticed without pings in the protocol.
    pub(crate) fn tcp(socket: TcpStream) -> io::Result<Socket> {
        socket.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, TCP_KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(&socket, TCP_KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(&socket, TCP_KEEPALIVE_PROBES)?;
        Ok(Socket::Tcp(socket))
    }

    /// The files of the connection, where it can carry any.
    pub(crate) fn files(&self) -> Option<Descriptors> {
        match self {
            Socket::Unix(stream) => Some(stream.files().clone()),
            Socket::Tcp(_) => None,
        }
    }
}

/// The module says why.
fn or_closed(written: io::Result<usize>, length: usize) -> io::Result<usize> {
    match written {
        Err(error) if [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset].contains(&error.kind()) => Ok(length),
        other => other,
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = match self.get_mut() {
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        written.map(|result| or_closed(result, bytes.len()))
    }
    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = match self.get_mut() {
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
        };
        written.map(|result| or_closed(result, bytes.iter().map(|slice| slice.len()).sum()))
    }
    fn is_write_vectored(&self) -> bool {
        match self {
            Socket::Unix(stream) => stream.is_write_vectored(),
            Socket::Tcp(stream) => stream.is_write_vectored(),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
