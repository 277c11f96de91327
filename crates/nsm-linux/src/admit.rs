//! Looks at descriptors before anything else is done with them.

use crate::netns;
use nsm_api::{Answer, Caller, Error, Files, Mechanism, MechanismKind, Result};
use nsm_hop::role::{Admit, Draft};

/// Whoever asks for an interface, or answers where it shall be, must send a network namespace: with anything else
/// nothing could be made, and whether anything is there could not be seen either.
pub struct OnlyNamespaces;

impl Admit for OnlyNamespaces {
    fn admit(&self, draft: &Draft, _: &Caller) -> Result<()> {
        let mut offers = draft.connection.mechanism.iter().chain(&draft.preferences);
        offers.try_for_each(|offer| is_namespace(offer, &draft.files)).map_err(|error| about(error, draft.connection.id.as_str()))
    }
    fn approve(&self, answer: &Answer) -> Result<()> {
        let mut agreed = answer.connection.mechanism.iter();
        agreed.try_for_each(|agreed| is_namespace(agreed, &answer.files)).map_err(|error| about(error, answer.connection.id.as_str()))
    }
}

fn is_namespace(mechanism: &Mechanism, files: &Files) -> Result<()> {
    match mechanism.file(files).filter(|_| mechanism.kind == MechanismKind::Kernel) {
        Some(file) => netns::from_fd(file.clone()).map(drop),
        None => Ok(()),
    }
}

fn about(error: Error, connection: &str) -> Error {
    Error { object: format!("{} of connection {connection:?}", error.object), ..error }
}
