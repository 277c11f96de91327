//! Encrypted tunnels, where the kernel itself cannot make them: the seam to the process that does.

use nsm_api::{InodeKey, Result};
use nsm_hop::kernel::{Iface, PublicKey, TunnelKey};
use std::net::SocketAddr;

/// A tunnel as it is to be made.
#[derive(Clone, Debug)]
pub struct EncryptedTunnel {
    /// The device: where it is born, and its name there.
    pub at: Iface,
    /// Whose it is: the alias and the group number that it carries from birth.
    pub mark: (String, u32),
    /// What it does.
    pub settings: TunnelSettings,
}

/// What a tunnel does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelSettings {
    /// Our key; its private half is needed to make a tunnel, and never told again.
    pub key: TunnelKey,
    /// Our address and port, in the namespace of the process that makes tunnels.
    pub local: SocketAddr,
    /// The other side's key.
    pub peer: PublicKey,
    /// The other side's address and port.
    pub remote: SocketAddr,
}

/// Makes encrypted tunnels. Every call blocks for as long as another process needs to answer.
pub trait Tunnels: Send + Sync {
    /// Makes a tunnel and its device, marked. One that is there with the same settings is a success; its device stays
    /// the same when the maker has been restarted meanwhile. Other settings for the same device are taken over.
    fn add(&self, tunnel: &EncryptedTunnel) -> Result<()>;
    /// The tunnel with this device, as it is; also when the device has gone and its maker still has the tunnel.
    fn find(&self, at: &Iface) -> Result<Option<TunnelSettings>>;
    /// Ends a tunnel, and its device unless that has gone before. One that is not there is a success.
    fn remove(&self, netns: InodeKey, name: &str) -> Result<()>;
}
