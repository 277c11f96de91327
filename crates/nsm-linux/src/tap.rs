//! A link of which this process is the other end: what the namespace sends comes out of a descriptor, frame by frame.
//!
//! The kernel splits long packets and fills in checksums before it hands them over, so a frame is what would be on a wire.
//! Not here: what is done with the frames.

use crate::{error::refused, netns, sys};
use nsm_api::{Error, Result};
use nsm_hop::kernel::Netns;
use std::{ffi::CString, os::fd::OwnedFd};

/// Bytes of an Ethernet frame before the packet.
pub const ETHERNET_BYTES: usize = 14;

/// Makes a TAP device of this name in the namespace, down. It lives as long as the descriptor, which never blocks: one read
/// is one frame from the namespace, one write is one frame into it.
pub fn open(netns: &Netns, name: &str) -> Result<OwnedFd> {
    let object = || format!("TAP device {name:?} in network namespace {}", netns.key.ino);
    let text = CString::new(name).map_err(|_| Error::invalid(object(), "its name holds a zero byte", "choose another name"))?;
    let opened = netns::run_in_blocking(netns, move || sys::open_tun(&text, sys::Passes::Frames))?;
    opened.map_err(|errno| refused(object(), "make it", errno))
}
