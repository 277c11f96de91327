//! The system calls for which `rustix` has no safe wrapper, and the wiping of foreign types. All `unsafe` of this crate.

use rustix::io::Errno;
use std::{
    mem::MaybeUninit,
    ops::{Deref, DerefMut},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    ptr,
    time::Duration,
};
use zeroize::Zeroize;

/// Most datagrams, or runs of datagrams, of one system call.
pub(crate) const BATCH: usize = 16;
/// Bytes of room for one datagram, or one run of them.
pub(crate) const SLOT: usize = 65_536;
const SOL_UDP: libc::c_int = 17;
const UDP_SEGMENT: libc::c_int = 103;
const UDP_GRO: libc::c_int = 104;
/// Returns a descriptor of the namespace of a TUN device: `_IO('T', 227)`.
const TUNGETDEVNETNS: libc::Ioctl = 0x54e3;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;
const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb;

/// Why the last system call of this thread failed.
fn last_errno() -> Errno {
    Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

fn checked(result: libc::c_int) -> Result<libc::c_int, Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

/// The scheduler's settings of a thread, as far as every kernel knows them.
#[repr(C)]
#[derive(Default)]
struct Scheduling {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// Nanoseconds.
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// The calling thread runs for so long at a time, if it is an ordinary one; the rest of its settings stays.
pub(crate) fn take_turns(turn: Duration) -> Result<(), Errno> {
    let mut settings = Scheduling::default();
    let size = size_of::<Scheduling>();
    // SAFETY: the kernel writes at most `size` bytes, which `settings` has; any bytes are valid integers.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut settings, size, 0) };
    checked(got as libc::c_int)?;
    if ![libc::SCHED_OTHER, libc::SCHED_BATCH].contains(&(settings.policy as libc::c_int)) {
        return Ok(());
    }
    (settings.size, settings.runtime) = (size as u32, turn.as_nanos() as u64);
    // SAFETY: the kernel reads the number of bytes that `settings` says it has.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const settings, 0) };
    checked(set as libc::c_int).map(|_| ())
}

/// Something on the heap with secrets inside, whose own bytes are wiped when it is dropped.
pub(crate) struct WipedBox<T>(Option<Box<T>>);

impl<T> WipedBox<T> {
    pub(crate) fn new(value: T) -> WipedBox<T> {
        WipedBox(Some(Box::new(value)))
    }
}

impl<T> Deref for WipedBox<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is taken out only when dropped")
    }
}
impl<T> DerefMut for WipedBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("it is taken out only when dropped")
    }
}
impl<T> Drop for WipedBox<T> {
    fn drop(&mut self) {
        let Some(value) = self.0.take() else { return };
        let place = Box::into_raw(value);
        // SAFETY: `place` came from a box and is used by nobody else. After the value is dropped its bytes are plain memory
        // of the size and alignment of `T`, which `MaybeUninit<T>` allows to hold anything, so that the box of it frees the
        // same allocation without running anything.
        unsafe {
            ptr::drop_in_place(place);
            std::slice::from_raw_parts_mut(place.cast::<MaybeUninit<u8>>(), size_of::<T>()).zeroize();
            drop(Box::from_raw(place.cast::<MaybeUninit<T>>()));
        }
    }
}

/// Makes a device of this name that carries frames in the namespace of the calling thread, or attaches to the one that is there.
pub(crate) fn tun_attach(file: impl AsFd, name: &str) -> Result<(), Errno> {
    // SAFETY: all-zero bytes are a valid ifreq: arrays and integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    if name.len() > room {
        return Err(Errno::INVAL);
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call returns.
    checked(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), libc::TUNSETIFF as libc::Ioctl, &raw mut request) }).map(|_| ())
}

/// What the kernel may leave to us on a TUN device: bits of `TUN_F_*`.
pub(crate) fn tun_offload(file: impl AsFd, bits: u32) -> Result<(), Errno> {
    // SAFETY: the argument is a number, not a pointer.
    checked(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(bits)) }).map(|_| ())
}

/// Bytes of the offload header of a TUN device.
pub(crate) fn tun_header(file: impl AsFd, bytes: i32) -> Result<(), Errno> {
    // SAFETY: the call reads one int, which lives until it returns.
    checked(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), TUNSETVNETHDRSZ, &raw const bytes) }).map(|_| ())
}

/// The TUN device outlives its descriptor.
pub(crate) fn tun_persist(file: impl AsFd) -> Result<(), Errno> {
    // SAFETY: the argument is a number, not a pointer.
    checked(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), TUNSETPERSIST, 1 as libc::c_ulong) }).map(|_| ())
}

/// The namespace in which a TUN device lives.
pub(crate) fn tun_netns(file: impl AsFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes no argument.
    let fd = checked(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), TUNGETDEVNETNS) })?;
    // SAFETY: the call returned a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets an integer option of a socket.
fn set_option(socket: impl AsFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> Result<(), Errno> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: pointer and length describe one int, which lives until the call returns.
    checked(unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw const value).cast(), length) }).map(|_| ())
}

/// Datagrams of one size that arrive together are handed over together.
pub(crate) fn receive_runs(socket: impl AsFd) -> Result<(), Errno> {
    set_option(socket, SOL_UDP, UDP_GRO, 1)
}

/// Datagrams that are too long for the way are fragmented, as the kernel's WireGuard does.
pub(crate) fn allow_fragments(socket: impl AsFd, ipv6: bool) -> Result<(), Errno> {
    match ipv6 {
        true => set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
        false => set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
    }
}

/// Datagrams in a row: all of `segment` bytes but perhaps a shorter last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: usize,
    pub(crate) length: usize,
    pub(crate) segment: usize,
}

/// Room for one control message with a number in it, aligned as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(align(8))]
struct Control([u8; 64]);

/// Sends runs of `buffer`, at most [`BATCH`], on a connected socket; how many the kernel took.
pub(crate) fn send_runs(socket: impl AsFd, buffer: &[u8], runs: &[Run]) -> Result<usize, Errno> {
    let mut parts = [const { MaybeUninit::<libc::iovec>::uninit() }; BATCH];
    let mut controls = [Control([0; 64]); BATCH];
    // SAFETY: all-zero bytes are valid message headers: null pointers and integers.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    let count = runs.len().min(BATCH);
    for (number, run) in runs[..count].iter().enumerate() {
        let bytes = &buffer[run.start..run.start + run.length];
        let part = parts[number].write(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
        let header = &mut messages[number].msg_hdr;
        header.msg_iov = part;
        header.msg_iovlen = 1;
        if run.length > run.segment {
            let control = &mut controls[number].0;
            header.msg_control = control.as_mut_ptr().cast();
            // SAFETY: the sizes are computed from constants; the control buffer is larger and aligned, so the first
            // header and the two bytes after it lie inside.
            unsafe {
                header.msg_controllen = libc::CMSG_SPACE(2) as _;
                let first = libc::CMSG_FIRSTHDR(header);
                (*first).cmsg_level = SOL_UDP;
                (*first).cmsg_type = UDP_SEGMENT;
                (*first).cmsg_len = libc::CMSG_LEN(2) as _;
                libc::CMSG_DATA(first).cast::<u16>().write_unaligned(run.segment as u16);
            }
        }
    }
    // SAFETY: the first `count` headers point to parts and controls on this stack and to `buffer`, which the kernel only
    // reads, and all live until the call returns.
    let sent =
        checked(unsafe { libc::sendmmsg(socket.as_fd().as_raw_fd(), messages.as_mut_ptr(), count as libc::c_uint, libc::MSG_NOSIGNAL) })?;
    Ok(sent as usize)
}

/// Receives up to `runs.len()` runs, each into its slot of `buffer`, without waiting; how many came.
pub(crate) fn receive_into(socket: impl AsFd, buffer: &mut [u8], runs: &mut [Run]) -> Result<usize, Errno> {
    let count = runs.len().min(BATCH).min(buffer.len() / SLOT);
    let mut parts = [const { MaybeUninit::<libc::iovec>::uninit() }; BATCH];
    let mut controls = [Control([0; 64]); BATCH];
    // SAFETY: all-zero bytes are valid message headers: null pointers and integers.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    for (number, slot) in buffer.chunks_exact_mut(SLOT).take(count).enumerate() {
        let header = &mut messages[number].msg_hdr;
        header.msg_iov = parts[number].write(libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: SLOT });
        header.msg_iovlen = 1;
        header.msg_control = controls[number].0.as_mut_ptr().cast();
        header.msg_controllen = 64;
    }
    let (fd, flags, no_time) = (socket.as_fd().as_raw_fd(), libc::MSG_DONTWAIT, ptr::null_mut());
    // SAFETY: the first `count` headers point to disjoint slots of `buffer`, which is borrowed for writing, and to parts
    // and controls on this stack, all with their lengths; all live until the call returns.
    let came = checked(unsafe { libc::recvmmsg(fd, messages.as_mut_ptr(), count as libc::c_uint, flags as _, no_time) })? as usize;
    for (number, message) in messages[..came].iter().enumerate() {
        let length = (message.msg_len as usize).min(SLOT);
        runs[number] = Run { start: number * SLOT, length, segment: segment_of(&message.msg_hdr).unwrap_or(length) };
    }
    Ok(came)
}

/// The size that the kernel says the datagrams of a run have.
fn segment_of(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the header and its control buffer were filled by the kernel, which sets the length to what it wrote, and
    // both are alive; the macros stay inside that length. The data of this message is one int.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while let Some(found) = control.as_ref() {
            if found.cmsg_level == SOL_UDP && found.cmsg_type == UDP_GRO {
                let size = libc::CMSG_DATA(control).cast::<libc::c_int>().read_unaligned();
                return usize::try_from(size).ok().filter(|size| *size > 0);
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_wiped_box_drops_its_value_once() {
        static DROPPED: AtomicUsize = AtomicUsize::new(0);
        struct Counted(Vec<u8>);
        impl Drop for Counted {
            fn drop(&mut self) {
                DROPPED.fetch_add(self.0.len(), Ordering::Relaxed);
            }
        }
        let mut boxed = WipedBox::new(Counted(vec![1, 2]));
        boxed.0.as_mut().unwrap().0.push(3);
        assert_eq!(boxed.0.as_ref().unwrap().0, [1, 2, 3]);
        drop(boxed);
        assert_eq!(DROPPED.load(Ordering::Relaxed), 3);
    }
}
