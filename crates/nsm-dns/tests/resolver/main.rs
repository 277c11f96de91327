//! The resolver over real sockets on loopback, against name servers of the test (E-20, X-034).
#![allow(clippy::unwrap_used)] // a test's helpers fail like its body

mod fake;
mod load;
mod resolv_conf;
mod servers;
mod zone;

use fake::{Fake, a_records, address, addresses, ask, code, no, question};
use hickory_proto::{
    op::{Edns, Message, ResponseCode},
    rr::RecordType,
};
use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
};
use nsm_dns::Resolver;
use std::net::{Ipv4Addr, SocketAddr};

pub(crate) async fn start() -> Resolver {
    Resolver::start("127.0.0.1:0".parse().unwrap()).await.unwrap()
}

/// the name that the endpoint's server knows, and the cluster's that only the former server knows.
#[tokio::test]
async fn names_of_the_service_and_of_the_host_resolve_side_by_side() {
    let service = Fake::zone(&[("my.coredns.service.", [172, 16, 1, 100])]).await;
    let cluster = Fake::zone(&[("kubernetes.default.svc.cluster.local.", [10, 96, 0, 1])]).await;
    let resolver = start().await;
    resolver.set("resolv.conf", &[cluster.config(&["default.svc.cluster.local", "svc.cluster.local", "cluster.local"])]).unwrap();
    assert_eq!(addresses(resolver.address(), "my.coredns.service.").await, [] as [Ipv4Addr; 0]);
    resolver.set("connection-1", &[service.config(&[])]).unwrap();
    assert_eq!(addresses(resolver.address(), "my.coredns.service.").await, [Ipv4Addr::new(172, 16, 1, 100)], "asked anew, not remembered");
    assert_eq!(addresses(resolver.address(), "kubernetes.default.").await, [Ipv4Addr::new(10, 96, 0, 1)]);
    resolver.set("connection-1", &[]).unwrap();
    let gone = ask(resolver.address(), &question(1, "my.coredns.service.", RecordType::A)).await;
    assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain, "with its connection goes its name");
}

/// A stub that is not ours reads what we answer.
#[tokio::test]
async fn another_stub_understands_us_over_udp_and_tcp() {
    let service = Fake::zone(&[("redis.a.example.", [10, 1, 1, 1])]).await;
    let resolver = start().await;
    resolver.set("c", &[service.config(&["b.example", "a.example"])]).unwrap();
    for mut server in [NameServerConfig::udp(resolver.address().ip()), NameServerConfig::tcp(resolver.address().ip())] {
        server.connections[0].port = resolver.address().port();
        let config = ResolverConfig::from_parts(None, vec![], vec![server]);
        let stub = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).build().unwrap();
        let found: Vec<_> = stub.lookup_ip("Redis.").await.unwrap().iter().collect();
        assert_eq!(found, ["10.1.1.1".parse::<std::net::IpAddr>().unwrap()]);
    }
}

/// X-034 over IPv6: the resolver and one of its servers have such addresses.
#[tokio::test]
async fn both_families_serve() {
    let (four, six) = (Fake::zone(&[("four.a.", [4, 4, 4, 4])]).await, Fake::zone_on("[::1]:0", &[("six.a.", [6, 6, 6, 6])]).await);
    let resolver = Resolver::start("[::1]:0".parse().unwrap()).await.unwrap();
    resolver.set("c", &[four.config(&[]), six.config(&[])]).unwrap();
    assert_eq!(addresses(resolver.address(), "four.a.").await, [Ipv4Addr::new(4, 4, 4, 4)]);
    assert_eq!(addresses(resolver.address(), "six.a.").await, [Ipv4Addr::new(6, 6, 6, 6)]);
}

#[tokio::test]
async fn search_domains_are_tried_in_their_order_and_the_asker_sees_its_own_name() {
    let server = Fake::zone(&[
        ("redis.a.", [1, 1, 1, 1]),
        ("redis.b.", [2, 2, 2, 2]),
        ("redis.", [3, 3, 3, 3]),
        ("x.y.", [4, 4, 4, 4]),
        ("x.y.a.", [5, 5, 5, 5]),
    ])
    .await;
    let resolver = start().await;
    resolver.set("c", &[server.config(&["nothing", "b", "a"])]).unwrap();
    let reply = ask(resolver.address(), &question(9, "ReDis.", RecordType::A)).await;
    assert_eq!(a_records(&reply), [Ipv4Addr::new(2, 2, 2, 2)], "the first domain that has it");
    assert_eq!(reply.answers[0].name.to_ascii(), "ReDis.", "in the asker's spelling");
    assert!(reply.metadata.recursion_available && !reply.metadata.authoritative);
    assert_eq!(addresses(resolver.address(), "x.y.").await, [Ipv4Addr::new(4, 4, 4, 4)], "a name with dots is taken whole first");
    resolver.set("c", &[server.config(&[])]).unwrap();
    assert_eq!(addresses(resolver.address(), "redis.").await, [Ipv4Addr::new(3, 3, 3, 3)]);
}

#[tokio::test]
async fn a_name_without_the_record_is_no_reason_to_search_on() {
    let server = Fake::zone(&[("x.y.", [4, 4, 4, 4]), ("x.y.a.", [5, 5, 5, 5])]).await;
    let resolver = start().await;
    resolver.set("c", &[server.config(&["a"])]).unwrap();
    let reply = ask(resolver.address(), &question(9, "x.y.", RecordType::AAAA)).await;
    assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::NoError, 0));
    assert_eq!(server.questions(), 1);
}

#[tokio::test]
async fn answers_are_remembered_as_long_as_they_hold() {
    let server = Fake::start(|asked, _| {
        let query = &asked.queries[0];
        let mut reply = code(asked, ResponseCode::NoError);
        match query.name().to_ascii().as_str() {
            "long.a." => reply.add_answer(address(query.name(), 3000, [1, 1, 1, 1])),
            "short.a." => reply.add_answer(address(query.name(), 0, [1, 1, 1, 1])),
            "unsaid.a." => return Some(code(asked, ResponseCode::NXDomain)),
            _ => return Some(no(asked, ResponseCode::NXDomain, 600)),
        };
        Some(reply)
    })
    .await;
    let resolver = start().await;
    resolver.set("c", &[server.config(&[])]).unwrap();
    for (text, asked) in [("long.a.", 1), ("no.a.", 1), ("short.a.", 3), ("unsaid.a.", 3)] {
        let before = server.questions();
        for _ in 0..3 {
            ask(resolver.address(), &question(9, text, RecordType::A)).await;
        }
        assert_eq!(server.questions() - before, asked, "{text}");
    }
    let status = resolver.status();
    assert_eq!((status.queries, status.cache_hits, status.cached, status.failures), (12, 4, 2, 0));
    resolver.set("c", &[server.config(&[])]).unwrap();
    assert_eq!(resolver.status().cached, 2, "the same configuration again, as with every refresh, forgets nothing");
    resolver.set("c", &[server.config(&["d"])]).unwrap();
    assert_eq!(resolver.status().cached, 0, "another one may know more");
}

/// An answer of 40 addresses: too long without EDNS, and over UDP from the server.
#[tokio::test]
async fn a_truncated_answer_is_fetched_over_tcp_and_cut_for_who_cannot_take_it() {
    let server = Fake::start(|asked, carrier| {
        let mut reply = code(asked, ResponseCode::NoError);
        let owner = asked.queries[0].name().clone();
        reply.add_answers((0..40).map(|n| address(&owner, 60, [10, 0, 0, n])));
        Some(if carrier == fake::Carrier::Udp { reply.truncate() } else { reply })
    })
    .await;
    let resolver = start().await;
    resolver.set("c", &[server.config(&[])]).unwrap();
    let mut asked = question(3, "many.a.", RecordType::A);
    let cut = ask(resolver.address(), &asked).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty() && cut.edns.is_none());
    let mut stream = tokio::net::TcpStream::connect(resolver.address()).await.unwrap();
    for id in [3, 4] {
        asked.metadata.id = id;
        fake::write(&mut stream, &asked.to_vec().unwrap()).await;
        let whole = Message::from_vec(&fake::read(&mut stream).await.unwrap()).unwrap();
        assert_eq!((whole.metadata.id, whole.metadata.truncation, whole.answers.len()), (id, false, 40));
    }
    asked.set_edns(Edns::new()).edns.as_mut().unwrap().set_max_payload(4096).set_dnssec_ok(true);
    let whole = ask(resolver.address(), &asked).await;
    assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 40));
    assert!(whole.edns.unwrap().flags().dnssec_ok);
    assert_eq!(server.questions(), 4, "UDP and TCP, once for each form of the question");
}

#[tokio::test]
async fn a_server_that_knows_no_edns_is_asked_without() {
    let server = Fake::start(|asked, _| {
        if asked.edns.is_some() {
            // Such a server does not even repeat the question.
            return Some(Message::error_msg(asked.metadata.id, asked.metadata.op_code, ResponseCode::FormErr));
        }
        Some(fake::zone(asked, &[("old.a.", [9, 9, 9, 9])]))
    })
    .await;
    let resolver = start().await;
    resolver.set("c", &[server.config(&[])]).unwrap();
    assert_eq!(addresses(resolver.address(), "old.a.").await, [Ipv4Addr::new(9, 9, 9, 9)]);
}

#[tokio::test]
async fn what_is_not_served_is_refused_by_its_own_code() {
    let resolver = start().await;
    let of = async |message: &Message| ask(resolver.address(), message).await.metadata.response_code;
    let plain = question(1, "a.b.", RecordType::A);
    let mut other = plain.clone();
    other.metadata.recursion_desired = false;
    assert_eq!(of(&other).await, ResponseCode::Refused, "who wants no recursion gets what is remembered only");
    assert_eq!(of(&question(1, "a.b.", RecordType::AXFR)).await, ResponseCode::Refused);
    let mut other = plain.clone();
    other.metadata.op_code = hickory_proto::op::OpCode::Notify;
    assert_eq!(of(&other).await, ResponseCode::NotImp);
    let mut other = plain.clone();
    other.set_edns(Edns::new()).edns.as_mut().unwrap().set_version(1);
    assert_eq!(u16::from(of(&other).await), u16::from(ResponseCode::BADVERS), "which has the number of BADSIG");
    let mut other = plain.clone();
    other.add_query(plain.queries[0].clone());
    assert_eq!(of(&other).await, ResponseCode::FormErr);
    let mut broken = plain.to_vec().unwrap();
    broken.truncate(14);
    assert_eq!(Message::from_vec(&fake::send(resolver.address(), &broken).await).unwrap().metadata.response_code, ResponseCode::FormErr);
    let status = resolver.status();
    assert_eq!((status.refused, status.queries), (5, 1));
}

#[tokio::test]
async fn an_address_in_use_is_refused_with_a_reason() {
    let first = start().await;
    let Err(error) = Resolver::start(first.address()).await else { panic!("two resolvers on {}", first.address()) };
    assert_eq!(error.kind, nsm_api::Kind::Conflict);
    assert!(error.to_string().contains(&first.address().to_string()), "{error}");
    let address: SocketAddr = first.address();
    drop(first);
    let again = async {
        while Resolver::start(address).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(fake::BOUND, again).await.expect("the address is free when the resolver has ended");
}
