//! What a call sends: one message, and then its end; or an open stream that says no more until it is let go.

use bytes::Bytes;
use futures::{FutureExt, future::Shared};
use hyper::body::{Body, Frame, SizeHint};
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::sync::oneshot;

/// Keeps our side of a stream open until the [`Holder`] has gone.
pub(crate) type Hold = Shared<oneshot::Receiver<Infallible>>;
/// Whoever has it keeps a stream open.
pub(crate) type Holder = oneshot::Sender<Infallible>;

/// A stream's two ends of being held.
pub(crate) fn hold() -> (Holder, Hold) {
    let (holder, hold) = oneshot::channel();
    (holder, hold.shared())
}

/// The body of one call.
pub(crate) struct Outbound {
    message: Option<Bytes>,
    hold: Option<Hold>,
}

impl Outbound {
    pub(crate) fn new(message: Bytes, hold: Option<Hold>) -> Outbound {
        Outbound { message: Some(message).filter(|message| !message.is_empty()), hold }
    }
}

impl Body for Outbound {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(message) = self.message.take() {
            return Poll::Ready(Some(Ok(Frame::data(message))));
        }
        match self.hold.as_mut().map(|hold| hold.poll_unpin(context)) {
            Some(Poll::Pending) => Poll::Pending,
            _ => {
                self.hold = None;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.message.is_none() && self.hold.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.message.as_ref().map_or(0, Bytes::len) as u64;
        if self.hold.is_none() { SizeHint::with_exact(left) } else { SizeHint::default() }
    }
}
