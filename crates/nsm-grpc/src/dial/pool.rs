//! One connection for each target, dialled by the first call that needs it, again when it has gone.

use super::{
    DialOptions, Resolver,
    connect::{Connection, Failure, Place, connect, unreachable},
};
use crate::limits::MAX_POOLED_TARGETS;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use nsm_api::{Error, Files, Target};
use nsm_identity::Source;
use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::time::timeout;

/// The slots of a dialer.
pub(crate) struct Pool {
    environment: Arc<Environment>,
    slots: Mutex<Slots>,
}

/// What every dial needs.
pub(crate) struct Environment {
    pub(crate) source: Source,
    pub(crate) options: DialOptions,
    resolver: Resolver,
}

#[derive(Default)]
struct Slots {
    by_target: BTreeMap<Target, (u64, Arc<Slot>)>,
    /// Numbers the uses, so that the least recent can make room.
    uses: u64,
}

impl Pool {
    pub(crate) fn new(source: Source, options: DialOptions) -> Pool {
        let environment = Arc::new(Environment { source, options, resolver: Resolver::default() });
        Pool { environment, slots: Mutex::default() }
    }

    /// The slot of `target`. Whoever holds one keeps it working, also when the pool has given its place away.
    pub(crate) fn slot(&self, target: &Target, files: &Files) -> Arc<Slot> {
        let mut slots = lock(&self.slots);
        slots.uses += 1;
        let now = slots.uses;
        if let Some((used, slot)) = slots.by_target.get_mut(target) {
            *used = now;
            return slot.clone();
        }
        let file = if let Target::Inode(key) = target { files.get(*key).cloned() } else { None };
        let unusable = matches!(target, Target::Inode(_)) && file.is_none();
        let slot = Arc::new(Slot { environment: self.environment.clone(), target: target.clone(), file, dial: Mutex::default() });
        if unusable {
            // It can only explain itself; the next caller may bring the socket.
            return slot;
        }
        if slots.by_target.len() >= MAX_POOLED_TARGETS {
            let oldest = slots.by_target.iter().min_by_key(|(_, (used, _))| *used).map(|(target, _)| target.clone());
            oldest.and_then(|target| slots.by_target.remove(&target));
        }
        slots.by_target.insert(target.clone(), (now, slot.clone()));
        slot
    }
}

type Dial = Shared<BoxFuture<'static, Result<Arc<Connection>, Failure>>>;

/// One target and its connection.
pub(crate) struct Slot {
    pub(crate) environment: Arc<Environment>,
    pub(crate) target: Target,
    file: Option<Arc<OwnedFd>>,
    /// The last dial: under way, failed, or the connection it made.
    dial: Mutex<Option<Dial>>,
}

impl Slot {
    /// The connection, dialled if need be. Callers that come meanwhile share the attempt and its outcome.
    pub(crate) async fn connect(self: &Arc<Self>) -> Result<Arc<Connection>, Failure> {
        let dial = {
            let mut last = lock(&self.dial);
            let usable = last.take().filter(|dial| match dial.peek() {
                None => true,
                Some(Ok(connection)) => connection.is_usable(),
                Some(Err(_)) => false,
            });
            last.insert(usable.unwrap_or_else(|| self.clone().start())).clone()
        };
        dial.await
    }

    /// Starts a dial that does not depend on any caller's patience.
    fn start(self: Arc<Self>) -> Dial {
        let dial = tokio::spawn(async move {
            let bound = self.environment.options.dial_timeout;
            timeout(bound, self.dial()).await.unwrap_or_else(|_| {
                let reason = format!("no connection within {bound:?}");
                Err(unreachable(&self.target, reason).into())
            })
        });
        dial.map(|done| done.unwrap_or_else(|error| Err(Error::internal("dial", error.to_string()).into()))).boxed().shared()
    }

    async fn dial(self: &Arc<Self>) -> Result<Arc<Connection>, Failure> {
        let place = Place { target: &self.target, file: self.file.as_deref() };
        let (connection, driver) = connect(&self.environment.source, &self.environment.resolver, place).await?;
        let connection = Arc::new(connection);
        let (slot, driven) = (Arc::downgrade(self), Arc::downgrade(&connection));
        tokio::spawn(async move {
            driver.await;
            if let Some(connection) = driven.upgrade() {
                connection.end();
            }
            if let Some(slot) = slot.upgrade() {
                slot.tidy();
            }
        });
        Ok(connection)
    }

    /// Lets go of a connection that has ended, and of the files that came with it.
    fn tidy(&self) {
        lock(&self.dial).take_if(|dial| matches!(dial.peek(), Some(Ok(connection)) if !connection.is_usable()));
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
