//! A connection, the Request for it, and the events about it.

use crate::{ConnectionContext, ConnectionId, EndpointName, Files, Labels, Mechanism, Path, ServiceName, Unknown};
use serde::Serialize;
use std::collections::BTreeMap;

/// What a service carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Payload {
    /// Not said; the service's own applies.
    #[default]
    #[serde(rename = "")]
    Unset,
    /// Packets.
    #[serde(rename = "IP")]
    Ip,
    /// Frames.
    #[serde(rename = "ETHERNET")]
    Ethernet,
    /// A payload of a newer version.
    #[serde(untagged)]
    Other(String),
}

impl Payload {
    /// The text on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Payload::Unset => "",
            Payload::Ip => "IP",
            Payload::Ethernet => "ETHERNET",
            Payload::Other(text) => text,
        }
    }
}

impl From<&str> for Payload {
    fn from(text: &str) -> Payload {
        match text {
            "" => Payload::Unset,
            "IP" => Payload::Ip,
            "ETHERNET" => Payload::Ethernet,
            other => Payload::Other(other.to_owned()),
        }
    }
}

/// What a connection is or asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    /// Normal.
    #[default]
    Up,
    /// Lost; only in events.
    Down,
    /// The server asks for the Request again; only in events.
    RefreshRequested,
    /// The client wants another endpoint; only in Requests.
    ReselectRequested,
    /// A state of a newer version, by its number.
    #[serde(untagged)]
    Other(i32),
}

/// One connection as one hop sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Connection {
    /// The id at the hop that sent the message.
    pub id: ConnectionId,
    /// The service asked for.
    pub network_service: ServiceName,
    /// The mechanism of this stretch, once chosen.
    pub mechanism: Option<Mechanism>,
    /// Addresses, routes and the rest.
    pub context: ConnectionContext,
    /// The client's labels.
    pub labels: Labels,
    /// The way.
    pub path: Path,
    /// The endpoint, once chosen.
    pub network_service_endpoint_name: Option<EndpointName>,
    /// What it carries.
    pub payload: Payload,
    /// Its state.
    pub state: State,
    /// Fields of newer versions.
    #[serde(skip)]
    pub unknown: Unknown,
}

impl Connection {
    /// A connection that asks for `service` and knows nothing else yet.
    pub fn new(id: ConnectionId, service: ServiceName) -> Connection {
        Connection {
            id,
            network_service: service,
            mechanism: None,
            context: ConnectionContext::default(),
            labels: Labels::new(),
            path: Path::default(),
            network_service_endpoint_name: None,
            payload: Payload::Unset,
            state: State::Up,
            unknown: Unknown::default(),
        }
    }
}

/// Asks for a connection, or refreshes it.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is wanted or had.
    pub connection: Connection,
    /// Mechanisms the sender can do, best first.
    pub preferences: Vec<Mechanism>,
    /// Open files named by the mechanisms.
    pub files: Files,
}

/// What happened to connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EventKind {
    /// Everything there is; the first event of a stream.
    InitialStateTransfer,
    /// These changed.
    Update,
    /// These ended.
    Delete,
}

/// One message of a monitor stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConnectionEvent {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// To which connections, by the sender's id.
    pub connections: BTreeMap<ConnectionId, Connection>,
}

/// One position of a [`Selector`]: empty text matches anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentPattern {
    /// Hop name or empty.
    pub name: String,
    /// Connection id or empty.
    pub id: String,
    /// Token or empty.
    pub token: String,
}

/// Which connections a monitor stream is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Must match a run of neighbouring segments; empty matches every path.
    pub segments: Vec<SegmentPattern>,
    /// Must contain the service; empty matches every service.
    pub services: Vec<String>,
}

impl Selector {
    /// Whether `connection` is in scope.
    pub fn matches(&self, connection: &Connection) -> bool {
        let service = connection.network_service.as_str();
        if !self.services.is_empty() && !self.services.iter().any(|wanted| wanted == service) {
            return false;
        }
        if self.segments.is_empty() {
            return true;
        }
        connection.path.segments.windows(self.segments.len()).any(|run| {
            run.iter().zip(&self.segments).all(|(segment, pattern)| {
                let fits = |pattern: &str, text: &str| pattern.is_empty() || pattern == text;
                fits(&pattern.name, segment.name.as_str()) && fits(&pattern.id, segment.id.as_str()) && fits(&pattern.token, &segment.token)
            })
        })
    }
}
