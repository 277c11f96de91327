//! The peer of an encrypted vWire: another WireGuard program, with the same pods, nodes and underlay.
//!
//! It is called with the name and MTU of its interface and the file of the pod's namespace, in the node's namespace; takes its
//! configuration in the format of WireGuard's "set" operation from standard input up to an empty line; says `ready`; and
//! ends when its input does. `crates/nsm-packet/tests/wireguard-go` is such a program.

use crate::{bare::furnish, meter::Line};
use nsm_api::{Error, Kind, Result};
use nsm_hop::kernel::Netns;
use nsm_linux::{net::Net, netns};
use nsm_packet::{KEY_BYTES, PrivateKey, PublicKey};
use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    runtime::Handle,
    time::timeout,
};

/// Where the program around wireguard-go is in the source tree, and where it is built.
const SOURCE: &str = "crates/nsm-packet/tests/wireguard-go";
const BUILT: &str = "target/wireguard-go";
/// The name of the interface in both pods.
const NAME: &str = "peer";
/// Its UDP port in both nodes. No vWire has it.
const PORT: u16 = 14_791;
/// How long the program may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Builds wireguard-go where this program's source tree, or that of the current directory, is found.
pub(crate) fn build() -> Result<PathBuf> {
    const FIX: &str = "build crates/nsm-packet/tests/wireguard-go of the source tree with `go build`, and name the program with --peer";
    let missing = |reason: String| Error::new(Kind::NotFound, "the peer wireguard-go", reason, FIX);
    let starts = [std::env::current_exe(), std::env::current_dir()];
    let root = starts.iter().flatten().flat_map(|start| start.ancestors()).find(|place| place.join(SOURCE).join("main.go").is_file());
    let root = root.ok_or_else(|| missing("was not named, and the source tree is not here".to_owned()))?;
    let (built, own) = (root.join(BUILT), root.join(format!("{BUILT}.{}", std::process::id())));
    // A place of its own first: another run may be using what is there.
    let building = std::process::Command::new("go").args(["build", "-o"]).arg(&own).arg(".").current_dir(root.join(SOURCE)).status();
    let status = building.map_err(|problem| missing(format!("cannot be built, `go` does not start: {problem}")))?;
    if !status.success() {
        return Err(missing(format!("cannot be built, see above: `go build` ended with {status}")));
    }
    std::fs::rename(&own, &built).map_err(|problem| missing(format!("cannot be put to {}: {problem}", built.display())))?;
    Ok(built)
}

/// A tunnel of that program between two fresh pods; it goes with this.
pub(crate) struct Tunnel {
    line: Line,
    ends: [Child; 2],
}

impl Tunnel {
    /// Both ends, and their interfaces with the addresses and routes that a vWire has; the sockets in the nodes of the vWire.
    pub(crate) async fn start(program: &Path, mtu: u32, nodes: [(&Netns, IpAddr); 2]) -> Result<Tunnel> {
        let (here, there) = (key()?, key()?);
        let pods = [Net::new(&netns::create()?)?, Net::new(&netns::create()?)?];
        pods.iter().try_for_each(Net::loopback_up)?;
        let [near, far] = nodes;
        let ends = [
            end(program, (near.0, &pods[0]), mtu, &configuration(&here, &public(&there)?, far.1)).await?,
            end(program, (far.0, &pods[1]), mtu, &configuration(&there, &public(&here)?, near.1)).await?,
        ];
        let line = furnish([&pods[0], &pods[1]], NAME, mtu)?;
        Ok(Tunnel { line, ends })
    }
    /// To measure it.
    pub(crate) fn line(&self) -> Line {
        self.line.clone()
    }
    /// Ends both processes.
    pub(crate) async fn stop(self) -> Result<()> {
        for mut child in self.ends {
            drop(child.stdin.take());
            match timeout(PATIENCE, child.wait()).await {
                Ok(Ok(_)) => {}
                _ => child.kill().await.map_err(|problem| Error::internal("the peer's process", problem.to_string()))?,
            }
        }
        Ok(())
    }
}

/// One process, which has said that it is ready.
async fn end(program: &Path, (node, pod): (&Netns, &Net), mtu: u32, configuration: &str) -> Result<Child> {
    let fix = "run it by hand; how it is called says crates/nsm-packet/tests/wireguard-go/main.go";
    let failed = |reason: String| Error::new(Kind::Unavailable, format!("peer {}", program.display()), reason, fix);
    let file = netns::file(pod.netns())?;
    let mut command = Command::new(program);
    command.arg(NAME).arg(mtu.to_string()).arg(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let handle = Handle::current();
    let spawned = netns::run_in_blocking(node, || {
        let _runtime = handle.enter(); // it hears of the process's end
        command.spawn()
    })?;
    let mut child = spawned.map_err(|problem| failed(format!("does not start: {problem}")))?;
    let (Some(input), Some(output)) = (child.stdin.as_mut(), child.stdout.take()) else {
        return Err(failed("has no standard input or output".to_owned()));
    };
    let talk = async {
        input.write_all(configuration.as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).await.map(|_| line)
    };
    match timeout(PATIENCE, talk).await {
        Ok(Ok(line)) if line.trim() == "ready" => Ok(child),
        Ok(Ok(line)) => Err(failed(format!("said {:?} instead of \"ready\"", line.trim()))),
        Ok(Err(problem)) => Err(failed(format!("broke off: {problem}"))),
        Err(_) => Err(failed(format!("was not ready within {} s", PATIENCE.as_secs()))),
    }
}

fn configuration(own: &[u8; KEY_BYTES], other: &PublicKey, at: IpAddr) -> String {
    format!(
        "private_key={}\nlisten_port={PORT}\nreplace_peers=true\npublic_key={}\nendpoint={}\n\
         allowed_ip=0.0.0.0/0\nallowed_ip=::/0\n\n",
        hex(own),
        hex(other.bytes()),
        SocketAddr::new(at, PORT)
    )
}

/// A key for this run: nothing that it protects outlives it.
fn key() -> Result<[u8; KEY_BYTES]> {
    let mut bytes = [0; KEY_BYTES];
    let filled = std::fs::File::open("/dev/urandom").and_then(|mut source| std::io::Read::read_exact(&mut source, &mut bytes));
    filled.map(|()| bytes).map_err(|problem| Error::internal("a key of the peer", problem.to_string()))
}

fn public(own: &[u8; KEY_BYTES]) -> Result<PublicKey> {
    PrivateKey::new(*own)?.public()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a string cannot fail
        text
    })
}
