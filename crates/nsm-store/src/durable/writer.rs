//! The task that writes: it gathers what waits, makes it durable together, shows it, answers.

use super::{
    disk::{Disk, Row},
    ledger::{self, Ledger},
};
use crate::{clock::Clock, record::Persist};
use nsm_api::{Error, NetworkService, NetworkServiceEndpoint, Result};
use nsm_registry::{Engine, MemoryEngine, Revision};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

/// Writes that share one fsync at most. A write waits for the batch before it and for its own, no longer.
pub const MAX_BATCH: usize = 1024;
/// Rows of ended records leave the disk at most this often by themselves; nobody sees them in the meantime.
pub const SWEEP_PERIOD: Duration = Duration::from_secs(1);

/// Where a write's outcome goes: its revision, or `None` when another was faster.
pub(super) type Answer = oneshot::Sender<Result<Option<Revision>>>;

/// One change of one name.
pub(super) enum Op<R: Persist> {
    Put(Arc<R>, Option<Instant>),
    Remove(R::Name),
}

impl<R: Persist> Op<R> {
    pub(super) fn name(&self) -> &R::Name {
        match self {
            Op::Put(record, _) => record.name(),
            Op::Remove(name) => name,
        }
    }
}

pub(super) struct Write<R: Persist> {
    pub(super) op: Op<R>,
    pub(super) expected: Option<Revision>,
    pub(super) answer: Answer,
}

pub(super) enum Job {
    Service(Write<NetworkService>),
    Endpoint(Write<NetworkServiceEndpoint>),
}

impl From<Write<NetworkService>> for Job {
    fn from(write: Write<NetworkService>) -> Job {
        Job::Service(write)
    }
}

impl From<Write<NetworkServiceEndpoint>> for Job {
    fn from(write: Write<NetworkServiceEndpoint>) -> Job {
        Job::Endpoint(write)
    }
}

pub(super) struct Writer {
    disk: Result<Disk>,
    memory: Arc<MemoryEngine>,
    services: Ledger<NetworkService>,
    endpoints: Ledger<NetworkServiceEndpoint>,
    clock: Arc<dyn Clock>,
    swept: Instant,
}

impl Writer {
    /// A writer over what the disk has; what has ended meanwhile stays out of sight, and is swept.
    pub(super) async fn load(disk: Disk, rows: Vec<Row>, memory: Arc<MemoryEngine>, clock: Arc<dyn Clock>) -> Result<Writer> {
        let (services, endpoints, swept) = (Ledger::new(), Ledger::new(), Instant::now());
        let mut writer = Writer { disk: Ok(disk), memory, services, endpoints, clock, swept };
        for row in rows {
            if row.table == NetworkService::TABLE {
                load(&mut writer.services, &writer.memory, &*writer.clock, &row).await?;
            } else {
                load(&mut writer.endpoints, &writer.memory, &*writer.clock, &row).await?;
            }
        }
        Ok(writer)
    }

    /// Ends when everybody who could ask is gone and has been answered.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        loop {
            let mut jobs = Vec::new();
            match self.next_sweep() {
                None => jobs.extend(queue.recv().await),
                Some(sweep) => tokio::select! {
                    job = queue.recv() => jobs.extend(job),
                    () = tokio::time::sleep_until(sweep) => {}
                },
            }
            if jobs.is_empty() && queue.is_closed() && queue.is_empty() {
                return;
            }
            // Those who were just answered may have the next write ready.
            tokio::task::yield_now().await;
            while jobs.len() < MAX_BATCH
                && let Ok(job) = queue.try_recv()
            {
                jobs.push(job);
            }
            self.batch(jobs).await;
        }
    }

    fn next_sweep(&self) -> Option<Instant> {
        let end = self.services.next_end().into_iter().chain(self.endpoints.next_end()).min()?;
        Some(end.max(self.swept + SWEEP_PERIOD))
    }

    async fn batch(&mut self, jobs: Vec<Job>) {
        let (mut services, mut endpoints) = (Vec::new(), Vec::new());
        for job in jobs {
            match job {
                Job::Service(write) => services.push(write),
                Job::Endpoint(write) => endpoints.push(write),
            }
        }
        self.swept = Instant::now();
        let services = self.services.plan(self.memory.services(), services).await;
        let endpoints = self.endpoints.plan(self.memory.endpoints(), endpoints).await;
        if !services.is_empty() || !endpoints.is_empty() {
            let rows = [self.services.rows(&services, &*self.clock), self.endpoints.rows(&endpoints, &*self.clock)];
            if let Err(error) = self.commit(rows.into_iter().flatten().collect()).await {
                services.fail(&error);
                endpoints.fail(&error);
                return;
            }
        }
        self.services.apply(self.memory.services(), services).await;
        self.endpoints.apply(self.memory.endpoints(), endpoints).await;
    }

    /// The disk works on a thread where it may wait. One that is lost there is not used again.
    async fn commit(&mut self, rows: Vec<Row>) -> Result<()> {
        let lost = Error::internal("registry store", "its writer ended in the middle of a write");
        let mut disk = std::mem::replace(&mut self.disk, Err(lost))?;
        let work = move || {
            let done = disk.commit(&rows);
            (disk, done)
        };
        let (disk, done) = tokio::task::spawn_blocking(work).await.map_err(|error| Error::internal("registry store", error.to_string()))?;
        self.disk = Ok(disk);
        done
    }
}

async fn load<R: Persist>(ledger: &mut Ledger<R>, memory: &MemoryEngine, clock: &dyn Clock, row: &Row) -> Result<()> {
    let (record, end) = ledger::read::<R>(row)?;
    let left = end.map(|end| end.left(clock.now()));
    let end = left.map(|left| Instant::now() + left);
    ledger.insert(record.name().clone(), end);
    if left.is_none_or(|left| !left.is_zero()) {
        ledger::show(R::store(memory), Arc::new(record), end).await?;
    }
    Ok(())
}
