//! What keeps the index: a watch of everything, opened again whenever it ends.
//!
//! A watch does not say where its snapshot ends. So once its first message is here (it is open then), one Find names
//! all that is there: when the watch has told of each of these, the index is complete, and what neither has named is
//! gone. An empty registry says nothing, and is asked each time.

use super::{Inner, Mode::*, Told};
use crate::engine::{Change, Revision};
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use nsm_api::{Caller, Error, Kind, Result};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::time::{sleep, timeout};

/// Pauses before the watch is opened again, doubled from the first to the last.
pub(super) const REOPEN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long nothing is remembered after the registry was found to hold too much.
pub(super) const OFF: Duration = Duration::from_secs(600);
/// How often news is put over what a registration of this node puts at the same time.
const PUT_TRIES: usize = 16;
/// How long reading all names once may take.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How far the index may be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// It follows the registry.
    Complete,
    /// The registry cannot be reached; the index is what was there.
    Away,
    /// The registry is there, and the index does not have all of it yet.
    Behind,
    /// There is no index: the registry holds too much.
    Off,
}

/// Follows the registry until it is aborted.
pub(super) async fn run<R: Told>(inner: Arc<Inner>) {
    let mut pause = REOPEN.0;
    loop {
        match R::ask(&*inner.upstream, R::everything(true), Caller::default()).await {
            Ok(changes) => {
                let mut feed = Feed { inner: &inner, changes, seen: BTreeSet::new() };
                set::<R>(&inner, Behind);
                match feed.follow().await {
                    Ok(()) => pause = REOPEN.0,
                    Err(error) if error.kind == Kind::Exhausted => {
                        set::<R>(&inner, Off);
                        clear::<R>(&inner).await;
                        sleep(OFF).await;
                        continue;
                    }
                    Err(_) => {}
                }
                set::<R>(&inner, Behind);
            }
            Err(_) => set::<R>(&inner, Away),
        }
        sleep(pause).await;
        pause = (pause * 2).min(REOPEN.1);
    }
}

fn set<R: Told>(inner: &Inner, to: Mode) {
    R::mode(inner).send_replace(to);
}

/// Nobody is answered from the index any more.
async fn clear<R: Told>(inner: &Inner) {
    let store = R::store(&inner.index);
    for record in store.find(&R::everything(false)).await.into_iter().flatten() {
        hide::<R>(inner, record.name()).await;
    }
}

/// One watch.
struct Feed<'a, R: Told> {
    inner: &'a Inner,
    changes: BoxStream<'static, Result<Change<R>>>,
    /// Whom it has told of.
    seen: BTreeSet<R::Name>,
}

impl<R: Told> Feed<'_, R> {
    /// `Ok` when the watch ended after the index had been complete.
    async fn follow(&mut self) -> Result<()> {
        self.step().await?;
        let mut missing: BTreeSet<_> = names::<R>(self.inner).await?.difference(&self.seen).cloned().collect();
        while !missing.is_empty() {
            missing.remove(&self.step().await?);
        }
        self.sweep().await;
        set::<R>(self.inner, Complete);
        while let Some(change) = self.changes.next().await {
            let Ok(change) = change else { break };
            self.apply(change).await?;
        }
        Ok(())
    }

    /// The next message, while the index is behind; answers whom it tells of.
    async fn step(&mut self) -> Result<R::Name> {
        let ended = || Error::new(Kind::Unavailable, "the registry above the manager", "ended its watch", "look whether it runs");
        let change = self.changes.next().await.ok_or_else(ended)??;
        let name = change.record.name().clone();
        self.seen.insert(name.clone());
        self.apply(change).await?;
        Ok(name)
    }

    async fn apply(&mut self, change: Change<R>) -> Result<()> {
        if change.deleted {
            hide::<R>(self.inner, change.record.name()).await;
            return Ok(());
        }
        for _ in 0..PUT_TRIES {
            let present = self.inner.revision::<R>(change.record.name()).await;
            if put(self.inner, change.record.clone(), present).await? {
                return Ok(());
            }
        }
        Err(Error::internal(R::object(change.record.name()), "is registered here all the time"))
    }

    /// What was remembered from before, and is not there any more.
    async fn sweep(&mut self) {
        let seen = std::mem::take(&mut self.seen);
        for record in R::store(&self.inner.index).find(&R::everything(false)).await.into_iter().flatten() {
            if !seen.contains(record.name()) {
                hide::<R>(self.inner, record.name()).await;
            }
        }
    }
}

/// All that is there now.
async fn names<R: Told>(inner: &Inner) -> Result<BTreeSet<R::Name>> {
    let read = async {
        let found = R::ask(&*inner.upstream, R::everything(false), Caller::within(READ_TIMEOUT)).await?;
        let present = found.try_filter(|change| std::future::ready(!change.deleted));
        present.map_ok(|change| change.record.name().clone()).try_collect().await
    };
    let late = |_| Err(Error::new(Kind::Timeout, "the registry above the manager", "did not tell all it has", "look whether it runs"));
    timeout(READ_TIMEOUT, read).await.unwrap_or_else(late)
}

/// Remembers `record` over the write `present`, for as long as it is registered; `false` when another write was faster.
pub(super) async fn put<R: Told>(inner: &Inner, record: Arc<R>, present: Option<Revision>) -> Result<bool> {
    let life = match record.end().map(|end| end.duration_since((inner.wall)())) {
        None => None,
        Some(Ok(life)) if !life.is_zero() => Some(life),
        Some(_) => {
            hide::<R>(inner, record.name()).await;
            return Ok(true);
        }
    };
    Ok(R::store(&inner.index).put(record, present, life).await?.is_some())
}

async fn hide<R: Told>(inner: &Inner, name: &R::Name) {
    if let Some(present) = inner.revision::<R>(name).await {
        let _ = R::store(&inner.index).remove(name, present).await;
    }
}
