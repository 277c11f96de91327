//! The engine that keeps a registry in one file: what it acknowledged is on disk.
//!
//! Reads and watches are answered from memory. Writes go through one task, which gathers those that wait, makes them
//! durable together, then shows them to readers, then answers: nobody ever sees what a crash could take back.
//!
//! Not here: more than one process over the same file (it is locked; use etcd for that).

mod backup;
mod disk;
mod file;
mod ledger;
mod writer;

use crate::{
    clock::{Clock, SystemClock},
    record::Persist,
};
use async_trait::async_trait;
use disk::Disk;
use nsm_api::{Error, Kind, NetworkService, NetworkServiceEndpoint, Result};
use nsm_registry::{Changes, Engine, MemoryEngine, Revision, Store, Stored};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};
use writer::{Job, Op, Write, Writer};

pub use backup::MAX_BACKUPS;
pub use disk::{FORMAT, Medium, REOPEN_PAUSE};
pub use file::{FILE_NAME, FileMedium};
pub use writer::{MAX_BATCH, SWEEP_PERIOD};

/// Writes that wait for the disk; the next one waits for room.
pub const MAX_QUEUED_WRITES: usize = 4096;
/// How long a write waits for a disk that does not answer. What becomes of it then is not known.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two backups there is at least so much time, whatever was asked.
pub const MIN_BACKUP_PERIOD: Duration = Duration::from_secs(1);

/// Services and endpoints in one file of this machine.
pub struct DurableEngine {
    services: Shelf<NetworkService>,
    endpoints: Shelf<NetworkServiceEndpoint>,
    object: String,
    current: disk::Current,
    clock: Arc<dyn Clock>,
    writer: JoinHandle<()>,
}

impl DurableEngine {
    /// Opens the store in this directory, or makes an empty one.
    ///
    /// # Errors
    /// The directory cannot be written, another process has the store open, it is damaged, or a newer version wrote it.
    pub async fn open(directory: &Path) -> Result<DurableEngine> {
        DurableEngine::open_on(Arc::new(FileMedium::new(directory)), Arc::new(SystemClock::new())).await
    }

    /// The same over another medium and clock.
    pub async fn open_on(medium: Arc<dyn Medium>, clock: Arc<dyn Clock>) -> Result<DurableEngine> {
        let object = medium.object();
        let opening = tokio::task::spawn_blocking(move || Disk::open(medium)).await;
        // The database asserts what only a damaged file breaks.
        let (disk, rows) = opening.map_err(|error| disk::damaged(&object, &error))??;
        let memory = Arc::new(MemoryEngine::new());
        let (jobs, queue) = mpsc::channel(MAX_QUEUED_WRITES);
        let current = disk.current();
        let writer = Writer::load(disk, rows, memory.clone(), clock.clone()).await?;
        let writer = tokio::spawn(writer.run(queue));
        let shelf = |object: &String| (memory.clone(), jobs.clone(), object.clone());
        let (services, endpoints) = (Shelf::new(shelf(&object)), Shelf::new(shelf(&object)));
        Ok(DurableEngine { services, endpoints, object, current, clock, writer })
    }

    /// Writes all that is acknowledged by now into a new file, while the engine serves on.
    ///
    /// # Errors
    /// There is such a file already, it cannot be written, or the store cannot be read.
    pub async fn backup(&self, file: &Path) -> Result<()> {
        let (current, file, object) = (self.current.clone(), file.to_owned(), self.object.clone());
        let done = tokio::task::spawn_blocking(move || backup::backup(&current, &file, &object)).await;
        done.map_err(|error| Error::internal(&self.object, error.to_string()))?
    }

    /// Writes a backup into `directory` at once and after every `period`, and keeps the last [`MAX_BACKUPS`], as long as
    /// somebody else has the engine. A backup that cannot be made is a warning in the log, and is tried after the next period.
    pub async fn keep_backups(engine: Weak<DurableEngine>, directory: PathBuf, period: Duration) {
        let period = period.max(MIN_BACKUP_PERIOD);
        while let Some(engine) = engine.upgrade() {
            if let Err(error) = engine.backup_into(&directory).await {
                tracing::warn!(%error, "there is no new backup of the registry");
            }
            drop(engine);
            tokio::time::sleep(period).await;
        }
    }

    async fn backup_into(&self, directory: &Path) -> Result<()> {
        let wall = self.clock.now().wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.backup(&directory.join(backup::name(wall))).await?;
        backup::keep_last(directory, MAX_BACKUPS)
    }

    /// Makes a directory's store out of a backup.
    ///
    /// # Errors
    /// There is a store already, or the backup is damaged or was written by a newer version.
    pub fn restore(backup: &Path, directory: &Path) -> Result<()> {
        backup::restore(backup, directory)
    }

    /// Finishes what was asked and lets go of the file.
    pub async fn close(self) {
        let DurableEngine { services, endpoints, writer, .. } = self;
        drop((services, endpoints));
        let _ = writer.await;
    }
}

impl Engine for DurableEngine {
    fn services(&self) -> &dyn Store<NetworkService> {
        &self.services
    }
    fn endpoints(&self) -> &dyn Store<NetworkServiceEndpoint> {
        &self.endpoints
    }
}

/// Records of one kind.
struct Shelf<R: Persist> {
    memory: Arc<MemoryEngine>,
    jobs: mpsc::Sender<Job>,
    object: String,
    kind: std::marker::PhantomData<fn(R)>,
}

impl<R: Persist> Shelf<R> {
    fn new((memory, jobs, object): (Arc<MemoryEngine>, mpsc::Sender<Job>, String)) -> Shelf<R> {
        Shelf { memory, jobs, object, kind: std::marker::PhantomData }
    }

    fn indexed(&self) -> &dyn Store<R> {
        R::store(&*self.memory)
    }

    /// The work is the task's: it is done also when the caller does not wait for it any more.
    async fn write(&self, op: Op<R>, expected: Option<Revision>) -> Result<Option<Revision>>
    where
        Write<R>: Into<Job>,
    {
        let (answer, answered) = oneshot::channel();
        let job = Write { op, expected, answer }.into();
        let ended = || Error::new(Kind::Unavailable, &self.object, "is closed", "try again at the restarted registry");
        let work = async {
            self.jobs.send(job).await.map_err(|_| ended())?;
            answered.await.map_err(|_| ended())?
        };
        tokio::time::timeout(WRITE_TIMEOUT, work).await.unwrap_or_else(|_| Err(self.too_slow()))
    }

    fn too_slow(&self) -> Error {
        let reason = format!("did not answer within {} s; whether the write is kept is not known", WRITE_TIMEOUT.as_secs());
        Error::new(Kind::Timeout, &self.object, reason, "look at the disk, then try again")
    }
}

#[async_trait]
impl<R: Persist> Store<R> for Shelf<R>
where
    Write<R>: Into<Job>,
{
    async fn get(&self, name: &R::Name) -> Result<Option<Stored<R>>> {
        self.indexed().get(name).await
    }

    async fn put(&self, record: Arc<R>, expected: Option<Revision>, life: Option<Duration>) -> Result<Option<Revision>> {
        let end = life.map(|life| Instant::now() + life);
        self.write(Op::Put(record, end), expected).await
    }

    async fn remove(&self, name: &R::Name, expected: Revision) -> Result<bool> {
        Ok(self.write(Op::Remove(name.clone()), Some(expected)).await?.is_some())
    }

    async fn find(&self, query: &R::Query) -> Result<Vec<Arc<R>>> {
        self.indexed().find(query).await
    }

    async fn watch(&self, query: R::Query) -> Result<Changes<R>> {
        self.indexed().watch(query).await
    }
}
