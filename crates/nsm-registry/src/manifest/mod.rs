//! NetworkService and NetworkServiceEndpoint documents in YAML: every form that was ever published is read, one is
//! written.
//!
//! Each deviation from the present form gives a [`Warning`] with its line that shows the present form; what is in
//! no form at all is an error that names file, line, document and key. Labels are taken as written: `version: 1.10`
//! is `1.10`, not `1.1`. Documents of other kinds are handed through.
//!
//! Not here: reading files; what other kinds mean.

mod endpoint;
mod node;
mod reader;
mod service;
mod write;

use nsm_api::{Error, NetworkService, NetworkServiceEndpoint, Result};
use reader::Reader;
use serde_yaml_ng::Value;
use std::fmt;

/// Bytes of one manifest.
pub const MAX_MANIFEST_BYTES: usize = 16 * 1024 * 1024;
/// How deep objects and lists of one document may be nested.
pub const MAX_DEPTH: usize = 64;
/// The `apiVersion` of the present form.
pub const API_VERSION: &str = "networkservicemesh.io/v1";

/// What one or several files hold, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Documents {
    /// The services.
    pub services: Vec<NetworkService>,
    /// The endpoints.
    pub endpoints: Vec<NetworkServiceEndpoint>,
    /// Documents of other kinds, untouched.
    pub others: Vec<Value>,
    /// What is not in the present form.
    pub warnings: Vec<Warning>,
}

/// One deviation from the present form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The file, as the caller named it.
    pub file: String,
    /// The document in the file, from 1.
    pub document: usize,
    /// The line in the file, from 1.
    pub line: usize,
    /// What deviates, as the start of a sentence.
    pub what: String,
    /// The present form, as YAML of one or more lines; empty when there is none and it is best left out.
    pub modern: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} (document {}): {}; ", self.file, self.line, self.document, self.what)?;
        match self.modern.trim_end().split_once('\n') {
            None if self.modern.is_empty() => write!(f, "leave it out"),
            None => write!(f, "write {}", self.modern.trim_end()),
            Some(_) => write!(f, "write\n    {}", self.modern.trim_end().replace('\n', "\n    ")),
        }
    }
}

impl Documents {
    /// Reads `text`; `file` is what it is called in warnings and errors.
    pub fn read(file: &str, text: &str) -> Result<Documents> {
        if text.len() > MAX_MANIFEST_BYTES {
            let reason = format!("has {} bytes, the limit is {MAX_MANIFEST_BYTES}", text.len());
            return Err(Error::invalid(format!("manifest {file}"), reason, "split it into several files"));
        }
        let mut documents = Documents::default();
        for (position, document) in node::documents(file, text)?.iter().enumerate() {
            let mut reader = Reader::new(file, position + 1);
            match reader.kind(document)?.as_deref() {
                None => {}
                Some("NetworkService") => documents.services.push(reader.service(document)?),
                Some("NetworkServiceEndpoint") => documents.endpoints.push(reader.endpoint(document)?),
                Some(_) => documents.others.push(reader.other(document)?),
            }
            documents.warnings.append(&mut reader.warnings);
        }
        Ok(documents)
    }

    /// Adds what another file holds.
    pub fn extend(&mut self, other: Documents) {
        self.services.extend(other.services);
        self.endpoints.extend(other.endpoints);
        self.others.extend(other.others);
        self.warnings.extend(other.warnings);
    }

    /// Its services and endpoints in the present form, as one file. What the registry itself adds to them (times,
    /// path) is left out, so that the file can be applied again.
    pub fn to_yaml(&self) -> String {
        let services = self.services.iter().map(service_to_yaml);
        let endpoints = self.endpoints.iter().map(endpoint_to_yaml);
        services.chain(endpoints).collect::<Vec<_>>().join("---\n")
    }
}

pub use write::{endpoint_to_yaml, service_to_yaml};
