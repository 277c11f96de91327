//! How a process ends: one drain, started by a signal or by the role itself, with a deadline after which force is used.
//!
//! SIGINT, SIGTERM, SIGHUP and SIGQUIT start the drain; a second one ends it at once. A role waits for
//! [`Shutdown::started`], closes what it holds and returns; whoever runs the role gives up at [`Shutdown::forced`].

use std::{io, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::Instant,
};

/// How long a role may take to close what it holds. Kubernetes kills a container after 30 seconds.
pub const DRAIN_TIME: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Running,
    Draining { until: Instant },
    Forced,
}

/// A handle on the end of the process. Clones share it.
#[derive(Clone, Debug)]
pub struct Shutdown {
    stage: watch::Sender<Stage>,
    drain_time: Duration,
}

impl Shutdown {
    /// Nothing starts it but [`Shutdown::start`].
    pub fn new(drain_time: Duration) -> Shutdown {
        Shutdown { stage: watch::Sender::new(Stage::Running), drain_time }
    }
    /// Started by the signals above. Must be called inside a tokio runtime, before the first signal may come.
    pub fn on_signals(drain_time: Duration) -> io::Result<Shutdown> {
        let shutdown = Shutdown::new(drain_time);
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()] {
            let mut signals = signal(kind)?;
            let shutdown = shutdown.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    match shutdown.is_started() {
                        false => tracing::info!(signal = kind.as_raw_value(), "stopping"),
                        true => tracing::warn!(signal = kind.as_raw_value(), "stopping at once"),
                    }
                    shutdown.signalled();
                }
            });
        }
        Ok(shutdown)
    }
    /// The first time starts the drain, the second ends it.
    fn signalled(&self) {
        match self.is_started() {
            false => self.start(),
            true => self.force(),
        }
    }
    /// Starts the drain, unless it has started.
    pub fn start(&self) {
        let until = Instant::now() + self.drain_time;
        self.stage.send_if_modified(|stage| {
            let first = *stage == Stage::Running;
            if first {
                *stage = Stage::Draining { until };
            }
            first
        });
    }
    /// Ends the drain, finished or not.
    pub fn force(&self) {
        self.stage.send_replace(Stage::Forced);
    }
    /// Whether the drain has started.
    pub fn is_started(&self) -> bool {
        *self.stage.borrow() != Stage::Running
    }
    /// Waits until the drain starts.
    pub async fn started(&self) {
        self.reached(|stage| *stage != Stage::Running).await;
    }
    /// Waits until the drain has taken too long, or was ended by force.
    pub async fn forced(&self) {
        match self.reached(|stage| *stage != Stage::Running).await {
            Stage::Draining { until } => {
                let _ = tokio::time::timeout_at(until, self.reached(|stage| *stage == Stage::Forced)).await;
            }
            Stage::Running | Stage::Forced => {}
        }
    }
    async fn reached(&self, wanted: impl FnMut(&Stage) -> bool) -> Stage {
        let mut watcher = self.stage.subscribe();
        let seen = watcher.wait_for(wanted).await.map(|stage| *stage);
        // The sender lives in `self`, so waiting cannot be cut short.
        seen.unwrap_or(Stage::Forced)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_deadline_forces() {
        let shutdown = Shutdown::new(Duration::from_secs(7));
        assert!(!shutdown.is_started());
        shutdown.start();
        shutdown.started().await;
        let begin = Instant::now();
        shutdown.start();
        shutdown.forced().await;
        assert_eq!(begin.elapsed().as_secs(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_forces_at_once() {
        let shutdown = Shutdown::new(Duration::from_secs(7));
        let begin = Instant::now();
        let (stopper, waiter) = (shutdown.clone(), shutdown.clone());
        let waiting = tokio::spawn(async move { waiter.forced().await });
        stopper.signalled();
        stopper.signalled();
        waiting.await.unwrap();
        shutdown.started().await;
        assert_eq!(begin.elapsed().as_secs(), 0);
    }
}
