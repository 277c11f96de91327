//! One question to one server: UDP from a fresh port, TCP when the answer does not fit, and once more without EDNS
//! for a server that does not understand it.

use crate::wire::{Dialect, Question, is_not_understood};
use hickory_proto::op::Message;
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

/// How long each sending waits before the next one: datagrams get lost.
const WAITS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(2)];
/// Largest datagram in bytes that is read whole: some servers send more than was announced.
const MAX_UDP_REPLY: usize = 4096;

/// The server's reply to the question, whatever its code. The caller bounds the time.
pub(crate) async fn exchange(server: SocketAddr, id: u16, question: &Question) -> io::Result<Message> {
    let reply = in_dialect(server, id, question, Dialect::Extended).await?;
    if is_not_understood(&reply) { in_dialect(server, id, question, Dialect::Plain).await } else { Ok(reply) }
}

async fn in_dialect(server: SocketAddr, id: u16, question: &Question, dialect: Dialect) -> io::Result<Message> {
    let bytes = question.message(id, dialect).to_vec().map_err(io::Error::other)?;
    let reply = over_udp(server, &bytes, |reply| question.is_answered_by(id, reply)).await?;
    if !reply.metadata.truncation {
        return Ok(reply);
    }
    let reply = over_tcp(server, &bytes).await?;
    if question.is_answered_by(id, &reply) { Ok(reply) } else { Err(io::ErrorKind::InvalidData.into()) }
}

async fn over_udp(server: SocketAddr, question: &[u8], is_ours: impl Fn(&Message) -> bool) -> io::Result<Message> {
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
async fn receive(socket: &UdpSocket, is_ours: &impl Fn(&Message) -> bool) -> io::Result<Message> {
    let mut buffer = vec![0; MAX_UDP_REPLY];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(reply) = Message::from_vec(&buffer[..length]).ok().filter(is_ours) {
            return Ok(reply);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    write_frame(&mut stream, question).await?;
    Message::from_vec(&read_frame(&mut stream).await?).map_err(io::Error::other)
}

/// A message of a stream: two bytes of length, then itself.
pub(crate) async fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// The opposite of [`read_frame`].
pub(crate) async fn write_frame(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    // One write, so that one segment carries both.
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}
