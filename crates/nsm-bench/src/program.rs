//! The peers of an encrypted vWire: other WireGuard programs, with the same kind of pods, nodes and underlay.
//!
//! It is called with the name and MTU of its interface and the file of the pod's namespace, in the node's namespace; takes its
//! configuration in the format of WireGuard's "set" operation from standard input up to an empty line; says `ready`; and
//! ends when its input does. `crates/nsm-packet/tests` has such programs.

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

/// Where the programs around known implementations are in the source tree, and where they are built.
const SOURCES: &str = "crates/nsm-packet/tests";
const BUILT: &str = "target/peers";
/// A known implementation: where the program around it is among the sources, what builds it there, and what that leaves;
/// `{}` is the directory of what is built.
struct Known {
    name: &'static str,
    source: &'static str,
    command: &'static str,
    program: &'static str,
}

const KNOWN: [Known; 3] = [
    Known { name: "wireguard-go", source: "wireguard-go", command: "go build -o {}/wireguard-go .", program: "wireguard-go" },
    // The version that Debian 12 ships.
    Known {
        name: "wireguard-go 2022",
        source: "wireguard-go",
        command: "go build -modfile=go-2022.mod -o {}/wireguard-go-2022 .",
        program: "wireguard-go-2022",
    },
    Known {
        name: "gotatun",
        source: "gotatun",
        command: "cargo build --release --locked --quiet --target-dir {}/gotatun",
        program: "gotatun/release/gotatun-peer",
    },
];
/// The name of the interface in all pods.
const NAME: &str = "peer";
/// Their UDP ports in both nodes, one for each peer. No vWire has them.
pub(crate) const PORTS: std::ops::Range<u16> = 14_791..14_799;
/// How long the program may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A program to compare with.
pub(crate) struct Peer {
    pub(crate) name: String,
    /// Or why it is not there.
    pub(crate) program: Result<PathBuf>,
}

impl Peer {
    /// One that the user named, which must be there. A name without a slash is a file here, not something on the PATH.
    pub(crate) fn named(program: &Path) -> Result<Peer> {
        let object = || format!("peer {}", program.display());
        let found = std::fs::canonicalize(program)
            .map_err(|problem| Error::new(Kind::NotFound, object(), problem.to_string(), "name a program that exists with --peer"))?;
        let name = found.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Peer { name, program: Ok(found) })
    }
}

/// The known ones, built where this program's source tree, or that of the current directory, is found.
pub(crate) fn known() -> Vec<Peer> {
    let starts = [std::env::current_exe(), std::env::current_dir()];
    let root = starts.iter().flatten().flat_map(|start| start.ancestors()).find(|place| place.join(SOURCES).is_dir());
    let built = |known: Known| {
        let root = root.ok_or_else(|| missing(known.name, "was not named, and the source tree is not here".to_owned()));
        Peer { name: known.name.to_owned(), program: root.and_then(|root| build(root, &known)) }
    };
    KNOWN.into_iter().map(built).collect()
}

fn missing(name: &str, reason: String) -> Error {
    let fix = format!("build it in {SOURCES} of the source tree, and name the program with --peer");
    Error::new(Kind::NotFound, format!("the peer {name}"), reason, fix)
}

fn build(root: &Path, known: &Known) -> Result<PathBuf> {
    let (place, missing) = (root.join(BUILT), |reason| missing(known.name, reason));
    let command = known.command.replace("{}", &place.to_string_lossy());
    let mut words = command.split(' ');
    let tool = words.next().unwrap_or_default();
    let building = std::process::Command::new(tool).args(words).current_dir(root.join(SOURCES).join(known.source)).status();
    let status = building.map_err(|problem| missing(format!("cannot be built, `{tool}` does not start: {problem}")))?;
    if status.success() {
        Ok(place.join(known.program))
    } else {
        Err(missing(format!("cannot be built, see above: `{tool}` ended with {status}")))
    }
}

/// A tunnel of that program between two fresh pods; it goes with this.
pub(crate) struct Tunnel {
    line: Line,
    ends: [Child; 2],
}

impl Tunnel {
    /// Both ends, and their interfaces with the addresses and routes that a vWire has; the sockets in the nodes of the vWire.
    pub(crate) async fn start(program: &Path, mtu: u32, (nodes, port): ([(&Netns, IpAddr); 2], u16)) -> Result<Tunnel> {
        let (here, there) = (key()?, key()?);
        let pods = [Net::new(&netns::create()?)?, Net::new(&netns::create()?)?];
        pods.iter().try_for_each(Net::loopback_up)?;
        let [near, far] = nodes;
        let ends = [
            end(program, (near.0, &pods[0]), mtu, &configuration(&here, &public(&there)?, SocketAddr::new(far.1, port))).await?,
            end(program, (far.0, &pods[1]), mtu, &configuration(&there, &public(&here)?, SocketAddr::new(near.1, port))).await?,
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

fn configuration(own: &[u8; KEY_BYTES], other: &PublicKey, at: SocketAddr) -> String {
    format!(
        "private_key={}\nlisten_port={}\nreplace_peers=true\npublic_key={}\nendpoint={}\n\
         allowed_ip=0.0.0.0/0\nallowed_ip=::/0\n\n",
        hex(own),
        at.port(),
        hex(other.bytes()),
        at
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
