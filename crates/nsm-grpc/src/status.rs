//! Errors on the wire: the one table between kinds and gRPC codes, and the parts of an error as metadata.
//!
//! The message of a status is the error's sentence, for any client. Our own client finds the parts as JSON beside it.

use crate::limits::MAX_ERROR_PART_BYTES;
use nsm_api::{Error, Kind};
use std::error::Error as _;
use tonic::{
    Code, Status,
    metadata::{MetadataMap, MetadataValue},
};

/// Metadata key of the parts.
const ERROR_KEY: &str = "nsm-error-bin";

fn code(kind: Kind) -> Code {
    match kind {
        Kind::Invalid => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::Denied => Code::PermissionDenied,
        Kind::Exhausted => Code::ResourceExhausted,
        Kind::Unsupported => Code::FailedPrecondition,
        Kind::Conflict => Code::AlreadyExists,
        Kind::Unavailable => Code::Unavailable,
        Kind::Timeout => Code::DeadlineExceeded,
        Kind::Kernel | Kind::Internal => Code::Internal,
    }
}

fn kind(code: Code) -> Kind {
    match code {
        Code::InvalidArgument | Code::OutOfRange => Kind::Invalid,
        Code::NotFound => Kind::NotFound,
        Code::PermissionDenied | Code::Unauthenticated => Kind::Denied,
        Code::ResourceExhausted => Kind::Exhausted,
        Code::FailedPrecondition | Code::Unimplemented => Kind::Unsupported,
        Code::AlreadyExists | Code::Aborted => Kind::Conflict,
        Code::Unavailable | Code::Cancelled => Kind::Unavailable,
        Code::DeadlineExceeded => Kind::Timeout,
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => Kind::Internal,
    }
}

/// An error as any gRPC client understands it, and as ours understands it whole.
pub(crate) fn to_status(error: Error) -> Status {
    let error = bounded(error);
    let mut metadata = MetadataMap::new();
    if let Ok(json) = serde_json::to_vec(&error) {
        metadata.insert_bin(ERROR_KEY, MetadataValue::from_bytes(&json));
    }
    Status::with_metadata(code(error.kind), error.to_string(), metadata)
}

/// The error that `peer` (its address) sent, or that stands for the failure to hear from it.
pub(crate) fn from_status(status: &Status, peer: &str) -> Error {
    let parts = status.metadata().get_bin(ERROR_KEY).and_then(|value| value.to_bytes().ok());
    if let Some(error) = parts.and_then(|json| serde_json::from_slice(&json).ok()) {
        return bounded(error);
    }
    // Only what arose on this side has a source: the connection broke.
    let kind = if status.source().is_some() { Kind::Unavailable } else { kind(status.code()) };
    let reason = match (status.message(), status.source()) {
        ("", _) => format!("answered {}", status.code()),
        (message, Some(source)) => format!("{message}: {source}"),
        (message, None) => message.to_owned(),
    };
    bounded(Error::new(kind, format!("peer {peer}"), reason, "see the log of that process"))
}

/// A peer's words reach logs and headers: no control characters, and not too many.
fn bounded(mut error: Error) -> Error {
    for part in [&mut error.hop, &mut error.object, &mut error.reason, &mut error.fix] {
        if part.chars().any(char::is_control) {
            *part = part.replace(char::is_control, " ");
        }
        if part.len() > MAX_ERROR_PART_BYTES {
            part.truncate(part.floor_char_boundary(MAX_ERROR_PART_BYTES));
        }
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 10] = [
        Kind::Invalid,
        Kind::NotFound,
        Kind::Denied,
        Kind::Exhausted,
        Kind::Unsupported,
        Kind::Conflict,
        Kind::Unavailable,
        Kind::Timeout,
        Kind::Kernel,
        Kind::Internal,
    ];

    #[test]
    fn every_part_survives() {
        for kind in KINDS {
            let mut error = Error::new(kind, "network service \"vpn\"", "has no endpoint — yet", "start one");
            error.hop = "nsmgr-1".to_owned();
            let status = to_status(error.clone());
            assert_eq!(status.message(), error.to_string());
            assert_eq!(from_status(&status, "x"), error);
        }
    }

    #[test]
    fn a_foreign_status_keeps_its_kind_and_words() {
        for kind in KINDS.into_iter().filter(|kind| *kind != Kind::Kernel) {
            let error = from_status(&Status::new(code(kind), "no\nway"), "tcp://1.2.3.4:5");
            assert_eq!((error.kind, error.reason.as_str(), error.object.as_str()), (kind, "no way", "peer tcp://1.2.3.4:5"));
        }
    }

    #[test]
    fn parts_are_bounded() {
        let error = Error::new(Kind::Internal, "o", "é".repeat(MAX_ERROR_PART_BYTES), "f");
        assert_eq!(from_status(&to_status(error), "x").reason.len(), MAX_ERROR_PART_BYTES);
    }
}
