//! The handle that everybody calls: finds or starts a connection's task and hands it the event.

use crate::{
    conn::{self, Closing, Conn, Entered, Event, Incoming, Measured, Place, Reply},
    journal::{Journal, Record},
    monitor::Monitors,
    path,
    role::{Liveness, Role, Standing},
    watch::Watches,
};
use async_trait::async_trait;
use futures::StreamExt;
use nsm_api::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::Instrument;

/// Events that may wait at one connection.
pub const MAX_MAILBOX: usize = 16;
/// Connections of which counters are read at the same time.
pub const MEASURED_AT_ONCE: usize = 16;
/// Longest wait for the counters of one connection.
pub const MEASURE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);
/// Connections of one hop.
pub const MAX_CONNECTIONS: usize = 16_384;

type Tasks = Arc<Mutex<BTreeMap<ConnectionId, mpsc::Sender<Event>>>>;

fn lock(tasks: &Tasks) -> MutexGuard<'_, BTreeMap<ConnectionId, mpsc::Sender<Event>>> {
    tasks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One hop: a role and its connections.
#[derive(Clone)]
pub struct Hop {
    role: Arc<Role>,
    monitors: Monitors,
    watches: Watches,
    liveness: Option<Arc<dyn Liveness>>,
    journal: Option<Arc<dyn Journal>>,
    tasks: Tasks,
    /// Wall clock at its start.
    started: SystemTime,
}

impl Hop {
    /// A hop without connections.
    pub fn new(role: Role) -> Hop {
        let (role, monitors) = (Arc::new(role), Monitors::default());
        let (watches, started) = (Watches::new(role.clone()), role.issuer.now());
        Hop { watches, role, monitors, liveness: None, journal: None, tasks: Tasks::default(), started }
    }
    /// With a look at the packets of its connections, which are then mended without waiting for news. For an origin, before it
    /// is asked anything.
    pub fn with_liveness(mut self, liveness: Arc<dyn Liveness>) -> Hop {
        self.liveness = Some(liveness);
        self
    }
    /// With a journal, and with the connections that a former process left in it. Before it is asked anything.
    ///
    /// First all of them get what they held, so that nothing is given to anybody else; then each is taken up as it was,
    /// or brought to its end.
    pub fn with_journal(mut self, journal: Arc<dyn Journal>, records: Vec<Record>) -> Hop {
        self.journal = Some(journal);
        for (record, part) in records.iter().flat_map(|record| self.role.reserve.iter().map(move |part| (record, part))) {
            record.up.iter().chain(&record.former).for_each(|agreed| part.restore(agreed));
        }
        for record in records.into_iter().take(MAX_CONNECTIONS) {
            let (id, (sender, mailbox)) = (record.id.clone(), mpsc::channel(MAX_MAILBOX));
            let conn = Conn::restored(record, self.place(&sender));
            lock(&self.tasks).insert(id.clone(), sender);
            self.spawn(id, conn, mailbox);
        }
        self
    }
    /// Its name in paths.
    pub fn name(&self) -> &HopName {
        &self.role.name
    }
    /// That of its process.
    pub fn generation(&self) -> u64 {
        self.role.generation
    }
    /// Its connections as monitors see them.
    pub fn monitors(&self) -> &Monitors {
        &self.monitors
    }
    /// Ends a connection as if its client had closed it; nothing when there is none.
    pub fn end(&self, id: &ConnectionId) {
        let mailbox = lock(&self.tasks).get(id).cloned();
        if mailbox.is_some_and(|mailbox| mailbox.try_send(Event::End).is_err()) {
            tracing::warn!(%id, "too busy to be ended; its client or its expiry does it");
        }
    }
    /// What has passed over the wires of all connections that are up. One that is busy with something else is left out.
    pub async fn measure(&self) -> Vec<Measured> {
        let mailboxes: Vec<_> = lock(&self.tasks).values().cloned().collect();
        let ask = |mailbox: mpsc::Sender<Event>| async move {
            let (reply, answer) = oneshot::channel();
            mailbox.try_send(Event::Measure(reply)).ok()?;
            timeout(MEASURE_TIMEOUT, answer).await.ok()?.ok()?
        };
        let answers = futures::stream::iter(mailboxes).map(ask).buffered(MEASURED_AT_ONCE);
        answers.filter_map(std::future::ready).collect().await
    }
    /// Its connections: up, or not yet cleaned up.
    pub fn known(&self) -> BTreeSet<ConnectionId> {
        lock(&self.tasks).keys().cloned().collect()
    }
    /// How many those are.
    pub fn busy(&self) -> usize {
        lock(&self.tasks).len()
    }

    /// Enters the path and signs it: the caller's token into its segment, our own into ours.
    fn enter(&self, connection: &mut Connection, caller: &Caller) -> Result<Entered> {
        let role = &self.role;
        let return_index = match role.standing {
            Standing::Origin => {
                path::begin(connection, &role.name);
                0
            }
            Standing::Server => {
                path::enter(connection, &role.name, |path, named| self.own_id(path, named, caller)).map_err(|error| error.at(&role.name))?
            }
        };
        let shown = std::mem::take(&mut connection.path.segments[connection.path.index as usize].token);
        let (token, expires) = role.issuer.token(caller).map_err(|error| error.at(&role.name))?;
        let own = connection.path.index as usize;
        let former_life = connection.path.segments[own].expires.is_some_and(|end| self.is_before_start(end, expires));
        if let Some(previous) = own.checked_sub(1).filter(|_| caller.token_expires.is_some()).map(|at| &mut connection.path.segments[at]) {
            previous.token.clone_from(&caller.token);
            previous.expires = caller.token_expires;
        }
        connection.path.segments[own].token = token;
        connection.path.segments[own].expires = Some(expires);
        Ok(Entered { return_index, shown, former_life })
    }

    /// Whether a token of ours that ends at `end` was made before this process was there. One made now ends at `now_made`,
    /// and all have the same life, more or less.
    fn is_before_start(&self, end: SystemTime, now_made: SystemTime) -> bool {
        let life = now_made.duration_since(self.role.issuer.now()).unwrap_or_default();
        end.checked_sub(life).is_some_and(|made| made < self.started)
    }

    /// What we call the connection: as the path does, if we gave that name to its origin. A name that is not ours to
    /// keep gives way to a new one, unless it leads to the connection of somebody else.
    fn own_id(&self, path: &Path, named: Option<&ConnectionId>, caller: &Caller) -> Result<ConnectionId> {
        let issuer = &self.role.issuer;
        match named {
            Some(id) if issuer.gave(id, path, caller) => Ok(id.clone()),
            Some(id) if lock(&self.tasks).contains_key(id) => Err(conn::not_yours(id)),
            _ => Ok(issuer.connection_id(path, caller)),
        }
    }

    async fn ask<T>(&self, id: ConnectionId, event: impl FnOnce(Reply<T>) -> Event) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.send(&id, event(reply))?;
        answer.await.unwrap_or_else(|_| {
            Err(Error::internal(format!("connection {:?}", id.as_str()), "its task ended without an answer").at(&self.role.name))
        })
    }

    fn send(&self, id: &ConnectionId, event: Event) -> Result<()> {
        let full = |what: &str, limit: usize| {
            let object = format!("connection {:?}", id.as_str());
            Err(Error::new(Kind::Exhausted, object, format!("{what}, the limit is {limit}"), "wait and try again").at(&self.role.name))
        };
        let mut tasks = lock(&self.tasks);
        if !tasks.contains_key(id) {
            if tasks.len() >= MAX_CONNECTIONS {
                return full("this hop has too many connections", MAX_CONNECTIONS);
            }
            tasks.insert(id.clone(), self.start(id.clone()));
        }
        match tasks[id].try_send(event) {
            Ok(()) => Ok(()),
            Err(_) => full("too many events wait for it", MAX_MAILBOX),
        }
    }

    fn start(&self, id: ConnectionId) -> mpsc::Sender<Event> {
        let (sender, mailbox) = mpsc::channel(MAX_MAILBOX);
        let conn = Conn::new(id.clone(), self.place(&sender));
        self.spawn(id, conn, mailbox);
        sender
    }

    fn place(&self, sender: &mpsc::Sender<Event>) -> Place {
        Place {
            role: self.role.clone(),
            monitors: self.monitors.clone(),
            watches: self.watches.clone(),
            liveness: self.liveness.clone(),
            mailbox: sender.downgrade(),
            journal: self.journal.clone(),
        }
    }

    fn spawn(&self, id: ConnectionId, conn: Conn, mailbox: mpsc::Receiver<Event>) {
        let tasks = self.tasks.clone();
        let span = tracing::info_span!(parent: None, "connection", hop = %self.role.name, id = %id);
        // A task may leave only when nobody has written to it: senders write under the same lock.
        let leave = move |mailbox: &mpsc::Receiver<Event>| {
            let mut tasks = lock(&tasks);
            mailbox.is_empty() && tasks.remove(&id).is_some()
        };
        tokio::spawn(conn.run(mailbox, leave).instrument(span));
    }
}

#[async_trait]
impl NetworkServiceApi for Hop {
    async fn request(&self, mut request: Request, caller: Caller) -> Result<Answer> {
        let entered = self.enter(&mut request.connection, &caller)?;
        let id = request.connection.id.clone();
        let incoming = Box::new(Incoming { request, caller, entered });
        self.ask(id, |reply| Event::Request(incoming, reply)).await
    }

    async fn close(&self, mut connection: Connection, _files: Files, caller: Caller) -> Result<()> {
        let entered = self.enter(&mut connection, &caller)?;
        let id = connection.id.clone();
        let closing = Box::new(Closing { connection, caller, entered });
        self.ask(id, |reply| Event::Close(closing, reply)).await
    }

    async fn monitor(&self, selector: Selector, _caller: Caller) -> Result<Events> {
        Ok(self.monitors.watch(selector))
    }
}
