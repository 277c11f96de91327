//! The sockets.

use crate::{
    engine::{Carrier, Elsewhere, Engine, Status},
    exchange::{read_frame, write_frame},
    zone::Zone,
};
use nsm_api::{DnsConfig, Error, Kind, Result};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
    time::{sleep, timeout},
};

/// Most questions under way that came by UDP; further ones get SERVFAIL at once.
pub const MAX_IN_FLIGHT: usize = 1024;
/// Most TCP connections of workloads; further ones are closed.
pub const MAX_TCP_CONNECTIONS: usize = 64;
/// Longest question in bytes that is read; a longer datagram is malformed, a longer message of a stream ends that.
const MAX_QUESTION: u16 = 4096;
/// A TCP connection that asks nothing, or does not take its answer, is closed after this time.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Pause after the kernel refused to receive or accept, which it may go on to do.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a port is chosen that must be free for UDP and TCP, when any will do.
const PORT_TRIES: usize = 8;

/// A running resolver. It ends with this value.
pub struct Resolver {
    engine: Arc<Engine>,
    address: SocketAddr,
    _servers: JoinSet<()>,
}

impl Resolver {
    /// Listens on `address` (port 0: any that is free), UDP and TCP, in the network namespace of the caller's thread.
    /// It knows no servers yet.
    ///
    /// # Errors
    /// [`Kind::Conflict`] when somebody else listens there, [`Kind::Kernel`] for anything else.
    pub async fn start(address: SocketAddr) -> Result<Resolver> {
        Resolver::open(address, None).await
    }

    /// The same with names of our own: it answers for them, and asks its servers, which are peers, about their own only.
    ///
    /// # Errors
    /// As [`Resolver::start`].
    pub async fn start_with(address: SocketAddr, zone: Zone) -> Result<Resolver> {
        Resolver::open(address, Some(zone)).await
    }

    async fn open(address: SocketAddr, zone: Option<Zone>) -> Result<Resolver> {
        let (udp, tcp) = listen(address).await.map_err(|error| refused(address, &error))?;
        let address = udp.local_addr().map_err(|error| refused(address, &error))?;
        let engine = Arc::new(Engine::new(address, zone));
        let mut servers = JoinSet::new();
        servers.spawn(serve_udp(Arc::new(udp), engine.clone()));
        servers.spawn(serve_tcp(tcp, engine.clone()));
        Ok(Resolver { engine, address, _servers: servers })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces what `owner`, for instance a connection's id, brings; an empty list removes it. Questions under way
    /// end with the servers they began with, or are asked again where those know nothing.
    ///
    /// # Errors
    /// [`Kind::Exhausted`] with [`crate::MAX_OWNERS`] other owners.
    pub fn set(&self, owner: &str, configs: &[DnsConfig]) -> Result<()> {
        self.engine.table.set(owner, configs)
    }

    /// What the peers know of a name.
    pub async fn elsewhere(&self, name: &str) -> Elsewhere {
        self.engine.elsewhere(name).await
    }

    /// What it knows and has done.
    pub fn status(&self) -> Status {
        self.engine.status()
    }
}

async fn listen(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..PORT_TRIES {
        let udp = UdpSocket::bind(address).await?;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) if address.port() != 0 => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn refused(address: SocketAddr, error: &io::Error) -> Error {
    let (kind, fix) = match error.kind() {
        io::ErrorKind::AddrInUse => (Kind::Conflict, "stop the other DNS server, or choose another local DNS server address"),
        io::ErrorKind::PermissionDenied => (Kind::Kernel, "give the process CAP_NET_BIND_SERVICE, or switch the local DNS server off"),
        _ => (Kind::Kernel, "choose a local DNS server address that this network namespace has"),
    };
    Error::new(kind, format!("local DNS server address {address}"), format!("cannot be listened on: {error}"), fix)
}

async fn serve_udp(socket: Arc<UdpSocket>, engine: Arc<Engine>) {
    let mut buffer = vec![0; MAX_QUESTION.into()];
    let mut tasks = JoinSet::new();
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            sleep(PAUSE).await;
            continue;
        };
        while tasks.try_join_next().is_some() {}
        if tasks.len() >= MAX_IN_FLIGHT {
            if let Some(reply) = engine.turn_away(&buffer[..length]) {
                // A full send buffer loses it, as a full network would.
                let _ = socket.try_send_to(&reply, peer);
            }
            continue;
        }
        let (question, socket, engine) = (buffer[..length].to_vec(), socket.clone(), engine.clone());
        tasks.spawn(async move {
            if let Some(reply) = engine.answer(&question, Carrier::Udp).await {
                let _ = socket.send_to(&reply, peer).await;
            }
        });
    }
}

async fn serve_tcp(listener: TcpListener, engine: Arc<Engine>) {
    let mut tasks = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        while tasks.try_join_next().is_some() {}
        if tasks.len() < MAX_TCP_CONNECTIONS {
            let engine = engine.clone();
            tasks.spawn(async move { drop(serve_stream(stream, &engine).await) });
        }
    }
}

/// Questions one after the other, until the peer leaves or is silent for too long.
async fn serve_stream(mut stream: TcpStream, engine: &Arc<Engine>) -> io::Result<()> {
    loop {
        let question = timeout(TCP_IDLE, read_frame(&mut stream, MAX_QUESTION)).await??;
        let Some(reply) = engine.answer(&question, Carrier::Tcp).await else { return Ok(()) };
        timeout(TCP_IDLE, write_frame(&mut stream, &reply)).await??;
    }
}
