//! Rules of policy routing as netlink messages, both ways.

use crate::{
    nl::{Attributes, Message, Refusal, Socket, read_ip, read_u16, read_u32},
    uapi::*,
};
use ipnet::IpNet;
use nsm_hop::kernel::Traffic;

/// Bytes of the fixed part of a rule message.
pub(crate) const RULE_FIXED: usize = 12;

/// A rule that sends traffic to a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) traffic: Traffic,
    pub(crate) table: u32,
    pub(crate) priority: u32,
    pub(crate) protocol: u8,
}

impl Rule {
    /// Adds or removes it. Never replaces one.
    pub(crate) fn message(&self, kind: u16) -> Message {
        let Traffic { ipv6, from, protocol, dst_ports, src_ports } = &self.traffic;
        let family = if *ipv6 { AF_INET6 } else { AF_INET };
        let fixed = [family, 0, from.map_or(0, |from| from.prefix_len()), 0, 0, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
        let flags = if kind == RTM_NEWRULE { NLM_F_CREATE | NLM_F_EXCL } else { 0 };
        let message = Message::new(kind, flags, &fixed).u32(FRA_TABLE, self.table).u32(FRA_PRIORITY, self.priority);
        let message = message.bytes(FRA_PROTOCOL, &[self.protocol]);
        let message = from.iter().fold(message, |message, from| message.ip(FRA_SRC, from.trunc().addr()));
        let message = protocol.iter().fold(message, |message, protocol| message.bytes(FRA_IP_PROTO, &[*protocol]));
        let ports = [(FRA_SPORT_RANGE, src_ports), (FRA_DPORT_RANGE, dst_ports)];
        ports
            .into_iter()
            .filter_map(|(kind, range)| Some((kind, (*range)?)))
            .fold(message, |message, (kind, (first, last))| message.bytes(kind, &[first.to_ne_bytes(), last.to_ne_bytes()].concat()))
    }

    fn parse(body: &[u8]) -> Option<Rule> {
        let (family, from_len, short_table) = (*body.first()?, *body.get(2)?, *body.get(4)?);
        let attribute = |kind| Attributes::after(body, RULE_FIXED).find(kind);
        let number = |kind| attribute(kind).and_then(|content| read_u32(content, 0));
        let ports = |kind| attribute(kind).and_then(|content| Some((read_u16(content, 0)?, read_u16(content, 2)?)));
        let byte = |kind| attribute(kind).and_then(|content| content.first().copied());
        let traffic = Traffic {
            ipv6: family == AF_INET6,
            from: attribute(FRA_SRC).and_then(read_ip).and_then(|ip| IpNet::new(ip, from_len).ok()),
            protocol: byte(FRA_IP_PROTO),
            dst_ports: ports(FRA_DPORT_RANGE),
            src_ports: ports(FRA_SPORT_RANGE),
        };
        let table = number(FRA_TABLE).unwrap_or(u32::from(short_table));
        Some(Rule { traffic, table, priority: number(FRA_PRIORITY).unwrap_or(0), protocol: byte(FRA_PROTOCOL).unwrap_or(0) })
    }
}

/// All rules of the socket's namespace.
pub(crate) fn rules(socket: &mut Socket) -> Result<Vec<Rule>, Refusal> {
    let replies = socket.dump(Message::new(RTM_GETRULE, 0, &[0; RULE_FIXED]))?;
    Ok(replies.iter().filter(|reply| reply.kind == RTM_NEWRULE).filter_map(|reply| Rule::parse(&reply.body)).collect())
}
