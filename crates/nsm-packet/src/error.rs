//! From an errno to one sentence with a fix.

use nsm_api::{Error, Kind};
use rustix::io::Errno;

/// The kernel refused `doing` something to `object`.
pub(crate) fn refused(object: impl Into<String>, doing: &str, errno: Errno) -> Error {
    let kind = match errno {
        Errno::NOENT | Errno::NODEV => Kind::NotFound,
        Errno::EXIST | Errno::BUSY | Errno::ADDRINUSE => Kind::Conflict,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS => Kind::Exhausted,
        _ => Kind::Kernel,
    };
    Error::new(kind, object, format!("the kernel refused to {doing}: {}", std::io::Error::from(errno)), fix(errno))
}

fn fix(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM | Errno::ACCESS => {
            "run as root or with CAP_NET_ADMIN and CAP_SYS_ADMIN in the user namespace that owns the network namespace"
        }
        Errno::NOENT | Errno::NODEV => "load the module `tun` and see that /dev/net/tun exists",
        Errno::BUSY => "end the other process that holds the device",
        Errno::EXIST => "choose another name or remove the object that is in the way",
        Errno::ADDRINUSE => "choose another port or end the process that uses it",
        Errno::ADDRNOTAVAIL => "use an address that this node has",
        Errno::MFILE | Errno::NFILE => "raise the limit of open files (ulimit -n)",
        Errno::NOMEM | Errno::NOBUFS => "free memory",
        _ => "compare with the kernel's log",
    }
}
