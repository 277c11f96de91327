//! The few system calls that the safe wrappers in use do not cover.

use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use tokio::io::unix::AsyncFd;

/// `setsockopt` with one integer.
pub(crate) fn set_option(fd: impl AsFd, level: i32, name: i32, value: i32) -> Result<(), Errno> {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the pointer and length describe `value`, which lives until the call returns; the kernel only reads it.
    let result = unsafe { libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// The `CLONE_NEW...` type of the namespace behind a descriptor; `ENOTTY` when it is something else.
pub(crate) fn namespace_type(fd: impl AsFd) -> Result<i32, Errno> {
    // SAFETY: NS_GET_NSTYPE takes no argument, so the kernel reads and writes no memory of this process.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd() as RawFd, libc::NS_GET_NSTYPE as libc::Ioctl) };
    if result >= 0 { Ok(result) } else { Err(last_errno()) }
}

/// Gives the calling thread new namespaces. The thread must be one that ends soon, or the only one of the process.
pub(crate) fn unshare(flags: rustix::thread::UnshareFlags) -> Result<(), Errno> {
    assert!(!flags.contains(rustix::thread::UnshareFlags::FILES), "descriptor tables stay shared");
    // SAFETY: the hazard of unshare is a descriptor table that no longer matches what other threads hold; FILES is excluded.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Why the last system call of this thread failed.
fn last_errno() -> Errno {
    let code = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Errno::from_raw_os_error(code)
}

/// Puts a descriptor under the watch of the caller's runtime.
pub(crate) fn watch(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is the same open descriptor for as long as it lives, and nothing takes it out before it is dropped.
    unsafe { AsyncFd::register(fd) }.map_err(std::io::Error::from)
}
