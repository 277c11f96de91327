//! The journal of a process as files: one for each connection, in a directory of this life of the process.
//!
//! ```text
//! <state-dir>/<name>.journal/<generation>/life          which boot of the machine, which network namespace
//! <state-dir>/<name>.journal/<generation>/<connection>.<number>
//! ```
//!
//! A process that starts makes a directory of a higher generation, links the records into it, and removes the former
//! one. So a former process that was only asleep writes into a directory that is gone: it changes nothing, whenever it
//! wakes up. A record is a new file with a higher number (see `format`), after which the one before it goes: so there is
//! always a whole one. To write it aside and rename it would have the disk busy at once. Nothing is flushed to the disk at
//! all, for what it is about ends with the machine.
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
    collections::{BTreeMap, BTreeSet},
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
/// The directory of a life that is being made.
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
        let (records, numbers) = succeed(dir, latest, generation).map_err(failed)?;
        for former in lives {
            let _ = fs::remove_dir_all(dir.join(former.to_string())); // the next one tries again
        }
        if !records.is_empty() {
            info!(connections = records.len(), took = ?begun.elapsed(), "connections of a former life found");
        }
        let own = dir.join(generation.to_string());
        let handle = rustix::fs::open(&own, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        let (jobs, waiting) = mpsc::channel(MAX_WAITING);
        let last = numbers.values().copied().max().unwrap_or(0);
        let writer = Writer { dir: handle, shown: own, state: Condition::Well, numbers, last };
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

/// By the connection's part of its name, the number of its file.
type Numbers = BTreeMap<String, u64>;

/// Makes the directory of this life, with all records of the former one in it.
fn succeed(dir: &Place, former: Option<u64>, generation: u64) -> io::Result<(Vec<Record>, Numbers)> {
    let (aside, life) = (dir.join(ASIDE), this_life());
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(&aside)?;
    fs::write(aside.join(LIFE), &life)?;
    let mut taken = BTreeMap::new();
    if let Some(former) = former.map(|former| dir.join(former.to_string())) {
        match fs::read_to_string(former.join(LIFE)) {
            Ok(theirs) if theirs == life => taken = take(&former, &aside)?,
            Ok(_) => info!(dir = %former.display(), "records of another boot or another network namespace are left behind"),
            Err(error) => warn!(dir = %former.display(), %error, "records that do not say whose they are, are left out"),
        }
    }
    fs::rename(&aside, dir.join(generation.to_string()))?;
    let wanted: BTreeSet<InodeKey> = taken.values().flat_map(|(_, written)| written.namespaces()).collect();
    let (found, numbers) = (Found::look(&wanted), taken.iter().map(|(id, (number, _))| (id.clone(), *number)).collect());
    let record = |(id, (_, written)): (String, (u64, Written))| match written.record(&found) {
        Ok(record) => Some(record),
        Err(error) => {
            warn!(id, %error, "a record is left out; its connection is set up anew");
            None
        }
    };
    Ok((taken.into_iter().filter_map(record).collect(), numbers))
}

/// Links the latest record of each connection that can be read from one directory into another.
fn take(former: &Place, to: &Place) -> io::Result<BTreeMap<String, (u64, Written)>> {
    let mut taken: BTreeMap<String, (u64, Written)> = BTreeMap::new();
    for entry in fs::read_dir(former)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| *name != LIFE) else { continue };
        let Some((id, number)) = name.split_once('.').and_then(|(id, number)| Some((id, number.parse().ok()?))) else {
            warn!(file = %path.display(), "is none of ours");
            continue;
        };
        let later = taken.get(id).is_some_and(|(other, _)| *other > number);
        let full = taken.len() >= MAX_CONNECTIONS && !taken.contains_key(id);
        match if full { Err("is one too many".to_owned()) } else { load(&path) } {
            Ok(_) if later => {}
            Ok(written) => drop(taken.insert(id.to_owned(), (number, written))),
            Err(reason) => warn!(file = %path.display(), reason, "a record is left out; its connection is set up anew"),
        }
    }
    for (id, (number, _)) in &taken {
        let name = format!("{id}.{number}");
        fs::hard_link(former.join(&name), to.join(&name))?;
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
    numbers: Numbers,
    /// The highest number so far.
    last: u64,
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

    fn keep(&mut self, file: &str, bytes: &[u8]) -> io::Result<()> {
        self.last += 1;
        let name = format!("{file}.{}", self.last);
        let written = if file.len() > MAX_FILE_NAME || bytes.len() > MAX_RECORD_BYTES {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "a record is too long"))
        } else {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&self.dir, &name, flags, Mode::RUSR | Mode::WUSR)
                .map_err(io::Error::from)
                .and_then(|open| File::from(open).write_all(bytes))
        };
        // After a failure as well: better none than one that is not true any more.
        let forgotten = self.forget(file);
        match written {
            Ok(()) => drop(self.numbers.insert(file.to_owned(), self.last)),
            Err(_) => drop(rustix::fs::unlinkat(&self.dir, &name, AtFlags::empty())),
        }
        written.and(forgotten)
    }

    fn forget(&mut self, file: &str) -> io::Result<()> {
        let Some(number) = self.numbers.remove(file) else { return Ok(()) };
        match rustix::fs::unlinkat(&self.dir, format!("{file}.{number}"), AtFlags::empty()) {
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
