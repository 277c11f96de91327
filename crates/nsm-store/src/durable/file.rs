//! A store in a file: locked, private, with its space reserved before it is written to.

use super::Medium;
use redb::StorageBackend;
use rustix::{
    fs::{Advice, FallocateFlags, FlockOperation, OFlags, fadvise, fallocate, flock},
    io::Errno,
};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The store's file in its directory.
pub const FILE_NAME: &str = "registry.redb";

/// A directory with one store.
pub struct FileMedium {
    directory: PathBuf,
}

impl FileMedium {
    /// The store in `directory`, which is made when it is not there.
    pub fn new(directory: impl Into<PathBuf>) -> FileMedium {
        FileMedium { directory: directory.into() }
    }
}

impl Medium for FileMedium {
    fn object(&self) -> String {
        format!("registry store {:?}", self.directory.join(FILE_NAME))
    }

    fn open(&self) -> io::Result<Option<Box<dyn StorageBackend>>> {
        fs::create_dir_all(&self.directory)?;
        match DiskFile::open(&self.directory.join(FILE_NAME)) {
            Ok(file) => Ok(Some(Box::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn blank(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(DiskFile::blank(&part(&self.directory.join(FILE_NAME)))?))
    }

    fn adopt(&self) -> io::Result<()> {
        adopt(&self.directory.join(FILE_NAME))
    }
}

/// Where a file is made that will have this name.
pub(super) fn part(of: &Path) -> PathBuf {
    let mut name = of.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

/// Gives the file's part its name, durably. Never takes the place of a file that is there.
pub(super) fn adopt(file: &Path) -> io::Result<()> {
    let part = part(file);
    let named = fs::hard_link(&part, file);
    fs::remove_file(&part)?;
    sync_directory(file)?;
    named
}

/// One open file.
#[derive(Debug)]
pub(super) struct DiskFile {
    file: File,
}

impl DiskFile {
    /// One that is there.
    pub(super) fn open(path: &Path) -> io::Result<DiskFile> {
        DiskFile::with(path, OpenOptions::new().read(true).write(true))
    }

    /// An empty one, also if a former try has left something there.
    pub(super) fn blank(path: &Path) -> io::Result<DiskFile> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        DiskFile::with(path, OpenOptions::new().read(true).write(true).create_new(true).mode(0o600))
    }

    fn with(path: &Path, options: &mut OpenOptions) -> io::Result<DiskFile> {
        let file = options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            Errno::WOULDBLOCK => io::Error::new(io::ErrorKind::ResourceBusy, "another process has it open"),
            other => other.into(),
        })?;
        // After a failed fsync the kernel may show bytes that never reached the disk. What is read here must come from there.
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
        Ok(DiskFile { file })
    }
}

/// Makes the names in a file's directory durable.
fn sync_directory(of: &Path) -> io::Result<()> {
    File::open(of.parent().unwrap_or(Path::new("/")))?.sync_all()
}

impl StorageBackend for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    /// Reserves what it adds: a full disk shows here, before anything is written, and not in the middle of a commit.
    fn set_len(&self, len: u64) -> io::Result<()> {
        let present = self.len()?;
        if len > present {
            match fallocate(&self.file, FallocateFlags::empty(), present, len - present) {
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }
}
