//! The ledger of descriptors: what each process holds open, as `/proc` shows it.

use nsm_api::{Error, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

/// What a process holds open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// All of it.
    pub(crate) count: usize,
    /// How much of each kind: `socket`, `pipe`, `anon_inode`, `net` for namespaces, `file`.
    pub(crate) kinds: BTreeMap<String, usize>,
    /// Inodes of the network namespaces among them.
    pub(crate) namespaces: BTreeSet<u64>,
}

impl Held {
    /// What this process holds now.
    pub(crate) fn of(pid: u32) -> Result<Held> {
        let dir = format!("/proc/{pid}/fd");
        let entries = fs::read_dir(&dir).map_err(|error| Error::internal(&*dir, format!("cannot be read: {error}")))?;
        let mut held = Held::default();
        // One that was closed since the listing counts for nothing.
        for target in entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()) {
            let (kind, namespace) = kind(&target.to_string_lossy());
            held.count += 1;
            *held.kinds.entry(kind).or_default() += 1;
            held.namespaces.extend(namespace);
        }
        Ok(held)
    }
    /// In words.
    pub(crate) fn words(&self) -> String {
        let kinds: Vec<String> = self.kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        format!("{} ({})", self.count, kinds.join(", "))
    }
}

/// What a link in `/proc/<pid>/fd` says: `socket:[17]`, `net:[4026531840]`, `anon_inode:[eventpoll]`, or a path.
fn kind(target: &str) -> (String, Option<u64>) {
    match target.split_once(":[") {
        Some(("net", inode)) => ("net".to_owned(), inode.trim_end_matches(']').parse().ok()),
        Some((kind, _)) if !kind.starts_with('/') => (kind.to_owned(), None),
        _ => ("file".to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_from_their_links() {
        assert_eq!(kind("net:[4026531840]"), ("net".into(), Some(4_026_531_840)));
        assert_eq!(kind("socket:[17]"), ("socket".into(), None));
        assert_eq!(kind("anon_inode:[eventpoll]"), ("anon_inode".into(), None));
        assert_eq!(kind("/tmp/a:[b]"), ("file".into(), None));
    }

    #[test]
    fn an_open_namespace_is_found() {
        let file = fs::File::open("/proc/self/ns/net").unwrap();
        let held = Held::of(std::process::id()).unwrap();
        assert!(held.kinds["net"] >= 1 && !held.namespaces.is_empty(), "{}", held.words());
        drop(file);
    }
}
