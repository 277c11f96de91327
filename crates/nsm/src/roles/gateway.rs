//! `nsm endpoint router` and `nsm endpoint vpn-gateway`: ways to networks behind a pod (C-09, T-02).
//!
//! Both give addresses as `icmp-responder` does, and let the kernel of their pod route for their clients. The gateway's
//! network is at the other end of a WireGuard tunnel.

use super::{
    endpoint::{self, Config, ICMP_RESPONDER, Parts, responder},
    registration::own_netns,
};
use crate::{
    context::Context,
    settings::{Opt, Settings, Shape},
};
use ipnet::IpNet;
use nsm_api::*;
use nsm_endpoints::vpn::{Site, Tunnel};
use nsm_linux::nat;
use std::path::PathBuf;

const MASQUERADE: Opt = Opt::new(
    "masquerade",
    "NSM_MASQUERADE",
    "true",
    Shape::Bool,
    "Clients have this endpoint's address where they leave their own network, so nothing out there needs to know them",
);
/// Settings of `nsm endpoint router`: those of `icmp-responder` and one more.
pub const ROUTER: [Opt; ICMP_RESPONDER.len() + 1] = joined(ICMP_RESPONDER, [MASQUERADE]);
/// Settings of `nsm endpoint vpn-gateway`.
pub const VPN_GATEWAY: [Opt; ICMP_RESPONDER.len() + 3] = joined(
    ICMP_RESPONDER,
    [
        MASQUERADE,
        Opt::required(
            "wireguard-config",
            "NSM_WIREGUARD_CONFIG",
            "/etc/wireguard/corp.conf",
            Shape::File,
            "The tunnel, as wg-quick reads it: one [Interface], one [Peer]",
        ),
        Opt::new(
            "wireguard-interface",
            "NSM_WIREGUARD_INTERFACE",
            "vpn0",
            Shape::Text,
            "What the tunnel's interface is called in this pod",
        ),
    ],
);

const fn joined<const N: usize, const M: usize>(base: &[Opt], more: [Opt; N]) -> [Opt; M] {
    let mut all = [MASQUERADE; M];
    let (mut from, mut to) = (0, 0);
    while from < base.len() {
        all[to] = base[from];
        (from, to) = (from + 1, to + 1);
    }
    from = 0;
    while from < N {
        all[to] = more[from];
        (from, to) = (from + 1, to + 1);
    }
    all
}

/// `nsm endpoint router`
pub async fn router(mut settings: Settings, context: Context) -> Result<()> {
    let config = Config::read(&mut settings);
    let (parts, pools) = responder(&mut settings)?;
    let masquerade = settings.boolean("masquerade");
    settings.finish()?;
    route(config, (parts, pools), masquerade, context).await
}

/// `nsm endpoint vpn-gateway`
pub async fn vpn_gateway(mut settings: Settings, context: Context) -> Result<()> {
    let config = Config::read(&mut settings);
    let (mut parts, pools) = responder(&mut settings)?;
    let masquerade = settings.boolean("masquerade");
    let (path, interface): (PathBuf, String) = (settings.text("wireguard-config"), settings.text("wireguard-interface"));
    settings.finish()?;

    let site = Site::read(&path)?;
    parts.reserve.extend(site.offers());
    let tunnel = Tunnel::open(&own_netns()?, &interface, &site)?;
    let ended = route(config, (parts, pools), masquerade, context).await;
    tunnel.close()?;
    ended
}

/// Serves with a kernel that routes.
async fn route(config: Config, (parts, pools): (Parts, Vec<IpNet>), masquerade: bool, context: Context) -> Result<()> {
    let here = own_netns()?;
    endpoint::forward(&here)?;
    let name = config.name.clone();
    if masquerade {
        nat::masquerade(&here, name.as_str(), &pools)?;
    }
    let ended = config.serve(parts, context).await;
    if masquerade {
        nat::end(&here, name.as_str())?;
    }
    ended
}
