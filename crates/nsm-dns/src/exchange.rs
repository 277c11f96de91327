//! One question to one server: UDP from a fresh port, TCP when the answer does not fit, and once more without EDNS
//! for a server that does not understand it.

use crate::wire::{Dialect, Question, Reply, is_not_understood};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// How long each sending waits before the next one: datagrams get lost. The second is within [`crate::GRACE`].
const WAITS: [Duration; 3] = [Duration::from_millis(400), Duration::from_millis(1100), Duration::from_millis(3500)];
/// Largest datagram in bytes that is read whole: some servers send more than was announced.
const MAX_UDP_REPLY: usize = 4096;

/// The server's reply to the question, whatever its code. The caller bounds the time.
pub(crate) async fn exchange(server: SocketAddr, id: u16, question: &Question) -> io::Result<Reply> {
    let reply = in_dialect(server, id, question, Dialect::Extended).await?;
    if is_not_understood(&reply.message) { in_dialect(server, id, question, Dialect::Plain).await } else { Ok(reply) }
}

async fn in_dialect(server: SocketAddr, id: u16, question: &Question, dialect: Dialect) -> io::Result<Reply> {
    let bytes = question.message(id, dialect).to_vec().map_err(io::Error::other)?;
    let is_ours = |reply: &Reply| question.is_answered_by(id, &reply.message);
    let reply = over_udp(server, &bytes, is_ours).await?;
    if !reply.message.metadata.truncation {
        return Ok(reply);
    }
    over_tcp(server, &bytes).await?.filter(is_ours).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

async fn over_udp(server: SocketAddr, question: &[u8], is_ours: impl Fn(&Reply) -> bool) -> io::Result<Reply> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    for wait in WAITS {
        socket.send(question).await?;
        if let Ok(reply) = timeout(wait, receive(&socket, &is_ours)).await {
            return reply;
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Passes over what is not the reply: forged, late, or malformed.
async fn receive(socket: &UdpSocket, is_ours: &impl Fn(&Reply) -> bool) -> io::Result<Reply> {
    let mut buffer = vec![0; MAX_UDP_REPLY];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(reply) = Reply::read(&buffer[..length]).filter(is_ours) {
            return Ok(reply);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Option<Reply>> {
    let mut stream = TcpStream::connect(server).await?;
    write_frame(&mut stream, question).await?;
    Ok(Reply::read(&read_frame(&mut stream, u16::MAX).await?))
}

/// A message of a stream: two bytes of length, then itself. A longer one than `most` is an error.
pub(crate) async fn read_frame(stream: &mut TcpStream, most: u16) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    if length > most {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// The opposite of [`read_frame`].
pub(crate) async fn write_frame(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    // One write, so that one segment carries both.
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}
