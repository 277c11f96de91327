//! Who may touch what: processes with identities of their own, over real sockets with TLS, of which some lie
//! (reliability.md 2.2).

#![allow(clippy::unwrap_used, unreachable_pub, missing_docs)] // helpers of tests, too

mod descriptors;
mod paths;
mod registrations;
mod rotation;
mod world;
