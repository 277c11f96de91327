//! Measures what a line between two namespaces carries. Each call blocks for about as long as it measures.
//!
//! Sockets are opened inside the namespaces and remember them; the threads that use them stay at home, the sending one
//! on one processor and the receiving one on another where there are two. The receiving side of a packet rate and both
//! sides of a round trip spin, so that the wake-up of a sleeping thread, which costs several times as much as the line,
//! is not what is measured.

use nsm_api::{Error, Kind, Result};
use nsm_hop::kernel::Netns;
use nsm_linux::netns;
use rustix::{
    net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg, sockopt},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use std::{
    io::{self, ErrorKind, IoSlice, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Bytes of a payload that makes an Ethernet frame of 64 bytes.
pub(crate) const SMALL: usize = 18;
/// Bytes of one write of a stream.
const WRITE: usize = 256 << 10;
/// Packets of one system call.
const BATCH: usize = 64;
/// Bytes that may wait at a receiver.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Silence after which a line counts as broken. On a busy machine TCP may try several times before it gets through.
const SILENCE: Duration = Duration::from_secs(15);
/// How long a packet may take before it counts as lost.
const LOST_AFTER: Duration = Duration::from_millis(50);
/// How long a receiver goes on after the sender has ended.
const TAIL: Duration = Duration::from_millis(20);

/// Something that carries packets from one namespace to another.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// The client's side.
    pub(crate) near: Netns,
    /// The endpoint's side.
    pub(crate) far: Netns,
    /// An address of the far side that the near side reaches over this line.
    pub(crate) address: IpAddr,
}

/// Round trips, microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RoundTrip {
    /// Half of all are at most this long.
    pub(crate) p50: f64,
    /// 99 of 100 are at most this long.
    pub(crate) p99: f64,
}

/// How both ends of a round trip wait for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// They keep asking: what the line costs.
    Spinning,
    /// They sleep: what a program sees that has nothing else to do, the wake-ups included.
    Sleeping,
}

/// So many TCP streams at once, Gbit/s.
pub(crate) fn tcp(line: &Line, streams: usize, span: Duration) -> Result<f64> {
    let (listener, at) = far(line, |at| TcpListener::bind(at).and_then(|socket| Ok((socket.local_addr()?, socket))))?;
    let pairs = (0..streams).map(|_| stream(line, &listener, at)).collect::<Result<Vec<_>>>()?;
    thread::scope(|scope| {
        let ends: Vec<_> = (0..)
            .zip(pairs)
            .map(|(number, (sender, mut receiver))| {
                let sending = on_thread(scope, 2 * number, move || write_for(sender, span));
                (sending, on_thread(scope, 2 * number + 1, move || read_all(&mut receiver)))
            })
            .collect();
        let mut rate = 0.0;
        for (sending, received) in ends {
            sending.join().map_err(|_| panicked())?.map_err(broken)?;
            let (bytes, took) = received.join().map_err(|_| panicked())?.map_err(broken)?;
            rate += bytes as f64 * 8.0 / took.as_secs_f64() / 1e9;
        }
        Ok(rate)
    })
}

/// The near end of a new stream, and its far end.
fn stream(line: &Line, listener: &TcpListener, at: SocketAddr) -> Result<(TcpStream, TcpStream)> {
    let sender = near(line, move || TcpStream::connect_timeout(&at, SILENCE))?;
    let (receiver, _) = listener.accept().map_err(broken)?;
    receiver.set_read_timeout(Some(SILENCE)).and_then(|()| sender.set_write_timeout(Some(SILENCE))).map_err(broken)?;
    Ok((sender, receiver))
}

fn write_for(mut stream: TcpStream, span: Duration) -> io::Result<()> {
    let (buffer, end) = (vec![0x5a; WRITE], Instant::now() + span);
    while Instant::now() < end {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(std::net::Shutdown::Write)
}

/// Bytes, and the time from the first to the last.
fn read_all(stream: &mut TcpStream) -> io::Result<(u64, Duration)> {
    let mut buffer = vec![0; WRITE];
    let mut bytes = stream.read(&mut buffer)? as u64;
    let begun = Instant::now();
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok((bytes, begun.elapsed())),
            read => bytes += read as u64,
        }
    }
}

/// UDP packets with so many bytes of payload that arrive, each second.
pub(crate) fn packets(line: &Line, payload: usize, span: Duration) -> Result<f64> {
    let (receiver, sender) = datagrams(line)?;
    let sent = AtomicBool::new(false);
    thread::scope(|scope| {
        let counting = on_thread(scope, 1, || count_until(&receiver, &sent));
        let sending = on_thread(scope, 0, || send_for(&sender, payload, span));
        let result = sending.join().map_err(|_| panicked());
        sent.store(true, Ordering::Release);
        let (count, took) = counting.join().map_err(|_| panicked())?.map_err(broken)?;
        result?.map_err(broken)?;
        Ok(count as f64 / took.as_secs_f64())
    })
}

fn send_for(socket: &UdpSocket, payload: usize, span: Duration) -> io::Result<()> {
    let payload = vec![0x5a; payload];
    let slices = [IoSlice::new(&payload)];
    let mut controls: Vec<SendAncillaryBuffer<'_, '_, '_>> = (0..BATCH).map(|_| SendAncillaryBuffer::default()).collect();
    let mut batch: Vec<MMsgHdr<'_>> = controls.iter_mut().map(|control| MMsgHdr::new(&slices, control)).collect();
    let end = Instant::now() + span;
    while Instant::now() < end {
        match sendmmsg(socket, &mut batch, SendFlags::empty()) {
            Ok(_) | Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Packets, and the time from the first to the last.
fn count_until(socket: &UdpSocket, sent: &AtomicBool) -> io::Result<(u64, Duration)> {
    let (mut buffer, mut count) = ([0; 2048], 0u64);
    let (mut first, mut last, mut ended) = (None, Instant::now(), None);
    loop {
        match socket.recv(&mut buffer) {
            Ok(_) => {
                count += 1;
                if count % BATCH as u64 == 1 {
                    last = Instant::now(); // the clock costs a tenth of a packet
                    first.get_or_insert(last);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if sent.load(Ordering::Acquire) && ended.get_or_insert_with(Instant::now).elapsed() > TAIL {
                    break;
                }
                std::hint::spin_loop();
            }
            Err(error) => return Err(error),
        }
    }
    match first {
        Some(first) if last > first => Ok((count, last - first)),
        _ => Err(io::Error::other("no packet arrived")),
    }
}

/// Round trips of packets of 64 bytes, one at a time.
pub(crate) fn round_trips(line: &Line, waiting: Waiting, span: Duration) -> Result<RoundTrip> {
    let (echo, asker) = datagrams(line)?;
    for socket in [&echo, &asker] {
        socket.set_nonblocking(waiting == Waiting::Spinning).map_err(broken)?;
        socket.set_read_timeout(Some(LOST_AFTER)).map_err(broken)?;
    }
    let done = AtomicBool::new(false);
    let times = thread::scope(|scope| {
        let echoing = on_thread(scope, 1, || echo_until(&echo, &done));
        let asking = on_thread(scope, 0, || ask_for(&asker, span));
        let times = asking.join().map_err(|_| panicked());
        done.store(true, Ordering::Release);
        echoing.join().map_err(|_| panicked())?.map_err(broken)?;
        times?.map_err(broken)
    })?;
    let at = |part: f64| f64::from(times[((times.len() - 1) as f64 * part) as usize]) / 1e3;
    Ok(RoundTrip { p50: at(0.5), p99: at(0.99) })
}

fn echo_until(socket: &UdpSocket, done: &AtomicBool) -> io::Result<()> {
    let mut buffer = [0; 2048];
    while !done.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((read, from)) => unless_full(socket.send_to(&buffer[..read], from))?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sorted times in nanoseconds; at least one.
fn ask_for(socket: &UdpSocket, span: Duration) -> io::Result<Vec<u32>> {
    let (mut buffer, mut times, start) = ([0x5a; SMALL], Vec::with_capacity(1 << 20), Instant::now());
    let mut number = 0u64;
    while start.elapsed() < span || times.is_empty() && start.elapsed() < SILENCE {
        number += 1;
        buffer[..8].copy_from_slice(&number.to_ne_bytes());
        let begun = Instant::now();
        unless_full(socket.send(&buffer))?;
        while begun.elapsed() < LOST_AFTER {
            match socket.recv(&mut buffer) {
                // The answer to an earlier one, which had been given up.
                Ok(_) if buffer[..8] != number.to_ne_bytes() => {}
                Ok(_) => {
                    times.push(u32::try_from(begun.elapsed().as_nanos()).unwrap_or(u32::MAX));
                    break;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(error) => return Err(error),
            }
        }
    }
    times.sort_unstable();
    if times.is_empty() { Err(io::Error::other("no answer arrived")) } else { Ok(times) }
}

/// What does not fit into a queue is lost, as elsewhere on the way.
fn unless_full(sent: io::Result<usize>) -> io::Result<()> {
    match sent {
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

/// A receiver at the far side and a sender at the near side that is connected to it. The receiver never sleeps.
fn datagrams(line: &Line) -> Result<(UdpSocket, UdpSocket)> {
    let (receiver, at) = far(line, |at| UdpSocket::bind(at).and_then(|socket| Ok((socket.local_addr()?, socket))))?;
    let sender = near(line, move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(at).map(|()| socket)
    })?;
    // Without root, as much as everybody may have.
    if sockopt::set_socket_recv_buffer_size_force(&receiver, RECEIVE_BUFFER).is_err() {
        sockopt::set_socket_recv_buffer_size(&receiver, RECEIVE_BUFFER).map_err(|errno| broken(errno.into()))?;
    }
    receiver.set_nonblocking(true).map_err(broken)?;
    Ok((receiver, sender))
}

fn far<S: Send>(line: &Line, open: impl FnOnce(SocketAddr) -> io::Result<(SocketAddr, S)> + Send) -> Result<(S, SocketAddr)> {
    let at = SocketAddr::new(line.address, 0);
    let (at, socket) = netns::run_in_blocking(&line.far, || open(at))?.map_err(broken)?;
    Ok((socket, at))
}

fn near<S: Send>(line: &Line, open: impl FnOnce() -> io::Result<S> + Send) -> Result<S> {
    netns::run_in_blocking(&line.near, open)?.map_err(broken)
}

fn on_thread<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    processor: usize,
    work: impl FnOnce() -> T + Send + 'scope,
) -> thread::ScopedJoinHandle<'scope, T> {
    scope.spawn(move || on_processor(processor, work))
}

/// Keeps this thread on the n-th of the processors that it may use, where there are as many. The thread ends soon.
fn on_processor<T>(number: usize, work: impl FnOnce() -> T) -> T {
    if let Ok(allowed) = sched_getaffinity(None)
        && let Some(chosen) = (0..CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor)).nth(number)
    {
        let mut only = CpuSet::new();
        only.set(chosen);
        // Where that is not allowed, the scheduler's choice is what is measured.
        let _ = sched_setaffinity(None, &only);
    }
    work()
}

fn broken(error: io::Error) -> Error {
    Error::new(Kind::Unavailable, "a measured line", error.to_string(), "see that it carries packets: nsm lab run examples/")
}

fn panicked() -> Error {
    Error::internal("a measuring thread", "it ended before its work was done")
}
