//! The userspace packet engine: WireGuard devices on nodes whose kernel has no module for it.
//!
//! A device is an interface inside a pod and a UDP socket in the node; the engine carries packets between the two, as
//! any WireGuard peer expects them. It runs in a process of its own (see [`run`] and [`Client`]), so that nothing that
//! happens to the process that makes connections touches their packets; and the interfaces outlive the engine itself.
//!
//! `wireguard` is the protocol, `segment` the cutting and joining of large packets, `engine` what ties them to sockets,
//! devices and threads, `control` the way in from other processes. Not here: addresses and routes of the interfaces, and
//! when a device should exist. `unsafe` is in `sys` only.

#![deny(unsafe_code)]

mod control;
mod engine;
mod error;
mod keys;
mod netns;
mod rtnl;
mod segment;
#[allow(unsafe_code)]
mod sys;
mod wireguard;

pub use control::{Client, RunOptions, run};
pub use engine::{Counters, Device, DeviceId, DeviceState, Engine, Options};
pub use keys::{KEY_BYTES, PresharedKey, PrivateKey, PublicKey};
pub use wireguard::timing::Timing;

/// Most devices of one engine.
pub const MAX_DEVICES: usize = 4096;
