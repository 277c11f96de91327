//! The SPIFFE Workload API on unix sockets: whoever may open a socket gets what that socket gives.
//!
//! All streams of one identity share an SVID, which is replaced before half its life has passed; a workload that
//! connects again gets the one it has. Only the own trust domain is known; there are no federated bundles.

use crate::{
    Authority,
    pb::{
        self,
        spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
    },
    socket::{self, Socket},
};
use futures::{
    FutureExt, Stream, StreamExt,
    future::{BoxFuture, Shared},
    stream::{self, BoxStream},
};
use nsm_api::{Error, Kind, Result, SpiffeId};
use prost_types::value::Kind as JsonKind;
use std::{
    collections::BTreeMap,
    future::Future,
    io,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tonic::{Request, Response, Status, transport::Server, transport::server::Connected};

/// Connections on one socket at a time; later ones wait.
const MAX_CONNECTIONS: usize = 1024;
/// Calls on one connection at a time; a workload needs four.
const MAX_CALLS: u32 = 32;
/// Audiences of one JWT-SVID.
const MAX_AUDIENCES: usize = 32;
/// How long to wait after a failed accept, which mostly means that descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The part of an SVID's life after which the next one is sent: well before half.
const ROTATE_AFTER: (u32, u32) = (2, 5);
/// The longest sleep without a look at the clock: a suspended machine must not miss a rotation for long.
const CLOCK_CHECK: Duration = Duration::from_secs(15);

/// Identities whose SVID is remembered; further ones get a new SVID for each stream.
const MAX_REMEMBERED: usize = 4096;

/// Which identity a socket gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Always this one: the permissions of the socket decide who it is.
    Fixed(SpiffeId),
    /// `spiffe://<trust domain>/host/<host name>/uid/<user id>`, with the user id from the kernel.
    PeerUser,
}

/// A socket to serve the Workload API on.
#[derive(Clone, Debug)]
pub struct WorkloadSocket {
    /// Where; an absolute path. Missing directories are made, a socket that nobody serves is replaced.
    pub path: PathBuf,
    /// What it gives.
    pub identity: Identity,
    /// Permission bits of the socket file.
    pub mode: u32,
}

impl WorkloadSocket {
    /// A socket that only its owner may open if the identity is fixed, and everybody if it depends on the user.
    pub fn new(path: impl Into<PathBuf>, identity: Identity) -> WorkloadSocket {
        let mode = match identity {
            Identity::Fixed(_) => 0o600,
            Identity::PeerUser => 0o666,
        };
        WorkloadSocket { path: path.into(), identity, mode }
    }
}

impl Authority {
    /// Listens on `sockets` at once, so that workloads may connect as soon as this returns, and answers while
    /// the returned future is polled. It ends when `shutdown` does; then the socket files are gone.
    /// Call it inside a tokio runtime.
    pub fn serve(
        self,
        sockets: Vec<WorkloadSocket>,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<impl Future<Output = Result<()>> + Send + 'static> {
        let shutdown = shutdown.boxed().shared();
        let svids = Arc::new(Svids { authority: self, issued: Mutex::default() });
        let mut servers = Vec::with_capacity(sockets.len());
        for WorkloadSocket { path, identity, mode } in sockets {
            if let Identity::Fixed(id) = &identity {
                svids.authority.check(id)?;
            }
            let socket = socket::listen(&path, mode)?;
            servers.push(serve_one(socket, path, Workload { svids: svids.clone(), identity, shutdown: shutdown.clone() }));
        }
        Ok(async move { futures::future::try_join_all(servers).await.map(|_| ()) })
    }
}

async fn serve_one(socket: Socket, path: PathBuf, workload: Workload) -> Result<()> {
    let shutdown = workload.shutdown.clone();
    Server::builder()
        .max_concurrent_streams(MAX_CALLS)
        .add_service(SpiffeWorkloadApiServer::with_interceptor(workload, check_header))
        .serve_with_incoming_shutdown(connections(socket), shutdown)
        .await
        .map_err(|error| Error::new(Kind::Unavailable, format!("socket {}", path.display()), error.to_string(), "restart this process"))
}

/// The standard asks for this header so that a request forged through a proxy does not get an identity.
fn check_header(request: Request<()>) -> Result<Request<()>, Status> {
    let mut values = request.metadata().get_all("workload.spiffe.io").iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value == "true" => Ok(request),
        _ => Err(Status::invalid_argument("security header missing from request: send the metadata workload.spiffe.io: true")),
    }
}

struct Workload {
    svids: Arc<Svids>,
    identity: Identity,
    shutdown: Shared<BoxFuture<'static, ()>>,
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

impl Workload {
    fn identify<T>(&self, request: &Request<T>) -> Result<SpiffeId, Status> {
        match &self.identity {
            Identity::Fixed(id) => Ok(id.clone()),
            Identity::PeerUser => {
                let user = request.extensions().get::<PeerUser>().ok_or_else(|| Status::internal("the kernel did not say who calls"))?;
                self.svids.authority.id(&["host", &host_name(), "uid", &user.0.to_string()]).map_err(internal)
            }
        }
    }
    /// A stream that ends cleanly with the server, so that nobody takes the end for a refusal.
    fn answer<T: Send + 'static>(&self, answers: impl Stream<Item = Result<T, Status>> + Send + 'static) -> Response<Answers<T>> {
        Response::new(answers.take_until(self.shutdown.clone()).boxed())
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Workload {
    type FetchX509SVIDStream = Answers<pb::X509svidResponse>;
    type FetchX509BundlesStream = Answers<pb::X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<pb::JwtBundlesResponse>;

    async fn fetch_x509svid(&self, request: Request<pb::X509svidRequest>) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        Ok(self.answer(rotating(self.svids.clone(), self.identify(&request)?)))
    }

    async fn fetch_x509_bundles(&self, _: Request<pb::X509BundlesRequest>) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let bundles = BTreeMap::from([(self.svids.authority.trust_domain_id(), self.svids.authority.root().to_vec())]);
        Ok(self.answer(constant(pb::X509BundlesResponse { crl: Vec::new(), bundles })))
    }

    async fn fetch_jwtsvid(&self, request: Request<pb::JwtsvidRequest>) -> Result<Response<pb::JwtsvidResponse>, Status> {
        let id = self.identify(&request)?;
        let pb::JwtsvidRequest { audience, spiffe_id } = request.into_inner();
        if audience.is_empty() || audience.len() > MAX_AUDIENCES {
            return Err(Status::invalid_argument(format!("a JWT-SVID is for 1 to {MAX_AUDIENCES} audiences")));
        }
        if !spiffe_id.is_empty() && spiffe_id != id.as_str() {
            return Err(Status::permission_denied(format!("this socket gives the identity {id} only")));
        }
        let svid = self.svids.authority.jwt().sign(&id, &audience).map_err(internal)?;
        let svid = pb::Jwtsvid { spiffe_id: id.to_string(), svid, hint: String::new() };
        Ok(Response::new(pb::JwtsvidResponse { svids: vec![svid] }))
    }

    async fn fetch_jwt_bundles(&self, _: Request<pb::JwtBundlesRequest>) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let bundles = BTreeMap::from([(self.svids.authority.trust_domain_id(), self.svids.authority.jwt().jwks().to_vec())]);
        Ok(self.answer(constant(pb::JwtBundlesResponse { bundles })))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<pb::ValidateJwtsvidRequest>,
    ) -> Result<Response<pb::ValidateJwtsvidResponse>, Status> {
        let pb::ValidateJwtsvidRequest { audience, svid } = request.into_inner();
        let (spiffe_id, claims) = self
            .svids
            .authority
            .jwt()
            .validate(&svid, &audience)
            .map_err(|reason| Status::invalid_argument(format!("the JWT-SVID is not valid here: {reason}")))?;
        let fields = claims.into_iter().map(|(name, value)| (name, to_proto(value))).collect();
        Ok(Response::new(pb::ValidateJwtsvidResponse { spiffe_id, claims: Some(prost_types::Struct { fields }) }))
    }
}

fn internal(error: Error) -> Status {
    Status::internal(error.to_string())
}

/// Says one thing and then keeps the stream open.
fn constant<T: Send + 'static>(answer: T) -> impl Stream<Item = Result<T, Status>> {
    stream::once(futures::future::ready(Ok(answer))).chain(stream::pending())
}

/// The SVID now, and each later one before half the life of the last has passed.
fn rotating(svids: Arc<Svids>, id: SpiffeId) -> impl Stream<Item = Result<pb::X509svidResponse, Status>> {
    stream::unfold((svids, id, None), |(svids, id, due)| async move {
        if let Some(due) = due {
            sleep_until(due).await;
        }
        let issued = svids.current(&id).map_err(internal);
        let due = issued.as_ref().ok().map(|issued| issued.due);
        Some((issued.map(|issued| issued.answer), (svids, id, due)))
    })
}

async fn sleep_until(due: SystemTime) {
    while let Ok(left) = due.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(CLOCK_CHECK)).await;
    }
}

/// The SVIDs in use.
struct Svids {
    authority: Authority,
    issued: Mutex<BTreeMap<SpiffeId, Issued>>,
}

#[derive(Clone)]
struct Issued {
    answer: pb::X509svidResponse,
    /// When the next one takes its place.
    due: SystemTime,
}

impl Svids {
    fn current(&self, id: &SpiffeId) -> Result<Issued> {
        let now = SystemTime::now();
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = issued.get(id).filter(|found| now < found.due) {
            return Ok(found.clone());
        }
        let new = self.issue(id, now)?;
        if issued.len() >= MAX_REMEMBERED {
            issued.retain(|_, old| now < old.due);
        }
        if issued.len() < MAX_REMEMBERED {
            issued.insert(id.clone(), new.clone());
        }
        Ok(new)
    }

    fn issue(&self, id: &SpiffeId, now: SystemTime) -> Result<Issued> {
        let life = self.authority.svid_life();
        let svid = self.authority.issue(id)?;
        tracing::debug!(%id, ?life, "SVID issued");
        let svid = pb::X509svid {
            spiffe_id: id.to_string(),
            x509_svid: svid.certificate.to_vec(),
            x509_svid_key: svid.key.secret_pkcs8_der().to_vec(),
            bundle: self.authority.root().to_vec(),
            hint: String::new(),
        };
        let answer = pb::X509svidResponse { svids: vec![svid], crl: Vec::new(), federated_bundles: BTreeMap::new() };
        Ok(Issued { answer, due: now + life * ROTATE_AFTER.0 / ROTATE_AFTER.1 })
    }
}

/// The host name, with what a SPIFFE ID cannot hold replaced.
fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_') || c == '.' && name.chars().any(|c| c != '.');
    name.chars().map(|c| if allowed(c) { c } else { '-' }).collect()
}

fn to_proto(value: serde_json::Value) -> prost_types::Value {
    use serde_json::Value;
    let kind = match value {
        Value::Null => JsonKind::NullValue(0),
        Value::Bool(value) => JsonKind::BoolValue(value),
        Value::Number(value) => JsonKind::NumberValue(value.as_f64().unwrap_or(f64::NAN)),
        Value::String(value) => JsonKind::StringValue(value),
        Value::Array(values) => JsonKind::ListValue(prost_types::ListValue { values: values.into_iter().map(to_proto).collect() }),
        Value::Object(fields) => {
            JsonKind::StructValue(prost_types::Struct { fields: fields.into_iter().map(|(name, value)| (name, to_proto(value))).collect() })
        }
    };
    prost_types::Value { kind: Some(kind) }
}

/// The user at the other end of a connection, as the kernel says.
#[derive(Clone, Copy)]
struct PeerUser(u32);

/// A connection with its place among [`MAX_CONNECTIONS`].
struct Connection {
    io: UnixStream,
    user: PeerUser,
    _slot: OwnedSemaphorePermit,
}

fn connections(socket: Socket) -> impl Stream<Item = io::Result<Connection>> {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    stream::unfold((socket, slots), |(socket, slots)| async move {
        let slot = slots.clone().acquire_owned().await.ok()?;
        loop {
            match socket.listener.accept().await.and_then(|(io, _)| io.peer_cred().map(|peer| (io, PeerUser(peer.uid())))) {
                Ok((io, user)) => return Some((Ok(Connection { io, user, _slot: slot }), (socket, slots))),
                Err(error) => {
                    tracing::warn!(%error, "accepting a workload failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

impl Connected for Connection {
    type ConnectInfo = PeerUser;
    fn connect_info(&self) -> PeerUser {
        self.user
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        jwt::Signer,
        pb::spiffe_workload_api_client::SpiffeWorkloadApiClient,
        testing::{Dir, Running, bounded},
    };
    use hyper_util::rt::TokioIo;
    use std::path::Path;
    use tonic::{
        Code,
        service::interceptor::InterceptedService,
        transport::{Channel, Endpoint},
    };

    async fn channel(path: &Path) -> Channel {
        let path = path.to_owned();
        let connect = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://localhost").connect_with_connector(connect).await.unwrap()
    }

    type Client = SpiffeWorkloadApiClient<InterceptedService<Channel, fn(Request<()>) -> Result<Request<()>, Status>>>;

    async fn client(path: &Path) -> Client {
        SpiffeWorkloadApiClient::with_interceptor(channel(path).await, |mut request| {
            request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
            Ok(request)
        })
    }

    #[tokio::test]
    async fn nobody_gets_anything_without_the_header() {
        let dir = Dir::new();
        let server = Running::workload(&dir, DAY);
        let mut bare = SpiffeWorkloadApiClient::new(channel(&server.path).await);
        let mut wrong = Request::new(pb::X509svidRequest {});
        wrong.metadata_mut().insert("workload.spiffe.io", "false".parse().unwrap());
        for refused in [
            bounded(bare.fetch_x509svid(wrong)).await.err().unwrap(),
            bounded(bare.fetch_x509svid(pb::X509svidRequest {})).await.err().unwrap(),
            bounded(bare.fetch_x509_bundles(pb::X509BundlesRequest {})).await.err().unwrap(),
            bounded(bare.fetch_jwtsvid(pb::JwtsvidRequest::default())).await.err().unwrap(),
            bounded(bare.fetch_jwt_bundles(pb::JwtBundlesRequest {})).await.err().unwrap(),
            bounded(bare.validate_jwtsvid(pb::ValidateJwtsvidRequest::default())).await.err().unwrap(),
        ] {
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(refused.message().starts_with("security header missing from request"), "{refused}");
        }
        server.stop().await;
    }

    const DAY: Duration = Duration::from_secs(86_400);

    #[tokio::test]
    async fn a_stream_stays_open_and_brings_the_next_svid_before_half_life() {
        let dir = Dir::new();
        let life = Duration::from_secs(2);
        let server = Running::workload(&dir, life);
        let mut stream = client(&server.path).await.fetch_x509svid(pb::X509svidRequest {}).await.unwrap().into_inner();
        let mut last = Vec::new();
        for round in 0..3 {
            let asked = tokio::time::Instant::now();
            let mut answer = bounded(stream.message()).await.unwrap().unwrap();
            assert!(round == 0 || asked.elapsed() < life / 2, "took {:?}", asked.elapsed());
            let svid = answer.svids.remove(0);
            assert_eq!((svid.spiffe_id.as_str(), &svid.bundle[..]), ("spiffe://example.org/workload/w", &server.authority.root()[..]));
            assert_eq!(Signer::new(&svid.x509_svid, &svid.x509_svid_key).unwrap().id.as_str(), svid.spiffe_id);
            assert_ne!(svid.x509_svid, last);
            last = svid.x509_svid;
        }
        let mut again = client(&server.path).await.fetch_x509svid(pb::X509svidRequest {}).await.unwrap().into_inner();
        assert_eq!(bounded(again.message()).await.unwrap().unwrap().svids[0].x509_svid, last, "who connects again keeps its SVID");
        let path = server.path.clone();
        server.stop().await;
        assert!(bounded(stream.message()).await.unwrap().is_none(), "the stream ends without an error");
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_user_socket_names_the_host_and_the_user() {
        let dir = Dir::new();
        let socket = WorkloadSocket::new(dir.path("u.sock"), Identity::PeerUser);
        let server = Running::start(Authority::new("example.org").unwrap(), socket);
        let mut stream = client(&server.path).await.fetch_x509svid(pb::X509svidRequest {}).await.unwrap().into_inner();
        let svid = bounded(stream.message()).await.unwrap().unwrap().svids.remove(0);
        let uid = rustix::process::getuid().as_raw();
        assert_eq!(svid.spiffe_id, format!("spiffe://example.org/host/{}/uid/{uid}", host_name()));
        drop(stream);
        server.stop().await;
    }

    #[tokio::test]
    async fn bundles_and_jwt_svids_are_served() {
        let dir = Dir::new();
        let server = Running::workload(&dir, DAY);
        let mut client = client(&server.path).await;
        let mut bundles = client.fetch_x509_bundles(pb::X509BundlesRequest {}).await.unwrap().into_inner();
        let found = bounded(bundles.message()).await.unwrap().unwrap().bundles;
        assert_eq!(found, BTreeMap::from([("spiffe://example.org".to_owned(), server.authority.root().to_vec())]));
        let mut bundles = client.fetch_jwt_bundles(pb::JwtBundlesRequest {}).await.unwrap().into_inner();
        let found = bounded(bundles.message()).await.unwrap().unwrap().bundles;
        assert_eq!(found["spiffe://example.org"], server.authority.jwt().jwks());

        let ask = |audience: &[&str], id: &str| pb::JwtsvidRequest {
            audience: audience.iter().map(|name| (*name).to_owned()).collect(),
            spiffe_id: id.to_owned(),
        };
        let svid = client.fetch_jwtsvid(ask(&["db"], "spiffe://example.org/workload/w")).await.unwrap().into_inner().svids.remove(0).svid;
        let valid = pb::ValidateJwtsvidRequest { audience: "db".to_owned(), svid: svid.clone() };
        let answer = client.validate_jwtsvid(valid).await.unwrap().into_inner();
        assert_eq!(answer.spiffe_id, "spiffe://example.org/workload/w");
        assert_eq!(answer.claims.unwrap().fields["sub"].kind, Some(JsonKind::StringValue(answer.spiffe_id)));
        let wrong = pb::ValidateJwtsvidRequest { audience: "web".to_owned(), svid };
        assert_eq!(client.validate_jwtsvid(wrong).await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(client.fetch_jwtsvid(ask(&[], "")).await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(client.fetch_jwtsvid(ask(&["db"], "spiffe://example.org/other")).await.unwrap_err().code(), Code::PermissionDenied);
        server.stop().await;
    }

    #[tokio::test]
    async fn a_foreign_identity_is_refused_before_anything_listens() {
        let dir = Dir::new();
        let id = SpiffeId::new("spiffe://other.org/a").unwrap();
        let socket = WorkloadSocket::new(dir.path("w.sock"), Identity::Fixed(id));
        let refused = Authority::new("example.org").unwrap().serve(vec![socket], futures::future::pending()).err().unwrap();
        assert!(refused.reason.contains("another trust domain"));
        assert!(!dir.path("w.sock").exists());
    }
}
