//! The network: what the kernel can, ports that must be free, and how large a packet may be.

use super::Finding;
use ipnet::IpNet;
use nsm_linux::net::{LinkInfo, Net, RouteInfo};
use std::{
    io,
    net::{TcpListener, UdpSocket},
};

/// Bytes that VXLAN over IPv4 adds to a packet.
const VXLAN_OVERHEAD: u32 = 50;
/// The smallest MTU with which IPv6 works.
const IPV6_MINIMUM: u32 = 1280;

pub(super) fn findings() -> Vec<Finding> {
    vec![
        port("UDP port 4789", "VXLAN between nodes", UdpSocket::bind("0.0.0.0:4789").map(drop)),
        port("TCP port 5001", "the manager towards other nodes", TcpListener::bind("0.0.0.0:5001").map(drop)),
        port("TCP port 5002", "the registry", TcpListener::bind("0.0.0.0:5002").map(drop)),
        uplink(),
    ]
}

fn port(check: &str, what: &str, bound: io::Result<()>) -> Finding {
    match bound {
        Ok(()) => Finding::ok(check, "free"),
        Err(problem) if problem.kind() == io::ErrorKind::AddrInUse => {
            Finding::warning(check, format!("in use; it is for {what}"), "fine when the mesh runs already, else choose another port")
        }
        Err(problem) => Finding::warning(check, problem.to_string(), format!("it is for {what}: choose another port")),
    }
}

fn uplink() -> Finding {
    let read = || {
        let net = Net::new(&nsm_linux::netns::current()?)?;
        Ok((net.links()?, net.routes()?))
    };
    match read() {
        Ok((links, routes)) => mtu(&links, &routes),
        Err(error) => nsm_error("MTU", &error),
    }
}

fn nsm_error(check: &str, error: &nsm_api::Error) -> Finding {
    Finding::warning(check, format!("{}: {}", error.object, error.reason), error.fix.clone())
}

/// The uplink is where the default route goes.
fn mtu(links: &[LinkInfo], routes: &[RouteInfo]) -> Finding {
    let is_default = |route: &&RouteInfo| {
        matches!(route.prefix, IpNet::V4(prefix) if prefix.prefix_len() == 0)
            || matches!(route.prefix, IpNet::V6(prefix) if prefix.prefix_len() == 0)
    };
    let uplink = routes.iter().find(is_default).and_then(|route| links.iter().find(|link| link.name == route.dev));
    let Some(uplink) = uplink else {
        return Finding::warning(
            "MTU",
            "no default route here, so no uplink to judge",
            "give --tunnel-ip an address that other nodes reach",
        );
    };
    let left = uplink.mtu.saturating_sub(VXLAN_OVERHEAD);
    let seen = format!("{} carries {} bytes, {left} inside VXLAN", uplink.name, uplink.mtu);
    if left < IPV6_MINIMUM {
        return Finding::warning("MTU", seen, format!("raise it to at least {} for IPv6 between nodes", IPV6_MINIMUM + VXLAN_OVERHEAD));
    }
    Finding::ok("MTU", seen)
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;

    fn link(name: &str, mtu: u32) -> LinkInfo {
        LinkInfo {
            index: 2,
            name: name.into(),
            alias: String::new(),
            kind: String::new(),
            mtu,
            mac: None,
            up: true,
            peer: None,
            master: None,
        }
    }
    fn route(prefix: &str, dev: &str) -> RouteInfo {
        RouteInfo { prefix: prefix.parse().unwrap(), via: None, dev: dev.into(), protocol: 2 }
    }

    #[test]
    fn the_uplink_decides_how_large_a_packet_may_be() {
        let links = [link("eth0", 1500), link("eth1", 1300)];
        let good = mtu(&links, &[route("10.0.0.0/8", "eth1"), route("0.0.0.0/0", "eth0")]);
        assert_eq!((good.state, good.seen.as_str()), (Health::Ok, "eth0 carries 1500 bytes, 1450 inside VXLAN"));
        assert_eq!(mtu(&links, &[route("::/0", "eth1")]).state, Health::Warning);
        assert_eq!(mtu(&links, &[]).state, Health::Warning);
    }

    #[test]
    fn a_taken_port_is_a_warning() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let again = UdpSocket::bind(taken.local_addr().unwrap()).map(drop);
        assert_eq!(port("p", "x", again).state, Health::Warning);
        assert_eq!(port("p", "x", Ok(())).state, Health::Ok);
    }
}
