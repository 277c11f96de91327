use super::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}
fn id(text: &str) -> ConnectionId {
    text.parse().unwrap()
}
fn endpoint(prefixes: &[&str]) -> Addresses {
    let addresses = Addresses::new(prefixes.len(), Changes::default());
    prefixes.iter().enumerate().for_each(|(server, prefix)| addresses.set(server, net(prefix)));
    addresses
}
fn draft(name: &str) -> Draft {
    Draft { connection: Connection::new(id(name), "vl3".parse().unwrap()), preferences: vec![], files: Files::default() }
}
fn shown(draft: &Draft) -> String {
    let ip = &draft.connection.context.ip_context;
    let nets = |list: &[IpNet]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let via = |route: &Route| match route.next_hop {
        Some(via) => format!("{}>{via}", route.prefix),
        None => route.prefix.to_string(),
    };
    let routes = |list: &[Route]| list.iter().map(via).collect::<Vec<_>>().join(",");
    format!("{} | {} | {} | {}", nets(&ip.src_ip_addrs), nets(&ip.dst_ip_addrs), routes(&ip.src_routes), routes(&ip.dst_routes))
}
fn asked(addresses: &Addresses, draft: &mut Draft) -> String {
    addresses.reserve(draft).unwrap();
    addresses.keep(&draft.connection);
    shown(draft)
}

/// E-34, wire.md 10.2
#[test]
fn a_client_gets_an_address_and_ways_to_the_whole_network() {
    let addresses = endpoint(&["172.16.1.0/24"]);
    let mut first = draft("a");
    let expected = "172.16.1.1/32 | 172.16.1.0/32 | \
        172.16.1.0/32>172.16.1.0,172.16.1.0/24>172.16.1.0,172.16.0.0/16>172.16.1.0 | 172.16.1.1/32";
    assert_eq!(asked(&addresses, &mut first), expected);
    assert_eq!(asked(&addresses, &mut first), expected, "a refresh adds nothing");
    assert!(asked(&addresses, &mut draft("b")).starts_with("172.16.1.2/32"));
    addresses.release(&id("a"));
    assert!(asked(&addresses, &mut draft("c")).starts_with("172.16.1.1/32"));
}

///
#[test]
fn each_server_adds_an_address_of_its_family() {
    let addresses = endpoint(&["172.16.0.0/24", "2001:db8::1:0/112"]);
    assert_eq!(
        asked(&addresses, &mut draft("a")),
        "172.16.0.1/32,2001:db8::1:1/128 | 172.16.0.0/32,2001:db8::1:0/128 | \
         172.16.0.0/32>172.16.0.0,172.16.0.0/24>172.16.0.0,172.16.0.0/16>172.16.0.0,\
         2001:db8::1:0/128>2001:db8::1:0,2001:db8::1:0/112>2001:db8::1:0,2001:db8::/64>2001:db8::1:0 | \
         172.16.0.1/32,2001:db8::1:1/128"
    );
}

#[test]
fn without_a_prefix_the_answer_is_to_try_again() {
    let addresses = Addresses::new(1, Changes::default());
    let error = addresses.reserve(&mut draft("a")).unwrap_err();
    assert!(error.retryable() && error.to_string().contains("prefix pool is initializing"), "{error}");
    assert!(!addresses.complete());
}

#[test]
fn a_full_prefix_and_excluded_addresses() {
    let addresses = endpoint(&["10.0.0.0/30"]);
    let mut first = draft("a");
    first.connection.context.ip_context.excluded_prefixes = vec![net("10.0.0.1/32")];
    assert!(asked(&addresses, &mut first).starts_with("10.0.0.2/32"));
    asked(&addresses, &mut draft("b"));
    asked(&addresses, &mut draft("c"));
    assert_eq!(addresses.reserve(&mut draft("d")).unwrap_err().kind, Kind::Exhausted);
    first.connection.context.ip_context.excluded_prefixes = vec![net("10.0.0.2/32")];
    assert!(addresses.reserve(&mut first).is_err(), "excluded later, and nothing else is free");
}

/// wire.md 7.10: a client that comes back with what it had gets that, unless somebody has it.
#[test]
fn what_a_client_had_is_given_again() {
    let mut had = draft("a");
    asked(&endpoint(&["10.0.0.0/24"]), &mut draft("x"));
    let former = endpoint(&["10.0.0.0/24"]);
    asked(&former, &mut draft("x"));
    let before = asked(&former, &mut had);
    assert!(before.starts_with("10.0.0.2/32"));
    let restarted = endpoint(&["10.0.0.0/24"]);
    assert_eq!(asked(&restarted, &mut had), before);
    let mut thief = draft("b");
    thief.connection.context = had.connection.context.clone();
    assert!(asked(&restarted, &mut thief).starts_with("10.0.0.1/32 |"));
}

/// wire.md 10.2: the previous prefix goes with everything in it.
#[test]
fn a_new_prefix_replaces_all_that_was_of_the_former() {
    let addresses = endpoint(&["172.16.0.0/24"]);
    let mut heard = addresses.changes.listen();
    let mut client = draft("a");
    asked(&addresses, &mut client);
    addresses.set(0, net("172.16.0.0/24"));
    assert!(!heard.has_changed().unwrap(), "nothing new");
    addresses.set(0, net("172.16.5.0/24"));
    assert!(heard.has_changed().unwrap());
    heard.mark_unchanged();
    assert_eq!(
        asked(&addresses, &mut client),
        "172.16.5.1/32 | 172.16.5.0/32 | \
         172.16.5.0/32>172.16.5.0,172.16.5.0/24>172.16.5.0,172.16.0.0/16>172.16.5.0 | 172.16.5.1/32"
    );
    assert_eq!(shown(&client).matches("172.16.0.0").count(), 1);
}

/// a client whose endpoint has died gets everything from the next one.
#[test]
fn a_client_from_another_endpoint_keeps_nothing_of_that() {
    let (first, second) = (endpoint(&["172.16.0.0/24"]), endpoint(&["172.16.1.0/24"]));
    let (mut moved, mut fresh) = (draft("a"), draft("b"));
    asked(&first, &mut moved);
    moved.connection.context.dns_context = Some(DnsContext {
        configs: vec![DnsConfig { dns_server_ips: vec!["172.16.0.0".into()], ..DnsConfig::default() }],
        ..DnsContext::default()
    });
    assert_eq!(asked(&second, &mut moved).replace("1.1/32", "1.2/32"), asked(&second, &mut fresh));
}

/// wire.md 10.2: endpoint to endpoint; each brings its own address and the ways to its clients.
#[test]
fn another_endpoint_brings_its_own_address_and_no_default_for_the_network() {
    let (younger, older) = (endpoint(&["172.16.1.0/24"]), endpoint(&["172.16.0.0/24"]));
    let dialled = Dialled::new(younger.clone());
    dialled.name(id("y-o"), "o".parse().unwrap());
    let mut wire = draft("y-o");
    dialled.reserve(&mut wire).unwrap();
    assert_eq!(wire.connection.network_service_endpoint_name.as_ref().unwrap().as_str(), "o");
    let expected = "172.16.1.0/32 | 172.16.0.0/32 | 172.16.0.0/32>172.16.0.0,172.16.0.0/24>172.16.0.0 | \
        172.16.1.0/32>172.16.1.0,172.16.1.0/24>172.16.1.0";
    assert_eq!(asked(&older, &mut wire), expected);
    wire.connection.mechanism = Some(Mechanism::new(Class::Local, MechanismKind::Kernel));
    dialled.reserve(&mut wire).unwrap();
    assert_eq!(asked(&older, &mut wire), expected, "a refresh adds nothing");
    // The older one gets another prefix; then it is replaced by one that has never heard of any.
    older.set(0, net("172.16.7.0/24"));
    dialled.reserve(&mut wire).unwrap();
    let renumbered = expected.replace("172.16.0.", "172.16.7.");
    assert_eq!(asked(&older, &mut wire), renumbered);
    dialled.reserve(&mut wire).unwrap();
    assert_eq!(asked(&endpoint(&["172.16.9.0/24"]), &mut wire), renumbered.replace("172.16.7.", "172.16.9."));
    // The younger one gets another prefix.
    younger.set(0, net("172.16.8.0/24"));
    wire.connection.mechanism = None;
    dialled.reserve(&mut wire).unwrap();
    assert_eq!(asked(&older, &mut wire), renumbered.replace("172.16.1.", "172.16.8."));
}

/// I3: no address is held twice, and what is released can be had again.
#[test]
fn no_address_is_held_twice() {
    for seed in 0..100u64 {
        let addresses = endpoint(&["10.0.0.0/28"]);
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut live: BTreeMap<String, Connection> = BTreeMap::new();
        for _ in 0..200 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let name = format!("c{}", (state >> 40) % 20);
            if (state >> 33).is_multiple_of(3) {
                addresses.release(&id(&name));
                live.remove(&name);
            } else {
                let mut draft = draft(&name);
                if let Some(connection) = live.get(&name) {
                    draft.connection = connection.clone();
                }
                if addresses.reserve(&mut draft).is_ok() {
                    addresses.keep(&draft.connection);
                    live.insert(name, draft.connection);
                }
            }
            let mut held: Vec<IpNet> = live.values().flat_map(|connection| connection.context.ip_context.src_ip_addrs.clone()).collect();
            let count = held.len();
            held.sort();
            held.dedup();
            assert_eq!((held.len(), live.len()), (count, count), "seed {seed}");
            assert_eq!(addresses.nets()[0].used.len(), count, "seed {seed}");
        }
    }
}

/// A18, I3: a successor asks for the same prefix, and what clients have of it is nobody else's.
#[test]
fn a_successor_has_what_its_predecessor_had() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vl3.prefixes");
    let open = || Addresses::new(2, Changes::default()).remembering(file.clone());
    let former = open();
    assert_eq!((former.wanted(0), former.moved()), (None, false));
    former.set(0, net("172.16.1.0/24"));
    former.set(1, net("2001:db8::1:0/112"));
    let mut client = draft("a");
    let had = asked(&former, &mut client);

    let successor = open();
    assert_eq!([0, 1].map(|server| successor.wanted(server)), [Some(net("172.16.1.0/24")), Some(net("2001:db8::1:0/112"))]);
    assert!(!successor.complete(), "it has them when the servers say so");
    successor.set(0, net("172.16.1.0/24"));
    successor.set(1, net("2001:db8::1:0/112"));
    let agreed = |draft: &Draft| {
        let (connection, files) = (draft.connection.clone(), Files::default());
        Agreed { connection, files, sent: None, asked_by: None, return_index: 0 }
    };
    successor.restore(&agreed(&client));
    assert!(asked(&successor, &mut draft("b")).starts_with("172.16.1.2/32,2001:db8::1:2/128 "));
    assert_eq!(asked(&successor, &mut client), had);
    assert!(!successor.moved());

    // The server has lent it to somebody else: what clients have of it is taken back.
    let moved = open();
    moved.set(0, net("172.16.7.0/24"));
    moved.set(1, net("2001:db8::1:0/112"));
    moved.restore(&agreed(&client));
    assert!(moved.moved());
    assert!(asked(&moved, &mut client).starts_with("2001:db8::1:1/128,172.16.7.1/32 "), "{}", shown(&client));
    assert_eq!(open().wanted(0), Some(net("172.16.7.0/24")));

    std::fs::write(&file, "no list").unwrap();
    assert_eq!(open().wanted(0), None, "what cannot be read is not wanted");
}
