//! An authority, two identities, servers and dialers in a temporary directory; and fakes of the two traits.
#![allow(dead_code, unreachable_pub, missing_docs)]

use async_trait::async_trait;
use futures::{StreamExt, future::BoxFuture, stream};
use nsm_api::*;
use nsm_grpc::{DialOptions, Dialer, ServeOptions, Served, inode_key, serve};
use nsm_identity::{Authority, Identity, Source, WorkloadSocket, install_crypto_provider};
use std::{
    collections::BTreeMap,
    future::Future,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::{broadcast, oneshot},
    task::JoinHandle,
};

/// How long any single step of a test may take.
pub const BOUND: Duration = Duration::from_secs(20);

pub async fn bounded<T>(step: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, step).await.expect("the step did not end in time")
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub authority: Authority,
    pub server: Source,
    pub client: Source,
    _stop: oneshot::Sender<()>,
}

impl World {
    pub async fn new() -> World {
        World::with(Authority::new("example.org").unwrap()).await
    }

    pub async fn with(authority: Authority) -> World {
        install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let socket = |name: &str| {
            let id = authority.id(&["workload", name]).unwrap();
            WorkloadSocket::new(dir.path().join(format!("{name}.id")), Identity::Fixed(id))
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = authority.clone().serve(vec![socket("server"), socket("client")], async move { drop(stopped.await) }).unwrap();
        tokio::spawn(serving);
        let source = async |name: &str| {
            let endpoint = format!("unix://{}", dir.path().join(format!("{name}.id")).display());
            Source::connect(&endpoint, BOUND).await.unwrap()
        };
        let (server, client) = (source("server").await, source("client").await);
        World { dir, authority, server, client, _stop: stop }
    }

    pub fn unix(&self, name: &str) -> Target {
        Target::Unix(self.dir.path().join(name))
    }

    pub fn dialer(&self) -> Dialer {
        Dialer::new(self.client.clone(), DialOptions::default())
    }

    pub async fn start(&self, listen: Vec<Target>, network: Option<Arc<Fake>>, registry: Option<Arc<FakeRegistry>>) -> Server {
        self.try_start(listen, network, registry).await.unwrap()
    }

    pub async fn try_start(&self, listen: Vec<Target>, network: Option<Arc<Fake>>, registry: Option<Arc<FakeRegistry>>) -> Result<Server> {
        let (stop, stopped) = oneshot::channel::<()>();
        let options = ServeOptions {
            listen,
            network: network.map(|api| api as Arc<dyn NetworkServiceApi>),
            registry: registry.map(|api| api as Arc<dyn RegistryApi>),
            prefixes: None,
            source: self.server.clone(),
            max_token_life: Duration::from_secs(600),
        };
        let Served { addresses, ended } = bounded(serve(options, async move { drop(stopped.await) })).await?;
        Ok(Server { addresses, stop, ended })
    }
}

pub struct Server {
    pub addresses: Vec<Target>,
    pub stop: oneshot::Sender<()>,
    pub ended: JoinHandle<()>,
}

impl Server {
    pub async fn stop(self) {
        self.stop.send(()).unwrap();
        bounded(self.ended).await.unwrap();
    }
}

pub fn tcp() -> Target {
    Target::parse("tcp://127.0.0.1:0").unwrap()
}

pub fn within() -> Caller {
    Caller::within(BOUND)
}

/// A file with this content.
pub fn file(content: &str) -> (InodeKey, Arc<OwnedFd>) {
    let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::io::pwrite(&file, content.as_bytes(), 0).unwrap();
    (inode_key(&file).unwrap(), Arc::new(file))
}

pub fn content(file: &OwnedFd) -> String {
    let mut buffer = [0; 64];
    let count = rustix::io::pread(file, &mut buffer, 0).unwrap();
    String::from_utf8(buffer[..count].to_vec()).unwrap()
}

pub fn kernel(key: InodeKey) -> Mechanism {
    Mechanism::new(Class::Local, MechanismKind::Kernel).with(params::INODE_URL, key)
}

pub fn connection(id: &str) -> Connection {
    Connection::new(id.parse().unwrap(), "vpn".parse().unwrap())
}

/// A Request whose only preference names `file`.
pub fn request(id: &str, file: Option<(InodeKey, Arc<OwnedFd>)>) -> Request {
    let mut files = Files::default();
    let preferences = file.iter().map(|(key, _)| kernel(*key)).collect();
    if let Some((key, file)) = file {
        files.insert(key, file);
    }
    Request { connection: connection(id), preferences, files }
}

type OnRequest = Box<dyn Fn(Request, Caller) -> BoxFuture<'static, Result<Answer>> + Send + Sync>;

/// A network service that does what the test says, remembers what it was asked to close, and monitors.
pub struct Fake {
    on_request: OnRequest,
    pub closed: Mutex<Vec<(Connection, Files)>>,
    pub events: broadcast::Sender<ConnectionEvent>,
}

impl Fake {
    pub fn new<F>(on_request: impl Fn(Request, Caller) -> F + Send + Sync + 'static) -> Arc<Fake>
    where
        F: Future<Output = Result<Answer>> + Send + 'static,
    {
        let on_request: OnRequest = Box::new(move |request, caller| Box::pin(on_request(request, caller)));
        Arc::new(Fake { on_request, closed: Mutex::default(), events: broadcast::channel(16).0 })
    }

    /// Chooses the first preference.
    pub fn agreeable() -> Arc<Fake> {
        Fake::new(async |request: Request, _| {
            let mechanism = request.preferences.first().cloned();
            Ok(Answer { connection: Connection { mechanism, ..request.connection }, files: request.files, certificate: None })
        })
    }
}

pub fn event(kind: EventKind, ids: &[&str]) -> ConnectionEvent {
    ConnectionEvent { kind, connections: ids.iter().map(|id| (id.parse().unwrap(), connection(id))).collect() }
}

#[async_trait]
impl NetworkServiceApi for Fake {
    async fn request(&self, request: Request, caller: Caller) -> Result<Answer> {
        (self.on_request)(request, caller).await
    }
    async fn close(&self, connection: Connection, files: Files, _: Caller) -> Result<()> {
        self.closed.lock().unwrap().push((connection, files));
        Ok(())
    }
    async fn monitor(&self, _: Selector, _: Caller) -> Result<Events> {
        let later = stream::unfold(self.events.subscribe(), async |mut events| Some((events.recv().await.ok()?, events)));
        let initial = stream::iter([event(EventKind::InitialStateTransfer, &["a"])]);
        // Says nothing more, rather than end, when the test has nothing more to say.
        Ok(initial.chain(later).chain(stream::pending()).map(Ok).boxed())
    }
}

/// A registry of endpoints with their sockets; watches see what is registered later.
pub struct FakeRegistry {
    pub endpoints: Mutex<BTreeMap<EndpointName, (NetworkServiceEndpoint, Files)>>,
    updates: broadcast::Sender<(EndpointUpdate, Files)>,
}

impl FakeRegistry {
    pub fn new() -> Arc<FakeRegistry> {
        Arc::new(FakeRegistry { endpoints: Mutex::default(), updates: broadcast::channel(16).0 })
    }
}

#[async_trait]
impl RegistryApi for FakeRegistry {
    async fn register_service(&self, service: NetworkService, _: Caller) -> Result<NetworkService> {
        Ok(service)
    }
    async fn find_services(&self, query: ServiceQuery, _: Caller) -> Result<ServiceUpdates> {
        let service = NetworkService::new(query.name.unwrap(), Payload::Ip);
        let found = stream::iter([Ok(ServiceUpdate { service, deleted: false })]);
        Ok(if query.watch { found.chain(stream::pending()).boxed() } else { found.boxed() })
    }
    async fn unregister_service(&self, service: NetworkService, _: Caller) -> Result<()> {
        Err(Error::new(Kind::NotFound, format!("service {}", service.name), "is not registered", "register it"))
    }
    async fn register_endpoint(&self, endpoint: NetworkServiceEndpoint, files: Files, _: Caller) -> Result<NetworkServiceEndpoint> {
        self.endpoints.lock().unwrap().insert(endpoint.name.clone(), (endpoint.clone(), files.clone()));
        let _ = self.updates.send((EndpointUpdate { endpoint: endpoint.clone(), deleted: false }, files));
        Ok(endpoint)
    }
    async fn find_endpoints(&self, query: EndpointQuery, _: Caller) -> Result<EndpointUpdates> {
        let later = stream::unfold(self.updates.subscribe(), async |mut updates| Some((updates.recv().await.ok()?, updates)));
        let present: Vec<_> = self.endpoints.lock().unwrap().values().cloned().collect();
        let present = stream::iter(present).map(|(endpoint, files)| (EndpointUpdate { endpoint, deleted: false }, files));
        Ok(if query.watch { present.chain(later).map(Ok).boxed() } else { present.map(Ok).boxed() })
    }
    async fn unregister_endpoint(&self, endpoint: NetworkServiceEndpoint, _: Caller) -> Result<()> {
        let gone = self.endpoints.lock().unwrap().remove(&endpoint.name);
        if let Some((endpoint, files)) = gone {
            let _ = self.updates.send((EndpointUpdate { endpoint, deleted: true }, files));
        }
        Ok(())
    }
}
