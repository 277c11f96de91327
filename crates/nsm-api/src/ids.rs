//! Names and ids: non-empty, bounded, printable text that is cheap to clone.

use crate::{Error, limits::MAX_NAME_BYTES};
use serde::Serialize;
use std::{fmt, sync::Arc};

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $type(Arc<str>);

        impl $type {
            #[doc = concat!("Checks that `text` may be ", $what, ": 1 to 253 bytes, no control characters, no blanks at its ends.")]
            pub fn new(text: impl AsRef<str>) -> Result<Self, Error> {
                let text = text.as_ref();
                check($what, text)?;
                Ok(Self(text.into()))
            }
            /// The text.
            pub fn as_str(&self) -> &str { &self.0 }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "{:?}", &*self.0) }
        }
        impl std::str::FromStr for $type {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> { Self::new(text) }
        }
    };
}

name!(
    /// Identifies a connection at one hop. Each hop of a path has its own.
    ConnectionId, "a connection id");
name!(
    /// The name of a process in a path. Two neighbours never share one.
    HopName, "a hop name");
name!(
    /// The name of a network service, possibly `service@domain`.
    ServiceName, "a network service name");
name!(
    /// The name of an endpoint, possibly `endpoint@domain`.
    EndpointName, "an endpoint name");
name!(
    /// `spiffe://trust-domain/path`: who a process is.
    SpiffeId, "a SPIFFE ID");

fn check(what: &str, text: &str) -> Result<(), Error> {
    let reason = if text.is_empty() {
        "is empty".to_owned()
    } else if text.len() > MAX_NAME_BYTES {
        format!("has {} bytes, the limit is {MAX_NAME_BYTES}", text.len())
    } else if text.chars().any(char::is_control) {
        "holds a control character".to_owned()
    } else if text.trim() != text {
        "begins or ends with a blank".to_owned()
    } else {
        return Ok(());
    };
    let shown: String = text.chars().filter(|c| !c.is_control()).take(64).collect();
    Err(Error::invalid(format!("{what} {shown:?}"), reason, "send a name of 1 to 253 printable bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_printable() {
        for bad in ["", " a", "a\n", &"x".repeat(254)] {
            assert!(ServiceName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "svc@domain", "söme", &"x".repeat(253)] {
            assert_eq!(ServiceName::new(good).unwrap().as_str(), good);
        }
    }
}
