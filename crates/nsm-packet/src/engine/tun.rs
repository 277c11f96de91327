//! The interface inside the pod.

use super::{Device, owner, taken};
use crate::{
    error::refused,
    netns,
    rtnl::{Looks, Rtnl},
    segment::vnet::VNET_BYTES,
    sys,
};
use nsm_api::{Error, Result};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

/// What the kernel may leave to us: checksums, large TCP of both versions with and without ECN.
const OFFLOAD_TCP: u32 = 0x01 | 0x02 | 0x04 | 0x08;
/// And large UDP of both versions.
const OFFLOAD_UDP: u32 = 0x20 | 0x40;
/// So many segments of a large packet fit into one run of datagrams at an MTU of 1500.
const MAX_SEGMENTS: u32 = 45;

/// An open interface.
#[derive(Clone, Debug)]
pub(crate) struct Tun {
    pub(crate) file: Arc<OwnedFd>,
    pub(crate) index: u32,
    /// Whether the kernel takes and gives large UDP packets.
    pub(crate) udp: bool,
}

/// Makes the interface, finds it again by name and tag, or changes the one that is open already.
pub(super) fn open(device: &Device, known: Option<&Tun>) -> Result<Tun> {
    netns::run_in(Some(device.netns.as_fd()), || {
        let rtnl = Rtnl::new()?;
        let looks = Looks { alias: &device.tag, group: device.group, mtu: device.mtu, segments: MAX_SEGMENTS };
        if let Some(known) = known
            && rtnl.index(&device.name)? == Some(known.index)
        {
            rtnl.dress(known.index, looks)?;
            return Ok(known.clone());
        }
        if let Some(index) = rtnl.index(&device.name)? {
            let tag = rtnl.alias(index)?;
            if owner(&tag) != owner(&device.tag) {
                return Err(taken(&device.name, &tag));
            }
        }
        attach(device, &rtnl, looks)
    })
}

/// Whether the interface of a device is still there under its name.
pub(super) fn in_place(device: &Device, known: &Tun) -> Result<bool> {
    netns::run_in(Some(device.netns.as_fd()), || Ok(Rtnl::new()?.index(&device.name)? == Some(known.index)))
}

fn attach(device: &Device, rtnl: &Rtnl, looks: Looks<'_>) -> Result<Tun> {
    let failed = |doing: &'static str| move |errno: Errno| refused(format!("interface {:?}", device.name), doing, errno);
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open("/dev/net/tun", flags, Mode::empty()).map_err(|errno| Error {
        fix: "let this process open it (mode 0666 is usual), or modprobe tun".into(),
        ..failed("open /dev/net/tun")(errno)
    })?;
    sys::tun_attach(&file, &device.name).map_err(failed("make it"))?;
    sys::tun_header(&file, VNET_BYTES as i32).map_err(failed("set its offload header"))?;
    let udp = sys::tun_offload(&file, OFFLOAD_TCP | OFFLOAD_UDP).is_ok();
    if !udp {
        sys::tun_offload(&file, OFFLOAD_TCP).map_err(failed("set its offloads"))?;
    }
    let index = rtnl.index(&device.name)?.ok_or_else(|| failed("find it")(Errno::NODEV))?;
    rtnl.dress(index, looks)?;
    // Only now that it says whose it is may it outlive us.
    sys::tun_persist(&file).map_err(failed("make it last"))?;
    Ok(Tun { file: Arc::new(file), index, udp })
}

/// Removes the interface, whoever still has it open.
pub(super) fn delete(tun: &Tun) -> Result<()> {
    let netns = match sys::tun_netns(&tun.file) {
        Ok(netns) => netns,
        Err(Errno::BADFD | Errno::NODEV) => return Ok(()), // it went before us
        Err(errno) => return Err(refused(format!("interface {}", tun.index), "find its namespace", errno)),
    };
    netns::run_in(Some(netns.as_fd()), || Rtnl::new()?.delete(tun.index))
}
