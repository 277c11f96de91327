//! What a hop holds for a connection, and what it adds to its context.

mod context;
mod ipam;
mod siblings;

pub use context::{Current, Dns, Environment, Excluded, Policies, Routes, UnknownMtu};
pub use ipam::{Ipam, IpamPolicy, PointToPoint};
pub use siblings::Siblings;
