//! The database in the medium: rows, commits, and what a failure of the medium means.
//!
//! A full disk costs the writes of that moment; the database is opened again once there is a next one. A failed
//! fsync leaves nobody able to say what is on disk: from then on nothing is acknowledged until the process starts
//! anew and reads what is really there.

use nsm_api::{Error, Kind, Result};
use redb::{Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The form of the rows that this version writes, and the newest that it reads.
pub const FORMAT: u64 = 1;
/// How long a database that a full disk stopped is left alone before a write tries it again.
pub const REOPEN_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of the database that are kept in memory beside the index.
const CACHE_BYTES: usize = 4 << 20;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT_KEY: &str = "format";
/// Counts the commits: tells after a failure whether the last one is there.
const COMMITS_KEY: &str = "commits";

/// Where a store keeps its bytes.
pub trait Medium: Send + Sync {
    /// What it is called in messages, such as `registry store "/var/lib/nsm/registry/registry.redb"`.
    fn object(&self) -> String;
    /// Opens the store, for one user at a time. `None` if there is none yet.
    fn open(&self) -> io::Result<Option<Box<dyn StorageBackend>>>;
    /// An empty place beside it, where a new store is made.
    fn blank(&self) -> io::Result<Box<dyn StorageBackend>>;
    /// Makes what is in the blank place the store, whole or not at all, where there was none.
    fn adopt(&self) -> io::Result<()>;
}

/// One key of one table: its new value, or nothing any more.
pub(super) struct Row {
    pub(super) table: &'static str,
    pub(super) key: String,
    pub(super) value: Option<Vec<u8>>,
}

/// The open database, for readers beside the writer. Empty while there is none.
pub(super) type Current = Arc<Mutex<Option<Arc<Database>>>>;

pub(super) struct Disk {
    medium: Arc<dyn Medium>,
    current: Current,
    faults: Arc<Mutex<Faults>>,
    commits: u64,
    /// Why nothing is written any more.
    poison: Option<Error>,
    /// The last failure that may pass, and when it was.
    paused: Option<(Instant, Error)>,
}

/// What went wrong below the database.
#[derive(Debug, Default)]
struct Faults {
    last: Option<(io::ErrorKind, String)>,
    sync: bool,
}

/// The medium, with an eye on its failures.
#[derive(Debug)]
struct Watched {
    inner: Box<dyn StorageBackend>,
    faults: Arc<Mutex<Faults>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watched {
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            lock(&self.faults).last = Some((error.kind(), error.to_string()));
        }
        result
    }
}

impl StorageBackend for Watched {
    fn len(&self) -> io::Result<u64> {
        self.note(self.inner.len())
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.note(self.inner.read(offset, out))
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(self.inner.set_len(len))
    }
    fn sync_data(&self) -> io::Result<()> {
        let result = self.note(self.inner.sync_data());
        lock(&self.faults).sync |= result.is_err();
        result
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.note(self.inner.write(offset, data))
    }
    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
}

impl Disk {
    /// Opens the store, and reads every row of it.
    pub(super) fn open(medium: Arc<dyn Medium>) -> Result<(Disk, Vec<Row>)> {
        let faults = Arc::default();
        let mut database = database(&*medium, &faults)?;
        let object = medium.object();
        database.check_integrity().map_err(|error| refused(&object, &faults, error))?;
        known(&database, &object)?;
        let commits = commits(&database, &object)?;
        let rows = rows(&database).map_err(|error| damaged(&object, &error))?;
        let current = Arc::new(Mutex::new(Some(Arc::new(database))));
        Ok((Disk { medium, current, faults, commits, poison: None, paused: None }, rows))
    }

    pub(super) fn current(&self) -> Current {
        self.current.clone()
    }

    pub(super) fn object(&self) -> String {
        self.medium.object()
    }

    /// All of the rows are on disk, or (but for a failed fsync) none of them ever will be.
    pub(super) fn commit(&mut self, rows: &[Row]) -> Result<()> {
        if let Some(error) = &self.poison {
            return Err(error.clone());
        }
        let database = self.database()?;
        match write(&database, rows, self.commits + 1) {
            Ok(()) => {
                self.commits += 1;
                Ok(())
            }
            Err(error) => {
                drop(database);
                Err(self.failed(&error))
            }
        }
    }

    /// The database, opened again if a full disk had stopped it.
    fn database(&mut self) -> Result<Arc<Database>> {
        if let Some(database) = lock(&self.current).clone() {
            return Ok(database);
        }
        if let Some((since, error)) = &self.paused
            && since.elapsed() < REOPEN_PAUSE
        {
            return Err(error.clone());
        }
        let opened = database(&*self.medium, &self.faults).and_then(|database| Ok((commits(&database, &self.object())?, database)));
        let (commits, database) = match opened {
            Ok(opened) => opened,
            Err(error) if lock(&self.faults).sync => return Err(self.poisoned(&format!("cannot be opened again ({})", error.reason))),
            Err(error) => {
                self.paused = Some((Instant::now(), error.clone()));
                return Err(error);
            }
        };
        if commits != self.commits {
            return Err(self.poisoned(&format!("holds {commits} commits after a failure, of {} that were acknowledged", self.commits)));
        }
        let database = Arc::new(database);
        *lock(&self.current) = Some(database.clone());
        self.paused = None;
        Ok(database)
    }

    fn failed(&mut self, error: &redb::Error) -> Error {
        *lock(&self.current) = None;
        let faults = std::mem::take(&mut *lock(&self.faults));
        let what = faults.last.as_ref().map_or_else(|| error.to_string(), |(_, text)| text.clone());
        let passing = faults.last.as_ref().is_some_and(|(kind, _)| full(*kind));
        if !passing || faults.sync {
            return self.poisoned(&format!("could not be made durable ({what}); whether the last write is kept is not known"));
        }
        let error = no_space(&self.object(), &what);
        self.paused = Some((Instant::now(), error.clone()));
        error
    }

    fn poisoned(&mut self, reason: &str) -> Error {
        let reason = format!("{reason}; it is read, but nothing is written any more");
        let error = Error::new(Kind::Unavailable, self.object(), reason, "look at the disk, then restart the registry");
        tracing::error!(%error, "the registry's store takes no more writes");
        self.poison = Some(error.clone());
        error
    }
}

fn full(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

fn no_space(object: &str, what: &str) -> Error {
    let fix = "free space there; writes are taken again by themselves";
    Error::new(Kind::Exhausted, object, format!("has no room ({what}), nothing was changed"), fix)
}

pub(super) fn damaged(object: &str, error: &dyn std::error::Error) -> Error {
    Error::new(Kind::Internal, object, format!("cannot be read: {error}"), "restore a backup, or move the file away to start empty")
}

fn database(medium: &dyn Medium, faults: &Arc<Mutex<Faults>>) -> Result<Database> {
    let object = medium.object();
    let inner = opened(medium, &object)?;
    let backend = Watched { inner, faults: faults.clone() };
    Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend).map_err(|error| refused(&object, faults, error))
}

/// What is told of a database that cannot be used: the failure below it, if there was one.
fn refused(object: &str, faults: &Mutex<Faults>, error: DatabaseError) -> Error {
    if let Some((kind, text)) = lock(faults).last.take() {
        return unusable(object, &io::Error::new(kind, text));
    }
    match error {
        DatabaseError::UpgradeRequired(version) => other_format(object, u64::from(version)),
        other => damaged(object, &other),
    }
}

/// The bytes of the store, which is made if it is not there: a crash in the middle of that leaves nothing behind.
fn opened(medium: &dyn Medium, object: &str) -> Result<Box<dyn StorageBackend>> {
    let broken = |error: io::Error| unusable(object, &error);
    if let Some(present) = medium.open().map_err(broken)? {
        return Ok(present);
    }
    create(medium.blank().map_err(broken)?, &[], object)?;
    medium.adopt().map_err(broken)?;
    medium.open().map_err(broken)?.ok_or_else(|| broken(io::ErrorKind::NotFound.into()))
}

fn unusable(object: &str, error: &io::Error) -> Error {
    match error.kind() {
        kind if full(kind) => no_space(object, &error.to_string()),
        io::ErrorKind::ResourceBusy => {
            Error::new(Kind::Conflict, object, error.to_string(), "end the other registry, or give this one a directory of its own")
        }
        _ => Error::new(Kind::Unavailable, object, format!("cannot be opened: {error}"), "give this process a directory that it may write"),
    }
}

fn other_format(object: &str, format: u64) -> Error {
    let reason = format!("has format {format}, and this version knows up to {FORMAT}");
    Error::invalid(object, reason, "run the version that wrote it, or restore a backup of this version")
}

/// Checks the form of the rows.
fn known(database: &Database, object: &str) -> Result<()> {
    match meta(database, FORMAT_KEY).map_err(|error| damaged(object, &error))? {
        Some(FORMAT) => Ok(()),
        Some(other) => Err(other_format(object, other)),
        None => Err(Error::invalid(object, "is no registry store", "name a store, or a file that a backup has written")),
    }
}

fn commits(database: &Database, object: &str) -> Result<u64> {
    Ok(meta(database, COMMITS_KEY).map_err(|error| damaged(object, &error))?.unwrap_or(0))
}

fn meta(database: &Database, key: &str) -> Result<Option<u64>, redb::Error> {
    match database.begin_read()?.open_table(META) {
        Ok(table) => Ok(table.get(key)?.map(|value| value.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

fn first(database: &Database) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.open_table(META)?.insert(FORMAT_KEY, FORMAT)?;
    Ok(transaction.commit()?)
}

pub(super) fn table(name: &str) -> TableDefinition<'_, &'static str, &'static [u8]> {
    TableDefinition::new(name)
}

/// Two phases: what peers register is theirs to choose, so a checksum alone shall not tell a torn commit from a whole one.
pub(super) fn write(database: &Database, rows: &[Row], commits: u64) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.set_two_phase_commit(true);
    for row in rows {
        let mut table = transaction.open_table(table(row.table))?;
        match &row.value {
            Some(value) => drop(table.insert(row.key.as_str(), value.as_slice())?),
            None => drop(table.remove(row.key.as_str())?),
        }
    }
    transaction.open_table(META)?.insert(COMMITS_KEY, commits)?;
    Ok(transaction.commit()?)
}

/// Every row of every table but the counters, as of one moment.
pub(super) fn rows(database: &Database) -> Result<Vec<Row>, redb::Error> {
    let transaction = database.begin_read()?;
    let mut rows = Vec::new();
    for name in
        [<nsm_api::NetworkService as crate::record::Persist>::TABLE, <nsm_api::NetworkServiceEndpoint as crate::record::Persist>::TABLE]
    {
        let table = match transaction.open_table(table(name)) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => continue,
            Err(other) => return Err(other.into()),
        };
        for row in table.iter()? {
            let (key, value) = row?;
            rows.push(Row { table: name, key: key.value().to_owned(), value: Some(value.value().to_vec()) });
        }
    }
    Ok(rows)
}

/// Makes a new file at `path` that holds these rows, in the form of this version.
pub(super) fn create(backend: Box<dyn StorageBackend>, rows: &[Row], object: &str) -> Result<()> {
    let failed = |error: redb::Error| Error::new(Kind::Unavailable, object, format!("cannot be written: {error}"), "choose another place");
    let backend = Watched { inner: backend, faults: Arc::default() };
    let database = Database::builder().create_with_backend(backend).map_err(|error| failed(error.into()))?;
    first(&database).map_err(failed)?;
    write(&database, rows, 0).map_err(failed)
}

/// The rows of a file, if this version can read it.
pub(super) fn read(backend: Box<dyn StorageBackend>, object: &str) -> Result<Vec<Row>> {
    let broken = |error: DatabaseError| damaged(object, &error);
    let backend = Watched { inner: backend, faults: Arc::default() };
    let mut database = Database::builder().create_with_backend(backend).map_err(broken)?;
    database.check_integrity().map_err(broken)?;
    known(&database, object)?;
    rows(&database).map_err(|error| damaged(object, &error))
}
