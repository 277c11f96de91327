//! Gets the wires of a client, however often it takes, and closes them at the end. In between they keep themselves.

use crate::context::Context;
use futures::{StreamExt, TryStreamExt, future::join_all, stream::FuturesUnordered};
use nsm_api::*;
use nsm_hop::{adoption, hop::Hop, role::Liveness};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

/// Pauses between tries, doubled from the first to the last.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How long the first try for a service has the client for itself.
const ONE_BY_ONE: Duration = Duration::from_millis(500);

/// A client with all its parts.
pub(super) struct Client {
    pub(super) hop: Hop,
    pub(super) context: Context,
    /// Longest wait for one try.
    pub(super) timeout: Duration,
    pub(super) liveness: Option<Arc<dyn Liveness>>,
    /// What the manager remembers of this client.
    pub(super) former: BTreeMap<ConnectionId, Connection>,
}

impl Client {
    /// Gets everything that is asked for; with `stay` keeps it until it is told to stop, then closes it.
    pub(super) async fn keep(&self, requests: Vec<Request>, stay: bool) -> Result<()> {
        let up = tokio::select! {
            up = self.connect_all(&requests) => up,
            () = self.context.shutdown.started() => Ok(()),
        };
        if up.is_ok() && !self.context.shutdown.is_started() {
            self.context.notify.ready();
            if !stay {
                return Ok(());
            }
            self.context.shutdown.started().await;
        }
        self.close_all(requests).await;
        up
    }

    /// One after the other as long as that goes quickly, so that addresses are given in the order of the services; then all
    /// at the same time: one that cannot be had does not keep the others away. Ends at the first that never can.
    async fn connect_all(&self, requests: &[Request]) -> Result<()> {
        let mut tries = FuturesUnordered::new();
        for request in requests {
            tries.push(self.connect(request));
            if let Ok(Some(result)) = timeout(ONE_BY_ONE, tries.next()).await {
                result?;
            }
        }
        tries.try_collect().await
    }

    async fn connect(&self, request: &Request) -> Result<()> {
        let mut pause = PAUSE.0;
        let mut former = self.former.get(&request.connection.id).cloned();
        loop {
            let adopted = match &former {
                Some(former) => adoption::adopted(request, former, self.liveness.as_deref()).await,
                None => None,
            };
            match self.hop.request(adopted.unwrap_or_else(|| request.clone()), Caller::within(self.timeout)).await {
                Ok(answer) => {
                    let connection = answer.connection;
                    let path: Vec<&str> = connection.path.segments.iter().map(|segment| segment.name.as_str()).collect();
                    info!("successfully connected to {}. Path: {}", connection.network_service, path.join(" -> "));
                    return Ok(());
                }
                Err(error) => {
                    warn!("failed connect to NSMgr: {error}");
                    self.context.notify.status(&error.to_string());
                    if !error.retryable() {
                        return Err(error);
                    }
                    // It is as good as down: from now on it must show that packets pass to be taken over.
                    former.iter_mut().for_each(|former| former.state = State::Down);
                }
            }
            sleep(pause.mul_f64(rand::random_range(0.7..1.0))).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// What could not be closed in time ends by its expiry: the client has done its part.
    async fn close_all(&self, requests: Vec<Request>) {
        let close = |request: Request| self.hop.close(request.connection, Files::default(), Caller::within(self.timeout));
        for error in join_all(requests.into_iter().map(close)).await.into_iter().filter_map(Result::err) {
            warn!(%error, "not closed everywhere in time; what is left ends with its token");
        }
    }
}
