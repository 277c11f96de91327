//! A whole domain in one process: the very code of the hops and of the registry, on simulated time, over a simulated
//! network and simulated kernels that carry packets.
//!
//! [`run()`] plays one seed of a [`Topology`] through warm-up, faults, calm and drain, and says the first sentence that did not
//! hold. Everything comes from the seed: the same seed twice gives the same events, which [`Outcome::hash`] stands for.
//!
//! Not here: sockets and gRPC (roles call each other directly), tokens that are signed (they are plain words here), encrypted
//! tunnels, passthrough endpoints; what roles do beside their hop is done again in `process.rs`.

#![forbid(unsafe_code)]

mod chance;
mod check;
mod disk;
mod events;
pub mod faults;
mod flag;
mod issuer;
mod kernel;
mod ledger;
mod life;
pub mod linear;
mod net;
mod packets;
mod process;
mod run;
pub mod script;
mod sentence;
mod show;
pub mod shrink;
pub mod topology;
mod trial;
pub mod what_if;
mod world;

pub use events::{SHOWN_EVENTS, Violation};
pub use run::{CALM_BOUND, Options, Outcome, run, run_with};
pub use topology::Topology;
