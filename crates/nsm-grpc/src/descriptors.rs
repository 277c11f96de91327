//! The files of one unix socket connection: received and not claimed yet, queued and not sent yet.
//!
//! A file that arrives is filed under its device and inode. A message that names it takes it out, as often as it
//! arrived: two calls about the same namespace each bring it. What no message claims (its caller may have left) is
//! dropped later. So a connection that lives long holds nothing for long, and a namespace can die. Moving the files is the business of `fd_stream`.

use crate::limits::{MAX_FILES_PER_SEND, MAX_QUEUED_FILES, MAX_UNCLAIMED_FILES, UNCLAIMED_LIFE};
use nsm_api::{Error, InodeKey, Kind, Result};
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::{AsFd, OwnedFd},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

/// Which file a descriptor is open on.
pub fn inode_key(file: impl AsFd) -> io::Result<InodeKey> {
    let stat = rustix::fs::fstat(file)?;
    Ok(InodeKey { dev: stat.st_dev, ino: stat.st_ino })
}

/// A handle on the files of one connection. Clones share the connection.
#[derive(Clone, Default)]
pub(crate) struct Descriptors(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    queued: VecDeque<Arc<OwnedFd>>,
    unclaimed: BTreeMap<InodeKey, Unclaimed>,
    closed: bool,
}

struct Unclaimed {
    file: Arc<OwnedFd>,
    /// How many messages may still take it.
    times: u32,
    /// When it came last.
    since: Instant,
}

impl Descriptors {
    /// Queues files; they leave with the next bytes written. All or none.
    pub(crate) fn queue<'a>(&self, files: impl IntoIterator<Item = &'a Arc<OwnedFd>>) -> Result<()> {
        let files: Vec<_> = files.into_iter().cloned().collect();
        let mut state = self.lock();
        if state.closed {
            return Err(Error::new(Kind::Unavailable, "connection", "closed before the files could be sent", "send the call again"));
        }
        if state.queued.len() + files.len() > MAX_QUEUED_FILES {
            let reason = format!("{} files wait to be sent, the limit is {MAX_QUEUED_FILES}", state.queued.len());
            return Err(Error::new(Kind::Exhausted, "connection", reason, "let calls in flight end first"));
        }
        state.queued.extend(files);
        Ok(())
    }

    /// Takes the file out, waiting for it until `deadline`. `None` when it did not come, or cannot come any more.
    pub(crate) async fn take(&self, key: InodeKey, deadline: Instant) -> Option<Arc<OwnedFd>> {
        loop {
            let mut changed = pin!(self.0.changed.notified());
            // Listen before looking, or an arrival in between is missed.
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                if let Some(file) = state.claim(key) {
                    return Some(file);
                }
                if state.closed {
                    return None;
                }
            }
            timeout_at(deadline, changed).await.ok()?;
        }
    }

    /// Drops a file that came along although nobody needs it.
    pub(crate) fn forget(&self, key: InodeKey) {
        self.lock().unclaimed.remove(&key);
    }

    /// Whether the connection has gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Files received over the connection. One of a kind nobody can stat is dropped, that is, closed.
    pub(crate) fn arrived(&self, files: impl Iterator<Item = OwnedFd>) {
        let mut state = self.lock();
        let now = Instant::now();
        state.unclaimed.retain(|_, file| now.duration_since(file.since) < UNCLAIMED_LIFE);
        for file in files {
            if let Ok(key) = inode_key(&file) {
                state.insert(key, file, now);
            }
        }
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// The files to send with the next bytes, and whether there are more behind them.
    pub(crate) fn next_batch(&self) -> (Vec<Arc<OwnedFd>>, bool) {
        let mut state = self.lock();
        let count = state.queued.len().min(MAX_FILES_PER_SEND);
        let batch = state.queued.drain(..count).collect();
        (batch, !state.queued.is_empty())
    }

    /// Puts a batch back that could not be sent, in its place.
    pub(crate) fn put_back(&self, batch: Vec<Arc<OwnedFd>>) {
        let mut state = self.lock();
        for file in batch.into_iter().rev() {
            state.queued.push_front(file);
        }
    }

    /// The connection has gone. What has arrived may still be taken.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.queued.clear();
        drop(state);
        self.0.changed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(crate) fn unclaimed(&self) -> usize {
        self.lock().unclaimed.len()
    }
}

impl State {
    fn insert(&mut self, key: InodeKey, file: OwnedFd, now: Instant) {
        if let Some(known) = self.unclaimed.get_mut(&key) {
            known.times = known.times.saturating_add(1);
            known.since = now;
            return;
        }
        if self.unclaimed.len() >= MAX_UNCLAIMED_FILES {
            let oldest = self.unclaimed.iter().min_by_key(|(_, file)| file.since).map(|(key, _)| *key);
            tracing::warn!(?oldest, "too many files came that no message named, dropping the oldest");
            oldest.and_then(|key| self.unclaimed.remove(&key));
        }
        self.unclaimed.insert(key, Unclaimed { file: Arc::new(file), times: 1, since: now });
    }

    fn claim(&mut self, key: InodeKey) -> Option<Arc<OwnedFd>> {
        let known = self.unclaimed.get_mut(&key)?;
        known.times -= 1;
        if known.times > 0 {
            return Some(known.file.clone());
        }
        self.unclaimed.remove(&key).map(|known| known.file)
    }
}
