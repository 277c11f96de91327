//! Copies of a store: made while it serves, and turned into a store again.

use super::{
    disk::{self, Current, lock},
    file::{DiskFile, FILE_NAME, adopt, part},
};
use nsm_api::{Error, Kind, Result};
use std::{fs, io, path::Path};

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
    fs::create_dir_all(directory).map_err(|error| failed(&object, &error))?;
    write(&directory.join(FILE_NAME), &rows, &format!("registry store {:?}", directory.join(FILE_NAME)))
}

/// The file has its name only when it is whole and durable.
fn write(file: &Path, rows: &[disk::Row], object: &str) -> Result<()> {
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
