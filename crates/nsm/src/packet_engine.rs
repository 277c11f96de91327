//! The packet engine of a node, as those who want tunnels see it: that it runs, and what it is asked for.
//!
//! The engine is a process of its own, so that no restart of ours touches a packet. Where nobody runs one it is started
//! with the first tunnel, stays when we end, and ends when it has had nothing to do for a while. When it dies, its
//! successor gets the tunnels that it carried for us.

use crate::private::private_dir;
use nsm_api::*;
use nsm_hop::kernel::{self, Iface, TunnelKey};
use nsm_linux::{EncryptedTunnel, TunnelSettings, Tunnels, netns};
use nsm_packet::{Client, Device, DeviceId, PrivateKey, PublicKey};
use std::{
    collections::BTreeMap,
    env,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tracing::{info, warn};

/// The size of a new tunnel until the wire's own is set: what every underlay of 1500 bytes carries.
const FIRST_MTU: u32 = 1420;
/// Longest wait for an engine that was just started.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for an engine that somebody else runs.
const RESTART_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between two looks whether it answers.
const START_PAUSE: Duration = Duration::from_millis(5);
/// How long an engine that we started waits for work.
const IDLE_EXIT: &str = "1m";

/// An engine in another process.
#[derive(Clone)]
pub struct Remote(Arc<Inner>);

struct Inner {
    client: Client,
    socket: PathBuf,
    /// Held by whoever starts it; `None` when that is not ours to do.
    start: Option<Mutex<()>>,
    /// What it carries for us, so that its successor carries it as well.
    made: Mutex<BTreeMap<DeviceId, EncryptedTunnel>>,
    /// Somebody watches over it.
    guarded: AtomicBool,
}

impl Remote {
    /// Somebody runs it, behind this socket.
    pub fn at(socket: PathBuf) -> Remote {
        Remote::new(socket, None)
    }
    /// Nobody needs to run it: it is started when it is needed.
    pub fn started(socket: PathBuf) -> Remote {
        Remote::new(socket, Some(Mutex::default()))
    }
    fn new(socket: PathBuf, start: Option<Mutex<()>>) -> Remote {
        let (client, made, guarded) = (Client::new(&socket), Mutex::default(), AtomicBool::new(false));
        Remote(Arc::new(Inner { client, socket, start, made, guarded }))
    }
    fn made(&self) -> MutexGuard<'_, BTreeMap<DeviceId, EncryptedTunnel>> {
        self.0.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Asks, and once more when it had to be started first.
    fn ask<T>(&self, ask: impl Fn(&Client) -> Result<T>) -> Result<T> {
        match (ask(&self.0.client), &self.0.start) {
            (Err(error), Some(start)) if error.kind == Kind::Unavailable => {
                let _alone = start.lock().unwrap_or_else(PoisonError::into_inner);
                if self.0.client.list().is_err() {
                    launch(&self.0.socket)?;
                    self.wait(START_TIMEOUT)?;
                }
                ask(&self.0.client)
            }
            // Whoever runs it may be about to start it again.
            (Err(error), None) if error.kind == Kind::Unavailable => self.wait(RESTART_TIMEOUT).and_then(|()| ask(&self.0.client)),
            (answer, _) => answer,
        }
    }
    fn wait(&self, patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        loop {
            match self.0.client.list() {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => thread::sleep(START_PAUSE),
            }
        }
    }

    /// From the first tunnel on: an engine that ends has a successor, which gets the tunnels of the one before.
    fn guard(&self) {
        if self.0.guarded.swap(true, Ordering::Relaxed) {
            return;
        }
        let this = self.clone();
        thread::spawn(move || {
            loop {
                this.0.client.wait_gone();
                let tunnels: Vec<EncryptedTunnel> = this.made().values().cloned().collect();
                if tunnels.is_empty() {
                    break this.0.guarded.store(false, Ordering::Relaxed);
                }
                this.restore(&tunnels);
            }
        });
    }
    fn restore(&self, tunnels: &[EncryptedTunnel]) {
        if let Err(error) = self.ask(|client| client.list()).map(drop).or_else(|_| self.wait(START_TIMEOUT)) {
            return warn!(%error, tunnels = tunnels.len(), "no packet engine: encrypted tunnels carry nothing");
        }
        for tunnel in tunnels {
            if let Err(error) = device(tunnel).and_then(|device| self.0.client.add(&device)) {
                warn!(%error, interface = tunnel.at.name.as_str(), "an encrypted tunnel is not restored");
            }
        }
        info!(tunnels = tunnels.len(), "the packet engine is there again");
    }
}

/// Starts this same program as an engine, in a process group of its own: what ends us does not end it.
fn launch(socket: &Path) -> Result<()> {
    let failed = |reason: std::io::Error| {
        let fix = "run `nsm packet` yourself, and name its socket with --packet-engine";
        Error::new(Kind::Unavailable, format!("the packet engine at {}", socket.display()), format!("cannot be started: {reason}"), fix)
    };
    if let Some(dir) = socket.parent() {
        private_dir(dir)?;
    }
    let mut command = Command::new(env::current_exe().map_err(failed)?);
    command.arg("packet").arg("--socket").arg(format!("unix://{}", socket.display())).arg("--idle-exit").arg(IDLE_EXIT);
    command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
    let mut child = command.spawn().map_err(failed)?;
    info!(socket = %socket.display(), pid = child.id(), "packet engine started");
    // Whoever starts a process takes note of its end.
    thread::spawn(move || drop(child.wait()));
    Ok(())
}

impl Tunnels for Remote {
    fn add(&self, tunnel: &EncryptedTunnel) -> Result<()> {
        self.ask(|client| client.add(&device(tunnel)?))?;
        self.made().insert(id(tunnel.at.netns.key, tunnel.at.name.as_str()), tunnel.clone());
        self.guard();
        Ok(())
    }
    fn find(&self, at: &Iface) -> Result<Option<TunnelSettings>> {
        let found = match self.0.client.find(&id(at.netns.key, at.name.as_str())) {
            // Nobody carries packets there any more: the device is to be added again.
            Err(error) if error.kind == Kind::Unavailable => return Ok(None),
            found => found?,
        };
        Ok(found.map(|state| TunnelSettings {
            key: TunnelKey { public: kernel::PublicKey(*state.public.bytes()), private: None },
            local: state.listen,
            peer: kernel::PublicKey(*state.peer.bytes()),
            remote: state.endpoint,
        }))
    }
    fn remove(&self, netns: InodeKey, name: &str) -> Result<()> {
        self.made().remove(&id(netns, name));
        self.0.client.remove(&id(netns, name))
    }
}

fn id(netns: InodeKey, name: &str) -> DeviceId {
    DeviceId { netns, name: name.to_owned() }
}

fn device(tunnel: &EncryptedTunnel) -> Result<Device> {
    let EncryptedTunnel { at, mark, settings } = tunnel;
    let none = || Error::internal(format!("interface {:?}", at.name.as_str()), "its private key is not known here");
    let private = settings.key.private.as_ref().ok_or_else(none)?;
    let netns = netns::file(&at.netns)?.try_clone().map_err(|error| Error::internal("a network namespace", error.to_string()))?;
    Ok(Device {
        netns,
        name: at.name.as_str().to_owned(),
        tag: mark.0.clone(),
        group: mark.1,
        mtu: FIRST_MTU,
        private: PrivateKey::new(***private)?,
        peer: PublicKey::new(settings.peer.0)?,
        preshared: None,
        listen: settings.local,
        endpoint: settings.remote,
    })
}
