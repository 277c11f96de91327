//! The journal of a process as files: one for each connection, in a directory of this life of the process.
//!
//! ```text
//! <state-dir>/<name>.journal/<generation>/life          which boot of the machine, which network namespace
//! <state-dir>/<name>.journal/<generation>/<connection>  see `format`
//! ```
//!
//! A process that starts makes a directory of a higher generation, links the records into it, and removes the former
//! one. So a former process that was only asleep writes into a directory that is gone: it changes nothing, whenever it
//! wakes up. A file is written aside and renamed; nothing is flushed to the disk, for what it is about ends with the machine.
//!
//! What cannot be read is left out with a warning; nothing outside is ever undone because of it. A disk that is full costs
//! connections their protection and nothing else.

mod format;
#[cfg(test)]
mod tests;

use async_trait::async_trait;
use format::{Found, Written};
use nsm_api::*;
use nsm_hop::{
    hop::MAX_CONNECTIONS,
    journal::{Journal, Record},
};
use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};
use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File},
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path as Place, PathBuf},
    time::Instant,
};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

/// Records that may wait to be written; who has one more waits.
const MAX_WAITING: usize = 256;
/// Bytes of the largest record that is written or read.
const MAX_RECORD_BYTES: usize = 1 << 20;
/// Bytes of the longest name of a record's file.
const MAX_FILE_NAME: usize = 200;
/// The file that says whose records these are.
const LIFE: &str = "life";
/// The name of a file that is being written.
const ASIDE: &str = ".aside";

/// See the module. Written by a thread of its own, which ends with this.
pub(crate) struct FileJournal {
    jobs: mpsc::Sender<Job>,
}

/// What a process that has just started finds.
pub(crate) struct Opened {
    /// To be written from now on.
    pub(crate) journal: FileJournal,
    /// What a former process has left.
    pub(crate) records: Vec<Record>,
    /// This life's, higher than that of any former one, whatever the clock says.
    pub(crate) generation: u64,
}

enum Change {
    Keep(Box<Record>),
    Forget,
}

struct Job {
    file: String,
    change: Change,
    done: oneshot::Sender<()>,
}

impl FileJournal {
    /// Takes over from whatever process had the journal `dir` before. `generation` is the lowest to be had.
    pub(crate) fn open(dir: &Place, generation: u64) -> Result<Opened> {
        let failed = |error: io::Error| {
            let fix = "let this user write there, or name another directory with --state-dir";
            Error::new(Kind::Kernel, format!("journal {}", dir.display()), error.to_string(), fix)
        };
        let begun = Instant::now();
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let lives = lives(dir).map_err(failed)?;
        let latest = lives.last().copied();
        let generation = latest.map_or(generation, |latest| generation.max(latest + 1));
        let records = succeed(dir, latest, generation).map_err(failed)?;
        for former in lives {
            let _ = fs::remove_dir_all(dir.join(former.to_string())); // the next one tries again
        }
        if !records.is_empty() {
            info!(connections = records.len(), took = ?begun.elapsed(), "connections of a former life found");
        }
        let own = dir.join(generation.to_string());
        let handle = rustix::fs::open(&own, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        let (jobs, waiting) = mpsc::channel(MAX_WAITING);
        let writer = Writer { dir: handle, shown: own, state: Condition::Well };
        std::thread::Builder::new().name("journal".to_owned()).spawn(move || writer.run(waiting)).map_err(failed)?;
        Ok(Opened { journal: FileJournal { jobs }, records, generation })
    }

    async fn ask(&self, id: &ConnectionId, change: Change) {
        let (done, written) = oneshot::channel();
        // The thread lives as long as this.
        if self.jobs.send(Job { file: file_name(id.as_str()), change, done }).await.is_ok() {
            let _ = written.await;
        }
    }
}

#[async_trait]
impl Journal for FileJournal {
    async fn keep(&self, record: Record) {
        let id = record.id.clone();
        self.ask(&id, Change::Keep(Box::new(record))).await;
    }
    async fn forget(&self, id: &ConnectionId) {
        self.ask(id, Change::Forget).await;
    }
}

/// Plain characters as they are, others by their number: no name leads out of a directory, and no two become one.
pub(crate) fn file_name(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02x}") }).collect()
}

/// The generations of which there are records, in their order. What was not finished counts for nothing.
fn lives(dir: &Place) -> io::Result<Vec<u64>> {
    let mut lives: Vec<u64> = fs::read_dir(dir)?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    lives.sort_unstable();
    Ok(lives)
}

/// Makes the directory of this life, with all records of the former one in it.
fn succeed(dir: &Place, former: Option<u64>, generation: u64) -> io::Result<Vec<Record>> {
    let (aside, life) = (dir.join(ASIDE), this_life());
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(&aside)?;
    fs::write(aside.join(LIFE), &life)?;
    let mut written = Vec::new();
    if let Some(former) = former.map(|former| dir.join(former.to_string())) {
        match fs::read_to_string(former.join(LIFE)) {
            Ok(theirs) if theirs == life => written = take(&former, &aside)?,
            Ok(_) => info!(dir = %former.display(), "records of another boot or another network namespace are left behind"),
            Err(error) => warn!(dir = %former.display(), %error, "records that do not say whose they are, are left out"),
        }
    }
    fs::rename(&aside, dir.join(generation.to_string()))?;
    let wanted: BTreeSet<InodeKey> = written.iter().flat_map(|(_, written)| written.namespaces()).collect();
    let found = Found::look(&wanted);
    let record = |(path, written): (PathBuf, Written)| match written.record(&found) {
        Ok(record) => Some(record),
        Err(error) => {
            warn!(file = %path.display(), %error, "a record is left out; its connection is set up anew");
            None
        }
    };
    Ok(written.into_iter().filter_map(record).collect())
}

/// Links all records that can be read from one directory into another.
fn take(former: &Place, to: &Place) -> io::Result<Vec<(PathBuf, Written)>> {
    let mut taken = Vec::new();
    for entry in fs::read_dir(former)? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        if name == LIFE || name == ASIDE {
            continue;
        }
        let read = if taken.len() < MAX_CONNECTIONS { load(&path) } else { Err("is one too many".to_owned()) };
        match read {
            Ok(written) => {
                fs::hard_link(&path, to.join(&name))?;
                taken.push((path, written));
            }
            Err(reason) => warn!(file = %path.display(), reason, "a record is left out; its connection is set up anew"),
        }
    }
    Ok(taken)
}

fn load(path: &Place) -> Result<Written, format::Unreadable> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| errno.to_string())?;
    let mut bytes = Vec::new();
    File::from(file).take(MAX_RECORD_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() > MAX_RECORD_BYTES { Err("is too long".to_owned()) } else { format::read(&bytes) }
}

/// Records make sense within one boot of the machine and one network namespace of the process.
fn this_life() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let netns = nsm_linux::netns::current().map_or_else(|_| String::new(), |netns| netns.key.to_string());
    format!("{} {netns}\n", boot.trim())
}

/// How the writing goes; said when it changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Condition {
    Well,
    Failing,
    Succeeded,
}

struct Writer {
    dir: OwnedFd,
    shown: PathBuf,
    state: Condition,
}

impl Writer {
    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(Job { file, change, done }) = jobs.blocking_recv() {
            let result = match change {
                Change::Keep(record) => self.keep(&file, &format::write(&record)),
                Change::Forget => self.forget(&file),
            };
            self.report(result);
            let _ = done.send(()); // nobody may be waiting any more
        }
    }

    fn keep(&self, file: &str, bytes: &[u8]) -> io::Result<()> {
        if file.len() > MAX_FILE_NAME || bytes.len() > MAX_RECORD_BYTES {
            let _ = self.forget(file); // an old record would be wrong
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a record is too long"));
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let written = rustix::fs::openat(&self.dir, ASIDE, flags, Mode::RUSR | Mode::WUSR)
            .map_err(io::Error::from)
            .and_then(|aside| File::from(aside).write_all(bytes))
            .and_then(|()| Ok(rustix::fs::renameat(&self.dir, ASIDE, &self.dir, file)?));
        if written.is_err() {
            let _ = self.forget(file); // better none than one that is not true any more
        }
        written
    }

    fn forget(&self, file: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.dir, file, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Once for each change of the condition, not for each record.
    fn report(&mut self, result: io::Result<()>) {
        let now = match &result {
            Ok(()) => self.state.min_well(),
            Err(_) if self.is_gone() => Condition::Succeeded,
            Err(_) => Condition::Failing,
        };
        if now == std::mem::replace(&mut self.state, now) {
            return;
        }
        let journal = self.shown.display();
        match (now, result) {
            (Condition::Succeeded, _) => warn!(%journal, "a newer process of this name has taken over; end this one"),
            (_, Err(error)) => {
                warn!(%journal, %error, "connections are not kept: a sudden end of this process would disturb them; free the disk")
            }
            (_, Ok(())) => info!(%journal, "connections are kept again"),
        }
    }

    fn is_gone(&self) -> bool {
        rustix::fs::fstat(&self.dir).is_ok_and(|stat| stat.st_nlink == 0)
    }
}

impl Condition {
    /// After a success.
    fn min_well(self) -> Condition {
        if self == Condition::Succeeded { self } else { Condition::Well }
    }
}
