//! Serving: bind, accept, shake hands, hand calls to the handlers, and end in order.
//!
//! What a call means is in `handlers`. Shutdown stops accepting, lets calls finish within
//! [`limits::DRAIN_TIMEOUT`](crate::limits::DRAIN_TIMEOUT), and ends monitor and watch streams normally: a stream
//! that is reset with CANCEL would tell other implementations that they closed it themselves, and they would not heal.

use crate::{
    dial::Resolver,
    drain::{Drain, drain},
    handlers,
    limits::{
        ACCEPT_PAUSE, CONNECTION_WINDOW_BYTES, MAX_CONNECTIONS, MAX_CONNECTIONS_PER_IDENTITY, MAX_HEADER_BYTES, MAX_STREAMS_PER_CONNECTION,
        STREAM_WINDOW_BYTES,
    },
    listen::Listener,
    preface::Prefaced,
    share::Shares,
    socket::Socket,
    tls,
};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use nsm_api::{NetworkServiceApi, PrefixApi, RegistryApi, Result, Target};
use nsm_identity::Source;
use std::{future::Future, pin::pin, sync::Arc, time::Duration};
use tokio::{
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
};
use tonic::service::Routes;
use tower::Service;

/// What to serve, and where.
pub struct ServeOptions {
    /// Addresses to listen on; port 0 takes a free one, an empty host is every address of both families.
    pub listen: Vec<Target>,
    /// Answers Request, Close and MonitorConnections, if any.
    pub network: Option<Arc<dyn NetworkServiceApi>>,
    /// Answers both registries, if any.
    pub registry: Option<Arc<dyn RegistryApi>>,
    /// Lends prefixes, if anything does.
    pub prefixes: Option<Arc<dyn PrefixApi>>,
    /// The identity shown to clients.
    pub source: Source,
    /// How long the tokens live with which registrations are answered.
    pub max_token_life: Duration,
}

/// A running server.
#[derive(Debug)]
pub struct Served {
    /// Where it listens, with real ports, in the order of [`ServeOptions::listen`].
    pub addresses: Vec<Target>,
    /// Ends when shutdown is complete: nothing listens and runs any more, socket files are removed.
    pub ended: JoinHandle<()>,
}

/// Binds every address, then serves until `shutdown` is ready. Nothing is served unless all could be bound.
/// Dropping what it returns does not stop the server.
pub async fn serve(options: ServeOptions, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<Served> {
    let resolver = Resolver::default();
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for target in &options.listen {
        let (listener, address) = Listener::bind(target, &resolver).await?;
        listeners.push(listener);
        addresses.push(address);
    }
    tracing::info!(addresses = ?addresses.iter().map(Target::to_string).collect::<Vec<_>>(), "serving");
    let ended = tokio::spawn(run(listeners, options, shutdown));
    Ok(Served { addresses, ended })
}

async fn run(listeners: Vec<Listener>, options: ServeOptions, shutdown: impl Future<Output = ()>) {
    let (drainer, drain) = drain();
    let routes = handlers::routes((options.network, options.registry, options.prefixes), (&options.source, options.max_token_life), &drain);
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let server = Arc::new(Server { source: options.source, routes, room, shares: Shares::new(MAX_CONNECTIONS_PER_IDENTITY), drain });
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(server.clone().accept_all(listener));
    }
    drop(server);
    shutdown.await;
    accepting.shutdown().await;
    drainer.drain().await;
}

struct Server {
    source: Source,
    routes: Routes,
    room: Arc<Semaphore>,
    shares: Arc<Shares>,
    drain: Drain,
}

impl Server {
    async fn accept_all(self: Arc<Self>, listener: Listener) {
        loop {
            let permit = self.room.clone().acquire_owned().await.expect("the semaphore is never closed");
            match listener.accept().await {
                Ok(socket) => {
                    let server = self.clone();
                    tokio::spawn(async move {
                        tokio::select! {
                            () = server.connection(socket) => {}
                            () = server.drain.abandoned() => {}
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(&self, socket: Socket) {
        let (stream, link) = match tls::accept(&self.source, socket).await {
            Ok(accepted) => accepted,
            Err(error) => return tracing::debug!(%error, "refused a connection"),
        };
        let peer = link.peer.id.clone();
        let Some(_share) = self.shares.take(&peer) else {
            return tracing::warn!(%peer, "refused a connection: it has {MAX_CONNECTIONS_PER_IDENTITY} already");
        };
        let service = service_fn(|mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(link.clone());
            self.routes.clone().call(request)
        });
        let (stream, begun) = Prefaced::new(stream);
        let mut connection = pin!(http2_builder().serve_connection(TokioIo::new(stream), service));
        let closing = async {
            tokio::select! {
                () = self.drain.closing() => {}
                // Clients verify our tokens with the certificate that they were shown: they must come again.
                () = self.source.superseded(link.shown.as_deref()) => {}
            }
            begun.notified().await;
        };
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = closing => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%peer, %error, "a connection broke");
        }
    }
}

fn http2_builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    builder
}
