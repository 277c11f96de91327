//! Where the packet engine of a node is, as its forwarder's settings say; the kernel itself where it has WireGuard.

use super::process::Process;
use crate::{packet_engine::Remote, settings::Settings};
use nsm_api::*;
use nsm_hop::{
    kernel::{self, TunnelKey},
    mechanism::{PortPool, Ports, TunnelKeys},
};
use nsm_linux::{KernelWireguard, Tunnels, netns};
use nsm_packet::PrivateKey;
use std::{
    env,
    path::PathBuf,
    sync::{Arc, Mutex},
};

/// Where it is.
pub(super) enum Engine {
    /// Nowhere: this node makes no encrypted tunnels.
    None,
    /// Somebody runs it here.
    At(PathBuf),
    /// At the usual place; started when it is needed.
    Auto,
}

impl Engine {
    pub(super) fn read(settings: &mut Settings) -> Engine {
        settings.read("packet-engine", |text| match text {
            "none" => Ok(Engine::None),
            "auto" => Ok(Engine::Auto),
            other => match Target::parse(other) {
                Ok(Target::Unix(path)) => Ok(Engine::At(path)),
                _ => Err(format!("{other:?} is neither auto, none, nor a unix socket such as unix:///run/nsm/packet.sock")),
            },
        })
    }

    /// A way to it, and the keys and ports of its tunnels. The kernel itself is asked where it can and nobody names another.
    pub(super) fn connect(self, process: &Process, port: u16) -> Result<Option<Makes>> {
        let ids = process.ids.clone();
        let keys: TunnelKeys = Arc::new(move |id| key(&ids.secret("wireguard", id)));
        let (socket, start) = match self {
            Engine::None => return Ok(None),
            Engine::At(socket) => (socket, false),
            Engine::Auto => {
                if let Some(kernel) = KernelWireguard::open()? {
                    let ports = Ports::Each(Arc::new(Mutex::new(PortPool::new(port))));
                    return Ok(Some(Makes { tunnels: Arc::new(kernel), keys, ports }));
                }
                (usual_socket()?, true)
            }
        };
        let remote = if start { Remote::started(socket) } else { Remote::at(socket) };
        Ok(Some(Makes { tunnels: Arc::new(remote), keys, ports: Ports::Shared(port) }))
    }
}

/// Who makes encrypted tunnels, and what belongs to them.
pub(super) struct Makes {
    pub(super) tunnels: Arc<dyn Tunnels>,
    pub(super) keys: TunnelKeys,
    pub(super) ports: Ports,
}

/// The key pair that belongs to a secret. Every 32 bytes are a private key.
fn key(secret: &[u8; 32]) -> TunnelKey {
    let public = PrivateKey::new(*secret).and_then(|private| private.public()).map_or([0; 32], |public| *public.bytes());
    TunnelKey { public: kernel::PublicKey(public), private: Some(Arc::new((*secret).into())) }
}

/// One engine for each network namespace, as that is a node's.
fn usual_socket() -> Result<PathBuf> {
    let dir = match env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute()) {
        Some(dir) if !rustix::process::geteuid().is_root() => dir.join("nsm"),
        _ if rustix::process::geteuid().is_root() => PathBuf::from("/run/nsm"),
        _ => env::temp_dir().join(format!("nsm-{}", rustix::process::geteuid().as_raw())),
    };
    Ok(dir.join(format!("packet-{}.sock", netns::current()?.key.ino)))
}
