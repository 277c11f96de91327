//! Places that nobody else may look into.

use nsm_api::{Error, Result};
use std::{os::unix::fs::DirBuilderExt, path::Path};

/// Makes a directory for a socket over which keys go, unless it is there.
pub fn private_dir(dir: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| {
        Error::invalid(format!("directory {}", dir.display()), format!("cannot be made: {error}"), "name another --socket")
    })
}
