//! The packet engine makes the tunnels that the kernel makes where it has WireGuard: one suite for both. Needs root.
#![allow(clippy::unwrap_used)] // a test's helpers fail like its body

#[path = "../../nsm-linux/tests/common/encrypted.rs"]
mod encrypted;

use nsm_api::{InodeKey, Result};
use nsm_hop::kernel::{Iface, PublicKey, TunnelKey};
use nsm_linux::{EncryptedTunnel, TunnelSettings, Tunnels, net::Net, netns};
use nsm_packet::{Device, DeviceId, Engine, Options, PrivateKey};
use std::sync::Arc;

/// An engine in this process, as a forwarder sees one.
struct Own(Engine);

fn id(netns: InodeKey, name: &str) -> DeviceId {
    DeviceId { netns, name: name.to_owned() }
}

impl Tunnels for Own {
    fn add(&self, tunnel: &EncryptedTunnel) -> Result<()> {
        let EncryptedTunnel { at, mark, settings } = tunnel;
        let device = Device {
            netns: at.netns.file.as_ref().unwrap().try_clone().unwrap(),
            name: at.name.as_str().to_owned(),
            tag: mark.0.clone(),
            group: mark.1,
            mtu: 1420,
            private: PrivateKey::new(***settings.key.private.as_ref().unwrap())?,
            peer: nsm_packet::PublicKey::new(settings.peer.0)?,
            preshared: None,
            listen: settings.local,
            endpoint: settings.remote,
        };
        self.0.add(device).map(|_| ())
    }
    fn find(&self, at: &Iface) -> Result<Option<TunnelSettings>> {
        let found = self.0.find(&id(at.netns.key, at.name.as_str()));
        Ok(found.filter(|state| !state.gone).map(|state| TunnelSettings {
            key: TunnelKey { public: PublicKey(*state.public.bytes()), private: None },
            local: state.listen,
            peer: PublicKey(*state.peer.bytes()),
            remote: state.endpoint,
        }))
    }
    fn remove(&self, netns: InodeKey, name: &str) -> Result<()> {
        self.0.remove(&id(netns, name))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_packet_engine_conforms() {
    let node = Net::new(&netns::create().expect("this test makes network namespaces and TUN devices: run it as root")).unwrap();
    node.loopback_up().unwrap();
    node.veth("uplink", node.netns(), "cable").unwrap();
    for end in ["uplink", "cable"] {
        node.up(end).unwrap();
    }
    node.address_add("uplink", "192.0.2.1/24".parse().unwrap()).unwrap();
    let file = node.netns().file.as_ref().unwrap().try_clone().unwrap();
    let engine = Engine::start(Options { node: Some(file), ..Options::default() }).unwrap();
    encrypted::conforms(&node, Arc::new(Own(engine))).await;
}
