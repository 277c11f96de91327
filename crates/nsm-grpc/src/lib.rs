//! The edge: everything between a trait of `nsm-api` in this process and the same trait in another one.
//!
//! [`serve()`] answers gRPC calls by calling the traits; [`Dialer`] gives the traits of a peer. Between them lie mutual
//! TLS with SPIFFE identities, tokens and deadlines in metadata, open files that travel beside the bytes of a unix
//! socket, monitor and watch streams, the health service, and a bound on everything ([`limits`]).
//!
//! Where a call goes: `serve` accepts, `tls` shakes hands, `handlers` read the message, collect its files and call the
//! trait; `dial::channel` sends on a connection from `dial::pool`. Below both lie `fd_stream` and `descriptors`.
//!
//! Not here: any decision about a connection or a registration, any policy, any certificate.

#![forbid(unsafe_code)]

mod codec;
mod descriptors;
mod dial;
mod drain;
mod fd_stream;
#[cfg(test)]
mod golden_headers;
mod handlers;
pub mod limits;
mod listen;
mod metadata;
mod named;
#[cfg(feature = "plaintext")]
mod plain;
mod preface;
mod registry_path;
mod rpc;
mod serve;
mod share;
mod shown;
mod socket;
mod status;
mod tls;

pub use descriptors::inode_key;
pub use dial::{DialOptions, Dialer, HeldPrefix, PrefixClient};
#[cfg(feature = "plaintext")]
pub use plain::WithoutSecurity;
pub use serve::{ServeOptions, Served, serve};
