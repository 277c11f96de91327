//! One endpoint of a distributed layer 3: all clients of all endpoints of a service share one network.
//!
//! Each endpoint has a prefix of its own ([`lease()`] gets and keeps it), gives its clients addresses of that ([`Addresses`]),
//! and is a client of all endpoints that were there before it ([`Peers`]), so that each pair of endpoints has one wire.
//! The first address of the prefix is the endpoint's own: it is on the endpoint's end of every wire. There is no other
//! interface for it: an address that nobody can reach needs none. The kernel of the endpoint's pod routes.
//!
//! Its clients have names ([`Names`]), which a name server on the endpoint's own address knows.

mod addresses;
mod lease;
mod mtu;
mod names;
mod peers;
mod remembered;
mod template;

pub use addresses::{Addresses, Changes, Dialled, MAX_FORMER, is_endpoint};
pub use lease::lease;
pub use mtu::{LARGEST, LeastMtu};
pub use names::{Identify, Names, PeerNames};
pub use peers::{MAX_PEERS, Peers, ask_again};
pub use template::Template;
