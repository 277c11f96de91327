//! The filter before the tunnels: what claims to belong to one of our VXLAN wires passes only when its sender is that
//! wire's other node. A packet of a VXLAN network that is not ours is never touched: others use the same port.
//!
//! One table per port: `wires4` and `wires6` hold sender and network of every wire, `networks` what is ours at all. The
//! table stays in the kernel when this process ends, as the wires do.

use crate::{
    nft::{self, Filters, Step},
    nl::{Message, Refusal},
    uapi::*,
};
use rustix::io::Errno;
use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tracing::warn;

const CHAIN: &str = "tunnels";
const NETWORKS: &str = "networks";
/// Before the filters that people write, which are at 0.
const PRIORITY: i32 = -10;
const UDP: u8 = 17;
/// The network identifier in a VXLAN packet, from the start of its UDP header.
const VNI: (u32, u32) = (12, 3);
/// A wire as the filter knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pinhole {
    pub(super) remote: IpAddr,
    pub(super) vni: u32,
    pub(super) port: u16,
}

/// The filter of one underlay. Where the kernel has none, wires are made all the same, and a warning says so once.
pub(super) struct Pinholes(Mutex<State>);

struct State {
    /// `None` when this kernel cannot.
    filters: Option<Filters>,
    /// What this process has opened, by port and network. When there is nothing more of a port, its table may be empty.
    open: BTreeSet<(u16, u32)>,
}

impl Pinholes {
    /// About the calling thread's namespace.
    pub(super) fn new() -> Pinholes {
        Pinholes(Mutex::new(State { filters: Filters::open().ok(), open: BTreeSet::new() }))
    }
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Lets a wire's other node in, and nobody else who claims to be on the wire.
    pub(super) fn open(&self, pinhole: &Pinhole) {
        let mut state = self.lock();
        state.open.insert((pinhole.port, pinhole.vni));
        state.act(pinhole, |filters| pinhole.open(filters));
    }
    /// The wire is gone. When it was the last, the table goes as well.
    pub(super) fn close(&self, pinhole: &Pinhole) {
        let mut state = self.lock();
        state.open.remove(&(pinhole.port, pinhole.vni));
        state.act(pinhole, |filters| pinhole.close(filters));
        if state.open.range((pinhole.port, 0)..=(pinhole.port, u32::MAX)).next().is_none() {
            state.act(pinhole, |filters| pinhole.sweep(filters));
        }
    }
}

impl State {
    fn act(&mut self, pinhole: &Pinhole, act: impl FnOnce(&mut Filters) -> Result<(), Refusal>) {
        const NEVER: [Errno; 5] = [Errno::OPNOTSUPP, Errno::PERM, Errno::AFNOSUPPORT, Errno::PROTONOSUPPORT, Errno::INVAL];
        let Some(Err(refusal)) = self.filters.as_mut().map(act) else { return };
        warn!(vni = pinhole.vni, remote = %pinhole.remote, %refusal, "the filter before the tunnels did not follow");
        if NEVER.contains(&refusal.errno) {
            warn!("this kernel takes no packet filter from us: tunnels work, without a check of who sends into them");
            self.filters = None;
        }
    }
}

fn absent(refusal: Refusal) -> Result<(), Refusal> {
    if refusal.errno == Errno::NOENT { Ok(()) } else { Err(refusal) }
}

impl Pinhole {
    fn table(&self) -> String {
        format!("nsm-vxlan-{}", self.port)
    }
    fn network(&self) -> Vec<u8> {
        let [_, a, b, c] = self.vni.to_be_bytes();
        vec![a, b, c, 0]
    }
    fn wire(&self) -> (&'static str, Vec<u8>) {
        let (set, sender) = match self.remote {
            IpAddr::V4(ip) => ("wires4", ip.octets().to_vec()),
            IpAddr::V6(ip) => ("wires6", ip.octets().to_vec()),
        };
        (set, [sender, self.network()].concat())
    }

    /// Lets the wire's other node in, and nobody else who claims to be on the wire.
    fn open(&self, filters: &mut Filters) -> Result<(), Refusal> {
        let (table, (set, key)) = (self.table(), self.wire());
        let fresh = || vec![nft::claim_element(&table, NETWORKS, &self.network()), nft::add_element(&table, set, &key)];
        match filters.commit(fresh()) {
            Err(refusal) if refusal.errno == Errno::NOENT => filters.commit([whole_table(&table, self.port), fresh()].concat()),
            Err(refusal) if refusal.errno == Errno::EXIST => {
                // An earlier wire with this network may have ended without a word: its sender is not let in any more.
                let keys = self.keys(filters)?;
                let stale = keys.iter().filter(|(_, there)| *there != key);
                let mut changes: Vec<Message> = stale.map(|(set, key)| nft::delete_element(&table, set, key)).collect();
                changes.push(nft::add_element(&table, set, &key));
                filters.commit(changes)
            }
            other => other,
        }
    }

    /// The wire is gone.
    fn close(&self, filters: &mut Filters) -> Result<(), Refusal> {
        let (table, (set, key)) = (self.table(), self.wire());
        let changes = vec![nft::delete_element(&table, NETWORKS, &self.network()), nft::delete_element(&table, set, &key)];
        filters.commit(changes).or_else(absent)
    }
    /// Removes the table when it says nothing any more.
    fn sweep(&self, filters: &mut Filters) -> Result<(), Refusal> {
        match filters.elements(&self.table(), NETWORKS) {
            Ok(networks) if networks.is_empty() => filters.commit(vec![nft::delete_table(&self.table())]).or_else(absent),
            Ok(_) => Ok(()),
            Err(refusal) => absent(refusal),
        }
    }

    /// What the table says of this network's senders.
    fn keys(&self, filters: &mut Filters) -> Result<Vec<(&'static str, Vec<u8>)>, Refusal> {
        let table = self.table();
        let mut keys = vec![];
        for set in ["wires4", "wires6"] {
            let found = filters.elements(&table, set)?.into_iter().filter(|key| key.ends_with(&self.network()));
            keys.extend(found.map(|key| (set, key)));
        }
        Ok(keys)
    }
}

fn whole_table(table: &str, port: u16) -> Vec<Message> {
    let port = port.to_be_bytes();
    let to_us = || [Step::Transport(UDP), Step::Is { offset: 2, bytes: &port }].into_iter();
    let network = |register| Step::LoadTransport { offset: VNI.0, len: VNI.1, register };
    let from = |protocol, offset, len, set| {
        let sender = [Step::Network(protocol), Step::LoadNetwork { offset, len, register: 0 }, network(len / 4)];
        sender.into_iter().chain([Step::In(set), Step::Verdict(NF_ACCEPT)])
    };
    let rule = |steps: Vec<Step>| nft::rule(table, CHAIN, &steps);
    vec![
        nft::table(table),
        nft::set(table, "wires4", 8, 1),
        nft::set(table, "wires6", 20, 2),
        nft::set(table, NETWORKS, 4, 3),
        nft::input_chain(table, CHAIN, PRIORITY),
        rule(to_us().chain(from(NFPROTO_IPV4, 12, 4, "wires4")).collect()),
        rule(to_us().chain(from(NFPROTO_IPV6, 8, 16, "wires6")).collect()),
        rule(to_us().chain([network(0), Step::In(NETWORKS), Step::Count, Step::Verdict(NF_DROP)]).collect()),
    ]
}
