//! The engine over an etcd cluster: any number of stateless registry processes share one state.
//!
//! A write is one transaction that compares the revision of its key, so that a decision about a record never rests on
//! an old one. Reads of one name go to the cluster; other Finds and all watches are answered from an index that one
//! etcd watch per process keeps up to date, after it has caught up with the cluster's last write.
//!
//! Not here: compaction, which etcd does itself when it is started with `--auto-compaction-retention`; users and
//! passwords of etcd (use client certificates).

mod cluster;
mod lease;
mod options;
mod replica;
mod store;

/// Generated from `proto/etcd.proto`.
#[allow(missing_docs, rustdoc::all, clippy::all, clippy::pedantic, unreachable_pub, unused_qualifications)]
mod api {
    tonic::include_proto!("etcdserverpb");
}

use cluster::Cluster;
use lease::Leases;
use nsm_api::{NetworkService, NetworkServiceEndpoint, Result};
use nsm_registry::{Engine, MemoryEngine, Store};
use replica::Replica;
use std::sync::Arc;
use store::Shelf;
use tokio::{sync::watch, task::AbortHandle};

pub use cluster::{CALL_DEADLINE, CALL_TIMEOUT, CONNECT_TIMEOUT, RETRY_PAUSES};
pub use lease::MAX_LEASES;
pub use options::{DEFAULT_PREFIX, EtcdOptions, EtcdTls, MAX_ENDPOINTS};
pub use replica::PAGE;
pub use store::SYNC_TIMEOUT;

/// Services and endpoints in an etcd cluster.
pub struct EtcdEngine {
    services: Shelf<NetworkService>,
    endpoints: Shelf<NetworkServiceEndpoint>,
    replica: AbortHandle,
}

/// What both kinds of records share.
struct Shared {
    cluster: Arc<Cluster>,
    prefix: String,
    /// What the process knows of the cluster.
    index: Arc<MemoryEngine>,
    /// Up to which revision.
    applied: watch::Receiver<i64>,
    leases: Leases,
}

impl EtcdEngine {
    /// An engine over this cluster. It need not be reachable yet; until it is, calls are refused as unavailable.
    ///
    /// # Errors
    /// The options name no member, a wrong URL, or files that cannot be read.
    pub fn new(options: &EtcdOptions) -> Result<EtcdEngine> {
        let cluster = Arc::new(Cluster::new(options.object(), options.members()?));
        let index = Arc::new(MemoryEngine::new());
        let (told, applied) = watch::channel(0);
        let replica = Replica::new(cluster.clone(), options.prefix.clone(), index.clone(), told);
        let replica = tokio::spawn(replica.run()).abort_handle();
        let shared = Arc::new(Shared { cluster, prefix: options.prefix.clone(), index, applied, leases: Leases::new() });
        Ok(EtcdEngine { services: Shelf::new(shared.clone()), endpoints: Shelf::new(shared), replica })
    }
}

impl Drop for EtcdEngine {
    fn drop(&mut self) {
        self.replica.abort();
    }
}

impl Engine for EtcdEngine {
    fn services(&self) -> &dyn Store<NetworkService> {
        &self.services
    }
    fn endpoints(&self) -> &dyn Store<NetworkServiceEndpoint> {
        &self.endpoints
    }
}

/// The end of the range of keys that begin with `prefix`, which ends with a character below the last byte.
fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}

/// The key that every write of ours touches: its revision tells how far an index must be.
fn last_key(prefix: &str) -> String {
    format!("{prefix}last")
}
