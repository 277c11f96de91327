//! The SPIFFE Workload API on unix sockets: whoever may open a socket gets what that socket gives.
//!
//! All streams of one identity share an SVID, which is replaced before half its life has passed; a workload that
//! connects again gets the one it has. Only the own trust domain is known; there are no federated bundles.

use crate::{
    Authority,
    accept::{PeerUser, connections},
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
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};
use tonic::{Request, Response, Status, transport::Server};

/// Calls on one connection at a time; a workload needs four.
const MAX_CALLS: u32 = 32;
/// Audiences of one JWT-SVID.
const MAX_AUDIENCES: usize = 32;
/// The part of an SVID's life after which the next one is sent: well before half.
const ROTATE_AFTER: (u32, u32) = (2, 5);
/// The longest sleep without a look at the clock: a suspended machine must not miss a rotation for long.
const CLOCK_CHECK: Duration = Duration::from_secs(15);
/// How long clients have to take their leave after shutdown.
const LEAVE_BOUND: Duration = Duration::from_secs(2);
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
    let server = Server::builder()
        .max_concurrent_streams(MAX_CALLS)
        .add_service(SpiffeWorkloadApiServer::with_interceptor(workload, check_header))
        .serve_with_incoming_shutdown(connections(socket), shutdown.clone());
    let ended = tokio::select! {
        ended = server => ended,
        () = shutdown.then(|()| tokio::time::sleep(LEAVE_BOUND)) => Ok(()),
    };
    ended.map_err(|error| Error::new(Kind::Unavailable, format!("socket {}", path.display()), error.to_string(), "restart this process"))
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

#[cfg(test)]
mod tests;
