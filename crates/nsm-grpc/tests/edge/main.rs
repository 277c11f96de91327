//! The edge over real sockets, with real TLS.
#![allow(clippy::unwrap_used)]

mod calls;
mod endings;
mod files;
mod lifecycle;
mod prefixes;
mod registry;
mod streams;
mod world;
