//! Healing, from hop to hop: everybody on the way dies, restarts empty, falls silent or talks too much, and the wire is
//! kept where packets pass and made anew where they do not. E-08, E-09, A-03; I4, I5, I6, I9, I13, I14; A2, A4 to A11, G5, H5.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod world;

use nsm_api::{State, *};
use nsm_hop::{adoption, onward, watch};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use world::*;

/// Long enough that whatever is going to happen has happened; shorter than the first refresh.
const QUIET: Duration = Duration::from_secs(60);
/// Silence is noticed by looking: the pause between two looks, and the look.
const NOTICED: Duration = Duration::from_millis(1300);

/// A4, I5: the replacement stands ready.
#[tokio::test(start_paused = true)]
async fn a_dead_endpoint_is_replaced() {
    for looks in [true, false] {
        let world = World::new();
        let client = world.client("c", looks);
        client.connect().await;
        assert!(client.whole("e1"));
        world.register("e2", "svc");
        world.kill("e1", Ending::Broken);
        world.cut("e1");
        // The look at the packets costs its second, where there is one.
        until("healed", SOON + if looks { NOTICED } else { Duration::ZERO }, || client.whole("e2")).await;
        assert!(world.calls("e2").reselects == 1 && world.calls("m").reselects == 1, "the wish travels unchanged");
        sleep(QUIET).await;
        assert!(client.whole("e2"), "and stays");
        assert_eq!(world.calls("e2").requests, 1, "and nobody asks again");
    }
}

/// A4: its record has not expired yet, and the rules prefer it. It gets another chance later.
#[tokio::test(start_paused = true)]
async fn a_dead_endpoint_is_replaced_though_the_rules_prefer_its_record() {
    let world = World::new();
    world.prefer("e1");
    let client = world.client("c", false);
    client.connect().await;
    world.register("e2", "svc");
    assert!(client.whole("e1"));
    world.kill("e1", Ending::Broken);
    until("healed", SOON, || client.whole("e2")).await;
    world.start("e1");
    sleep(onward::AVOIDED_FOR.1).await;
    let other = world.client("d", false);
    other.connect().await;
    assert_eq!((other.endpoint(), client.endpoint()), ("e1".to_owned(), "e2".to_owned()));
}

/// E-09: nothing is heard of it, only the packets stay away.
#[tokio::test(start_paused = true)]
async fn a_silent_wire_is_replaced() {
    let world = World::new();
    let client = world.client("c", true);
    client.connect().await;
    world.register("e2", "svc");
    sleep(Duration::from_secs(5)).await;
    assert_eq!(world.calls("m").requests, 1, "looking asks nobody");
    world.cut("e1");
    until("healed", NOTICED + 2 * SOON, || client.whole("e2")).await;
    until("the former is told to close", SOON, || world.at("e1").busy() == 0).await;
}

/// Whoever fell silent is the last to be asked again, though it is its turn.
#[tokio::test(start_paused = true)]
async fn a_silent_endpoint_is_not_chosen_again() {
    let world = World::new();
    let clients = [world.client("c", true), world.client("d", false)];
    clients[0].connect().await;
    world.register("e2", "svc");
    clients[1].connect().await;
    assert_eq!([clients[0].endpoint(), clients[1].endpoint()], ["e1", "e2"]);
    world.cut("e1");
    until("healed", NOTICED + 2 * SOON, || clients[0].endpoint() == "e2").await;
    assert_eq!(world.calls("e1").reselects, 0);
}

/// B5: wires that do not carry anything are not made anew without end, and not often.
#[tokio::test(start_paused = true)]
async fn a_service_that_never_carries_anything_is_not_hammered() {
    let world = World::new();
    let client = world.client("c", true);
    client.connect().await;
    world.register("e2", "svc");
    world.cut("e1");
    world.cut("e2");
    sleep(QUIET).await;
    let reselects = world.calls("m").reselects;
    assert!((5..=12).contains(&reselects), "{reselects} in a minute");
}

/// I4: an endpoint process dies and packets pass all the same. Nothing is torn down; when it is back, all is well again.
#[tokio::test(start_paused = true)]
async fn a_wire_is_kept_while_its_endpoint_is_away() {
    let world = World::new();
    let client = world.client("c", true);
    client.connect().await;
    world.register("e2", "svc");
    world.kill("e1", Ending::Broken);
    until("told", SOON, || client.state_at("m") == Some(State::Down) && client.state_at("f") == Some(State::Down)).await;
    let tries = world.calls("m").requests;
    sleep(Duration::from_secs(10)).await;
    assert_eq!((client.endpoint().as_str(), world.wired().len()), ("e1", 1));
    assert_eq!(world.calls("m").reselects, 0);
    assert!(world.calls("m").requests > tries + 2, "it keeps asking");
    let before = (Instant::now(), world.calls("m").requests);
    sleep(QUIET).await;
    let rate = (world.calls("m").requests - before.1) as f64 / before.0.elapsed().as_secs_f64();
    assert!(rate <= 1.0, "A5: {rate:.2} tries a second");
    world.start("e1");
    until("whole again", Duration::from_secs(3), || client.whole("e1")).await;
}

/// A8, A11, I4: a hop restarts and remembers nothing.
#[tokio::test(start_paused = true)]
async fn a_hop_that_restarts_empty_is_told_again() {
    for (hop, ending) in
        [("m", Ending::Broken), ("f", Ending::Broken), ("m", Ending::Normal), ("f", Ending::Normal), ("f", Ending::Cancelled)]
    {
        let world = World::new();
        let client = world.client("c", true);
        client.connect().await;
        world.register("e2", "svc");
        let wires = world.kernel.wires();
        world.kill(hop, ending);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(world.kernel.wires(), wires, "{hop}: nothing is torn down");
        world.start(hop);
        until("whole again", Duration::from_secs(3), || client.whole("e1")).await;
        assert_eq!(world.kernel.wires(), wires, "{hop}: the same wire");
        assert_eq!((world.calls("m").reselects, world.calls("e1").closes), (0, 0));
    }
}

/// The same between two events of one moment: nobody sees it away, only the stream breaks and the table is empty.
#[tokio::test(start_paused = true)]
async fn a_hop_that_restarts_at_once_is_told_again() {
    for hop in ["m", "f", "e1"] {
        let world = World::new();
        let client = world.client("c", true);
        client.connect().await;
        sleep(Duration::from_secs(2)).await;
        world.start(hop);
        until("whole again", SOON, || client.whole("e1")).await;
        sleep(QUIET).await;
        assert!(world.calls("e1").requests <= 3, "{hop}: {:?}", world.calls("e1"));
    }
}

/// Streams that end, in whatever way, where the hop lives on: it is asked, and nothing has happened.
#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_is_opened_again() {
    for ending in [Ending::Normal, Ending::Broken, Ending::Cancelled] {
        for hop in ["m", "f", "e1"] {
            let world = World::new();
            let client = world.client("c", false);
            client.connect().await;
            sleep(Duration::from_secs(2)).await;
            let before = world.calls(hop).monitors;
            for _ in 0..5 {
                world.end_streams(hop, ending);
                sleep(Duration::from_secs(3)).await;
                assert!(client.whole("e1"));
            }
            assert_eq!(world.calls(hop).monitors, before + 5);
            assert_eq!(world.calls("e1").requests, 1, "nobody asks again");
            // And it still tells.
            client
                .world
                .at("e1")
                .monitors()
                .update(Connection { state: State::RefreshRequested, ..(*client.seen_at("e1").unwrap()).clone() });
            until("asked again", SOON, || world.calls("e1").requests == 2).await;
        }
    }
}

/// A stream that ends as soon as it is opened is opened again with growing pauses.
#[tokio::test(start_paused = true)]
async fn a_stream_that_will_not_stay_is_not_hammered() {
    let world = World::new();
    let client = world.client("c", true);
    client.connect().await;
    let before = world.calls("m").monitors;
    let end = Instant::now() + QUIET;
    while Instant::now() < end {
        world.end_streams("m", Ending::Normal);
        sleep(Duration::from_millis(1)).await;
    }
    let opened = world.calls("m").monitors - before;
    assert!(opened < 80, "{opened} times in a minute");
    assert!(client.whole("e1"));
    assert_eq!(world.calls("m").requests, 1);
}

/// Whoever does not want to be monitored is used all the same.
#[tokio::test(start_paused = true)]
async fn a_hop_that_is_not_monitored_is_used() {
    let world = World::new();
    for hop in ["m", "f", "e1"] {
        world.secretive(hop);
    }
    let client = world.client("c", false);
    client.connect().await;
    sleep(QUIET * 5).await;
    assert!(client.whole("e1"));
    assert!((2..=5).contains(&world.calls("e1").requests), "refreshed, not more: {:?}", world.calls("e1"));
    assert!(world.calls("m").monitors <= 20, "{:?}", world.calls("m"));
}

/// The server asks for the Request again (wire.md 3.7): once.
#[tokio::test(start_paused = true)]
async fn a_refresh_that_is_asked_for_is_made_once() {
    let world = World::new();
    let client = world.client("c", true);
    client.connect().await;
    let at_endpoint = client.seen_at("e1").unwrap();
    world.at("e1").monitors().update(Connection { state: State::RefreshRequested, ..(*at_endpoint).clone() });
    until("asked again", SOON, || world.calls("e1").requests == 2).await;
    sleep(QUIET).await;
    assert!(client.whole("e1"));
    assert_eq!((world.calls("e1").requests, world.calls("m").reselects), (2, 0));
}

/// A change of the context goes to the client, hop by hop, and asks nobody for anything (wire.md 3.8).
#[tokio::test(start_paused = true)]
async fn a_changed_context_goes_from_hop_to_hop() {
    let world = World::new();
    let client = world.client("c", true);
    client.connect().await;
    let mut changed = (*client.seen_at("e1").unwrap()).clone();
    changed.context.extra_context.insert("colour".into(), "blue".into());
    world.at("e1").monitors().update(changed);
    let blue =
        |connection: Option<std::sync::Arc<Connection>>| connection.is_some_and(|it| it.context.extra_context.contains_key("colour"));
    until("heard", SOON, || blue(client.seen_at("f")) && blue(client.seen_at("m")) && blue(client.connection())).await;
    for (hop, index) in [("f", 2), ("m", 1)] {
        let seen = client.seen_at(hop).unwrap();
        assert_eq!((seen.path.index, seen.path.segments.len(), seen.state), (index, 4, State::Up), "its own view of it");
        assert_eq!(seen.id, seen.path.segments[index as usize].id);
    }
    sleep(QUIET).await;
    assert_eq!(world.calls("e1").requests, 1);
}

/// A connection that its next hop has given up comes back.
#[tokio::test(start_paused = true)]
async fn a_connection_that_a_hop_gave_up_comes_back() {
    for hop in ["e1", "f"] {
        for looks in [true, false] {
            let world = World::new();
            let client = world.client("c", looks);
            client.connect().await;
            sleep(Duration::from_secs(2)).await;
            let there = client.seen_at(hop).unwrap();
            // As its previous hop would ask, from elsewhere.
            let mut closing = (*there).clone();
            closing.path.index -= 1;
            closing.id = closing.path.segments[closing.path.index as usize].id.clone();
            let identity = SpiffeId::new(format!("spiffe://test/{}", closing.path.current().unwrap().name)).unwrap();
            let caller = Caller { identity: Some(identity), ..Caller::within(Duration::from_secs(5)) };
            world.at(hop).close(closing, Files::default(), caller).await.unwrap();
            until("whole again", SOON + if looks { NOTICED } else { Duration::ZERO }, || client.whole("e1")).await;
            sleep(QUIET).await;
            assert!(client.whole("e1"), "no news of its former life ends it again");
            assert!(world.calls("e1").requests <= 4, "{hop}: {:?}", world.calls("e1"));
        }
    }
}

/// A5: nobody is there for a long time; then somebody is. The waiting costs little, and ends soon.
#[tokio::test(start_paused = true)]
async fn a_replacement_that_comes_late_is_found() {
    let world = World::new();
    let client = world.client("c", true);
    client.connect().await;
    world.kill("e1", Ending::Broken);
    world.cut("e1");
    sleep(Duration::from_secs(15)).await;
    assert!(world.wired().is_empty(), "what led to the dead one is gone");
    let before = (Instant::now(), world.calls("m").requests);
    sleep(QUIET).await;
    let rate = (world.calls("m").requests - before.1) as f64 / before.0.elapsed().as_secs_f64();
    assert!(rate > 0.1 && rate <= 1.0, "{rate:.2} tries a second");
    world.register("e2", "svc");
    until("healed", Duration::from_secs(3), || client.whole("e2")).await;
}

/// A wish to stop ends the healing.
#[tokio::test(start_paused = true)]
async fn a_close_ends_the_healing() {
    let world = World::new();
    let client = world.client("c", true);
    client.connect().await;
    world.kill("e1", Ending::Broken);
    world.cut("e1");
    sleep(Duration::from_secs(5)).await;
    world.start("e1");
    client.close().await;
    let requests = world.calls("m").requests;
    sleep(QUIET).await;
    assert_eq!(world.calls("m").requests, requests);
    assert!(world.wired().is_empty());
    for hop in ["m", "f", "e1"] {
        assert_eq!(world.at(hop).busy(), 0, "{hop}");
    }
    assert_eq!(client.hop.busy(), 0);
}

/// wire.md 3.2, 3.8: a refresh that fails takes nothing away, and everybody before hears that it failed.
#[tokio::test(start_paused = true)]
async fn a_failed_refresh_keeps_the_old_and_says_down() {
    let world = World::new();
    let client = world.client("c", true);
    client.connect().await;
    let before = world.kernel.wires();
    world.mute("e1", true);
    let mut again = client.wanted();
    again.connection = (*client.connection().unwrap()).clone();
    let caller = Caller::within(Duration::from_secs(2));
    client.hop.request(again, caller).await.unwrap_err();
    until("told", SOON, || client.state_at("f") == Some(State::Down) && client.state_at("m") == Some(State::Down)).await;
    assert_eq!((world.kernel.wires(), client.endpoint().as_str()), (before.clone(), "e1"));
    world.mute("e1", false);
    until("whole again", Duration::from_secs(20), || client.whole("e1")).await;
    assert_eq!(world.kernel.wires(), before);
    assert_eq!(world.calls("m").reselects, 0);
}

/// G5: what is said late, of a former life of the connection, ends nothing. The client has no eyes: every Down that it
/// believes makes it close and ask again, and so makes more to be said late.
#[tokio::test(start_paused = true)]
async fn stale_news_is_not_believed() {
    let world = World::new();
    world.lag(Duration::from_millis(300));
    let client = world.client("c", false);
    client.connect().await;
    sleep(Duration::from_secs(2)).await;
    world.register("e2", "svc");
    world.kill("e1", Ending::Broken);
    until("healed", 5 * SOON, || client.whole("e2")).await;
    sleep(QUIET).await;
    assert!(client.whole("e2"));
    assert_eq!((world.calls("e2").requests, world.calls("m").reselects), (1, 1));
}

/// H5, I9: a next hop that says more than anybody can hear. Looks and Requests stay few, and the truth arrives.
#[tokio::test(start_paused = true)]
async fn a_storm_of_events_is_bounded() {
    let world = World::new();
    let client = world.client("c", true);
    client.connect().await;
    sleep(Duration::from_secs(2)).await;
    let (looks, requests) = (world.calls("e1").monitors, world.calls("m").requests);
    let up = (*client.seen_at("e1").unwrap()).clone();
    for round in 0..100 {
        // More than a watcher may lag behind, without a pause in which it could keep up.
        for state in [State::Down, State::Up].into_iter().cycle().take(2 * nsm_hop::monitor::MAX_LAG) {
            world.at("e1").monitors().update(Connection { state, ..up.clone() });
        }
        assert!(client.hop.busy() <= 1, "{round}");
        sleep(Duration::from_millis(10)).await;
    }
    sleep(Duration::from_secs(1)).await;
    let (looks, requests) = (world.calls("e1").monitors - looks, world.calls("m").requests - requests);
    assert!(looks <= 15, "{looks} looks in a second, of 200 000 events");
    assert!(requests <= 15, "{requests} Requests");
    until("the last word", Duration::from_secs(3), || client.whole("e1")).await;
}

/// One stream to each next hop, however many connections go there.
#[tokio::test(start_paused = true)]
async fn one_stream_serves_all_connections() {
    const CONNECTIONS: usize = 50;
    let world = World::new();
    let clients: Vec<_> = (0..CONNECTIONS).map(|number| world.client(&format!("c{number}"), false)).collect();
    for client in &clients {
        client.connect().await;
    }
    sleep(Duration::from_secs(5)).await;
    // The very first connection may have looked, because the stream was not open yet.
    for hop in ["f", "e1"] {
        assert!(world.calls(hop).monitors <= 2, "{hop}: {:?}", world.calls(hop));
    }
    let before = world.calls("f").monitors;
    sleep(QUIET * 2).await;
    assert!(world.calls("e1").requests >= 2 * CONNECTIONS, "refreshed meanwhile");
    assert_eq!(world.calls("f").monitors, before, "and nobody looked");
    for client in &clients {
        client.close().await;
    }
    sleep(3 * watch::LINGER).await;
    world.register("e2", "svc");
    clients[0].connect().await;
    sleep(Duration::from_secs(1)).await;
    assert!(world.calls("f").monitors > before, "what nobody used was closed, and is opened anew");
}

/// A forwarder that is gone is not waited for: the manager forgets whom it chose (wire.md 3.7).
#[tokio::test(start_paused = true)]
async fn another_forwarder_is_chosen() {
    let world = World::new();
    world.register("g", "forwarder"); // not running yet: registered, and refused by nobody
    let client = world.client("c", false);
    client.connect().await;
    world.start("f2");
    world.register("f2", "forwarder");
    world.kill("f", Ending::Broken);
    until("another way", Duration::from_secs(3), || client.seen_at("f2").is_some() && client.state_at("m") == Some(State::Up)).await;
    assert_eq!(client.connection().unwrap().path.segments[2].name.as_str(), "f2");
}

/// wire.md 3.7: who asks again stays with its forwarder; who wants to go elsewhere is not led to the same one again.
#[tokio::test(start_paused = true)]
async fn a_forwarder_is_kept_until_another_endpoint_is_wanted() {
    let world = World::new();
    let client = world.client("c", true);
    client.connect().await;
    world.start("F");
    world.register("F", "forwarder"); // comes first among equals
    let by = || client.connection().unwrap().path.segments[2].name.to_string();
    world.start("m");
    until("asked again", Duration::from_secs(3), || client.whole("e1")).await;
    assert_eq!(by(), "f");
    world.register("e2", "svc");
    world.cut("e1");
    world.kill("e1", Ending::Broken);
    until("elsewhere", NOTICED + SOON, || client.endpoint() == "e2").await;
    assert_eq!(by(), "F");
}

/// A2: a client is killed and comes back, and asks its manager what it had.
#[tokio::test(start_paused = true)]
async fn a_restarted_client_takes_over_what_it_had() {
    let world = World::new();
    let client = world.client("c", true);
    client.connect().await;
    let (wires, had) = (world.kernel.wires(), client.connection().unwrap());
    drop(client);
    world.register("e0", "svc"); // would be chosen by whoever asks anew
    world.start("e0");
    let client = world.client("c", true);
    let former = adoption::former(&world.at("m"), client.hop.name()).await;
    let mut wanted = client.wanted();
    wanted.preferences = vec![Mechanism::new(Class::Local, MechanismKind::Kernel)];
    assert!(adoption::adopted(&wanted, &former[&client.id], None).await.is_none(), "this mesh agrees on no mechanism");
    let mut known = former[&client.id].clone();
    known.mechanism = wanted.preferences.first().cloned();
    let adopted = adoption::adopted(&wanted, &known, None).await.unwrap();
    client.hop.request(adopted, Caller::within(Duration::from_secs(5))).await.unwrap();
    assert!(client.whole("e1"));
    assert_eq!(world.kernel.wires(), wires);
    let names = |connection: &Connection| connection.path.segments.iter().map(|segment| segment.id.clone()).collect::<Vec<_>>();
    assert_eq!(names(&client.connection().unwrap()), names(&had), "the same connection at every hop");
}
