//! What a process sees of the network at its first look: `nsm lab look`. The stand-in for an application in a pod, and
//! what a person asks for inside one (`nsm lab exec POD -- nsm lab look`), where neither `ip` nor `ping` is needed.

use crate::places::is_own_address;
use ipnet::IpNet;
use nsm_api::Result;
use nsm_linux::{
    net::{Net, RouteInfo},
    netns, probe,
};
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// What is sent to a TCP server and must come back.
pub(crate) const GREETING: &[u8] = b"nsm lab\n";

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenInterface {
    /// Its name.
    pub name: String,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Its addresses, link-local ones aside.
    pub addresses: Vec<IpNet>,
}

/// One route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenRoute {
    /// Where to.
    pub to: IpNet,
    /// Next hop.
    pub via: Option<IpAddr>,
    /// Interface.
    pub dev: String,
}

/// Everything seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// In the order of their index.
    pub interfaces: Vec<SeenInterface>,
    /// Sorted.
    pub routes: Vec<SeenRoute>,
    /// Whether the asked-for peer answered an echo.
    pub ping: Option<bool>,
    /// Whether the asked-for server echoed.
    pub tcp: Option<bool>,
}

/// Looks around in the namespace of this process.
pub(crate) async fn look(ping: Option<IpAddr>, tcp: Option<SocketAddr>) -> Result<Look> {
    let here = netns::current()?;
    let net = Net::new(&here)?;
    let addresses = net.addresses()?;
    let of = |name: &str| addresses.iter().filter(|a| a.dev == name && is_own_address(a.address.addr())).map(|a| a.address).collect();
    let links = net.links()?.into_iter();
    let interfaces = links.map(|link| SeenInterface { addresses: of(&link.name), name: link.name, mtu: link.mtu, up: link.up }).collect();
    let mut seen = Look { interfaces, routes: routes(&net)?, ping: None, tcp: None };
    if let Some(to) = ping {
        seen.ping = Some(probe::ping(&here, probe::PingOptions::once(to)).await?.complete());
    }
    if let Some(to) = tcp {
        seen.tcp = Some(probe::tcp_get(&here, to, GREETING, PATIENCE).await.is_ok_and(|answer| answer == GREETING));
    }
    Ok(seen)
}

/// The main table without what the kernel makes for link-local addresses and multicast.
pub(crate) fn routes(net: &Net) -> Result<Vec<SeenRoute>> {
    let own = |route: &RouteInfo| is_own_address(route.prefix.addr()) && !route.prefix.addr().is_multicast();
    let seen = |route: RouteInfo| SeenRoute { to: route.prefix, via: route.via, dev: route.dev };
    Ok(net.routes()?.into_iter().filter(own).map(seen).collect())
}

impl Look {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut lines = Vec::new();
        for interface in &self.interfaces {
            let addresses: Vec<String> = interface.addresses.iter().map(ToString::to_string).collect();
            let state = if interface.up { "up" } else { "down" };
            lines.push(format!("{} {state} mtu {} {}", interface.name, interface.mtu, addresses.join(" ")).trim_end().to_owned());
        }
        for route in &self.routes {
            let via = route.via.map(|via| format!("via {via} ")).unwrap_or_default();
            lines.push(format!("route {} {via}dev {}", route.to, route.dev));
        }
        let word = |ok: bool| if ok { "answers" } else { "is silent" };
        lines.extend(self.ping.map(|ok| format!("ping: the peer {}", word(ok))));
        lines.extend(self.tcp.map(|ok| format!("tcp: the server {}", word(ok))));
        lines.join("\n")
    }
}
