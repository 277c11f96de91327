//! Runs examples one after the other: up, checks, down, and a comparison with the state before.

use crate::{
    checks,
    places::{Ledger, difference, ledger},
    progress::Progress,
    read::LabFile,
    report::{CheckResult, ExampleResult, RunResult},
    world::{Setting, World},
};
use futures::FutureExt;
use nsm_api::{Error, Kind, Result};
use nsm_linux::{net::Net, netns};
use std::{collections::BTreeSet, panic::AssertUnwindSafe, time::Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The wish of the user that everything ends: Ctrl-C, SIGTERM, or the terminal closed.
pub(crate) struct Interrupt {
    signals: Vec<Signal>,
    /// It came.
    pub(crate) came: bool,
}

impl Interrupt {
    /// From now on these signals end nothing by themselves.
    pub(crate) fn new() -> Result<Interrupt> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let signals = kinds.into_iter().map(signal).collect::<std::io::Result<_>>();
        let signals = signals.map_err(|error| Error::internal("signals", format!("cannot be listened to: {error}")))?;
        Ok(Interrupt { signals, came: false })
    }
    /// Waits for one.
    pub(crate) async fn wait(&mut self) {
        let waits = self.signals.iter_mut().map(|signal| signal.recv().boxed_local());
        futures::future::select_all(waits).await;
        self.came = true;
    }
}

/// Runs all, until the user has enough.
pub(crate) async fn run(labs: Vec<LabFile>, setting: &Setting) -> Result<RunResult> {
    let mut interrupt = Interrupt::new()?;
    let mut examples = Vec::new();
    for lab in labs {
        let progress = Progress::new(&lab.lab.name);
        let result = example(lab, setting, &progress, &mut interrupt).await;
        progress.done(result.ok, &line(&result));
        examples.push(result);
        if interrupt.came {
            break;
        }
    }
    Ok(RunResult::new(examples))
}

fn line(result: &ExampleResult) -> String {
    let held = result.checks.iter().filter(|check| check.ok).count();
    let left = if result.leftovers.is_empty() { String::new() } else { format!(", {} things left behind", result.leftovers.len()) };
    format!("{held} of {} checks held{left}  {:.2} s", result.checks.len(), result.seconds)
}

/// One example. Whatever happens inside, everything is taken away again.
async fn example(file: LabFile, setting: &Setting, progress: &Progress, interrupt: &mut Interrupt) -> ExampleResult {
    let (begun, name) = (Instant::now(), file.lab.name.clone());
    let mut results = Vec::new();
    let before = Outside::look(&name);
    let left = match World::claim(file, setting.clone()) {
        Err(error) => {
            results.push(CheckResult::new("starts", "all processes ready", error.to_string(), false, begun.elapsed()));
            Vec::new()
        }
        Ok(mut world) => {
            let problem = guarded(&mut world, &mut results, progress, interrupt).await;
            results.extend(problem.map(|what| CheckResult::new("runs to its end", "to its end", what, false, begun.elapsed())));
            world.down(progress).await
        }
    };
    let left = left.into_iter().chain(changes(before, Outside::look(&name))).collect();
    ExampleResult::new(&name, begun.elapsed(), results, left)
}

/// Brings it up and checks it, until the end, a panic, or the user's wish. Says what ended it early.
async fn guarded(world: &mut World, results: &mut Vec<CheckResult>, progress: &Progress, interrupt: &mut Interrupt) -> Option<String> {
    let body = AssertUnwindSafe(up_and_check(world, results, progress)).catch_unwind();
    tokio::select! {
        ended = body => ended.err().map(|panic| format!("defect of the lab: {}", panic_text(panic.as_ref()))),
        () = interrupt.wait() => Some("interrupted".to_owned()),
    }
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words")
}

async fn up_and_check(world: &mut World, results: &mut Vec<CheckResult>, progress: &Progress) {
    let begun = Instant::now();
    let count = world.plan.processes.iter().filter(|spec| !spec.later).count();
    let expected = format!("{count} processes in {} namespaces", world.plan.namespaces.len());
    if let Err(error) = world.up(progress).await {
        results.push(CheckResult::new("starts", expected, error.to_string(), false, begun.elapsed()));
        return;
    }
    results.push(CheckResult::new("starts", &*expected, &*expected, true, begun.elapsed()));
    for check in world.file.lab.checks.clone() {
        progress.step(&check.to_string());
        let result = checks::run(world, &check).await;
        if !result.ok {
            progress.remark(&format!("✗ {}: expected {}, seen {}", result.check, result.expected, result.seen));
        }
        results.push(result);
    }
}

/// What exists outside the lab's own namespaces: the namespace we live in, and the names of namespaces.
pub(crate) struct Outside {
    ledger: Ledger,
    names: BTreeSet<String>,
}

impl Outside {
    pub(crate) fn look(lab: &str) -> Result<Outside> {
        let ledger = ledger(&Net::new(&netns::current()?)?)?;
        let prefix = format!("{lab}-");
        let names = netns::list_named()?.into_iter().filter(|name| name.starts_with(&prefix)).collect();
        Ok(Outside { ledger, names })
    }
}

pub(crate) fn changes(before: Result<Outside>, after: Result<Outside>) -> Vec<String> {
    match (before, after) {
        (Ok(before), Ok(after)) => {
            let names = after.names.difference(&before.names).map(|name| format!("namespace {name}"));
            difference(&before.ledger, &after.ledger).into_iter().map(|line| format!("host: {line}")).chain(names).collect()
        }
        (Err(error), _) | (_, Err(error)) => vec![format!("host could not be looked at: {error}")],
    }
}

/// Holds one lab until the user's wish; says whether nothing was left behind. Tells a waiting parent (or systemd) when it is up, or why not.
pub(crate) async fn hold(file: LabFile, setting: &Setting) -> Result<bool> {
    let mut interrupt = Interrupt::new()?;
    let progress = Progress::new(&file.lab.name);
    let name = file.lab.name.clone();
    let mut world = World::claim(file, setting.clone()).inspect_err(|error| tell(&format!("STATUS={error}")))?;
    let up = tokio::select! {
        up = AssertUnwindSafe(world.up(&progress)).catch_unwind() => up.unwrap_or_else(|_| Err(Error::internal("lab", "panicked"))),
        () = interrupt.wait() => Err(Error::new(Kind::Unavailable, format!("lab {name:?}"), "was interrupted", "start it again")),
    };
    if let Err(error) = &up {
        tell(&format!("STATUS={error}"));
    } else {
        tell("READY=1");
        progress.step("up; Ctrl-C ends it");
        interrupt.wait().await;
    }
    let left = world.down(&progress).await;
    progress.done(up.is_ok() && left.is_empty(), if left.is_empty() { "nothing left behind" } else { "left something behind" });
    left.iter().for_each(|line| progress.remark(line));
    up.map(|()| left.is_empty())
}

/// One datagram to whoever started us, by the sd_notify protocol. Nobody listening is no error.
fn tell(text: &str) {
    if let Some(path) = std::env::var_os("NOTIFY_SOCKET")
        && let Ok(socket) = std::os::unix::net::UnixDatagram::unbound()
    {
        let _ = socket.send_to(text.as_bytes(), path);
    }
}
