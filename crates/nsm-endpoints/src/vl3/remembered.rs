//! The prefixes of an endpoint in a file, so that its successor asks for the same. They are a wish, not a right: the prefix
//! servers decide. A file that cannot be had costs that wish and nothing else.

use ipnet::IpNet;
use std::{fs, io, path::Path};
use tracing::warn;

/// What is in the file, by number of the server; nothing when there is none.
pub(super) fn read(file: &Path) -> Vec<Option<IpNet>> {
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return vec![],
        Err(error) => {
            warn!(file = %file.display(), %error, "what prefixes a former process had is not known");
            return vec![];
        }
    };
    serde_json::from_slice(&text)
        .inspect_err(|error| warn!(file = %file.display(), %error, "what prefixes a former process had is not known"))
        .unwrap_or_default()
}

/// Replaces the file in one step.
pub(super) fn write(file: &Path, prefixes: impl Iterator<Item = Option<IpNet>>) {
    let known: Vec<Option<String>> = prefixes.map(|prefix| Some(prefix?.to_string())).collect();
    let draft = file.with_extension("new");
    let replace = || fs::write(&draft, serde_json::to_vec(&known)?).and_then(|()| fs::rename(&draft, file));
    if let Err(error) = replace() {
        warn!(file = %file.display(), %error, "a successor of this process may get other prefixes");
    }
}
