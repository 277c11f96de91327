//! A name server of a test, and a stub that asks. The server is told what to do with each question.

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, SOA},
    },
};
use nsm_api::DnsConfig;
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
    time::timeout,
};

/// A test waits for nothing longer than this.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    Udp,
    Tcp,
}

pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    questions: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Fake {
    pub(crate) async fn start(answer: impl Fn(&Message, Carrier) -> Option<Message> + Send + Sync + 'static) -> Fake {
        Fake::start_on("127.0.0.1:0", answer).await
    }

    async fn start_on(address: &str, answer: impl Fn(&Message, Carrier) -> Option<Message> + Send + Sync + 'static) -> Fake {
        let (udp, tcp) = sockets(address).await;
        let (address, questions) = (udp.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let (answer, count, mut tasks) = (Arc::new(answer), questions.clone(), JoinSet::new());
        let reply = move |bytes: &[u8], carrier| {
            count.fetch_add(1, Relaxed);
            let message = Message::from_vec(bytes).expect("the resolver sends well-formed messages");
            answer(&message, carrier).map(|reply| reply.to_vec().unwrap())
        };
        let over_tcp = reply.clone();
        tasks.spawn(async move {
            let mut buffer = vec![0; 4096];
            loop {
                let (length, peer) = udp.recv_from(&mut buffer).await.unwrap();
                if let Some(bytes) = reply(&buffer[..length], Carrier::Udp) {
                    udp.send_to(&bytes, peer).await.unwrap();
                }
            }
        });
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                if let Some(bytes) = over_tcp(&read(&mut stream).await.unwrap(), Carrier::Tcp) {
                    write(&mut stream, &bytes).await;
                }
            }
        });
        Fake { address, questions, _tasks: tasks }
    }

    /// Knows the addresses of some names and that there are no others.
    pub(crate) async fn zone(names: &'static [(&'static str, [u8; 4])]) -> Fake {
        Fake::zone_on("127.0.0.1:0", names).await
    }

    pub(crate) async fn zone_on(address: &str, names: &'static [(&'static str, [u8; 4])]) -> Fake {
        Fake::start_on(address, move |question, _| Some(zone(question, names))).await
    }

    /// How many questions came.
    pub(crate) fn questions(&self) -> usize {
        self.questions.load(Relaxed)
    }

    /// A configuration with this server.
    pub(crate) fn config(&self, search: &[&str]) -> DnsConfig {
        config(self.address, search)
    }
}

pub(crate) fn config(server: SocketAddr, search: &[&str]) -> DnsConfig {
    let search_domains = search.iter().map(|domain| (*domain).to_owned()).collect();
    DnsConfig { dns_server_ips: vec![server.to_string()], search_domains, ..DnsConfig::default() }
}

async fn sockets(address: &str) -> (UdpSocket, TcpListener) {
    for _ in 0..8 {
        let udp = UdpSocket::bind(address).await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
    panic!("no port is free for UDP and TCP");
}

pub(crate) fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

/// An empty reply with `code`.
pub(crate) fn code(question: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::error_msg(question.metadata.id, OpCode::Query, code);
    reply.queries.clone_from(&question.queries);
    reply
}

pub(crate) fn address(owner: &Name, ttl: u32, ip: impl Into<Ipv4Addr>) -> Record {
    Record::from_rdata(owner.clone(), ttl, RData::A(A(ip.into())))
}

/// A negative answer that says how long it holds.
pub(crate) fn no(question: &Message, response: ResponseCode, ttl: u32) -> Message {
    let mut reply = code(question, response);
    let soa = SOA::new(name("ns."), name("host."), 1, 1, 1, 1, ttl);
    reply.add_authority(Record::from_rdata(Name::root(), ttl, RData::SOA(soa)));
    reply
}

pub(crate) fn zone(question: &Message, names: &[(&str, [u8; 4])]) -> Message {
    let query = &question.queries[0];
    match names.iter().find(|(owner, _)| *query.name() == name(owner)) {
        None => no(question, ResponseCode::NXDomain, 60),
        Some(_) if query.query_type() != RecordType::A => no(question, ResponseCode::NoError, 60),
        Some((_, ip)) => {
            let mut reply = code(question, ResponseCode::NoError);
            reply.add_answer(address(query.name(), 60, *ip));
            reply
        }
    }
}

/// A question of a stub.
pub(crate) fn question(id: u16, text: &str, kind: RecordType) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), kind));
    message
}

/// Asks over UDP and waits for the reply.
pub(crate) async fn ask(server: SocketAddr, question: &Message) -> Message {
    let reply = send(server, &question.to_vec().unwrap()).await;
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(reply.metadata.id, question.metadata.id);
    assert_eq!(reply.queries, question.queries, "the reply repeats the question as it was written");
    reply
}

/// Sends a datagram and waits for the reply.
pub(crate) async fn send(server: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind(if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(bytes).await.unwrap();
    let mut buffer = vec![0; 65536];
    let length = timeout(BOUND, socket.recv(&mut buffer)).await.expect("a reply in time").unwrap();
    buffer.truncate(length);
    buffer
}

/// The addresses that `text` has, by an A question over UDP.
pub(crate) async fn addresses(server: SocketAddr, text: &str) -> Vec<Ipv4Addr> {
    a_records(&ask(server, &question(7, text, RecordType::A)).await)
}

pub(crate) fn a_records(reply: &Message) -> Vec<Ipv4Addr> {
    let ip = |record: &Record| match &record.data {
        RData::A(A(ip)) => Some(*ip),
        _ => None,
    };
    reply.answers.iter().filter_map(ip).collect()
}

pub(crate) async fn read(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut bytes).await.map(|_| bytes)
}

pub(crate) async fn write(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
}
