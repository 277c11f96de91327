//! What a hop holds for a connection, and what it adds to its context.

mod context;
mod ipam;

pub use context::{Environment, Routes, UnknownMtu};
pub use ipam::{Ipam, PointToPoint};
