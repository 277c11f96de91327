//! Calls to whichever member answers.
//!
//! One member is used until it fails; then the next one is. Every call asks a member that has no leader to say so at
//! once: it may be alone, and the others may go on. A call that may be repeated is, after growing pauses with chance in
//! them, as long as an election takes; a call that may not be tells whether it can have been heard.

use nsm_api::{Error, Kind, Result};
use rand::Rng;
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use tonic::{
    Code, Request, Response, Status,
    metadata::MetadataValue,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

/// How long a member may take to accept a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a member may take to answer.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a call is repeated at one member after the other.
pub const CALL_DEADLINE: Duration = Duration::from_secs(6);
/// The pause before the second try, and the longest; half of each is chance.
pub const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// A way to one member. A member without a leader refuses what comes over it.
pub(super) type Line = InterceptedService<Channel, fn(Request<()>) -> Result<Request<()>, Status>>;

pub(super) struct Cluster {
    object: String,
    members: Vec<Endpoint>,
    link: Mutex<Link>,
    /// The number of the last channel that did not work.
    lost: watch::Sender<u64>,
    /// Held by the one who connects.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Link {
    channel: Option<Channel>,
    /// Counts the channels, so that a call that fails late ends only its own.
    generation: u64,
    member: usize,
}

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was refused, and did nothing.
    Refused(Status),
    /// No member could be connected to, or the member has no leader: nothing was done.
    Unsent(Error),
    /// Whether it did anything is not known.
    Unknown(Status),
}

impl Cluster {
    pub(super) fn new(object: String, members: Vec<Endpoint>) -> Cluster {
        // Processes that start together shall not all ask the same member.
        let link = Link { member: rand::rng().random_range(0..members.len().max(1)), ..Link::default() };
        Cluster { object, members, link: Mutex::new(link), lost: watch::Sender::new(0), connecting: tokio::sync::Mutex::default() }
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn linked(&self) -> Option<(u64, Channel)> {
        let link = self.link();
        link.channel.clone().map(|channel| (link.generation, channel))
    }

    /// A channel to some member, and its number for [`Cluster::lost`]. Tries each member once.
    pub(super) async fn channel(&self) -> Result<(u64, Channel)> {
        if let Some(linked) = self.linked() {
            return Ok(linked);
        }
        let _one = self.connecting.lock().await;
        if let Some(linked) = self.linked() {
            return Ok(linked);
        }
        let (mut reason, first) = (String::new(), self.link().member);
        for member in (0..self.members.len()).map(|step| (first + step) % self.members.len()) {
            let connecting = self.members[member].connect();
            match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
                Ok(Ok(channel)) => {
                    let mut link = self.link();
                    link.generation += 1;
                    (link.channel, link.member) = (Some(channel.clone()), member);
                    return Ok((link.generation, channel));
                }
                Ok(Err(error)) => reason = chain(&error),
                Err(_) => reason = format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
            }
        }
        Err(self.away(&reason))
    }

    /// The channel does not work; the next call goes to the next member.
    pub(super) fn lost(&self, generation: u64) {
        let mut link = self.link();
        if link.generation == generation && link.channel.take().is_some() {
            link.member = (link.member + 1) % self.members.len();
            self.lost.send_replace(generation);
        }
    }

    /// Resolves when this channel did not work for somebody.
    pub(super) async fn left(&self, generation: u64) {
        let _ = self.lost.subscribe().wait_for(|lost| *lost >= generation).await;
    }

    fn away(&self, reason: &str) -> Error {
        let fix = "start its members, or correct their addresses; the registry goes on by itself";
        Error::new(Kind::Unavailable, &self.object, format!("cannot be reached: {reason}"), fix)
    }

    /// Makes a call that must not be repeated.
    pub(super) async fn once<T, F>(&self, call: impl FnOnce(Line) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let (generation, channel) = self.channel().await.map_err(Failure::Unsent)?;
        let line: Line = InterceptedService::new(channel, require_leader);
        let answer = tokio::time::timeout(CALL_TIMEOUT, call(line)).await;
        match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) if refusal(&status) => Err(Failure::Refused(status)),
            Err(status) => {
                self.lost(generation);
                let unheard = status.code() == Code::Unavailable && status.message() == NO_LEADER;
                Err(if unheard { Failure::Unsent(self.error(Failure::Unknown(status))) } else { Failure::Unknown(status) })
            }
        }
    }

    /// Makes a call that may be repeated, until the deadline.
    pub(super) async fn call<T, F>(&self, deadline: Instant, call: impl Fn(Line) -> F) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut tries = 0;
        loop {
            let failure = match self.once(&call).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            tries += 1;
            if matches!(failure, Failure::Refused(_)) || !pause(tries, deadline).await {
                return Err(self.error(failure));
            }
        }
    }

    pub(super) fn error(&self, failure: Failure) -> Error {
        match failure {
            Failure::Unsent(error) => error,
            Failure::Unknown(status) => self.away(&format!("{:?}: {}", status.code(), status.message())),
            Failure::Refused(status) => {
                let (kind, fix) = match status.code() {
                    Code::ResourceExhausted => (Kind::Exhausted, "compact and defragment it, then clear its alarm"),
                    Code::PermissionDenied | Code::Unauthenticated => {
                        (Kind::Denied, "give the registry a certificate that may write there")
                    }
                    Code::InvalidArgument => (Kind::Invalid, "register less in one record"),
                    _ => (Kind::Unavailable, "look at the log of its members"),
                };
                Error::new(kind, &self.object, format!("refuses: {}", status.message()), fix)
            }
        }
    }
}

/// When a call that begins now is given up.
pub(super) fn deadline() -> Instant {
    Instant::now() + CALL_DEADLINE
}

/// Waits before try number `tries + 1`; `false`, and at once, when that would begin after the deadline.
pub(super) async fn pause(tries: u32, deadline: Instant) -> bool {
    let (first, longest) = RETRY_PAUSES;
    let whole = first.saturating_mul(1 << tries.min(16)).min(longest);
    let next = Instant::now() + whole.mul_f64(rand::rng().random_range(0.5..1.0));
    let in_time = next < deadline;
    if in_time {
        tokio::time::sleep_until(next).await;
    }
    in_time
}

/// What a member without a leader answers, before it has done anything, to those who ask for a leader.
const NO_LEADER: &str = "etcdserver: no leader";

/// Asks for a member with a leader.
#[allow(clippy::result_large_err)] // the form of an interceptor
pub(super) fn require_leader(mut request: Request<()>) -> Result<Request<()>, Status> {
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    Ok(request)
}

/// What etcd answers for certain without having done anything.
fn refusal(status: &Status) -> bool {
    use Code::*;
    matches!(
        status.code(),
        InvalidArgument | NotFound | AlreadyExists | PermissionDenied | Unauthenticated | FailedPrecondition | OutOfRange | Unimplemented
    ) || status.code() == ResourceExhausted && status.message().starts_with("etcdserver")
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut causes: Vec<String> = causes.map(ToString::to_string).collect();
    causes.dedup();
    causes.join(": ")
}
