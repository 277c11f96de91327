//! Small secret files: made once, atomically, readable by their owner only.

use nsm_api::{Error, Kind, Result};
use rustix::fs::{Mode, OFlags};
use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

/// More than any secret of ours has; what is longer is not ours.
const MAX_BYTES: u64 = 64 * 1024;

/// The content of `path`; where there is none, `make` decides it, and of several makers one wins.
pub(crate) fn load_or_create(path: &Path, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    if let Some(found) = read(path)? {
        return Ok(found);
    }
    create(path, &make()?)?;
    read(path)?.ok_or_else(|| fail(path, "vanished while it was created", "keep other programs out of its directory"))
}

fn fail(path: &Path, reason: impl ToString, fix: &str) -> Error {
    Error::new(Kind::Invalid, format!("secret file {}", path.display()), reason.to_string(), fix)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match rustix::fs::open(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(rustix::io::Errno::LOOP) => return Err(fail(path, "is a symbolic link", "put the file itself there")),
        Err(error) => return Err(fail(path, error, "let this user read it")),
    };
    let meta = file.metadata().map_err(|error| fail(path, error, "check the file system"))?;
    if !meta.is_file() || meta.len() > MAX_BYTES {
        return Err(fail(path, "is not a small regular file", "remove it, or choose another directory"));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(fail(
            path,
            format!("can be read by others (mode {:04o})", meta.mode() & 0o7777),
            "chmod 600 it, or remove it if others saw it",
        ));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(|error| fail(path, error, "check the file system"))?;
    Ok(Some(bytes))
}

/// Writes aside and links into place, so that nobody ever sees half a file and nothing is overwritten.
fn create(path: &Path, bytes: &[u8]) -> Result<()> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let failed = |error: std::io::Error| fail(path, error, "let this user create files in its directory");
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(failed)?;
    let aside = dir.join(format!(".nsm-{}-{}.tmp", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    let written = write_new(&aside, bytes).and_then(|()| match std::fs::hard_link(&aside, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    let removed = std::fs::remove_file(&aside);
    written.and(removed).and_then(|()| File::open(dir)?.sync_all()).map_err(failed)
}

fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Dir;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_secret_is_made_once_and_guarded() {
        let dir = Dir::new();
        let path = dir.path("deep/key");
        assert_eq!(load_or_create(&path, || Ok(b"one".to_vec())).unwrap(), b"one");
        assert_eq!(load_or_create(&path, || Ok(b"two".to_vec())).unwrap(), b"one");
        create(&path, b"three").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"one", "a later maker does not overwrite");
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing left aside");

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read(&path).unwrap_err().reason.contains("0644"));
        symlink(&path, dir.path("link")).unwrap();
        assert!(read(&dir.path("link")).unwrap_err().reason.contains("symbolic link"));
    }
}
