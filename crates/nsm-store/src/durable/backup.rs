//! Copies of a store: made while it serves, and turned into a store again.

use super::{
    disk::{self, Current, lock},
    file::{DiskFile, FILE_NAME, adopt, part},
};
use nsm_api::{Error, Kind, Result};
use std::{fs, io, path::Path, time::Duration};

/// Backups that are kept in one directory; the oldest goes first.
pub const MAX_BACKUPS: usize = 24;
const PREFIX: &str = "registry-";
const SUFFIX: &str = ".backup";

/// What a backup of this time is called: the order of the names is that of the times, milliseconds since 1970.
pub(super) fn name(since_epoch: Duration) -> String {
    format!("{PREFIX}{:014}{SUFFIX}", since_epoch.as_millis())
}

/// Removes all but the newest backups; other files stay.
pub(super) fn keep_last(directory: &Path, most: usize) -> Result<()> {
    let object = format!("directory {directory:?}");
    let broken = |error: io::Error| failed(&object, &error);
    let entries = fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(broken)?;
    let names = entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok());
    let mut backups: Vec<String> = names.filter(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX)).collect();
    backups.sort();
    let surplus = backups.len().saturating_sub(most);
    backups[..surplus].iter().try_for_each(|name| fs::remove_file(directory.join(name)).map_err(broken))
}

pub(super) fn backup(current: &Current, file: &Path, store: &str) -> Result<()> {
    let Some(database) = lock(current).clone() else {
        return Err(Error::new(Kind::Unavailable, store, "is not open after a failure", "look at the disk, then try again"));
    };
    let rows = disk::rows(&database).map_err(|error| Error::internal(store, error.to_string()))?;
    write(file, &rows, &format!("registry backup {file:?}"))
}

pub(super) fn restore(backup: &Path, directory: &Path) -> Result<()> {
    let object = format!("registry backup {backup:?}");
    if !backup.is_file() {
        return Err(Error::new(Kind::NotFound, object, "is not there", "name a file that a backup has written"));
    }
    let opened = DiskFile::open(backup).map_err(|error| failed(&object, &error))?;
    let rows = disk::read(Box::new(opened), &object)?;
    write(&directory.join(FILE_NAME), &rows, &format!("registry store {:?}", directory.join(FILE_NAME)))
}

/// The file has its name only when it is whole and durable.
fn write(file: &Path, rows: &[disk::Row], object: &str) -> Result<()> {
    fs::create_dir_all(file.parent().unwrap_or(Path::new("/"))).map_err(|error| failed(object, &error))?;
    let blank = DiskFile::blank(&part(file)).map_err(|error| failed(object, &error))?;
    let made = disk::create(Box::new(blank), rows, object);
    if made.is_err() {
        let _ = fs::remove_file(part(file));
        return made;
    }
    adopt(file).map_err(|error| named(object, &error))
}

fn named(object: &str, error: &io::Error) -> Error {
    if error.kind() == io::ErrorKind::AlreadyExists {
        return Error::new(Kind::Conflict, object, "is there already", "name another place, or move it away");
    }
    failed(object, error)
}

fn failed(object: &str, error: &io::Error) -> Error {
    Error::new(Kind::Unavailable, object, format!("cannot be written or read: {error}"), "look at the place and its permissions")
}
