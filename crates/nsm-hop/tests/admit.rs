//! Rules of admission: what each of them refuses, and that a refusal leaves nothing behind and disturbs nobody.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use async_trait::async_trait;
use nsm_api::*;
use nsm_hop::{
    hop::Hop,
    onward::Fixed,
    role::*,
    testing::{FakeKernel, FaultPlan},
};
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

const LIFE: Duration = Duration::from_secs(600);

/// Refuses what its switches say.
#[derive(Clone, Default)]
struct Rules {
    request: Arc<AtomicBool>,
    close: Arc<AtomicBool>,
    answer: Arc<AtomicBool>,
}

fn judge(refuse: &AtomicBool) -> Result<()> {
    let error = || Error::new(Kind::Denied, "it", "no sufficient privileges", "");
    if refuse.load(Ordering::Relaxed) { Err(error()) } else { Ok(()) }
}

impl Admit for Rules {
    fn admit(&self, _: &Draft, _: &Caller) -> Result<()> {
        judge(&self.request)
    }
    fn admit_close(&self, _: &Connection, _: &Caller) -> Result<()> {
        judge(&self.close)
    }
    fn approve(&self, _: &Answer) -> Result<()> {
        judge(&self.answer)
    }
}

/// The next hop: names its segment anew for every connection, so that only a Close with its own id ends one.
#[derive(Clone, Default)]
struct NextHop(Arc<Mutex<BTreeSet<String>>>);

#[async_trait]
impl NetworkServiceApi for NextHop {
    async fn request(&self, request: Request, _: Caller) -> Result<Answer> {
        let mut connection = request.connection;
        if connection.path.next().is_none() {
            let id = ConnectionId::new(format!("next-{}", connection.id)).unwrap();
            connection.path.segments.push(Segment::new(HopName::new("next").unwrap(), id));
        }
        connection.path.segments[1].expires = Some(SystemTime::now() + LIFE);
        self.0.lock().unwrap().insert(connection.path.segments[1].id.to_string());
        Ok(Answer { connection, files: Files::default(), certificate: None })
    }
    async fn close(&self, connection: Connection, _: Files, _: Caller) -> Result<()> {
        if let Some(next) = connection.path.next() {
            self.0.lock().unwrap().remove(next.id.as_str());
        }
        Ok(())
    }
    async fn monitor(&self, _: Selector, _: Caller) -> Result<Events> {
        Err(Error::internal("monitor", "not part of this test"))
    }
}

impl Dial for NextHop {
    fn dial(&self, _: &Target, _: &Files) -> Arc<dyn NetworkServiceApi> {
        Arc::new(self.clone())
    }
}

struct TestIssuer;

impl Issuer for TestIssuer {
    fn token(&self, _: &Caller) -> Result<(String, SystemTime)> {
        Ok((String::new(), SystemTime::now() + LIFE))
    }
    fn connection_id(&self, path: &Path, _: &Caller) -> ConnectionId {
        path.segments[path.index as usize].id.clone()
    }
    fn gave(&self, _: &ConnectionId, _: &Path, _: &Caller) -> bool {
        true
    }
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
    fn random(&self, _: u64) -> u64 {
        0
    }
}

/// A client, its rules, its next hop, and the Request it makes.
fn client() -> (Hop, Rules, NextHop, Request) {
    let (rules, next) = (Rules::default(), NextHop::default());
    let hop = Hop::new(Role {
        name: HopName::new("client").unwrap(),
        standing: Standing::Origin,
        issuer: Arc::new(TestIssuer),
        admit: vec![Box::new(rules.clone())],
        reserve: vec![],
        onward: Box::new(Fixed(Target::InProcess("next".into()))),
        dial: Arc::new(next.clone()),
        wiring: Box::new(NoWires),
        kernel: Arc::new(FakeKernel::new(FaultPlan::default())),
        generation: 1,
        timing: Timing::default(),
    });
    let connection = Connection::new(ConnectionId::new("c").unwrap(), "svc".parse().unwrap());
    (hop, rules, next, Request { connection, preferences: vec![], files: Files::default() })
}

async fn request(hop: &Hop, request: &Request) -> Result<Answer> {
    hop.request(request.clone(), Caller::within(Duration::from_secs(5))).await
}

#[tokio::test(start_paused = true)]
async fn a_first_answer_that_is_refused_is_closed_onward() {
    let (hop, rules, next, wanted) = client();
    rules.answer.store(true, Ordering::Relaxed);
    assert_eq!(request(&hop, &wanted).await.unwrap_err().kind, Kind::Denied);
    assert!(next.0.lock().unwrap().is_empty(), "the next hop heard no Close that names its connection");
    assert!(hop.monitors().snapshot().is_empty());
    rules.answer.store(false, Ordering::Relaxed);
    request(&hop, &wanted).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refused_refresh_or_close_leaves_the_connection_as_it_was() {
    let (hop, rules, next, wanted) = client();
    request(&hop, &wanted).await.unwrap();
    for refusing in [&rules.answer, &rules.request] {
        refusing.store(true, Ordering::Relaxed);
        assert_eq!(request(&hop, &wanted).await.unwrap_err().kind, Kind::Denied);
        refusing.store(false, Ordering::Relaxed);
    }
    rules.close.store(true, Ordering::Relaxed);
    let close = || hop.close(wanted.connection.clone(), Files::default(), Caller::within(Duration::from_secs(5)));
    assert_eq!(close().await.unwrap_err().kind, Kind::Denied);
    assert_eq!(hop.monitors().snapshot().len(), 1);
    assert_eq!(next.0.lock().unwrap().len(), 1);
    rules.close.store(false, Ordering::Relaxed);
    close().await.unwrap();
    assert!(next.0.lock().unwrap().is_empty() && hop.monitors().snapshot().is_empty());
}
