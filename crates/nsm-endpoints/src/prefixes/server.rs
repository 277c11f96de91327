//! Answers the streams of clients, and keeps what it lent in a file.

use super::{Outcome, Pool, StreamId, Times};
use async_trait::async_trait;
use ipnet::IpNet;
use nsm_api::{Error, PrefixApi, PrefixGrant, PrefixRequest, PrefixStream, Result, SpiffeId};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

/// How long a client that names what another stream of its own still holds is kept waiting for the end of that.
pub const HANDOVER: Duration = Duration::from_secs(2);
/// Between two looks while a client waits.
const PAUSE: Duration = Duration::from_millis(20);

/// A server of one pool.
#[derive(Clone)]
pub struct PrefixServer(Arc<Inner>);

struct Inner {
    pool: Mutex<Pool>,
    file: Option<PathBuf>,
    started: Instant,
    settling: Duration,
    streams: AtomicU64,
}

impl PrefixServer {
    /// Lends prefixes of length `length` from `all`. `file`, where given, keeps what is lent over restarts.
    pub fn open(all: IpNet, length: u8, times: Times, file: Option<PathBuf>) -> Result<PrefixServer> {
        let mut pool = Pool::new(all, length, times)?;
        if let Some(known) = file.as_deref().map(read).transpose()?.flatten() {
            info!(prefixes = known.len(), "a former process lent these; they wait for their holders");
            pool.restore(known);
        }
        let (pool, started, streams) = (Mutex::new(pool), Instant::now(), AtomicU64::new(0));
        Ok(PrefixServer(Arc::new(Inner { pool, file, started, settling: times.settling, streams })))
    }
}

impl PrefixApi for PrefixServer {
    fn open(&self, holder: SpiffeId) -> Box<dyn PrefixStream> {
        Box::new(Stream { server: self.0.clone(), id: self.0.streams.fetch_add(1, Ordering::Relaxed), holder: holder.to_string() })
    }
}

impl Inner {
    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Changes the pool; nothing has changed unless that is in the file.
    fn change<T>(&self, change: impl FnOnce(&mut Pool) -> Result<T>) -> Result<T> {
        let mut pool = self.pool();
        let mut next = pool.clone();
        let done = change(&mut next)?;
        if let Some(file) = self.file.as_deref().filter(|_| !next.loans().eq(pool.loans())) {
            write(file, &next)?;
        }
        *pool = next;
        Ok(done)
    }
}

struct Stream {
    server: Arc<Inner>,
    id: StreamId,
    holder: String,
}

#[async_trait]
impl PrefixStream for Stream {
    async fn ask(&mut self, request: PrefixRequest) -> Result<Option<PrefixGrant>> {
        let (wanted, excluded) = match request {
            PrefixRequest::Allocate { wanted, excluded } => (wanted, excluded),
            PrefixRequest::Release(prefix) => {
                self.server.change(|pool| pool.release(self.id, &prefix))?;
                info!(%prefix, holder = self.holder, "given back");
                return Ok(None);
            }
        };
        let prefix = self.allocate(wanted, &excluded).await?;
        info!(%prefix, holder = self.holder, "lent");
        Ok(Some(PrefixGrant { prefix, excluded }))
    }
}

impl Stream {
    async fn allocate(&self, wanted: Option<IpNet>, excluded: &[IpNet]) -> Result<IpNet> {
        let patient_until = Instant::now() + HANDOVER.max(self.server.settling);
        loop {
            let wish = wanted.filter(|_| Instant::now() < patient_until);
            let now = self.server.now();
            match self.server.change(|pool| pool.ask(now, (self.id, &self.holder), wish, excluded))? {
                Outcome::Lent(prefix) => return Ok(prefix),
                Outcome::Later => sleep(PAUSE).await,
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let now = self.server.now();
        self.server.pool().end(now, self.id);
    }
}

fn failed(file: &Path, what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::internal(format!("file {}", file.display()), format!("cannot be {what}: {error}"))
}

/// What is in the file; `None` when there is none.
fn read(file: &Path) -> Result<Option<BTreeMap<IpNet, String>>> {
    match fs::read(file) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| failed(file, "understood", &error)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(file, "read", &error)),
    }
}

/// Replaces the file in one step.
fn write(file: &Path, pool: &Pool) -> Result<()> {
    let known: BTreeMap<IpNet, &str> = pool.loans().collect();
    let text = serde_json::to_vec(&known).map_err(|error| failed(file, "written", &error))?;
    let draft = file.with_extension("new");
    let replace = || {
        let mut out = File::create(&draft)?;
        out.write_all(&text)?;
        out.sync_all()?;
        fs::rename(&draft, file)?;
        file.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    replace().map_err(|error| {
        warn!(file = %file.display(), %error, "no prefix is lent, because it could not be remembered");
        failed(file, "written", &error)
    })
}

#[cfg(test)]
mod tests;
