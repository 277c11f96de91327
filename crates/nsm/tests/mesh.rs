//! Real processes of this program on unix sockets: readiness, signals, and the tools against a registry.

#![allow(clippy::unwrap_used)] // helpers of tests, too

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// How long anything here may take.
const BOUND: Duration = Duration::from_secs(20);

/// A directory that goes away.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let path = std::env::temp_dir().join(format!("nsm-cli-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&path).unwrap();
        Dir(path)
    }
    fn url(&self, name: &str) -> String {
        format!("unix://{}/{name}", self.0.display())
    }
    fn nsm(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nsm"));
        command.args(args).env_clear().env("SPIFFE_ENDPOINT_SOCKET", self.url("id.sock")).env("XDG_STATE_HOME", &self.0);
        command
    }
    fn tool(&self, args: &[&str]) -> Command {
        let mut command = self.nsm(args);
        command.env("NSM_REGISTRY_URL", self.url("reg.sock"));
        command
    }
    /// Exit code, standard output, standard error.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let Output { status, stdout, stderr } = self.tool(args).output().unwrap();
        (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    }
    fn json(&self, args: &[&str]) -> Value {
        let (code, out, problem) = self.run(&[args, &["--json"]].concat());
        assert_eq!(code, 0, "{args:?}: {problem}");
        serde_json::from_str(&out).unwrap()
    }
    /// Starts a role and waits until it says that it is ready.
    fn role(&self, args: &[&str]) -> Role {
        let (socket, log) = (self.0.join(format!("{}.notify", args[0])), self.0.join(format!("{}.log", args[0])));
        let told = UnixDatagram::bind(&socket).unwrap();
        told.set_read_timeout(Some(BOUND)).unwrap();
        let child = self.nsm(args).env("NOTIFY_SOCKET", &socket).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
        let role = Role { child, told, log };
        assert_eq!(role.hears(), "READY=1", "{}", role.log());
        role
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Role {
    child: Child,
    told: UnixDatagram,
    log: PathBuf,
}

impl Role {
    fn hears(&self) -> String {
        let mut buffer = [0; 1024];
        let length = self.told.recv(&mut buffer).unwrap_or_else(|problem| panic!("it says nothing ({problem}):\n{}", self.log()));
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
    fn logs(&self, text: &str) {
        let until = Instant::now() + BOUND;
        while !self.log().contains(text) {
            assert!(Instant::now() < until, "{text:?} is missing in:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
    fn stop(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.hears(), "STOPPING=1");
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}:\n{}", self.log());
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn domain(dir: &Dir) -> [Role; 2] {
    let identity = dir.role(&["identity", "--socket", &dir.url("id.sock")]);
    [dir.role(&["registry", "--listen-on", &dir.url("reg.sock")]), identity]
}

fn manifest(dir: &Path) -> String {
    let file = dir.join("services.yaml");
    let text = r#"
apiVersion: networkservicemesh.io/v1
kind: NetworkService
metadata: { name: vpn }
spec: { payload: IP, matches: [{ routes: [{ destination_selector: { app: gw } }] }] }
---
apiVersion: networkservicemesh.io/v1
kind: NetworkServiceEndpoint
metadata: { name: gw-1 }
spec:
  name: gw-1
  network_service_names: [vpn]
  network_service_labels: { vpn: { labels: { app: gw, nodeName: n1 } } }
  url: tcp://10.0.0.1:5001
---
apiVersion: v1
kind: ConfigMap
"#;
    fs::write(&file, text).unwrap();
    file.display().to_string()
}

#[test]
fn what_is_applied_is_listed_described_and_deleted() {
    let dir = Dir::new();
    let roles = domain(&dir);
    let (code, out, problem) = dir.run(&["apply", "-f", &manifest(&dir.0)]);
    assert_eq!(code, 0, "{problem}");
    assert!(out.starts_with("NetworkService vpn registered\nNetworkServiceEndpoint gw-1 registered; the record ends in "), "{out}");
    assert!(problem.contains("1 documents are no network service"), "{problem}");

    let services = dir.json(&["get", "services"]);
    assert_eq!((&services[0]["name"], &services[0]["payload"]), (&"vpn".into(), &"IP".into()));
    let endpoints = dir.json(&["get", "nse", "--service", "vpn"]);
    assert_eq!((&endpoints[0]["name"], &endpoints[0]["url"]), (&"gw-1".into(), &"tcp://10.0.0.1:5001".into()));
    assert_eq!(dir.json(&["get", "endpoints", "--service", "other"]), serde_json::json!([]));
    assert_eq!(dir.json(&["get", "nodes"])[0]["node_names"][0], "n1");
    assert_eq!(dir.json(&["describe", "endpoint", "gw-1"])["network_service_names"][0], "vpn");
    let (_, table, _) = dir.run(&["get", "services"]);
    assert_eq!(table, "NAME  PAYLOAD  MATCHES\nvpn   IP       1\n");
    let (code, _, problem) = dir.run(&["describe", "service", "wpn"]);
    assert_eq!((code, problem.contains("network service \"wpn\"")), (3, true), "{problem}");

    let (_, whole, _) = dir.run(&["export"]);
    assert_eq!(dir.run(&["delete", "endpoint", "gw-1"]).0, 0);
    assert_eq!(dir.run(&["delete", "service", "vpn"]).0, 0);
    assert_eq!(dir.json(&["get", "services"]), serde_json::json!([]));
    // What was exported comes back as it was.
    let file = dir.0.join("whole.yaml");
    fs::write(&file, &whole).unwrap();
    assert_eq!(dir.run(&["apply", "-f", file.to_str().unwrap()]).0, 0);
    assert_eq!(dir.run(&["export"]).1, whole);
    assert_eq!(dir.json(&["export"])["services"][0]["name"], "vpn");
    assert_eq!(dir.run(&["delete", "endpoint", "gw-1"]).0, 0);
    assert_eq!(dir.run(&["delete", "service", "vpn"]).0, 0);
    assert_eq!(dir.run(&["delete", "service", "vpn"]).0, 3);
    for role in roles {
        role.stop();
    }
}

#[test]
fn a_watch_shows_each_change_until_it_is_interrupted() {
    let dir = Dir::new();
    let _roles = domain(&dir);
    let mut watch = dir.tool(&["watch", "services", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    assert_eq!(dir.run(&["apply", "-f", &manifest(&dir.0)]).0, 0);
    let next = |line: Option<std::io::Result<String>>| serde_json::from_str::<Value>(&line.unwrap().unwrap()).unwrap();
    let update = next(lines.next());
    assert_eq!((&update["type"], &update["object"]["name"]), (&"UPDATE".into(), &"vpn".into()));
    assert_eq!(dir.run(&["delete", "service", "vpn"]).0, 0);
    assert_eq!(next(lines.next())["type"], "DELETE");
    kill_process(Pid::from_child(&watch), Signal::INT).unwrap();
    assert!(watch.wait().unwrap().success());
}

#[test]
fn the_log_level_follows_signals_and_json_lines_are_json() {
    let dir = Dir::new();
    let identity = dir.role(&["identity", "--socket", &dir.url("id.sock"), "--log-level", "WARN", "--log-format", "json"]);
    assert_eq!(identity.log(), "", "nothing to warn of");
    identity.signal(Signal::USR1);
    identity.logs("the log level was changed by a signal");
    let line: Value = serde_json::from_str(identity.log().lines().next().unwrap()).unwrap();
    assert_eq!(line["level"], "INFO");
    identity.signal(Signal::USR2);
    identity.stop();
}

#[test]
fn a_process_in_a_lab_ends_with_the_one_that_started_it() {
    let dir = Dir::new();
    let socket = dir.0.join("notify");
    let told = UnixDatagram::bind(&socket).unwrap();
    told.set_read_timeout(Some(BOUND)).unwrap();
    let url = dir.url("id.sock");
    // The thread that starts the process ends, and with it, for the kernel, the parent.
    std::thread::spawn(move || {
        let mut command = dir.nsm(&["identity", "--socket", &url]);
        let mut child = command.env("NSM_DIE_WITH_PARENT", "1").env("NOTIFY_SOCKET", &socket).stderr(Stdio::null()).spawn().unwrap();
        let mut buffer = [0; 64];
        let length = told.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
        (child.try_wait().unwrap().is_none(), child, told, dir)
    })
    .join()
    .map(|(alive, mut child, told, dir)| {
        assert!(alive);
        let mut buffer = [0; 64];
        let length = told.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"STOPPING=1");
        assert!(child.wait().unwrap().success());
        drop(dir);
    })
    .unwrap();
}

/// wire.md 2.7: files of the user are found where upstream looks for them, and a bad one keeps a role from starting.
#[test]
fn policy_files_below_the_working_directory_count() {
    let dir = Dir::new();
    let _identity = dir.role(&["identity", "--socket", &dir.url("id.sock")]);
    let policies = dir.0.join("etc/nsm/opa/server");
    fs::create_dir_all(&policies).unwrap();
    let args = ["manager", "--registry-url", "", "--listen-on", &dir.url("m.sock")];
    let manager = || dir.nsm(&args).current_dir(&dir.0).output().unwrap();
    fs::write(policies.join("own.rego"), "package nsm\nvalid {").unwrap();
    let refused = manager();
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("etc/nsm/opa/server/own.rego"), "{refused:?}");
    fs::write(policies.join("own.rego"), "package nsm\nvalid = true").unwrap();
    let log = dir.0.join("manager.log");
    let child = dir.nsm(&args).current_dir(&dir.0).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
    let told = UnixDatagram::bind(dir.0.join("unused.notify")).unwrap();
    Role { child, told, log }.logs("policy of the user");
}
