//! Labs that run on this machine: one small file each, so that `down`, `ps`, `exec` and `graph` find them, and so that
//! what a killed lab left can be removed.

use crate::plan::Role;
use nsm_api::{Error, Kind, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Tries to write a file whose directory may vanish.
const MAX_WRITES: usize = 5;

/// One process of a running lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateProcess {
    /// Its name.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Its namespace.
    pub netns: String,
    /// Its id.
    pub pid: u32,
    /// When it started, in clock ticks since boot: with the id it names one process for ever.
    pub started: u64,
}

/// One running lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its name.
    pub lab: String,
    /// Its file.
    pub path: PathBuf,
    /// The process that holds it.
    pub pid: u32,
    /// When that process started.
    pub started: u64,
    /// It lives in a user namespace of its own.
    pub user_namespace: bool,
    /// Its files.
    pub dir: PathBuf,
    /// Its namespaces, as far as they are made.
    pub namespaces: Vec<String>,
    /// Its processes, as far as they are started.
    pub processes: Vec<StateProcess>,
}

/// Where the files are. Not below `/run` for ordinary users: a lab's own mount namespace may hide that.
fn directory() -> PathBuf {
    let uid = rustix::process::geteuid();
    if uid.is_root() { PathBuf::from("/run/nsm-lab") } else { std::env::temp_dir().join(format!("nsm-lab-{}", uid.as_raw())) }
}

/// The files of all labs, found before a user namespace changes who we are.
#[derive(Clone, Debug)]
pub struct Store(PathBuf);

impl Store {
    /// The directory of this user. One that belongs to somebody else is refused.
    pub fn open() -> Result<Store> {
        let store = Store(directory());
        store.check().map(|()| store)
    }
    /// It is not there yet, or nobody else may write to it.
    fn check(&self) -> Result<()> {
        let failed = |reason: String| {
            let object = format!("state directory {}", self.0.display());
            Error::new(Kind::Conflict, object, reason, "remove it or make it writable for this user only")
        };
        let meta = match fs::symlink_metadata(&self.0) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|error| failed(format!("cannot be read: {error}")))?,
        };
        if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
            return Err(failed("is not a directory that only this user may write to".to_owned()));
        }
        Ok(())
    }
    fn file(&self, lab: &str) -> PathBuf {
        self.0.join(format!("{lab}.json"))
    }
    /// All labs, by name.
    pub fn all(&self) -> Vec<State> {
        let names = fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut all: Vec<State> =
            names.filter(|path| path.extension().is_some_and(|ext| ext == "json")).filter_map(|path| read(&path)).collect();
        all.sort_by(|a, b| a.lab.cmp(&b.lab));
        all
    }
    /// The lab of this name.
    pub fn get(&self, lab: &str) -> Option<State> {
        read(&self.file(lab))
    }
    /// Refuses when a lab of this name runs.
    pub fn must_be_free(&self, lab: &str) -> Result<()> {
        match self.get(lab).filter(State::is_alive) {
            None => Ok(()),
            Some(state) => {
                let reason = format!("runs already, held by process {}", state.pid);
                Err(Error::new(Kind::Conflict, format!("lab {lab:?}"), reason, format!("end it first: nsm lab down {lab}")))
            }
        }
    }
    /// Writes it, whole or not at all. Another lab's end may take the empty directory away at any moment.
    pub fn put(&self, state: &State) -> Result<()> {
        let path = self.file(&state.lab);
        let draft = path.with_extension("new");
        let text = serde_json::to_vec(state).expect("texts and numbers are always JSON");
        let mut written = Ok(());
        for _ in 0..MAX_WRITES {
            let _ = fs::DirBuilder::new().mode(0o700).create(&self.0);
            self.check()?;
            written = fs::write(&draft, &text).and_then(|()| fs::rename(&draft, &path));
            if !written.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
                break;
            }
        }
        written.map_err(|error| {
            Error::new(Kind::Internal, format!("state file {}", path.display()), format!("cannot be written: {error}"), "free space there")
        })
    }
    /// Forgets it, and the directory with the last one.
    pub fn remove(&self, lab: &str) {
        let _ = fs::remove_file(self.file(lab));
        let _ = fs::remove_dir(&self.0);
    }
}

fn read(path: &Path) -> Option<State> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// The start time of a process and its state letter, as the kernel tells.
pub(crate) fn process_stat(pid: u32) -> Option<(u64, char)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in brackets and may hold anything; the rest begins after the last bracket.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    // starttime is field 22 of the whole, so the 19th after the state.
    Some((fields.nth(18)?.parse().ok()?, state))
}

/// When this process started.
pub(crate) fn own_start() -> u64 {
    process_stat(std::process::id()).map_or(0, |(started, _)| started)
}

/// Whether exactly that process still runs, and the word for its state.
pub(crate) fn process_state(pid: u32, started: u64) -> &'static str {
    match process_stat(pid) {
        Some((found, state)) if found == started => match state {
            'Z' | 'X' => "ended",
            'T' | 't' => "stopped",
            _ => "running",
        },
        _ => "gone",
    }
}

impl State {
    /// Whether the process that holds the lab still runs.
    pub fn is_alive(&self) -> bool {
        matches!(process_state(self.pid, self.started), "running" | "stopped")
    }
}

/// Signals exactly that process. `false` when it is gone.
pub(crate) fn signal(pid: u32, started: u64, signal: Signal) -> bool {
    let alive = matches!(process_state(pid, started), "running" | "stopped");
    alive && Pid::from_raw(pid as i32).is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// Removes what a lab left whose holder is gone: processes, namespaces, files.
pub(crate) fn sweep(store: &Store, state: &State) -> Result<()> {
    for process in &state.processes {
        signal(process.pid, process.started, Signal::KILL);
    }
    if !state.user_namespace {
        for name in &state.namespaces {
            nsm_linux::netns::delete_named(name)?;
        }
    }
    crate::faults::unmount_disk(&crate::plan::Files::new(&state.dir).state());
    let _ = fs::remove_dir_all(&state.dir);
    store.remove(&state.lab);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_by_its_id_and_start() {
        let (pid, started) = (std::process::id(), own_start());
        assert!(started > 0);
        assert_eq!(process_state(pid, started), "running");
        assert_eq!(process_state(pid, started + 1), "gone");
        assert!(!signal(pid, started + 1, Signal::KILL), "another process with this id is never hit");
    }

    #[test]
    fn states_are_written_whole_and_found_again() {
        let dir = std::env::temp_dir().join(format!("nsm-lab-state-{}", std::process::id()));
        let store = Store(dir.clone());
        let state = State {
            lab: "hello".into(),
            path: "hello.yaml".into(),
            pid: std::process::id(),
            started: own_start(),
            user_namespace: false,
            dir: "/nowhere".into(),
            namespaces: vec![],
            processes: vec![],
        };
        store.put(&state).unwrap();
        assert_eq!(store.all(), vec![state.clone()]);
        assert_eq!(store.get("hello"), Some(state.clone()));
        assert!(state.is_alive());
        store.remove("hello");
        assert!(!dir.exists(), "the last lab takes the directory along");
    }
}
