//! Records of one kind in the cluster.

use super::{
    Shared,
    api::{
        Compare, DeleteRangeRequest, KeyValue, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse, compare, kv_client::KvClient,
        request_op::Request as Operation,
    },
    cluster::{CALL_TIMEOUT, Failure, Line, deadline, pause},
    last_key,
};
use crate::record::Persist;
use async_trait::async_trait;
use nsm_api::{Error, Kind, Result};
use nsm_registry::{Changes, Revision, Store, Stored};
use std::{marker::PhantomData, sync::Arc, time::Duration};
use tokio::time::Instant;
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
    /// Nobody has heard it.
    Unsent(Error),
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

    async fn read_key(&self, key: &str, deadline: Instant) -> Result<Option<KeyValue>> {
        let request = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
        let ask = |line: Line| {
            let request = request.clone();
            async move { KvClient::new(line).range(request).await }
        };
        Ok(self.shared.cluster.call(deadline, ask).await?.kvs.pop())
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
        match self.shared.cluster.once(|line| async move { KvClient::new(line).txn(request).await }).await {
            Ok(TxnResponse { succeeded: true, header }) => Ok(Outcome::Done(Revision(header.unwrap_or_default().revision.unsigned_abs()))),
            Ok(TxnResponse { succeeded: false, .. }) => Ok(Outcome::Outrun),
            Err(Failure::Refused(status)) if status.code() == Code::NotFound => Ok(Outcome::NoLease),
            Err(failure @ Failure::Refused(_)) => Err(self.shared.cluster.error(failure)),
            Err(Failure::Unsent(error)) => Ok(Outcome::Unsent(error)),
            Err(failure) => Ok(Outcome::Unknown(failure)),
        }
    }

    /// What a write is refused with that somebody may have heard.
    fn undecided(&self, name: &R::Name, cause: &str) -> Error {
        Error::new(Kind::Timeout, R::object(name), format!("may or may not be written ({cause})"), "try again")
    }

    /// Writes until it is certain what became of it, or the deadline. `operation` makes one try, of which nothing is left
    /// when it was not heard; `done` recognises its effect in what is there now, if it can be told.
    async fn write<F>(
        &self,
        name: &R::Name,
        expected: Option<Revision>,
        operation: impl Fn(Instant) -> F,
        done: impl Fn(Option<&KeyValue>) -> Option<Revision>,
    ) -> Result<Option<Revision>>
    where
        F: Future<Output = Result<Operation>>,
    {
        let (key, deadline, mut doubt, mut tries) = (self.key(name), deadline(), None, 0);
        loop {
            let operation = operation(deadline).await?;
            let lease = if let Operation::RequestPut(put) = &operation { put.lease } else { 0 };
            let again = match self.transact(&key, expected, operation).await? {
                Outcome::Done(revision) => return Ok(Some(revision)),
                Outcome::Outrun if doubt.is_none() => return Ok(None),
                Outcome::Outrun => {
                    doubt = Some("another write followed".to_owned());
                    None
                }
                Outcome::NoLease => {
                    self.shared.leases.forget(lease);
                    Some(self.undecided(name, "no lease lasts"))
                }
                Outcome::Unsent(error) => Some(error),
                Outcome::Unknown(failure) => {
                    doubt = Some(self.shared.cluster.error(failure).reason);
                    None
                }
            };
            tries += 1;
            let in_time = pause(tries, deadline).await;
            match (again, &doubt) {
                (Some(_), _) if in_time => continue,
                (Some(error), None) => return Err(error),
                (_, doubt) => {
                    let cause = doubt.as_deref().unwrap_or("no answer");
                    let Ok(present) = self.read_key(&key, deadline + CALL_TIMEOUT).await else { return Err(self.undecided(name, cause)) };
                    if let Some(revision) = done(present.as_ref()) {
                        return Ok(Some(revision));
                    }
                    // The same revision never comes back, so a second try cannot undo what somebody did after the first.
                    let unchanged = expected.is_some() && present.as_ref().map(revision_of) == expected;
                    if !unchanged || !in_time {
                        return Err(self.undecided(name, cause));
                    }
                }
            }
        }
    }

    /// Waits until the index has every write that was acknowledged before this call.
    async fn catch_up(&self) -> Result<()> {
        let last = self.read_key(&last_key(&self.shared.prefix), deadline()).await?.map_or(0, |kv| kv.mod_revision);
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
        let Some(kv) = self.read_key(&self.key(name), deadline()).await? else { return Ok(None) };
        let (record, _) = read::<R>(&kv)?;
        Ok(Some(Stored { record: Arc::new(record), revision: revision_of(&kv) }))
    }

    async fn put(&self, record: Arc<R>, expected: Option<Revision>, life: Option<Duration>) -> Result<Option<Revision>> {
        let (key, mark) = (self.key(record.name()), rand::random::<Mark>());
        let value = [&mark[..], &record.encode()].concat();
        let operation = async |deadline| {
            let lease = match life {
                Some(life) => self.shared.leases.ending(&self.shared.cluster, life, deadline).await?,
                None => 0,
            };
            Ok(Operation::RequestPut(PutRequest { key: key.clone().into(), value: value.clone(), lease }))
        };
        let done = |present: Option<&KeyValue>| present.filter(|kv| kv.value.starts_with(&mark)).map(revision_of);
        self.write(record.name(), expected, operation, done).await
    }

    async fn remove(&self, name: &R::Name, expected: Revision) -> Result<bool> {
        let operation = async |_| Ok(Operation::RequestDeleteRange(DeleteRangeRequest { key: self.key(name).into() }));
        let done = |present: Option<&KeyValue>| present.is_none().then_some(expected);
        Ok(self.write(name, Some(expected), operation, done).await?.is_some())
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
