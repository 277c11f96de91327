//! One error for the whole path of a Request: which hop, which object, why, and what to do.

use crate::HopName;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What every fallible step of the mesh returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure it is. Decides the gRPC code and whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The caller sent something that can never be accepted.
    Invalid,
    /// The named service, endpoint, forwarder or object is not there (yet).
    NotFound,
    /// The caller's identity may not do this.
    Denied,
    /// A pool, table or queue is full.
    Exhausted,
    /// No side offers a mechanism that the other accepts.
    Unsupported,
    /// A name or object is in use by somebody else.
    Conflict,
    /// A peer cannot be reached.
    Unavailable,
    /// The deadline passed.
    Timeout,
    /// The kernel refused.
    Kernel,
    /// A defect of ours.
    Internal,
}

impl Kind {
    /// Whether the same Request may succeed later without anybody changing it.
    pub fn retryable(self) -> bool {
        match self {
            Kind::Invalid => false,
            // Policies are changed while clients wait, and a certificate that rotates within a call is refused once.
            Kind::Denied => true,
            // Start order must not matter: what is missing or full now may be there in a second.
            Kind::NotFound | Kind::Exhausted | Kind::Unsupported | Kind::Conflict => true,
            Kind::Unavailable | Kind::Timeout | Kind::Kernel | Kind::Internal => true,
        }
    }
}

/// A refusal or failure as one sentence: object, hop, reason, fix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// Its class.
    pub kind: Kind,
    /// The hop that decided; empty until the hop signs it with [`Error::at`].
    pub hop: String,
    /// What it concerns, for instance `network service "vpn"`.
    pub object: String,
    /// Why.
    pub reason: String,
    /// What to do about it.
    pub fix: String,
}

impl Error {
    /// A new error, not yet signed by a hop.
    pub fn new(kind: Kind, object: impl Into<String>, reason: impl Into<String>, fix: impl Into<String>) -> Error {
        Error { kind, hop: String::new(), object: object.into(), reason: reason.into(), fix: fix.into() }
    }
    /// [`Kind::Invalid`].
    pub fn invalid(object: impl Into<String>, reason: impl Into<String>, fix: impl Into<String>) -> Error {
        Error::new(Kind::Invalid, object, reason, fix)
    }
    /// [`Kind::Internal`]: something of ours that cannot happen, happened.
    pub fn internal(object: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::new(Kind::Internal, object, reason, "report this as a defect with the log of this process")
    }
    /// Signs the error with the hop where it arose. The first signature stays.
    pub fn at(mut self, hop: &HopName) -> Error {
        if self.hop.is_empty() {
            self.hop = hop.as_str().to_owned();
        }
        self
    }
    /// Whether trying again unchanged can help.
    pub fn retryable(&self) -> bool {
        self.kind.retryable()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.hop.is_empty() {
            write!(f, "{}: ", self.hop)?;
        }
        write!(f, "{}: {}; {}", self.object, self.reason, self.fix)
    }
}

impl std::error::Error for Error {}
