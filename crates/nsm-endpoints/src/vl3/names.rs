//! Names of the network's clients: a name server on the endpoint's own address, which knows its clients and asks the
//! other endpoints about theirs.
//!
//! A name is its holder's: the workload with the SPIFFE identity that had it first, anywhere in the network. So before a
//! client gets a name the other endpoints are asked for it; who claims what another has is connected all the same, without
//! that name, and gets it when the other has gone. Two who claim the same name at two endpoints within the same moment may
//! both get it.

use super::{Addresses, addresses::whole, template::Template, template::search_domains};
use blake2::{Blake2s256, Digest};
use futures::{StreamExt, stream};
use nsm_api::*;
use nsm_dns::{Elsewhere, MAX_NAMES_OF_ONE, Resolver, Zone};
use nsm_hop::{
    journal::Agreed,
    role::{Draft, Reserve},
};
use std::{
    collections::BTreeMap,
    fmt::Write,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::timeout};
use tracing::{info, warn};

/// Between two looks whether a name that another has is free.
const RETRY: Duration = Duration::from_secs(2);
/// Names about which the other endpoints are asked at the same time.
const AT_ONCE: usize = 64;
/// Bytes of a holder's mark.
const MARK_BYTES: usize = 16;
/// Whose the endpoint's own names are.
const OWN: &str = "own";

/// The SPIFFE ID of the workload where a connection begins, as far as its path proves it.
pub type Identify = fn(&Connection) -> Option<String>;

/// The names of one endpoint. Clones are the same.
#[derive(Clone)]
pub struct Names(Arc<Inner>);

struct Inner {
    addresses: Addresses,
    templates: Vec<Template>,
    identify: Identify,
    zone: Zone,
    server: Resolver,
    wanted: Mutex<BTreeMap<String, Wanted>>,
    changed: Notify,
}

/// What one connection should have.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    names: Vec<String>,
    holder: String,
    addresses: Vec<IpAddr>,
    /// The names that it has not got yet. It is told once that another has them.
    missing: Vec<String>,
    told: bool,
}

impl Names {
    /// Answers at `server`, which was started with `zone`.
    pub fn new(addresses: Addresses, templates: Vec<Template>, identify: Identify, (server, zone): (Resolver, Zone)) -> Names {
        let (wanted, changed) = (Mutex::default(), Notify::new());
        Names(Arc::new(Inner { addresses, templates, identify, zone, server, wanted, changed }))
    }

    /// The endpoint's own names: those of a client with its labels and identity, for its own addresses as they are now.
    pub fn publish_own(&self, labels: &Labels, service: &ServiceName, identity: &str) {
        let Ok(id) = ConnectionId::new(OWN) else { return };
        let mut connection = Connection::new(id, service.clone());
        connection.labels = labels.clone();
        self.want(OWN, self.names(&connection, identity), identity, self.0.addresses.own());
    }

    /// Gives names as soon as nobody else has them; never ends.
    pub async fn run(&self) {
        loop {
            let open: Vec<(String, Wanted)> = self
                .wanted()
                .iter()
                .filter(|(_, wanted)| !wanted.missing.is_empty())
                .map(|(owner, wanted)| (owner.clone(), wanted.clone()))
                .collect();
            let none = open.is_empty();
            stream::iter(open).for_each_concurrent(AT_ONCE, |(owner, wanted)| async move { self.settle(&owner, wanted).await }).await;
            if none {
                self.0.changed.notified().await;
            } else {
                let _ = timeout(RETRY, self.0.changed.notified()).await;
            }
        }
    }

    /// Tries to get what one connection lacks.
    async fn settle(&self, owner: &str, wanted: Wanted) {
        let mut missing = Vec::new();
        for name in &wanted.missing {
            let here = self.0.zone.holder(name);
            let free = match &here {
                Some(holder) => *holder == wanted.holder,
                None => match self.0.server.elsewhere(name).await {
                    Elsewhere::Nobody => true,
                    Elsewhere::Somebody(holder) => holder.as_ref() == Some(&wanted.holder),
                },
            };
            if !free {
                missing.push(name.clone());
            }
        }
        let mut all = self.wanted();
        let Some(now) = all.get_mut(owner).filter(|now| now.names == wanted.names && now.holder == wanted.holder) else { return };
        let granted = wanted.missing.iter().filter(|name| !missing.contains(name));
        let refused: Vec<String> = granted.filter(|name| !self.claim(owner, now, name)).cloned().collect();
        now.missing = missing.into_iter().chain(refused).collect();
        if !now.missing.is_empty() && !now.told {
            now.told = true;
            warn!(%owner, names = %now.missing.join(" "), "belong to another workload; given when that has gone");
        }
    }

    fn claim(&self, owner: &str, wanted: &Wanted, name: &str) -> bool {
        let claimed = self.0.zone.claim(name, owner, &wanted.holder, &wanted.addresses);
        claimed.inspect_err(|error| warn!(%error, %owner, "not given")).inspect(|()| info!(%name, %owner, "named")).is_ok()
    }

    /// `owner` should have these names. Addresses of names that it has already change at once.
    fn want(&self, owner: &str, names: Vec<String>, identity: &str, addresses: Vec<IpAddr>) {
        let holder = mark(identity);
        let mut all = self.wanted();
        if all.get(owner).is_some_and(|known| known.names == names && known.holder == holder && known.addresses == addresses) {
            return;
        }
        self.0.zone.retain(owner, &names);
        let mut wanted = Wanted { names, holder, addresses, missing: Vec::new(), told: false };
        let ours = |name: &&String| self.0.zone.holder(name).as_ref() != Some(&wanted.holder) || !self.claim(owner, &wanted, name);
        wanted.missing = wanted.names.iter().filter(ours).cloned().collect();
        all.insert(owner.to_owned(), wanted);
        drop(all);
        self.0.changed.notify_one();
    }

    fn forget(&self, owner: &str) {
        self.wanted().remove(owner);
        self.0.zone.retain(owner, &[]);
        self.ask_there(owner, Vec::new());
    }

    fn names(&self, connection: &Connection, identity: &str) -> Vec<String> {
        let last = identity.rsplit('/').next().unwrap_or_default();
        let mut names: Vec<String> = self.0.templates.iter().filter_map(|template| template.name(connection, last)).collect();
        names.sort();
        names.dedup();
        names.truncate(MAX_NAMES_OF_ONE);
        names
    }

    /// Who the workload is; one whose path says nothing is known by that alone.
    fn identity(&self, connection: &Connection) -> String {
        let first = || connection.path.segments.first().map(|segment| segment.name.to_string());
        (self.0.identify)(connection).or_else(first).unwrap_or_default()
    }

    /// Another endpoint's name servers, at the other end of this wire.
    fn ask_there(&self, wire: &str, servers: Vec<String>) {
        let configs = [DnsConfig { dns_server_ips: servers, ..DnsConfig::default() }];
        let configs = if configs[0].dns_server_ips.is_empty() { &[][..] } else { &configs[..] };
        if let Err(error) = self.0.server.set(wire, configs) {
            warn!(%error, "names at another endpoint are not known here");
        }
        self.0.changed.notify_one();
    }

    fn wanted(&self) -> MutexGuard<'_, BTreeMap<String, Wanted>> {
        self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What tells holders apart without telling who they are.
fn mark(identity: &str) -> String {
    let digest = Blake2s256::digest(identity.as_bytes());
    digest.iter().take(MARK_BYTES).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

/// The servers of a context that have one of these addresses.
fn servers_at(context: &ConnectionContext, at: &[ipnet::IpNet]) -> Vec<String> {
    let all = context.dns_context.iter().flat_map(|dns| &dns.configs).flat_map(|config| &config.dns_server_ips);
    let is_there = |text: &&String| text.parse().is_ok_and(|server: IpAddr| at.iter().any(|address| address.addr() == server));
    all.filter(is_there).cloned().collect()
}

/// At the end of wires that others begin, after [`Addresses`].
impl Reserve for Names {
    fn reserve(&self, draft: &mut Draft) -> Result<()> {
        let own = self.0.addresses.own();
        let identity = self.identity(&draft.connection);
        let names = self.names(&draft.connection, &identity);
        let context = &mut draft.connection.context;
        let endpoint = !servers_at(context, &context.ip_context.src_ip_addrs).is_empty();
        let ours = |text: &String| {
            text.parse().is_ok_and(|server: IpAddr| own.iter().any(|own| whole(&(*own).into()).is_some_and(|net| net.contains(&server))))
        };
        let mut config = DnsConfig { dns_server_ips: own.iter().map(ToString::to_string).collect(), ..DnsConfig::default() };
        let configs = &mut context.dns_context.get_or_insert_default().configs;
        if endpoint {
            configs.retain(|other| other.dns_server_ips != config.dns_server_ips);
        } else {
            // What another endpoint of the network said, or this one before, is void.
            configs.retain(|other| !other.dns_server_ips.iter().any(ours));
            for domain in names.iter().flat_map(|name| search_domains(name)) {
                if !config.search_domains.contains(&domain) {
                    config.search_domains.push(domain);
                }
            }
        }
        configs.push(config);
        Ok(())
    }

    fn keep(&self, connection: &Connection) {
        let (id, context) = (connection.id.as_str(), &connection.context);
        let peer = servers_at(context, &context.ip_context.src_ip_addrs);
        if !peer.is_empty() {
            return self.ask_there(id, peer);
        }
        let identity = self.identity(connection);
        let addresses = context.ip_context.src_ip_addrs.iter().map(ipnet::IpNet::addr).collect();
        self.want(id, self.names(connection, &identity), &identity, addresses);
    }

    fn restore(&self, agreed: &Agreed) {
        self.keep(&agreed.connection);
    }

    fn release(&self, id: &ConnectionId) {
        self.forget(id.as_str());
    }
}

/// At the beginning of wires to other endpoints.
pub struct PeerNames(pub Names);

impl Reserve for PeerNames {
    fn reserve(&self, _: &mut Draft) -> Result<()> {
        Ok(())
    }
    fn keep(&self, connection: &Connection) {
        let theirs = servers_at(&connection.context, &connection.context.ip_context.dst_ip_addrs);
        self.0.ask_there(connection.id.as_str(), theirs);
    }
    fn release(&self, id: &ConnectionId) {
        self.0.ask_there(id.as_str(), Vec::new());
    }
}

#[cfg(test)]
mod tests;
