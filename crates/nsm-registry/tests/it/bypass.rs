//! The manager's view of the registry: features E-12, E-13; wire protocol 5.5.

use crate::common::*;
use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use nsm_api::{
    Caller, EndpointQuery, EndpointUpdates, Error, Files, InodeKey, Kind, Labels, NetworkService, NetworkServiceEndpoint, RegistryApi,
    Result, ServiceQuery, ServiceUpdates,
};
use nsm_registry::{LocalBypass, Registry};
use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::Semaphore;

const OWN_URL: &str = "tcp://10.0.0.7:5001";

/// What the registry above does with the next registration.
#[derive(Clone, Copy, Default, PartialEq)]
enum Mood {
    #[default]
    Well,
    Refuses,
    /// Does not answer until a permit of the gate comes.
    Waits,
    /// Adds `-1` to the name.
    Renames,
}

/// A registry whose failures the test chooses.
struct Upstream {
    registry: Registry,
    mood: Mutex<Mood>,
    gate: Semaphore,
    unregistered: AtomicUsize,
}

#[async_trait]
impl RegistryApi for Upstream {
    async fn register_service(&self, service: NetworkService, caller: Caller) -> Result<NetworkService> {
        self.registry.register_service(service, caller).await
    }
    async fn find_services(&self, query: ServiceQuery, caller: Caller) -> Result<ServiceUpdates> {
        self.registry.find_services(query, caller).await
    }
    async fn unregister_service(&self, service: NetworkService, caller: Caller) -> Result<()> {
        self.registry.unregister_service(service, caller).await
    }
    async fn register_endpoint(
        &self,
        mut endpoint: NetworkServiceEndpoint,
        files: Files,
        caller: Caller,
    ) -> Result<NetworkServiceEndpoint> {
        assert!(files.is_empty() && caller.identity.is_none(), "neither files nor identities of the node go up");
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Well => {}
            Mood::Refuses => return Err(Error::new(Kind::Unavailable, "registry", "is away", "start it")),
            Mood::Waits => self.gate.acquire().await.unwrap().forget(),
            Mood::Renames => endpoint.name = name(&format!("{}-1", endpoint.name)),
        }
        self.registry.register_endpoint(endpoint, files, caller).await
    }
    async fn find_endpoints(&self, query: EndpointQuery, caller: Caller) -> Result<EndpointUpdates> {
        self.registry.find_endpoints(query, caller).await
    }
    async fn unregister_endpoint(&self, endpoint: NetworkServiceEndpoint, caller: Caller) -> Result<()> {
        self.unregistered.fetch_add(1, Ordering::Relaxed);
        self.registry.unregister_endpoint(endpoint, caller).await
    }
}

struct World {
    upstream: Arc<Upstream>,
    bypass: LocalBypass,
}

fn world() -> World {
    let upstream = Upstream { registry: registry(), mood: Mutex::default(), gate: Semaphore::new(0), unregistered: AtomicUsize::new(0) };
    let upstream = Arc::new(upstream);
    let bypass = LocalBypass::new(upstream.clone(), OWN_URL, labels(&[("nodeName", "n7")]), clock());
    World { upstream, bypass }
}

impl World {
    fn mood(&self, mood: Mood) {
        *self.upstream.mood.lock().unwrap() = mood;
    }
    async fn seen(&self) -> Vec<String> {
        all(self.bypass.find_endpoints(EndpointQuery::default(), caller("forwarder")).await.unwrap()).await
    }
    async fn seen_above(&self) -> Vec<String> {
        all(self.upstream.find_endpoints(EndpointQuery::default(), Caller::default()).await.unwrap()).await
    }
    async fn watch(&self) -> EndpointUpdates {
        self.bypass.find_endpoints(EndpointQuery { watch: true, ..EndpointQuery::default() }, caller("forwarder")).await.unwrap()
    }
    /// Puts an endpoint straight into the registry above, as another manager or a former life of this one would.
    async fn put_above(&self, called: &str, url: &str, who: &str) {
        let endpoint = NetworkServiceEndpoint { url: url.to_owned(), ..endpoint(called, "s", &[]) };
        self.upstream.registry.register_endpoint(endpoint, Files::default(), caller(who)).await.unwrap();
    }
}

/// An endpoint at a socket that came along, the socket, and a way to see whether it is still open.
fn at_socket(called: &str, inode: u64) -> (NetworkServiceEndpoint, Files, Weak<OwnedFd>) {
    let key = InodeKey { dev: 5, ino: inode };
    let socket = Arc::new(OwnedFd::from(UnixStream::pair().unwrap().0));
    let open = Arc::downgrade(&socket);
    let mut files = Files::default();
    files.insert(key, socket);
    (NetworkServiceEndpoint { url: key.to_string(), ..endpoint(called, "s", &[("app", "foo")]) }, files, open)
}

/// Waits until the socket is closed.
async fn closed(open: &Weak<OwnedFd>) {
    tokio::time::timeout(LONG, async {
        while open.strong_count() > 0 {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the socket stays open");
}

#[tokio::test(start_paused = true)]
async fn e12_the_node_sees_sockets_and_the_others_see_the_manager() {
    let world = world();
    let (endpoint, files, open) = at_socket("a", 1);
    let answer = world.bypass.register_endpoint(endpoint.clone(), files, caller("a")).await.unwrap();
    assert_eq!((answer.url.as_str(), answer.expiration_time), ("inode://5/1", Some(after(60))));
    assert_eq!(answer.path_ids, ["spiffe://d/a"]);
    assert_eq!(answer.network_service_labels[&service("s")], labels(&[("app", "foo"), ("nodeName", "n7")]));
    world.put_above("b", "tcp://10.0.0.8:5001", "b").await;

    assert_eq!(world.seen_above().await, [format!("a {OWN_URL}"), "b tcp://10.0.0.8:5001".to_owned()]);
    let mine = EndpointQuery { url: OWN_URL.to_owned(), ..EndpointQuery::default() };
    let found: Vec<_> = world.bypass.find_endpoints(mine, caller("forwarder")).await.unwrap().collect().await;
    let (update, files) = found[0].as_ref().unwrap();
    assert_eq!((found.len(), update.endpoint.url.as_str()), (1, "inode://5/1"));
    assert!(files.get(InodeKey { dev: 5, ino: 1 }).is_some(), "the socket comes with its URL");
    assert_eq!(world.seen().await, ["a inode://5/1", "b tcp://10.0.0.8:5001"]);
    drop(found);

    world.bypass.unregister_endpoint(endpoint, caller("a")).await.unwrap();
    closed(&open).await;
    assert_eq!(world.seen().await, ["b tcp://10.0.0.8:5001"]);
}

/// A label that the endpoint says itself stays, a service without labels gets none.
#[tokio::test(start_paused = true)]
async fn labels_of_the_node_fill_gaps_only() {
    let world = world();
    let (mut endpoint, files, _) = at_socket("a", 1);
    endpoint.network_service_names.push(service("t"));
    endpoint.network_service_labels.insert(service("s"), labels(&[("nodeName", "mine")]));
    let answer = world.bypass.register_endpoint(endpoint, files, caller("a")).await.unwrap();
    assert_eq!(answer.network_service_labels, [(service("s"), labels(&[("nodeName", "mine")]))].into());
}

/// The socket is open until the registration ends, which needs no call: the timer does it. A refresh puts it off.
#[tokio::test(start_paused = true)]
async fn the_socket_is_kept_as_long_as_the_registration() {
    let world = world();
    let (endpoint, files, open) = at_socket("a", 1);
    world.bypass.register_endpoint(endpoint.clone(), files, caller("a")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(50)).await;
    let (_, files, second) = at_socket("a", 1);
    world.bypass.register_endpoint(endpoint, files, caller("a")).await.unwrap();
    closed(&open).await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert!(second.strong_count() > 0);
    assert_eq!(world.seen().await, ["a inode://5/1"]);
    closed(&second).await;
    assert_eq!(world.seen().await, Vec::<String>::new());
}

/// No path of a peer is ever dialled.
#[tokio::test(start_paused = true)]
async fn addresses_are_believed_only_from_those_who_may_say_them() {
    let world = world();
    let at = |url: &str| NetworkServiceEndpoint { url: url.to_owned(), ..endpoint("a", "s", &[]) };
    for url in ["", "unix:///run/a.sock", "inproc://a", "inode://5/9", "http://a", "tcp://a"] {
        let refused = world.bypass.register_endpoint(at(url), Files::default(), caller("a")).await.unwrap_err();
        assert_eq!(refused.kind, Kind::Invalid, "{url}");
        assert!(refused.object.contains("\"a\""), "{refused}");
    }
    assert_eq!(world.seen_above().await, Vec::<String>::new());
    world.bypass.register_endpoint(at("tcp://10.0.0.3:1"), Files::default(), caller("a")).await.unwrap();
    assert_eq!(world.seen().await, ["a tcp://10.0.0.3:1"]);
    for url in ["unix:///run/a.sock", "inproc://a"] {
        world.bypass.in_process().register_endpoint(at(url), Files::default(), caller("a")).await.unwrap();
        assert_eq!(world.seen().await, [format!("a {url}")]);
        assert_eq!(world.seen_above().await, [format!("a {OWN_URL}")]);
    }
    let refused = world.bypass.in_process().register_endpoint(at("inode://5/9"), Files::default(), caller("a")).await.unwrap_err();
    assert!(refused.to_string().contains("no such file came along"), "{refused}");
}

/// After a restart of the manager its endpoints are hidden until they register again; an end is told all the same.
#[tokio::test(start_paused = true)]
async fn what_is_said_to_be_here_but_is_unknown_is_hidden() {
    let world = world();
    world.put_above("stale", OWN_URL, "stale").await;
    let mut watch = world.watch().await;
    assert_eq!(world.seen().await, Vec::<String>::new());
    let (known, files, _) = at_socket("known", 1);
    world.bypass.register_endpoint(known.clone(), files, caller("known")).await.unwrap();
    assert_eq!(next(&mut watch).await, "+known inode://5/1");
    world.upstream.registry.unregister_endpoint(endpoint("stale", "s", &[]), caller("stale")).await.unwrap();
    assert_eq!(next(&mut watch).await, format!("-stale {OWN_URL}"));
    let (_, files, _) = at_socket("known", 2);
    let moved = NetworkServiceEndpoint { url: "inode://5/2".to_owned(), ..known };
    world.bypass.register_endpoint(moved, files, caller("known")).await.unwrap();
    assert_eq!(next(&mut watch).await, "+known inode://5/2", "the new socket is known before the registry tells of it");
    assert!(next(&mut watch).await.starts_with("-known"), "its registration ends");
    assert!(watch.next().now_or_never().is_none(), "a watch never ends by itself");
}

/// An endpoint that leaves right after a restart of its manager, before it could register again, leaves all the same.
#[tokio::test(start_paused = true)]
async fn who_leaves_before_a_restarted_manager_knows_it_leaves_nothing_behind() {
    let world = world();
    world.put_above("a", OWN_URL, "a").await;
    world.put_above("b", "tcp://10.0.0.8:5001", "b").await;
    for who in ["a", "b", "never"] {
        world.bypass.unregister_endpoint(endpoint(who, "s", &[]), caller(who)).await.unwrap();
    }
    assert_eq!(world.seen_above().await, ["b tcp://10.0.0.8:5001"], "what is with another manager is not ours to remove");
    world.put_above("c", OWN_URL, "c").await;
    let refused = world.bypass.unregister_endpoint(endpoint("c", "s", &[]), caller("a")).await.unwrap_err();
    assert_eq!(refused.kind, Kind::Denied, "{refused}");
}

/// The same name registered through another manager has moved there, whatever is remembered here.
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_moved_is_found_where_it_is() {
    let world = world();
    let (endpoint, files, _) = at_socket("a", 1);
    world.bypass.register_endpoint(endpoint, files, caller("a")).await.unwrap();
    world.put_above("a", "tcp://10.0.0.8:5001", "a").await;
    assert_eq!(world.seen().await, ["a tcp://10.0.0.8:5001"]);
    let mine = EndpointQuery { url: OWN_URL.to_owned(), ..EndpointQuery::default() };
    assert_eq!(all(world.bypass.find_endpoints(mine, caller("forwarder")).await.unwrap()).await, Vec::<String>::new());
}

/// T-13: whoever asks for endpoints of this node is answered about these, one by one or all at once.
#[tokio::test(start_paused = true)]
async fn t13_this_node_is_asked_about_itself_only() {
    let world = world();
    // Its URL begins as that of this manager does.
    world.put_above("other", &format!("{OWN_URL}0"), "other").await;
    let mine = EndpointQuery { url: OWN_URL.to_owned(), services: vec![service("s")], ..EndpointQuery::default() };
    for count in 1..=2 * nsm_registry::MAX_LOOKED_UP {
        let (endpoint, files, _) = at_socket(&format!("e{count}"), u64::try_from(count).unwrap());
        world.bypass.register_endpoint(endpoint, files, caller("a")).await.unwrap();
        let found = all(world.bypass.find_endpoints(mine.clone(), caller("forwarder")).await.unwrap()).await;
        assert_eq!(found.iter().filter(|line| line.contains("inode://")).count(), count, "{found:?}");
    }
    let elsewhere = EndpointQuery { services: vec![service("t")], ..mine };
    assert_eq!(all(world.bypass.find_endpoints(elsewhere, caller("forwarder")).await.unwrap()).await, Vec::<String>::new());
}

/// A registration that failed is forgotten with its socket; a refresh that failed changes nothing.
#[tokio::test(start_paused = true)]
async fn a_failed_registration_leaves_what_was() {
    let world = world();
    world.mood(Mood::Refuses);
    let (endpoint, files, open) = at_socket("a", 1);
    assert_eq!(world.bypass.register_endpoint(endpoint.clone(), files, caller("a")).await.unwrap_err().kind, Kind::Unavailable);
    closed(&open).await;
    world.mood(Mood::Well);
    let (_, files, open) = at_socket("a", 1);
    world.bypass.register_endpoint(endpoint.clone(), files, caller("a")).await.unwrap();
    world.mood(Mood::Refuses);
    let (moved, files, moved_open) = at_socket("a", 2);
    world.bypass.register_endpoint(moved, files, caller("a")).await.unwrap_err();
    closed(&moved_open).await;
    assert_eq!(world.seen().await, ["a inode://5/1"]);
    assert!(open.strong_count() > 0);
}

/// A registry that never answers ends the call in bounded time, and the socket is closed.
#[tokio::test(start_paused = true)]
async fn a_registry_that_does_not_answer_is_not_waited_for() {
    let world = world();
    world.mood(Mood::Waits);
    for caller in [caller("a"), Caller { timeout: Some(Duration::from_secs(2)), ..caller("a") }] {
        let (endpoint, files, open) = at_socket("a", 1);
        let start = tokio::time::Instant::now();
        let limit = caller.timeout.unwrap_or(nsm_registry::UPSTREAM_TIMEOUT);
        assert_eq!(world.bypass.register_endpoint(endpoint, files, caller).await.unwrap_err().kind, Kind::Timeout);
        assert!(start.elapsed() < limit + Duration::from_millis(10), "{:?}", start.elapsed());
        closed(&open).await;
    }
}

/// A caller that leaves does not stop its registration half-way, and the next call for the name waits for it.
#[tokio::test(start_paused = true)]
async fn the_caller_may_vanish() {
    let world = world();
    world.mood(Mood::Waits);
    let (endpoint, files, open) = at_socket("a", 1);
    assert!(world.bypass.register_endpoint(endpoint.clone(), files, caller("a")).now_or_never().is_none());
    let leave = world.bypass.unregister_endpoint(endpoint, caller("a"));
    let (left, ()) = tokio::join!(leave, async {
        tokio::task::yield_now().await;
        assert!(open.strong_count() > 0, "the registration goes on");
        world.upstream.gate.add_permits(1);
    });
    left.unwrap();
    assert_eq!(world.upstream.unregistered.load(Ordering::Relaxed), 1, "the end came after the beginning");
    closed(&open).await;
    assert_eq!(world.seen_above().await, Vec::<String>::new());
}

/// Nobody gets the traffic of a name by asking for it: neither of one that is known here, nor, while the registry above
/// is still thinking, of one that only it knows.
#[tokio::test(start_paused = true)]
async fn m20_a_stranger_never_stands_in_for_the_owner() {
    let world = world();
    let (owned, files, _) = at_socket("a", 1);
    world.bypass.register_endpoint(owned, files, caller("owner")).await.unwrap();
    let (theirs, files, open) = at_socket("a", 66);
    let forged = NetworkServiceEndpoint { path_ids: vec!["spiffe://d/owner".to_owned()], ..theirs };
    let refused = world.bypass.register_endpoint(forged.clone(), files, caller("stranger")).await.unwrap_err();
    assert_eq!(refused.kind, Kind::Denied, "who calls counts, not who they say is behind them");
    closed(&open).await;
    assert_eq!(world.bypass.unregister_endpoint(forged, caller("stranger")).await.unwrap_err().kind, Kind::Denied);
    assert_eq!(world.seen().await, ["a inode://5/1"]);

    world.put_above("former-life", OWN_URL, "owner").await;
    world.mood(Mood::Waits);
    let (theirs, files, _) = at_socket("former-life", 67);
    let bypass = world.bypass.clone();
    let asking = tokio::spawn(async move { bypass.register_endpoint(theirs, files, caller("stranger")).await });
    tokio::task::yield_now().await;
    assert_eq!(world.seen().await, ["a inode://5/1"], "hidden, and not at the stranger's socket");
    world.upstream.gate.add_permits(1);
    assert_eq!(asking.await.unwrap().unwrap_err().kind, Kind::Denied);
    assert_eq!(world.seen().await, ["a inode://5/1"]);
}

/// Registries that make names unique answer another name than asked for.
#[tokio::test(start_paused = true)]
async fn the_name_that_the_registry_answers_counts() {
    let world = world();
    world.mood(Mood::Renames);
    let (endpoint, files, _) = at_socket("a", 1);
    let answer = world.bypass.register_endpoint(endpoint, files, caller("a")).await.unwrap();
    assert_eq!((answer.name.as_str(), answer.url.as_str()), ("a-1", "inode://5/1"));
    assert_eq!(world.seen().await, ["a-1 inode://5/1"]);
    world.bypass.unregister_endpoint(answer, caller("a")).await.unwrap();
    assert_eq!(world.seen_above().await, Vec::<String>::new());
}

/// A manager without a registry of its own domain keeps everything itself.
#[tokio::test(start_paused = true)]
async fn a_manager_can_be_its_own_registry() {
    let bypass = LocalBypass::new(Arc::new(registry()), OWN_URL, Labels::new(), clock());
    let (endpoint, files, _) = at_socket("a", 1);
    bypass.register_endpoint(endpoint, files, caller("a")).await.unwrap();
    let vpn = NetworkService::new(service("vpn"), nsm_api::Payload::Unset);
    let stored = bypass.register_service(vpn.clone(), caller("a")).await.unwrap();
    assert_eq!(stored.path_ids, ["spiffe://d/a"]);
    assert_eq!(bypass.unregister_service(vpn, caller("b")).await.unwrap_err().kind, Kind::Denied);
    assert_eq!(all(bypass.find_endpoints(EndpointQuery::default(), caller("f")).await.unwrap()).await, ["a inode://5/1"]);
    let services = bypass.find_services(ServiceQuery::default(), caller("f")).await.unwrap();
    assert_eq!(services.count().await, 1);
}
