//! The resolver beside a workload (E-20). A workload knows one name server; the network services that it uses bring
//! their own, and its host had some before. This one asks them all.
//!
//! [`Resolver`] listens on UDP and TCP. What it knows is a table: an owner (a connection, or the former resolv.conf)
//! and its [`nsm_api::DnsConfig`]s, which may change at any time. A question goes to every server of every owner at
//! once and the first that finds something wins; search domains are tried here, because the workload's stub has none.
//! With a [`Zone`] it is the name server of a network service instead: it answers for the names of its workloads, and its
//! servers are peers that have names of their own.
//! [`resolv_conf`] makes a workload ask us, and undoes that.
//!
//! No loop can last: our own address is never asked; a question that comes back with the id that we gave it, or without
//! the wish for recursion, is not passed on; a question that is being asked already is not asked again, it waits for
//! the same answer; and every question ends after [`QUERY_TIME`].
//!
//! Not here: which workload has which name (`nsm-endpoints`), DNSSEC validation (flags and signatures pass through), transfers and updates,
//! encrypted DNS, link-local name servers with a zone (`fe80::1%eth0`), and the choice which endpoint's DNS a client
//! trusts: each server may answer each name, as in the Go implementation.

#![forbid(unsafe_code)]

mod cache;
mod engine;
mod exchange;
pub mod resolv_conf;
mod server;
mod table;
mod wire;
mod zone;

pub use cache::{MAX_CACHED, MAX_NEGATIVE_TTL, MAX_TTL};
pub use engine::{Elsewhere, GRACE, MAX_SOCKETS, QUERY_TIME, ServerStatus, Status};
pub use server::{MAX_IN_FLIGHT, MAX_TCP_CONNECTIONS, Resolver};
pub use table::{MAX_OWNERS, MAX_PEERS, MAX_SEARCH_DOMAINS, MAX_SERVERS};
pub use wire::MAX_UDP_MESSAGE;
pub use zone::{MAX_NAMES, MAX_NAMES_OF_ONE, NAME_TTL, Zone};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks although another thread panicked inside: every section leaves its data whole at each step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
