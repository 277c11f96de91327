//! Connections of workloads, with the user at their other end, and no more than we can hold.

use crate::socket::Socket;
use futures::{Stream, stream};
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tonic::transport::server::Connected;

/// Connections on one socket at a time; later ones wait.
const MAX_CONNECTIONS: usize = 1024;
/// How long to wait after a failed accept, which mostly means that descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The user at the other end of a connection, as the kernel says.
#[derive(Clone, Copy)]
pub(crate) struct PeerUser(pub(crate) u32);

/// A connection with its place among [`MAX_CONNECTIONS`].
pub(crate) struct Connection {
    io: UnixStream,
    user: PeerUser,
    _slot: OwnedSemaphorePermit,
}

/// Accepts for ever; waits with the next one while [`MAX_CONNECTIONS`] are open.
pub(crate) fn connections(socket: Socket) -> impl Stream<Item = io::Result<Connection>> {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    stream::unfold((socket, slots), |(socket, slots)| async move {
        let slot = slots.clone().acquire_owned().await.ok()?;
        loop {
            match socket.listener.accept().await.and_then(|(io, _)| io.peer_cred().map(|peer| (io, PeerUser(peer.uid())))) {
                Ok((io, user)) => return Some((Ok(Connection { io, user, _slot: slot }), (socket, slots))),
                Err(error) => {
                    tracing::warn!(%error, "accepting a workload failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

impl Connected for Connection {
    type ConnectInfo = PeerUser;
    fn connect_info(&self) -> PeerUser {
        self.user
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
