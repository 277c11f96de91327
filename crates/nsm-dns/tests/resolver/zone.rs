//! Names of our own, among peers (E-34, X-056).

use crate::fake::{Fake, a_records, addresses, ask, question};
use hickory_proto::{
    op::ResponseCode,
    rr::{RData, RecordType},
};
use nsm_api::DnsConfig;
use nsm_dns::{Elsewhere, Resolver, Zone};
use std::net::Ipv4Addr;

struct Endpoint {
    zone: Zone,
    server: Resolver,
}

async fn endpoint() -> Endpoint {
    let zone = Zone::new(["office"]);
    let server = Resolver::start_with("127.0.0.1:0".parse().unwrap(), zone.clone()).await.unwrap();
    Endpoint { zone, server }
}

fn knows(endpoint: &Endpoint, other: &Endpoint) {
    let config = DnsConfig { dns_server_ips: vec![other.server.address().to_string()], ..DnsConfig::default() };
    endpoint.server.set("wire", &[config]).unwrap();
}

#[tokio::test]
async fn endpoints_answer_for_their_own_workloads_and_ask_each_other_once() {
    let (one, two) = (endpoint().await, endpoint().await);
    knows(&one, &two);
    knows(&two, &one); // a ring: no question may go round
    one.zone.claim("alice.office.", "c1", "alice", &["172.16.0.1".parse().unwrap()]).unwrap();
    two.zone.claim("bob.office.", "c2", "bob", &["172.16.1.1".parse().unwrap()]).unwrap();
    for at in [&one, &two] {
        assert_eq!(addresses(at.server.address(), "alice.office.").await, [Ipv4Addr::new(172, 16, 0, 1)]);
        assert_eq!(addresses(at.server.address(), "bob.office.").await, [Ipv4Addr::new(172, 16, 1, 1)]);
        let reply = ask(at.server.address(), &question(1, "1.1.16.172.in-addr.arpa.", RecordType::PTR)).await;
        assert!(matches!(&reply.answers[0].data, RData::PTR(name) if name.0.to_ascii() == "bob.office."), "{reply}");
        let nobody = ask(at.server.address(), &question(2, "carol.office.", RecordType::A)).await;
        assert_eq!(nobody.metadata.response_code, ResponseCode::NXDomain);
        let foreign = ask(at.server.address(), &question(3, "www.example.com.", RecordType::A)).await;
        assert_eq!(foreign.metadata.response_code, ResponseCode::Refused, "others know that");
        assert_eq!(at.server.status().failures, 0);
    }
    let own = ask(one.server.address(), &question(4, "Alice.Office.", RecordType::A)).await;
    assert!(own.metadata.authoritative && a_records(&own) == [Ipv4Addr::new(172, 16, 0, 1)]);
    assert_eq!(one.server.elsewhere("bob.office.").await, Elsewhere::Somebody(Some("bob".to_owned())));
    assert_eq!(one.server.elsewhere("alice.office.").await, Elsewhere::Nobody, "what we have ourselves does not count");
    two.zone.retain("c2", &[]);
    assert_eq!(two.server.elsewhere("bob.office.").await, Elsewhere::Nobody);
}

/// Peers of another implementation say nothing about holders; a silent one keeps nobody waiting for long.
#[tokio::test]
async fn a_peer_of_another_kind_and_a_silent_one() {
    let one = endpoint().await;
    let other = Fake::zone(&[("dave.office.", [172, 16, 2, 1])]).await;
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let config = |address: std::net::SocketAddr| DnsConfig { dns_server_ips: vec![address.to_string()], ..DnsConfig::default() };
    one.server.set("other", &[other.config(&[])]).unwrap();
    one.server.set("silent", &[config(silent.local_addr().unwrap())]).unwrap();
    assert_eq!(addresses(one.server.address(), "dave.office.").await, [Ipv4Addr::new(172, 16, 2, 1)]);
    assert_eq!(one.server.elsewhere("dave.office.").await, Elsewhere::Somebody(None));
}
