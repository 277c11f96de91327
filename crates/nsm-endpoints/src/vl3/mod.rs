//! One endpoint of a distributed layer 3: all clients of all endpoints of a service share one network.
//!
//! Each endpoint has a prefix of its own ([`lease()`] gets and keeps it), gives its clients addresses of that ([`Addresses`]),
//! and is a client of all endpoints that were there before it ([`Peers`]), so that each pair of endpoints has one wire.
//! The first address of the prefix is the endpoint's own: it is on the endpoint's end of every wire. There is no other
//! interface for it: an address that nobody can reach needs none. The kernel of the endpoint's pod routes.
//!
//! Not here: names (DNS) of the network's clients.

mod addresses;
mod lease;
mod mtu;
mod peers;

pub use addresses::{Addresses, Changes, Dialled, MAX_FORMER};
pub use lease::lease;
pub use mtu::{LARGEST, LeastMtu};
pub use peers::{MAX_PEERS, Peers, ask_again};
