//! How a server ends: everybody hears of it, everybody is waited for, and not for ever.

use crate::limits::DRAIN_TIMEOUT;
use std::convert::Infallible;
use tokio::{
    sync::{mpsc, watch},
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
    _alive: mpsc::Sender<Infallible>,
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
    async fn reached(&self, phase: Phase) {
        // An error means that the other end has gone, which is later still.
        let _ = self.phase.clone().wait_for(|now| *now >= phase).await;
    }
}

/// The other end.
pub(crate) struct Drainer {
    phase: watch::Sender<Phase>,
    gone: mpsc::Receiver<Infallible>,
}

pub(crate) fn drain() -> (Drainer, Drain) {
    let (phase, watcher) = watch::channel(Phase::Open);
    let (alive, gone) = mpsc::channel(1);
    (Drainer { phase, gone }, Drain { phase: watcher, _alive: alive })
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
