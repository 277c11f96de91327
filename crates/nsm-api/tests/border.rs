//! The border between messages and domain types: nothing is lost on the way through, nothing illegal gets in.

use buffa::Message;
use nsm_api::{proto, *};
use std::time::{Duration, UNIX_EPOCH};

/// Field 99, length-delimited, "future": something that only a newer version knows.
const FUTURE: &[u8] = &[0x9a, 0x06, 0x06, b'f', b'u', b't', b'u', b'r', b'e'];

/// One length-delimited field.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    assert!(number < 16 && bytes.len() < 128);
    let mut out = vec![number << 3 | 2, bytes.len() as u8];
    out.extend(bytes);
    out
}
fn text(number: u8, text: &str) -> Vec<u8> {
    field(number, text.as_bytes())
}
fn with_future(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut out: Vec<u8> = parts.concat();
    out.extend(FUTURE);
    out
}

/// G8: a hop in the middle sends on what it does not understand, at every level of a connection.
#[test]
fn unknown_fields_pass_at_every_level() {
    let segment = with_future(&[text(1, "client"), text(2, "c-0")]);
    let path = with_future(&[field(2, &segment)]);
    let mechanism = with_future(&[text(1, "LOCAL"), text(2, "QUANTUM")]);
    let ip = with_future(&[text(1, "10.0.0.1/32")]);
    let context = with_future(&[field(1, &ip)]);
    let raw = with_future(&[text(1, "c-0"), text(2, "svc"), field(3, &mechanism), field(4, &context), field(6, &path)]);

    let message = proto::connection::Connection::decode_from_slice(&raw).unwrap();
    let connection = Connection::try_from(message).unwrap();
    assert_eq!(connection.mechanism.as_ref().unwrap().kind, MechanismKind::Other("QUANTUM".into()));
    let again = proto::connection::Connection::from(connection).encode_to_vec();
    assert_eq!(again, raw);
}

/// E-01, 1.2: every field of a connection survives the way through the domain type.
#[test]
fn every_field_of_a_connection_passes() {
    let mut connection = Connection::new("c-0".parse().unwrap(), "svc@domain".parse().unwrap());
    connection.mechanism = Some(Mechanism::new(Class::Remote, MechanismKind::Vxlan).with(params::VNI, 7).with("newer", "x"));
    connection.labels.insert("app".into(), "foo".into());
    connection.network_service_endpoint_name = Some("nse".parse().unwrap());
    connection.payload = Payload::Ethernet;
    connection.state = State::Other(9);
    let mut segment = Segment::new("client".parse().unwrap(), "c-0".parse().unwrap());
    segment.token = "a.b.c".into();
    segment.expires = Some(UNIX_EPOCH + Duration::new(1_800_000_000, 123_456_789));
    segment.metrics.insert("client_interface".into(), "KERNEL/nsm-1".into());
    connection.path.segments.push(segment);
    let ip = &mut connection.context.ip_context;
    ip.src_ip_addrs = vec!["10.0.0.5/24".parse().unwrap(), "fd00::1/128".parse().unwrap()];
    ip.src_routes = vec![Route::on_link("10.1.0.0/16".parse().unwrap())];
    ip.dst_routes = vec![Route { next_hop: Some("10.0.0.1".parse().unwrap()), ..Route::on_link("10.2.0.0/16".parse().unwrap()) }];
    ip.excluded_prefixes = vec!["10.9.0.0/16".parse().unwrap()];
    ip.src_ip_required = true;
    ip.policies = vec![PolicyRoute {
        from: "1.1.1.1/32".into(),
        proto: "6".into(),
        dst_port: "80".into(),
        src_port: "1-9".into(),
        routes: vec![],
        unknown: Unknown::default(),
    }];
    connection.context.dns_context = Some(DnsContext {
        configs: vec![DnsConfig { dns_server_ips: vec!["10.0.0.1".into()], ..DnsConfig::default() }],
        ..DnsContext::default()
    });
    connection.context.ethernet_context =
        Some(EthernetContext { src_mac: Some("02:00:00:00:00:01".parse().unwrap()), vlan_tag: 5, ..EthernetContext::default() });
    connection.context.extra_context.insert("k".into(), "v".into());
    connection.context.mtu = 1446;

    let bytes = proto::connection::Connection::from(connection.clone()).encode_to_vec();
    let again = Connection::try_from(proto::connection::Connection::decode_from_slice(&bytes).unwrap()).unwrap();
    assert_eq!(again, connection);
}

/// D5, G9: what no honest peer sends is refused with the object and the limit, before anything is done with it.
#[test]
fn illegal_messages_are_refused() {
    type Spoil = fn(&mut proto::connection::Connection);
    let cases: [(&str, Spoil); 12] = [
        ("no id", |c| c.id.clear()),
        ("no service", |c| c.network_service.clear()),
        ("id too long", |c| c.id = "x".repeat(254)),
        ("control character in a name", |c| c.network_service = "a\u{7}b".into()),
        ("path of 33", |c| {
            let segment = proto::connection::PathSegment { name: "n".into(), id: "i".into(), ..Default::default() };
            c.path.get_or_insert_default().path_segments = vec![segment; 33];
        }),
        ("index outside the path", |c| c.path.get_or_insert_default().index = u32::MAX),
        ("65 labels", |c| c.labels = (0..65).map(|i| (format!("k{i}"), String::new())).collect()),
        ("a label of a megabyte", |c| drop(c.labels.insert("k".into(), "x".repeat(1 << 20)))),
        ("an address that is none", |c| {
            c.context.get_or_insert_default().ip_context.get_or_insert_default().src_ip_addrs = vec!["10.0.0.999/8".into()]
        }),
        ("257 excluded prefixes", |c| {
            c.context.get_or_insert_default().ip_context.get_or_insert_default().excluded_prefixes = vec!["10.0.0.0/8".into(); 257]
        }),
        ("an MTU above what exists", |c| c.context.get_or_insert_default().MTU = 65_536),
        ("nanoseconds beyond a second", |c| {
            let stamp = buffa_types::google::protobuf::Timestamp { seconds: 1, nanos: i32::MAX, ..Default::default() };
            let segment = proto::connection::PathSegment {
                name: "n".into(),
                id: "i".into(),
                expires: buffa::MessageField::some(stamp),
                ..Default::default()
            };
            c.path.get_or_insert_default().path_segments = vec![segment];
        }),
    ];
    for (why, spoil) in cases {
        let mut message = proto::connection::Connection { id: "c".into(), network_service: "svc".into(), ..Default::default() };
        message.path.get_or_insert_default().path_segments =
            vec![proto::connection::PathSegment { name: "n".into(), id: "c".into(), ..Default::default() }];
        assert!(Connection::try_from(message.clone()).is_ok());
        spoil(&mut message);
        let error = Connection::try_from(message).expect_err(why);
        assert_eq!(error.kind, Kind::Invalid, "{why}");
        assert!(!error.object.is_empty() && !error.reason.is_empty() && !error.fix.is_empty(), "{why}: {error}");
        assert!(error.to_string().len() < 600, "{why}: an error must not echo a megabyte");
    }
}

/// A time before 1970 means "long ended"; the year 9999 is a time like any other.
#[test]
fn times_at_the_edges_are_kept_or_clamped() {
    let expires = |seconds: i64| {
        let stamp = buffa_types::google::protobuf::Timestamp { seconds, ..Default::default() };
        let segment = proto::connection::PathSegment {
            name: "n".into(),
            id: "i".into(),
            expires: buffa::MessageField::some(stamp),
            ..Default::default()
        };
        Segment::try_from(segment).map(|segment| segment.expires.unwrap())
    };
    assert_eq!(expires(-5).unwrap(), UNIX_EPOCH);
    assert_eq!(expires(253_402_300_799).unwrap(), UNIX_EPOCH + Duration::from_secs(253_402_300_799));
}

#[test]
fn selectors_match_runs_of_segments() {
    let mut connection = Connection::new("b".parse().unwrap(), "svc".parse().unwrap());
    connection.path.segments = ["a", "b", "c"].map(|n| Segment::new(n.parse().unwrap(), n.parse().unwrap())).to_vec();
    let pattern = |name: &str, id: &str| SegmentPattern { name: name.into(), id: id.into(), token: String::new() };
    let selector = |segments: Vec<SegmentPattern>, services: &[&str]| Selector {
        segments,
        services: services.iter().map(|s| (*s).to_owned()).collect(),
    };
    for (expected, selector) in [
        (true, selector(vec![], &[])),
        (true, selector(vec![pattern("b", "b")], &["svc"])),
        (true, selector(vec![pattern("", "b"), pattern("c", "")], &[])),
        (false, selector(vec![pattern("a", ""), pattern("c", "")], &[])),
        (false, selector(vec![pattern("a", "b")], &[])),
        (false, selector(vec![], &["other"])),
        (false, selector(vec![pattern("", ""); 4], &[])),
    ] {
        assert_eq!(selector.matches(&connection), expected, "{selector:?}");
    }
}
