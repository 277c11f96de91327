//! An authority, processes with identities, and hops that they serve.

use nsm::{
    context::{Context, Output},
    roles::{
        authorize, process,
        process::{Common, Process},
    },
    settings::{Opt, Settings, Shape},
    shutdown::Shutdown,
};
use nsm_api::*;
use nsm_hop::{
    hop::Hop,
    onward::End,
    role::{NoWires, Role, Standing, Timing},
    testing::{FakeKernel, FaultPlan},
};
use nsm_identity::{Authority, Identity, WorkloadSocket, install_crypto_provider};
use std::{future::Future, sync::Arc, time::Duration};
use tempfile::TempDir;

/// How long any single step may take.
pub const BOUND: Duration = Duration::from_secs(20);

/// What a hop of these tests can be told.
pub const OPTIONS: &[Opt] = &[
    process::WORKLOAD_API,
    process::MAX_TOKEN_LIFETIME,
    process::DIAL_TIMEOUT,
    process::STATE_DIR,
    Opt::new("name", "NSM_NAME", "", Shape::Text, "name"),
];

pub async fn bounded<T>(step: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, step).await.expect("the step did not end in time")
}

pub struct World {
    pub dir: TempDir,
    pub authority: Authority,
    pub context: Context,
}

impl Drop for World {
    fn drop(&mut self) {
        self.context.shutdown.start();
    }
}

impl World {
    pub fn new(names: &[&str]) -> World {
        World::with(Authority::new("example.org").unwrap(), names)
    }
    /// An identity for each name, at a socket of that name.
    pub fn with(authority: Authority, names: &[&str]) -> World {
        install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let context = Context::new(Shutdown::new(Duration::from_secs(1)), Output::Text);
        let socket =
            |name: &&str| WorkloadSocket::new(dir.path().join(format!("{name}.id")), Identity::Fixed(authority.id(&[name]).unwrap()));
        let shutdown = context.shutdown.clone();
        let serving = authority.clone().serve(names.iter().map(socket).collect(), async move { shutdown.started().await }).unwrap();
        tokio::spawn(serving);
        World { dir, authority, context }
    }
    pub fn url(&self, file: &str) -> String {
        format!("unix://{}/{file}", self.dir.path().display())
    }
    pub fn target(&self, file: &str) -> Target {
        Target::parse(&self.url(file)).unwrap()
    }
    pub fn id(&self, name: &str) -> SpiffeId {
        self.authority.id(&[name]).unwrap()
    }
    /// A process that is `name`, with what it keeps in `state`.
    pub async fn process_in(&self, name: &str, state: &str) -> Process {
        let mut settings = Settings::new("test", OPTIONS).with_environment([
            ("SPIFFE_ENDPOINT_SOCKET", self.url(&format!("{name}.id"))),
            ("NSM_STATE_DIR", self.dir.path().join(state).display().to_string()),
            ("NSM_NAME", name.to_owned()),
        ]);
        let common = Common::read(&mut settings);
        settings.finish().unwrap();
        bounded(Process::start(&common, &self.context)).await.unwrap()
    }
    pub async fn process(&self, name: &str) -> Process {
        self.process_in(name, "state").await
    }
    /// Serves a hop that is the end of every path, with the policies that a server has.
    pub async fn serve(&self, process: &Process, name: &str, socket: &str) -> Hop {
        let hop = end(name, process);
        process.serve(vec![self.target(socket)], Some(Arc::new(hop.clone())), None, &self.context).await.unwrap();
        hop
    }
}

/// A hop that is the end of every path.
pub fn end(name: &str, process: &Process) -> Hop {
    Hop::new(Role {
        name: HopName::new(name).unwrap(),
        standing: Standing::Server,
        issuer: process.issuer.clone(),
        admit: authorize::server(&process.issuer).unwrap(),
        reserve: vec![],
        onward: Box::new(End),
        dial: process.dial(),
        wiring: Box::new(NoWires),
        kernel: Arc::new(FakeKernel::new(FaultPlan::default())),
        generation: process.generation,
        timing: Timing::default(),
    })
}

/// A token of `process` for `audience`.
pub fn token(process: &Process, audience: &SpiffeId) -> (String, std::time::SystemTime) {
    process.issuer.token(&Caller { identity: Some(audience.clone()), ..Caller::default() }).unwrap()
}

/// A connection with this path, as its process at `index` would send it.
pub fn connection(segments: &[Segment], index: u32) -> Connection {
    let id = segments.get(index as usize).map_or(ConnectionId::new("none").unwrap(), |segment| segment.id.clone());
    let mut connection = Connection::new(id, "svc".parse().unwrap());
    connection.path = Path { index, segments: segments.to_vec(), ..connection.path };
    connection
}

pub fn segment(name: &str, id: &str, token: &str) -> Segment {
    let mut segment = Segment::new(HopName::new(name).unwrap(), ConnectionId::new(id).unwrap());
    token.clone_into(&mut segment.token);
    segment
}

/// What a process can do to a hop: with its own identity, and any path.
pub struct Peer(pub Arc<dyn NetworkServiceApi>);

impl Peer {
    pub fn new(process: &Process, hop: &Target) -> Peer {
        Peer(process.dialer.network_service(hop, &Files::default()))
    }
    pub async fn request(&self, connection: Connection) -> Result<Connection> {
        let request = Request { connection, preferences: vec![], files: Files::default() };
        bounded(self.0.request(request, Caller::within(BOUND))).await.map(|answer| answer.connection)
    }
    pub async fn close(&self, connection: Connection) -> Result<()> {
        bounded(self.0.close(connection, Files::default(), Caller::within(BOUND))).await
    }
}
