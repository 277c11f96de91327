//! The table as messages: chains, sets, and rules as steps of the kernel's machine.
//!
//! ```text
//! out-W   ingress of the near device                     in-W    ingress of the far device
//!   neighbours; inspect-out; known flows;                  the same with inspect-in and rules-in
//!   rules-out; begin a flow; else drop
//! inspect-*  rules about payloads                         rules-*  deny: drop; permit: return
//! ```
//!
//! What passes is sent out of the other device. W is the near device and the indexes of both, so a device that was made
//! anew is another wire.
//!
//! Registers 0 to 10 hold the key of a flow: source, destination, protocol, ports; 15 holds what is compared.

use super::{Count, Direction, Rule, Rules, Verdict};
use crate::{
    nft::{Filters, NFGEN_FIXED, be, expression, header, nest},
    nl::{Attributes, Message, Refusal, Reply, read_text},
    uapi::*,
};
use ipnet::IpNet;
use std::{collections::BTreeMap, net::IpAddr};

/// Most flows of one family on one wire; further ones do not begin.
pub const MAX_FLOWS: u32 = 65_536;

/// Chains of a complete wire.
pub(super) const CHAINS_OF_A_WIRE: usize = 2;
const NETDEV: u8 = 5;
const INGRESS: u32 = 0;
const PRIORITY: u32 = 0;
/// Counted beside the rules of users.
const ESTABLISHED: &str = "established";
const DEFAULT: &str = "default";

const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_DELCHAIN: u16 = 5;
const NFT_MSG_DELRULE: u16 = 8;
const NFT_MSG_GETSET: u16 = 10;
const NFT_MSG_DELSET: u16 = 11;
const NFT_MSG_NEWOBJ: u16 = 18;
const NFT_MSG_GETOBJ: u16 = 19;
const NFT_MSG_DELOBJ: u16 = 20;
const NFTA_HOOK_DEV: u16 = 3;
const NFTA_SET_DESC: u16 = 9;
const NFTA_SET_DESC_SIZE: u16 = 1;
const NFTA_SET_TIMEOUT: u16 = 11;
const NFT_SET_TIMEOUT: u32 = 0x10;
const NFT_SET_EVAL: u32 = 0x20;
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFT_OBJECT_COUNTER: u32 = 1;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_OBJREF_IMM_TYPE: u16 = 1;
const NFTA_OBJREF_IMM_NAME: u16 = 2;
const NFTA_DYNSET_SET_NAME: u16 = 1;
const NFTA_DYNSET_OP: u16 = 3;
const NFTA_DYNSET_SREG_KEY: u16 = 4;
const NFTA_DYNSET_TIMEOUT: u16 = 6;
const NFT_DYNSET_OP_UPDATE: u32 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFT_JUMP: i32 = -3;
const NFT_RETURN: i32 = -5;
const NFT_META_PROTOCOL: u32 = 1;
const NFT_PAYLOAD_INNER_HEADER: u32 = 3;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;

const ARP: [u8; 2] = [0x08, 0x06];
const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN_OR_RST: u8 = 0x05;
const SYN: u8 = 0x02;
const SYN_AND_ACK: u8 = 0x12;
/// Router and neighbour solicitations and advertisements.
const NEIGHBOURS: (u8, u8) = (133, 136);
/// Register of what is compared.
const SCRATCH: u32 = 15;

/// How long a flow is remembered after its last packet, in milliseconds: before TCP is established, then, after its
/// end; UDP; anything else.
const TCP_BEGINS: u64 = 120_000;
const TCP_GOES_ON: u64 = 3_600_000;
const TCP_ENDS: u64 = 60_000;
const UDP_LASTS: u64 = 180_000;
const OTHER_LASTS: u64 = 60_000;

/// What differs between the two families.
struct Family {
    ethertype: [u8; 2],
    digit: char,
    icmp: u8,
    /// Where source, destination and protocol are in the network header; bytes of an address; bytes of a header without options.
    source: u32,
    destination: u32,
    protocol: u32,
    address: u32,
    header: u32,
    /// ICMP types: echo request and reply; first and last of the errors.
    echoes: [u8; 2],
    errors: (u8, u8),
}

const V4: Family = Family {
    ethertype: [0x08, 0x00],
    digit: '4',
    icmp: 1,
    source: 12,
    destination: 16,
    protocol: 9,
    address: 4,
    header: 20,
    echoes: [8, 0],
    errors: (3, 12),
};
const V6: Family = Family {
    ethertype: [0x86, 0xdd],
    digit: '6',
    icmp: 58,
    source: 8,
    destination: 24,
    protocol: 6,
    address: 16,
    header: 40,
    echoes: [128, 129],
    errors: (1, 4),
};

/// Which way a packet goes, as its flow sees it.
#[derive(Clone, Copy)]
enum Sense {
    /// As the flow began.
    Forth,
    /// An answer.
    Back,
}
const BOTH: [Sense; 2] = [Sense::Forth, Sense::Back];

impl Family {
    fn words(&self) -> u32 {
        self.address / 4
    }
    /// Register of the protocol in a key; ports follow.
    fn tail(&self) -> u32 {
        2 * self.words()
    }
    /// Bytes of the key of a flow, and of that of a pair of hosts.
    fn key(&self) -> (u32, u32) {
        (8 * self.words() + 12, 8 * self.words() + 4)
    }
    fn set(&self, kind: &str, wire: &str) -> String {
        format!("{kind}{}-{wire}", self.digit)
    }
}

/// Steps of one rule, one after the other.
struct Steps(Vec<Box<dyn Fn(Message) -> Message>>);

impl Steps {
    fn new() -> Steps {
        Steps(vec![])
    }
    fn then(mut self, step: impl Fn(Message) -> Message + 'static) -> Steps {
        self.0.push(Box::new(step));
        self
    }
    fn of(family: &Family) -> Steps {
        Steps::new().compare_meta(NFT_META_PROTOCOL, family.ethertype.to_vec())
    }
    fn meta(self, key: u32, register: u32) -> Steps {
        self.then(move |list| expression(list, "meta", |data| be(be(data, NFTA_META_DREG, NFT_REG32_00 + register), NFTA_META_KEY, key)))
    }
    fn compare_meta(self, key: u32, bytes: Vec<u8>) -> Steps {
        self.meta(key, SCRATCH).compare(SCRATCH, NFT_CMP_EQ, bytes)
    }
    fn transport(self, protocol: u8) -> Steps {
        self.compare_meta(NFT_META_L4PROTO, vec![protocol])
    }
    fn compare(self, register: u32, op: u32, bytes: Vec<u8>) -> Steps {
        self.then(move |list| {
            expression(list, "cmp", |data| {
                let data = be(be(data, NFTA_CMP_SREG, NFT_REG32_00 + register), NFTA_CMP_OP, op);
                nest(data, NFTA_CMP_DATA, |value| value.bytes(NFTA_DATA_VALUE, &bytes))
            })
        })
    }
    fn load(self, base: u32, (offset, len): (u32, u32), register: u32) -> Steps {
        self.then(move |list| {
            expression(list, "payload", |data| {
                let data = be(be(data, NFTA_PAYLOAD_DREG, NFT_REG32_00 + register), NFTA_PAYLOAD_BASE, base);
                be(be(data, NFTA_PAYLOAD_OFFSET, offset), NFTA_PAYLOAD_LEN, len)
            })
        })
    }
    fn load_network(self, at: (u32, u32), register: u32) -> Steps {
        self.load(NFT_PAYLOAD_NETWORK_HEADER, at, register)
    }
    fn load_transport(self, at: (u32, u32), register: u32) -> Steps {
        self.load(NFT_PAYLOAD_TRANSPORT_HEADER, at, register)
    }
    /// The register is from `first` to `last`, as bytes in the order of the wire.
    fn range(self, register: u32, first: Vec<u8>, last: Vec<u8>) -> Steps {
        let (sreg, op_kind, from, to) = (1, 2, 3, 4);
        self.then(move |list| {
            expression(list, "range", |data| {
                let data = be(be(data, sreg, NFT_REG32_00 + register), op_kind, 0);
                let data = nest(data, from, |value| value.bytes(NFTA_DATA_VALUE, &first));
                nest(data, to, |value| value.bytes(NFTA_DATA_VALUE, &last))
            })
        })
    }
    /// These bits of the TCP flags are so, or are not so.
    fn flags(self, mask: u8, op: u32, bits: u8) -> Steps {
        let (sreg, dreg, len, mask_kind, xor) = (1, 2, 3, 4, 5);
        let masked = move |list| {
            expression(list, "bitwise", |data| {
                let data = be(be(be(data, sreg, NFT_REG32_00 + SCRATCH), dreg, NFT_REG32_00 + SCRATCH), len, 1);
                let data = nest(data, mask_kind, |value| value.bytes(NFTA_DATA_VALUE, &[mask]));
                nest(data, xor, |value| value.bytes(NFTA_DATA_VALUE, &[0]))
            })
        };
        self.load_transport((13, 1), SCRATCH).then(masked).compare(SCRATCH, op, vec![bits])
    }
    fn zero(self, register: u32) -> Steps {
        self.then(move |list| {
            expression(list, "immediate", |data| {
                nest(be(data, NFTA_IMMEDIATE_DREG, NFT_REG32_00 + register), NFTA_IMMEDIATE_DATA, |value| {
                    value.bytes(NFTA_DATA_VALUE, &[0; 4])
                })
            })
        })
    }
    /// Loads the two hosts and the protocol of the packet, as its flow began.
    fn hosts(self, family: &Family, sense: Sense) -> Steps {
        let (first, second) = match sense {
            Sense::Forth => (family.source, family.destination),
            Sense::Back => (family.destination, family.source),
        };
        let loaded = self.load_network((first, family.address), 0).load_network((second, family.address), family.words());
        loaded.meta(NFT_META_L4PROTO, family.tail())
    }
    /// The whole key of a flow of TCP or UDP.
    fn with_ports(self, family: &Family, sense: Sense) -> Steps {
        let (first, second) = match sense {
            Sense::Forth => (0, 2),
            Sense::Back => (2, 0),
        };
        let tail = family.tail();
        self.hosts(family, sense).load_transport((first, 2), tail + 1).load_transport((second, 2), tail + 2)
    }
    /// That of echoes: their identifier stands for both ports.
    fn with_identifier(self, family: &Family, sense: Sense) -> Steps {
        let tail = family.tail();
        self.hosts(family, sense).load_transport((4, 2), tail + 1).load_transport((4, 2), tail + 2)
    }
    /// That of any other protocol.
    fn without_ports(self, family: &Family, sense: Sense) -> Steps {
        let tail = family.tail();
        self.hosts(family, sense).zero(tail + 1).zero(tail + 2)
    }
    /// The key of the flow whose packet an ICMP error encloses.
    fn enclosed(self, family: &Family, sense: Sense) -> Steps {
        let (inner, ports, tail) = (8, 8 + family.header, family.tail());
        let (hosts, order) = match sense {
            Sense::Forth => ((family.source, family.destination), (0, 2)),
            Sense::Back => ((family.destination, family.source), (2, 0)),
        };
        self.load_transport((inner + hosts.0, family.address), 0)
            .load_transport((inner + hosts.1, family.address), family.words())
            .load_transport((inner + family.protocol, 1), tail)
            .load_transport((ports + order.0, 2), tail + 1)
            .load_transport((ports + order.1, 2), tail + 2)
    }
    /// The key is in this set.
    fn known(self, set: &str) -> Steps {
        let set = set.to_owned();
        self.then(move |list| expression(list, "lookup", |data| be(data.text(NFTA_LOOKUP_SET, &set), NFTA_LOOKUP_SREG, NFT_REG32_00)))
    }
    /// The key is in this set from now on for so many milliseconds.
    fn remember(self, set: &str, time: u64) -> Steps {
        let set = set.to_owned();
        self.then(move |list| {
            expression(list, "dynset", |data| {
                let data = be(data.text(NFTA_DYNSET_SET_NAME, &set), NFTA_DYNSET_OP, NFT_DYNSET_OP_UPDATE);
                be(data, NFTA_DYNSET_SREG_KEY, NFT_REG32_00).bytes(NFTA_DYNSET_TIMEOUT, &time.to_be_bytes())
            })
        })
    }
    fn count(self, rule: &str) -> Steps {
        let rule = rule.to_owned();
        self.then(move |list| {
            expression(list, "objref", |data| be(data, NFTA_OBJREF_IMM_TYPE, NFT_OBJECT_COUNTER).text(NFTA_OBJREF_IMM_NAME, &rule))
        })
    }
    fn verdict(self, code: i32, chain: Option<String>) -> Steps {
        self.then(move |list| {
            expression(list, "immediate", |data| {
                let inner = |verdict: Message| {
                    let verdict = be(verdict, NFTA_VERDICT_CODE, code as u32);
                    chain.iter().fold(verdict, |verdict, chain| verdict.text(NFTA_VERDICT_CHAIN, chain))
                };
                let value = |data: Message| nest(data, NFTA_DATA_VERDICT, inner);
                nest(be(data, NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT), NFTA_IMMEDIATE_DATA, value)
            })
        })
    }
    /// The packet leaves by the device with this index, and no rule sees it any more.
    fn pass(self, device: u32) -> Steps {
        const NFTA_FWD_SREG_DEV: u16 = 1;
        self.then(move |list| {
            let list = expression(list, "immediate", |data| {
                let data = be(data, NFTA_IMMEDIATE_DREG, NFT_REG32_00 + SCRATCH);
                nest(data, NFTA_IMMEDIATE_DATA, |value| value.bytes(NFTA_DATA_VALUE, &device.to_ne_bytes()))
            });
            expression(list, "fwd", |data| be(data, NFTA_FWD_SREG_DEV, NFT_REG32_00 + SCRATCH))
        })
    }
    fn jump(chain: &str) -> Steps {
        Steps::new().verdict(NFT_JUMP, Some(chain.to_owned()))
    }
    /// As a rule at the end of a chain.
    fn rule(self, table: &str, chain: &str) -> Message {
        let message = netdev(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND).text(NFTA_RULE_TABLE, table).text(NFTA_RULE_CHAIN, chain);
        nest(message, NFTA_RULE_EXPRESSIONS, |list| self.0.iter().fold(list, |list, step| step(list)))
    }
}

fn netdev(message: u16, flags: u16) -> Message {
    Message::new(NFNL_SUBSYS_NFTABLES << 8 | message, flags, &header(NETDEV, 0))
}

fn chain(table: &str, name: &str) -> Message {
    netdev(NFT_MSG_NEWCHAIN, NLM_F_CREATE).text(NFTA_CHAIN_TABLE, table).text(NFTA_CHAIN_NAME, name)
}

/// A chain that sees what arrives at a device; what no rule passes on is dropped.
fn ingress(table: &str, name: &str, device: &str) -> Message {
    let hook = |hook| be(be(hook, NFTA_HOOK_HOOKNUM, INGRESS), NFTA_HOOK_PRIORITY, PRIORITY).text(NFTA_HOOK_DEV, device);
    be(nest(chain(table, name), NFTA_CHAIN_HOOK, hook), NFTA_CHAIN_POLICY, NF_DROP).text(NFTA_CHAIN_TYPE, "filter")
}

fn set(table: &str, name: &str, key_bytes: u32, id: u32) -> Message {
    let message = netdev(NFT_MSG_NEWSET, NLM_F_CREATE).text(NFTA_SET_TABLE, table).text(NFTA_SET_NAME, name);
    let message = be(be(message, NFTA_SET_FLAGS, NFT_SET_TIMEOUT | NFT_SET_EVAL), NFTA_SET_KEY_TYPE, 0);
    let message = be(be(message, NFTA_SET_KEY_LEN, key_bytes), NFTA_SET_ID, id);
    let message = message.bytes(NFTA_SET_TIMEOUT, &OTHER_LASTS.to_be_bytes());
    nest(message, NFTA_SET_DESC, |desc| be(desc, NFTA_SET_DESC_SIZE, MAX_FLOWS))
}

fn counter(table: &str, name: &str) -> Message {
    let message = netdev(NFT_MSG_NEWOBJ, NLM_F_CREATE).text(NFTA_OBJ_TABLE, table).text(NFTA_OBJ_NAME, name);
    nest(be(message, NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER), NFTA_OBJ_DATA, |data| data.bytes(NFTA_COUNTER_BYTES, &[0; 8]))
}

pub(super) fn delete_counter(table: &str, name: &str) -> Message {
    be(netdev(NFT_MSG_DELOBJ, 0).text(NFTA_OBJ_TABLE, table).text(NFTA_OBJ_NAME, name), NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER)
}

pub(super) fn delete_table(table: &str) -> Message {
    netdev(NFT_MSG_DELTABLE, 0).text(NFTA_TABLE_NAME, table)
}

fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::Out => "out",
        Direction::In => "in",
    }
}
const WAYS: [Direction; 2] = [Direction::Out, Direction::In];

/// The table and the chains that all wires share.
pub(super) fn skeleton(table: &str) -> Vec<Message> {
    let shared = WAYS.iter().flat_map(|way_of| ["inspect", "rules"].map(|kind| chain(table, &format!("{kind}-{}", way(*way_of)))));
    let counters = [ESTABLISHED, DEFAULT].map(|name| counter(table, name));
    [netdev(NFT_MSG_NEWTABLE, NLM_F_CREATE).text(NFTA_TABLE_NAME, table)].into_iter().chain(shared).chain(counters).collect()
}

/// What is counted with these rules.
pub(super) fn counted(rules: &Rules) -> impl Iterator<Item = &str> {
    rules.list.iter().map(|rule| rule.name.as_str()).chain([ESTABLISHED, DEFAULT])
}

/// One rule as its combinations of at most one network, port range and protocol each.
pub(super) fn spread(rule: &Rule) -> Vec<Rule> {
    fn each<T: Clone>(list: &[T]) -> Vec<Vec<T>> {
        if list.is_empty() { vec![vec![]] } else { list.iter().map(|item| vec![item.clone()]).collect() }
    }
    let mut all = vec![];
    for protocols in each(&rule.protocols) {
        for from in each(&rule.from) {
            for to in each(&rule.to) {
                for from_ports in each(&rule.from_ports) {
                    let one = |to_ports| Rule {
                        protocols: protocols.clone(),
                        from: from.clone(),
                        to: to.clone(),
                        from_ports: from_ports.clone(),
                        to_ports,
                        ..rule.clone()
                    };
                    all.extend(each(&rule.to_ports).into_iter().map(one));
                }
            }
        }
    }
    all.retain(|one| {
        one.from.iter().chain(&one.to).all(|net| net.addr().is_ipv4()) || one.from.iter().chain(&one.to).all(|net| net.addr().is_ipv6())
    });
    all
}

/// All rules anew.
pub(super) fn rules(table: &str, rules: &Rules, spread: &[Rule]) -> Vec<Message> {
    let mut messages: Vec<Message> = rules.list.iter().map(|rule| counter(table, &rule.name)).collect();
    for direction in WAYS {
        let (inspect, plain) = (format!("inspect-{}", way(direction)), format!("rules-{}", way(direction)));
        messages
            .extend([&inspect, &plain].map(|chain| netdev(NFT_MSG_DELRULE, 0).text(NFTA_RULE_TABLE, table).text(NFTA_RULE_CHAIN, chain)));
        for rule in spread.iter().filter(|rule| rule.direction == direction) {
            messages.push(user_rule(rule).rule(table, if rule.begins.is_empty() { &plain } else { &inspect }));
        }
        messages.push(last(rules.otherwise).rule(table, &plain));
    }
    messages
}

/// What holds where no rule fits.
fn last(otherwise: Verdict) -> Steps {
    let code = if otherwise == Verdict::Permit { NFT_RETURN } else { NF_DROP as i32 };
    Steps::new().count(DEFAULT).verdict(code, None)
}

fn user_rule(rule: &Rule) -> Steps {
    let ipv6 = rule.from.iter().chain(&rule.to).next().map(|net| net.addr().is_ipv6());
    let mut steps = match ipv6 {
        None => Steps::new(),
        Some(ipv6) => Steps::of(if ipv6 { &V6 } else { &V4 }),
    };
    for protocol in &rule.protocols {
        steps = steps.transport(*protocol);
    }
    let family = if ipv6 == Some(true) { &V6 } else { &V4 };
    for (nets, offset) in [(&rule.from, family.source), (&rule.to, family.destination)] {
        for net in nets {
            let (first, last) = bounds(net);
            steps = steps.load_network((offset, family.address), 0).range(0, first, last);
        }
    }
    for (ports, offset) in [(&rule.from_ports, 0), (&rule.to_ports, 2)] {
        for (first, last) in ports {
            steps = steps.load_transport((offset, 2), SCRATCH).range(SCRATCH, first.to_be_bytes().to_vec(), last.to_be_bytes().to_vec());
        }
    }
    if let Some(icmp_type) = rule.icmp_type {
        steps = steps.load_transport((0, 1), SCRATCH).compare(SCRATCH, NFT_CMP_EQ, vec![icmp_type]);
    }
    if !rule.begins.is_empty() {
        steps = steps.load(NFT_PAYLOAD_INNER_HEADER, (0, rule.begins.len() as u32), 0).compare(0, NFT_CMP_EQ, rule.begins.clone());
    }
    let code = if rule.verdict == Verdict::Permit { NFT_RETURN } else { NF_DROP as i32 };
    steps.count(&rule.name).verdict(code, None)
}

/// First and last address of a network.
fn bounds(net: &IpNet) -> (Vec<u8>, Vec<u8>) {
    let bytes = |address| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    (bytes(net.network()), bytes(net.broadcast()))
}

/// The two devices of a wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    /// Name and index of that towards the client.
    pub(super) near: (String, u32),
    /// The same towards the service.
    pub(super) far: (String, u32),
}

impl Ends {
    /// What the wire is called in the table.
    pub(super) fn wire(&self) -> String {
        format!("{}-{}-{}", self.near.0, self.near.1, self.far.1)
    }
}

/// Chains and sets of one wire.
pub(super) fn wire(table: &str, ends: &Ends) -> Vec<Message> {
    let (wire, mut messages) = (ends.wire(), vec![]);
    for (number, family) in (1..).step_by(3).zip([&V4, &V6]) {
        let (flow, pair) = family.key();
        let sets = [("flows", flow), ("ending", flow), ("pairs", pair)];
        messages.extend((number..).zip(sets).map(|(id, (kind, bytes))| set(table, &family.set(kind, &wire), bytes, id)));
    }
    for (direction, from, (_, to)) in [(Direction::Out, &ends.near, &ends.far), (Direction::In, &ends.far, &ends.near)] {
        let way = way(direction);
        let name = format!("{way}-{wire}");
        let pass = |steps: Vec<Steps>| steps.into_iter().map(|steps| steps.pass(*to));
        let jump = |kind| [Steps::jump(&format!("{kind}-{way}"))];
        let known = [&V4, &V6].into_iter().flat_map(|family| known_rules(family, &wire)).collect();
        let begin = [&V4, &V6].into_iter().flat_map(|family| begin_rules(family, &wire)).collect();
        let rules = pass(neighbours().into()).chain(jump("inspect")).chain(pass(known)).chain(jump("rules")).chain(pass(begin));
        messages.push(ingress(table, &name, &from.0));
        messages.extend(rules.chain(pass(vec![no_ip()])).map(|steps| steps.rule(table, &name)));
    }
    messages
}

/// What finds out who has which hardware address.
fn neighbours() -> [Steps; 2] {
    let icmp = Steps::of(&V6).transport(V6.icmp).load_transport((0, 1), SCRATCH);
    [Steps::new().compare_meta(NFT_META_PROTOCOL, ARP.to_vec()), icmp.range(SCRATCH, vec![NEIGHBOURS.0], vec![NEIGHBOURS.1])]
}

/// Other network protocols; they come so far only where everything is permitted that no rule denies.
fn no_ip() -> Steps {
    let other = Steps::new().meta(NFT_META_PROTOCOL, SCRATCH);
    [&V4, &V6].iter().fold(other, |steps, family| steps.compare(SCRATCH, NFT_CMP_NEQ, family.ethertype.to_vec()))
}

/// Packets of flows that have begun.
fn known_rules(family: &Family, wire: &str) -> Vec<Steps> {
    let (flows, ending, pairs) = (family.set("flows", wire), family.set("ending", wire), family.set("pairs", wire));
    let of = |protocol| Steps::of(family).transport(protocol);
    let passes = |steps: Steps| steps.count(ESTABLISHED);
    let mut all = vec![];
    for sense in BOTH {
        let end = of(TCP).flags(FIN_OR_RST, NFT_CMP_NEQ, 0).with_ports(family, sense).known(&flows);
        all.push(passes(end.remember(&flows, TCP_ENDS).remember(&ending, TCP_ENDS)));
        let going = || of(TCP).flags(SYN_AND_ACK, NFT_CMP_NEQ, SYN).with_ports(family, sense);
        all.push(passes(going().known(&ending)));
        all.push(passes(going().known(&flows).remember(&flows, TCP_GOES_ON).remember(&pairs, TCP_GOES_ON)));
        all.push(passes(of(UDP).with_ports(family, sense).known(&flows).remember(&flows, UDP_LASTS).remember(&pairs, UDP_LASTS)));
        for echo in family.echoes {
            let echo = of(family.icmp).load_transport((0, 1), SCRATCH).compare(SCRATCH, NFT_CMP_EQ, vec![echo]);
            all.push(passes(echo.with_identifier(family, sense).known(&flows).remember(&flows, OTHER_LASTS).remember(&pairs, OTHER_LASTS)));
        }
        all.push(passes(
            other(family).without_ports(family, sense).known(&flows).remember(&flows, OTHER_LASTS).remember(&pairs, OTHER_LASTS),
        ));
        let error = of(family.icmp).load_transport((0, 1), SCRATCH).range(SCRATCH, vec![family.errors.0], vec![family.errors.1]);
        all.push(passes(error.enclosed(family, sense).known(&flows)));
        all.extend(later_fragments(family).into_iter().map(|steps| passes(steps.hosts(family, sense).known(&pairs))));
    }
    all
}

/// Neither TCP nor UDP nor ICMP.
fn other(family: &Family) -> Steps {
    let all = Steps::of(family).meta(NFT_META_L4PROTO, SCRATCH);
    [TCP, UDP, family.icmp].iter().fold(all, |steps, protocol| steps.compare(SCRATCH, NFT_CMP_NEQ, vec![*protocol]))
}

/// Fragments that have no transport header.
fn later_fragments(family: &Family) -> Vec<Steps> {
    let offset = |steps: Steps, at, first: u16, last: u16| {
        steps.load_network((at, 2), SCRATCH).range(SCRATCH, first.to_be_bytes().to_vec(), last.to_be_bytes().to_vec())
    };
    if family.digit == '4' {
        return [0x0001, 0x2001].map(|first| offset(Steps::of(family), 6, first, first | 0x1fff)).into();
    }
    const FRAGMENT: u8 = 44;
    let extended = Steps::of(family).load_network((family.protocol, 1), SCRATCH).compare(SCRATCH, NFT_CMP_EQ, vec![FRAGMENT]);
    vec![offset(extended, family.header + 2, 8, u16::MAX)]
}

/// What a rule has permitted begins a flow.
fn begin_rules(family: &Family, wire: &str) -> Vec<Steps> {
    let (flows, pairs) = (family.set("flows", wire), family.set("pairs", wire));
    let of = |protocol| Steps::of(family).transport(protocol);
    let forth = Sense::Forth;
    [
        (of(TCP).with_ports(family, forth), TCP_BEGINS),
        (of(UDP).with_ports(family, forth), UDP_LASTS),
        (of(family.icmp).with_identifier(family, forth), OTHER_LASTS),
        (other(family).without_ports(family, forth), OTHER_LASTS),
    ]
    .into_iter()
    .map(|(steps, time)| steps.remember(&flows, time).remember(&pairs, time))
    .collect()
}

/// Takes the chains of a wire away, and what it remembers.
pub(super) fn remove_wire(table: &str, (wire, chains): (&str, &[String])) -> Vec<Message> {
    let delete = |chain: &String| netdev(NFT_MSG_DELCHAIN, 0).text(NFTA_CHAIN_TABLE, table).text(NFTA_CHAIN_NAME, chain);
    let mut messages: Vec<Message> = chains.iter().map(delete).collect();
    for family in [&V4, &V6] {
        let delete = |kind| netdev(NFT_MSG_DELSET, 0).text(NFTA_SET_TABLE, table).text(NFTA_SET_NAME, &family.set(kind, wire));
        messages.extend(["flows", "ending", "pairs"].map(delete));
    }
    messages
}

/// The wires of a table, each with its chains: its sets tell of it, even where the kernel removed its chains with a device.
pub(super) fn wires(filters: &mut Filters, table: &str) -> Result<BTreeMap<String, Vec<String>>, Refusal> {
    let texts = |replies: Vec<Reply>, (of_table, of_name): (u16, u16)| -> Vec<String> {
        let text = |reply: &Reply, kind| Attributes::after(&reply.body, NFGEN_FIXED).find(kind).map(read_text).unwrap_or_default();
        replies.iter().filter(|reply| text(reply, of_table) == table).map(|reply| text(reply, of_name)).collect()
    };
    let sets = filters.dump(netdev(NFT_MSG_GETSET, 0).text(NFTA_SET_TABLE, table))?;
    let sets = texts(sets, (NFTA_SET_TABLE, NFTA_SET_NAME));
    let mut found: BTreeMap<String, Vec<String>> =
        sets.iter().filter_map(|name| Some((name.strip_prefix("flows4-")?.to_owned(), vec![]))).collect();
    for chain in texts(filters.dump(netdev(NFT_MSG_GETCHAIN, 0))?, (NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME)) {
        let wire = ["out-", "in-"].iter().find_map(|way| chain.strip_prefix(way));
        if let Some(chains) = wire.and_then(|wire| found.get_mut(wire)) {
            chains.push(chain);
        }
    }
    Ok(found)
}

/// The names of all tables.
pub(super) fn tables(filters: &mut Filters) -> Result<Vec<String>, Refusal> {
    let replies = filters.dump(netdev(NFT_MSG_GETTABLE, 0))?;
    let name = |reply: &Reply| Attributes::after(&reply.body, NFGEN_FIXED).find(NFTA_TABLE_NAME).map(read_text);
    Ok(replies.iter().filter_map(name).collect())
}

/// The counters of a table.
pub(super) fn counts(filters: &mut Filters, table: &str) -> Result<Vec<Count>, Refusal> {
    let message = be(netdev(NFT_MSG_GETOBJ, 0).text(NFTA_OBJ_TABLE, table), NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER);
    let mut counts = vec![];
    for reply in filters.dump(message)? {
        let find = |kind| Attributes::after(&reply.body, NFGEN_FIXED).find(kind);
        if find(NFTA_OBJ_TABLE).map(read_text).as_deref() != Some(table) {
            continue;
        }
        let number = |kind| {
            let value: [u8; 8] = Attributes(find(NFTA_OBJ_DATA)?).find(kind)?.try_into().ok()?;
            Some(u64::from_be_bytes(value))
        };
        let rule = find(NFTA_OBJ_NAME).map(read_text).unwrap_or_default();
        counts.push(Count { rule, packets: number(NFTA_COUNTER_PACKETS).unwrap_or(0), bytes: number(NFTA_COUNTER_BYTES).unwrap_or(0) });
    }
    Ok(counts)
}
