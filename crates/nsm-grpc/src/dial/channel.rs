//! Sends one call: on a connection that is up, with a token for that very peer, and with its files.

use super::{
    body::{Hold, Outbound},
    connect::{Connection, Failure},
    pool::Slot,
};
use crate::{
    limits::{BACKOFF_MAX, BACKOFF_MIN, DEFAULT_CALL_TIMEOUT, FD_WAIT, MAX_TRANSPARENT_RETRIES},
    metadata::{CallToken, write_timeout, write_token},
    status::{from_status, to_status},
};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Uri, request::Parts};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use nsm_api::{Caller, Error, Files, InodeKey, Kind, Result, Target};
use std::{
    error::Error as _,
    future::Future,
    os::fd::OwnedFd,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Status, body::Body};

/// What the generated clients send through.
#[derive(Clone)]
pub(crate) struct Channel(Arc<Slot>);

/// What a call needs besides its message; rides in the extensions of the request.
#[derive(Clone)]
pub(crate) struct Outgoing {
    /// Until when the call must be on its way, and answered unless it is a stream without end.
    pub(crate) deadline: Instant,
    /// A stream without end has no timeout: the server would cut it.
    endless: bool,
    files: Files,
    /// As long as it is held, our side of the stream stays open.
    hold: Option<Hold>,
}

impl Outgoing {
    /// A call that ends within the caller's timeout.
    pub(crate) fn new(caller: &Caller, files: Files) -> Outgoing {
        let timeout = caller.timeout.unwrap_or(DEFAULT_CALL_TIMEOUT);
        let now = Instant::now();
        Outgoing { deadline: now.checked_add(timeout).unwrap_or(now + DEFAULT_CALL_TIMEOUT), endless: false, files, hold: None }
    }

    /// A stream that lasts until one side leaves.
    pub(crate) fn endless(caller: &Caller) -> Outgoing {
        Outgoing { endless: true, ..Outgoing::new(caller, Files::default()) }
    }

    /// The same, after whose message our side stays open while `hold` does.
    pub(crate) fn held(self, hold: Hold) -> Outgoing {
        Outgoing { hold: Some(hold), ..self }
    }

    pub(crate) fn wrap<M>(self, message: M) -> tonic::Request<M> {
        let mut request = tonic::Request::new(message);
        request.extensions_mut().insert(self);
        request
    }
}

/// Whether a call that failed may be sent again.
enum Failed {
    /// The peer surely did nothing about it.
    Unprocessed(Error),
    Perhaps(Error),
}

impl Channel {
    pub(crate) fn new(slot: Arc<Slot>) -> Channel {
        Channel(slot)
    }

    /// The base of the URIs of calls. Peers accept any authority.
    pub(crate) fn origin(&self) -> Uri {
        let authority = match &self.0.target {
            Target::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Target::Tcp { host, port } if !host.is_empty() => format!("{host}:{port}"),
            _ => "localhost".to_owned(),
        };
        let uri = |authority: &str| Uri::builder().scheme("https").authority(authority).path_and_query("/").build();
        uri(&authority).or_else(|_| uri("localhost")).expect("a constant URI is well-formed")
    }

    /// The peer's address, for errors.
    pub(crate) fn peer(&self) -> String {
        self.0.target.to_string()
    }

    /// Waits for an answer until `deadline`.
    pub(crate) async fn within<T>(&self, deadline: Instant, call: impl Future<Output = Result<T, Status>>) -> Result<T> {
        match timeout_at(deadline, call).await {
            Ok(result) => result.map_err(|status| from_status(&status, &self.peer())),
            Err(_) => Err(self.too_late()),
        }
    }

    pub(crate) fn too_late(&self) -> Error {
        let fix = "look there for what it waits for, or allow more time";
        Error::new(Kind::Timeout, format!("peer {}", self.peer()), "did not answer before the deadline of the call", fix)
    }

    /// A connection that is up. An absent peer is waited for as long as the options and the deadline allow.
    pub(crate) async fn ready(&self, deadline: Instant) -> Result<Arc<Connection>> {
        let now = Instant::now();
        let patience = now.checked_add(self.0.environment.options.wait_for_ready).map_or(deadline, |end| end.min(deadline));
        let mut pause = BACKOFF_MIN;
        loop {
            let failure = match timeout_at(deadline, self.0.connect()).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(failure)) => failure,
                Err(_) => return Err(self.too_late()),
            };
            let next = Instant::now() + pause.mul_f64(rand::random_range(0.5..1.0));
            match failure {
                Failure { absent: true, .. } if next < patience => sleep_until(next).await,
                Failure { error, .. } => return Err(error),
            }
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }

    async fn send(self, mut request: http::Request<Body>) -> Result<http::Response<Incoming>, Status> {
        let missing = || to_status(Error::internal("call", "it does not say how long it may take"));
        let call = request.extensions_mut().remove::<Outgoing>().ok_or_else(missing)?;
        let (parts, body) = request.into_parts();
        // Every call of ours is one message, small enough to be kept for another attempt.
        let body = body.collect().await?.to_bytes();
        let mut retries = 0;
        loop {
            let connection = self.ready(call.deadline).await.map_err(to_status)?;
            let error = match self.attempt(&connection, &parts, &body, &call).await {
                Ok(mut response) => {
                    response.extensions_mut().insert(connection);
                    return Ok(response);
                }
                Err(Failed::Unprocessed(error)) if retries < MAX_TRANSPARENT_RETRIES => error,
                Err(Failed::Unprocessed(error) | Failed::Perhaps(error)) => return Err(to_status(error)),
            };
            tracing::debug!(peer = %self.peer(), %error, "sending a call again that the peer did not process");
            retries += 1;
        }
    }

    async fn attempt(
        &self,
        connection: &Connection,
        parts: &Parts,
        body: &Bytes,
        call: &Outgoing,
    ) -> Result<http::Response<Incoming>, Failed> {
        let mut request = http::Request::new(Outbound::new(body.clone(), call.hold.clone()));
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = parts.uri.clone();
        *request.headers_mut() = parts.headers.clone();
        *request.version_mut() = http::Version::HTTP_2;
        self.sign(request.headers_mut(), connection)?;
        if !call.endless {
            write_timeout(request.headers_mut(), call.deadline.saturating_duration_since(Instant::now()));
        }
        if let Some(transport) = &connection.link.files {
            transport.queue(call.files.iter().map(|(_, file)| file)).map_err(|error| match error.kind {
                Kind::Unavailable => Failed::Unprocessed(error),
                _ => Failed::Perhaps(error),
            })?;
        }
        let sent = connection.send(request).ok_or_else(|| Failed::Unprocessed(self.gone("it has ended")))?;
        sent.await.map_err(|mut failed| {
            let unsent = failed.take_message().is_some();
            let error = failed.into_error();
            let told = self.broken(&error);
            if unsent || was_refused(&error) { Failed::Unprocessed(told) } else { Failed::Perhaps(told) }
        })
    }

    /// Adds a token of ours that names this peer and no other.
    fn sign(&self, headers: &mut HeaderMap, connection: &Connection) -> Result<(), Failed> {
        #[cfg(feature = "plaintext")]
        if crate::plain::is_plain(&connection.link) {
            return Ok(());
        }
        let (environment, peer) = (&self.0.environment, &connection.link.peer);
        let token = environment.source.token(Some(&peer.id), environment.options.max_token_life, Some(peer.not_after));
        let token = token.map_err(Failed::Perhaps)?;
        if !connection.carries(&token.certificate) {
            return Err(Failed::Unprocessed(self.gone("this process has a new certificate")));
        }
        if write_token(headers, &CallToken { text: token.text, expires: token.expires }) {
            return Ok(());
        }
        Err(Failed::Perhaps(Error::internal("token", "it cannot be written as a header")))
    }

    fn broken(&self, error: &hyper::Error) -> Error {
        match error.source() {
            Some(source) => self.gone(&format!("{error}: {source}")),
            None => self.gone(&error.to_string()),
        }
    }

    fn gone(&self, reason: &str) -> Error {
        let fix = "ask again; see the log of that process if this repeats";
        Error::new(Kind::Unavailable, format!("peer {}", self.peer()), format!("the connection broke: {reason}"), fix)
    }
}

/// Whether the peer promises that it has not looked at the call.
fn was_refused(error: &hyper::Error) -> bool {
    let Some(error) = error.source().and_then(|source| source.downcast_ref::<h2::Error>()) else { return false };
    let reason = error.reason();
    error.is_remote()
        && (error.is_go_away() && reason == Some(h2::Reason::NO_ERROR) || error.is_reset() && reason == Some(h2::Reason::REFUSED_STREAM))
}

impl tower::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<http::Response<Incoming>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

/// The file that a message from `connection` names. `None` where the transport carries no files.
pub(crate) async fn named_file(connection: &Connection, key: InodeKey, deadline: Instant) -> Result<Option<Arc<OwnedFd>>> {
    let Some(transport) = &connection.link.files else { return Ok(None) };
    let deadline = deadline.min(Instant::now() + FD_WAIT);
    transport.take(key, deadline).await.map(Some).ok_or_else(|| {
        let reason = format!("the answer names it, but it did not arrive within {FD_WAIT:?}");
        Error::new(Kind::NotFound, format!("descriptor {key}"), reason, "see the log of the peer; its process may have no descriptors left")
    })
}
