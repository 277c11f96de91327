//! One attempt to connect: socket, TLS, HTTP/2.

use super::{Resolver, body::Outbound, pool::lock};
use crate::{
    limits::{CONNECTION_WINDOW_BYTES, MAX_HANDSHAKES, MAX_HEADER_BYTES, STREAM_WINDOW_BYTES},
    socket::Socket,
    tls::{self, Link},
};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use nsm_api::{Error, Kind, Result, Target};
use nsm_identity::Source;
use std::{
    future::Future,
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Mutex},
};
use tokio::net::{TcpStream, UnixStream};

type Sender = http2::SendRequest<Outbound>;

/// A connection that calls go out on.
pub(crate) struct Connection {
    /// `None` when the connection has ended. Nobody keeps a copy while waiting for an answer: a call that is queued in
    /// the very moment of the end is given back only when the last copy has gone.
    sender: Mutex<Option<Sender>>,
    pub(crate) link: Arc<Link>,
    source: Source,
}

impl Connection {
    /// Whether tokens that are signed with `certificate` can go out on it.
    pub(crate) fn carries(&self, certificate: &[u8]) -> bool {
        self.link.shown.as_deref().is_none_or(|shown| shown == certificate)
    }

    /// Whether a new call can go out on it. HTTP/2 may notice later than the socket that the peer has gone.
    pub(crate) fn is_usable(&self) -> bool {
        lock(&self.sender).as_ref().is_some_and(|sender| !sender.is_closed())
            && self.link.files.as_ref().is_none_or(|files| !files.is_closed())
            && self.carries(&self.source.certificate())
    }

    /// Queues a call to be sent. `None` when the connection has ended.
    pub(crate) fn send(&self, request: http::Request<Outbound>) -> Option<impl Future<Output = Sent> + Send + use<>> {
        let mut sender = lock(&self.sender).clone()?;
        Some(sender.try_send_request(request))
    }

    /// The connection has ended.
    pub(crate) fn end(&self) {
        lock(&self.sender).take();
    }
}

/// The answer, or the error with the request if it was surely not sent.
pub(crate) type Sent = Result<http::Response<Incoming>, TrySendError<http::Request<Outbound>>>;

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// Nobody listens there; somebody may in a moment.
    pub(crate) absent: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { error, absent: false }
    }
}

/// Where to, with the socket itself when the target is `inode://`.
pub(crate) struct Place<'a> {
    pub(crate) target: &'a Target,
    pub(crate) file: Option<&'a OwnedFd>,
}

/// Connects. The future beside the connection drives it until its end, and must be spawned.
pub(crate) async fn connect(
    source: &Source,
    resolver: &Resolver,
    place: Place<'_>,
) -> Result<(Connection, impl Future<Output = ()> + Send + 'static), Failure> {
    let mut handshakes = 1;
    let (stream, link) = loop {
        match tls::connect(source, open(resolver, &place).await?).await {
            Ok(connected) => break connected,
            Err(error) if handshakes == MAX_HANDSHAKES => {
                return Err(Error { object: format!("peer {}: {}", place.target, error.object), ..error }.into());
            }
            Err(error) => tracing::debug!(target = %place.target, %error, "trying the handshake once more"),
        }
        handshakes += 1;
    };
    let broken = |error: hyper::Error| unreachable(place.target, error.to_string());
    let (sender, connection) = http2_builder().handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let target = place.target.to_string();
    let driver = async move {
        if let Err(error) = connection.await {
            tracing::debug!(%target, %error, "a connection broke");
        }
    };
    Ok((Connection { sender: Mutex::new(Some(sender)), link, source: source.clone() }, driver))
}

/// No pings: other implementations close connections whose clients ping often.
fn http2_builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    builder
}

async fn open(resolver: &Resolver, place: &Place<'_>) -> Result<Socket, Failure> {
    let target = place.target;
    let opened = match target {
        Target::Unix(path) => UnixStream::connect(path).await.map(Socket::unix),
        Target::Inode(_) => return open_inode(place).await,
        Target::Tcp { host, port } => open_tcp(resolver, host, *port).await?,
        Target::InProcess(_) => return Err(unreachable(target, "that role does not run in this process").into()),
    };
    opened.map_err(|error| {
        let absent = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound, io::ErrorKind::WouldBlock].contains(&error.kind());
        Failure { error: unreachable(target, error.to_string()), absent }
    })
}

/// Connects to a socket that we hold open, wherever its name lies. Nobody can listen there anew: no waiting.
async fn open_inode(place: &Place<'_>) -> Result<Socket, Failure> {
    let Some(file) = place.file else {
        let fix = "register the endpoint again over the unix socket of its manager";
        return Err(Error::new(Kind::NotFound, format!("peer {}", place.target), "its socket did not come along", fix).into());
    };
    let opened = UnixStream::connect(format!("/proc/self/fd/{}", file.as_raw_fd())).await;
    opened.map(Socket::unix).map_err(|error| unreachable(place.target, error.to_string()).into())
}

async fn open_tcp(resolver: &Resolver, host: &str, port: u16) -> Result<io::Result<Socket>> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in resolver.addresses(host).await? {
        match TcpStream::connect(SocketAddr::new(address, port)).await.and_then(Socket::tcp) {
            Ok(socket) => return Ok(Ok(socket)),
            Err(error) => last = error,
        }
    }
    Ok(Err(last))
}

pub(crate) fn unreachable(target: &Target, reason: impl Into<String>) -> Error {
    let reason = format!("cannot be reached: {}", reason.into());
    Error::new(Kind::Unavailable, format!("peer {target}"), reason, "start it, or correct its address")
}
