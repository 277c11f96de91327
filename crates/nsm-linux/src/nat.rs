//! Clients of a router behind its own address: what they send out of their network has the router's address on its way.
//!
//! One table for each router, by its name; it stays when the process ends, as the wires do, and is replaced in one step.

use crate::{
    error::refused,
    netns,
    nft::{self, Filters, Step},
    nl::Message,
    uapi::{NFPROTO_IPV4, NFPROTO_IPV6},
};
use ipnet::IpNet;
use nsm_api::Result;
use nsm_hop::kernel::Netns;
use std::net::IpAddr;

const CHAIN: &str = "source";
/// Where source translation stands among the chains of others.
const PRIORITY: i32 = 100;

fn table_of(name: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    format!("nsm-nat-{}", name.chars().map(safe).take(200).collect::<String>())
}

/// From now on the sources of these networks are translated where they leave them.
///
/// # Errors
/// [`nsm_api::Kind::Kernel`] where the kernel does not translate, or does not let this process ask for it.
pub fn masquerade(netns: &Netns, name: &str, networks: &[IpNet]) -> Result<()> {
    let table = table_of(name);
    let mut changes = vec![nft::table(&table), nft::delete_table(&table), nft::table(&table), nft::source_chain(&table, CHAIN, PRIORITY)];
    changes.extend(networks.iter().map(|network| rule(&table, network)));
    let mut filters = netns::run_in_blocking(netns, Filters::open)??;
    filters.commit(changes).map_err(|refusal| refused(format!("address translation {table}"), "make it", refusal))
}

/// Sources stay as they are again.
pub fn end(netns: &Netns, name: &str) -> Result<()> {
    let table = table_of(name);
    let mut filters = netns::run_in_blocking(netns, Filters::open)??;
    let ended = filters.commit(vec![nft::table(&table), nft::delete_table(&table)]);
    ended.map_err(|refusal| refused(format!("address translation {table}"), "remove it", refusal))
}

/// From the network to somewhere else.
fn rule(table: &str, network: &IpNet) -> Message {
    let (first, last) = (bytes(network.network()), bytes(network.broadcast()));
    let (protocol, source, destination) = if network.addr().is_ipv4() { (NFPROTO_IPV4, 12, 16) } else { (NFPROTO_IPV6, 8, 24) };
    let len = first.len() as u32;
    let at = |offset, inside| {
        [Step::LoadNetwork { offset, len, register: 0 }, Step::Between { register: 0, first: &first, last: &last, inside }]
    };
    let mut steps = vec![Step::Network(protocol)];
    steps.extend(at(source, true));
    steps.extend(at(destination, false));
    steps.push(Step::Masquerade);
    nft::rule(table, CHAIN, &steps)
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
