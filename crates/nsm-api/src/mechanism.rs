//! How one stretch of a vWire is made.

use crate::{Files, InodeKey, Unknown};
use serde::Serialize;
use std::{collections::BTreeMap, fmt, os::fd::OwnedFd, sync::Arc};

/// Parameter keys, spelled as on the wire.
pub mod params {
    /// Network namespace (or socket) of this leg's owner, `inode://dev/ino`.
    pub const INODE_URL: &str = "inodeURL";
    /// Interface name in that namespace.
    pub const NAME: &str = "name";
    /// Tunnel address of the side near the client.
    pub const SRC_IP: &str = "src_ip";
    /// Tunnel address of the side near the endpoint.
    pub const DST_IP: &str = "dst_ip";
    /// Tunnel port of the side near the client.
    pub const SRC_PORT: &str = "src_port";
    /// Tunnel port of the side near the endpoint.
    pub const DST_PORT: &str = "dst_port";
    /// Tunnel address of the client side before a border rewrote it.
    pub const ORIG_SRC_IP: &str = "orig_src_ip";
    /// Tunnel address of the endpoint side before a border rewrote it.
    pub const ORIG_DST_IP: &str = "orig_dst_ip";
    /// Tunnel key of the side near the client, base64.
    pub const SRC_PUBLIC_KEY: &str = "src_public_key";
    /// Tunnel key of the side near the endpoint, base64.
    pub const DST_PUBLIC_KEY: &str = "dst_public_key";
    /// VXLAN network identifier, decimal.
    pub const VNI: &str = "vni";
    /// Largest inner packet of the tunnel, decimal.
    pub const MTU: &str = "MTU";
}

/// Whether a mechanism joins two places of one node or of two.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Class {
    /// `LOCAL`
    #[serde(rename = "LOCAL")]
    Local,
    /// `REMOTE`
    #[serde(rename = "REMOTE")]
    Remote,
    /// A class of a newer version; passed on, never chosen.
    #[serde(untagged)]
    Other(String),
}

/// The kinds of mechanism that have a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MechanismKind {
    /// A kernel interface in the owner's network namespace.
    Kernel,
    /// A shared-memory interface.
    Memif,
    /// An Ethernet tunnel.
    Vxlan,
    /// An encrypted IP tunnel.
    Wireguard,
    /// An encrypted IP tunnel by IKEv2.
    Ipsec,
    /// A tagged stretch of a physical network.
    Vlan,
    /// A passed-through PCI function.
    Vfio,
    /// No interface at all.
    Noop,
    /// A kind of a newer version; passed on, never chosen.
    #[serde(untagged)]
    Other(String),
}

impl Class {
    /// The text on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Class::Local => "LOCAL",
            Class::Remote => "REMOTE",
            Class::Other(text) => text,
        }
    }
}

impl From<&str> for Class {
    fn from(text: &str) -> Class {
        match text {
            "LOCAL" => Class::Local,
            "REMOTE" => Class::Remote,
            other => Class::Other(other.to_owned()),
        }
    }
}

impl MechanismKind {
    /// The text on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            MechanismKind::Kernel => "KERNEL",
            MechanismKind::Memif => "MEMIF",
            MechanismKind::Vxlan => "VXLAN",
            MechanismKind::Wireguard => "WIREGUARD",
            MechanismKind::Ipsec => "IPSEC",
            MechanismKind::Vlan => "VLAN",
            MechanismKind::Vfio => "VFIO",
            MechanismKind::Noop => "NOOP",
            MechanismKind::Other(text) => text,
        }
    }
}

impl From<&str> for MechanismKind {
    fn from(text: &str) -> MechanismKind {
        match text {
            "KERNEL" => MechanismKind::Kernel,
            "MEMIF" => MechanismKind::Memif,
            "VXLAN" => MechanismKind::Vxlan,
            "WIREGUARD" => MechanismKind::Wireguard,
            "IPSEC" => MechanismKind::Ipsec,
            "VLAN" => MechanismKind::Vlan,
            "VFIO" => MechanismKind::Vfio,
            "NOOP" => MechanismKind::Noop,
            other => MechanismKind::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for MechanismKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One mechanism: an offer in a Request, or the choice in a Connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mechanism {
    /// Local or remote.
    #[serde(rename = "cls")]
    pub class: Class,
    /// Which kind.
    #[serde(rename = "type")]
    pub kind: MechanismKind,
    /// Details, by the keys of [`params`]; unknown keys are kept.
    pub parameters: BTreeMap<String, String>,
    /// Fields of newer versions.
    #[serde(skip)]
    pub unknown: Unknown,
}

impl Mechanism {
    /// A mechanism without parameters.
    pub fn new(class: Class, kind: MechanismKind) -> Mechanism {
        Mechanism { class, kind, parameters: BTreeMap::new(), unknown: Unknown::default() }
    }
    /// Sets one parameter.
    pub fn with(mut self, key: &str, value: impl ToString) -> Mechanism {
        self.set(key, value);
        self
    }
    /// Sets one parameter in place.
    pub fn set(&mut self, key: &str, value: impl ToString) {
        self.parameters.insert(key.to_owned(), value.to_string());
    }
    /// A parameter that is present and not empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.parameters.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }
    /// A parameter read as another type; `None` when absent or unreadable.
    pub fn parse<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.get(key)?.parse().ok()
    }
    /// The file named by `inodeURL`.
    pub fn inode(&self) -> Option<InodeKey> {
        InodeKey::parse(self.get(params::INODE_URL)?)
    }
    /// The file named by `inodeURL`, when it came with the message.
    pub fn file<'a>(&self, files: &'a Files) -> Option<&'a Arc<OwnedFd>> {
        files.get(self.inode()?)
    }
}
