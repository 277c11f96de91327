//! Reads what endpoints give their clients besides addresses.

use super::{ADDRESS, PREFIX, fields::Fields, part_of};
use crate::schema::{DnsServers, PrefixServer};
use ipnet::IpNet;
use std::net::IpAddr;

/// A server of prefixes.
pub(super) fn prefix_server(mut fields: Fields<'_>) -> Option<PrefixServer> {
    let (name, prefix) = (fields.need_text("name"), fields.need("prefix", PREFIX));
    let client_prefix_len = fields.need("clientPrefixLen", "a number");
    let part = part_of(&mut fields);
    fields.finish();
    Some(PrefixServer { name, prefix: prefix?, client_prefix_len: client_prefix_len?, part })
}

/// Name servers.
pub(super) fn dns_servers(mut fields: Fields<'_>) -> DnsServers {
    let read = DnsServers { servers: fields.parses("servers", ADDRESS), search: fields.texts("search") };
    fields.finish();
    read
}

/// Policy routes as they were written: the endpoint reads them itself. Here are only the mistakes noted.
pub(super) fn policy_routes(fields: &mut Fields<'_>) -> Option<String> {
    for mut policy in fields.maps("policyRoutes") {
        let _: Option<IpNet> = policy.parse("from", PREFIX);
        for key in ["proto", "dstport", "srcport"] {
            policy.text(key);
        }
        for mut route in policy.maps("routes") {
            let _: Option<IpNet> = route.need("prefix", PREFIX);
            let _: Option<IpAddr> = route.parse("nexthop", ADDRESS);
            route.finish();
        }
        policy.finish();
    }
    fields.take("policyRoutes").map(|list| serde_yaml_ng::to_string(list).expect("what came from YAML is YAML"))
}
