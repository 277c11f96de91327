//! Network namespaces: find, make, name, and work inside one without ever leaving a thread in the wrong one.
//!
//! Names are those of `ip netns`: a file in `/run/netns` onto which the namespace is mounted. Not here: anything that
//! happens to links (see [`crate::net`]).

use crate::{error::refused, sys};
use nsm_api::{Error, InodeKey, Kind, Result};
use nsm_hop::kernel::Netns;
use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, UnmountFlags},
    thread::{LinkNameSpaceType, UnshareFlags},
};
use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where named namespaces are mounted, as `ip netns` does.
pub const NAMED: &str = "/run/netns";
/// The namespace of the calling thread. Not `/proc/self`: that is the first thread's.
const OWN: &str = "/proc/thread-self/ns/net";
/// `statfs` type of the file system on which namespaces live.
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// Bytes of the longest name of a namespace: that of a file.
const MAX_NAME_BYTES: usize = 255;

/// The namespace of the calling thread.
pub fn current() -> Result<Netns> {
    open(OWN)
}

/// The namespace behind a path of this machine. Never for a path that a peer sent.
pub fn open(path: impl AsRef<Path>) -> Result<Netns> {
    let path = path.as_ref();
    let object = format!("network namespace {}", path.display());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| refused(&object, "open it", errno))?;
    checked(Arc::new(file), &object)
}

/// The namespace named as `ip netns` names it.
pub fn open_named(name: &str) -> Result<Netns> {
    open(named_path(name)?)
}

/// The namespace behind a descriptor that somebody sent. Refuses everything but a network namespace.
pub fn from_fd(fd: Arc<OwnedFd>) -> Result<Netns> {
    let object = "the received network namespace";
    namespaces_only(&fd, object)?;
    checked(usable(&fd, object)?, object)
}

/// A descriptor that can be entered. Some peers send one that only names its file (`O_PATH`): that is opened anew.
fn usable(fd: &Arc<OwnedFd>, object: &str) -> Result<Arc<OwnedFd>> {
    let flags = rustix::fs::fcntl_getfl(fd).map_err(|errno| refused(object, "look at the descriptor", errno))?;
    if !flags.contains(OFlags::PATH) {
        return Ok(fd.clone());
    }
    // Opening may have effects on other files, and may never end.
    namespaces_only(fd, object)?;
    rustix::fs::open(format!("/proc/self/fd/{}", fd.as_raw_fd()), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map(Arc::new)
        .map_err(|errno| refused(object, "open the descriptor anew", errno))
}

/// Whether it is a namespace, of whatever kind.
pub fn is_namespace(fd: &OwnedFd) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|status| status.f_type as u64 == NSFS_MAGIC)
}

fn namespaces_only(fd: &OwnedFd, object: &str) -> Result<()> {
    let kind = rustix::fs::fstatfs(fd).map_err(|errno| refused(object, "look at the descriptor", errno))?.f_type;
    if kind as u64 == NSFS_MAGIC { Ok(()) } else { Err(not_a_netns(object, "the descriptor is not a namespace")) }
}

fn checked(file: Arc<OwnedFd>, object: &str) -> Result<Netns> {
    match sys::namespace_type(&file) {
        Ok(libc::CLONE_NEWNET) => {}
        Ok(_) => return Err(not_a_netns(object, "it is a namespace of another kind")),
        Err(_) => return Err(not_a_netns(object, "it is not a namespace")),
    }
    let stat = rustix::fs::fstat(&file).map_err(|errno| refused(object, "look at it", errno))?;
    Ok(Netns { key: InodeKey { dev: stat.st_dev, ino: stat.st_ino }, file: Some(file) })
}

fn not_a_netns(object: &str, reason: &str) -> Error {
    Error::invalid(object, reason, "name a network namespace, for instance /proc/PID/ns/net or /run/netns/NAME")
}

/// The open file of a namespace, ready to be entered; an error for one that exists in simulation only.
pub fn file(netns: &Netns) -> Result<Arc<OwnedFd>> {
    let object = format!("network namespace {}", netns.key);
    match &netns.file {
        Some(file) => usable(file, &object),
        None => Err(Error::invalid(object, "it came without a descriptor", "send the descriptor along")),
    }
}

/// A new namespace without a name: it lives for as long as something refers to it.
pub fn create() -> Result<Netns> {
    on_thread("netns-new", || {
        sys::unshare(UnshareFlags::NEWNET).map_err(|errno| refused("a new network namespace", "make it", errno))?;
        current()
    })?
}

/// A new namespace that `ip netns` shows as `name`. Refuses a name that is taken.
pub fn create_named(name: &str) -> Result<Netns> {
    let path = named_path(name)?;
    prepare_named_dir()?;
    let object = format!("network namespace {name:?}");
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| refused(&object, "make its file", errno))?;
    let target = path.clone();
    let made = on_thread("netns-new", move || -> std::result::Result<(), Errno> {
        sys::unshare(UnshareFlags::NEWNET)?;
        rustix::mount::mount_bind(OWN, &target)
    });
    let opened = made.and_then(|made| made.map_err(|errno| refused(&object, "make it", errno))).and_then(|()| open(&path));
    if opened.is_err() {
        let _ = rustix::mount::unmount(&path, UnmountFlags::DETACH);
        let _ = fs::remove_file(&path);
    }
    opened
}

/// Takes the name away. The namespace itself ends when nothing refers to it any more. A name that is not there is a success.
pub fn delete_named(name: &str) -> Result<()> {
    let path = named_path(name)?;
    let object = format!("network namespace {name:?}");
    match rustix::mount::unmount(&path, UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL) => {} // INVAL: the file is there, nothing is mounted on it
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(refused(object, "unmount it", errno)),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(refused(object, "remove its file", errno_of(&error))),
        _ => Ok(()),
    }
}

/// The names that `ip netns` would show, sorted.
pub fn list_named() -> Result<Vec<String>> {
    let entries = match fs::read_dir(NAMED) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(refused(NAMED, "list it", errno_of(&error))),
    };
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn named_path(name: &str) -> Result<PathBuf> {
    let bad =
        name.is_empty() || name.len() > MAX_NAME_BYTES || name == "." || name == ".." || name.chars().any(|c| c == '/' || c.is_control());
    if bad {
        let reason = "a name has 1 to 255 bytes and neither / nor control characters, and is not . or ..";
        return Err(Error::invalid(format!("network namespace {name:?}"), reason, "choose another name"));
    }
    Ok(Path::new(NAMED).join(name))
}

/// Makes `/run/netns` a shared mount, so that names made here are seen in other mount namespaces and vanish there too.
fn prepare_named_dir() -> Result<()> {
    let step = |doing: &'static str| move |errno: Errno| refused(NAMED, doing, errno);
    fs::create_dir_all(NAMED).map_err(|error| step("make the directory")(errno_of(&error)))?;
    let dir = rustix::fs::open(NAMED, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(step("open it"))?;
    // The lock that `ip netns` takes too: two first users must not mount the directory twice.
    rustix::fs::flock(&dir, FlockOperation::LockExclusive).map_err(step("lock it"))?;
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    match rustix::mount::mount_change(NAMED, shared) {
        Err(Errno::INVAL) => {} // not a mount point yet
        other => return other.map_err(step("share it")),
    }
    rustix::mount::mount_bind_recursive(NAMED, NAMED).map_err(step("mount it"))?;
    rustix::mount::mount_change(NAMED, shared).map_err(step("share it"))
}

/// Proof of being on a thread that was made to visit namespaces and ends afterwards.
pub(crate) struct Visitor(());

impl Visitor {
    /// Moves the visiting thread into a namespace.
    pub(crate) fn enter(&self, netns: &Netns) -> Result<()> {
        rustix::thread::move_into_link_name_space(file(netns)?.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|errno| refused(format!("network namespace {}", netns.key), "enter it", errno))
    }
}

/// Runs `work` on a thread made for it, which may visit any number of namespaces. Dropping the future does not stop the work.
pub(crate) async fn visit<T: Send + 'static>(work: impl FnOnce(&Visitor) -> T + Send + 'static) -> Result<T> {
    let (done, result) = tokio::sync::oneshot::channel();
    let visiting = move || {
        // The caller may be gone; then nobody wants the result.
        let _ = done.send(work(&Visitor(())));
    };
    std::thread::Builder::new().name("netns".to_owned()).spawn(visiting).map_err(|error| no_thread(&error))?;
    result.await.map_err(|_| panicked())
}

/// Runs `work` inside the namespace, on a thread made for it. Dropping the future does not stop the work.
pub async fn run_in<T: Send + 'static>(netns: &Netns, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let netns = netns.clone();
    visit(move |visitor| visitor.enter(&netns).map(|()| work())).await?
}

/// As [`visit`], and waits.
pub(crate) fn visit_blocking<T: Send>(work: impl FnOnce(&Visitor) -> T + Send) -> Result<T> {
    on_thread("netns", || work(&Visitor(())))
}

/// Runs `work` inside the namespace, on a thread made for it, and waits.
pub fn run_in_blocking<T: Send>(netns: &Netns, work: impl FnOnce() -> T + Send) -> Result<T> {
    visit_blocking(|visitor| visitor.enter(netns).map(|()| work()))?
}

fn on_thread<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work).map_err(|error| no_thread(&error))?;
        thread.join().map_err(|_| panicked())
    })
}

fn no_thread(error: &io::Error) -> Error {
    Error::new(
        Kind::Exhausted,
        "a thread",
        format!("it cannot be started: {error}"),
        "raise the limit of processes (ulimit -u, pids cgroup)",
    )
}

fn panicked() -> Error {
    Error::internal("a thread in a network namespace", "it ended before its work was done")
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Moves this whole process into a namespace. Only at its very start, while it has one thread.
pub fn enter_forever(netns: &Netns) -> Result<()> {
    alone("enter a network namespace")?;
    Visitor(()).enter(netns) // the visit lasts as long as the process
}

/// Gives this process user, network and mount namespaces of its own, in which it is root and may build a lab. Only at
/// its very start, while it has one thread. Everything made inside ends with the process.
pub fn unshare_user_and_net() -> Result<()> {
    alone("make namespaces of its own")?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    sys::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET | UnshareFlags::NEWNS).map_err(|errno| {
        let mut error = refused("a user namespace", "make it", errno);
        error.fix =
            "run as root, or allow it: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, AppArmor's userns restriction"
                .into();
        error
    })?;
    let write = |path: &str, text: String| fs::write(path, text).map_err(|error| refused(path, "write it", errno_of(&error)));
    write("/proc/self/setgroups", "deny".into())?; // the kernel's condition for mapping a group without privilege
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|errno| refused("/", "make its mounts private", errno))?;
    own_named_dir()
}

/// Gives this process a mount namespace of its own, in which `path` is the file `source`. Only at its very start, while it
/// has one thread. A link at `path` is followed. Nothing of it is seen outside; namespaces named later are not seen inside.
pub fn own_file(path: &Path, source: &Path) -> Result<()> {
    alone("have a file of its own")?;
    let object = format!("{} as {}", source.display(), path.display());
    let step = |doing: &'static str| {
        let object = object.clone();
        move |errno: Errno| refused(object, doing, errno)
    };
    sys::unshare(UnshareFlags::NEWNS).map_err(step("make a mount namespace"))?;
    // What is unmounted outside goes here, too: a name of a namespace that is taken away must not live on here.
    rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(step("keep its mounts apart"))?;
    rustix::mount::mount_bind(source, path).map_err(step("mount it"))
}

/// An empty `/run/netns` that only this mount namespace sees; where it cannot be made, an empty `/run`.
fn own_named_dir() -> Result<()> {
    let exists = fs::create_dir_all(NAMED).is_ok();
    let over = if exists { NAMED } else { "/run" };
    rustix::mount::mount("tmpfs", over, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=755")
        .map_err(|errno| refused(over, "mount a tmpfs on it", errno))?;
    fs::create_dir_all(NAMED).map_err(|error| refused(NAMED, "make the directory", errno_of(&error)))
}

fn alone(purpose: &str) -> Result<()> {
    let threads = fs::read_dir("/proc/self/task").map(Iterator::count).unwrap_or(0);
    if threads == 1 {
        return Ok(());
    }
    Err(Error::internal("this process", format!("it has {threads} threads and can {purpose} only while it has one")))
}
