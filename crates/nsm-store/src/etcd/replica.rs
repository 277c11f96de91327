//! What this process knows of the cluster: one watch over all our keys feeds the index.
//!
//! A watch that ends goes on from the next revision at any member, so nothing is missed. Where those revisions are
//! compacted, everything is read again: what is gone is removed, what is there is put.

use super::{
    after,
    api::{
        Event, KeyValue, RangeRequest, RangeResponse, WatchCreateRequest, WatchRequest, WatchResponse, event::EventType,
        kv_client::KvClient, watch_client::WatchClient, watch_request::RequestUnion,
    },
    cluster::{CALL_TIMEOUT, Cluster, Line, deadline, pause, require_leader},
    store::{key_of, read},
};
use crate::record::Persist;
use futures::{Stream, StreamExt};
use nsm_api::{NetworkService, NetworkServiceEndpoint, Result};
use nsm_registry::MemoryEngine;
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::watch;
use tonic::{Code, Request, Status};

/// Records that one answer holds at most while all are read.
pub const PAGE: i64 = 256;
/// Bytes of one answer; a page of the largest records stays far below.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

pub(super) struct Replica {
    cluster: Arc<Cluster>,
    prefix: String,
    services: Kept<NetworkService>,
    endpoints: Kept<NetworkServiceEndpoint>,
    index: Arc<MemoryEngine>,
    revision: i64,
    told: watch::Sender<i64>,
}

/// The names in the index, by their keys.
type Kept<R> = BTreeMap<Vec<u8>, <R as nsm_registry::Record>::Name>;

/// Why a watch ended.
enum Ended {
    /// The history that the index rests on is not there: compacted, or of a cluster that was since restored or made anew.
    Lost,
    Failed(Status),
}

impl Replica {
    pub(super) fn new(cluster: Arc<Cluster>, prefix: String, index: Arc<MemoryEngine>, told: watch::Sender<i64>) -> Replica {
        Replica { cluster, prefix, services: BTreeMap::new(), endpoints: BTreeMap::new(), index, revision: 0, told }
    }

    pub(super) async fn run(mut self) {
        let mut failures = 0;
        loop {
            let before = self.revision;
            if before == 0
                && let Err(error) = self.read_all().await
            {
                tracing::debug!(%error, "the registry waits for its cluster");
            }
            if self.revision > 0 {
                match self.follow().await {
                    Ended::Lost => self.revision = 0,
                    Ended::Failed(status) => tracing::debug!(%status, "the watch of the cluster ended, it goes on at the next member"),
                }
            }
            failures = if self.revision > before { 0 } else { failures + 1 };
            pause(failures, deadline()).await;
        }
    }

    /// Brings the index to one revision of the cluster.
    async fn read_all(&mut self) -> Result<()> {
        let (mut from, mut revision) = (self.prefix.clone().into_bytes(), 0);
        let (mut services, mut endpoints) = (std::mem::take(&mut self.services), std::mem::take(&mut self.endpoints));
        let outcome = loop {
            let page = match self.page(from.clone(), revision).await {
                Ok(page) => page,
                Err(error) => break Err(error),
            };
            if revision == 0 {
                revision = page.header.unwrap_or_default().revision;
            }
            for kv in &page.kvs {
                services.remove(&kv.key);
                endpoints.remove(&kv.key);
                self.put(kv).await;
            }
            match page.kvs.last() {
                Some(last) if page.more => from = [&last.key[..], &[0]].concat(),
                _ => break Ok(revision),
            }
        };
        if let Err(error) = outcome {
            self.services.append(&mut services);
            self.endpoints.append(&mut endpoints);
            return Err(error);
        }
        for name in services.values() {
            hide::<NetworkService>(&self.index, name).await;
        }
        for name in endpoints.values() {
            hide::<NetworkServiceEndpoint>(&self.index, name).await;
        }
        self.tell(revision);
        Ok(())
    }

    async fn page(&self, key: Vec<u8>, revision: i64) -> Result<RangeResponse> {
        let request = RangeRequest { key, range_end: after(&self.prefix), limit: PAGE, revision };
        let ask = |line: Line| {
            let request = request.clone();
            async move { KvClient::new(line).max_decoding_message_size(MAX_MESSAGE_BYTES).range(request).await }
        };
        self.cluster.call(deadline(), ask).await
    }

    /// Applies changes until the watch ends.
    async fn follow(&mut self) -> Ended {
        let cluster = self.cluster.clone();
        let (generation, channel) = match cluster.channel().await {
            Ok(linked) => linked,
            Err(error) => return Ended::Failed(Status::unavailable(error.to_string())),
        };
        let create =
            WatchCreateRequest { key: self.prefix.clone().into(), range_end: after(&self.prefix), start_revision: self.revision + 1 };
        let asked = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        // The sending side stays open: etcd ends the watch with it.
        let request = Request::new(futures::stream::iter([asked]).chain(futures::stream::pending()));
        // A member that has lost the others ends the watch instead of saying nothing.
        let mut client = WatchClient::with_interceptor(channel, require_leader).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let opened = tokio::time::timeout(CALL_TIMEOUT, client.watch(request)).await;
        let ended = match opened.unwrap_or_else(|_| Err(Status::deadline_exceeded("no watch"))) {
            // Where calls go elsewhere the watch follows: etcd itself takes seconds to end it at a member that is alone.
            Ok(responses) => self.apply(responses.into_inner().take_until(Box::pin(cluster.left(generation)))).await,
            Err(status) => Ended::Failed(status),
        };
        if matches!(ended, Ended::Failed(_)) {
            self.cluster.lost(generation);
        }
        ended
    }

    async fn apply(&mut self, mut responses: impl Stream<Item = Result<WatchResponse, Status>> + Unpin) -> Ended {
        while let Some(response) = responses.next().await {
            let response = match response {
                Ok(response) => response,
                Err(status) => return Ended::Failed(status),
            };
            // A member that is only behind costs a needless reading.
            let behind = response.created && response.header.is_some_and(|header| header.revision < self.revision);
            if response.compact_revision > 0 || behind {
                return Ended::Lost;
            }
            if response.canceled {
                return Ended::Failed(Status::new(Code::Cancelled, response.cancel_reason));
            }
            for event in &response.events {
                self.change(event).await;
            }
            if let Some(last) = response.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision).max() {
                self.tell(last);
            }
        }
        Ended::Failed(Status::cancelled("the member ended the watch"))
    }

    fn tell(&mut self, revision: i64) {
        self.revision = revision;
        self.told.send_replace(revision);
    }

    async fn change(&mut self, event: &Event) {
        let Some(kv) = &event.kv else { return };
        if event.r#type() == EventType::Put {
            return self.put(kv).await;
        }
        if let Some(name) = self.services.remove(&kv.key) {
            hide::<NetworkService>(&self.index, &name).await;
        } else if let Some(name) = self.endpoints.remove(&kv.key) {
            hide::<NetworkServiceEndpoint>(&self.index, &name).await;
        }
    }

    async fn put(&mut self, kv: &KeyValue) {
        if kv.key.starts_with(key_of::<NetworkService>(&self.prefix, "").as_bytes()) {
            show::<NetworkService>(&self.index, &mut self.services, kv).await;
        } else if kv.key.starts_with(key_of::<NetworkServiceEndpoint>(&self.prefix, "").as_bytes()) {
            show::<NetworkServiceEndpoint>(&self.index, &mut self.endpoints, kv).await;
        }
    }
}

/// What somebody else wrote under our keys and nobody can read is not shown, and not kept from being replaced.
async fn show<R: Persist>(index: &MemoryEngine, kept: &mut Kept<R>, kv: &KeyValue) {
    let shown = match read::<R>(kv) {
        Ok((record, _)) => {
            kept.insert(kv.key.clone(), record.name().clone());
            let store = R::store(index);
            let present = store.get(record.name()).await.map(|stored| stored.map(|stored| stored.revision));
            match present {
                Ok(present) => store.put(Arc::new(record), present, None).await.map(drop),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    };
    if let Err(error) = shown {
        tracing::warn!(%error, key = %String::from_utf8_lossy(&kv.key), "a record of the cluster is not shown");
        if let Some(name) = kept.remove(&kv.key) {
            hide::<R>(index, &name).await;
        }
    }
}

async fn hide<R: Persist>(index: &MemoryEngine, name: &R::Name) {
    let store = R::store(index);
    if let Ok(Some(stored)) = store.get(name).await {
        let _ = store.remove(name, stored.revision).await;
    }
}
