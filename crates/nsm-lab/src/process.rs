//! One running process of a lab: started, listened to by the sd_notify protocol, stopped within a bound.

use crate::plan::{Files, Role, Spec};
use nsm_api::{Error, Kind, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    net::UnixDatagram,
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

/// How long a process may take until it is ready.
pub(crate) const READY_BOUND: Duration = Duration::from_secs(10);
/// How long a process may take to end after SIGTERM, before SIGKILL.
const STOP_BOUND: Duration = Duration::from_secs(5);
/// How long the kernel may take to end a process after SIGKILL.
const KILL_BOUND: Duration = Duration::from_secs(2);
/// Bytes of the largest notice.
const MAX_NOTICE: usize = 8192;
/// Sentences of one process that are kept.
const MAX_STATUSES: usize = 64;
/// Bytes at the end of a log that are searched for its last line.
const LOG_TAIL: u64 = 16 * 1024;
/// How the line begins that the program prints when it ends because of an error.
pub(crate) const PROGRAM_SPEAKS: &str = "nsm: ";
/// What stands for this very program where a command is named.
pub(crate) const OURSELVES: &str = "nsm";
/// Variables of the caller that every process may see; nothing else of his environment changes a lab.
const PASSED_ON: [&str; 7] = ["PATH", "HOME", "LANG", "TZ", "RUST_BACKTRACE", "RUST_LOG", "NSM_LOG_LEVEL"];

/// What a process has said about itself so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Notice {
    /// It said `READY=1`.
    pub(crate) ready: bool,
    /// Its sentences, newest last.
    pub(crate) statuses: Vec<String>,
}

impl Notice {
    /// Takes in one datagram: lines of `KEY=value`.
    fn take(&mut self, text: &str) {
        for line in text.lines() {
            match line.split_once('=') {
                Some(("READY", "1")) => self.ready = true,
                Some(("STATUS", status)) => {
                    if self.statuses.len() == MAX_STATUSES {
                        self.statuses.remove(0);
                    }
                    self.statuses.push(status.to_owned());
                }
                _ => {}
            }
        }
    }
}

/// A started process. Dropping it kills it.
pub(crate) struct Process {
    /// What was asked for.
    pub(crate) spec: Spec,
    /// Its id; stays after its end.
    pub(crate) pid: u32,
    /// What it says.
    pub(crate) notice: watch::Receiver<Notice>,
    seen: watch::Sender<Notice>,
    child: Child,
    listener: JoinHandle<()>,
    log: PathBuf,
    socket: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.listener.abort();
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Process {
    /// Starts `program` as `spec` says. Must be called on the main thread: the child dies with the thread that made it.
    pub(crate) fn start(program: &Path, spec: &Spec, files: &Files) -> Result<Process> {
        let failed = |what: &str, error: std::io::Error| {
            let object = format!("process {:?}", spec.name);
            Error::new(Kind::Internal, object, format!("{what}: {error}"), "check that the directory for temporary files is writable")
        };
        let socket = files.notify(&spec.name);
        let _ = std::fs::remove_file(&socket);
        let datagrams = UnixDatagram::bind(&socket).map_err(|e| failed("its notify socket cannot be made", e))?;
        let log = files.log(&spec.name);
        let out = File::options().create(true).append(true).open(&log).map_err(|e| failed("its log cannot be made", e))?;
        let err = out.try_clone().map_err(|e| failed("its log cannot be shared", e))?;
        let mut command = Command::new(program);
        command.env_clear().envs(environment()).envs(&spec.env);
        command.env("NOTIFY_SOCKET", &socket).env("NSM_DIE_WITH_PARENT", "1").env("NO_COLOR", "1");
        command.arg("--netns").arg(&spec.netns);
        if spec.program.is_some() || spec.resolv_conf.is_some() {
            command.args(["lab", "start"]);
            command.args(spec.resolv_conf.iter().flat_map(|file| ["--resolv-conf".as_ref(), file.as_os_str()]));
            command.arg("--").arg(spec.program.as_deref().unwrap_or(Path::new(OURSELVES)));
        }
        command.args(&spec.args);
        command.current_dir(files.dir()).stdin(Stdio::null()).stdout(out).stderr(err).kill_on_drop(true).process_group(0);
        let child = command.spawn().map_err(|e| failed("cannot be started", e))?;
        let (sender, notice) = watch::channel(Notice::default());
        let listener = tokio::spawn(listen(datagrams, sender.clone()));
        let pid = child.id().expect("a child that was not waited for has an id");
        Ok(Process { spec: spec.clone(), pid, notice, seen: sender, child, listener, log, socket })
    }

    /// Waits until it says that it serves. Its end before that is an error with its last words.
    pub(crate) async fn ready(&mut self) -> Result<()> {
        let until = Instant::now() + READY_BOUND;
        let mut notice = self.notice.clone();
        let ready = timeout_at(until, notice.wait_for(|notice| notice.ready));
        tokio::select! {
            biased;
            ready = ready => match ready {
                Ok(_) => Ok(()),
                Err(_) => Err(self.failed(format!("was not ready within {} s", READY_BOUND.as_secs()))),
            },
            status = self.child.wait() => {
                let words = status.map_or_else(|error| error.to_string(), ended);
                Err(self.failed(words))
            }
        }
    }

    /// Waits for its end and says whether that was a success.
    pub(crate) async fn finished(&mut self) -> Result<()> {
        match tokio::time::timeout(READY_BOUND, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(self.failed(ended(status))),
            Ok(Err(error)) => Err(self.failed(error.to_string())),
            Err(_) => Err(self.failed(format!("did not end within {} s", READY_BOUND.as_secs()))),
        }
    }

    /// It was seen from outside that it serves.
    pub(crate) fn seen_ready(&self) {
        self.seen.send_modify(|notice| notice.ready = true);
    }

    pub(crate) fn failed(&self, what: String) -> Error {
        let words = self.last_words().map(|words| format!("; it said: {words}")).unwrap_or_default();
        let fix = format!("read {} (kept with --keep)", self.log.display());
        Error::new(Kind::Unavailable, format!("{} {:?}", self.spec.role.as_str(), self.spec.name), format!("{what}{words}"), fix)
    }

    /// Its last sentence, or else what it printed last.
    pub(crate) fn last_words(&self) -> Option<String> {
        self.notice.borrow().statuses.last().cloned().or_else(|| last_words(&self.log))
    }

    /// Everything it is known to have said: sentences, then the end of its log once it has ended.
    pub(crate) fn sentences(&mut self) -> Vec<String> {
        let mut all = self.notice.borrow().statuses.clone();
        if self.spec.program.is_some() {
            all.extend(tail(&self.log).unwrap_or_default().lines().map(str::to_owned));
        } else if self.has_ended() {
            all.extend(last_words(&self.log));
        }
        all
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn signal(&self, signal: Signal) {
        // The child has not been waited for, so its id cannot belong to another process.
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id as i32)) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Ends it: SIGTERM, a bounded wait, SIGKILL. Says what went wrong, if anything.
    pub(crate) async fn stop(&mut self) -> Option<String> {
        if self.has_ended() {
            return None;
        }
        self.signal(Signal::TERM);
        self.signal(Signal::CONT); // one that a fault has stopped hears nothing before
        match tokio::time::timeout(STOP_BOUND, self.child.wait()).await {
            Ok(Ok(status)) if status.success() || self.spec.refused && status.code().is_some() => None,
            Ok(Ok(_)) if self.spec.program.is_some() => None,
            Ok(Ok(status)) => Some(format!("process {} {} when told to stop", self.spec.name, ended(status))),
            Ok(Err(error)) => Some(format!("process {} cannot be waited for: {error}", self.spec.name)),
            Err(_) => {
                self.signal(Signal::KILL);
                let _ = tokio::time::timeout(KILL_BOUND, self.child.wait()).await;
                Some(format!("process {} did not stop within {} s and was killed", self.spec.name, STOP_BOUND.as_secs()))
            }
        }
    }
}

impl Process {
    /// Sends it a signal that ends nothing. Its having ended is an error.
    pub(crate) fn signal_alive(&mut self, signal: Signal) -> Result<()> {
        if self.has_ended() {
            return Err(self.failed(format!("had ended before {signal:?}")));
        }
        self.signal(signal);
        Ok(())
    }
    /// SIGKILL: it has no say in its end. Waits until it is gone.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        if self.has_ended() {
            return Err(self.failed("had ended before it was killed".to_owned()));
        }
        self.signal(Signal::KILL);
        match tokio::time::timeout(KILL_BOUND, self.child.wait()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.failed(error.to_string())),
            Err(_) => Err(self.failed(format!("was not gone within {} s of SIGKILL", KILL_BOUND.as_secs()))),
        }
    }
}

fn ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, signal) => format!("was ended by signal {}", signal.unwrap_or_default()),
    }
}

async fn listen(datagrams: UnixDatagram, sender: watch::Sender<Notice>) {
    let mut buffer = vec![0; MAX_NOTICE];
    while let Ok(length) = datagrams.recv(&mut buffer).await {
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        sender.send_modify(|notice| notice.take(&text));
    }
}

/// The variables that every process of a lab gets from the caller.
pub(crate) fn environment() -> BTreeMap<String, String> {
    PASSED_ON.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect()
}

/// What an ended process said last: everything from the last line in which the program speaks for itself, or else the
/// last line that is not blank.
fn last_words(path: &Path) -> Option<String> {
    let text = tail(path)?;
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let begin = lines.iter().rposition(|line| line.starts_with(PROGRAM_SPEAKS)).unwrap_or(lines.len().saturating_sub(1));
    let words = lines[begin..].join(" ");
    (!words.is_empty()).then_some(words)
}

/// The end of a file.
fn tail(path: &Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Ends all of one role at once and says what went wrong.
pub(crate) async fn stop_role(processes: &mut BTreeMap<String, Process>, role: Role) -> Vec<String> {
    let stops = processes.values_mut().filter(|process| process.spec.role == role).map(Process::stop);
    futures::future::join_all(stops).await.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_are_lines_of_keys_and_bounded() {
        let mut notice = Notice::default();
        notice.take("STATUS=node-1-manager: service \"x\": is unknown; register it\nOTHER=1");
        assert!(!notice.ready);
        notice.take("READY=1\nSTATUS=up");
        assert!(notice.ready);
        assert_eq!(notice.statuses.len(), 2);
        (0..200).for_each(|i| notice.take(&format!("STATUS={i}")));
        assert_eq!(notice.statuses.len(), MAX_STATUSES);
        assert_eq!(notice.statuses.last().map(String::as_str), Some("199"));
    }

    #[test]
    fn the_last_words_are_found_in_long_and_short_logs() {
        let path = std::env::temp_dir().join(format!("nsm-lab-log-{}", std::process::id()));
        assert_eq!(last_words(&path), None);
        std::fs::write(&path, format!("{}\nlast words\n\n", "x".repeat(100_000))).unwrap();
        assert_eq!(last_words(&path).as_deref(), Some("last words"));
        std::fs::write(&path, "INFO starts\nnsm: settings: two mistakes:\n  one\n  two; correct them\n").unwrap();
        assert_eq!(last_words(&path).as_deref(), Some("nsm: settings: two mistakes: one two; correct them"));
        std::fs::remove_file(path).unwrap();
    }
}
