//! A lab that runs: brought up in stages, torn down in the reverse order, always.
//!
//! Whatever happens in between, [`World::down`] is called and says what it found left behind. Not here: the checks
//! ([`crate::checks`]).

use crate::{
    faults::{mount_disk, unmount_disk},
    look::Look,
    places::Places,
    plan::{Files, Plan, Role, TOOL, init_client, plan, registry_url, unix},
    process::{Process, environment, stop_role},
    progress::Progress,
    read::LabFile,
    schema::{App, Client, Ending, Mode},
    state::{State, StateProcess, Store, own_start, process_stat},
};
use nsm_api::{Error, Kind, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{process::Command, time::timeout};

/// How long a question to a process of the lab, or the application of a client, may take.
const COMMAND_BOUND: Duration = Duration::from_secs(10);
/// How long removals may take to be seen after the last process has ended.
const SETTLE_BOUND: Duration = Duration::from_secs(1);
/// Between two looks.
pub(crate) const POLL: Duration = Duration::from_millis(10);
/// Names tried for the directory of a lab.
const MAX_DIRECTORIES: u32 = 1000;
/// Bytes of the longest directory: what is left of a unix socket's 107 for `/w/<name>` and `/<node>-fwd.sock`.
const MAX_DIRECTORY: usize = 107 - 3 - 24 - 10;

/// What all labs of one command share.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// The program whose roles are started.
    pub(crate) program: PathBuf,
    /// The files of running labs.
    pub(crate) store: Store,
    /// We live in a user namespace of our own.
    pub(crate) user_namespace: bool,
    /// The directory with logs stays.
    pub(crate) keep: bool,
}

/// One running lab.
pub(crate) struct World {
    pub(crate) file: LabFile,
    pub(crate) files: Files,
    pub(crate) plan: Plan,
    pub(crate) places: Places,
    pub(crate) processes: BTreeMap<String, Process>,
    /// What each client brought into the namespaces: (namespace, line).
    pub(crate) births: BTreeMap<String, BTreeSet<(String, String)>>,
    /// What the application of each client saw first.
    pub(crate) apps: BTreeMap<String, Look>,
    /// Processes that were ended without a word, or said goodbye to a program of somebody else, which may have forgotten
    /// them: what they left with others goes when it expires.
    silenced: BTreeSet<String>,
    /// Processes that were ended and not started again.
    away: BTreeSet<String>,
    setting: Setting,
    state: State,
}

impl World {
    /// Claims the name and makes the directory; nothing runs yet.
    pub(crate) fn claim(file: LabFile, setting: Setting) -> Result<World> {
        let store = &setting.store;
        let lab = file.lab.name.clone();
        store.must_be_free(&lab)?;
        if let Some(old) = store.get(&lab) {
            crate::state::sweep(store, &old)?;
        }
        let files = Files::new(make_directory(&lab)?);
        let plan = plan(&file.lab, &files);
        let state = State {
            lab,
            path: file.path.clone(),
            pid: std::process::id(),
            started: own_start(),
            user_namespace: setting.user_namespace,
            dir: files.dir().to_owned(),
            namespaces: Vec::new(),
            processes: Vec::new(),
        };
        let (places, processes) = (Places::default(), BTreeMap::new());
        let (births, apps, silenced, away) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        let world = World { file, files, plan, places, processes, births, apps, silenced, away, setting, state };
        world.save()?;
        Ok(world)
    }

    fn save(&self) -> Result<()> {
        self.setting.store.put(&self.state)
    }

    /// Brings everything up: namespaces, then processes by their roles, each stage when the one before is ready.
    pub(crate) async fn up(&mut self, progress: &Progress) -> Result<()> {
        progress.step("namespaces");
        // Noted before they are made, so that what a killed lab leaves can be removed.
        self.state.namespaces = self.plan.namespaces.clone();
        self.save()?;
        for name in self.plan.namespaces.clone() {
            self.places.make(&name)?;
        }
        self.file.lab.state_bytes.map_or(Ok(()), |bytes| mount_disk(&self.files.state(), bytes))?;
        for (name, text) in crate::plan::files(&self.file.lab) {
            self.write(&name, &text)?;
        }
        for client in &self.file.lab.clients {
            client.resolv_conf.as_ref().map_or(Ok(()), |text| put(&self.files.resolv_conf(&client.name), text))?;
        }
        self.places.furnish(&self.file.lab, &self.plan).await?;
        for role in [Role::Identity, Role::Registry, Role::Ipam, Role::Packet, Role::Node, Role::Manager] {
            self.stage(role, progress).await?;
        }
        self.services().await?;
        for role in [Role::Forwarder, Role::Endpoint] {
            self.stage(role, progress).await?;
        }
        let (later, first): (Vec<Client>, Vec<Client>) = self.file.lab.clients.iter().cloned().partition(|client| client.expect_refusal);
        for client in first.into_iter().filter(|client| !client.later) {
            progress.step(&format!("client {}", client.name));
            self.client(&client).await?;
        }
        for client in later.into_iter().filter(|client| !client.later) {
            let spec = self.spec(&client.name)?;
            self.start(&spec)?;
        }
        self.save()
    }

    /// Starts all of one role at once and waits until each is ready.
    async fn stage(&mut self, role: Role, progress: &Progress) -> Result<()> {
        progress.step(role.as_str());
        let specs: Vec<_> = self.plan.processes.iter().filter(|spec| spec.role == role && !spec.later).cloned().collect();
        // Prefixes are lent in the order of asking, and the author wants to know them.
        let in_turn = role == Role::Endpoint && !self.file.lab.prefix_servers.is_empty();
        for spec in &specs {
            self.start(spec)?;
            if in_turn {
                self.save()?;
                self.ready(&spec.name).await?;
            }
        }
        self.save()?;
        let ours = |process: &&mut Process| process.spec.role == role && process.spec.program.is_none();
        futures::future::try_join_all(self.processes.values_mut().filter(ours).map(Process::ready)).await?;
        for spec in specs.iter().filter(|spec| spec.program.is_some()) {
            self.ready(&spec.name).await?;
        }
        Ok(())
    }

    /// Waits until a process serves, as it says or as is seen from outside.
    pub(crate) async fn ready(&mut self, name: &str) -> Result<()> {
        if self.process(name)?.spec.program.is_some() {
            return self.ready_outside(name).await;
        }
        self.process(name)?.ready().await
    }

    /// Ends one process, which stays away.
    pub(crate) async fn end(&mut self, name: &str, ending: Ending) -> Result<()> {
        let foreign = self.plan.processes.iter().any(|spec| spec.program.is_some() && matches!(spec.role, Role::Manager | Role::Registry));
        if ending == Ending::Kill || foreign {
            self.silenced.insert(name.to_owned());
        }
        self.away.insert(name.to_owned());
        match ending {
            Ending::Kill => self.process(name)?.kill().await,
            Ending::Term => {
                let problem = self.process(name)?.stop().await;
                problem.map_or(Ok(()), |problem| Err(Error::internal(format!("process {name:?}"), problem)))
            }
        }
    }

    /// The manager of this node was ended by a fault, and stays away.
    pub(crate) fn was_ended(&self, node: &str) -> bool {
        [node.to_owned(), format!("{node}-manager")].iter().any(|name| self.away.contains(name))
    }

    /// Ends one process, starts it again and waits until it serves.
    pub(crate) async fn restart(&mut self, name: &str, ending: Ending) -> Result<()> {
        self.end(name, ending).await?;
        self.begin(name).await
    }

    /// Starts a process that does not run, and waits for nothing.
    pub(crate) fn launch(&mut self, name: &str) -> Result<()> {
        let spec = self.spec(name)?;
        self.start(&spec)?;
        self.save()
    }

    /// Starts a process that does not run, and waits until it serves.
    pub(crate) async fn begin(&mut self, name: &str) -> Result<()> {
        if let Some(process) = self.processes.get_mut(name)
            && !process.has_ended()
        {
            return Err(process.failed("runs already".to_owned()));
        }
        if !self.processes.contains_key(name)
            && let Some(client) = self.file.lab.client(name).cloned()
        {
            return self.client(&client).await;
        }
        let namespace = self.file.lab.namespace(name);
        if self.places.get(&namespace).is_ok() && !nsm_linux::netns::list_named()?.contains(&namespace) {
            self.places.renew(&namespace)?; // its pod has died
        }
        self.launch(name)?;
        self.ready(name).await?;
        let spec = self.spec(name)?;
        // A registry that keeps nothing is told again; of the others it is to be seen that they need not be.
        let forgets = spec.role == Role::Registry && spec.env.get("NSM_STORE").is_some_and(|store| store == "memory");
        if forgets { self.services().await } else { Ok(()) }
    }

    fn spec(&self, name: &str) -> Result<crate::plan::Spec> {
        let spec = self.plan.processes.iter().find(|spec| spec.name == name);
        spec.cloned().ok_or_else(|| Error::internal(format!("process {name:?}"), "is not in the plan"))
    }

    fn start(&mut self, spec: &crate::plan::Spec) -> Result<()> {
        // Its socket has the same path: an earlier process of this name must let go of it first.
        self.processes.remove(&spec.name);
        self.away.remove(&spec.name);
        self.make_own_directory(spec)?;
        let process = Process::start(&self.setting.program, spec, &self.files)?;
        let started = process_stat(process.pid).map_or(0, |(started, _)| started);
        let (name, netns) = (spec.name.clone(), spec.netns.clone());
        self.state.processes.retain(|known| known.name != name);
        self.state.processes.push(StateProcess { name: name.clone(), role: spec.role, netns, pid: process.pid, started });
        self.processes.insert(name, process);
        Ok(())
    }

    /// Ours make their own; others expect to find it.
    fn make_own_directory(&self, spec: &crate::plan::Spec) -> Result<()> {
        let dir = self.files.own(&spec.name);
        if spec.program.is_none() || dir.exists() {
            return Ok(());
        }
        let made = fs::DirBuilder::new().mode(0o700).create(&dir);
        made.map_err(|error| Error::internal(format!("directory {}", dir.display()), error.to_string()))
    }

    /// Replaces one of the author's files in one step, so that nobody reads a half.
    pub(crate) fn write(&self, file: &str, text: &str) -> Result<()> {
        let dir = self.files.files();
        let (draft, path) = (dir.join(format!(".{file}")), dir.join(file));
        put(&draft, text)?;
        fs::rename(&draft, &path).map_err(|error| Error::internal(format!("file {}", path.display()), error.to_string()))
    }

    /// Registers one service, new or changed; a registry that is started again will get it, too.
    pub(crate) async fn apply(&mut self, name: &str, text: &str) -> Result<()> {
        self.file.services.retain(|known| service_name(known).as_deref() != Some(name));
        self.file.services.push(text.to_owned());
        self.register(text).await
    }

    /// Registers the services of the file.
    async fn services(&mut self) -> Result<()> {
        if self.file.services.is_empty() {
            return Ok(());
        }
        self.register(&self.file.services.join("---\n")).await
    }

    async fn register(&self, text: &str) -> Result<()> {
        let path = self.files.services();
        put(&path, text)?;
        let args =
            ["apply".to_owned(), "-f".to_owned(), path.display().to_string(), "--registry-url".to_owned(), registry_url(&self.file.lab)];
        self.ask(&args).await.map(|_| ())
    }

    /// Starts one client and waits until its vWires are up: an init client first makes them, then its application
    /// starts, then the process that stays takes them over.
    async fn client(&mut self, client: &Client) -> Result<()> {
        let spec = self.spec(&client.name)?;
        if client.mode == Mode::Init {
            self.start(&init_client(&spec))?;
            self.process(&client.name)?.finished().await?;
            if let Some(app) = &client.app {
                let seen = self.run_app(&spec.netns, app).await?;
                self.apps.insert(client.name.clone(), seen);
            }
        }
        self.start(&spec)?;
        self.ready(&client.name).await?;
        self.note_birth(&client.name)
    }

    /// The program whose roles are started.
    pub(crate) fn program(&self) -> &Path {
        &self.setting.program
    }

    /// The running or ended process of this name.
    pub(crate) fn process(&mut self, name: &str) -> Result<&mut Process> {
        let missing = || Error::internal(format!("process {name:?}"), "was not started");
        self.processes.get_mut(name).ok_or_else(missing)
    }

    /// Notes as this client's everything that is new and nobody else's.
    pub(crate) fn note_birth(&mut self, client: &str) -> Result<()> {
        let mut own = self.places.additions()?;
        for (_, others) in self.births.iter().filter(|(name, _)| *name != client) {
            own.retain(|line| !others.contains(line));
        }
        self.births.insert(client.to_owned(), own);
        Ok(())
    }

    async fn run_app(&self, netns: &str, app: &App) -> Result<Look> {
        let mut args = vec!["--netns".to_owned(), netns.to_owned(), "lab".to_owned(), "look".to_owned(), "--json".to_owned()];
        args.extend(app.ping.into_iter().flat_map(|to| ["--ping".to_owned(), to.to_string()]));
        args.extend(app.tcp.into_iter().flat_map(|to| ["--tcp".to_owned(), to.to_string()]));
        let out = run(&self.setting.program, &args, &BTreeMap::new()).await?;
        serde_json::from_str(&out).map_err(|error| Error::internal("application", format!("answered {out:?}: {error}")))
    }

    /// Runs `nsm` with these arguments in the fabric, with an identity of its own, and returns what it printed.
    pub(crate) async fn ask(&self, args: &[String]) -> Result<String> {
        let mut all = vec!["--netns".to_owned(), self.file.lab.namespace(crate::plan::FABRIC)];
        all.extend_from_slice(args);
        ask(&self.setting.program, &all, &self.files).await
    }

    /// What prints every event of a node's manager.
    pub(crate) fn watch(&self, node: &str) -> Command {
        let mut command = Command::new(&self.setting.program);
        let fabric = self.file.lab.namespace(crate::plan::FABRIC);
        command.args(["--netns", &fabric, "watch", "connections", "--json", "--connect-to", &unix(&self.files.manager(node))]);
        command.env_clear().envs(environment()).env("SPIFFE_ENDPOINT_SOCKET", unix(&self.files.workload(TOOL)));
        command.env("NSM_DIE_WITH_PARENT", "1");
        command
    }

    /// Ends everything and says what is left behind. Safe at any point of the way up.
    pub(crate) async fn down(mut self, progress: &Progress) -> Vec<String> {
        progress.step("stopping");
        let asks = self.processes.values_mut().any(|process| process.spec.role == Role::Registry && !process.has_ended());
        let mut left = Vec::new();
        for role in [Role::Client, Role::Endpoint, Role::Forwarder, Role::Node] {
            left.extend(stop_role(&mut self.processes, role).await);
        }
        if asks {
            left.extend(self.registered().await);
        }
        for role in [Role::Manager, Role::Packet, Role::Ipam, Role::Registry, Role::Identity] {
            left.extend(stop_role(&mut self.processes, role).await);
        }
        self.processes.clear();
        left.extend(self.changed().await);
        left.extend(self.strangers());
        left.extend(self.places.delete());
        left.extend(self.unexpected_files());
        unmount_disk(&self.files.state());
        if self.setting.keep {
            progress.remark(&format!("logs of {} are in {}", self.file.lab.name, self.files.dir().join("log").display()));
        } else if let Err(error) = fs::remove_dir_all(self.files.dir()) {
            left.push(format!("directory {}: {error}", self.files.dir().display()));
        }
        self.setting.store.remove(&self.file.lab.name);
        left
    }

    /// Endpoints that are still registered though all have ended.
    async fn registered(&self) -> Vec<String> {
        let args = ["get", "endpoints", "--registry-url", &registry_url(&self.file.lab), "--json"].map(str::to_owned);
        let answer = self.ask(&args).await.and_then(|text| names(&text));
        match answer {
            Ok(names) => names.into_iter().filter(|name| !self.is_silent(name)).map(|name| format!("registry entry {name}")).collect(),
            Err(error) => vec![format!("registry could not be asked: {error}")],
        }
    }

    /// It has not said goodbye: it was killed, has nobody any more to say it to, or is somebody else's program, whose ways are its own.
    fn is_silent(&self, name: &str) -> bool {
        let foreign = |spec: &crate::plan::Spec| spec.name == *name && spec.program.is_some();
        let lab = &self.file.lab;
        let of_node = |node: &&crate::schema::Node| {
            name == format!("{}-forwarder", node.name)
                || lab.endpoints.iter().any(|endpoint| endpoint.name == name && endpoint.node == node.name)
        };
        let alone = lab.nodes.iter().find(of_node).is_some_and(|node| self.was_ended(&node.name));
        alone || self.silenced.contains(name) || self.plan.processes.iter().any(foreign)
    }

    /// Changes in the namespaces that do not go away by themselves.
    async fn changed(&self) -> Vec<String> {
        let until = tokio::time::Instant::now() + SETTLE_BOUND;
        loop {
            let changes = self.places.changes();
            if changes.is_empty() || tokio::time::Instant::now() > until {
                return changes;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Processes that live in our namespaces though all of ours have ended.
    fn strangers(&self) -> Vec<String> {
        let ours: BTreeSet<u64> = self.places.iter().map(|(_, place)| place.netns.key.ino).collect();
        let pids =
            fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let lives_here = |pid: &u32| {
            use std::os::unix::fs::MetadataExt;
            fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| ours.contains(&meta.ino()))
        };
        pids.filter(lives_here).map(|pid| format!("process {pid}")).collect()
    }

    /// Files that no process should have left: everything but logs and what the lab itself wrote.
    fn unexpected_files(&self) -> Vec<String> {
        let mut own = self.files.sub_directories().to_vec();
        let nodes = self.file.lab.nodes.iter().flat_map(|node| [self.files.manager(&node.name), self.files.forwarder(&node.name)]);
        own.extend(nodes.filter(|_| self.plan.processes.iter().any(|spec| spec.program.is_some()) || !self.silenced.is_empty()));
        let mut found = Vec::new();
        for dir in [self.files.dir().to_owned(), self.files.workload(""), self.files.notify("")] {
            let entries = fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
            let unexpected = entries.filter(|path| !own.contains(path) && *path != self.files.services());
            found.extend(unexpected.map(|path| format!("file {}", path.strip_prefix(self.files.dir()).unwrap_or(&path).display())));
        }
        found
    }
}

/// Runs `nsm` as the lab's own workload, outside any particular namespace unless `args` say so.
pub(crate) async fn ask(program: &Path, args: &[String], files: &Files) -> Result<String> {
    let env = BTreeMap::from([("SPIFFE_ENDPOINT_SOCKET".to_owned(), unix(&files.workload(TOOL)))]);
    run(program, args, &env).await
}

async fn run(program: &Path, args: &[String], env: &BTreeMap<String, String>) -> Result<String> {
    let object = format!("nsm {}", args.join(" "));
    let failed = |reason: String| Error::new(Kind::Unavailable, &*object, reason, "run it by hand after `nsm lab up`");
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(environment()).envs(env).env("NSM_DIE_WITH_PARENT", "1").env("NO_COLOR", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = timeout(COMMAND_BOUND, command.output());
    let output = output.await.map_err(|_| failed(format!("took longer than {} s", COMMAND_BOUND.as_secs())))?;
    let output = output.map_err(|error| failed(format!("cannot be started: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("failed: {}", said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The `name` of every object of a JSON list.
pub(crate) fn names(text: &str) -> Result<Vec<String>> {
    let list: Vec<serde_json::Value> =
        serde_json::from_str(text.trim()).map_err(|error| Error::internal("list", format!("is not JSON: {error}")))?;
    Ok(list.iter().map(|item| item["name"].as_str().unwrap_or("?").to_owned()).collect())
}

fn put(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|error| Error::internal(format!("file {}", path.display()), format!("cannot be written: {error}")))
}

/// The name in a NetworkService document.
fn service_name(text: &str) -> Option<String> {
    let value: serde_yaml_ng::Value = serde_yaml_ng::from_str(text).ok()?;
    Some(value.get("metadata")?.get("name")?.as_str()?.to_owned())
}

/// A new private directory with a short path.
fn make_directory(lab: &str) -> Result<PathBuf> {
    let mut base = std::env::temp_dir();
    if base.as_os_str().len() + lab.len() + 10 > MAX_DIRECTORY {
        base = PathBuf::from("/tmp");
    }
    let failed = |error: std::io::Error| {
        Error::new(
            Kind::Internal,
            format!("directory {}", base.display()),
            format!("cannot be written: {error}"),
            "set TMPDIR to a writable one",
        )
    };
    for number in 0..MAX_DIRECTORIES {
        let dir = base.join(format!("nsm-{lab}-{number}"));
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
            other => other.map_err(failed)?,
        }
        for sub in Files::new(&dir).sub_directories() {
            fs::DirBuilder::new().mode(0o700).create(sub).map_err(failed)?;
        }
        return Ok(dir);
    }
    Err(failed(std::io::Error::other(format!("{MAX_DIRECTORIES} directories of this lab exist"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_private_short_and_never_shared() {
        let (one, two) = (make_directory("unit-test").unwrap(), make_directory("unit-test").unwrap());
        assert_ne!(one, two);
        assert!(Files::new(&one).workload(&"x".repeat(24)).as_os_str().len() <= 107);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&one).unwrap().permissions().mode() & 0o777, 0o700);
        fs::remove_dir_all(one).unwrap();
        fs::remove_dir_all(two).unwrap();
    }

    #[test]
    fn names_come_from_a_json_list() {
        assert_eq!(names("[{\"name\":\"a\"},{}]\n").unwrap(), ["a", "?"]);
        assert!(names("oops").is_err());
    }
}
