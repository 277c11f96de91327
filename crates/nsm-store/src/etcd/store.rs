//! Records of one kind in the cluster.

use super::{
    Shared,
    api::{
        Compare, DeleteRangeRequest, KeyValue, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse, compare, kv_client::KvClient,
        request_op::Request as Operation,
    },
    cluster::{Failure, MAX_CALL_TRIES, pause},
    last_key,
};
use crate::record::Persist;
use async_trait::async_trait;
use nsm_api::{Error, Kind, Result};
use nsm_registry::{Changes, Revision, Store, Stored};
use std::{marker::PhantomData, sync::Arc, time::Duration};
use tonic::Code;

/// How long a Find waits until this process has heard of the cluster's last write.
pub const SYNC_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes before the record: who wrote it, so that a writer whose answer was lost finds out.
const MARK_BYTES: usize = 16;
type Mark = [u8; MARK_BYTES];

pub(super) struct Shelf<R: Persist> {
    shared: Arc<Shared>,
    kind: PhantomData<fn(R)>,
}

pub(super) fn key_of<R: Persist>(prefix: &str, name: &str) -> String {
    format!("{prefix}{}/{name}", R::TABLE)
}

/// A value as it was written.
pub(super) fn read<R: Persist>(kv: &KeyValue) -> Result<(R, Mark)> {
    let Some((mark, record)) = kv.value.split_first_chunk::<MARK_BYTES>() else {
        return Err(Error::invalid(format!("etcd key {:?}", String::from_utf8_lossy(&kv.key)), "holds no record", "delete it"));
    };
    Ok((R::decode(record)?, *mark))
}

fn revision_of(kv: &KeyValue) -> Revision {
    Revision(kv.mod_revision.unsigned_abs())
}

/// What became of a transaction.
enum Outcome {
    Done(Revision),
    /// The revision was another: nothing was done.
    Outrun,
    /// The lease is gone: nothing was done.
    NoLease,
    Unknown(Failure),
}

impl<R: Persist> Shelf<R> {
    pub(super) fn new(shared: Arc<Shared>) -> Shelf<R> {
        Shelf { shared, kind: PhantomData }
    }

    fn key(&self, name: &R::Name) -> String {
        key_of::<R>(&self.shared.prefix, R::key(name))
    }

    fn indexed(&self) -> &dyn Store<R> {
        R::store(&*self.shared.index)
    }

    async fn read_key(&self, key: String) -> Result<Option<KeyValue>> {
        let request = RangeRequest { key: key.into(), ..RangeRequest::default() };
        let ask = |channel| {
            let request = request.clone();
            async move { KvClient::new(channel).range(request).await }
        };
        Ok(self.shared.cluster.call(ask).await?.kvs.pop())
    }

    /// One try of `operation`, if the key is at `expected`.
    async fn transact(&self, key: &str, expected: Option<Revision>, operation: Operation) -> Result<Outcome> {
        let present = expected.map_or(0, |revision| i64::try_from(revision.0).unwrap_or(i64::MAX));
        let compare = Compare {
            target: compare::CompareTarget::Mod.into(),
            key: key.to_owned().into(),
            target_union: Some(compare::TargetUnion::ModRevision(present)),
            ..Compare::default()
        };
        let touch = Operation::RequestPut(PutRequest { key: last_key(&self.shared.prefix).into(), ..PutRequest::default() });
        let success = [operation, touch].map(|operation| RequestOp { request: Some(operation) });
        let request = TxnRequest { compare: vec![compare], success: success.into() };
        match self.shared.cluster.once(|channel| async move { KvClient::new(channel).txn(request).await }).await {
            Ok(TxnResponse { succeeded: true, header }) => Ok(Outcome::Done(Revision(header.unwrap_or_default().revision.unsigned_abs()))),
            Ok(TxnResponse { succeeded: false, .. }) => Ok(Outcome::Outrun),
            Err(Failure::Refused(status)) if status.code() == Code::NotFound => Ok(Outcome::NoLease),
            Err(failure @ Failure::Refused(_)) => Err(self.shared.cluster.error(failure)),
            // Nobody has heard it: it may be tried again like one that was never made.
            Err(failure) => Ok(Outcome::Unknown(failure)),
        }
    }

    fn undecided(&self, name: &R::Name, failure: Failure) -> Error {
        let cause = self.shared.cluster.error(failure).reason;
        let reason = format!("may or may not be written ({cause})");
        Error::new(Kind::Timeout, R::object(name), reason, "try again")
    }

    /// Waits until the index has every write that was acknowledged before this call.
    async fn catch_up(&self) -> Result<()> {
        let last = self.read_key(last_key(&self.shared.prefix)).await?.map_or(0, |kv| kv.mod_revision);
        let mut applied = self.shared.applied.clone();
        // Also an empty cluster must have been read once.
        let caught_up = applied.wait_for(|applied| *applied >= last.max(1));
        match tokio::time::timeout(SYNC_TIMEOUT, caught_up).await {
            Ok(Ok(_)) => Ok(()),
            _ => {
                let reason = format!("has not heard of the cluster's last write within {} s", SYNC_TIMEOUT.as_secs());
                Err(Error::new(Kind::Unavailable, "registry over etcd", reason, "look at the members of the cluster, then try again"))
            }
        }
    }
}

#[async_trait]
impl<R: Persist> Store<R> for Shelf<R> {
    async fn get(&self, name: &R::Name) -> Result<Option<Stored<R>>> {
        let Some(kv) = self.read_key(self.key(name)).await? else { return Ok(None) };
        let (record, _) = read::<R>(&kv)?;
        Ok(Some(Stored { record: Arc::new(record), revision: revision_of(&kv) }))
    }

    async fn put(&self, record: Arc<R>, expected: Option<Revision>, life: Option<Duration>) -> Result<Option<Revision>> {
        let (key, mark, mut tries) = (self.key(record.name()), rand::random::<Mark>(), 0);
        let value = [&mark[..], &record.encode()].concat();
        loop {
            let lease = match life {
                Some(life) => self.shared.leases.ending(&self.shared.cluster, life).await?,
                None => 0,
            };
            let put = PutRequest { key: key.clone().into(), value: value.clone(), lease };
            tries += 1;
            let failure = match self.transact(&key, expected, Operation::RequestPut(put)).await? {
                Outcome::Done(revision) => return Ok(Some(revision)),
                Outcome::Outrun if tries == 1 => return Ok(None),
                Outcome::Outrun => Failure::Unknown(tonic::Status::aborted("another write followed")),
                Outcome::NoLease if tries < MAX_CALL_TRIES => {
                    self.shared.leases.forget(lease);
                    continue;
                }
                Outcome::NoLease => return Err(self.undecided(record.name(), Failure::Unknown(tonic::Status::not_found("no lease lasts")))),
                Outcome::Unknown(failure) => failure,
            };
            pause(tries).await;
            let present = self.read_key(key.clone()).await?;
            match &present {
                Some(kv) if kv.value.starts_with(&mark) => return Ok(Some(revision_of(kv))),
                // The same revision never comes back, so a second try cannot undo what somebody did after the first.
                Some(kv) if Some(revision_of(kv)) == expected && tries < MAX_CALL_TRIES => {}
                _ if matches!(failure, Failure::Unsent(_)) && tries == 1 => return Err(self.shared.cluster.error(failure)),
                _ => return Err(self.undecided(record.name(), failure)),
            }
        }
    }

    async fn remove(&self, name: &R::Name, expected: Revision) -> Result<bool> {
        let (key, mut tries) = (self.key(name), 0);
        loop {
            let delete = DeleteRangeRequest { key: key.clone().into() };
            tries += 1;
            let failure = match self.transact(&key, Some(expected), Operation::RequestDeleteRange(delete)).await? {
                Outcome::Done(_) => return Ok(true),
                Outcome::Outrun if tries == 1 => return Ok(false),
                Outcome::Outrun | Outcome::NoLease => Failure::Unknown(tonic::Status::aborted("another write followed")),
                Outcome::Unknown(failure) => failure,
            };
            pause(tries).await;
            match self.read_key(key.clone()).await? {
                None => return Ok(true),
                Some(kv) if revision_of(&kv) == expected && tries < MAX_CALL_TRIES => {}
                Some(_) => return Err(self.undecided(name, failure)),
            }
        }
    }

    async fn find(&self, query: &R::Query) -> Result<Vec<Arc<R>>> {
        if let Some(name) = R::name_in(query) {
            let present = self.get(name).await?;
            return Ok(present.map(|stored| stored.record).filter(|record| record.matches(query)).into_iter().collect());
        }
        self.catch_up().await?;
        self.indexed().find(query).await
    }

    async fn watch(&self, query: R::Query) -> Result<Changes<R>> {
        self.catch_up().await?;
        self.indexed().watch(query).await
    }
}
