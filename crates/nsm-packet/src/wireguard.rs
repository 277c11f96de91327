//! The WireGuard protocol, without input or output: messages in, messages out, time passed in.
//!
//! `noise` is the handshake, `macs` what guards it against floods, `keypair` the encryption of packets, `replay` the
//! window of counters, `peer` the state and the timers that tie them together. One device has one peer, whose address
//! the mesh fixed: there is no roaming and no routing by allowed addresses.

pub(crate) mod indices;
pub(crate) mod keypair;
pub(crate) mod macs;
pub(crate) mod message;
pub(crate) mod noise;
pub(crate) mod peer;
pub(crate) mod replay;
pub(crate) mod timing;

#[cfg(test)]
mod peer_tests;
