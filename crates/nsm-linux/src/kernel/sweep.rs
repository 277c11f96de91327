//! Links that a former process of a hop has made and that no connection of the present one knows of: its journal was lost.
//!
//! They may carry packets, so they stay for as long as somebody may still have a token for them. Whoever has one asks
//! again in that time, and then the link is a connection's. What is left after it goes, with everything that leads through
//! it. Looked at is what this hop has made from this network namespace, and that only while no other process is this hop.
//!
//! Not here: a link whose maker ended before it could write its tag. It cannot be told whose it is; it is down.

use super::{
    LinuxKernel,
    job::Job,
    links,
    pinhole::Pinhole,
    policy,
    tag::{self, Tag},
};
use crate::{error::refused, find, link, netns, nl::Refusal};
use nsm_api::{ConnectionId, HopName, Result};
use nsm_hop::kernel::{Netns, Owner};
use rustix::io::Errno;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    sync::Arc,
    time::Duration,
};
use tokio::time::sleep;
use tracing::{debug, info, warn};

/// Between two looks at least, whatever tokens say.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// What is looked for, and when.
#[derive(Clone)]
pub struct Forgotten {
    /// The hop that made it, and its present generation: only what is older counts.
    pub hop: (HopName, u64),
    /// The longest life of a token of this hop: after that every connection has been asked for again. Also the pause
    /// between two looks.
    pub after: Duration,
    /// The connections that the hop has now, whatever their state.
    pub known: Arc<dyn Fn() -> BTreeSet<ConnectionId> + Send + Sync>,
}

impl LinuxKernel {
    /// Removes what is forgotten, now and again. Never ends. To be called in the namespace of the underlay.
    pub async fn sweep(self, what: Forgotten) {
        let mut place = None;
        loop {
            // Held from now on: a process that comes later leaves alone what this one has made.
            place = place
                .or_else(|| only_one(&what.hop.0, self.0.home).inspect_err(|error| debug!(%error, "another process is this hop")).ok());
            sleep(what.after.max(LEAST_PAUSE)).await;
            if place.is_none() {
                continue;
            }
            match self.sweep_now(&what).await {
                Ok(0) => {}
                Ok(links) => info!(links, "links of a former life, of which nobody knows any more, were removed"),
                Err(error) => warn!(%error, "links of a former life could not be looked through; tried again later"),
            }
        }
    }

    /// Removes what is forgotten, in every namespace that can be seen. Says how many links that were.
    pub async fn sweep_now(&self, what: &Forgotten) -> Result<usize> {
        // Whose connection does not matter yet.
        let owner = Owner { hop: what.hop.0.clone(), connection: ConnectionId::new("any")?, generation: what.hop.1 };
        let tag = Tag::of(&owner, Some(self.0.home));
        let looked = tag.clone();
        let former = netns::visit(move |visitor| former(&mut Job::new(visitor, looked))).await?;
        let mut links = 0;
        for ((netns, connection), indexes) in former {
            let known = what.known.clone();
            let named = connection.clone();
            // At the connection's own turnstile: it may come up at this very moment.
            let swept = self.tagged_job(tag.with_connection(connection), move |inner, mut job| {
                if known().iter().any(|id| tag::spelled(id.as_str()) == named) {
                    return Ok(0);
                }
                remove(inner, &mut job, &netns, &indexes)
            });
            links += swept.await?;
        }
        Ok(links)
    }
}

/// Links by place and connection.
type Former = BTreeMap<(Netns, String), Vec<u32>>;

/// All links of former processes. A namespace that goes away meanwhile has none.
fn former(job: &mut Job) -> Former {
    let mut found = Former::new();
    for netns in find::all_namespaces() {
        let links = job.socket(&netns).ok().and_then(|socket| link::all(socket).ok()).unwrap_or_default();
        for link in links {
            if let Some(connection) = job.tag.former(&link) {
                found.entry((netns.clone(), connection)).or_default().push(link.index);
            }
        }
        job.leave(&netns);
    }
    found
}

/// Removes those that are still what they were.
fn remove(inner: &super::Inner, job: &mut Job, netns: &Netns, indexes: &[u32]) -> Result<usize> {
    let failed = |refusal: Refusal| refused(format!("a forgotten link in network namespace {}", netns.key), "remove it", refusal);
    let mut removed = 0;
    for index in indexes {
        let socket = job.socket(netns)?;
        let Some(link) = link::by_index(socket, *index).map_err(failed)? else { continue };
        if job.tag.former(&link).is_none() {
            continue;
        }
        info!(link = link.name, alias = link.alias, %netns.key, "nobody knows of it any more");
        if let Some(pinhole) = pinhole(&link) {
            inner.pinholes.close(&pinhole);
        }
        let socket = job.socket(netns)?;
        policy::drop_through(socket, *index).map_err(failed)?;
        links::take_out(socket, *index).map_err(failed)?;
        removed += 1;
    }
    links::reap(inner, job, &BTreeSet::from([netns.clone()]))?;
    Ok(removed)
}

fn pinhole(link: &link::Link) -> Option<Pinhole> {
    let vxlan = link.vxlan.as_ref()?;
    Some(Pinhole { remote: vxlan.remote?, vni: vxlan.vni, port: vxlan.port })
}

/// A mark in this namespace that only one living process can have.
fn only_one(hop: &HopName, home: u64) -> Result<UnixDatagram> {
    let failed =
        |error: io::Error| refused(format!("hop {hop}"), "mark it as the only one here", Errno::from_io_error(&error).unwrap_or(Errno::IO));
    let name = format!("nsm-hop-{:032x}", tag::hash(&[hop.as_str(), &home.to_string()]));
    SocketAddr::from_abstract_name(name).and_then(|address| UnixDatagram::bind_addr(&address)).map_err(failed)
}
