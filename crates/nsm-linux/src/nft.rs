//! Packet filters as nftables has them: the messages for tables, chains, sets and rules, and the few expressions used here.
//!
//! Numbers inside are big-endian, registers are the four-byte ones. Not here: which filters exist and why.

use crate::{
    nl::{Attributes, Message, Part, Refusal, Reply, Socket, read_text},
    uapi::*,
};
use nsm_api::Result;
use rustix::io::Errno;

/// Bytes of the fixed part of a message.
pub(crate) const NFGEN_FIXED: usize = 4;

pub(crate) fn header(family: u8, resource: u16) -> [u8; NFGEN_FIXED] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

fn nft(message: u16, flags: u16) -> Message {
    Message::new(NFNL_SUBSYS_NFTABLES << 8 | message, flags, &header(NFPROTO_INET, 0))
}

pub(crate) fn be(message: Message, kind: u16, value: u32) -> Message {
    message.bytes(kind, &value.to_be_bytes())
}

pub(crate) fn nest(message: Message, kind: u16, fill: impl FnOnce(Message) -> Message) -> Message {
    message.nest(kind | NLA_F_NESTED, fill)
}

/// A socket for packet filters of the calling thread's namespace.
pub(crate) struct Filters(Socket);

impl Filters {
    pub(crate) fn open() -> Result<Filters> {
        Socket::open_to(Part::Filter).map(Filters)
    }
    /// All changes, or none.
    pub(crate) fn commit(&mut self, changes: Vec<Message>) -> std::result::Result<(), Refusal> {
        let bracket = |kind| Message::new(kind, 0, &header(0, NFNL_SUBSYS_NFTABLES));
        let done = self.0.transaction(bracket(NFNL_MSG_BATCH_BEGIN), changes, bracket(NFNL_MSG_BATCH_END));
        done.map_err(|(_, refusal)| refusal)
    }
    /// All objects that the request selects.
    pub(crate) fn dump(&mut self, message: Message) -> std::result::Result<Vec<Reply>, Refusal> {
        self.0.dump(message)
    }
    /// The names of all tables of this family.
    pub(crate) fn tables(&mut self) -> std::result::Result<Vec<String>, Refusal> {
        match self.0.dump(nft(NFT_MSG_GETTABLE, 0)) {
            Ok(replies) => {
                let name = |reply: &Reply| Attributes::after(&reply.body, NFGEN_FIXED).find(NFTA_TABLE_NAME).map(read_text);
                Ok(replies.iter().filter_map(name).collect())
            }
            Err(refusal) if [Errno::OPNOTSUPP, Errno::INVAL, Errno::PROTONOSUPPORT].contains(&refusal.errno) => Ok(vec![]),
            Err(refusal) => Err(refusal),
        }
    }
    /// The keys in a set.
    pub(crate) fn elements(&mut self, table: &str, set: &str) -> std::result::Result<Vec<Vec<u8>>, Refusal> {
        let message = nft(NFT_MSG_GETSETELEM, 0).text(NFTA_SET_ELEM_LIST_TABLE, table).text(NFTA_SET_ELEM_LIST_SET, set);
        let mut keys = vec![];
        for reply in self.0.dump(message)? {
            let Some(list) = Attributes::after(&reply.body, NFGEN_FIXED).find(NFTA_SET_ELEM_LIST_ELEMENTS) else { continue };
            let key = |element| Attributes(Attributes(element).find(NFTA_SET_ELEM_KEY)?).find(NFTA_DATA_VALUE);
            keys.extend(Attributes(list).filter_map(|(_, element)| key(element).map(<[u8]>::to_vec)));
        }
        Ok(keys)
    }
}

/// Makes a table unless it is there.
pub(crate) fn table(name: &str) -> Message {
    nft(NFT_MSG_NEWTABLE, NLM_F_CREATE).text(NFTA_TABLE_NAME, name)
}

/// Removes a table and all in it.
pub(crate) fn delete_table(name: &str) -> Message {
    nft(NFT_MSG_DELTABLE, 0).text(NFTA_TABLE_NAME, name)
}

/// Makes a chain that sees what arrives for this machine, unless it is there; what no rule decides is accepted.
pub(crate) fn input_chain(table: &str, name: &str, priority: i32) -> Message {
    let message = nft(NFT_MSG_NEWCHAIN, NLM_F_CREATE).text(NFTA_CHAIN_TABLE, table).text(NFTA_CHAIN_NAME, name);
    let hook = |hook| be(be(hook, NFTA_HOOK_HOOKNUM, NF_INET_LOCAL_IN), NFTA_HOOK_PRIORITY, priority as u32);
    be(nest(message, NFTA_CHAIN_HOOK, hook), NFTA_CHAIN_POLICY, NF_ACCEPT).text(NFTA_CHAIN_TYPE, "filter")
}

/// Makes a chain that may change the source of what begins to leave this machine, unless it is there.
pub(crate) fn source_chain(table: &str, name: &str, priority: i32) -> Message {
    const NF_INET_POST_ROUTING: u32 = 4;
    let message = nft(NFT_MSG_NEWCHAIN, NLM_F_CREATE).text(NFTA_CHAIN_TABLE, table).text(NFTA_CHAIN_NAME, name);
    let hook = |hook| be(be(hook, NFTA_HOOK_HOOKNUM, NF_INET_POST_ROUTING), NFTA_HOOK_PRIORITY, priority as u32);
    be(nest(message, NFTA_CHAIN_HOOK, hook), NFTA_CHAIN_POLICY, NF_ACCEPT).text(NFTA_CHAIN_TYPE, "nat")
}

/// Makes a set of keys of so many bytes, unless it is there.
pub(crate) fn set(table: &str, name: &str, key_bytes: u32, id: u32) -> Message {
    let message = nft(NFT_MSG_NEWSET, NLM_F_CREATE).text(NFTA_SET_TABLE, table).text(NFTA_SET_NAME, name);
    let message = be(be(message, NFTA_SET_FLAGS, 0), NFTA_SET_KEY_TYPE, 0);
    be(be(message, NFTA_SET_KEY_LEN, key_bytes), NFTA_SET_ID, id)
}

/// Puts a key into a set; one that is there is no mistake.
pub(crate) fn add_element(table: &str, set: &str, key: &[u8]) -> Message {
    element(nft(NFT_MSG_NEWSETELEM, NLM_F_CREATE), table, set, key)
}

/// Puts a key into a set in which it must not be yet.
pub(crate) fn claim_element(table: &str, set: &str, key: &[u8]) -> Message {
    element(nft(NFT_MSG_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL), table, set, key)
}

/// Takes a key out of a set.
pub(crate) fn delete_element(table: &str, set: &str, key: &[u8]) -> Message {
    element(nft(NFT_MSG_DELSETELEM, 0), table, set, key)
}

fn element(message: Message, table: &str, set: &str, key: &[u8]) -> Message {
    let message = message.text(NFTA_SET_ELEM_LIST_TABLE, table).text(NFTA_SET_ELEM_LIST_SET, set);
    let value = |data: Message| data.bytes(NFTA_DATA_VALUE, key);
    nest(message, NFTA_SET_ELEM_LIST_ELEMENTS, |list| nest(list, NFTA_LIST_ELEM, |element| nest(element, NFTA_SET_ELEM_KEY, value)))
}

/// One step of a rule; a rule ends where a step does not hold.
pub(crate) enum Step<'a> {
    /// The packet's network protocol, `NFPROTO_*`.
    Network(u8),
    /// The packet's transport protocol.
    Transport(u8),
    /// These bytes of the transport header are so.
    Is { offset: u32, bytes: &'a [u8] },
    /// Loads bytes of the network header into registers from this one on.
    LoadNetwork { offset: u32, len: u32, register: u32 },
    /// Loads bytes of the transport header into registers from this one on.
    LoadTransport { offset: u32, len: u32, register: u32 },
    /// The registers from the first on are a key of this set.
    In(&'a str),
    /// The bytes that begin in this register are between these two, or are not.
    Between { register: u32, first: &'a [u8], last: &'a [u8], inside: bool },
    /// The packet's source becomes an address of the interface by which it leaves, and answers find back.
    Masquerade,
    /// Counts.
    Count,
    /// Ends with a verdict, `NF_*`.
    Verdict(u32),
}

/// Appends a rule.
pub(crate) fn rule(table: &str, chain: &str, steps: &[Step]) -> Message {
    let message = nft(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND).text(NFTA_RULE_TABLE, table).text(NFTA_RULE_CHAIN, chain);
    nest(message, NFTA_RULE_EXPRESSIONS, |list| steps.iter().fold(list, step))
}

fn step(list: Message, step: &Step) -> Message {
    match step {
        Step::Network(protocol) => compare(meta(list, NFT_META_NFPROTO), &[*protocol]),
        Step::Transport(protocol) => compare(meta(list, NFT_META_L4PROTO), &[*protocol]),
        Step::Is { offset, bytes } => {
            let list = payload(list, NFT_PAYLOAD_TRANSPORT_HEADER, (*offset, bytes.len() as u32), NFT_REG32_00);
            compare(list, bytes)
        }
        Step::LoadNetwork { offset, len, register } => payload(list, NFT_PAYLOAD_NETWORK_HEADER, (*offset, *len), NFT_REG32_00 + register),
        Step::LoadTransport { offset, len, register } => {
            payload(list, NFT_PAYLOAD_TRANSPORT_HEADER, (*offset, *len), NFT_REG32_00 + register)
        }
        Step::In(set) => expression(list, "lookup", |data| be(data.text(NFTA_LOOKUP_SET, set), NFTA_LOOKUP_SREG, NFT_REG32_00)),
        Step::Between { register, first, last, inside } => between(list, (*register, *inside), first, last),
        Step::Masquerade => expression(list, "masq", |data| data),
        Step::Count => expression(list, "counter", |data| data.bytes(NFTA_COUNTER_PACKETS, &[0; 8])),
        Step::Verdict(code) => expression(list, "immediate", |data| {
            let verdict = |data| nest(data, NFTA_DATA_VERDICT, |verdict| be(verdict, NFTA_VERDICT_CODE, *code));
            nest(be(data, NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT), NFTA_IMMEDIATE_DATA, verdict)
        }),
    }
}

pub(crate) fn expression(list: Message, name: &str, data: impl FnOnce(Message) -> Message) -> Message {
    nest(list, NFTA_LIST_ELEM, |element| nest(element.text(NFTA_EXPR_NAME, name), NFTA_EXPR_DATA, data))
}

fn meta(list: Message, key: u32) -> Message {
    expression(list, "meta", |data| be(be(data, NFTA_META_DREG, NFT_REG32_00), NFTA_META_KEY, key))
}

fn payload(list: Message, base: u32, (offset, len): (u32, u32), register: u32) -> Message {
    expression(list, "payload", |data| {
        let data = be(be(data, NFTA_PAYLOAD_DREG, register), NFTA_PAYLOAD_BASE, base);
        be(be(data, NFTA_PAYLOAD_OFFSET, offset), NFTA_PAYLOAD_LEN, len)
    })
}

fn between(list: Message, (register, inside): (u32, bool), first: &[u8], last: &[u8]) -> Message {
    let (sreg, op, from, to) = (1, 2, 3, 4);
    expression(list, "range", |data| {
        let data = be(be(data, sreg, NFT_REG32_00 + register), op, u32::from(!inside));
        let data = nest(data, from, |value| value.bytes(NFTA_DATA_VALUE, first));
        nest(data, to, |value| value.bytes(NFTA_DATA_VALUE, last))
    })
}

/// The first register holds these bytes.
fn compare(list: Message, bytes: &[u8]) -> Message {
    expression(list, "cmp", |data| {
        let value = |data: Message| data.bytes(NFTA_DATA_VALUE, bytes);
        nest(be(be(data, NFTA_CMP_SREG, NFT_REG32_00), NFTA_CMP_OP, 0), NFTA_CMP_DATA, value)
    })
}
