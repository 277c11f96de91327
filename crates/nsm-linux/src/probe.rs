//! Probes for checks: echo requests, and the smallest possible UDP and TCP servers and clients in any namespace.
//!
//! Sockets are opened inside the namespace by a thread made for it and driven from the caller's runtime. Not here:
//! measuring throughput.

use crate::{error::refused, netns, sys};
use nsm_api::{Error, Kind, Result};
use nsm_hop::kernel::Netns;
use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, sockopt},
};
use serde::Serialize;
use std::{
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, unix::AsyncFd},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    task::JoinHandle,
    time::timeout,
};

/// Pause of an echo server that has run out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Bytes of the longest echo payload: what fits into an IP packet.
pub const MAX_PING_BYTES: usize = 65_000;
/// Bytes of the longest text that [`tcp_get`] takes.
pub const MAX_GET_BYTES: usize = 64 * 1024;
/// Connections that one echo server serves at once; more wait in the kernel's queue.
const MAX_ECHO_CONNECTIONS: usize = 256;
const ICMP_HEADER_BYTES: usize = 8;
/// A mark in each payload by which an answer finds its question, whatever the kernel did to the identifier.
const COOKIE_BYTES: usize = 8;
static NEXT_COOKIE: AtomicU64 = AtomicU64::new(1);

/// What to send.
#[derive(Clone, Debug)]
pub struct PingOptions {
    /// To whom.
    pub to: IpAddr,
    /// From which address; `None` lets the kernel choose.
    pub from: Option<IpAddr>,
    /// How many echo requests.
    pub count: u32,
    /// Time from one request to the next. An answer does not hasten the next one.
    pub interval: Duration,
    /// How long to wait for each answer.
    pub timeout: Duration,
    /// Payload, bytes; at least 8, at most [`MAX_PING_BYTES`].
    pub size: usize,
    /// Whether packets may be split on the way.
    pub fragments: Fragments,
}

/// Whether a packet that is too long for a link may be split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragments {
    /// As the kernel does by default.
    #[default]
    Allowed,
    /// Never: a packet that is too long is lost or refused.
    Forbidden,
}

impl PingOptions {
    /// One request of 56 bytes with a second of patience.
    pub fn once(to: IpAddr) -> PingOptions {
        let second = Duration::from_secs(1);
        PingOptions { to, from: None, count: 1, interval: second, timeout: second, size: 56, fragments: Fragments::Allowed }
    }
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PingReport {
    /// Requests sent, or tried to send.
    pub sent: u32,
    /// Answers in time.
    pub received: u32,
    /// Shortest round trip.
    pub rtt_min: Option<Duration>,
    /// Median round trip.
    pub rtt_median: Option<Duration>,
    /// The round trip that 99 of 100 do not exceed.
    pub rtt_p99: Option<Duration>,
    /// Longest round trip.
    pub rtt_max: Option<Duration>,
    /// Why the last request that could not be sent could not be, for instance "Network is unreachable".
    pub send_error: Option<String>,
}

impl PingReport {
    /// Whether every request was answered.
    pub fn complete(&self) -> bool {
        self.sent > 0 && self.received == self.sent
    }
    fn of(sent: u32, mut times: Vec<Duration>, send_error: Option<String>) -> PingReport {
        times.sort();
        let at = |part: f64| times.get(((times.len().saturating_sub(1)) as f64 * part).round() as usize).copied();
        PingReport {
            sent,
            received: times.len() as u32,
            rtt_min: at(0.0),
            rtt_median: at(0.5),
            rtt_p99: at(0.99),
            rtt_max: at(1.0),
            send_error,
        }
    }
}

/// Sends echo requests out of a namespace and waits for the answers. Lost packets are a report, not an error; an error
/// means that the probe could not be made at all.
pub async fn ping(netns: &Netns, options: PingOptions) -> Result<PingReport> {
    if !(COOKIE_BYTES..=MAX_PING_BYTES).contains(&options.size) {
        let reason = format!("the payload has {} bytes", options.size);
        return Err(Error::invalid("ping", reason, format!("ask for {COOKIE_BYTES} to {MAX_PING_BYTES} bytes")));
    }
    let opening = options.clone();
    let (fd, raw) = netns::run_in(netns, move || open_icmp(&opening)).await??;
    let fd = sys::watch(fd).map_err(|error| socket_error("drive the ICMP socket", &error))?;
    let (mut times, mut send_error) = (vec![], None);
    for sequence in 0..options.count {
        let begun = Instant::now();
        match echo(&fd, &options, sequence as u16, raw).await {
            Ok(rtt) => times.extend(rtt),
            Err(errno) => send_error = Some(std::io::Error::from(errno).to_string()),
        }
        if sequence + 1 < options.count {
            tokio::time::sleep(options.interval.saturating_sub(begun.elapsed())).await;
        }
    }
    Ok(PingReport::of(options.count, times, send_error))
}

/// Packets that may wait at a [`Pinger`] and are nobody's answer.
const MAX_STALE: usize = 1024;

/// Asks one address again and again, always from the same socket.
pub struct Pinger {
    fd: AsyncFd<OwnedFd>,
    raw: bool,
    options: PingOptions,
}

impl Pinger {
    /// A socket inside the namespace, bound to `from`.
    pub async fn open(netns: &Netns, from: IpAddr, to: IpAddr) -> Result<Pinger> {
        let options = PingOptions { from: Some(from), ..PingOptions::once(to) };
        let opening = options.clone();
        let (fd, raw) = netns::run_in(netns, move || open_icmp(&opening)).await??;
        let fd = sys::watch(fd).map_err(|error| socket_error("drive the ICMP socket", &error))?;
        Ok(Pinger { fd, raw, options })
    }

    /// Sends an echo request at once and then one after every `pause` until any of them is answered; false when none was
    /// within `patience`. A request that cannot be sent is one that is not answered.
    pub async fn answered(&mut self, pause: Duration, patience: Duration) -> bool {
        let cookie = next_cookie();
        self.forget();
        let end = Instant::now() + patience;
        for sequence in 0.. {
            let request = echo_request(&self.options, sequence, cookie);
            let _ = rustix::net::sendto(&self.fd, &request, SendFlags::empty(), &SocketAddr::new(self.options.to, 0));
            let left = end.saturating_duration_since(Instant::now());
            if timeout(left.min(pause), answer(&self.fd, &self.options, self.raw, cookie)).await.is_ok_and(|heard| heard) {
                return true;
            }
            if left <= pause {
                break;
            }
        }
        false
    }

    /// What came between two questions must not keep the answer out.
    fn forget(&self) {
        let mut buffer = [0; 64];
        for _ in 0..MAX_STALE {
            if rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::empty()).is_err() {
                return;
            }
        }
    }
}

/// An ICMP socket in the namespace of this thread, and whether it is a raw one.
pub(crate) fn open_icmp(options: &PingOptions) -> Result<(OwnedFd, bool)> {
    let (family, protocol) =
        if options.to.is_ipv4() { (AddressFamily::INET, ipproto::ICMP) } else { (AddressFamily::INET6, ipproto::ICMPV6) };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let open = |kind| rustix::net::socket_with(family, kind, flags, Some(protocol));
    let (fd, raw) = match open(SocketType::RAW) {
        Ok(fd) => (fd, true),
        Err(Errno::PERM | Errno::ACCESS) => match open(SocketType::DGRAM) {
            Ok(fd) => (fd, false),
            Err(errno) => return Err(no_privilege(errno)),
        },
        Err(errno) => return Err(refused("ping", "open an ICMP socket", errno)),
    };
    let prepared = prepare_icmp(&fd, options);
    prepared.map(|()| (fd, raw)).map_err(|errno| refused("ping", "prepare the ICMP socket", errno))
}

fn prepare_icmp(fd: &OwnedFd, options: &PingOptions) -> std::result::Result<(), Errno> {
    if options.fragments == Fragments::Forbidden {
        match options.to {
            IpAddr::V4(_) => sockopt::set_ip_mtu_discover(fd, sockopt::Ipv4PathMtuDiscovery::DO)?,
            IpAddr::V6(_) => sockopt::set_ipv6_mtu_discover(fd, sockopt::Ipv6PathMtuDiscovery::DO)?,
        }
    }
    match options.from {
        Some(from) => rustix::net::bind(fd, &SocketAddr::new(from, 0)),
        None => Ok(()),
    }
}

fn no_privilege(errno: Errno) -> Error {
    let mut error = refused("ping", "open an ICMP socket", errno);
    error.kind = Kind::Denied;
    error.fix = "grant CAP_NET_RAW, or let this group ping: sysctl net.ipv4.ping_group_range='0 2147483647' in that namespace".into();
    error
}

/// One request and, if it comes in time, the time until its answer. An error means that it could not be sent.
async fn echo(fd: &AsyncFd<OwnedFd>, options: &PingOptions, sequence: u16, raw: bool) -> std::result::Result<Option<Duration>, Errno> {
    let cookie = next_cookie();
    let request = echo_request(options, sequence, cookie);
    let sent = Instant::now();
    rustix::net::sendto(fd, &request, SendFlags::empty(), &SocketAddr::new(options.to, 0))?;
    let answered = timeout(options.timeout, answer(fd, options, raw, cookie)).await.is_ok_and(|heard| heard);
    Ok(answered.then(|| sent.elapsed()))
}

fn next_cookie() -> [u8; COOKIE_BYTES] {
    NEXT_COOKIE.fetch_add(1, Ordering::Relaxed).wrapping_add(u64::from(std::process::id()) << 32).to_be_bytes()
}

/// True as soon as there is an answer with this cookie; false when there cannot be one any more.
async fn answer(fd: &AsyncFd<OwnedFd>, options: &PingOptions, raw: bool, cookie: [u8; COOKIE_BYTES]) -> bool {
    let skip = Shape { ip_header: raw && options.to.is_ipv4(), v4: options.to.is_ipv4() };
    let mut buffer = vec![0; options.size + 128];
    loop {
        let Ok(mut ready) = fd.readable().await else { return false };
        match rustix::net::recv(fd, &mut buffer[..], RecvFlags::empty()) {
            Ok((read, _)) if is_answer(&buffer[..read], skip, cookie) => return true,
            // Somebody else's answer, or news of an error on the way; ours may still come.
            Ok(_) => {}
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(_) => {}
        }
    }
}

/// How an ICMP socket hands out what it received.
#[derive(Clone, Copy)]
struct Shape {
    ip_header: bool,
    v4: bool,
}

fn echo_request(options: &PingOptions, sequence: u16, cookie: [u8; COOKIE_BYTES]) -> Vec<u8> {
    let kind = if options.to.is_ipv4() { 8 } else { 128 };
    let mut packet = vec![0; ICMP_HEADER_BYTES + options.size];
    packet[0] = kind;
    packet[4..6].copy_from_slice(&cookie[6..8]);
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    packet[8..16].copy_from_slice(&cookie);
    if options.to.is_ipv4() {
        let sum = checksum(&packet); // for IPv6 the kernel does it, as only it knows the addresses
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

fn is_answer(packet: &[u8], shape: Shape, cookie: [u8; COOKIE_BYTES]) -> bool {
    let header = if shape.ip_header { packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4) } else { 0 };
    let Some(icmp) = packet.get(header..) else { return false };
    icmp.first() == Some(if shape.v4 { &0 } else { &129 }) && icmp.get(8..16) == Some(&cookie)
}

/// The Internet checksum.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// A server that answers with what it was sent; ends when dropped.
pub struct EchoServer {
    /// Where it listens; with port 0 asked for, the one that the kernel chose.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends every datagram back.
pub async fn udp_echo_server(netns: &Netns, address: SocketAddr) -> Result<EchoServer> {
    let socket = udp_socket(netns, address).await?;
    let address = socket.local_addr().map_err(|error| socket_error("read its own address", &error))?;
    let task = tokio::spawn(async move {
        let mut buffer = vec![0; u16::MAX as usize];
        loop {
            // An error is news about an earlier answer, whose asker has gone.
            if let Ok((read, from)) = socket.recv_from(&mut buffer).await {
                let _ = socket.send_to(&buffer[..read], from).await;
            }
        }
    });
    Ok(EchoServer { address, task })
}

/// Sends one datagram and returns the answer, or `None` when none comes in time.
pub async fn udp_exchange(netns: &Netns, to: SocketAddr, payload: &[u8], patience: Duration) -> Result<Option<Vec<u8>>> {
    let any = if to.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let socket = udp_socket(netns, SocketAddr::new(any, 0)).await?;
    let mut buffer = vec![0; u16::MAX as usize];
    let exchange = async {
        socket.connect(to).await?;
        socket.send(payload).await?;
        socket.recv(&mut buffer).await
    };
    match timeout(patience, exchange).await {
        Ok(Ok(read)) => Ok(Some(buffer[..read].to_vec())),
        // Refused, unreachable or late: no answer, which is what the caller asks about.
        Ok(Err(_)) | Err(_) => Ok(None),
    }
}

/// A UDP socket inside a namespace.
pub async fn udp_socket(netns: &Netns, address: SocketAddr) -> Result<UdpSocket> {
    let opened = netns::run_in(netns, move || std::net::UdpSocket::bind(address)).await?;
    let socket = opened.map_err(|error| socket_error(&format!("bind UDP {address}"), &error))?;
    socket.set_nonblocking(true).and_then(|()| UdpSocket::from_std(socket)).map_err(|error| socket_error("drive a UDP socket", &error))
}

/// A listening TCP socket inside a namespace.
pub async fn tcp_listen(netns: &Netns, address: SocketAddr) -> Result<TcpListener> {
    let opened = netns::run_in(netns, move || std::net::TcpListener::bind(address)).await?;
    let listener = opened.map_err(|error| socket_error(&format!("listen on TCP {address}"), &error))?;
    listener
        .set_nonblocking(true)
        .and_then(|()| TcpListener::from_std(listener))
        .map_err(|error| socket_error("drive a TCP socket", &error))
}

/// Sends back whatever a client sends, until the client has finished.
pub async fn tcp_echo_server(netns: &Netns, address: SocketAddr) -> Result<EchoServer> {
    let listener = tcp_listen(netns, address).await?;
    let address = listener.local_addr().map_err(|error| socket_error("read its own address", &error))?;
    let task = tokio::spawn(async move {
        let mut clients = tokio::task::JoinSet::new();
        loop {
            while clients.len() >= MAX_ECHO_CONNECTIONS {
                clients.join_next().await;
            }
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((mut stream, _)) => { clients.spawn(async move { echo_stream(&mut stream).await }); }
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await, // out of descriptors: let some close
                },
                Some(_) = clients.join_next() => {}
            }
        }
    });
    Ok(EchoServer { address, task })
}

async fn echo_stream(stream: &mut TcpStream) {
    let (mut read, mut write) = stream.split();
    let _ = tokio::io::copy(&mut read, &mut write).await; // a client that breaks off is no concern of the server
}

/// Opens a TCP connection out of a namespace.
pub async fn tcp_connect(netns: &Netns, to: SocketAddr, patience: Duration) -> Result<TcpStream> {
    let object = format!("TCP to {to}");
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let open = move || rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None);
    let fd = netns::run_in(netns, open).await?.map_err(|errno| refused(&object, "open a socket", errno))?;
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(fd));
    match timeout(patience, socket.connect(to)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(Error::new(Kind::Unavailable, object, error.to_string(), "check the route and the server")),
        Err(_) => Err(Error::new(Kind::Timeout, object, format!("no answer within {patience:?}"), "check the route and the server")),
    }
}

/// Opens a TCP connection, sends `request`, finishes sending, and returns all that comes back, at most [`MAX_GET_BYTES`].
pub async fn tcp_get(netns: &Netns, to: SocketAddr, request: &[u8], patience: Duration) -> Result<Vec<u8>> {
    let mut stream = tcp_connect(netns, to, patience).await?;
    let mut answer = vec![];
    let exchange = async {
        stream.write_all(request).await?;
        stream.shutdown().await?;
        (&mut stream).take(MAX_GET_BYTES as u64).read_to_end(&mut answer).await
    };
    let object = format!("TCP to {to}");
    match timeout(patience, exchange).await {
        Ok(Ok(_)) => Ok(answer),
        Ok(Err(error)) => Err(Error::new(Kind::Unavailable, object, error.to_string(), "check the server")),
        Err(_) => Err(Error::new(Kind::Timeout, object, format!("no end within {patience:?}"), "check the server")),
    }
}

fn socket_error(doing: &str, error: &std::io::Error) -> Error {
    refused("a probe", doing, Errno::from_io_error(error).unwrap_or(Errno::IO))
}
