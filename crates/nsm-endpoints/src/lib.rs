//! What network services do besides being connected to.
//!
//! [`prefixes`] lends prefixes to the endpoints of a distributed layer 3; [`vl3`] is such an endpoint: its addresses, its
//! prefix, and its wires to the other endpoints of the network. Packets are routed by the kernel. [`firewall`] reads files
//! of rules, [`vpn`] is a network at the other end of a tunnel,
//! [`supplier`] starts endpoints when somebody needs them.
//!
//! Not here: settings, the process around it, kernel objects (`nsm`), and what a hop does with a Request (`nsm-hop`).

#![forbid(unsafe_code)]

pub mod firewall;
pub mod prefixes;
pub mod supplier;
pub mod vl3;
pub mod vpn;
