//! Figures: questions offered at a steady rate, to a resolver with one name server on loopback, for names that it
//! knows and for new ones. `cargo run -p nsm-dns --example load [questions per second]`.
#![allow(clippy::unwrap_used)] // a tool of developers

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use nsm_api::DnsConfig;
use nsm_dns::Resolver;
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::net::UdpSocket;

/// How long each kind of question is offered.
const SPAN: Duration = Duration::from_secs(4);
/// How often questions are sent.
const TICK: Duration = Duration::from_millis(1);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let rate: u32 = std::env::args().nth(1).map_or(5000, |text| text.parse().unwrap());
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let config = DnsConfig { dns_server_ips: vec![server.local_addr().unwrap().to_string()], ..DnsConfig::default() };
    tokio::spawn(serve(server));
    let resolver = Resolver::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
    resolver.set("load", &[config]).unwrap();
    for (what, names) in [("new names", u32::MAX), ("100 names", 100)] {
        let (sent, mut times) = offer(resolver.address(), rate, names).await;
        times.sort();
        let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1000.0;
        let lost = sent - times.len();
        println!("{what}: {rate} q/s offered, {lost} of {sent} lost, p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms", at(50), at(99), at(100));
    }
    let status = resolver.status();
    println!("queries {}, cache hits {}, failures {}, overloads {}", status.queries, status.cache_hits, status.failures, status.overloads);
}

fn question(n: u32, names: u32) -> Vec<u8> {
    let mut message = Message::new((n % 65536) as u16, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(format!("n{}.example.", n % names)).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

/// Sends at the rate whether or not answers come; how many were sent, and the time of each answer.
async fn offer(to: SocketAddr, rate: u32, names: u32) -> (usize, Vec<Duration>) {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    socket.connect(to).await.unwrap();
    let (begun, total) = (Instant::now(), rate * SPAN.as_secs() as u32);
    let receiver = socket.clone();
    let due = move |n: u32| Duration::from_secs_f64(f64::from(n) / f64::from(rate));
    let times = tokio::spawn(async move {
        let (mut times, mut buffer) = (Vec::new(), [0; 512]);
        while times.len() < total as usize {
            let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(2), receiver.recv(&mut buffer)).await else { break };
            // Ids repeat after 65536; the newest question with this id is meant.
            let (now, id) = (begun.elapsed(), u32::from(u16::from_be_bytes([buffer[0], buffer[1]])));
            let latest = (now.as_secs_f64() * f64::from(rate)) as u32;
            times.push(now.saturating_sub(due(latest - (latest.wrapping_sub(id) % 65536))));
        }
        times
    });
    let (mut ticks, mut sent) = (tokio::time::interval(TICK), 0);
    while sent < total {
        ticks.tick().await;
        while sent < total && due(sent) <= begun.elapsed() {
            socket.send(&question(sent, names)).await.unwrap();
            sent += 1;
        }
    }
    (sent as usize, times.await.unwrap())
}

async fn serve(socket: UdpSocket) {
    let mut buffer = vec![0; 4096];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
        let mut reply = Message::from_vec(&buffer[..length]).unwrap().into_response();
        let owner = reply.queries[0].name().clone();
        reply.add_answer(Record::from_rdata(owner, 60, RData::A(A::new(10, 0, 0, 1))));
        socket.send_to(&reply.to_vec().unwrap(), peer).await.unwrap();
    }
}
