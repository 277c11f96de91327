//! A WireGuard device in a process of its own: ours, wireguard-go, or, for comparisons, gotatun.
#![allow(clippy::unwrap_used, dead_code)] // a test's helpers fail like its body; not every test uses all of them

use crate::common::{MTU, Side, descriptor, until};
use nsm_linux::netns;
use std::{
    io::{BufRead, BufReader, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

/// Which implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// This program, called as `engine`.
    Ours,
    /// wireguard-go.
    Go,
    /// The program that the variable `GOTATUN` names.
    Gotatun,
}

/// Builds the program around wireguard-go, once.
fn wireguard_go() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wireguard-go");
        let program = std::env::current_exe().unwrap().with_file_name("wireguard-go-peer");
        // Other tests may build it at the same time.
        let mine = program.with_extension(std::process::id().to_string());
        let building = Command::new("go").args(["build", "-o"]).arg(&mine).arg(".").current_dir(source).status();
        let built = building.expect("this needs Go, to build wireguard-go as the other side: install it and put `go` on the PATH");
        assert!(built.success(), "wireguard-go cannot be built: see above; the Go module proxy must be reachable once");
        std::fs::rename(mine, &program).unwrap();
        program
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> [u8; 32] {
    std::array::from_fn(|place| u8::from_str_radix(&text[2 * place..2 * place + 2], 16).unwrap())
}

/// The process; it ends with this.
pub(crate) struct Peer {
    kind: Kind,
    child: Child,
}

impl Peer {
    /// Starts it in the node's namespace, with its interface `wg` in the pod.
    pub(crate) fn start(kind: Kind, own: &Side, other: &Side) -> Peer {
        let pod = descriptor(&own.pod);
        let place = format!("/proc/{}/fd/{}", std::process::id(), pod.as_raw_fd());
        let (private, public) = (hex(&own.secret), hex(other.public().bytes()));
        let (port, endpoint) = (own.address().port(), other.address());
        let common = format!(
            "private_key={private}\nlisten_port={port}\nreplace_peers=true\npublic_key={public}\nendpoint={endpoint}\n\
             persistent_keepalive_interval=10\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\n\n"
        );
        let (program, config) = match kind {
            Kind::Ours => (std::env::current_exe().unwrap(), format!("{private}\n{public}\n{}\n{endpoint}\n", own.address())),
            Kind::Go => (wireguard_go().to_owned(), common),
            Kind::Gotatun => return Peer::gotatun(own, &common),
        };
        let mut command = Command::new(program);
        if kind == Kind::Ours {
            command.arg("engine");
        }
        command.args(["wg", &MTU.to_string(), &place]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = netns::run_in_blocking(own.node.netns(), || command.spawn()).unwrap().unwrap();
        child.stdin.as_mut().unwrap().write_all(config.as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready", "{kind:?} did not start");
        if kind == Kind::Go {
            own.pod.up("wg").unwrap();
        }
        Peer { kind, child }
    }
    /// It makes its interface where it is, and is told by a socket; so the interface is moved, with the program `ip`.
    fn gotatun(own: &Side, config: &str) -> Peer {
        let name = format!("gt{:x}", u16::from_le_bytes([own.secret[0], own.secret[1]]));
        let mut command = Command::new(std::env::var("GOTATUN").expect("GOTATUN names the program"));
        command.args(["-f", "--disable-drop-privileges", &name]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = netns::run_in_blocking(own.node.netns(), || command.spawn()).unwrap().unwrap();
        let (mut socket, path) = (None, format!("/var/run/wireguard/{name}.sock"));
        until("gotatun listens", || {
            socket = UnixStream::connect(&path).ok();
            socket.is_some()
        });
        let mut socket = socket.unwrap();
        socket.write_all(format!("set=1\n{config}").as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(&socket).read_line(&mut answer).unwrap();
        assert_eq!(answer.trim(), "errno=0");
        let mut inside = netns::run_in_blocking(own.pod.netns(), || Command::new("sleep").arg("60").spawn()).unwrap().unwrap();
        let mut moving = Command::new("ip");
        moving.args(["link", "set", &name, "netns", &inside.id().to_string()]);
        assert!(netns::run_in_blocking(own.node.netns(), || moving.status()).unwrap().unwrap().success());
        inside.kill().and_then(|()| inside.wait()).unwrap();
        own.pod.rename(&name, "wg").unwrap();
        own.pod.set_mtu("wg", MTU).unwrap();
        own.pod.up("wg").unwrap();
        Peer { kind: Kind::Gotatun, child }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if self.kind == Kind::Gotatun {
            self.child.kill().unwrap();
        }
        self.child.wait().unwrap();
    }
}
