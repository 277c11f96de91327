//! A stateful packet filter on wires that pass through a pod: rules for what may begin, and memory of what has begun.
//!
//! What arrives at one of the two interfaces of a passthrough wire passes a chain at its device and is sent out of the other,
//! frame by frame. So the wire stays transparent: no address, no route, no other MTU. The kernel's own connection tracking
//! does not reach so far down; flows are remembered in sets of their own for each wire, so wires with equal addresses do
//! not mix. One table for each process; its rules are replaced in one step, flows and counters stay. All of it outlives the
//! process, as the wires do.
//!
//! Not here: NAT, rate limits, reassembly (later fragments follow flows of the same two hosts and protocol), and what a
//! file of rules looks like.

mod program;

use crate::{
    error::refused,
    net::Net,
    netns,
    nft::Filters,
    nl::{Message, Refusal},
};
use async_trait::async_trait;
use ipnet::IpNet;
use nsm_api::{Error, Kind, Result, limits};
use nsm_hop::kernel::{Counters, Iface, Kernel, Netns, Op, Owner, Wire, Wires};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use program::MAX_FLOWS;

/// Most rules after those with several prefixes or ports have been spread out.
pub const MAX_RULES: usize = 8192;
/// What names of tables begin with.
const TABLE: &str = "nsm-fw-";
/// Bytes of the longest beginning of a payload that is compared.
pub const MAX_BEGINNING: usize = 60;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes, and so do the answers to it.
    Permit,
    /// It is dropped.
    Deny,
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// From the client to the service.
    Out,
    /// From the service to the client.
    In,
}

/// One rule; what is empty is any. The first that fits decides about a packet that begins a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Under which it is counted; unique.
    pub name: String,
    /// What it says.
    pub verdict: Verdict,
    /// For packets that go this way.
    pub direction: Direction,
    /// IP protocol numbers.
    pub protocols: Vec<u8>,
    /// Source networks.
    pub from: Vec<IpNet>,
    /// Destination networks.
    pub to: Vec<IpNet>,
    /// Source ports, first and last.
    pub from_ports: Vec<(u16, u16)>,
    /// Destination ports, first and last.
    pub to_ports: Vec<(u16, u16)>,
    /// ICMP type.
    pub icmp_type: Option<u8>,
    /// The payload of TCP or UDP begins so. Such a rule denies, and looks at every packet, also of flows that have begun.
    pub begins: Vec<u8>,
}

/// All rules, in order, and what holds where none fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// In order.
    pub list: Vec<Rule>,
    /// Without a rule.
    pub otherwise: Verdict,
}

/// What a rule has decided. `established` and `default` are counted as well.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count {
    /// The rule.
    pub rule: String,
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The filter of one process in one namespace.
pub struct Firewall {
    net: Net,
    table: String,
    filters: Mutex<Filters>,
}

impl Firewall {
    /// Opens the table called `name`, and makes it with these rules; wires that a former process put into it stay.
    ///
    /// # Errors
    /// [`Kind::Kernel`] where the kernel has no such filters or does not let this process have them.
    pub fn open(netns: &Netns, name: &str, rules: &Rules) -> Result<Firewall> {
        let safe = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
        let table = format!("{TABLE}{}", name.chars().map(safe).take(limits::MAX_NAME_BYTES.min(200)).collect::<String>());
        let filters = Mutex::new(netns::run_in_blocking(netns, Filters::open)??);
        let firewall = Firewall { net: Net::new(netns)?, table, filters };
        firewall.commit("make it", program::skeleton(&firewall.table))?;
        firewall.replace(rules)?;
        Ok(firewall)
    }

    /// The rules are these from now on, all at once. Flows that have begun go on.
    ///
    /// # Errors
    /// As [`Firewall::open`]; then the former rules hold.
    pub fn replace(&self, rules: &Rules) -> Result<()> {
        let spread: Vec<_> = rules.list.iter().flat_map(program::spread).collect();
        if spread.len() > MAX_RULES {
            let reason = format!("have {} combinations of prefixes and ports, the limit is {MAX_RULES}", spread.len());
            return Err(Error::invalid(self.object(), reason, "write larger prefixes or ranges of ports"));
        }
        let known = self.counts()?;
        self.commit("replace its rules", program::rules(&self.table, rules, &spread))?;
        let gone = known.into_iter().map(|count| count.rule).filter(|name| !program::counted(rules).any(|counted| counted == *name));
        self.commit("forget the counters of former rules", gone.map(|name| program::delete_counter(&self.table, &name)).collect())
    }

    /// From now on what passes the filter at one of these interfaces leaves by the other: `near` is the client's side.
    fn join(&self, near: &str, far: &str) -> Result<()> {
        let ends = self.ends(near, far)?.ok_or_else(|| {
            let reason = format!("has no interface {near} or {far} to join");
            Error::new(Kind::NotFound, self.object(), reason, "see whether the forwarder makes it")
        })?;
        let (mut changes, mut there) = (vec![], false);
        for (wire, chains) in self.wires()?.iter().filter(|(wire, _)| near_of(wire) == Some(near)) {
            if *wire == ends.wire() && chains.len() == program::CHAINS_OF_A_WIRE {
                there = true;
            } else {
                changes.extend(program::remove_wire(&self.table, (wire, chains)));
            }
        }
        if !there {
            changes.extend(program::wire(&self.table, &ends));
        }
        self.commit(&format!("join {near} and {far}"), changes)
    }

    /// Parts them, and forgets their flows.
    fn part(&self, near: &str) -> Result<()> {
        let wires = self.wires()?;
        let ours = wires.iter().filter(|(wire, _)| near_of(wire) == Some(near));
        let changes = ours.flat_map(|(wire, chains)| program::remove_wire(&self.table, (wire, chains))).collect();
        self.commit(&format!("part {near} from the other"), changes)
    }

    /// Whether they are joined, as they are now.
    fn joins(&self, near: &str, far: &str) -> Result<bool> {
        let Some(ends) = self.ends(near, far)? else { return Ok(false) };
        Ok(self.wires()?.get(&ends.wire()).is_some_and(|chains| chains.len() == program::CHAINS_OF_A_WIRE))
    }

    fn ends(&self, near: &str, far: &str) -> Result<Option<program::Ends>> {
        let end = |name: &str| Ok::<_, Error>(self.net.link_named(name)?.map(|link| (name.to_owned(), link.index)));
        Ok(end(near)?.zip(end(far)?).map(|(near, far)| program::Ends { near, far }))
    }

    fn wires(&self) -> Result<BTreeMap<String, Vec<String>>> {
        program::wires(&mut self.lock(), &self.table).map_err(|refusal| refused(self.object(), "list its wires", refusal))
    }

    /// What each rule has decided so far, over all wires.
    pub fn counts(&self) -> Result<Vec<Count>> {
        let counts = program::counts(&mut self.lock(), &self.table);
        let mut counts = counts.map_err(|refusal| refused(self.object(), "read its counters", refusal))?;
        counts.sort();
        Ok(counts)
    }

    /// Takes the table away when it joins nothing any more.
    pub fn close_if_unused(&self) -> Result<()> {
        if self.wires()?.is_empty() { self.commit("remove it", vec![program::delete_table(&self.table)]) } else { Ok(()) }
    }

    /// What the rules of all filters in a namespace have decided, by the names with which they were opened.
    pub fn all_counts(netns: &Netns) -> Result<BTreeMap<String, Vec<Count>>> {
        let mut filters = netns::run_in_blocking(netns, Filters::open)??;
        let failed = |refusal| refused("packet filters", "read their counters", refusal);
        let mut all = BTreeMap::new();
        for table in program::tables(&mut filters).map_err(failed)? {
            let Some(name) = table.strip_prefix(TABLE) else { continue };
            let mut counts = program::counts(&mut filters, &table).map_err(failed)?;
            counts.sort();
            all.insert(name.to_owned(), counts);
        }
        Ok(all)
    }

    fn commit(&self, doing: &str, changes: Vec<Message>) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        self.lock().commit(changes).map_err(|refusal: Refusal| refused(self.object(), doing, refusal))
    }
    fn object(&self) -> String {
        format!("packet filter {} in network namespace {}", self.table, self.net.netns().key.ino)
    }
    fn lock(&self) -> MutexGuard<'_, Filters> {
        self.filters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The near device in the name of a wire.
fn near_of(wire: &str) -> Option<&str> {
    let (rest, _) = wire.rsplit_once('-')?;
    rest.rsplit_once('-').map(|(near, _)| near)
}

/// A kernel in which every splice is this filter.
pub struct Guarded<K> {
    kernel: K,
    firewall: Arc<Firewall>,
}

impl<K: Kernel> Guarded<K> {
    /// Puts the filter in the place of the splices of `kernel`.
    pub fn new(kernel: K, firewall: Arc<Firewall>) -> Guarded<K> {
        Guarded { kernel, firewall }
    }
}

#[async_trait]
impl<K: Kernel> Kernel for Guarded<K> {
    async fn observe(&self, owner: &Owner, about: &Wires) -> Result<Wires> {
        let mut wires = self.kernel.observe(owner, about).await?;
        for wire in about {
            if let Wire::Splice { a, b } = wire
                && self.firewall.joins(a.name.as_str(), b.name.as_str())?
            {
                wires.insert(wire.clone());
            }
        }
        Ok(wires)
    }
    async fn apply(&self, owner: &Owner, ops: &[Op]) -> Result<()> {
        for op in ops {
            match op {
                Op::Add(Wire::Splice { a, b }) => self.firewall.join(a.name.as_str(), b.name.as_str())?,
                Op::Del(Wire::Splice { a, .. }) => self.firewall.part(a.name.as_str())?,
                other => self.kernel.apply(owner, std::slice::from_ref(other)).await?,
            }
        }
        Ok(())
    }
    async fn appeared(&self, iface: &Iface) -> Result<()> {
        self.kernel.appeared(iface).await
    }
    async fn counters(&self, owner: &Owner, on: &[Iface]) -> Result<Vec<Option<Counters>>> {
        self.kernel.counters(owner, on).await
    }
    async fn underlay_mtu(&self, address: IpAddr) -> Result<u32> {
        self.kernel.underlay_mtu(address).await
    }
}
