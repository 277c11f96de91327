//! The Linux kernel: namespaces, netlink, links, addresses, routes, tunnels, probes; observe and apply.
//!
//! The only crate with `unsafe`, all of it in `sys`, each block with its reason. Not here: what should exist (that is
//! decided in `nsm-hop`), and any external program: everything goes through system calls and netlink.
//!
//! Two rules hold everywhere. A namespace is entered only by a thread made for that purpose, which ends afterwards; and
//! a socket remembers the namespace in which it was opened, so all later work happens from the threads at home.

mod admit;
pub mod echoes;
mod error;
mod features;
pub mod find;
pub mod firewall;
mod inet;
mod kernel;
mod link;
pub mod nat;
pub mod net;
pub mod netns;
mod nft;
mod nl;
pub mod probe;
mod rule;
mod snapshot;
pub mod sniff;
#[allow(unsafe_code)]
mod sys;
pub mod tap;
mod tunnels;
mod uapi;
mod wireguard;

pub use admit::OnlyNamespaces;
pub use features::{Feature, features};
pub use kernel::{Forgotten, LinuxKernel, ROUTE_PROTOCOL};
pub use tunnels::{EncryptedTunnel, TunnelSettings, Tunnels};
pub use wireguard::KernelWireguard;
