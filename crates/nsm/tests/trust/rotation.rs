//! E1: identities rotate all the time under load, and nothing is lost.

use crate::world::*;
use futures::future::join_all;
use nsm_api::*;
use nsm_hop::{
    hop::Hop,
    onward::Fixed,
    role::{NoWires, Role, Standing, Timing},
    testing::{FakeKernel, FaultPlan},
};
use nsm_identity::Authority;
use std::{
    collections::BTreeSet,
    env,
    sync::Arc,
    time::{Duration, Instant},
};

/// Life of an identity; a new one is given after half of it.
const SVID_LIFE: Duration = Duration::from_secs(10);
const REQUESTS_PER_SECOND: u32 = 50;
/// How long, and the variable that asks for a longer run (in seconds).
const DEFAULT_SECONDS: u64 = 16;
const SECONDS: &str = "NSM_TEST_ROTATION_SECONDS";

/// A hop that passes everything on.
fn pass(world: &World, name: &str, process: &nsm::roles::process::Process, next: &str) -> Hop {
    Hop::new(Role {
        name: HopName::new(name).unwrap(),
        standing: Standing::Server,
        issuer: process.issuer.clone(),
        admit: nsm::roles::authorize::server(&process.issuer).unwrap(),
        reserve: vec![],
        onward: Box::new(Fixed(world.target(next))),
        dial: process.dial(),
        wiring: Box::new(NoWires),
        kernel: Arc::new(FakeKernel::new(FaultPlan::default())),
        generation: process.generation,
        timing: Timing::default(),
    })
}

/// issue: no connection is lost when identities rotate every 5 s under 50 requests/s. Half of the Requests are
/// refreshes of connections from before, half are new; a quarter of the new ones is closed again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_is_lost_when_identities_rotate_under_load() {
    let seconds = env::var(SECONDS).ok().and_then(|text| text.parse().ok()).unwrap_or(DEFAULT_SECONDS);
    let authority = Authority::new("example.org").unwrap().with_svid_life(SVID_LIFE);
    let world = World::with(authority, &["client", "manager", "endpoint"]);
    let (client, manager, endpoint) = (world.process("client").await, world.process("manager").await, world.process("endpoint").await);
    let end = world.serve(&endpoint, "endpoint", "endpoint.sock").await;
    let middle = pass(&world, "manager", &manager, "endpoint.sock");
    manager.serve(vec![world.target("manager.sock")], Some(Arc::new(middle.clone())), None, &world.context).await.unwrap();
    let peer = Arc::new(Peer::new(&client, &world.target("manager.sock")));

    let (begun, mut tasks, mut certificates) = (Instant::now(), vec![], BTreeSet::new());
    let mut pace = tokio::time::interval(Duration::from_secs(1) / REQUESTS_PER_SECOND);
    let lanes: u32 = REQUESTS_PER_SECOND * 2; // each lane asks every two seconds
    let mut connections: Vec<Option<tokio::task::JoinHandle<Result<Connection>>>> = (0..lanes).map(|_| None).collect();
    for number in 0_u32.. {
        if begun.elapsed() >= Duration::from_secs(seconds) {
            break;
        }
        pace.tick().await;
        certificates.insert(client.certificate());
        let lane = (number % lanes) as usize;
        let before = match connections[lane].take() {
            Some(task) => Some(bounded(task).await.unwrap().unwrap_or_else(|error| panic!("request of lane {lane} failed: {error}"))),
            None => None,
        };
        let (peer, fresh) = (peer.clone(), connection(&[segment("client", &format!("c-{number}"), "")], 0));
        let ask = match before {
            Some(up) if lane.is_multiple_of(4) => {
                let peer = peer.clone();
                tasks.push(tokio::spawn(async move { peer.close(up).await }));
                fresh
            }
            Some(up) => up,
            None => fresh,
        };
        connections[lane] = Some(tokio::spawn(async move { peer.request(ask).await }));
    }
    for closed in join_all(tasks).await {
        closed.unwrap().expect("a Close failed");
    }
    let up = join_all(connections.into_iter().flatten()).await;
    let lanes = up.len();
    up.into_iter().for_each(|task| drop(task.unwrap().expect("a Request failed")));
    let expected = seconds / (SVID_LIFE.as_secs() / 2);
    assert!(certificates.len() as u64 >= expected.max(2), "{} identities in {seconds} s: nothing rotated", certificates.len());
    assert_eq!((middle.monitors().snapshot().len(), end.monitors().snapshot().len()), (lanes, lanes));
}
