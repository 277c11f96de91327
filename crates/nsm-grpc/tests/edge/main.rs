//! The edge over real sockets, with real TLS.

mod calls;
mod files;
mod lifecycle;
mod registry;
mod streams;
mod world;
