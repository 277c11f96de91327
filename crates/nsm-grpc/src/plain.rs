//! Feature `plaintext`: connections without TLS and calls without tokens, to measure what security costs. The feature
//! belongs to one benchmark; the program is built without it.

use crate::{socket::Socket, tls::Link};
use nsm_api::SpiffeId;
use nsm_identity::Peer;
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

static PLAIN: AtomicBool = AtomicBool::new(false);
/// How long the calls of nobody in particular are good.
const LIFE: Duration = Duration::from_secs(600);

/// Connections that are made while this lives are plain, on both sides.
#[derive(Debug)]
pub struct WithoutSecurity(());

impl WithoutSecurity {
    /// From now on.
    pub fn begin() -> WithoutSecurity {
        PLAIN.store(true, Ordering::SeqCst);
        WithoutSecurity(())
    }
}

impl Drop for WithoutSecurity {
    fn drop(&mut self) {
        PLAIN.store(false, Ordering::SeqCst);
    }
}

/// A connection, plain or not.
pub(crate) enum Stream<T> {
    Secured(T),
    Plain(Socket),
}

impl<T> From<T> for Stream<T> {
    fn from(stream: T) -> Stream<T> {
        Stream::Secured(stream)
    }
}

/// What is known of a new connection, if it is to be plain.
pub(crate) fn link(socket: &Socket) -> Option<Arc<Link>> {
    if !PLAIN.load(Ordering::SeqCst) {
        return None;
    }
    let id = SpiffeId::new("spiffe://plain/anybody").expect("a constant id is well-formed");
    let peer = Peer { id, not_after: end(), certificate: Arc::default() };
    Some(Arc::new(Link { peer, shown: None, files: socket.files() }))
}

/// Whether nobody is at the other end.
pub(crate) fn is_plain(link: &Link) -> bool {
    link.peer.certificate.is_empty()
}

/// When a call that brings no token ends.
pub(crate) fn end() -> SystemTime {
    SystemTime::now() + LIFE
}

impl<T: AsyncRead + Unpin> AsyncRead for Stream<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Secured(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Stream<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Secured(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Secured(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Secured(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
