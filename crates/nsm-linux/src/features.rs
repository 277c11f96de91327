//! What this machine's kernel and this process's rights allow, each found by really trying it in a namespace that is
//! thrown away.

use crate::{kernel, link::link_fixed, net::Net, netns, nl::Message, sys, uapi::*};
use nsm_api::{Error, Result};
use nsm_hop::kernel::Netns;
use rustix::thread::UnshareFlags;
use serde::Serialize;

/// One thing that the data path or the lab builds on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// What it is.
    pub name: &'static str,
    /// Whether it works here, now, for this process.
    pub present: bool,
    /// What does not work without it.
    pub needed_for: &'static str,
    /// What to do about its absence; empty when it is present.
    pub fix: String,
}

const ADMIN: &str = "run as root, or grant CAP_NET_ADMIN and CAP_SYS_ADMIN";
/// Number of the capability to administer networks.
const CAP_NET_ADMIN: u32 = 12;

/// Tries everything. Takes some milliseconds and leaves nothing behind.
pub fn features() -> Vec<Feature> {
    let netns = netns::create();
    let inside = |attempt: &dyn Fn(&Netns) -> Result<()>| netns.clone().and_then(|netns| attempt(&netns));
    let tried = [
        ("CAP_NET_ADMIN", net_admin(), "every change of a network", ADMIN),
        (
            "user namespace",
            user_namespace(),
            "a lab without root",
            "allow it: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, AppArmor's userns restriction",
        ),
        ("network namespace", netns.clone().map(|_| ()), "labs, and entering the namespaces of clients", ADMIN),
        ("veth", inside(&veth), "wires between two pods of one node", "modprobe veth"),
        ("VXLAN", inside(&|at| device(at, "vxlan")), "wires between two nodes", "modprobe vxlan"),
        ("bridge", inside(&|at| Net::new(at)?.bridge("probe")), "the links between the nodes of a lab", "modprobe bridge"),
        ("traffic redirection", inside(&redirect), "passthrough endpoints", "modprobe -a sch_ingress cls_u32 act_mirred"),
        (
            "WireGuard",
            inside(&|at| device(at, "wireguard")),
            "encrypted wires between nodes without a process of ours on their way (`nsm packet` carries them otherwise)",
            "modprobe wireguard",
        ),
        (
            "TUN",
            inside(&tun),
            "encrypted wires between nodes where the kernel has no WireGuard",
            "modprobe tun, and let this process open /dev/net/tun",
        ),
    ];
    tried.into_iter().map(|(name, result, needed_for, fix)| feature(name, result, needed_for, fix)).collect()
}

fn feature(name: &'static str, result: Result<()>, needed_for: &'static str, fix: &str) -> Feature {
    let advice = |error: &Error| format!("{fix} ({})", error.reason);
    Feature { name, present: result.is_ok(), needed_for, fix: result.as_ref().err().map(advice).unwrap_or_default() }
}

fn net_admin() -> Result<()> {
    let absent = || Error::new(nsm_api::Kind::Denied, "CAP_NET_ADMIN", "this process lacks it", ADMIN);
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).map(str::trim).unwrap_or_default();
    let set = u64::from_str_radix(effective, 16).unwrap_or(0);
    if set >> CAP_NET_ADMIN & 1 == 1 { Ok(()) } else { Err(absent()) }
}

fn user_namespace() -> Result<()> {
    sys::try_unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET)
        .map_err(|errno| crate::error::refused("a user namespace", "make it", errno))
}

fn veth(at: &Netns) -> Result<()> {
    Net::new(at)?.veth("probe-a", at, "probe-b")
}

fn device(at: &Netns, kind: &str) -> Result<()> {
    let identifier =
        |data: Message| if kind == "vxlan" { data.u32(IFLA_VXLAN_ID, 1).bytes(IFLA_VXLAN_PORT, &4789u16.to_be_bytes()) } else { data };
    let message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_fixed(0, 0, 0)).text(IFLA_IFNAME, kind);
    let message = message.nest(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, kind).nest(IFLA_INFO_DATA, identifier));
    let asked = crate::nl::Socket::open_in(at)?.ask(message);
    asked.map(|_| ()).map_err(|refusal| crate::error::refused(kind, "make a device", refusal))
}

fn redirect(at: &Netns) -> Result<()> {
    let net = Net::new(at)?;
    net.veth("probe-c", at, "probe-d")?;
    kernel::try_splice(at, "probe-c", "probe-d")
}

fn tun(at: &Netns) -> Result<()> {
    let tried = netns::run_in_blocking(at, || sys::open_tun(c"probe-tun", sys::Passes::Packets))?;
    tried.map(|_| ()).map_err(|errno| crate::error::refused("/dev/net/tun", "make a device", errno))
}
