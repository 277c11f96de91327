//! A client without a process: a namespace of its own, a connection of its own to the manager, and the calls that a
//! client makes. So a setup is timed where a client sees it, from its first byte to its first answered packet.

use nsm_api::*;
use nsm_grpc::{DialOptions, Dialer};
use nsm_hop::{kernel::Netns, mechanism::own_kernel, path};
use nsm_identity::Source;
use nsm_linux::{net::Net, netns, probe};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long one call may take.
pub const CALL_BOUND: Duration = Duration::from_secs(30);
/// How long the first packet may take after the answer.
const PACKET_BOUND: Duration = Duration::from_secs(5);
/// How long one echo is waited for before the next is sent.
const ECHO_PATIENCE: Duration = Duration::from_millis(100);
/// Pause before a Close that was not done everywhere is asked for again.
const CLOSE_AGAIN: Duration = Duration::from_millis(50);
/// The interface that every client asks for.
const INTERFACE: &str = "nsm-1";

/// What clients need to know of the mesh.
#[derive(Clone)]
pub struct Mesh {
    /// Who they are.
    pub source: Source,
    /// The manager of their node.
    pub manager: Target,
}

/// A client that has not asked yet.
pub struct Client {
    name: String,
    netns: Netns,
    dialer: Dialer,
    manager: Target,
    api: Arc<dyn NetworkServiceApi>,
}

/// A client with its connection.
pub struct Connected {
    client: Client,
    connection: Connection,
    files: Files,
    /// From the first byte of the Request's dial to its answer.
    pub answered: Duration,
}

impl Mesh {
    /// A dialer that has dialled nothing yet.
    pub fn dialer(&self) -> Dialer {
        Dialer::new(self.source.clone(), DialOptions::default())
    }
    /// A client with its namespace; nothing is dialled before it asks.
    pub fn client(&self, name: impl Into<String>) -> Result<Client> {
        self.client_of(&self.dialer(), name)
    }
    /// The same, with the connections of a dialer in use.
    pub fn client_of(&self, dialer: &Dialer, name: impl Into<String>) -> Result<Client> {
        let netns = netns::create()?;
        Net::new(&netns)?.loopback_up()?;
        let api = dialer.network_service(&self.manager, &Files::default());
        Ok(Client { name: name.into(), netns, dialer: dialer.clone(), manager: self.manager.clone(), api })
    }
}

impl Client {
    /// Dials the manager, and asks for nothing.
    pub async fn dial(&self) -> Result<()> {
        self.dialer.health(&self.manager, "", CALL_BOUND).await
    }
    /// Asks for a connection.
    pub async fn connect(self, service: &str) -> Result<Connected> {
        let (name, id) = (HopName::new(&self.name)?, ConnectionId::new(&self.name)?);
        let mut connection = Connection::new(id, ServiceName::new(service)?);
        path::begin(&mut connection, &name);
        let mut files = Files::default();
        let mechanism = own_kernel(&self.netns, Some(INTERFACE), &mut files);
        let request = Request { connection, preferences: vec![mechanism], files: files.clone() };
        let begun = Instant::now();
        let answer = self.api.request(request, Caller::within(CALL_BOUND)).await?;
        let answered = begun.elapsed();
        Ok(Connected { client: self, connection: answer.connection, files, answered })
    }
}

impl Connected {
    /// The client's namespace.
    pub fn netns(&self) -> Netns {
        self.client.netns.clone()
    }
    /// Sends echoes until one is answered.
    pub async fn first_packet(&self) -> Result<()> {
        let object = || format!("connection of {}", self.client.name);
        let address = self.connection.context.ip_context.dst_ip_addrs.first();
        let address = address.ok_or_else(|| Error::internal(object(), "has no address of the endpoint"))?.addr();
        let (options, begun) = (probe::PingOptions { timeout: ECHO_PATIENCE, ..probe::PingOptions::once(address) }, Instant::now());
        while begun.elapsed() < PACKET_BOUND {
            if probe::ping(&self.client.netns, options.clone()).await?.complete() {
                return Ok(());
            }
        }
        Err(Error::new(Kind::Timeout, object(), format!("no echo came back within {PACKET_BOUND:?}"), "see the logs of the forwarders"))
    }
    /// Asks for the same again.
    pub async fn refresh(&self) -> Result<()> {
        let preferences = self.connection.mechanism.clone().into_iter().collect();
        let request = Request { connection: self.connection.clone(), preferences, files: self.files.clone() };
        self.client.api.request(request, Caller::within(CALL_BOUND)).await.map(|_| ())
    }
    /// Ends it; asks again when the mesh says that it is not done everywhere yet. Answers how often it had to.
    pub async fn close(self) -> Result<u32> {
        let begun = Instant::now();
        let mut repeats = 0;
        loop {
            let closed = self.client.api.close(self.connection.clone(), self.files.clone(), Caller::within(CALL_BOUND)).await;
            match closed {
                Ok(()) => return Ok(repeats),
                Err(error) if error.retryable() && begun.elapsed() < CALL_BOUND => repeats += 1,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(CLOSE_AGAIN).await;
        }
    }
}
