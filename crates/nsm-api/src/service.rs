//! The two APIs of the mesh as Rust traits. A hop, a gRPC client and a fake are the same thing to their caller.

use crate::*;
use async_trait::async_trait;
use futures::stream::BoxStream;
use std::{
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

/// Who calls, as the edge has verified it, and how long they wait.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// The identity proven by the transport; `None` on the calling side, where the edge adds its own.
    pub identity: Option<SpiffeId>,
    /// The leaf certificate that proved it, as DER.
    pub certificate: Option<Arc<[u8]>>,
    /// The token that the caller made for this call.
    pub token: String,
    /// When that token ends, as the caller says.
    pub token_expires: Option<SystemTime>,
    /// What is left until the caller gives up; `None` means it waits for ever (we do not).
    pub timeout: Option<Duration>,
    /// Of a registration: the processes that it has passed.
    pub trail: Trail,
}

/// The path of a registration: the token of every process that it has passed. Clones share the way onward.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    /// The tokens of the processes so far, each made for the next one; the last is ours. Empty where it begins.
    pub tokens: Vec<String>,
    onward: Arc<OnceLock<TrailEnd>>,
}

/// How a registration was answered by the process that we passed it to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrailEnd {
    /// The whole path, as that process sent it back.
    pub tokens: Vec<String>,
    /// The leaf certificate with which it proved who it is, as DER.
    pub certificate: Option<Arc<[u8]>>,
}

impl Trail {
    /// A registration that has come this far.
    pub fn new(tokens: Vec<String>) -> Trail {
        Trail { tokens, onward: Arc::default() }
    }
    /// Whoever passes the registration on says how it was answered. The first answer counts.
    pub fn answer(&self, end: TrailEnd) {
        let _ = self.onward.set(end);
    }
    /// What the process behind us said, if there was one and it did.
    pub fn answered(&self) -> Option<&TrailEnd> {
        self.onward.get()
    }
    /// The same way so far, not yet gone further.
    pub fn again(&self) -> Trail {
        Trail::new(self.tokens.clone())
    }
}

impl Caller {
    /// A caller that only has a deadline: what an outgoing call needs.
    pub fn within(timeout: Duration) -> Caller {
        Caller { timeout: Some(timeout), ..Caller::default() }
    }
}

/// A connection as answered, with the open files that its mechanism names.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The connection.
    pub connection: Connection,
    /// Files named by its mechanism.
    pub files: Files,
    /// The leaf certificate, as DER, by which whoever answered proved its identity; the edge adds it.
    pub certificate: Option<Arc<[u8]>>,
}

/// A stream of connection events. The first is always [`EventKind::InitialStateTransfer`].
pub type Events = BoxStream<'static, Result<ConnectionEvent>>;
/// A stream of services; ends after the present ones unless the query asked to watch.
pub type ServiceUpdates = BoxStream<'static, Result<ServiceUpdate>>;
/// A stream of endpoints, each with the socket that its `inode://` URL names, where one came along.
pub type EndpointUpdates = BoxStream<'static, Result<(EndpointUpdate, Files)>>;

/// Request, Close and Monitor.
#[async_trait]
pub trait NetworkServiceApi: Send + Sync {
    /// Makes the connection, or refreshes it. Idempotent.
    async fn request(&self, request: Request, caller: Caller) -> Result<Answer>;
    /// Ends the connection. Idempotent; an unknown connection is a success. `files` as in a Request.
    async fn close(&self, connection: Connection, files: Files, caller: Caller) -> Result<()>;
    /// What is and what changes.
    async fn monitor(&self, selector: Selector, caller: Caller) -> Result<Events>;
}

/// Register, Find and Unregister, of services and of endpoints.
#[async_trait]
pub trait RegistryApi: Send + Sync {
    /// Creates or replaces a service; answers it as stored.
    async fn register_service(&self, service: NetworkService, caller: Caller) -> Result<NetworkService>;
    /// Services that match.
    async fn find_services(&self, query: ServiceQuery, caller: Caller) -> Result<ServiceUpdates>;
    /// Removes a service.
    async fn unregister_service(&self, service: NetworkService, caller: Caller) -> Result<()>;
    /// Creates or replaces an endpoint; answers it as stored, with the expiration that holds.
    async fn register_endpoint(&self, endpoint: NetworkServiceEndpoint, files: Files, caller: Caller) -> Result<NetworkServiceEndpoint>;
    /// Endpoints that match.
    async fn find_endpoints(&self, query: EndpointQuery, caller: Caller) -> Result<EndpointUpdates>;
    /// Removes an endpoint.
    async fn unregister_endpoint(&self, endpoint: NetworkServiceEndpoint, caller: Caller) -> Result<()>;
}
