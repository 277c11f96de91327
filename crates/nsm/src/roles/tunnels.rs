//! The tunnels of a node: which mechanisms join it to others, and the kernel that makes their wires.
//!
//! Frames go by VXLAN, packets by WireGuard: in the kernel where it can, else by the packet engine of this node, a process
//! of its own so that a restart of the forwarder touches no packet.

use super::{
    engine::{Engine, Makes},
    process::{self, Process},
};
use crate::settings::{Opt, Settings, Shape};
use nsm_api::*;
use nsm_hop::{
    kernel::{Kernel, UnderlayMtu},
    mechanism::{Accept, Offer, TunnelKeys, VniPool, Vxlan, Wireguard, prioritised},
};
use nsm_linux::LinuxKernel;
use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
};
use tracing::warn;

/// Where tunnels begin.
pub(super) const TUNNEL_IP: Opt = Opt::new(
    "tunnel-ip",
    "NSM_TUNNEL_IP",
    "",
    Shape::Address,
    "Address of this node for tunnels; empty: its first address besides loopback",
);
/// The port of VXLAN.
pub(super) const VXLAN_PORT: Opt =
    Opt::new("vxlan-port", "NSM_VXLAN_PORT", "0", Shape::Number(65535), "UDP port of VXLAN, the same on all nodes; 0: 4789");
/// The port of WireGuard.
pub(super) const WIREGUARD_PORT: Opt =
    Opt::new("wireguard-port", "NSM_WIREGUARD_PORT", "51820", Shape::Number(65535), "UDP port of WireGuard on this node");
/// Who carries encrypted packets.
pub(super) const PACKET_ENGINE: Opt = Opt::new(
    "packet-engine",
    "NSM_PACKET_ENGINE",
    "auto",
    Shape::Text,
    "Socket of the `nsm packet` that carries encrypted packets (unix://...); auto: the kernel, or one that is started when it is needed; none",
);
/// What is offered to other nodes first.
pub(super) const MECHANISM_PRIORITY: Opt = Opt::new(
    "mechanism-priority",
    "NSM_MECHANISM_PRIORITY",
    "",
    Shape::List,
    "Mechanisms to offer first, for instance WIREGUARD,VXLAN; the others follow in their usual order",
);
/// Fails closed.
pub(super) const ENCRYPTED_ONLY: Opt = Opt::new(
    "encrypted-underlay",
    "NSM_ENCRYPTED_UNDERLAY",
    "false",
    Shape::Bool,
    "Make only encrypted tunnels to other nodes: services with payload ETHERNET stay within a node",
);
/// The port that the standard gives to VXLAN.
const DEFAULT_VXLAN_PORT: u16 = 4789;

/// The settings.
pub(super) struct Tunnel {
    ip: Option<IpAddr>,
    vxlan_port: u16,
    wireguard_port: u16,
    priority: Vec<MechanismKind>,
    encrypted_only: bool,
    engine: Engine,
}

/// What joins this node to others.
pub(super) struct Tunnels {
    /// Makes the wires.
    pub(super) kernel: LinuxKernel,
    /// Answers other nodes.
    pub(super) accepts: Vec<Box<dyn Accept>>,
    /// Offers to other nodes, best first.
    pub(super) offers: Vec<Box<dyn Offer>>,
    /// Keys of encrypted tunnels.
    pub(super) keys: Option<TunnelKeys>,
}

impl Tunnel {
    pub(super) fn read(settings: &mut Settings) -> Tunnel {
        let port: u16 = settings.text("vxlan-port");
        let kinds: Vec<String> = settings.list("mechanism-priority");
        Tunnel {
            ip: settings.optional("tunnel-ip"),
            vxlan_port: if port == 0 { DEFAULT_VXLAN_PORT } else { port },
            wireguard_port: settings.text("wireguard-port"),
            priority: kinds.iter().map(|kind| kind.to_ascii_uppercase().as_str().into()).collect(),
            encrypted_only: settings.boolean("encrypted-underlay"),
            engine: Engine::read(settings),
        }
    }

    /// Looks at the underlay. A node alone has none and needs none.
    pub(super) async fn make(self, process: &Process) -> Result<Tunnels> {
        let makes = self.engine.connect(process, self.wireguard_port)?;
        let kernel = makes.as_ref().map_or_else(LinuxKernel::new, |makes| LinuxKernel::with_tunnels(makes.tunnels.clone()))?;
        let tunnel_ip = match (self.ip, process::node_address()) {
            (Some(ip), _) | (None, Ok(ip)) => ip,
            (None, Err(error)) => {
                warn!(%error, "no tunnels to other nodes");
                return Ok(Tunnels { kernel, accepts: vec![], offers: vec![], keys: None });
            }
        };
        let underlay_mtu = UnderlayMtu::new(kernel.underlay_mtu(tunnel_ip).await?);
        let kernel = kernel.proving(underlay_mtu.clone())?;
        let mut accepts: Vec<Box<dyn Accept>> = vec![];
        let mut offers: Vec<Box<dyn Offer>> = vec![];
        if !self.encrypted_only {
            let vnis = Arc::new(Mutex::new(VniPool::default()));
            let vxlan =
                Vxlan { tunnel_ip, port: self.vxlan_port, underlay_mtu: underlay_mtu.clone(), issuer: process.issuer.clone(), vnis };
            accepts.push(Box::new(vxlan.clone()));
            offers.push(Box::new(vxlan));
        }
        let keys = makes.as_ref().map(|makes| makes.keys.clone());
        if let Some(Makes { keys, ports, .. }) = makes {
            let wireguard = Wireguard { tunnel_ip, ports, underlay_mtu, keys };
            accepts.push(Box::new(wireguard.clone()));
            offers.push(Box::new(wireguard));
        }
        Ok(Tunnels { kernel, accepts, offers: prioritised(offers, &self.priority), keys })
    }
}
