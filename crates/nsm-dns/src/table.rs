//! Whom to ask: the configurations of all owners, and the view that questions work with. A change makes a new view;
//! questions under way keep theirs.

use crate::{cache::Cache, engine::ServerStatus, lock};
use arc_swap::ArcSwap;
use hickory_proto::rr::Name;
use nsm_api::{DnsConfig, Error, Kind, Result};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

/// Most connections with configurations.
pub const MAX_OWNERS: usize = 1024;
/// Most servers that one question goes to; further ones are not asked.
pub const MAX_SERVERS: usize = 16;
/// The same among the endpoints of one network, each of which knows names of its own.
pub const MAX_PEERS: usize = 256;
/// Most search domains; further ones are not tried.
pub const MAX_SEARCH_DOMAINS: usize = 16;
/// Where a server listens that names no port.
const PORT: u16 = 53;

/// A server that has left this many questions without a reply is no longer waited for when the others have answered.
const MAX_UNANSWERED: u32 = 3;
/// Of so many questions to such a server one waits, to notice that it is back.
const PROBE: u32 = 16;

/// A server and how it has behaved since the table changed.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    unanswered: AtomicU32,
    passed_over: AtomicU32,
}

impl Server {
    fn new(address: SocketAddr) -> Server {
        Server { address, unanswered: AtomicU32::new(0), passed_over: AtomicU32::new(0) }
    }

    /// Whether the next question should wait for it.
    pub(crate) fn is_awaited(&self) -> bool {
        self.unanswered.load(Relaxed) < MAX_UNANSWERED || self.passed_over.fetch_add(1, Relaxed) % PROBE == PROBE - 1
    }

    pub(crate) fn status(&self) -> ServerStatus {
        ServerStatus { address: self.address, unanswered: self.unanswered.load(Relaxed) }
    }

    pub(crate) fn has_replied(&self) {
        self.unanswered.store(0, Relaxed);
    }

    pub(crate) fn was_silent(&self) {
        self.unanswered.fetch_add(1, Relaxed);
    }
}

impl PartialEq for Server {
    fn eq(&self, other: &Server) -> bool {
        self.address == other.address
    }
}

/// What a question is asked with.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) servers: Vec<Server>,
    pub(crate) search: Vec<Name>,
    /// Entries that are not used: malformed, our own address, or too many.
    pub(crate) ignored: Vec<String>,
    pub(crate) cache: Mutex<Cache>,
}

impl View {
    fn new<'a>((listen, most): (SocketAddr, usize), configs: impl Iterator<Item = &'a DnsConfig>) -> View {
        let mut view = View::default();
        for config in configs {
            for text in &config.dns_server_ips {
                let server = server(text).filter(|address| *address != listen);
                add(&mut view.servers, server.map(Server::new), most).unwrap_or_else(|()| view.ignored.push(text.clone()));
            }
            for text in &config.search_domains {
                add(&mut view.search, domain(text), MAX_SEARCH_DOMAINS).unwrap_or_else(|()| view.ignored.push(text.clone()));
            }
        }
        view
    }

    /// The names to try for `name`: those of a group at once, the first that exists in their order; then the next
    /// group. A name with dots is most likely whole; one without most likely not.
    pub(crate) fn candidates(&self, name: &Name) -> [Vec<Name>; 2] {
        // The root and names of addresses are whole, and so is what is in a domain already.
        let is_whole = name.is_root() || name.iter().next_back() == Some(b"arpa");
        let below = |domain: &Name| name.clone().append_domain(domain).ok();
        let found = self.search.iter().filter(|domain| !is_whole && !domain.zone_of(name)).filter_map(below).collect();
        if name.num_labels() == 1 { [found, vec![name.clone()]] } else { [vec![name.clone()], found] }
    }
}

/// Adds `item` unless it is there; `Err` when there is none or no place.
fn add<T: PartialEq>(items: &mut Vec<T>, item: Option<T>, most: usize) -> Result<(), ()> {
    let item = item.ok_or(())?;
    if items.contains(&item) {
        return Ok(());
    }
    if items.len() >= most {
        return Err(());
    }
    items.push(item);
    Ok(())
}

/// `1.2.3.4`, `1.2.3.4:53`, `fd00::1` or `[fd00::1]:53`.
fn server(text: &str) -> Option<SocketAddr> {
    let plain = text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, PORT));
    let address = plain.or_else(|| text.parse().ok())?;
    (!address.ip().is_unspecified() && !address.ip().is_multicast() && address.port() != 0).then_some(address)
}

fn domain(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?.to_lowercase();
    name.set_fqdn(true);
    (!name.is_root()).then_some(name)
}

/// The configurations by owner.
#[derive(Debug)]
pub(crate) struct Table {
    listen: SocketAddr,
    /// Of servers.
    most: usize,
    owners: Mutex<BTreeMap<String, Vec<DnsConfig>>>,
    view: ArcSwap<View>,
}

impl Table {
    /// With so many servers at most.
    pub(crate) fn new(listen: SocketAddr, most: usize) -> Table {
        Table { listen, most, owners: Mutex::default(), view: ArcSwap::default() }
    }

    pub(crate) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    pub(crate) fn owners(&self) -> BTreeMap<String, Vec<DnsConfig>> {
        lock(&self.owners).clone()
    }

    /// Replaces what `owner` brings; nothing removes it. The same again changes nothing, so what is cached stays.
    pub(crate) fn set(&self, owner: &str, configs: &[DnsConfig]) -> Result<()> {
        let mut owners = lock(&self.owners);
        if owners.get(owner).map_or(&[][..], Vec::as_slice) == configs {
            return Ok(());
        }
        if configs.is_empty() {
            owners.remove(owner);
        } else if owners.len() >= MAX_OWNERS && !owners.contains_key(owner) {
            let reason = format!("{MAX_OWNERS} connections have DNS configurations already");
            return Err(Error::new(Kind::Exhausted, format!("connection {owner:?}"), reason, "use fewer network services with DNS"));
        } else {
            owners.insert(owner.to_owned(), configs.to_vec());
        }
        self.view.store(Arc::new(View::new((self.listen, self.most), owners.values().flatten())));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(servers: &[&str], search: &[&str]) -> View {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let config = DnsConfig { dns_server_ips: texts(servers), search_domains: texts(search), ..DnsConfig::default() };
        View::new(("127.0.0.1:53".parse().unwrap(), MAX_SERVERS), [config].iter())
    }

    #[test]
    fn servers_are_addresses_with_or_without_a_port_and_never_ourselves() {
        let made =
            view(&["10.0.0.1", "10.0.0.1:53", "10.0.0.1:54", "fd00::1", "[fd00::1]:55", "127.0.0.1", "0.0.0.0", "x", "", "ff02::1"], &[]);
        let texts: Vec<String> = made.servers.iter().map(|server| server.address.to_string()).collect();
        assert_eq!(texts, ["10.0.0.1:53", "10.0.0.1:54", "[fd00::1]:53", "[fd00::1]:55"]);
        assert_eq!(made.ignored, ["127.0.0.1", "0.0.0.0", "x", "", "ff02::1"]);
    }

    #[test]
    fn what_is_too_much_is_not_used_and_told() {
        let servers: Vec<String> = (1..=MAX_SERVERS + 3).map(|n| format!("10.0.0.{n}")).collect();
        let domains: Vec<String> = (1..=MAX_SEARCH_DOMAINS + 2).map(|n| format!("d{n}")).collect();
        let texts = |all: &[String]| all.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
        let (servers, domains) = (texts(&servers), texts(&domains));
        let made = view(&servers.split(' ').collect::<Vec<_>>(), &domains.split(' ').collect::<Vec<_>>());
        assert_eq!((made.servers.len(), made.search.len(), made.ignored.len()), (MAX_SERVERS, MAX_SEARCH_DOMAINS, 5));
    }

    #[test]
    fn candidates_follow_the_order_of_the_domains() {
        let made = view(&[], &["My.Coredns.Service", "b.", ".", "a..b", &"x".repeat(64)]);
        assert_eq!(made.ignored.len(), 3);
        let names = |name: &str| {
            made.candidates(&Name::from_ascii(name).unwrap()).map(|names| names.iter().map(Name::to_ascii).collect::<Vec<_>>())
        };
        assert_eq!(names("redis."), [vec!["redis.my.coredns.service.", "redis.b."], vec!["redis."]]);
        assert_eq!(names("a.b."), [vec!["a.b."], vec!["a.b.my.coredns.service."]], "a name below a domain gets it no second time");
        assert_eq!(names("."), [vec!["."], vec![]]);
        assert_eq!(names("1.0.0.10.in-addr.arpa."), [vec!["1.0.0.10.in-addr.arpa."], vec![]]);
        let long = format!("{0}.{0}.{0}.{1}.", "x".repeat(63), "y".repeat(55));
        assert_eq!(names(&long), [vec![long.clone()], vec![format!("{long}b.")]], "what would be too long for DNS is not tried");
    }

    #[test]
    fn owners_are_bounded_and_an_unchanged_one_keeps_the_cache() {
        let table = Table::new("127.0.0.1:53".parse().unwrap(), MAX_SERVERS);
        let config = DnsConfig { dns_server_ips: vec!["10.0.0.1".to_owned()], ..DnsConfig::default() };
        for owner in 0..MAX_OWNERS {
            table.set(&owner.to_string(), std::slice::from_ref(&config)).unwrap();
        }
        assert_eq!(table.set("one more", std::slice::from_ref(&config)).unwrap_err().kind, Kind::Exhausted);
        let before = table.view();
        table.set("7", std::slice::from_ref(&config)).unwrap();
        table.set("one more", &[]).unwrap();
        assert!(Arc::ptr_eq(&before, &table.view()));
        table.set("7", &[]).unwrap();
        assert!(!Arc::ptr_eq(&before, &table.view()));
        table.set("one more", &[config]).unwrap();
        assert_eq!(table.view().servers.len(), 1, "one server that many bring is asked once");
    }
}
