//! Fields of a message that this version does not know.

use std::fmt;

/// Kept when a message is read, written back unchanged when it is sent on.
#[derive(Clone, Default, PartialEq)]
pub struct Unknown(pub(crate) buffa::UnknownFields);

// The payload is raw bytes (floats are kept as bits), so equality is total.
impl Eq for Unknown {}

impl fmt::Debug for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} unknown fields", self.0.len())
    }
}
