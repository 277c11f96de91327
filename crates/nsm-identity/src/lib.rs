//! Who a process is, and how it proves it.
//!
//! [`Authority`] is a certificate authority for one trust domain that serves the SPIFFE Workload API on unix
//! sockets, so that a mesh needs nothing else to begin with. [`Source`] is the other side: the SVID of this
//! process, always current, as TLS configurations and as tokens; it works with any Workload API server.
//! [`peer()`] reads who the other side of a TLS connection is. [`HopIds`] gives the ids of our hop.
//!
//! Not here: who may do what (policy), and any TLS connection or gRPC call of the mesh itself.

#![forbid(unsafe_code)]

mod accept;
mod authority;
mod diagnosis;
mod hop_ids;
mod jwt;
mod peer;
mod secret;
mod socket;
mod source;
mod workload;

pub use authority::{Authority, DEFAULT_SVID_LIFE, Svid};
pub use hop_ids::{HopIds, Place};
pub use peer::{MAX_TOKEN_LIFE, Peer, peer};
pub use source::{Source, Token, install_crypto_provider};
pub use workload::{Identity, WorkloadSocket};

/// Generated from `proto/workload.proto`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, dead_code, rustdoc::all, clippy::all, clippy::too_many_lines)]
mod pb {
    include!(concat!(env!("OUT_DIR"), "/_.rs"));
}

#[cfg(test)]
mod testing;
