//! Names of our own: whose they are, and what they say.
//!
//! A name belongs to a holder, who may use it for several owners (connections) at once; nobody else gets it before the
//! holder's last one has ended. Each name has the addresses of its owners, the holder's mark as a text record, and
//! each address leads back to its names.

use crate::{
    lock,
    wire::{Answer, Question},
};
use hickory_proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{A, AAAA, PTR, TXT},
};
use nsm_api::{Error, Kind, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex},
};

/// Most names of one zone.
pub const MAX_NAMES: usize = 16_384;
/// Most names that one owner has.
pub const MAX_NAMES_OF_ONE: usize = 16;
/// How long others may remember an answer, in seconds: short, because a workload that moves has another address.
pub const NAME_TTL: u32 = 2;
/// What stands before the holder's mark in a text record.
pub(crate) const MARK: &str = "nsm-holder=";

/// The names of one network service. Clones are the same.
#[derive(Clone, Debug)]
pub struct Zone(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// Below these nobody but us and our peers knows names.
    domains: BTreeSet<Name>,
    names: BTreeMap<Name, Claim>,
    addresses: BTreeMap<IpAddr, BTreeSet<Name>>,
    owners: BTreeMap<String, BTreeSet<Name>>,
}

#[derive(Debug)]
struct Claim {
    holder: String,
    owners: BTreeMap<String, Vec<IpAddr>>,
}

impl Zone {
    /// Without names. Below `domains`, for instance the name of the service, whoever is not here or at a peer does not exist.
    pub fn new<'a>(domains: impl IntoIterator<Item = &'a str>) -> Zone {
        let domains = domains.into_iter().filter_map(parse).collect();
        Zone(Arc::new(Mutex::new(Inner { domains, ..Inner::default() })))
    }

    /// Gives `owner`, on behalf of `holder`, this name for these addresses; others of its names stay.
    ///
    /// # Errors
    /// [`Kind::Conflict`] while another holder has the name, [`Kind::Exhausted`] with too many names, [`Kind::Invalid`]
    /// for what is no name.
    pub fn claim(&self, name: &str, owner: &str, holder: &str, addresses: &[IpAddr]) -> Result<()> {
        let object = format!("name {name:?}");
        let key = parse(name).ok_or_else(|| Error::invalid(&*object, "is no name of DNS", "use letters, digits and - between dots"))?;
        let inner = &mut *lock(&self.0);
        let held = inner.names.get(&key);
        if held.is_some_and(|claim| claim.holder != holder) {
            let fix = "wait until the other has gone, or use another name";
            return Err(Error::new(Kind::Conflict, object, "belongs to another workload", fix));
        }
        let of_owner = inner.owners.get(owner);
        let full = held.is_none() && inner.names.len() >= MAX_NAMES;
        if full || of_owner.is_some_and(|names| names.len() >= MAX_NAMES_OF_ONE && !names.contains(&key)) {
            let reason = format!("is one too many: {} are known", inner.names.len());
            return Err(Error::new(Kind::Exhausted, object, reason, "use fewer names, or another endpoint"));
        }
        inner.part(&key, owner);
        let claim = inner.names.entry(key.clone()).or_insert_with(|| Claim { holder: holder.to_owned(), owners: BTreeMap::new() });
        claim.owners.insert(owner.to_owned(), addresses.to_vec());
        for address in addresses {
            inner.addresses.entry(*address).or_default().insert(key.clone());
        }
        inner.owners.entry(owner.to_owned()).or_default().insert(key);
        Ok(())
    }

    /// Takes from `owner` all names but these.
    pub fn retain(&self, owner: &str, names: &[String]) {
        let kept: BTreeSet<Name> = names.iter().filter_map(|name| parse(name)).collect();
        let inner = &mut *lock(&self.0);
        let gone: Vec<Name> = inner.owners.get(owner).into_iter().flatten().filter(|name| !kept.contains(*name)).cloned().collect();
        gone.iter().for_each(|name| inner.part(name, owner));
    }

    /// Who holds the name here.
    pub fn holder(&self, name: &str) -> Option<String> {
        let key = parse(name)?;
        lock(&self.0).names.get(&key).map(|claim| claim.holder.clone())
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        lock(&self.0).names.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What we know about it ourselves.
    pub(crate) fn answer(&self, question: &Question) -> Option<Answer> {
        let inner = lock(&self.0);
        let record = |data| Record::from_rdata(question.name.clone(), NAME_TTL, data);
        if let Some(claim) = inner.names.get(&question.name) {
            let all = claim.records().into_iter().filter(|data| wanted(question.kind, data.record_type()));
            return Some(Answer::own(&question.name, all.map(record).collect()));
        }
        let names = inner.addresses.get(&reverse(&question.name)?)?;
        let all = names.iter().filter(|_| wanted(question.kind, RecordType::PTR)).map(|name| record(RData::PTR(PTR(name.clone()))));
        Some(Answer::own(&question.name, all.collect()))
    }

    /// Whether nobody but us and our peers knows names there.
    pub(crate) fn covers(&self, name: &Name) -> bool {
        lock(&self.0).domains.iter().any(|domain| domain.zone_of(name))
    }
}

impl Inner {
    /// `owner` does not use the name any more.
    fn part(&mut self, name: &Name, owner: &str) {
        let Some(claim) = self.names.get_mut(name) else { return };
        for address in claim.owners.remove(owner).unwrap_or_default() {
            if claim.owners.values().flatten().any(|other| *other == address) {
                continue;
            }
            if let Some(names) = self.addresses.get_mut(&address) {
                names.remove(name);
            }
            if self.addresses.get(&address).is_some_and(BTreeSet::is_empty) {
                self.addresses.remove(&address);
            }
        }
        if claim.owners.is_empty() {
            self.names.remove(name);
        }
        if let Some(names) = self.owners.get_mut(owner) {
            names.remove(name);
        }
        if self.owners.get(owner).is_some_and(BTreeSet::is_empty) {
            self.owners.remove(owner);
        }
    }
}

impl Claim {
    fn records(&self) -> Vec<RData> {
        let addresses: BTreeSet<IpAddr> = self.owners.values().flatten().copied().collect();
        let data = |address| match address {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        };
        addresses.into_iter().map(data).chain([RData::TXT(TXT::new(vec![format!("{MARK}{}", self.holder)]))]).collect()
    }
}

fn wanted(asked: RecordType, kind: RecordType) -> bool {
    asked == kind || asked == RecordType::ANY
}

/// An absolute name in lower case.
pub(crate) fn parse(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?.to_lowercase();
    name.set_fqdn(true);
    (!name.is_root()).then_some(name)
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
fn reverse(name: &Name) -> Option<IpAddr> {
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(zone: &Zone, name: &str, kind: RecordType) -> Option<Vec<String>> {
        let question = Question::about_name(parse(name).unwrap(), kind);
        Some(zone.answer(&question)?.shown())
    }
    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|text| text.parse().unwrap()).collect()
    }

    /// wire.md 10.4
    #[test]
    fn a_name_has_addresses_of_both_families_and_addresses_have_names() {
        let zone = Zone::new(["office"]);
        zone.claim("Alice.office.", "c1", "a", &ips("172.16.0.1 2001:db8::1")).unwrap();
        assert_eq!(asked(&zone, "alice.office.", RecordType::A).unwrap(), ["172.16.0.1"]);
        assert_eq!(asked(&zone, "alice.office.", RecordType::AAAA).unwrap(), ["2001:db8::1"]);
        assert_eq!(asked(&zone, "alice.office.", RecordType::MX).unwrap(), [] as [&str; 0], "the name is there, no such record");
        assert_eq!(asked(&zone, "1.0.16.172.in-addr.arpa.", RecordType::PTR).unwrap(), ["alice.office."]);
        let six = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.";
        assert_eq!(asked(&zone, six, RecordType::PTR).unwrap(), ["alice.office."]);
        assert_eq!(asked(&zone, "2.0.16.172.in-addr.arpa.", RecordType::PTR), None);
        assert_eq!(asked(&zone, "bob.office.", RecordType::A), None);
        assert!(zone.covers(&parse("bob.office").unwrap()) && !zone.covers(&parse("office.example").unwrap()));
    }

    /// No foreign name is taken over by a label.
    #[test]
    fn a_name_is_its_holders_until_his_last_connection_ends() {
        let zone = Zone::new([]);
        zone.claim("a.s.", "c1", "alice", &ips("10.0.0.1")).unwrap();
        zone.claim("a.s.", "c2", "alice", &ips("10.0.0.2")).unwrap();
        assert_eq!(zone.claim("A.s", "c3", "mallory", &ips("10.0.0.3")).unwrap_err().kind, Kind::Conflict);
        assert_eq!(asked(&zone, "a.s.", RecordType::A).unwrap(), ["10.0.0.1", "10.0.0.2"]);
        zone.claim("a.s.", "c1", "alice", &ips("10.0.0.9")).unwrap();
        assert_eq!(asked(&zone, "1.0.0.10.in-addr.arpa.", RecordType::PTR), None, "its former address is nobody's");
        zone.retain("c1", &[]);
        assert_eq!(asked(&zone, "a.s.", RecordType::A).unwrap(), ["10.0.0.2"]);
        assert_eq!(zone.claim("a.s.", "c3", "mallory", &[]).unwrap_err().kind, Kind::Conflict);
        zone.retain("c2", &["a.s.".to_owned()]);
        assert_eq!(zone.holder("a.s.").as_deref(), Some("alice"));
        zone.retain("c2", &["b.s.".to_owned()]);
        assert!(zone.is_empty());
        zone.claim("a.s.", "c3", "mallory", &ips("10.0.0.3")).unwrap();
        assert_eq!(asked(&zone, "3.0.0.10.in-addr.arpa.", RecordType::PTR).unwrap(), ["a.s."]);
    }

    #[test]
    fn names_are_bounded() {
        let zone = Zone::new([]);
        for n in 0..MAX_NAMES_OF_ONE {
            zone.claim(&format!("n{n}.s."), "c", "h", &[]).unwrap();
        }
        assert_eq!(zone.claim("more.s.", "c", "h", &[]).unwrap_err().kind, Kind::Exhausted);
        zone.claim("n0.s.", "c", "h", &ips("10.0.0.1")).unwrap();
        for n in MAX_NAMES_OF_ONE..MAX_NAMES {
            zone.claim(&format!("n{n}.s."), &n.to_string(), "h", &[]).unwrap();
        }
        assert_eq!(zone.claim("more.s.", "d", "h", &[]).unwrap_err().kind, Kind::Exhausted);
        assert!(zone.claim("a..b", "d", "h", &[]).is_err() && zone.claim(".", "d", "h", &[]).is_err());
    }
}
