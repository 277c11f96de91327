//! Open files that travel beside a message.
//!
//! A parameter or URL says `inode://<dev>/<ino>`; the descriptor itself came over the unix socket. Inside a
//! process the two are kept together by this key. No path that a peer sends is ever opened.

use std::{collections::BTreeMap, fmt, os::fd::OwnedFd, sync::Arc};

/// Which file: device and inode as `fstat` reports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeKey {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

impl fmt::Display for InodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode://{}/{}", self.dev, self.ino)
    }
}

impl InodeKey {
    /// Reads `inode://<dev>/<ino>`; anything else is `None`.
    pub fn parse(url: &str) -> Option<InodeKey> {
        let (dev, ino) = url.strip_prefix("inode://")?.split_once('/')?;
        Some(InodeKey { dev: dev.parse().ok()?, ino: ino.parse().ok()? })
    }
}

/// The files that belong to one message, owned for as long as any holder lives.
#[derive(Clone, Default)]
pub struct Files(BTreeMap<InodeKey, Arc<OwnedFd>>);

impl Files {
    /// Adds or replaces a file.
    pub fn insert(&mut self, key: InodeKey, file: Arc<OwnedFd>) {
        self.0.insert(key, file);
    }
    /// The file with this identity.
    pub fn get(&self, key: InodeKey) -> Option<&Arc<OwnedFd>> {
        self.0.get(&key)
    }
    /// Takes over all files of `other`.
    pub fn extend(&mut self, other: &Files) {
        self.0.extend(other.0.iter().map(|(key, file)| (*key, file.clone())));
    }
    /// All files, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (InodeKey, &Arc<OwnedFd>)> {
        self.0.iter().map(|(key, file)| (*key, file))
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
