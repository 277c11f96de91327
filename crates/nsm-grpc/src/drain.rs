//! How a server ends: everybody hears of it, everybody is waited for, and not for ever. And how much it works at once.

use crate::{
    limits::{DRAIN_TIMEOUT, MAX_CALLS_AT_WORK, MAX_CALLS_PER_IDENTITY, MAX_STREAMS_PER_IDENTITY},
    share::{Share, Shares},
};
use nsm_api::{Error, Kind, Result, SpiffeId};
use std::{convert::Infallible, sync::Arc};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::timeout,
};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Open,
    Closing,
    Abandoned,
}

/// Held by all that runs for the server: tells when to end, and keeps the end waiting while any clone lives.
#[derive(Clone)]
pub(crate) struct Drain {
    phase: watch::Receiver<Phase>,
    room: Arc<Semaphore>,
    calls: Arc<Shares>,
    streams: Arc<Shares>,
    _alive: mpsc::Sender<Infallible>,
}

/// The right to work. While it lives, so does the server.
pub(crate) struct Permit {
    _room: OwnedSemaphorePermit,
    _share: Share,
    _drain: Drain,
}

impl Drain {
    /// Returns when shutdown has begun.
    pub(crate) async fn closing(&self) {
        self.reached(Phase::Closing).await;
    }
    /// Returns when those who are left are waited for no longer.
    pub(crate) async fn abandoned(&self) {
        self.reached(Phase::Abandoned).await;
    }
    /// Refused when too many calls are at work, altogether or of this identity.
    pub(crate) fn permit(&self, identity: &SpiffeId) -> Result<Permit> {
        let share =
            self.calls.take(identity).ok_or_else(|| too_busy(&format!("{MAX_CALLS_PER_IDENTITY} calls of {identity} are at work")))?;
        let room = self.room.clone().try_acquire_owned();
        let room = room.map_err(|_| too_busy(&format!("{MAX_CALLS_AT_WORK} calls are at work")))?;
        Ok(Permit { _room: room, _share: share, _drain: self.clone() })
    }
    /// Held as long as a stream lasts. Refused when this identity has too many.
    pub(crate) fn stream(&self, identity: &SpiffeId) -> Result<Share> {
        self.streams.take(identity).ok_or_else(|| too_busy(&format!("{MAX_STREAMS_PER_IDENTITY} streams go to {identity}")))
    }
    async fn reached(&self, phase: Phase) {
        // An error means that the other end has gone, which is later still.
        let _ = self.phase.clone().wait_for(|now| *now >= phase).await;
    }
}

fn too_busy(reason: &str) -> Error {
    Error::new(Kind::Exhausted, "this process", format!("{reason} already"), "ask again later")
}

/// The other end.
pub(crate) struct Drainer {
    phase: watch::Sender<Phase>,
    gone: mpsc::Receiver<Infallible>,
}

pub(crate) fn drain() -> (Drainer, Drain) {
    let (phase, watcher) = watch::channel(Phase::Open);
    let (alive, gone) = mpsc::channel(1);
    let room = Arc::new(Semaphore::new(MAX_CALLS_AT_WORK));
    let (calls, streams) = (Shares::new(MAX_CALLS_PER_IDENTITY), Shares::new(MAX_STREAMS_PER_IDENTITY));
    (Drainer { phase, gone }, Drain { phase: watcher, room, calls, streams, _alive: alive })
}

impl Drainer {
    /// Begins the shutdown and waits for its end.
    pub(crate) async fn drain(mut self) {
        self.phase.send_replace(Phase::Closing);
        if timeout(DRAIN_TIMEOUT, self.gone.recv()).await.is_err() {
            tracing::warn!("calls still run {DRAIN_TIMEOUT:?} after shutdown began, closing their connections");
            self.phase.send_replace(Phase::Abandoned);
        }
    }
}
