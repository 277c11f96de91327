//! Endpoints that exist only while somebody needs them: a client that finds none is led here, and one is started for it.
//!
//! A template says how: a program with arguments, in which labels of the client stand for what differs. One process runs
//! for each name that comes of it, however many clients ask at once. Nobody is connected here: every Request is answered by
//! an error that makes its client ask again, and by then the endpoint is there. It ends by itself when nobody needs it
//! (`--idle-timeout`); one that fails is started again only after a pause, which grows.
//!
//! ```yaml
//! name: "nse-{{ .nodeName }}"         # of the endpoint; one process for each
//! command: [nsm, endpoint, icmp-responder, --name, "nse-{{ .nodeName }}", --service-names, web, --idle-timeout, 15s]
//! env: {NSM_CIDR_PREFIX: 172.16.1.0/24}
//! netns: new                          # a network namespace of its own, or that of the supplier when left out
//! ```
//!
//! `nsm` as the program is this very program, which is told where the manager is. Not here: pods of Kubernetes; and what the endpoint does.

use async_trait::async_trait;
use futures::StreamExt;
use nsm_api::*;
use nsm_hop::{
    role::{Candidate, Draft, Next, Onward, Sent},
    template,
};
use nsm_linux::{net::Net, netns};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    os::fd::AsRawFd,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    process::{Child, Command},
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

/// Most endpoints of one supplier at a time, those that wait for their next start included.
pub const MAX_SUPPLIED: usize = 256;
/// Largest template, bytes.
const MAX_TEMPLATE: usize = 1 << 16;
/// Bytes of the longest label that may stand in a command.
const MAX_LABEL: usize = 63;
/// Longest wait of a Request for the endpoint that it made start.
const START: Duration = Duration::from_secs(10);
/// Between two looks whether it is registered.
const LOOK: Duration = Duration::from_millis(50);
/// Longest wait for one answer of the registry.
const CALL: Duration = Duration::from_secs(2);
/// One that ends before this has failed.
const SETTLED: Duration = Duration::from_secs(5);
/// Pauses before one that has failed is started again, doubled from the first to the last.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long an endpoint may take to end before it is ended.
const FAREWELL: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Template {
    name: String,
    command: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    netns: Place,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Place {
    /// That of the supplier.
    #[default]
    Own,
    New,
}

/// What becomes of an endpoint.
#[derive(Clone, Debug)]
enum State {
    Starting,
    Ready,
    /// How often it has failed, why, and until when it is not started again.
    Failed(u32, String, Instant),
    Ended,
}

/// Starts endpoints from a template. Clones are the same.
#[derive(Clone)]
pub struct Supplier(Arc<Inner>);

struct Inner {
    template: PathBuf,
    registry: Arc<dyn RegistryApi>,
    /// Labels of this place; a client of another place is sent on.
    place: Labels,
    /// What every endpoint is told by variables: whom to connect to, where to make its socket.
    env: BTreeMap<String, String>,
    slots: Mutex<BTreeMap<String, watch::Receiver<State>>>,
    end: watch::Sender<bool>,
}

impl Supplier {
    /// Reads the template, so that a mistake in it is known at the start; it is read again for each endpoint. `place` are the
    /// labels of this node; `env` is what every endpoint is told by variables, unless the template says otherwise.
    ///
    /// # Errors
    /// [`Kind::Invalid`] with its first mistake.
    pub fn open(template: PathBuf, registry: Arc<dyn RegistryApi>, place: Labels, env: BTreeMap<String, String>) -> Result<Supplier> {
        let supplier =
            Supplier(Arc::new(Inner { template, registry, place, env, slots: Mutex::default(), end: watch::Sender::new(false) }));
        supplier.read()?;
        Ok(supplier)
    }

    fn read(&self) -> Result<Template> {
        let wrong = |mistake: String| Error::invalid(format!("template {}", self.0.template.display()), mistake, "correct the file");
        let text = std::fs::read_to_string(&self.0.template).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        if text.len() > MAX_TEMPLATE {
            return Err(wrong(format!("has {} bytes, the limit is {MAX_TEMPLATE}", text.len())));
        }
        let template: Template = serde_yaml_ng::from_str(&text).map_err(|error| wrong(format!("has a mistake: {error}")))?;
        if template.command.first().is_none_or(String::is_empty) { Err(wrong("has no command".to_owned())) } else { Ok(template) }
    }

    /// Sees to it that there is an endpoint for these labels: its name, when it is registered.
    async fn supply(&self, labels: &Labels) -> Result<String> {
        for (key, ours) in &self.0.place {
            if let Some(theirs) = labels.get(key).filter(|theirs| *theirs != ours) {
                let reason = format!("starts endpoints where {key} is {ours}, and the client says {theirs}");
                return Err(Error::new(Kind::NotFound, "this supplier", reason, "run a supplier there, and let the service lead to it"));
            }
        }
        let template = rendered(self.read()?, labels)?;
        let (name, mut state) = (template.name.clone(), self.slot(template)?);
        let settled = |state: &State| !matches!(state, State::Starting);
        let waited = timeout(START, state.wait_for(settled)).await;
        let now = waited.ok().and_then(|state| state.ok().map(|state| state.clone()));
        match now {
            Some(State::Failed(_, reason, _)) => Err(failed(&name, &reason)),
            Some(_) => Ok(name),
            None => Err(failed(&name, &format!("was not registered within {START:?}"))),
        }
    }

    /// The state of the endpoint, which begins to start if nobody has started it.
    fn slot(&self, template: Template) -> Result<watch::Receiver<State>> {
        let mut slots = self.slots();
        slots.retain(|_, state| !matches!(*state.borrow(), State::Ended));
        let mut failures = 0;
        if let Some(state) = slots.get(&template.name) {
            match &*state.borrow() {
                State::Failed(times, _, until) if *until <= Instant::now() => failures = *times,
                _ => return Ok(state.clone()),
            }
        }
        if slots.len() >= MAX_SUPPLIED {
            let reason = format!("runs {MAX_SUPPLIED} endpoints already");
            return Err(Error::new(Kind::Exhausted, "this supplier", reason, "let some of them become idle"));
        }
        let (told, state) = watch::channel(State::Starting);
        slots.insert(template.name.clone(), state.clone());
        let (this, end) = (self.clone(), self.0.end.subscribe());
        tokio::spawn(async move { this.run(&template, failures, (told, end)).await });
        Ok(state)
    }

    /// One life of an endpoint.
    async fn run(&self, template: &Template, failures: u32, (told, mut end): (watch::Sender<State>, watch::Receiver<bool>)) {
        let begun = Instant::now();
        let fail = |reason: String| {
            let pause = PAUSE.0.saturating_mul(1 << failures.min(10)).min(PAUSE.1);
            warn!(endpoint = %template.name, %reason, ?pause, "endpoint failed");
            told.send_replace(State::Failed(failures + 1, reason, Instant::now() + pause));
        };
        let (mut child, _netns) = match start(template, &self.0.env) {
            Ok(started) => started,
            Err(error) => return fail(error.to_string()),
        };
        info!(endpoint = %template.name, pid = child.id(), "started");
        let announce = async {
            self.registered(&template.name).await;
            told.send_replace(State::Ready);
            std::future::pending::<()>().await
        };
        let ended = tokio::select! {
            status = child.wait() => Some(status),
            () = announce => None,
            _ = end.wait_for(|end| *end) => None,
        };
        let status = match ended {
            Some(status) => status,
            None => stop(&mut child).await,
        };
        match status {
            Ok(status) if status.success() || begun.elapsed() >= SETTLED => {
                info!(endpoint = %template.name, %status, "ended");
                told.send_replace(State::Ended);
            }
            Ok(status) => fail(format!("ended with {status}")),
            Err(error) => fail(error.to_string()),
        }
    }

    /// Resolves when the registry knows the endpoint.
    async fn registered(&self, name: &str) {
        loop {
            let query = EndpointQuery { name: name.parse().ok(), ..EndpointQuery::default() };
            if let Ok(mut found) = self.0.registry.find_endpoints(query, Caller::within(CALL)).await {
                while let Some(Ok((update, _))) = found.next().await {
                    if update.endpoint.name.as_str() == name && !update.deleted {
                        return;
                    }
                }
            }
            sleep(LOOK).await;
        }
    }

    /// Ends all that runs, and waits for it, as long as they may take.
    pub async fn close(&self) {
        self.0.end.send_replace(true);
        let states: Vec<watch::Receiver<State>> = self.slots().values().cloned().collect();
        let over = |state: &State| matches!(state, State::Failed(..) | State::Ended);
        for mut state in states {
            let _ = timeout(FAREWELL * 2, state.wait_for(over)).await;
        }
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<String, watch::Receiver<State>>> {
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(name: &str, reason: &str) -> Error {
    Error::new(Kind::Unavailable, format!("endpoint {name:?}"), reason, "see the supplier's log; it is tried again")
}

/// The template with the labels in their places. A client's label is a word, so that it cannot be another argument.
fn rendered(template: Template, labels: &Labels) -> Result<Template> {
    let is_word = |text: &str| {
        let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        (1..=MAX_LABEL).contains(&text.len()) && text.chars().all(legal) && !text.starts_with(['-', '.'])
    };
    let words: Labels = labels.iter().filter(|(_, value)| is_word(value)).map(|(key, value)| (key.clone(), value.clone())).collect();
    let render = |text: &String| {
        let missing = || {
            let reason = format!("{text:?} needs a label that the client does not have, or that is no plain word");
            Error::new(Kind::NotFound, "the supplier's template", reason, "let the client say it, or leave it out of the template")
        };
        let rendered = template::render(text, &words).filter(|rendered| !rendered.contains("<no value>"));
        rendered.ok_or_else(missing)
    };
    Ok(Template {
        name: render(&template.name)?,
        command: template.command.iter().map(render).collect::<Result<_>>()?,
        env: template.env.iter().map(|(key, value)| Ok((key.clone(), render(value)?))).collect::<Result<_>>()?,
        netns: template.netns,
    })
}

/// The process, and the namespace that was made for it.
fn start(template: &Template, env: &BTreeMap<String, String>) -> Result<(Child, Option<nsm_hop::kernel::Netns>)> {
    let failed = |error: std::io::Error| Error::new(Kind::Kernel, "the endpoint's program", error.to_string(), "correct the template");
    let (program, arguments) = template.command.split_first().expect("it was read with a command");
    let own = program == "nsm";
    let mut command = Command::new(if own { std::env::current_exe().map_err(failed)? } else { program.into() });
    let netns = match template.netns {
        Place::New => Some(netns::create()?),
        Place::Own => None,
    };
    if let Some(netns) = &netns {
        Net::new(netns)?.loopback_up()?;
        let file = netns::file(netns)?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        if !own {
            let reason = "a namespace of its own is for this program only";
            return Err(Error::invalid("the supplier's template", reason, "begin the command with nsm, or leave netns out"));
        }
        command.args(["--netns", &path]);
    }
    // What the supplier was told is not for others, but where state is kept, and whether to end together.
    let ours = |key: &str| key.starts_with("NSM_") && !["NSM_STATE_DIR", "NSM_DIE_WITH_PARENT"].contains(&key);
    for (key, _) in std::env::vars_os().filter(|(key, _)| ours(&key.to_string_lossy())) {
        command.env_remove(key);
    }
    command
        .env_remove("NOTIFY_SOCKET")
        .env("POD_NAME", &template.name)
        .args(arguments)
        .envs(env)
        .envs(&template.env)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    Ok((command.spawn().map_err(failed)?, netns))
}

async fn stop(child: &mut Child) -> std::io::Result<std::process::ExitStatus> {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
        let _ = kill_process(pid, Signal::TERM); // it may have ended by itself
    }
    match timeout(FAREWELL, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            child.start_kill()?;
            child.wait().await
        }
    }
}

#[async_trait]
impl Onward for Supplier {
    async fn next(&self, draft: &Draft, _: Option<&Sent>) -> Result<Next> {
        let name = self.supply(&draft.connection.labels).await?;
        let reason = format!("endpoint {name:?} is there for it now; this supplier carries nothing itself");
        Err(Error::new(Kind::Unavailable, format!("service {}", draft.connection.network_service), reason, "ask again"))
    }
    fn request(&self, _: &Draft, _: &Candidate, _: Option<&Sent>) -> Result<Request> {
        Err(Error::internal("the supplier", "was asked to go on"))
    }
    fn accept(&self, _: &mut Draft, _: &Answer) {}
}

#[cfg(test)]
mod tests;
