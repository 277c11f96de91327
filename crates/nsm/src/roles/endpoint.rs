//! `nsm endpoint KIND`: provides network services.
//!
//! `icmp-responder` gives its clients addresses and answers their pings; networks behind it become their routes.
//! `passthrough` joins each client to the next endpoint of the same service, chosen by labels of its own. `vl3` is in
//! a file of its own.

pub(crate) use super::provider::{Config, Parts, end_when_idle, forward};
use super::{
    guard,
    process::{CONNECT_TO, DIAL_TIMEOUT, MAX_TOKEN_LIFETIME, STATE_DIR, WORKLOAD_API},
    registration::own_netns,
};
use crate::{
    context::Context,
    settings::{self, Opt, Settings, Shape},
    watched::{self, Watched},
};
use ipnet::IpNet;
use nsm_api::*;
use nsm_hop::{
    mechanism::{KernelEnd, Negotiate},
    onward::{Chain, End},
    reserve::{Dns, Ipam, IpamPolicy, Policies, Routes},
    role::NoWires,
    wiring::SpliceWiring,
};
use std::path::PathBuf;

/// Settings of `nsm endpoint icmp-responder`.
pub const ICMP_RESPONDER: &[Opt] = &[
    WORKLOAD_API,
    MAX_TOKEN_LIFETIME,
    DIAL_TIMEOUT,
    STATE_DIR,
    CONNECT_TO,
    NAME,
    DIR,
    SERVICES,
    PAYLOAD,
    LABELS,
    REGISTER_SERVICE,
    UNREGISTER,
    guard::CLIENT_POLICIES,
    Opt::new("cidr-prefix", "NSM_CIDR_PREFIX", "169.254.0.0/16", Shape::Prefixes, "Addresses for endpoint and clients"),
    Opt::new("route", "NSM_ROUTES", "", Shape::List, "Networks behind this endpoint, as routes for its clients"),
    Opt::new(
        "ipam-policy",
        "NSM_IPAM_POLICY",
        "polite",
        Shape::OneOf(&["polite", "strict"]),
        "What happens to addresses that a client brings from another endpoint: polite keeps them, strict removes them",
    ),
    Opt::new(
        "dns-configs",
        "NSM_DNS_CONFIGS",
        "[]",
        Shape::Text,
        "Resolvers for its clients: [{\"dns_server_ips\":[\"10.0.0.53\"],\"search_domains\":[\"corp\"]}]",
    ),
    Opt::new(
        "pbr-config-path",
        "NSM_PBR_CONFIG_PATH",
        "/etc/policy-based-routing/config.yaml",
        Shape::Text,
        "File with policy routes for its clients; read again when it changes",
    ),
    IDLE_TIMEOUT,
];
/// Settings of `nsm endpoint passthrough`.
pub const PASSTHROUGH: &[Opt] = &[
    WORKLOAD_API,
    MAX_TOKEN_LIFETIME,
    DIAL_TIMEOUT,
    STATE_DIR,
    CONNECT_TO,
    NAME,
    DIR,
    SERVICES,
    PAYLOAD,
    LABELS,
    REGISTER_SERVICE,
    UNREGISTER,
    guard::CLIENT_POLICIES,
    IDLE_TIMEOUT,
    CLIENT_LABELS,
];
const NAME: Opt = Opt::new("name", "NSM_NAME", "icmp-server", Shape::Text, "Name of this process in paths and in the registry");
pub(crate) const DIR: Opt = Opt::new("dir", "NSM_BASE_DIR", "./", Shape::Directory, "Where its socket is made");
const SERVICES: Opt = Opt::new("service-names", "NSM_SERVICE_NAMES", "icmp-responder", Shape::List, "Services that it provides");
pub(crate) const PAYLOAD: Opt =
    Opt::new("payload", "NSM_PAYLOAD", "ETHERNET", Shape::OneOf(&["ETHERNET", "IP"]), "What the services carry, if it registers them");
pub(crate) const LABELS: Opt = Opt::new("labels", "NSM_LABELS", "", Shape::Map, "Labels that it advertises for its services");
pub(crate) const REGISTER_SERVICE: Opt =
    Opt::new("register-service", "NSM_REGISTER_SERVICE", "true", Shape::Bool, "Register the services, too");
pub(crate) const UNREGISTER: Opt = Opt::accepted("unregister-itself", "NSM_UNREGISTER_ITSELF");
pub(crate) const CLIENT_LABELS: Opt =
    Opt::new("client-labels", "NSM_CLIENT_LABELS", "", Shape::Map, "Labels of the onward Request, instead of the client's");
pub(crate) const IDLE_TIMEOUT: Opt =
    Opt::new("idle-timeout", "NSM_IDLE_TIMEOUT", "0", Shape::Duration, "End after so long without any client; 0: never");

/// `nsm endpoint icmp-responder`
pub async fn icmp_responder(mut settings: Settings, context: Context) -> Result<()> {
    let config = Config::read(&mut settings);
    let (parts, _) = responder(&mut settings)?;
    settings.finish()?;
    config.serve(parts, context).await
}

/// The parts of an endpoint that gives addresses and what belongs to them, and its pools.
pub(crate) fn responder(settings: &mut Settings) -> Result<(Parts, Vec<IpNet>)> {
    let pools = settings.prefix_groups("cidr-prefix");
    let routes: Vec<IpNet> = settings.list("route");
    let strictness = if settings.choice("ipam-policy") == "strict" { IpamPolicy::Strict } else { IpamPolicy::Polite };
    let dns: Vec<DnsConfig> = settings.read("dns-configs", settings::dns_configs);
    let policies: PathBuf = settings.text("pbr-config-path");
    let all = pools.concat();
    let parts = Parts {
        reserve: vec![
            Box::new(Negotiate(vec![Box::new(KernelEnd(own_netns()?))])),
            Box::new(Ipam::new(pools, strictness)),
            Box::new(Routes(routes)),
            Box::new(Policies(Watched::open(&policies, watched::policy_routes)?.into_current())),
            Box::new(Dns(dns)),
        ],
        onward: Box::new(End),
        wiring: Box::new(NoWires),
    };
    Ok((parts, all))
}

/// `nsm endpoint passthrough`
pub async fn passthrough(mut settings: Settings, context: Context) -> Result<()> {
    let config = Config::read(&mut settings);
    let labels = settings.map("client-labels");
    settings.finish()?;

    let netns = own_netns()?;
    let parts = Parts {
        reserve: vec![Box::new(Negotiate(vec![Box::new(KernelEnd(netns.clone()))]))],
        onward: Box::new(Chain { manager: config.manager.clone(), labels, netns }),
        wiring: Box::new(SpliceWiring),
    };
    config.serve(parts, context).await
}
