//! A unix stream that carries open files beside its bytes. Lies below TLS: files ride with TLS records.
//!
//! Rules that keep files from being lost: every read is a `recvmsg` with room for files; files are attached to at
//! least one byte; a queue that could not be sent stays queued; readiness is cleared only by `EWOULDBLOCK`, because
//! the kernel ends a read early where files were attached; and the last byte of a buffer leaves after the last file
//! that was queued before it, because nothing may be written after it that could carry the rest.

use crate::{
    descriptors::Descriptors,
    limits::{MAX_FILES_PER_RECEIVE, MAX_FILES_PER_SEND},
};
use rustix::{
    cmsg_space,
    io::{Errno, retry_on_intr},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg,
        sendmsg,
    },
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::UnixStream,
};

/// See the module.
pub(crate) struct FdStream {
    socket: UnixStream,
    files: Descriptors,
}

impl FdStream {
    /// Takes over a connected socket, from its very first byte on.
    pub(crate) fn new(socket: UnixStream) -> FdStream {
        FdStream { socket, files: Descriptors::default() }
    }

    /// The files of this connection.
    pub(crate) fn files(&self) -> &Descriptors {
        &self.files
    }

    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FILES_PER_RECEIVE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [IoSliceMut::new(bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = retry_on_intr(|| recvmsg(&self.socket, &mut buffers, &mut control, flags))?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                self.files.arrived(files);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            tracing::warn!("files that a peer sent are lost: this process may not open more, raise its limit (ulimit -n)");
        }
        Ok(received.bytes)
    }

    fn send(&self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        let (batch, more) = self.files.next_batch();
        // With files left for later, one byte takes this batch along; the rest of the buffer is for them.
        let first = bytes.iter().find(|slice| !slice.is_empty()).and_then(|slice| slice.get(..1)).unwrap_or_default();
        let sent = if more { self.send_with(&[IoSlice::new(first)], &batch) } else { self.send_with(bytes, &batch) };
        match sent {
            Ok(count) => Ok(count),
            Err(errno) => {
                let had_files = !batch.is_empty();
                self.files.put_back(batch);
                if errno == Errno::TOOMANYREFS && had_files {
                    // Too many files of ours are under way. Bytes must flow, or the peer never takes any out.
                    return Ok(self.send_with(bytes, &[])?);
                }
                Err(errno.into())
            }
        }
    }

    fn send_with(&self, bytes: &[IoSlice<'_>], batch: &[Arc<OwnedFd>]) -> Result<usize, Errno> {
        let files: Vec<BorrowedFd<'_>> = batch.iter().map(|file| file.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FILES_PER_SEND))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            let fits = control.push(SendAncillaryMessage::ScmRights(&files));
            debug_assert!(fits, "a batch is never larger than the control space");
        }
        retry_on_intr(|| sendmsg(&self.socket, bytes, &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT))
    }
}

impl Drop for FdStream {
    fn drop(&mut self) {
        self.files.close();
    }
}

impl AsyncRead for FdStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            let room = buffer.initialize_unfilled();
            match self.socket.try_io(Interest::READABLE, || self.receive(room)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for FdStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if bytes.iter().all(|slice| slice.is_empty()) {
            // The kernel would send the files with nothing, and the peer would never see them.
            return Poll::Ready(Ok(0));
        }
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            match self.socket.try_io(Interest::WRITABLE, || self.send(bytes)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "fd_stream_tests.rs"]
mod tests;
