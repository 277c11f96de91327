//! Prefixes over a real connection: what is asked and answered, and what the end of a stream means on both sides.

use crate::world::*;
use async_trait::async_trait;
use nsm_api::*;
use nsm_grpc::{ServeOptions, serve};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{oneshot, watch};

/// Answers every question with what is wanted, and knows how many streams are open.
#[derive(Default)]
struct Lender {
    open: watch::Sender<usize>,
    asked: Mutex<Vec<(String, PrefixRequest)>>,
}

struct Stream(Arc<Lender>, SpiffeId);

struct Shared(Arc<Lender>);

impl PrefixApi for Shared {
    fn open(&self, holder: SpiffeId) -> Box<dyn PrefixStream> {
        self.0.open.send_modify(|open| *open += 1);
        Box::new(Stream(self.0.clone(), holder))
    }
}

#[async_trait]
impl PrefixStream for Stream {
    async fn ask(&mut self, request: PrefixRequest) -> Result<Option<PrefixGrant>> {
        self.0.asked.lock().unwrap().push((self.1.to_string(), request.clone()));
        match request {
            PrefixRequest::Allocate { wanted: Some(prefix), excluded } => Ok(Some(PrefixGrant { prefix, excluded })),
            PrefixRequest::Allocate { wanted: None, .. } => Err(Error::new(Kind::Exhausted, "pool", "is empty", "wait")),
            PrefixRequest::Release(_) => Ok(None),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

async fn start(world: &World, lender: &Arc<Lender>) -> Server {
    let (stop, stopped) = oneshot::channel::<()>();
    let options = ServeOptions {
        listen: vec![tcp()],
        network: None,
        registry: None,
        prefixes: Some(Arc::new(Shared(lender.clone()))),
        source: world.server.clone(),
        max_token_life: Duration::from_secs(600),
    };
    let served = bounded(serve(options, async move { drop(stopped.await) })).await.unwrap();
    Server { addresses: served.addresses, stop, ended: served.ended }
}

fn wish(wanted: Option<&str>) -> PrefixRequest {
    let excluded = vec!["10.0.0.0/8".parse().unwrap()];
    PrefixRequest::Allocate { wanted: wanted.map(|text| text.parse().unwrap()), excluded }
}

/// A-09, wire.md 10.1: the stream is open as long as the prefix is held, and ends with it.
#[tokio::test]
async fn a_prefix_is_held_until_it_is_dropped() {
    let (world, lender) = (World::new().await, Arc::new(Lender::default()));
    let server = start(&world, &lender).await;
    let client = world.dialer().prefixes(&server.addresses[0]);
    let mut open = lender.open.subscribe();
    let mut held = bounded(client.hold(wish(Some("172.16.3.0/24")), within())).await.unwrap();
    assert_eq!(held.first, PrefixGrant { prefix: "172.16.3.0/24".parse().unwrap(), excluded: vec!["10.0.0.0/8".parse().unwrap()] });
    assert_eq!(*lender.asked.lock().unwrap(), [(world.client.id().to_string(), wish(Some("172.16.3.0/24")))]);
    let more = tokio::time::timeout(Duration::from_millis(100), held.next()).await;
    assert!(more.is_err() && *open.borrow() == 1, "nothing ends by itself");
    drop(held);
    bounded(open.wait_for(|open| *open == 0)).await.unwrap();
    server.stop().await;
}

/// The server's end is noticed at once, and the server's end is not held up by streams.
#[tokio::test]
async fn the_end_of_the_server_is_the_end_of_the_stream() {
    let (world, lender) = (World::new().await, Arc::new(Lender::default()));
    let server = start(&world, &lender).await;
    let client = world.dialer().prefixes(&server.addresses[0]);
    let mut held = bounded(client.hold(wish(Some("172.16.3.0/24")), within())).await.unwrap();
    server.stop().await;
    let end = bounded(held.next()).await;
    assert!(end.is_none_or(|end| end.is_err()));
    assert_eq!(*lender.open.borrow(), 0);
}

#[tokio::test]
async fn a_refusal_comes_as_it_was_said() {
    let (world, lender) = (World::new().await, Arc::new(Lender::default()));
    let server = start(&world, &lender).await;
    let client = world.dialer().prefixes(&server.addresses[0]);
    let error = bounded(client.hold(wish(None), within())).await.err().expect("there is none");
    assert!(error.kind == Kind::Exhausted && error.to_string().contains("is empty"), "{error}");
    bounded(lender.open.subscribe().wait_for(|open| *open == 0)).await.unwrap();
    server.stop().await;
}
