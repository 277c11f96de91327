//! One node with real processes in namespaces of their own: what a test of sudden ends needs, and no more.

use nsm_hop::kernel::Netns;
use nsm_linux::{net::Net, netns};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process::{Child, Command, ExitStatus},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// How long anything here may take on a busy machine.
pub(crate) const BOUND: Duration = Duration::from_secs(30);
const MUST: &str = "this test makes network namespaces: run it as root or under `unshare -Urnm`";

/// A process of this program.
pub(crate) struct Role {
    child: Child,
    told: UnixDatagram,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Role {
    /// Whether it says within the bound that it is ready; `false` when it ends before.
    pub(crate) fn is_ready(&mut self) -> bool {
        let until = Instant::now() + BOUND;
        let mut buffer = [0; 256];
        while !self.has_ended() {
            assert!(Instant::now() < until, "it is not ready:\n{}", self.log());
            if let Ok(length) = self.told.recv(&mut buffer)
                && buffer[..length].starts_with(b"READY=1")
            {
                return true;
            }
        }
        false
    }
    /// The same, given up when `other` ends.
    pub(crate) fn is_ready_before(&mut self, other: &mut Role) -> bool {
        let until = Instant::now() + BOUND;
        let mut buffer = [0; 256];
        while !self.has_ended() && !other.has_ended() {
            assert!(Instant::now() < until, "it is not ready:\n{}", self.log());
            if let Ok(length) = self.told.recv(&mut buffer)
                && buffer[..length].starts_with(b"READY=1")
            {
                return true;
            }
        }
        false
    }
    pub(crate) fn has_ended(&mut self) -> bool {
        self.ended = self.ended.or_else(|| self.child.try_wait().unwrap());
        self.ended.is_some()
    }
    pub(crate) fn signal(&mut self, signal: Signal) {
        if !self.has_ended() {
            kill_process(Pid::from_child(&self.child), signal).unwrap();
        }
    }
    /// Ends it and waits for that.
    pub(crate) fn end(mut self, signal: Signal) {
        self.signal(signal);
        self.ends();
    }
    pub(crate) fn ends(&mut self) {
        wait(|| self.has_ended()).unwrap_or_else(|| panic!("it does not end:\n{}", self.log()));
    }
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until it holds; how long that took.
pub(crate) fn wait(mut holds: impl FnMut() -> bool) -> Option<Duration> {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > BOUND {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Some(begun.elapsed())
}

/// A node, a pod with a client and one with an endpoint.
pub(crate) struct World {
    dir: tempfile::TempDir,
    node: Netns,
    pods: [Netns; 2],
    _roles: Vec<Role>,
    _keepers: [Keeper; 2],
}

/// A process that does nothing but be in a pod: without any, the pod would be taken to be dead.
struct Keeper(Child);

impl Keeper {
    fn of(pod: &Netns) -> Keeper {
        Keeper(netns::run_in_blocking(pod, || Command::new("sleep").arg("3600").spawn()).unwrap().unwrap())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl World {
    /// Everything but the forwarder and the client, ready.
    pub(crate) fn new() -> World {
        let (dir, node) = (tempfile::tempdir().unwrap(), netns::create().expect(MUST));
        let pods = [(); 2].map(|()| netns::create().unwrap());
        let _keepers = [0, 1].map(|pod| Keeper::of(&pods[pod]));
        let mut world = World { dir, node, pods, _roles: vec![], _keepers };
        let listen = |world: &World, name: &str| world.url(&format!("{name}.sock"));
        let (identity, registry, manager) = (listen(&world, "id"), listen(&world, "reg"), listen(&world, "m"));
        let dir = world.dir.path().join("e").display().to_string();
        fs::create_dir(&dir).unwrap();
        let (node, endpoint) = (world.node.clone(), world.pods[1].clone());
        for (at, args) in [
            (&node, vec!["identity", "--socket", &identity]),
            (&node, vec!["registry", "--listen-on", &registry]),
            (&node, vec!["manager", "--name", "m", "--listen-on", &manager, "--registry-url", &registry]),
            (
                &endpoint,
                vec![
                    "endpoint",
                    "icmp-responder",
                    "--name",
                    "e",
                    "--connect-to",
                    &manager,
                    "--dir",
                    &dir,
                    "--payload",
                    "IP",
                    "--service-names",
                    "svc",
                    "--cidr-prefix",
                    "172.16.1.0/24,fd00::/64",
                ],
            ),
        ] {
            let mut role = world.start(at, &args, None);
            assert!(role.is_ready(), "{}", role.log());
            world._roles.push(role);
        }
        world
    }
    /// The forwarder; with a number it ends after that change of the kernel.
    pub(crate) fn forwarder(&self, end_after: Option<u64>) -> Role {
        let (manager, listen) = (self.url("m.sock"), self.url("f.sock"));
        let args = ["forwarder", "--name", "f", "--connect-to", &manager, "--listen-on", &listen, "--packet-engine", "none"];
        self.start(&self.node, &args, end_after)
    }
    pub(crate) fn client(&self) -> Role {
        let manager = self.url("m.sock");
        let args = ["client", "--name", "c", "--connect-to", &manager, "--network-services", "kernel://svc/nsm-1"];
        self.start(&self.pods[0], &args, None)
    }
    fn url(&self, name: &str) -> String {
        format!("unix://{}/{name}", self.dir.path().display())
    }
    fn start(&self, at: &Netns, args: &[&str], end_after: Option<u64>) -> Role {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = |end: &str| self.dir.path().join(format!("{}-{number}.{end}", args[0]));
        let (told, log) = (UnixDatagram::bind(file("notify")).unwrap(), file("log"));
        told.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_nsm"));
        command.args(args).env_clear().env("SPIFFE_ENDPOINT_SOCKET", self.url("id.sock")).env("XDG_STATE_HOME", self.dir.path());
        command.env("NOTIFY_SOCKET", file("notify")).stderr(fs::File::create(&log).unwrap());
        if let Some(change) = end_after {
            command.env("NSM_TEST_END_AFTER_CHANGE", change.to_string());
        }
        let child = netns::run_in_blocking(at, || command.spawn()).unwrap().unwrap();
        Role { child, told, log, ended: None }
    }

    /// What both pods hold besides what every namespace has, without what is different in every life.
    pub(crate) fn wires(&self) -> Vec<String> {
        let pod = |(name, netns): (&str, &Netns)| {
            let lines = Net::new(netns).unwrap().snapshot().unwrap();
            lines
                .into_iter()
                .filter(|line| line.contains("nsm-1") || line.contains("svc"))
                .map(move |line| format!("{name}: {}", essence(&line)))
                .collect::<Vec<_>>()
        };
        ["c", "e"].into_iter().zip(&self.pods).flat_map(pod).collect()
    }
    /// All links of both pods, so that nothing hides under another name.
    pub(crate) fn links(&self) -> usize {
        self.pods.iter().map(|pod| Net::new(pod).unwrap().links().unwrap().len() - 1).sum()
    }
}

/// Without the number of a link and without who made it last.
fn essence(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let is_link = words[0] == "link";
    let kept = words.iter().enumerate().filter(|(at, word)| !(word.contains("nsm:f:") || is_link && *at == 1));
    kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
}
