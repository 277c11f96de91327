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

/// Takes the next frame off a packet socket: how much of it is in `buffer`, and the index of the interface it passed.
pub(crate) fn receive_frame(fd: impl AsFd, buffer: &mut [u8]) -> Result<(usize, u32), Errno> {
    // SAFETY: all-zero bytes are a valid sockaddr_ll: integers only.
    let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    let (start, room) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: both pointers come with the length of what they point to, and both live until the call returns.
    let read = unsafe { libc::recvfrom(fd.as_fd().as_raw_fd(), start, room, 0, (&raw mut from).cast(), &raw mut length) };
    if read < 0 { Err(last_errno()) } else { Ok((read as usize, from.sll_ifindex as u32)) }
}

/// How many frames did not fit into the queue of a packet socket since the last call.
pub(crate) fn frames_missed(fd: impl AsFd) -> Result<u32, Errno> {
    // SAFETY: all-zero bytes are valid counters.
    let mut counters: libc::tpacket_stats = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    let place = (&raw mut counters).cast();
    // SAFETY: pointer and length describe the counters, which live until the call returns.
    let result = unsafe { libc::getsockopt(fd.as_fd().as_raw_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, place, &raw mut length) };
    if result == 0 { Ok(counters.tp_drops) } else { Err(last_errno()) }
}

/// Puts a descriptor under the watch of the caller's runtime.
pub(crate) fn watch(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is the same open descriptor for as long as it lives, and nothing takes it out before it is dropped.
    unsafe { AsyncFd::register(fd) }.map_err(std::io::Error::from)
}

/// Whether a process could give itself these namespaces, tried by a child that does nothing else.
pub(crate) fn try_unshare(flags: rustix::thread::UnshareFlags) -> Result<(), Errno> {
    // SAFETY: the child of a process with several threads may only make system calls; it makes two and allocates nothing.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: plain system calls on integers; _exit runs no destructors and returns to nobody.
        unsafe {
            let failed = libc::unshare(flags.bits() as i32) != 0;
            libc::_exit(if failed { *libc::__errno_location() } else { 0 });
        }
    }
    if child < 0 {
        return Err(last_errno());
    }
    let pid = rustix::process::Pid::from_raw(child).ok_or(Errno::IO)?;
    let ended = rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()))?;
    match ended.and_then(|(_, status)| status.exit_status()) {
        Some(0) => Ok(()),
        Some(code) => Err(Errno::from_raw_os_error(code)),
        None => Err(Errno::IO),
    }
}

/// What passes a device of which a process is the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passes {
    /// IP packets: TUN.
    Packets,
    /// Ethernet frames: TAP.
    Frames,
}

/// A TUN or TAP device of this name in the namespace of the calling thread; it ends with the descriptor, which never blocks.
pub(crate) fn open_tun(name: &std::ffi::CStr, passes: Passes) -> Result<OwnedFd, Errno> {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
    let fd = rustix::fs::open("/dev/net/tun", flags, rustix::fs::Mode::empty())?;
    // SAFETY: all-zero bytes are a valid ifreq: arrays and integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (place, byte) in request.ifr_name.iter_mut().zip(name.to_bytes().iter().take(room)) {
        *place = *byte as libc::c_char;
    }
    let kind = if passes == Passes::Frames { libc::IFF_TAP } else { libc::IFF_TUN };
    request.ifr_ifru.ifru_flags = (kind | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call returns.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as libc::Ioctl, &raw mut request) };
    if result == 0 { Ok(fd) } else { Err(last_errno()) }
}
