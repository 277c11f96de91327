//! From an errno and what the kernel says beside it to one sentence with a fix.

use crate::nl::Refusal;
use nsm_api::{Error, Kind};
use rustix::io::Errno;

/// The kernel refused `doing` something to `object`.
pub(crate) fn refused(object: impl Into<String>, doing: &str, refusal: impl Into<Refusal>) -> Error {
    let refusal = refusal.into();
    let kind = match refusal.errno {
        Errno::NOENT | Errno::NODEV | Errno::SRCH => Kind::NotFound,
        Errno::EXIST => Kind::Conflict,
        _ => Kind::Kernel,
    };
    Error::new(kind, object, format!("the kernel refused to {doing}: {refusal}"), fix(refusal.errno))
}

fn fix(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM | Errno::ACCESS => {
            "run as root or with CAP_NET_ADMIN and CAP_SYS_ADMIN in the user namespace that owns the network namespace"
        }
        Errno::NOENT | Errno::NODEV | Errno::SRCH => "check that the object still exists",
        Errno::EXIST => "choose another name or remove the object that is in the way",
        Errno::OPNOTSUPP | Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT => {
            "load the kernel module for it; `nsm doctor` says which is missing"
        }
        Errno::MFILE | Errno::NFILE => "raise the limit of open files (ulimit -n)",
        Errno::NOMEM | Errno::NOBUFS | Errno::NOSPC => "free memory or raise the limit of namespaces and sockets",
        _ => "run `nsm doctor` and compare with the kernel's log",
    }
}
