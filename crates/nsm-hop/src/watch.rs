//! What the next hops say about the connections that this hop has with them.
//!
//! One monitor stream for each next hop, shared by all connections that go there; it lasts as long as somebody uses it
//! and is opened again when it breaks. What comes on it reaches a connection as [`News`] in its seat: one piece, the
//! latest, however many came. News may be late, so that it speaks of a former life of the connection: whoever reads
//! it decides whether to believe it or to [`look`].
//!
//! Not here: what follows from news; see `conn/news.rs`.

use crate::{
    conn::Event,
    role::{Candidate, Role},
};
use futures::StreamExt;
use nsm_api::*;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use tokio::{
    sync::mpsc::WeakSender,
    time::{Instant, interval_at, sleep, timeout},
};
use tracing::debug;

/// Next hops that are watched at once. Of more nothing is heard until the next refresh.
pub const MAX_WATCHED: usize = 1024;
/// How long a stream without users stays open: connections come and go, mostly to the same hops.
pub const LINGER: Duration = Duration::from_secs(30);
/// Longest wait for a stream to open, and for a look.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Pauses before a stream is opened again, doubled from the first to the last, with jitter. The first try is at once.
pub const REOPEN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A stream that lasted so long may be opened again at once when it breaks.
pub const STEADY: Duration = Duration::from_secs(1);
/// Longest pause before a hop is asked again that does not let itself be monitored.
pub const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// What is known about a connection at its next hop.
#[derive(Debug)]
pub(crate) enum What {
    /// The next hop has it so.
    Known(Box<Connection>),
    /// The next hop does not have it.
    Gone,
    /// The next hop cannot be heard.
    Lost,
}

/// The latest about one connection.
#[derive(Debug)]
pub(crate) struct News {
    pub(crate) what: What,
    /// It was so at this moment or later; `None` when nobody can say.
    pub(crate) since: Option<Instant>,
}

struct User {
    mailbox: WeakSender<Event>,
    news: Option<News>,
    /// It was told that the hop is lost, and nothing else since.
    lost: bool,
}

#[derive(Default)]
struct Group {
    users: BTreeMap<ConnectionId, User>,
    /// Nobody has used it since the last look at the clock.
    idle: bool,
}

struct Shared {
    role: Arc<Role>,
    groups: Mutex<BTreeMap<Target, Group>>,
}

/// The next hops of one hop that are watched.
#[derive(Clone)]
pub(crate) struct Watches(Arc<Shared>);

/// A connection's interest in its next hop. Ends when dropped.
pub(crate) struct Seat {
    watches: Watches,
    target: Target,
    id: ConnectionId,
}

impl Seat {
    pub(crate) fn is_at(&self, target: &Target) -> bool {
        self.target == *target
    }
    /// The latest news, once.
    pub(crate) fn take(&self) -> Option<News> {
        self.with(|user| user.news.take())
    }
    pub(crate) fn pending(&self) -> bool {
        self.with(|user| user.news.is_some().then_some(())).is_some()
    }
    fn with<T>(&self, act: impl FnOnce(&mut User) -> Option<T>) -> Option<T> {
        self.watches.lock().get_mut(&self.target)?.users.get_mut(&self.id).and_then(act)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(group) = self.watches.lock().get_mut(&self.target) {
            group.users.remove(&self.id);
        }
    }
}

impl Watches {
    pub(crate) fn new(role: Arc<Role>) -> Watches {
        Watches(Arc::new(Shared { role, groups: Mutex::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Target, Group>> {
        self.0.lock()
    }

    /// From now on `id` hears what `candidate` says about it, in `mailbox`'s connection. `None` when too many are watched.
    pub(crate) fn join(&self, candidate: &Candidate, id: &ConnectionId, mailbox: &WeakSender<Event>) -> Option<Seat> {
        let mut groups = self.lock();
        if !groups.contains_key(&candidate.target) {
            if groups.len() >= MAX_WATCHED {
                return None;
            }
            groups.insert(candidate.target.clone(), Group::default());
            let follower = Follower { shared: Arc::downgrade(&self.0), role: self.0.role.clone(), candidate: candidate.clone() };
            tokio::spawn(follower.run());
        }
        let group = groups.get_mut(&candidate.target)?;
        group.users.insert(id.clone(), User { mailbox: mailbox.clone(), news: None, lost: false });
        Some(Seat { watches: self.clone(), target: candidate.target.clone(), id: id.clone() })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Target, Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a group that nobody uses. False when it goes on.
    fn retire(&self, target: &Target, when: Idle) -> bool {
        let mut groups = self.lock();
        let Some(group) = groups.get_mut(target) else { return true };
        let unused = group.users.is_empty();
        let ends = unused && (when == Idle::Now || group.idle);
        group.idle = unused;
        if ends {
            groups.remove(target);
        }
        ends
    }

    /// The stream is broken and cannot be opened. Said once, however often it is tried.
    fn lost(&self, target: &Target) {
        let since = Some(Instant::now());
        if let Some(group) = self.lock().get_mut(target) {
            group.users.values_mut().filter(|user| !user.lost).for_each(|user| user.tell(News { what: What::Lost, since }));
        }
    }

    /// `since`: the event is the first of a stream that was asked for then.
    fn heard(&self, target: &Target, event: ConnectionEvent, since: Option<Instant>) {
        let own = &self.role.name;
        let mut told: BTreeMap<ConnectionId, Connection> =
            event.connections.into_values().filter_map(|connection| Some((about(own, &connection)?.clone(), connection))).collect();
        let mut groups = self.lock();
        let Some(group) = groups.get_mut(target) else { return };
        if event.kind == EventKind::InitialStateTransfer {
            for (id, user) in &mut group.users {
                let what = told.remove(id).map_or(What::Gone, |connection| What::Known(Box::new(connection)));
                user.tell(News { what, since });
            }
            return;
        }
        for (id, connection) in told {
            let Some(user) = group.users.get_mut(&id) else { continue };
            // Also what the connection says itself: it may be about to say otherwise, because it is being answered, or has
            // looked a moment too early. Nobody would tell it again.
            let what = if event.kind == EventKind::Delete { What::Gone } else { What::Known(Box::new(connection)) };
            user.tell(News { what, since: None });
        }
    }
}

impl User {
    fn tell(&mut self, news: News) {
        self.lost = matches!(news.what, What::Lost);
        if self.news.replace(news).is_none()
            && let Some(mailbox) = self.mailbox.upgrade()
        {
            // A connection with a full mailbox has work, and looks at its seat after each piece of it.
            let _ = mailbox.try_send(Event::News);
        }
    }
}

/// Since when a group may have been unused.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Idle {
    Now,
    SinceLastTime,
}

/// Why a stream is read no longer.
enum End {
    Broken,
    Unused,
}

/// The task of one group.
struct Follower {
    // Weak: a stream must not keep a hop alive that has gone.
    shared: Weak<Shared>,
    role: Arc<Role>,
    candidate: Candidate,
}

impl Follower {
    async fn run(self) {
        let mut failures: u32 = 0;
        loop {
            let asked = Instant::now();
            let pause = match self.open().await {
                Ok(events) => match self.read(events, asked).await {
                    End::Unused => return,
                    End::Broken => {
                        failures = if asked.elapsed() >= STEADY { 0 } else { failures + 1 };
                        self.pause(failures, REOPEN.1)
                    }
                },
                Err(error) if refused(&error) => {
                    debug!(target = %self.candidate.target, %error, "the next hop is not monitored");
                    failures += 1;
                    self.pause(failures, REFUSED_PAUSE)
                }
                Err(error) => {
                    debug!(target = %self.candidate.target, %error, "the next hop is lost");
                    failures += 1;
                    let Some(shared) = self.shared.upgrade() else { return };
                    shared.lost(&self.candidate.target);
                    self.pause(failures, REOPEN.1)
                }
            };
            if self.retired(Idle::Now) {
                return;
            }
            sleep(pause).await;
        }
    }

    fn retired(&self, when: Idle) -> bool {
        self.shared.upgrade().is_none_or(|shared| shared.retire(&self.candidate.target, when))
    }

    fn pause(&self, failures: u32, longest: Duration) -> Duration {
        let Some(doubled) = failures.checked_sub(1) else { return Duration::ZERO };
        let pause = REOPEN.0.saturating_mul(1 << doubled.min(16)).min(longest);
        pause / 2 + Duration::from_millis(self.role.issuer.random(pause.as_millis() as u64 / 2 + 1))
    }

    async fn open(&self) -> Result<Events> {
        // By our own name only: one stream for all connections.
        open(&self.role, &self.candidate, String::new()).await
    }

    async fn read(&self, mut events: Events, asked: Instant) -> End {
        let mut clock = interval_at(Instant::now() + LINGER, LINGER);
        let mut since = Some(asked);
        loop {
            tokio::select! {
                biased; // a simulation repeats itself
                event = events.next() => match event {
                    Some(Ok(event)) => {
                        let Some(shared) = self.shared.upgrade() else { return End::Unused };
                        shared.heard(&self.candidate.target, event, since.take());
                    }
                    Some(Err(error)) => {
                        debug!(target = %self.candidate.target, %error, "a monitor stream broke");
                        return End::Broken;
                    }
                    None => return End::Broken,
                },
                _ = clock.tick() => if self.retired(Idle::SinceLastTime) { return End::Unused },
            }
        }
    }
}

/// Whose connection of ours `connection` continues, as the next hop tells it: the segment before the teller's is ours.
fn about<'a>(own: &HopName, connection: &'a Connection) -> Option<&'a ConnectionId> {
    let ours = |at: usize| connection.path.segments.get(at).filter(|segment| segment.name == *own);
    let at = connection.path.index as usize;
    Some(&at.checked_sub(1).and_then(ours).or_else(|| ours(at))?.id)
}

/// Whether there is nothing in `theirs` that `ours` does not say.
pub(crate) fn says_the_same(ours: &Connection, theirs: &Connection) -> bool {
    ours.state == theirs.state && ours.context == theirs.context
}

/// Whether the hop is there but does not want to be monitored. That says nothing about its connections.
fn refused(error: &Error) -> bool {
    matches!(error.kind, Kind::Unsupported | Kind::Denied | Kind::Invalid)
}

async fn open(role: &Role, candidate: &Candidate, id: String) -> Result<Events> {
    let pattern = SegmentPattern { name: role.name.as_str().to_owned(), id, ..SegmentPattern::default() };
    let selector = Selector { segments: vec![pattern], services: vec![] };
    let api = role.dial.dial(&candidate.target, &candidate.socket);
    timeout(PATIENCE, api.monitor(selector, Caller::within(PATIENCE))).await.unwrap_or_else(|_| Err(silent(candidate)))
}

/// What the next hop has of connection `id` at this moment; `None` when it does not want to say.
pub(crate) async fn look(role: &Role, candidate: &Candidate, id: &ConnectionId) -> Option<What> {
    let first = async {
        let mut events = open(role, candidate, id.as_str().to_owned()).await?;
        events.next().await.unwrap_or_else(|| Err(silent(candidate)))
    };
    match timeout(PATIENCE, first).await.unwrap_or_else(|_| Err(silent(candidate))) {
        Ok(event) => {
            let found = event.connections.into_values().find(|connection| about(&role.name, connection) == Some(id));
            Some(found.map_or(What::Gone, |connection| What::Known(Box::new(connection))))
        }
        Err(error) if refused(&error) => None,
        Err(error) => {
            debug!(target = %candidate.target, %error, "the next hop cannot be asked");
            Some(What::Lost)
        }
    }
}

fn silent(candidate: &Candidate) -> Error {
    let reason = format!("says nothing about its connections within {PATIENCE:?}");
    Error::new(Kind::Timeout, candidate.target.to_string(), reason, "look at the log of that process")
}
