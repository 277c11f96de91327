//! Names in a lab: a small name server in a pod, and a stub that asks as an application would.
//!
//! Not here: the resolver beside a client, which is a part of it.

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType},
};
use nsm_api::{Error, Result};
use nsm_hop::kernel::Netns;
use nsm_linux::probe;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
    time::timeout,
};

/// Where name servers listen.
const PORT: u16 = 53;
/// Seconds for which an answer may be remembered.
const TTL: u32 = 1;
/// Bytes of the largest message that is read.
const MAX_MESSAGE: usize = 4096;
/// How long a client of the server may keep it busy over TCP; one is served at a time.
const TCP_BOUND: Duration = Duration::from_secs(2);
/// Before the next connection is taken after one could not be.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// A name server that knows some names and that there are no others. Ends when dropped.
pub(crate) struct NameServer {
    _tasks: JoinSet<()>,
}

/// What it knows.
type Zone = BTreeMap<Name, IpAddr>;

impl NameServer {
    /// Listens on every address of a namespace.
    pub(crate) async fn start(netns: &Netns, names: &BTreeMap<String, IpAddr>) -> Result<NameServer> {
        let everywhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT); // IPv4, too
        let zone = names.iter().map(|(text, address)| Ok((name(text)?, *address))).collect::<Result<Zone>>()?;
        let zone = Arc::new(zone);
        let udp = probe::udp_socket(netns, everywhere).await?;
        let tcp = probe::tcp_listen(netns, everywhere).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(udp, zone.clone()));
        tasks.spawn(serve_tcp(tcp, zone));
        Ok(NameServer { _tasks: tasks })
    }
}

/// An absolute name in lower case.
fn name(text: &str) -> Result<Name> {
    let wrong = |error: String| Error::invalid(format!("name {text:?}"), error, "write it as db.corp.example");
    let mut name = Name::from_ascii(text).map_err(|error| wrong(error.to_string()))?.to_lowercase();
    name.set_fqdn(true);
    Ok(name)
}

async fn serve_udp(socket: UdpSocket, zone: Arc<Zone>) {
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        // An error is news about an earlier answer, whose asker has gone.
        if let Ok((length, from)) = socket.recv_from(&mut buffer).await
            && let Some(reply) = answer(&buffer[..length], &zone)
        {
            let _ = socket.send_to(&reply, from).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, zone: Arc<Zone>) {
    loop {
        match listener.accept().await {
            // Whoever breaks off or takes too long gets no answer.
            Ok((stream, _)) => drop(timeout(TCP_BOUND, serve_stream(stream, &zone)).await),
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await, // out of descriptors: let some close
        }
    }
}

async fn serve_stream(mut stream: TcpStream, zone: &Zone) -> io::Result<()> {
    loop {
        let mut message = vec![0; usize::from(stream.read_u16().await?).min(MAX_MESSAGE)];
        stream.read_exact(&mut message).await?;
        let Some(reply) = answer(&message, zone) else { return Ok(()) };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        stream.write_u16(length).await?;
        stream.write_all(&reply).await?;
    }
}

/// The reply to a question; none to what is no question.
fn answer(bytes: &[u8], zone: &Zone) -> Option<Vec<u8>> {
    let asked = Message::from_vec(bytes).ok().filter(|message| message.metadata.message_type == MessageType::Query)?;
    let query = asked.queries.first().filter(|query| query.query_class() == DNSClass::IN)?;
    let address = zone.get(&query.name().to_lowercase());
    let code = if address.is_some() { ResponseCode::NoError } else { ResponseCode::NXDomain };
    let mut reply = Message::error_msg(asked.metadata.id, OpCode::Query, code);
    reply.metadata.authoritative = true;
    reply.queries.clone_from(&asked.queries);
    let data = address.map(|address| match address {
        IpAddr::V4(v4) => RData::A((*v4).into()),
        IpAddr::V6(v6) => RData::AAAA((*v6).into()),
    });
    if let Some(data) = data.filter(|data| data.record_type() == query.query_type()) {
        reply.add_answer(Record::from_rdata(query.name().clone(), TTL, data));
    }
    reply.to_vec().ok()
}

/// All addresses of a name, asked out of a namespace of the first of `servers` that answers. Empty: there is no such name.
pub(crate) async fn resolve(netns: &Netns, servers: &[IpAddr], text: &str) -> Result<BTreeSet<IpAddr>> {
    let name = name(text)?;
    let mut found = BTreeSet::new();
    for kind in [RecordType::A, RecordType::AAAA] {
        found.extend(ask(netns, servers, (&name, kind)).await?);
    }
    Ok(found)
}

async fn ask(netns: &Netns, servers: &[IpAddr], (name, kind): (&Name, RecordType)) -> Result<Vec<IpAddr>> {
    let object = || format!("name {name} ({kind})");
    let mut said = vec![format!("there are {} name servers", servers.len())];
    for server in servers {
        let mut question = Message::new(rand::random(), MessageType::Query, OpCode::Query);
        question.metadata.recursion_desired = true;
        question.add_query(Query::query(name.clone(), kind));
        let bytes = question.to_vec().map_err(|error| Error::internal(object(), error.to_string()))?;
        let reply = probe::udp_exchange(netns, SocketAddr::new(*server, PORT), &bytes, PATIENCE).await?;
        match reply.and_then(|bytes| Message::from_vec(&bytes).ok()).filter(|reply| reply.metadata.id == question.metadata.id) {
            None => said.push(format!("{server} does not answer")),
            Some(reply) => match reply.metadata.response_code {
                ResponseCode::NoError | ResponseCode::NXDomain => return Ok(addresses(&reply)),
                code => said.push(format!("{server} answers {code}")),
            },
        }
    }
    Err(Error::internal(object(), said.join(", ")))
}

fn addresses(reply: &Message) -> Vec<IpAddr> {
    let of = |record: &Record| match &record.data {
        RData::A(v4) => Some(IpAddr::from(v4.0)),
        RData::AAAA(v6) => Some(IpAddr::from(v6.0)),
        _ => None,
    };
    reply.answers.iter().filter_map(of).collect()
}

/// The name servers of a resolv.conf.
pub(crate) fn servers(text: &str) -> Vec<IpAddr> {
    let servers = text.lines().filter_map(|line| line.trim_start().strip_prefix("nameserver"));
    servers.filter_map(|rest| rest.split_whitespace().next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nsm_linux::{net::Net, netns};

    #[test]
    fn servers_are_read_as_resolvers_read_them() {
        let text = "# nameserver 9.9.9.9\nsearch a\nnameserver 10.0.0.1\n nameserver\t::1 # ours\nnameserver here\n";
        assert_eq!(servers(text), ["10.0.0.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
    }

    /// Needs the right to make namespaces; without it this test fails.
    #[tokio::test]
    async fn a_name_server_answers_both_families_over_udp_and_tcp() {
        let netns = netns::create().expect("this test needs root, to make network namespaces");
        Net::new(&netns).unwrap().loopback_up().unwrap();
        let names = [("Db.corp.example", "172.31.0.10"), ("six.corp.example.", "2001:db8::1")];
        let names = names.map(|(name, address)| (name.to_owned(), address.parse().unwrap())).into();
        let _server = NameServer::start(&netns, &names).await.unwrap();
        for (text, expected) in
            [("db.Corp.example", vec!["172.31.0.10"]), ("six.corp.example", vec!["2001:db8::1"]), ("no.example", vec![])]
        {
            let expected: BTreeSet<IpAddr> = expected.iter().map(|text| text.parse().unwrap()).collect();
            for server in ["127.0.0.1", "::1"] {
                assert_eq!(resolve(&netns, &[server.parse().unwrap()], text).await.unwrap(), expected, "{text} at {server}");
            }
        }
        let nobody = resolve(&netns, &["127.0.0.2".parse().unwrap(), "127.0.0.1".parse().unwrap()], "no.example").await;
        assert!(nobody.unwrap().is_empty());
        assert!(resolve(&netns, &[], "no.example").await.unwrap_err().to_string().contains("0 name servers"));

        let mut question = Message::new(7, MessageType::Query, OpCode::Query);
        question.add_query(Query::query(name("db.corp.example").unwrap(), RecordType::A));
        let bytes = question.to_vec().unwrap();
        let framed = [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat();
        let reply = probe::tcp_get(&netns, "127.0.0.1:53".parse().unwrap(), &framed, PATIENCE).await.unwrap();
        assert_eq!(addresses(&Message::from_vec(&reply[2..]).unwrap()), ["172.31.0.10".parse::<IpAddr>().unwrap()]);
    }
}
