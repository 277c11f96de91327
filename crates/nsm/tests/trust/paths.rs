//! Whose a connection is: paths of liars, of processes that take the place of others, and of restarts.

use crate::world::*;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::StreamExt;
use nsm::roles::process::Process;
use nsm_api::*;
use nsm_hop::hop::Hop;
use serde_json::json;

/// A client, the forwarder that brings its connection to a second hop, and somebody with an identity and bad intentions.
struct Scene {
    world: World,
    victim: Process,
    relay: Process,
    evil: Process,
    /// Called by the client itself.
    first: Hop,
    /// Called by the forwarder.
    second: Hop,
}

impl Scene {
    async fn new() -> Scene {
        let world = World::new(&["victim", "relay", "relay-2", "evil", "m", "n"]);
        let (victim, relay, evil) = (world.process("victim").await, world.process("relay").await, world.process("evil").await);
        let first = world.serve(&world.process("m").await, "m", "m.sock").await;
        let second = world.serve(&world.process("n").await, "n", "n.sock").await;
        Scene { world, victim, relay, evil, first, second }
    }
    fn peer(&self, process: &Process, hop: &Hop) -> Peer {
        Peer::new(process, &self.world.target(&format!("{}.sock", hop.name())))
    }
    /// The path of the client as its forwarder sends it.
    fn relayed(&self) -> Vec<Segment> {
        let (token, expires) = token(&self.victim, &self.world.id("relay"));
        vec![Segment { expires: Some(expires), ..segment("nsc", "nsc-0", &token) }, segment("fwd", "f-0", "")]
    }
    /// The client's connection at both hops, up.
    async fn set_up(&self) -> [Connection; 2] {
        let near = self.peer(&self.victim, &self.first).request(connection(&[segment("nsc", "nsc-0", "")], 0)).await.unwrap();
        let far = self.peer(&self.relay, &self.second).request(connection(&self.relayed(), 1)).await.unwrap();
        [near, far]
    }
}

/// A token that nobody signed: what a liar can say of processes before it.
fn forged(subject: &SpiffeId, audience: &SpiffeId) -> String {
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = part(json!({"sub": subject, "aud": [audience], "exp": 9_999_999_999_u64}));
    format!("{}.{claims}.{}", part(json!({"alg": "ES256", "typ": "JWT"})), URL_SAFE_NO_PAD.encode([0; 64]))
}

/// What becomes of a crafted path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// An error says why.
    Refused,
    /// It is a path like any other: it leads to a connection of the liar's own.
    Own,
}
use Fate::{Own, Refused};

/// Paths that a liar may send to the hop `name`, where the victim's connection is called `id` and the last segment
/// of its path, ours, is `ours`. `hidden` are the segments before ours.
fn crafted(scene: &Scene, name: &str, hidden: &[Segment], ours: &Segment) -> Vec<(&'static str, u32, Vec<Segment>, Fate)> {
    let (victim, evil) = (scene.world.id("victim"), scene.world.id("evil"));
    let id = ours.id.as_str();
    let lie = segment("nsc", "nsc-0", &forged(&victim, &evil));
    let stolen = token(&scene.victim, &scene.world.id("relay")).0;
    let true_to_me = token(&scene.evil, &evil).0;
    let me = segment("evil", "evil-0", "");
    let named = |token: &str| segment(name, id, token);
    let many: Vec<Segment> = (0..limits::MAX_PATH_SEGMENTS).map(|at| segment(&format!("p{at}"), "x", &forged(&victim, &evil))).collect();
    let last = (limits::MAX_PATH_SEGMENTS - 1) as u32;
    vec![
        ("the victim's name and id", 0, vec![segment("nsc", "nsc-0", "")], Own),
        ("the victim's name and id, and ours", 0, vec![segment("nsc", "nsc-0", ""), named("")], Refused),
        ("my name, and our id", 0, vec![me.clone(), named("")], Refused),
        ("my name, and our id with our token", 0, vec![me.clone(), named(&ours.token)], Refused),
        ("our id as mine", 0, vec![segment("evil", id, "")], Own),
        ("our id as mine and as ours", 0, vec![segment("evil", id, ""), named("")], Refused),
        ("an id of ours that nobody has", 0, vec![me.clone(), segment(name, "6f9619ff-8b86-4011-b42d-00cf4fc964ff", "")], Own),
        ("the victim before me, forged", 1, vec![lie.clone(), me.clone()], Own),
        ("the victim before me, forged, and our id", 1, vec![lie.clone(), me.clone(), named("")], Refused),
        ("the same with a token of another", 1, vec![lie.clone(), me.clone(), named(&true_to_me)], Refused),
        ("the same with a forged token of ours", 1, vec![lie.clone(), me.clone(), named(&forged(&scene.world.id(name), &evil))], Refused),
        ("the victim's real token for another", 1, vec![segment("nsc", "nsc-0", &stolen), me.clone(), named("")], Refused),
        ("the way as it is, in my name", hidden.len() as u32 - 1, [hidden, &[named("")]].concat(), Refused),
        ("the way as it is, without us", hidden.len() as u32 - 1, hidden.to_vec(), if hidden.len() == 1 { Own } else { Refused }),
        ("no token before me", 1, vec![segment("nsc", "nsc-0", ""), me.clone()], Refused),
        ("our name as mine", 0, vec![named("")], Refused),
        ("our name as mine, further on", 1, vec![lie.clone(), named("")], Refused),
        ("our name before me", 1, vec![segment(name, id, &forged(&victim, &evil)), me.clone()], Own),
        ("our name twice", 1, vec![segment(name, id, &forged(&victim, &evil)), me.clone(), named("")], Refused),
        ("the same name twice", 1, vec![segment("evil", "evil-0", &true_to_me), me.clone(), named("")], Refused),
        ("an index at the end", 1, vec![me.clone()], Refused),
        ("an index without end", u32::MAX, vec![me.clone()], Refused),
        ("no path", 0, vec![], Refused),
        ("a path too long", last, many.clone(), Refused),
        ("a path too long by one", last, [many, vec![named("")]].concat(), Refused),
    ]
}

/// The victim's connection has not changed, and there is no other.
async fn untouched(scene: &Scene, what: &str, before: &[Connection; 2]) {
    for (hop, seen) in [&scene.first, &scene.second].into_iter().zip(before) {
        let now = hop.monitors().snapshot();
        assert_eq!(now.len(), 1, "{what}: connections of {}", hop.name());
        assert_eq!(*now[0], *seen, "{what}");
        assert_eq!(hop.busy(), 1, "{what}: {} is left with something", hop.name());
    }
}

fn seen(scene: &Scene) -> [Connection; 2] {
    [&scene.first, &scene.second].map(|hop| hop.monitors().snapshot()[0].as_ref().clone())
}

/// reliability.md 2.2, first row; G7. 25 paths at each of two hops, as Request and as Close.
#[tokio::test]
async fn crafted_paths_reach_nobody_elses_connection() {
    let scene = Scene::new().await;
    let set_up = scene.set_up().await;
    let before = seen(&scene);
    let places = [(&scene.first, vec![segment("nsc", "nsc-0", "")]), (&scene.second, scene.relayed())];
    for ((hop, hidden), connection_there) in places.into_iter().zip(&set_up) {
        let ours = connection_there.path.segments[hidden.len()].clone();
        let liar = scene.peer(&scene.evil, hop);
        for (what, index, segments, fate) in crafted(&scene, hop.name().as_str(), &hidden, &ours) {
            let what = format!("{what}, at {}", hop.name());
            let asked = connection(&segments, index);
            let _ = liar.close(asked.clone()).await; // refused, or of a connection that is not there
            untouched(&scene, &what, &before).await;
            match (liar.request(asked.clone()).await, fate) {
                (Ok(mine), Own) => {
                    assert_ne!(mine.path.segments[index as usize + 1].id, ours.id, "{what}");
                    liar.close(mine).await.expect(&what);
                }
                (Err(error), Refused) => assert!(matches!(error.kind, Kind::Denied | Kind::Invalid), "{what}: {error}"),
                (result, fate) => panic!("{what}: expected {fate:?}, but {result:?}"),
            }
            untouched(&scene, &what, &before).await;
        }
    }
    // The victim never noticed anything.
    let [near, far] = set_up;
    let again = scene.peer(&scene.victim, &scene.first).request(near.clone()).await.unwrap();
    assert_eq!(again.path.segments[1].id, near.path.segments[1].id);
    let again = scene.peer(&scene.relay, &scene.second).request(far.clone()).await.unwrap();
    assert_eq!(again.path.segments[2].id, far.path.segments[2].id);
}

/// A second identity may look, as everywhere; what it sees does not help it.
#[tokio::test]
async fn a_monitor_shows_tokens_to_those_on_the_way_only() {
    let scene = Scene::new().await;
    let [_, far] = scene.set_up().await;
    for (process, entitled) in [(&scene.victim, true), (&scene.relay, true), (&scene.evil, false)] {
        let api = scene.peer(process, &scene.second).0;
        let mut events = bounded(api.monitor(Selector::default(), Caller::within(BOUND))).await.unwrap();
        let event = bounded(events.next()).await.unwrap().unwrap();
        let segments = event.connections.into_values().next().unwrap().path.segments;
        assert_eq!(segments.len(), 3);
        assert!(segments.iter().all(|segment| segment.token.is_empty() != entitled), "{segments:?}");
        assert_eq!(segments[2].id, far.path.segments[2].id);
    }
}

/// A11, A12: a forwarder that was replaced has another name and another identity, and brings the path that the hop
/// before it was given.
#[tokio::test]
async fn a_replaced_forwarder_keeps_the_connection_and_a_late_close_of_the_former_is_ignored() {
    let scene = Scene::new().await;
    let [_, far] = scene.set_up().await;
    let next = scene.world.process("relay-2").await;
    let path = |shown: &str| {
        let (token, expires) = token(&scene.victim, &scene.world.id("relay-2"));
        let first = Segment { expires: Some(expires), ..segment("nsc", "nsc-0", &token) };
        connection(&[first, segment("fwd-2", "f-9", ""), Segment { token: shown.to_owned(), ..far.path.segments[2].clone() }], 1)
    };
    let successor = scene.peer(&next, &scene.second);
    let refused = successor.request(path("")).await.unwrap_err();
    assert!(refused.kind == Kind::Denied && refused.to_string().contains("belongs to another process"), "{refused}");
    let kept = successor.request(path(&far.path.segments[2].token)).await.unwrap();
    assert_eq!(kept.path.segments[2].id, far.path.segments[2].id);
    scene.peer(&scene.relay, &scene.second).close(far.clone()).await.unwrap();
    let now = scene.second.monitors().snapshot();
    assert_eq!((now.len(), now[0].path.segments[1].name.as_str()), (1, "fwd-2"));
    // The former one cannot come back with what it knows by heart.
    let former = scene.peer(&scene.relay, &scene.second);
    let by_heart = [scene.relayed(), vec![segment("n", far.path.segments[2].id.as_str(), "")]].concat();
    assert_eq!(former.request(connection(&by_heart, 1)).await.unwrap_err().kind, Kind::Denied);
}

/// A8, A12: with its key a restarted process keeps the ids that its callers know; without it they get new ones, and
/// nobody is refused.
#[tokio::test]
async fn a_restart_with_the_same_state_keeps_ids() {
    let scene = Scene::new().await;
    let [near, far] = scene.set_up().await;
    for (number, (state, kept)) in [("state", true), ("other", false)].into_iter().enumerate() {
        for (name, caller, known) in [("m", &scene.victim, &near), ("n", &scene.relay, &far)] {
            let process = scene.world.process_in(name, state).await;
            let socket = format!("{name}-{number}.sock");
            let hop = scene.world.serve(&process, name, &socket).await;
            let again = Peer::new(caller, &scene.world.target(&socket)).request(known.clone()).await.unwrap();
            let own = known.path.index as usize + 1;
            assert_eq!(again.path.segments[own].id == known.path.segments[own].id, kept, "{name} with {state}");
            assert_eq!(hop.busy(), 1);
        }
    }
}
