//! A network at the other end of a WireGuard tunnel: what its file says, and the tunnel itself.
//!
//! The file is the one that `wg-quick` reads, with one peer. `AllowedIPs` is the network behind it: routes of the pod and of
//! the clients. `DNS` is what clients ask for its names: addresses are servers, other words are domains to search.
//!
//! The tunnel is carried by threads of this process (`nsm-packet`); its interface, addresses and routes outlive the process,
//! and a successor finds them. Not here: `PostUp` and the like, which run programs, names instead of an address in
//! `Endpoint`, and several peers.

use ipnet::IpNet;
use nsm_api::{DnsConfig, Error, Result};
use nsm_hop::{
    kernel::Netns,
    reserve::{Dns, Routes},
    role::Reserve,
};
use nsm_linux::{net::Net, netns};
use nsm_packet::{Device, DeviceId, Engine, Options, PresharedKey, PrivateKey, PublicKey};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    str::FromStr,
};
use tracing::warn;

/// Largest packet in the tunnel where the file says none, bytes.
const MTU: u32 = 1420;
/// Whose the interface is.
const TAG: &str = "nsm-vpn";
/// Its group; by it nobody else looks for links.
const GROUP: u32 = 0;

/// What the file says.
#[derive(Debug)]
pub struct Site {
    private: PrivateKey,
    port: u16,
    addresses: Vec<IpNet>,
    dns: DnsConfig,
    mtu: u32,
    peer: PublicKey,
    preshared: Option<PresharedKey>,
    endpoint: SocketAddr,
    /// The networks behind the peer.
    networks: Vec<IpNet>,
}

impl Site {
    /// Reads the file.
    ///
    /// # Errors
    /// [`nsm_api::Kind::Invalid`] with its first mistake.
    pub fn read(path: &Path) -> Result<Site> {
        let wrong = |mistake: String| Error::invalid(format!("WireGuard configuration {}", path.display()), mistake, "correct the file");
        let text = std::fs::read_to_string(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        text.parse().map_err(wrong)
    }

    /// What clients get because of it: routes, and name servers.
    pub fn offers(&self) -> Vec<Box<dyn Reserve>> {
        let mut offers: Vec<Box<dyn Reserve>> = vec![Box::new(Routes(self.networks.clone()))];
        if !self.dns.dns_server_ips.is_empty() {
            offers.push(Box::new(Dns(vec![self.dns.clone()])));
        }
        offers
    }
}

impl FromStr for Site {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Site, String> {
        let mut entries = Entries::read(text)?;
        let addresses: Vec<IpNet> = entries.list("interface", "address")?;
        let dns = dns(&entries.texts("interface", "dns"));
        let networks: Vec<IpNet> = entries.list("peer", "allowedips")?;
        let site = Site {
            private: private(entries.need::<PublicKey>("interface", "privatekey")?)?,
            port: entries.optional("interface", "listenport")?.unwrap_or(51820),
            mtu: entries.optional("interface", "mtu")?.unwrap_or(MTU),
            peer: entries.need("peer", "publickey")?,
            preshared: entries.optional::<PublicKey>("peer", "presharedkey")?.map(|key| PresharedKey::new(*key.bytes())),
            endpoint: entries.need("peer", "endpoint")?,
            addresses,
            dns,
            networks: networks.iter().map(IpNet::trunc).collect(),
        };
        entries.finish()?;
        if site.networks.is_empty() || site.addresses.is_empty() {
            return Err("needs Address in [Interface] and AllowedIPs in [Peer]".to_owned());
        }
        if let Some(network) = site.networks.iter().find(|network| network.contains(&site.endpoint.ip())) {
            return Err(format!(
                "AllowedIPs has {network}, which contains the peer's own Endpoint: its datagrams would go into the tunnel"
            ));
        }
        Ok(site)
    }
}

/// Both kinds of keys are written in the same way.
fn private(written: PublicKey) -> std::result::Result<PrivateKey, String> {
    PrivateKey::new(*written.bytes()).map_err(|error| error.to_string())
}

fn dns(words: &[String]) -> DnsConfig {
    let (servers, domains): (Vec<String>, Vec<String>) = words.iter().cloned().partition(|word| word.parse::<IpAddr>().is_ok());
    DnsConfig { dns_server_ips: servers, search_domains: domains, ..DnsConfig::default() }
}

/// `key = value` of the two sections, keys and sections in lower case.
struct Entries(Vec<(String, String, String)>);

impl Entries {
    fn read(text: &str) -> std::result::Result<Entries, String> {
        let (mut section, mut peers, mut all) = (String::new(), 0, vec![]);
        for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).filter(|line| !line.is_empty()) {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = name.trim().to_ascii_lowercase();
                peers += usize::from(section == "peer");
            } else {
                let (key, value) = line.split_once('=').ok_or_else(|| format!("{line:?} is neither a section nor key = value"))?;
                all.push((section.clone(), key.trim().to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        if peers == 1 { Ok(Entries(all)) } else { Err(format!("has {peers} peers, must have one")) }
    }
    /// All words of a key, which then is known.
    fn texts(&mut self, section: &str, key: &str) -> Vec<String> {
        let (taken, rest) = std::mem::take(&mut self.0).into_iter().partition(|(of, name, _)| of == section && name == key);
        self.0 = rest;
        let taken: Vec<(String, String, String)> = taken;
        taken.iter().flat_map(|(_, _, value)| value.split(',')).map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
    }
    fn list<T: FromStr>(&mut self, section: &str, key: &str) -> std::result::Result<Vec<T>, String> {
        self.texts(section, key).iter().map(|text| text.parse().map_err(|_| format!("{key} {text:?} cannot be read"))).collect()
    }
    /// Secrets are not repeated in what is said about them.
    fn optional<T: FromStr>(&mut self, section: &str, key: &str) -> std::result::Result<Option<T>, String> {
        let texts = self.texts(section, key);
        match texts.as_slice() {
            [] => Ok(None),
            [text] => text.parse().map(Some).map_err(|_| format!("{key} in [{section}] cannot be read")),
            _ => Err(format!("{key} in [{section}] is there several times")),
        }
    }
    fn need<T: FromStr>(&mut self, section: &str, key: &str) -> std::result::Result<T, String> {
        self.optional(section, key)?.ok_or_else(|| format!("{key} in [{section}] is missing"))
    }
    fn finish(self) -> std::result::Result<(), String> {
        const WITHOUT_EFFECT: [&str; 3] = ["persistentkeepalive", "saveconfig", "table"];
        let other = self.0.into_iter().find(|(_, key, _)| !WITHOUT_EFFECT.contains(&key.as_str()));
        other.map_or(Ok(()), |(section, key, _)| Err(format!("{key} in [{section}] is not supported here")))
    }
}

/// A running tunnel.
pub struct Tunnel {
    engine: Engine,
    id: DeviceId,
}

impl Tunnel {
    /// Makes the interface in this namespace, or takes over that of a former process, with addresses and routes.
    ///
    /// # Errors
    /// What the kernel refuses, as an interface of that name which is somebody else's.
    pub fn open(here: &Netns, interface: &str, site: &Site) -> Result<Tunnel> {
        let engine = Engine::start(Options { workers: 1, ..Options::default() })?;
        let any: IpAddr = if site.endpoint.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let file = netns::file(here)?.try_clone().map_err(|error| Error::internal("a network namespace", error.to_string()))?;
        let state = engine.add(Device {
            netns: file,
            name: interface.to_owned(),
            tag: TAG.to_owned(),
            group: GROUP,
            mtu: site.mtu,
            private: site.private.clone(),
            peer: site.peer,
            preshared: site.preshared.clone(),
            listen: SocketAddr::new(any, site.port),
            endpoint: site.endpoint,
        })?;
        let tunnel = Tunnel { engine, id: state.id };
        configure(&Net::new(here)?, interface, site).inspect_err(|_| drop(tunnel.engine.remove(&tunnel.id)))?;
        Ok(tunnel)
    }

    /// Removes the interface, and so its addresses and routes.
    pub fn close(self) -> Result<()> {
        self.engine.remove(&self.id)
    }
}

fn configure(net: &Net, interface: &str, site: &Site) -> Result<()> {
    net.up(interface)?;
    let there = net.addresses()?;
    for address in site.addresses.iter().filter(|address| !there.iter().any(|known| known.dev == interface && known.address == **address)) {
        net.address_add(interface, *address)?;
    }
    // Whatever is not of the peer's networks does not come in by the tunnel.
    if let Err(error) = net.set_sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "1") {
        warn!(%error, "sources of what comes through the tunnel are not checked");
    }
    let there = net.routes()?;
    for network in site.networks.iter().filter(|network| !there.iter().any(|known| known.dev == interface && known.prefix == **network)) {
        net.route_add(*network, None, interface)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
# the office
[Interface]
PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=
Address = 10.200.0.2/32, fd00:200::2/128
DNS = 172.31.0.53, corp.example
[Peer]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
Endpoint = 198.51.100.2:51820   # its address outside
AllowedIPs = 172.31.0.9/16, 10.200.0.1/32
PersistentKeepalive = 25
";

    #[test]
    fn a_file_of_wg_quick_is_read() {
        let site: Site = FILE.parse().unwrap();
        assert_eq!((site.port, site.mtu, site.addresses.len()), (51820, MTU, 2));
        assert_eq!(site.networks, ["172.31.0.0/16".parse::<IpNet>().unwrap(), "10.200.0.1/32".parse().unwrap()]);
        assert_eq!(
            (&site.dns.dns_server_ips[..], &site.dns.search_domains[..]),
            (&["172.31.0.53".to_owned()][..], &["corp.example".to_owned()][..])
        );
        assert_eq!(site.offers().len(), 2);
    }

    #[test]
    fn mistakes_are_named_and_secrets_are_not_shown() {
        for (from, to, word) in [
            ("PrivateKey = yAnz5", "PrivateKey = y", "privatekey in [interface]"),
            ("Endpoint = 198.51.100.2:51820", "", "endpoint in [peer]"),
            ("DNS =", "PostUp =", "postup"),
            ("AllowedIPs = 172.31.0.9/16", "AllowedIPs = 0.0.0.0/0", "own Endpoint"),
            ("[Peer]", "[Peer]\n[Peer]", "2 peers"),
            ("Address = 10.200.0.2/32", "Address = 10.200.0.2/99", "10.200.0.2/99"),
        ] {
            let mistake = FILE.replacen(from, to, 1).parse::<Site>().unwrap_err();
            assert!(mistake.contains(word) && !mistake.contains("TF+lXX"), "{word}: {mistake}");
        }
    }
}
