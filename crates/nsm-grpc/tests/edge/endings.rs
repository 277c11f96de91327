//! How monitor streams end, frame by frame, as any HTTP/2 client sees it. Clients of other implementations heal after
//! every end but one: a status CANCELLED, or a reset with CANCEL, means to them that they closed the stream themselves.

use crate::world::*;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use h2::{RecvStream, client::SendRequest};
use nsm_api::*;
use nsm_grpc::{ServeOptions, limits::DRAIN_TIMEOUT, serve};
use rustls::pki_types::ServerName;
use std::{sync::Arc, time::Duration};
use tokio::{net::TcpStream, sync::mpsc, task::JoinHandle};
use tokio_rustls::TlsConnector;

/// A message without fields: a selector of everything.
const EVERYTHING: Bytes = Bytes::from_static(&[0; 5]);

/// An HTTP/2 connection of the test's own, and what becomes of it.
async fn connect(world: &World, address: &Target) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    let Target::Tcp { port, .. } = address else { panic!("{address}") };
    let socket = TcpStream::connect(("127.0.0.1", *port)).await.unwrap();
    let tls = TlsConnector::from(world.client.client_tls()).connect(ServerName::try_from("localhost").unwrap(), socket);
    let (sender, connection) = h2::client::handshake(bounded(tls).await.unwrap()).await.unwrap();
    (sender, tokio::spawn(connection))
}

/// Sends one call; the body of the answer to come.
async fn call(sender: &SendRequest<Bytes>, method: &str) -> h2::client::ResponseFuture {
    let mut sender = sender.clone().ready().await.unwrap();
    let request = http::Request::post(format!("https://localhost/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (answer, mut body) = sender.send_request(request, false).unwrap();
    body.send_data(EVERYTHING, true).unwrap();
    answer
}

/// A monitor stream after its first message.
async fn monitor(sender: &SendRequest<Bytes>) -> RecvStream {
    let answer = bounded(call(sender, "connection.MonitorConnection/MonitorConnections").await).await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut body = answer.into_body();
    assert!(!bounded(body.data()).await.unwrap().unwrap().is_empty());
    body
}

/// The status in the trailers of a stream that says nothing more.
async fn status(mut body: RecvStream) -> String {
    assert!(bounded(body.data()).await.is_none(), "neither data nor a reset comes before the trailers");
    let trailers = bounded(body.trailers()).await.unwrap().unwrap();
    trailers["grpc-status"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_shutdown_ends_streams_with_status_ok() {
    let world = World::new().await;
    let server = world.start(vec![tcp()], Some(Fake::agreeable()), None).await;
    let (sender, connection) = connect(&world, &server.addresses[0]).await;
    let bodies = [monitor(&sender).await, monitor(&sender).await];
    drop(sender);
    server.stop().await;
    for body in bodies {
        assert_eq!(status(body).await, "0");
    }
    bounded(connection).await.unwrap().unwrap();
}

/// Says one thing, then that it failed; with nothing to say about that, it panics.
struct Failing(Option<Kind>);

#[async_trait]
impl NetworkServiceApi for Failing {
    async fn request(&self, _: Request, _: Caller) -> Result<Answer> {
        Err(Error::internal("request", "not part of this test"))
    }
    async fn close(&self, _: Connection, _: Files, _: Caller) -> Result<()> {
        Ok(())
    }
    async fn monitor(&self, _: Selector, _: Caller) -> Result<Events> {
        let kind = self.0;
        let failure = async move { Err(Error::new(kind.expect("this test wants a panic"), "the stream", "broke", "open it again")) };
        let initial = stream::iter([Ok(event(EventKind::InitialStateTransfer, &["a"]))]);
        Ok(initial.chain(stream::once(failure)).boxed())
    }
}

fn options(world: &World, network: Arc<dyn NetworkServiceApi>) -> ServeOptions {
    let max_token_life = Duration::from_secs(600);
    ServeOptions {
        listen: vec![tcp()],
        network: Some(network),
        registry: None,
        prefixes: None,
        source: world.server.clone(),
        max_token_life,
    }
}

#[tokio::test]
async fn a_stream_that_fails_is_never_cancelled() {
    let world = World::new().await;
    let kinds = [Kind::Unavailable, Kind::Timeout, Kind::Internal, Kind::Exhausted, Kind::Kernel, Kind::Denied, Kind::NotFound];
    for kind in kinds.into_iter().map(Some).chain([None]) {
        let served = serve(options(&world, Arc::new(Failing(kind))), std::future::pending()).await.unwrap();
        let (sender, _connection) = connect(&world, &served.addresses[0]).await;
        let status = status(monitor(&sender).await).await;
        assert!(status != "0" && status != "1", "{kind:?}: {status}");
        served.ended.abort();
    }
}

/// A call hangs, so that the shutdown has to give up on the connection: the streams have ended in order long before.
#[tokio::test]
async fn a_shutdown_that_gives_up_breaks_the_connection() {
    let world = World::new().await;
    let (begun, mut began) = mpsc::channel(1);
    let stuck = Fake::new(move |_: Request, _| {
        let begun = begun.clone();
        async move {
            begun.send(()).await.unwrap();
            std::future::pending().await
        }
    });
    let server = world.start(vec![tcp()], Some(stuck), None).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    let hanging = tokio::spawn(async move { api.request(request("a", None), within()).await });
    bounded(began.recv()).await.unwrap();
    let (sender, _connection) = connect(&world, &server.addresses[0]).await;
    let body = monitor(&sender).await;
    server.stop.send(()).unwrap();
    let ended = tokio::time::timeout(DRAIN_TIMEOUT / 2, status(body)).await;
    assert_eq!(ended.expect("it does not wait for the call that hangs"), "0");
    let error = bounded(hanging).await.unwrap().unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable, "{error}");
    bounded(server.ended).await.unwrap();
}

/// What a kill looks like: the process is gone, and nobody says goodbye.
#[tokio::test]
async fn a_process_that_dies_breaks_the_transport() {
    let world = World::new().await;
    let process = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let served = process.spawn(serve(options(&world, Fake::agreeable()), std::future::pending())).await.unwrap().unwrap();
    let (sender, connection) = connect(&world, &served.addresses[0]).await;
    let mut body = monitor(&sender).await;
    // Runtimes may not be dropped within another.
    std::thread::spawn(move || process.shutdown_timeout(Duration::ZERO)).join().unwrap();
    match bounded(body.data()).await {
        Some(Err(error)) => assert!(!error.is_reset() && error.reason() != Some(h2::Reason::CANCEL), "{error}"),
        other => panic!("{other:?}"),
    }
    assert!(bounded(connection).await.unwrap().is_err());
}
