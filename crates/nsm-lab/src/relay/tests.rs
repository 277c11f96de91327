use super::*;
use crate::schema::Only;
use nsm_linux::{net::Net, netns, probe, tap};

/// An Ethernet frame with an IPv4 packet of this protocol and length.
fn frame(protocol: u8, length: usize) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET_BYTES + length];
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14 + 9] = protocol;
    frame[14 + 12..14 + 20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    frame
}

fn state(fault: LinkFault) -> State {
    State { fault, peer: None }
}

fn many(fault: &LinkFault, seed: u64) -> Vec<Vec<Duration>> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..10_000).map(|_| fates(&mut random, &state(fault.clone()), Direction::Out, &frame(17, 100))).collect()
}

#[test]
fn shares_are_as_asked_and_the_same_for_the_same_seed() {
    let ms = |ms| Some(Span(Duration::from_millis(ms)));
    let fault = LinkFault { loss: 5.0, duplicate: 2.0, reorder: 1.0, delay: ms(50), jitter: ms(30), ..LinkFault::default() };
    let seen = many(&fault, 7);
    let share = |count: usize| count as f64 / 100.0;
    let (lost, twice) = (seen.iter().filter(|copies| copies.is_empty()).count(), seen.iter().filter(|copies| copies.len() == 2).count());
    assert!((4.0..6.0).contains(&share(lost)), "{lost}");
    assert!((1.5..2.5).contains(&share(twice)), "{twice}");
    let late = |late: &&Duration| **late >= Duration::from_millis(20) && **late <= Duration::from_millis(80);
    let times: Vec<&Duration> = seen.iter().flatten().collect();
    assert!(times.iter().all(|time| late(time) || time.is_zero()));
    assert!((0.5..1.5).contains(&share(times.iter().filter(|time| time.is_zero()).count())));
    assert_eq!(seen, many(&fault, 7));
    assert_ne!(seen, many(&fault, 8));
}

#[test]
fn a_fault_hits_its_direction_protocol_peer_and_length_only() {
    let mut random = StdRng::seed_from_u64(1);
    let mut arrives = |state: &State, way, frame: &[u8]| !fates(&mut random, state, way, frame).is_empty();
    let all = LinkFault { loss: 100.0, ..LinkFault::default() };
    let one_way = state(LinkFault { direction: Direction::In, ..all.clone() });
    assert!(!arrives(&one_way, Direction::In, &frame(6, 60)) && arrives(&one_way, Direction::Out, &frame(6, 60)));
    let tcp = state(LinkFault { only: Only::Tcp, ..all.clone() });
    assert!(!arrives(&tcp, Direction::In, &frame(6, 60)) && arrives(&tcp, Direction::In, &frame(17, 60)));
    assert!(arrives(&tcp, Direction::In, &[0; 60]), "neither is one that is no IP");
    let peer = |text: &str| State { fault: all.clone(), peer: Some(text.parse().unwrap()) };
    assert!(!arrives(&peer("10.0.0.2"), Direction::In, &frame(6, 60)) && !arrives(&peer("10.0.0.1"), Direction::In, &frame(6, 60)));
    assert!(arrives(&peer("10.0.0.3"), Direction::In, &frame(6, 60)));
    let short = state(LinkFault { mtu: Some(1300), ..LinkFault::default() });
    assert!(arrives(&short, Direction::In, &frame(6, 1300)) && !arrives(&short, Direction::In, &frame(6, 1301)));
}

/// Needs the right to make namespaces and TAP devices; without it this test fails.
#[tokio::test]
async fn a_link_carries_loses_and_delays() {
    const MUST: &str = "this test makes network namespaces and TAP devices: run it as root or under `unshare -Urnm` with /dev/net/tun";
    let places: Vec<_> = ["10.8.2.1/24", "10.8.2.2/24"]
        .iter()
        .map(|address| {
            let netns = netns::create().expect(MUST);
            let (fd, net) = (tap::open(&netns, "uplink").expect(MUST), Net::new(&netns).unwrap());
            net.address_add("uplink", address.parse().unwrap()).unwrap();
            net.up("uplink").unwrap();
            (netns, fd)
        })
        .collect();
    let [(netns, near), (_far, far)] = <[_; 2]>::try_from(places).ok().unwrap();
    let relay = Relay::start(1, vec![Link { node: "a".to_owned(), near, far }]).unwrap();
    let once = || async {
        let options = probe::PingOptions { timeout: Duration::from_millis(500), ..probe::PingOptions::once("10.8.2.2".parse().unwrap()) };
        probe::ping(&netns, options).await.unwrap()
    };
    let mut tries = 0;
    while !once().await.complete() {
        tries += 1;
        assert!(tries < 20, "a good link carries");
    }
    let late = LinkFault { delay: Some(Span(Duration::from_millis(40))), ..LinkFault::default() };
    relay.set("a", late, None);
    let rtt = once().await.rtt_min.expect("a late link carries");
    assert!(rtt >= Duration::from_millis(80), "{rtt:?}");
    relay.set("a", LinkFault { loss: 100.0, direction: Direction::In, ..LinkFault::default() }, None);
    assert_eq!(once().await.received, 0);
    relay.set("a", LinkFault::default(), None);
    assert!(once().await.complete());
}
