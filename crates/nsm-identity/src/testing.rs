//! What the tests of this crate share.

use crate::{
    Authority, Identity, Source, WorkloadSocket, install_crypto_provider,
    pb::{
        self,
        spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
    },
    peer,
};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tonic::{Request, Response, Status};

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

/// A Workload API that gives exactly what the test says, and whatever it says later.
pub(crate) struct Scripted {
    pub(crate) path: PathBuf,
    now: watch::Sender<pb::X509svidResponse>,
    task: JoinHandle<()>,
}

impl Scripted {
    pub(crate) fn start(path: PathBuf, first: pb::X509svidResponse) -> Scripted {
        install_crypto_provider();
        let (now, later) = watch::channel(first);
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let incoming = stream::unfold(listener, async |listener| Some((listener.accept().await.map(|(io, _)| io), listener)));
        let server = tonic::transport::Server::builder().add_service(SpiffeWorkloadApiServer::new(Script(later)));
        let task = tokio::spawn(async move { drop(server.serve_with_incoming(incoming).await) });
        Scripted { path, now, task }
    }
    pub(crate) fn say(&self, response: pb::X509svidResponse) {
        self.now.send_replace(response);
    }
    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}", self.path.display())
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An SVID of `authority` and the bundles of the domains that it is federated with.
pub(crate) fn svid(authority: &Authority, name: &str, federated: &[&Authority]) -> pb::X509svidResponse {
    let svid = authority.issue(&authority.id(&[name]).unwrap()).unwrap();
    let svid = pb::X509svid {
        spiffe_id: authority.id(&[name]).unwrap().to_string(),
        x509_svid: svid.certificate.to_vec(),
        x509_svid_key: svid.key.secret_pkcs8_der().to_vec(),
        bundle: authority.root().to_vec(),
        hint: String::new(),
    };
    let federated_bundles = federated.iter().map(|other| (format!("spiffe://{}", other.trust_domain()), other.root().to_vec())).collect();
    pb::X509svidResponse { svids: vec![svid], crl: Vec::new(), federated_bundles }
}

struct Script(watch::Receiver<pb::X509svidResponse>);

type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for Script {
    type FetchX509SVIDStream = Answers<pb::X509svidResponse>;
    type FetchX509BundlesStream = Answers<pb::X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<pb::JwtBundlesResponse>;

    async fn fetch_x509svid(&self, _: Request<pb::X509svidRequest>) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let mut receiver = self.0.clone();
        receiver.mark_changed();
        let answers = stream::unfold(receiver, async |mut receiver| {
            receiver.changed().await.ok()?;
            let now = receiver.borrow_and_update().clone();
            Some((Ok(now), receiver))
        });
        Ok(Response::new(answers.boxed()))
    }
    async fn fetch_x509_bundles(&self, _: Request<pb::X509BundlesRequest>) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }
    async fn fetch_jwtsvid(&self, _: Request<pb::JwtsvidRequest>) -> Result<Response<pb::JwtsvidResponse>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }
    async fn fetch_jwt_bundles(&self, _: Request<pb::JwtBundlesRequest>) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }
    async fn validate_jwtsvid(&self, _: Request<pb::ValidateJwtsvidRequest>) -> Result<Response<pb::ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }
}
