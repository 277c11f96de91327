//! What a role plugs into a hop: decisions in memory, and the seams to the outside.
//!
//! Decisions ([`Admit`], [`Reserve`], [`Wiring`]) never wait. The outside ([`Onward`]'s discovery, [`Dial`],
//! [`Kernel`]) is awaited by the hop, and each has one real implementation and one fake.

use crate::{
    journal::Agreed,
    kernel::{Kernel, Wires},
};
use async_trait::async_trait;
use nsm_api::*;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

/// A connection still being decided: what the caller sent, completed step by step.
#[derive(Clone, Debug)]
pub struct Draft {
    /// As this hop sees it: own id, own index. Its mechanism is the one of the stretch towards the client.
    pub connection: Connection,
    /// What the previous hop can do, best first.
    pub preferences: Vec<Mechanism>,
    /// Open files named by any mechanism of either stretch.
    pub files: Files,
}

/// A next hop to try.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Where it is.
    pub target: Target,
    /// The socket, when the target is `inode://`.
    pub socket: Files,
    /// The name under which the next hop is registered, when it was found so.
    pub registered: Option<EndpointName>,
    /// The payload of the service, when this hop learned it.
    pub payload: Payload,
}

impl Candidate {
    /// Whether the two are one process. A local one that has started anew has another socket and the same name.
    pub(crate) fn is(&self, other: &Candidate) -> bool {
        let local = |candidate: &Candidate| matches!(candidate.target, Target::Inode(_)) && candidate.registered.is_some();
        self.target == other.target || local(self) && local(other) && self.registered == other.registered
    }
}

/// What may lie behind this hop.
#[derive(Clone, Debug)]
pub enum Next {
    /// Nothing: the path ends here.
    End,
    /// One of these, in this order.
    Hops(Vec<Candidate>),
}

/// A Request that went out, and the connection it led to: enough to repeat it, to refresh it, to close it.
#[derive(Clone, Debug)]
pub struct Sent {
    /// To whom.
    pub candidate: Candidate,
    /// What was asked.
    pub request: Request,
    /// What was answered; before that, what was asked.
    pub connection: Connection,
    /// Files of the answer and of the Request.
    pub files: Files,
}

/// May this connection be at all? Each question is answered yes unless a rule says otherwise; an error refuses.
pub trait Admit: Send + Sync {
    /// May the caller have it? Nothing has changed yet.
    fn admit(&self, _draft: &Draft, _caller: &Caller) -> Result<()> {
        Ok(())
    }
    /// May the caller end it? `connection` is as the caller sent it, with this hop's id and index.
    fn admit_close(&self, _connection: &Connection, _caller: &Caller) -> Result<()> {
        Ok(())
    }
    /// May this be the way on? Of a refused answer nothing is used; a way that is new then hears a Close.
    fn approve(&self, _answer: &Answer) -> Result<()> {
        Ok(())
    }
}

/// Holds something (an address, a network identifier, a mechanism's parameters) for a connection, and writes it into the draft.
pub trait Reserve: Send + Sync {
    /// The same connection gets the same again, until it is released.
    fn reserve(&self, draft: &mut Draft) -> Result<()>;
    /// Looks at the complete answer before it is wired; may refuse it.
    fn review(&self, _draft: &Draft) -> Result<()> {
        Ok(())
    }
    /// The connection is committed as it stands here: what it does not use may be given to others.
    fn keep(&self, _connection: &Connection) {}
    /// This was agreed by a former process: what the connection holds is not given to others.
    fn restore(&self, _agreed: &Agreed) {}
    /// The connection has ended.
    fn release(&self, id: &ConnectionId);
}

/// The way on: who comes next, what is said to them, and what their answer means here.
#[async_trait]
pub trait Onward: Send + Sync {
    /// Who may come next. `before` is what the connection uses now.
    async fn next(&self, draft: &Draft, before: Option<&Sent>) -> Result<Next>;
    /// What is asked of them.
    fn request(&self, draft: &Draft, candidate: &Candidate, before: Option<&Sent>) -> Result<Request>;
    /// Completes the draft with their answer.
    fn accept(&self, draft: &mut Draft, answer: &Answer);
    /// A candidate was asked, and agreed or did not.
    fn asked(&self, _candidate: &Candidate, _agreed: std::result::Result<(), &Error>) {}
    /// Where the process is now that `candidate` was: a local one that has started anew listens at another socket.
    async fn moved(&self, _candidate: &Candidate) -> Option<Candidate> {
        None
    }
}

/// Turns an agreed connection into kernel objects of this hop.
pub trait Wiring: Send + Sync {
    /// What must exist. `draft` is complete; `sent` is the stretch towards the endpoint, if any.
    fn wires(&self, draft: &Draft, sent: Option<&Sent>) -> Result<WirePlan>;
}

/// Kernel objects of one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WirePlan {
    /// To exist before the Request is answered.
    pub now: Wires,
    /// To exist as soon as the interfaces they need do, which other hops make after our answer.
    pub later: Wires,
}

/// Reaches other hops.
pub trait Dial: Send + Sync {
    /// The API at `target`. Cheap; connecting happens on the first call.
    fn dial(&self, target: &Target, socket: &Files) -> Arc<dyn NetworkServiceApi>;
}

/// Whether packets pass over a connection. An origin asks.
#[async_trait]
pub trait Liveness: Send + Sync {
    /// Whether they pass now; takes as long as it needs to be sure, and that is bounded. Where it cannot be known: true.
    async fn alive(&self, connection: &Connection) -> bool;
    /// The same after bad news: whoever asks has a reason to doubt, and does not wait as long as one who has none.
    async fn alive_still(&self, connection: &Connection) -> bool {
        self.alive(connection).await
    }
    /// The pause between two looks at a connection that is up.
    fn interval(&self) -> Duration;
}

/// Tokens, ids and the wall clock: everything that a simulation must hold in its hand.
pub trait Issuer: Send + Sync {
    /// A token of this process for `caller`, and when it ends.
    fn token(&self, caller: &Caller) -> Result<(String, SystemTime)>;
    /// Our id for the connection of `path`, as `caller` brings it: the path's index is the caller's. The same caller
    /// with the same path up to there gets the same id, also after a restart.
    fn connection_id(&self, path: &Path, caller: &Caller) -> ConnectionId;
    /// Whether `id` is one that we gave to the connection which begins as `path` does, whoever passed it on then.
    fn gave(&self, id: &ConnectionId, path: &Path, caller: &Caller) -> bool;
    /// Wall clock, only for comparing with signed expiries.
    fn now(&self) -> SystemTime;
    /// A number below `below` for jitter.
    fn random(&self, below: u64) -> u64;
}

/// Where in a path a role stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It starts the path, and refreshes it.
    Origin,
    /// Somebody calls it; the connection lives as long as the caller's token.
    Server,
}

/// Durations of one hop. Every wait is one of these.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Longest handling of one Request when the caller does not say.
    pub request_timeout: Duration,
    /// Longest wait for a Close of the next hop.
    pub close_timeout: Duration,
    /// How often a settled connection is compared with the kernel.
    pub repair_every: Duration,
    /// First pause after a failure; doubles up to `retry_max`, with jitter.
    pub retry_min: Duration,
    /// Longest pause between tries.
    pub retry_max: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            request_timeout: Duration::from_secs(15),
            close_timeout: Duration::from_secs(1),
            repair_every: Duration::from_secs(30),
            retry_min: Duration::from_millis(200),
            retry_max: Duration::from_secs(5),
        }
    }
}

/// A role: the parts of one hop.
pub struct Role {
    /// The process's name in paths.
    pub name: HopName,
    /// Where it stands.
    pub standing: Standing,
    /// Tokens, ids, clock.
    pub issuer: Arc<dyn Issuer>,
    /// Who may enter; all must agree.
    pub admit: Vec<Box<dyn Admit>>,
    /// What is held for a connection, in order.
    pub reserve: Vec<Box<dyn Reserve>>,
    /// Who comes next.
    pub onward: Box<dyn Onward>,
    /// Other hops.
    pub dial: Arc<dyn Dial>,
    /// What must exist in the kernel.
    pub wiring: Box<dyn Wiring>,
    /// The kernel.
    pub kernel: Arc<dyn Kernel>,
    /// Grows with every start of the process.
    pub generation: u64,
    /// Every wait.
    pub timing: Timing,
}

/// A hop without kernel objects of its own.
pub struct NoWires;

impl Wiring for NoWires {
    fn wires(&self, _: &Draft, _: Option<&Sent>) -> Result<WirePlan> {
        Ok(WirePlan::default())
    }
}
