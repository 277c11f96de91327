//! Finds again what a former process had open: a network namespace by its inode, anything else by the path that the kernel
//! gave for it. What is found is the very same file, or it is not found.

use crate::netns;
use nsm_api::InodeKey;
use nsm_hop::kernel::Netns;
use rustix::fs::{Mode, OFlags};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

/// Inode of the first process id namespace: whoever is in it sees all processes of the machine.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Where an open file can be found again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is a namespace.
    Namespace,
    /// At this path, when nobody puts another file there.
    Path(PathBuf),
    /// Nowhere.
    Nowhere,
}

/// Where `file` can be found again.
pub fn place(file: &OwnedFd) -> Place {
    if netns::is_namespace(file) {
        return Place::Namespace;
    }
    match fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) {
        Ok(path) if path.is_absolute() && !path.to_string_lossy().ends_with(" (deleted)") => Place::Path(path),
        _ => Place::Nowhere,
    }
}

/// The file at `path`, named but not opened, if it is the one called `key`.
pub fn file(path: &Path, key: InodeKey) -> Option<Arc<OwnedFd>> {
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    (InodeKey { dev: stat.st_dev, ino: stat.st_ino } == key).then(|| Arc::new(file))
}

/// What a search for namespaces has led to.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// Those that were found, open.
    pub found: BTreeMap<InodeKey, Arc<OwnedFd>>,
    /// Nothing of this machine was out of sight: what was not found has ended.
    pub complete: bool,
}

/// Looks for `wanted` among all processes and all mounts that can be seen.
pub fn namespaces(wanted: &BTreeSet<InodeKey>) -> Namespaces {
    let mut search =
        Namespaces { found: BTreeMap::new(), complete: inode("/proc/self/ns/pid").is_ok_and(|key| key.ino == FIRST_PID_NAMESPACE) };
    let take = |search: &mut Namespaces, path: &Path| {
        if search.found.len() < wanted.len()
            && let Ok(netns) = netns::open(path)
            && wanted.contains(&netns.key)
        {
            search.found.extend(netns.file.map(|file| (netns.key, file)));
        }
    };
    for (mounts, root) in [("/proc/self/mountinfo", ""), ("/proc/1/mountinfo", "/proc/1/root")] {
        let text = fs::read_to_string(mounts).unwrap_or_default();
        for path in text.lines().filter_map(|line| mounted(line, wanted)) {
            take(&mut search, Path::new(&format!("{root}{path}")));
        }
    }
    for process in processes() {
        let path = process.join("ns/net");
        match inode(&path) {
            Ok(key) if wanted.contains(&key) && !search.found.contains_key(&key) => take(&mut search, &path),
            // The first process of the machine is in no pod, and not everybody's to look at.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !process.ends_with("1") => search.complete = false,
            _ => {}
        }
    }
    search
}

/// Whether there is any sign of life of a namespace, as [`lives`] says. Looks at the latest processes first, as who asks
/// for something is seldom old.
pub fn is_alive(netns: InodeKey) -> bool {
    let named = |text: String| text.lines().filter_map(namespace_mount).any(|(ino, _)| ino == netns.ino);
    if fs::read_to_string("/proc/self/mountinfo").is_ok_and(named) {
        return true;
    }
    let mut processes: Vec<PathBuf> = processes().collect();
    processes.sort_by_key(|path| std::cmp::Reverse(path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok())));
    processes.iter().any(|process| inode(process.join("ns/net")).is_ok_and(|key| key == netns))
}

/// Which of some namespaces are alive.
#[derive(Debug, Default)]
pub struct Lives {
    /// A process is in them, or a name leads to them.
    pub living: BTreeSet<InodeKey>,
    /// Nothing of this machine was out of sight.
    pub complete: bool,
}

/// Looks for signs of life of `wanted`: processes in them, and mounts in whatever mount namespace. That somebody has one
/// open is no sign.
pub fn lives(wanted: &BTreeSet<InodeKey>) -> Lives {
    let mut lives = Lives { living: BTreeSet::new(), complete: inode("/proc/self/ns/pid").is_ok_and(|key| key.ino == FIRST_PID_NAMESPACE) };
    let mut mounts = BTreeMap::new();
    for process in processes() {
        match inode(process.join("ns/net")) {
            Ok(key) if wanted.contains(&key) => drop(lives.living.insert(key)),
            // The first process of the machine is in no pod, and not everybody's to look at.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !process.ends_with("1") => lives.complete = false,
            _ => {}
        }
        if let Ok(key) = inode(process.join("ns/mnt")) {
            mounts.entry(key).or_insert(process);
        }
    }
    if lives.living.len() < wanted.len() {
        for text in mounts.values().map(|process| fs::read_to_string(process.join("mountinfo")).unwrap_or_default()) {
            let named: BTreeSet<u64> = text.lines().filter_map(namespace_mount).map(|(ino, _)| ino).collect();
            lives.living.extend(wanted.iter().filter(|key| named.contains(&key.ino)));
        }
    }
    lives
}

/// Every network namespace that a process or a mount shows, each once. What may not be looked at is left out.
pub fn all_namespaces() -> Vec<Netns> {
    let mut found = BTreeMap::new();
    let mut take = |path: &Path| {
        if inode(path).is_ok_and(|key| !found.contains_key(&key))
            && let Ok(netns) = netns::open(path)
        {
            found.insert(netns.key, netns);
        }
    };
    for (mounts, root) in [("/proc/self/mountinfo", ""), ("/proc/1/mountinfo", "/proc/1/root")] {
        let text = fs::read_to_string(mounts).unwrap_or_default();
        text.lines().filter_map(namespace_mount).for_each(|(_, path)| take(Path::new(&format!("{root}{path}"))));
    }
    processes().for_each(|process| take(&process.join("ns/net")));
    found.into_values().collect()
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let numbered = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
    fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).filter(numbered)
}

fn inode(path: impl AsRef<Path>) -> io::Result<InodeKey> {
    let meta = fs::metadata(path)?;
    Ok(InodeKey { dev: meta.dev(), ino: meta.ino() })
}

/// The mount point of a line of `mountinfo`, if a wanted network namespace is mounted there.
fn mounted(line: &str, wanted: &BTreeSet<InodeKey>) -> Option<String> {
    let (ino, path) = namespace_mount(line)?;
    wanted.iter().any(|key| key.ino == ino).then_some(path)
}

/// Inode and mount point of a line of `mountinfo`, if a network namespace is mounted there.
fn namespace_mount(line: &str) -> Option<(u64, String)> {
    let fields: Vec<&str> = line.split(' ').collect();
    let (root, point) = (fields.get(3)?, fields.get(4)?);
    Some((root.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()?, unescaped(point)))
}

/// Blanks and the like are written as three octal digits behind a backslash.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |mut text, part| {
        let byte = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        text.push(char::from(byte.unwrap_or(b'\\')));
        text.push_str(if byte.is_some() { &part[3..] } else { part });
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_namespace_is_found_at_its_mount_or_at_its_process_and_nowhere_else() {
        let own = netns::current().unwrap();
        let wanted = BTreeSet::from([own.key, InodeKey { dev: own.key.dev, ino: 1 }]);
        let search = namespaces(&wanted);
        assert_eq!(search.found.keys().copied().collect::<Vec<_>>(), [own.key]);
        let line = "1 2 0:4 net:[77] /run/netns/a\\040b rw shared:1 - nsfs nsfs rw";
        assert_eq!(mounted(line, &BTreeSet::from([InodeKey { dev: 4, ino: 77 }])).unwrap(), "/run/netns/a b");
        assert_eq!(mounted(line, &wanted), None);
        assert_eq!(mounted("1 2 0:4 / /proc rw - proc proc rw", &wanted), None);
        assert_eq!(all_namespaces().into_iter().filter(|netns| *netns == own).count(), 1);
        assert_eq!(place(netns::file(&own).unwrap().as_ref()), Place::Namespace);
    }

    #[test]
    fn a_socket_is_found_by_its_path_as_long_as_it_is_the_same() {
        let dir = std::env::temp_dir().join(format!("nsm-find-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("a.sock");
        let first = UnixListener::bind(&path).unwrap();
        let key = inode(&path).unwrap();
        let open = file(&path, key).unwrap();
        assert_eq!(place(&open), Place::Path(path.clone()));
        fs::rename(&path, dir.join("b.sock")).unwrap();
        let second = UnixListener::bind(&path).unwrap();
        assert!(file(&path, key).is_none(), "another socket at the same path");
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(place(&open), Place::Nowhere);
        drop((first, second));
    }
}
