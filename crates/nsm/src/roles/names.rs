//! Names for the workload beside a client: a resolver that asks the servers which its vWires bring along (E-20).
//!
//! It starts with the first vWire that brings any, and then makes the workload ask it, by /etc/resolv.conf. At the end
//! that file is as it was; after a kill the next client repairs it.

use crate::shutdown::Shutdown;
use nsm_api::*;
use nsm_dns::{Resolver, resolv_conf::ResolvConf};
use nsm_hop::role::{Draft, Reserve};
use std::{collections::BTreeMap, net::SocketAddr, path::Path};
use tokio::{sync::watch, task::JoinHandle};
use tracing::{info, warn};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Under which name the resolver knows the servers that the workload had before.
const FORMER: &str = "resolv.conf";

/// What each connection brings.
type Table = BTreeMap<ConnectionId, Vec<DnsConfig>>;

/// Tells the resolver what connections bring.
pub(super) struct Names(watch::Sender<Table>);

impl Reserve for Names {
    fn reserve(&self, draft: &mut Draft) -> Result<()> {
        draft.connection.context.dns_context.get_or_insert_default(); // some endpoints add to it only when it is there
        Ok(())
    }
    fn keep(&self, connection: &Connection) {
        let configs = connection.context.dns_context.as_ref().map(|context| context.configs.clone()).unwrap_or_default();
        self.0.send_if_modified(|table| table.insert(connection.id.clone(), configs.clone()).as_ref() != Some(&configs));
    }
    fn release(&self, id: &ConnectionId) {
        self.0.send_if_modified(|table| table.remove(id).is_some());
    }
}

/// Whether this process's resolv.conf is a mount of its own, as in a container: a machine's own is nobody's to change
/// unless they say so.
pub(super) fn has_own_resolv_conf() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    is_mount_point(&mounts, RESOLV_CONF)
}

fn is_mount_point(mounts: &str, path: &str) -> bool {
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(path))
}

/// Starts to serve names on `address`; ends, with everything restored, at the shutdown.
pub(super) fn serve(address: SocketAddr, shutdown: Shutdown) -> (Names, JoinHandle<()>) {
    let (sender, mut table) = watch::channel(Table::new());
    let serving = async move {
        let started = tokio::select! {
            started = start(address, &mut table) => started,
            () = shutdown.started() => None,
        };
        let Some((resolver, file)) = started else { return };
        let follow = follow(&resolver, &mut table);
        tokio::select! {
            () = follow => {}
            () = shutdown.started() => {}
        }
        if let Err(error) = file.restore() {
            warn!(%error, "resolv.conf stays as it is; the next client repairs it");
        }
    };
    (Names(sender), tokio::spawn(serving))
}

/// Waits for the first servers; then listens, and makes the workload ask here.
async fn start(address: SocketAddr, table: &mut watch::Receiver<Table>) -> Option<(Resolver, ResolvConf)> {
    loop {
        table.wait_for(|table| table.values().any(|configs| !configs.is_empty())).await.ok()?;
        match take_over(address).await {
            Ok(started) => {
                info!(%address, "names of network services are answered here");
                table.mark_changed();
                return Some(started);
            }
            Err(error) => warn!(%error, "no names of network services for the workload"),
        }
        table.changed().await.ok()?;
    }
}

async fn take_over(address: SocketAddr) -> Result<(Resolver, ResolvConf)> {
    let resolver = Resolver::start(address).await?;
    let (file, former) = ResolvConf::take_over(Path::new(RESOLV_CONF), resolver.address().ip())?;
    resolver.set(FORMER, &[former])?;
    Ok((resolver, file))
}

/// Tells the resolver every change.
async fn follow(resolver: &Resolver, table: &mut watch::Receiver<Table>) {
    let mut known = Table::new();
    while table.changed().await.is_ok() {
        let now = table.borrow_and_update().clone();
        let gone = known.keys().filter(|id| !now.contains_key(*id)).map(|id| (id, &[][..]));
        let new = now.iter().filter(|(id, configs)| known.get(*id) != Some(configs)).map(|(id, configs)| (id, &configs[..]));
        for (id, configs) in gone.chain(new) {
            if let Err(error) = resolver.set(id.as_str(), configs) {
                warn!(%error, %id, "its name servers are not asked");
            }
        }
        known = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_of_its_own_is_seen() {
        let line = |path| format!("36 35 98:0 /etc/resolv.conf {path} rw,noatime master:1 - ext4 /dev/vda rw");
        assert!(is_mount_point(&line("/etc/resolv.conf"), RESOLV_CONF));
        assert!(!is_mount_point(&line("/mnt/etc/resolv.conf"), RESOLV_CONF));
        assert!(!is_mount_point("", RESOLV_CONF));
    }
}
