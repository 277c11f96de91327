//! Registries that last: two engines behind the trait of `nsm-registry`.
//!
//! [`DurableEngine`] keeps a registry in one file of this machine: what it acknowledged is on disk. [`EtcdEngine`]
//! keeps it in an etcd cluster, which any number of stateless registry processes share. Both answer Find and watches
//! from the index of [`nsm_registry::MemoryEngine`], so that they mean the same.
//!
//! Not here: who owns a name and how long an endpoint lives (`nsm_registry::Registry` decides); which engine a
//! process uses (its role decides).

#![forbid(unsafe_code)]

mod clock;
mod durable;
mod etcd;
mod record;

pub use clock::{Clock, Moment, SystemClock};
pub use durable::{
    DurableEngine, FILE_NAME, FORMAT, FileMedium, MAX_BACKUPS, MAX_BATCH, MAX_QUEUED_WRITES, MIN_BACKUP_PERIOD, Medium, REOPEN_PAUSE,
    SWEEP_PERIOD, WRITE_TIMEOUT,
};
pub use etcd::{
    CALL_DEADLINE, CALL_TIMEOUT, CONNECT_TIMEOUT, DEFAULT_PREFIX, EtcdEngine, EtcdOptions, EtcdTls, MAX_ENDPOINTS, MAX_LEASES, PAGE,
    RETRY_PAUSES, SYNC_TIMEOUT,
};
/// What a [`Medium`] opens: bytes that can be read, written and made durable.
pub use redb::StorageBackend;
