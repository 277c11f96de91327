//! What the server does with a call: read, collect its files, hand it to the trait, answer. No decisions here.
//!
//! A handler's future is dropped when its caller leaves. Calls that change something therefore run in a task of
//! their own, and the handler only awaits the answer.

mod health;
mod ipam;
mod network;
mod registry;

use crate::{
    drain::Drain,
    limits::{FD_WAIT, MAX_MESSAGE_BYTES},
    metadata,
    rpc::{
        endpoint_registry::network_service_endpoint_registry_server as endpoint_registry, health_service::health_server as health_service,
        ipam::i_p_a_m_server as ipam_server, monitor_connection::monitor_connection_server as monitor,
        network_service::network_service_server as network_service, service_registry::network_service_registry_server as service_registry,
    },
    status::to_status,
    tls::Link,
};
use nsm_api::{
    Caller, Error, Files, InodeKey, Kind, NetworkServiceApi, PrefixApi, RegistryApi, Result, Trail, limits::MAX_FILES_PER_REQUEST,
};
use nsm_identity::Source;
use std::{
    collections::BTreeSet,
    future::Future,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time::{Instant, timeout_at};
use tonic::{Response, Status, service::Routes};
use tracing::Instrument;

/// What a process answers.
pub(crate) type Apis = (Option<Arc<dyn NetworkServiceApi>>, Option<Arc<dyn RegistryApi>>, Option<Arc<dyn PrefixApi>>);

/// All services of a process, and the health service about them.
pub(crate) fn routes((network, registry, prefixes): Apis, (source, max_token_life): (&Source, Duration), drain: &Drain) -> Routes {
    let mut names = vec![];
    let mut routes = Routes::builder();
    if let Some(api) = network {
        let handler = network::Network { api, drain: drain.clone() };
        names.extend([network_service::SERVICE_NAME, monitor::SERVICE_NAME]);
        routes.add_service(network_service::NetworkServiceServer::new(handler.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES));
        routes.add_service(monitor::MonitorConnectionServer::new(handler).max_decoding_message_size(MAX_MESSAGE_BYTES));
    }
    if let Some(api) = registry {
        let handler = registry::Registry { api, source: source.clone(), max_token_life, drain: drain.clone() };
        names.extend([service_registry::SERVICE_NAME, endpoint_registry::SERVICE_NAME]);
        routes
            .add_service(service_registry::NetworkServiceRegistryServer::new(handler.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES));
        routes.add_service(
            endpoint_registry::NetworkServiceEndpointRegistryServer::new(handler).max_decoding_message_size(MAX_MESSAGE_BYTES),
        );
    }
    if let Some(api) = prefixes {
        names.push(ipam_server::SERVICE_NAME);
        let handler = ipam::Prefixes { api, drain: drain.clone() };
        routes.add_service(ipam_server::IPAMServer::new(handler).max_decoding_message_size(MAX_MESSAGE_BYTES));
    }
    let handler = health::Health { names, drain: drain.clone() };
    routes.add_service(health_service::HealthServer::new(handler).max_decoding_message_size(MAX_MESSAGE_BYTES));
    routes.routes().prepare()
}

/// What is known of a call besides its message.
struct Call {
    link: Arc<Link>,
    caller: Caller,
    deadline: Option<Instant>,
}

impl Call {
    /// Takes a call apart.
    fn read<M>(request: tonic::Request<M>) -> Result<(M, Call)> {
        let (metadata, extensions, message) = request.into_parts();
        let link = extensions.get::<Arc<Link>>().cloned().ok_or_else(|| Error::internal("call", "its connection is unknown"))?;
        let headers = metadata.into_headers();
        let token = metadata::read_token(&headers);
        if token.is_none() {
            tracing::debug!(peer = %link.peer.id, "a call brings no readable token");
        }
        let (token, token_expires) = match token {
            Some(token) => {
                let end = link.peer.token_end(&token.text, token.expires, SystemTime::now());
                (token.text, Some(end))
            }
            None => Default::default(),
        };
        #[cfg(feature = "plaintext")]
        let token_expires = if crate::plain::is_plain(&link) { Some(crate::plain::end()) } else { token_expires };
        let timeout = metadata::read_timeout(&headers);
        let (identity, certificate) = (Some(link.peer.id.clone()), Some(link.peer.certificate.clone()));
        let caller = Caller { identity, certificate, token, token_expires, timeout, trail: Trail::default() };
        Ok((message, Call { link, caller, deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)) }))
    }

    /// The caller, with what is left of its timeout.
    fn caller(&self) -> Caller {
        let timeout = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        Caller { timeout, ..self.caller.clone() }
    }

    /// The files that the message names. None where the transport cannot carry any: then the names mean nothing here.
    async fn collect(&self, keys: BTreeSet<InodeKey>) -> Result<Files> {
        let mut files = Files::default();
        let Some(transport) = &self.link.files else { return Ok(files) };
        if keys.len() > MAX_FILES_PER_REQUEST {
            let reason = format!("names {} files, the limit is {MAX_FILES_PER_REQUEST}", keys.len());
            return Err(Error::invalid("message", reason, "name fewer"));
        }
        let deadline = self.bound(Instant::now() + FD_WAIT);
        for key in keys {
            let file = transport.take(key, deadline).await.ok_or_else(|| missing(key))?;
            files.insert(key, file);
        }
        Ok(files)
    }

    /// Those of the files that have come by now. For a call that can do without: its caller may have lost them.
    async fn present(&self, keys: BTreeSet<InodeKey>) -> Files {
        let mut files = Files::default();
        let Some(transport) = &self.link.files else { return files };
        for key in keys.into_iter().take(MAX_FILES_PER_REQUEST) {
            if let Some(file) = transport.take(key, Instant::now()).await {
                files.insert(key, file);
            }
        }
        files
    }

    /// Queues files to leave before the answer does.
    fn attach<'a>(&self, files: impl IntoIterator<Item = &'a Arc<OwnedFd>>) -> Result<()> {
        self.link.files.as_ref().map_or(Ok(()), |transport| transport.queue(files))
    }

    /// Runs `work` to its end, whether or not the caller stays to hear of it.
    async fn finish<T: Send + 'static>(&self, drain: &Drain, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        let permit = drain.permit(&self.link.peer.id)?;
        let work = async move {
            let result = work.await;
            drop(permit);
            result
        };
        let task = tokio::spawn(work.in_current_span());
        self.within(async { task.await.unwrap_or_else(|error| Err(Error::internal("call", error.to_string()))) }).await
    }

    /// The answer, or the end of the caller's patience.
    async fn within<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        match self.deadline {
            None => work.await,
            Some(deadline) => timeout_at(deadline, work).await.unwrap_or_else(|_| Err(too_late())),
        }
    }

    fn bound(&self, deadline: Instant) -> Instant {
        self.deadline.map_or(deadline, |own| own.min(deadline))
    }
}

fn missing(key: InodeKey) -> Error {
    let reason = format!("a message names it, but it did not arrive within {FD_WAIT:?}");
    Error::new(Kind::NotFound, format!("descriptor {key}"), reason, "send the open file on the unix socket that carries the message")
}

fn too_late() -> Error {
    Error::new(Kind::Timeout, "call", "the deadline of its caller passed", "ask again, with a longer timeout if this repeats")
}

fn answer<T>(result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(to_status)
}
