//! A WireGuard device in a process of its own: wireguard-go.
#![allow(clippy::unwrap_used)] // a test's helpers fail like its body

use crate::common::{MTU, Side, descriptor};
use nsm_linux::netns;
use std::{
    io::{BufRead, BufReader, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

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

/// The process; it ends with this.
pub(crate) struct Peer(Child);

impl Peer {
    /// Starts it in the node's namespace, with its interface `wg` in the pod.
    pub(crate) fn start(own: &Side, other: &Side) -> Peer {
        let pod = descriptor(&own.pod);
        let place = format!("/proc/{}/fd/{}", std::process::id(), pod.as_raw_fd());
        let (private, public) = (hex(&own.secret), hex(other.public().bytes()));
        let (port, endpoint) = (own.address().port(), other.address());
        let config = format!(
            "private_key={private}\nlisten_port={port}\nreplace_peers=true\npublic_key={public}\nendpoint={endpoint}\n\
             persistent_keepalive_interval=10\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\n\n"
        );
        let mut command = Command::new(wireguard_go());
        command.args(["wg", &MTU.to_string(), &place]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = netns::run_in_blocking(own.node.netns(), || command.spawn()).unwrap().unwrap();
        child.stdin.as_mut().unwrap().write_all(config.as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready", "it did not start");
        own.pod.up("wg").unwrap();
        Peer(child)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}
