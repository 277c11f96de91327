//! The words of Network Service Mesh.
//!
//! Domain types that every other crate speaks ([`Connection`], [`Path`], [`NetworkService`], ...), the
//! generated messages ([`proto`]), and the one border between them ([`convert`]): what passes it is
//! validated and bounded, so no later code checks again. Fields that this version does not know are
//! kept and sent on, because a hop in the middle of a path must not lose what its neighbours say.
//!
//! Not here: any I/O, any clock, any gRPC type.

#![forbid(unsafe_code)]

mod connection;
mod context;
pub mod convert;
mod error;
mod files;
mod ids;
pub mod limits;
mod mechanism;
mod path;
mod prefixes;
mod registry;
mod service;
mod target;
mod unknown;

pub use connection::{Connection, ConnectionEvent, EventKind, Payload, Request, SegmentPattern, Selector, State};
pub use context::{
    ConnectionContext, DnsConfig, DnsContext, EthernetContext, ExtraPrefixRequest, IP_WIRE_MAC, IpContext, IpNeighbor, MacAddr,
    PolicyRoute, Route,
};
pub use error::{Error, Kind, Result};
pub use files::{Files, InodeKey};
pub use ids::{ConnectionId, EndpointName, HopName, ServiceName, SpiffeId};
pub use mechanism::{Class, Mechanism, MechanismKind, params};
pub use path::{Path, Segment};
pub use prefixes::{PrefixApi, PrefixGrant, PrefixRequest, PrefixStream};
pub use registry::{
    Destination, EndpointQuery, EndpointUpdate, Match, NetworkService, NetworkServiceEndpoint, ServiceQuery, ServiceUpdate,
};
pub use service::{Answer, Caller, EndpointUpdates, Events, NetworkServiceApi, RegistryApi, ServiceUpdates, Trail, TrailEnd};
pub use target::Target;
pub use unknown::Unknown;

/// Labels of a client, of an endpoint for one service, or of a selector. Ordered, so that output is stable.
pub type Labels = std::collections::BTreeMap<String, String>;

/// Generated from `proto/`; used only by [`convert`] and by the gRPC edge.
#[allow(missing_docs, rustdoc::all, clippy::all, clippy::pedantic)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/messages.rs"));
}
