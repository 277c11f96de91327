//! What the tests of this crate share.

use crate::{Authority, Identity, Source, WorkloadSocket, install_crypto_provider, peer};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tokio::{sync::oneshot, task::JoinHandle};

/// How long any single step of a test may take.
const BOUND: Duration = Duration::from_secs(20);

pub(crate) async fn bounded<T>(step: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, step).await.expect("the step did not end in time")
}

/// A directory that goes with the test.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new() -> Dir {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("nsm-identity-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Dir(path)
    }
    pub(crate) fn root(&self) -> &Path {
        &self.0
    }
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An authority that serves one socket.
pub(crate) struct Running {
    pub(crate) authority: Authority,
    pub(crate) path: PathBuf,
    stop: oneshot::Sender<()>,
    task: JoinHandle<nsm_api::Result<()>>,
}

impl Running {
    pub(crate) fn start(authority: Authority, socket: WorkloadSocket) -> Running {
        install_crypto_provider();
        let (stop, stopped) = oneshot::channel::<()>();
        let path = socket.path.clone();
        let serving = authority.clone().serve(vec![socket], async move { drop(stopped.await) }).unwrap();
        Running { authority, path, stop, task: tokio::spawn(serving) }
    }
    /// `spiffe://example.org/workload/w` from a fresh authority.
    pub(crate) fn workload(dir: &Dir, life: Duration) -> Running {
        Running::of(Authority::new("example.org").unwrap().with_svid_life(life), dir)
    }
    /// `/workload/w` from this authority, always on the same path.
    pub(crate) fn of(authority: Authority, dir: &Dir) -> Running {
        let id = authority.id(&["workload", "w"]).unwrap();
        Running::start(authority, WorkloadSocket::new(dir.path("w.sock"), Identity::Fixed(id)))
    }
    pub(crate) async fn source(&self) -> Source {
        Source::connect(&format!("unix://{}", self.path.display()), BOUND).await.unwrap()
    }
    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        bounded(self.task).await.unwrap().unwrap();
    }
}

/// Verifies an ES256 token with a certificate; its header and its claims.
pub(crate) fn verify(token: &str, certificate: &CertificateDer<'_>) -> (Value, Value) {
    let leaf = peer::parse(certificate).unwrap();
    let key = DecodingKey::from_ec_der(&leaf.public_key().subject_public_key.data);
    let mut rules = Validation::new(Algorithm::ES256);
    rules.validate_aud = false;
    let token = jsonwebtoken::decode::<Value>(token, &key, &rules).unwrap();
    (serde_json::to_value(token.header).unwrap(), token.claims)
}
