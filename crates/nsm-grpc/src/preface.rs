//! Tells when an HTTP/2 client has begun to speak.
//!
//! Asked to shut down before it has read the client's preface, hyper closes the connection without a word; a client
//! that has just sent its first call could not know whether it was processed. So shutdown waits for the preface.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

/// Bytes of `PRI * HTTP/2.0` and what belongs to it.
const PREFACE_BYTES: usize = 24;

/// A stream that notes when the preface has been read from it.
pub(crate) struct Prefaced<S> {
    stream: S,
    missing: usize,
    begun: Arc<Notify>,
}

impl<S> Prefaced<S> {
    /// Wraps a stream from its first byte on. The notification comes once, and is kept for who asks later.
    pub(crate) fn new(stream: S) -> (Prefaced<S>, Arc<Notify>) {
        let begun = Arc::new(Notify::new());
        (Prefaced { stream, missing: PREFACE_BYTES, begun: begun.clone() }, begun)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefaced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if self.missing > 0 {
            self.missing = self.missing.saturating_sub(buffer.filled().len() - before);
            if self.missing == 0 {
                self.begun.notify_one();
            }
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefaced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
