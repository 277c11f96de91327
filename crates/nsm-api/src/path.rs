//! The hops of a connection. The rules by which hops change a path are in `nsm-hop`.

use crate::{ConnectionId, HopName, Unknown};
use serde::Serialize;
use std::{collections::BTreeMap, time::SystemTime};

/// One process on the way: its name, its own id for the connection, its token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// The process.
    pub name: HopName,
    /// The connection, as that process calls it.
    pub id: ConnectionId,
    /// The token that this hop made for the next one.
    #[serde(skip)]
    pub token: String,
    /// When that token ends.
    #[serde(serialize_with = "crate::convert::serialize_time")]
    pub expires: Option<SystemTime>,
    /// Counters of the hop's interfaces.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, String>,
    /// Fields of newer versions.
    #[serde(skip)]
    pub unknown: Unknown,
}

impl Segment {
    /// A segment without token.
    pub fn new(name: HopName, id: ConnectionId) -> Segment {
        Segment { name, id, token: String::new(), expires: None, metrics: BTreeMap::new(), unknown: Unknown::default() }
    }
}

/// The way from the client to the endpoint, and who holds the message now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Path {
    /// Position of the process that sent the message.
    pub index: u32,
    /// From the client on.
    #[serde(rename = "path_segments")]
    pub segments: Vec<Segment>,
    /// Fields of newer versions.
    #[serde(skip)]
    pub unknown: Unknown,
}

impl Path {
    /// The segment at the index.
    pub fn current(&self) -> Option<&Segment> {
        self.segments.get(self.index as usize)
    }
    /// The segment before the index.
    pub fn previous(&self) -> Option<&Segment> {
        self.segments.get((self.index as usize).checked_sub(1)?)
    }
    /// The segment after the index.
    pub fn next(&self) -> Option<&Segment> {
        self.segments.get(self.index as usize + 1)
    }
}
