//! What is asked of a policy, and the same as the input of a Rego file.

use crate::jwt;
use nsm_api::{Path, Segment};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

/// One segment of the path that a call took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hop<'a> {
    /// The process; empty in the path of a registration.
    pub name: &'a str,
    /// Its id for the connection; empty in the path of a registration.
    pub id: &'a str,
    /// The token it made for the next process.
    pub token: &'a str,
    /// When that ends, as the process says.
    pub expires: Option<SystemTime>,
    /// Counters.
    pub metrics: Option<&'a BTreeMap<String, String>>,
}

impl<'a> From<&'a Segment> for Hop<'a> {
    fn from(segment: &'a Segment) -> Hop<'a> {
        Hop {
            name: segment.name.as_str(),
            id: segment.id.as_str(),
            token: &segment.token,
            expires: segment.expires,
            metrics: Some(&segment.metrics),
        }
    }
}

/// The name that a registration wants.
#[derive(Clone, Copy, Debug)]
pub struct Resource<'a> {
    /// The name.
    pub name: &'a str,
    /// Who wants it: the subject of the first token; empty when that cannot be read.
    pub claimant: &'a str,
    /// The `path_ids` with which it is registered now.
    pub registered: Option<&'a [String]>,
}

/// The connections that a monitor asks for.
#[derive(Clone, Copy, Debug)]
pub struct Monitored<'a> {
    /// Who asks.
    pub peer: &'a str,
    /// Ids that it asks for.
    pub asked: &'a [String],
    /// Ids under which it made connections here.
    pub own: &'a [String],
}

/// May this call go on?
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// The segment of the process that asks; on the client's side that of the caller itself.
    pub index: u32,
    /// A server shows the path up to itself, a client the whole.
    pub segments: Vec<Hop<'a>>,
    /// The leaf certificate of the TLS peer, as DER.
    pub certificate: Option<&'a [u8]>,
    /// Wall clock.
    pub now: SystemTime,
    /// For registrations.
    pub resource: Option<Resource<'a>>,
    /// For monitors.
    pub monitored: Option<Monitored<'a>>,
}

impl<'a> Question<'a> {
    /// About a connection, by the process that was called: the path up to itself.
    pub fn server(path: &'a Path, certificate: Option<&'a [u8]>, now: SystemTime) -> Question<'a> {
        let own = (path.index as usize).saturating_add(1);
        Question::about(path.index, path.segments.iter().take(own).map(Hop::from).collect(), certificate, now)
    }
    /// About a connection, by the process that called, after the answer: the whole path.
    pub fn client(path: &'a Path, certificate: Option<&'a [u8]>, now: SystemTime) -> Question<'a> {
        Question::about(path.index, path.segments.iter().map(Hop::from).collect(), certificate, now)
    }
    /// About a Close, by the process that was called: only the last step. The tokens before it may have ended; that
    /// is often why somebody closes.
    pub fn close(path: &'a Path, certificate: Option<&'a [u8]>, now: SystemTime) -> Question<'a> {
        let own = path.index as usize;
        let segments: Vec<Hop<'a>> = path.segments.iter().take(own + 1).skip(own.saturating_sub(1)).map(Hop::from).collect();
        Question::about(path.index.min(1), segments, certificate, now)
    }

    fn about(index: u32, segments: Vec<Hop<'a>>, certificate: Option<&'a [u8]>, now: SystemTime) -> Question<'a> {
        Question { index, segments, certificate, now, resource: None, monitored: None }
    }

    /// As other implementations of the mesh give it to their policy files. Of the names that are registered it holds
    /// only the one asked for, because the cost of a call must not grow with the others.
    pub fn to_json(&self) -> Value {
        let mut input = Map::new();
        match (&self.resource, &self.monitored) {
            (Some(resource), _) => self.registration(resource, &mut input),
            (None, Some(monitored)) => monitor(monitored, &mut input),
            (None, None) => self.path(&mut input),
        }
        input.insert("auth_info".to_owned(), json!({ "certificate": self.certificate.map(jwt::pem).unwrap_or_default() }));
        Value::Object(input)
    }

    /// Members with zero values are left out.
    fn path(&self, input: &mut Map<String, Value>) {
        if self.index != 0 {
            input.insert("index".to_owned(), self.index.into());
        }
        if !self.segments.is_empty() {
            input.insert("path_segments".to_owned(), self.segments.iter().map(segment).collect());
        }
    }

    fn registration(&self, resource: &Resource<'_>, input: &mut Map<String, Value>) {
        let tokens: Vec<Value> = self.segments.iter().map(|segment| json!({ "token": segment.token })).collect();
        let mut registered = Map::new();
        if let Some(ids) = resource.registered {
            registered.insert(resource.name.to_owned(), json!(ids));
        }
        input.insert("resource_id".to_owned(), resource.claimant.into());
        input.insert("resource_name".to_owned(), resource.name.into());
        input.insert("resource_path_ids_map".to_owned(), registered.into());
        input.insert("path_segments".to_owned(), if tokens.is_empty() { Value::Null } else { tokens.into() });
        input.insert("index".to_owned(), self.index.into());
    }
}

fn segment(segment: &Hop<'_>) -> Value {
    let mut object = Map::new();
    for (key, text) in [("name", segment.name), ("id", segment.id), ("token", segment.token)] {
        if !text.is_empty() {
            object.insert(key.to_owned(), text.into());
        }
    }
    if let Some(since) = segment.expires.and_then(|at| at.duration_since(UNIX_EPOCH).ok()) {
        let mut expires = Map::new();
        for (key, number) in [("seconds", since.as_secs()), ("nanos", u64::from(since.subsec_nanos()))] {
            if number != 0 {
                expires.insert(key.to_owned(), number.into());
            }
        }
        object.insert("expires".to_owned(), expires.into());
    }
    if let Some(metrics) = segment.metrics.filter(|metrics| !metrics.is_empty()) {
        object.insert("metrics".to_owned(), json!(metrics));
    }
    Value::Object(object)
}

fn monitor(monitored: &Monitored<'_>, input: &mut Map<String, Value>) {
    input.insert("service_spiffe_id".to_owned(), monitored.peer.into());
    input.insert("selector_connection_ids".to_owned(), json!(monitored.asked));
    let known = if monitored.own.is_empty() { json!({}) } else { json!({ monitored.peer: monitored.own }) };
    input.insert("spiffe_id_connection_map".to_owned(), known);
}
