//! Streams of messages from a peer as streams of the domain.

use super::{
    channel::{Channel, Outgoing},
    connect::Connection,
};
use crate::status::from_status;
use futures::{
    StreamExt,
    stream::{BoxStream, iter, once, unfold},
};
use nsm_api::{Caller, Files, Result};
use std::{future::Future, sync::Arc};
use tokio::time::{Instant, timeout_at};
use tonic::{Status, Streaming};

/// A stream of messages as it comes.
pub(crate) struct Incoming<M> {
    channel: Channel,
    messages: Streaming<M>,
    /// Kept, so that a connection that nobody else uses lasts as long as the stream.
    connection: Option<Arc<Connection>>,
    /// When the whole stream must have ended; `None` for one without end.
    deadline: Option<Instant>,
}

impl<M: Send + 'static> Incoming<M> {
    pub(crate) fn new(channel: &Channel, response: tonic::Response<Streaming<M>>, deadline: Option<Instant>) -> Incoming<M> {
        let connection = response.extensions().get::<Arc<Connection>>().cloned();
        Incoming { channel: channel.clone(), messages: response.into_inner(), connection, deadline }
    }

    /// Reads every message with `read`, which also gets the connection that its files come on.
    /// The first error is the last item.
    pub(crate) fn read<T, F, R>(self, read: R) -> BoxStream<'static, Result<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send,
        R: Fn(M, Option<Arc<Connection>>) -> F + Send + 'static,
    {
        let step = |state: Option<(Self, R)>| async move {
            let (mut incoming, read) = state?;
            let item = match incoming.next().await.transpose()? {
                Ok(message) => read(message, incoming.connection.clone()).await,
                Err(error) => Err(error),
            };
            let state = item.is_ok().then_some((incoming, read));
            Some((item, state))
        };
        unfold(Some((self, read)), step).boxed()
    }

    async fn next(&mut self) -> Result<Option<M>> {
        let next = self.messages.message();
        let result = match self.deadline {
            None => next.await,
            Some(deadline) => timeout_at(deadline, next).await.map_err(|_| self.channel.too_late())?,
        };
        result.map_err(|status| from_status(&status, &self.channel.peer()))
    }
}

/// How long a stream goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    /// It ends by itself, within the caller's timeout.
    Bounded,
    /// It goes on until one side leaves.
    Endless,
}

/// Opens a stream with `find` and reads it with `read`.
///
/// A bounded one is open when this returns. Of one without end only the connection is up: other implementations say
/// nothing at all until there is a first match, and that must not keep the caller waiting.
pub(crate) async fn open<M, T, O, F, R>(
    channel: &Channel,
    length: Length,
    caller: Caller,
    find: impl FnOnce(Outgoing) -> O + Send + 'static,
    read: R,
) -> Result<BoxStream<'static, Result<T>>>
where
    M: Send + 'static,
    T: Send + 'static,
    O: Future<Output = Result<tonic::Response<Streaming<M>>, Status>> + Send,
    F: Future<Output = Result<T>> + Send,
    R: Fn(M, Option<Arc<Connection>>) -> F + Send + 'static,
{
    if length == Length::Bounded {
        let call = Outgoing::new(&caller, Files::default());
        let deadline = call.deadline;
        let response = channel.within(deadline, find(call)).await?;
        return Ok(Incoming::new(channel, response, Some(deadline)).read(read));
    }
    channel.ready(Outgoing::endless(&caller).deadline).await?;
    let channel = channel.clone();
    let opened = async move {
        match find(Outgoing::endless(&caller)).await {
            Ok(response) => Incoming::new(&channel, response, None).read(read),
            Err(status) => iter([Err(from_status(&status, &channel.peer()))]).boxed(),
        }
    };
    Ok(once(opened).flatten().boxed())
}
