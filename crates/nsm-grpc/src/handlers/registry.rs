//! Register, Find and Unregister, of services and of endpoints.

use super::{Call, answer};
use crate::{
    drain::Drain,
    metadata, named,
    registry_path::RegistryPath,
    rpc::{
        endpoint_registry::network_service_endpoint_registry_server::NetworkServiceEndpointRegistry,
        service_registry::network_service_registry_server::NetworkServiceRegistry,
    },
    status::to_status,
    tls::Link,
};
use buffa_types::google::protobuf::Empty;
use futures::{Stream, StreamExt, stream::BoxStream};
use http::HeaderMap;
use nsm_api::{
    Caller, EndpointQuery, EndpointUpdate, Error, Files, InodeKey, NetworkService, NetworkServiceEndpoint, RegistryApi, Result,
    ServiceQuery, ServiceUpdate, Trail, proto::registry as pr,
};
use nsm_identity::Source;
use std::{sync::Arc, time::Duration};
use tonic::{Response, Status};

#[derive(Clone)]
pub(super) struct Registry {
    pub(super) api: Arc<dyn RegistryApi>,
    pub(super) source: Source,
    /// How long the tokens live with which registrations are answered and passed on.
    pub(super) max_token_life: Duration,
    pub(super) drain: Drain,
}

type Messages<M> = BoxStream<'static, Result<M, Status>>;

#[tonic::async_trait]
impl NetworkServiceRegistry for Registry {
    type FindStream = Messages<pr::NetworkServiceResponse>;

    async fn register(&self, request: tonic::Request<pr::NetworkService>) -> Result<Response<pr::NetworkService>, Status> {
        self.register_service(request).await.map_err(to_status)
    }
    async fn find(&self, request: tonic::Request<pr::NetworkServiceQuery>) -> Result<Response<Self::FindStream>, Status> {
        answer(self.find_services(request).await)
    }
    async fn unregister(&self, request: tonic::Request<pr::NetworkService>) -> Result<Response<Empty>, Status> {
        self.unregister_service(request).await.map_err(to_status)
    }
}

#[tonic::async_trait]
impl NetworkServiceEndpointRegistry for Registry {
    type FindStream = Messages<pr::NetworkServiceEndpointResponse>;

    async fn register(&self, request: tonic::Request<pr::NetworkServiceEndpoint>) -> Result<Response<pr::NetworkServiceEndpoint>, Status> {
        self.register_endpoint(request).await.map_err(to_status)
    }
    async fn find(&self, request: tonic::Request<pr::NetworkServiceEndpointQuery>) -> Result<Response<Self::FindStream>, Status> {
        answer(self.find_endpoints(request).await)
    }
    async fn unregister(&self, request: tonic::Request<pr::NetworkServiceEndpoint>) -> Result<Response<Empty>, Status> {
        self.unregister_endpoint(request).await.map_err(to_status)
    }
}

impl Registry {
    /// The way that a registration has come, with this process at its end.
    fn way<M>(&self, request: &tonic::Request<M>) -> Result<Way> {
        let headers: &HeaderMap = request.metadata().as_ref();
        let asked = RegistryPath::read(headers)?;
        let link = request.extensions().get::<Arc<Link>>().ok_or_else(|| Error::internal("registration", "its connection is unknown"))?;
        let token = metadata::read_token(headers).map(|token| token.text).unwrap_or_default();
        let own = self.source.token(Some(&link.peer.id), self.max_token_life, Some(link.peer.not_after))?;
        let wanted = asked.is_some();
        let path = asked.unwrap_or_default().entered(&token, own.text);
        Ok(Way { trail: Trail::new(path.tokens().to_vec()), back: wanted.then_some(path) })
    }

    async fn register_service(&self, request: tonic::Request<pr::NetworkService>) -> Result<Response<pr::NetworkService>> {
        let way = self.way(&request)?;
        let (message, call) = Call::read(request)?;
        let service = NetworkService::try_from(message)?;
        let (api, caller) = (self.api.clone(), way.caller(&call));
        Ok(way.answer(call.finish(&self.drain, async move { api.register_service(service, caller).await }).await?.into()))
    }

    async fn unregister_service(&self, request: tonic::Request<pr::NetworkService>) -> Result<Response<Empty>> {
        let way = self.way(&request)?;
        let (message, call) = Call::read(request)?;
        let service = NetworkService::try_from(message)?;
        let (api, caller) = (self.api.clone(), way.caller(&call));
        call.finish(&self.drain, async move { api.unregister_service(service, caller).await }).await?;
        Ok(way.answer(Empty::default()))
    }

    async fn find_services(&self, request: tonic::Request<pr::NetworkServiceQuery>) -> Result<Messages<pr::NetworkServiceResponse>> {
        let (message, call) = Call::read(request)?;
        let query = ServiceQuery::try_from(message)?;
        let watch = query.watch;
        let share = self.drain.stream(&call.link.peer.id)?;
        let updates = call.within(self.api.find_services(query, call.caller())).await?;
        let send = move |update: Result<ServiceUpdate>| {
            let _held = &share;
            update.map(Into::into).map_err(to_status)
        };
        Ok(self.until_shutdown(watch, updates.map(send)))
    }

    async fn register_endpoint(&self, request: tonic::Request<pr::NetworkServiceEndpoint>) -> Result<Response<pr::NetworkServiceEndpoint>> {
        let way = self.way(&request)?;
        let (message, call) = Call::read(request)?;
        let files = call.collect(named::in_endpoint(&message)).await?;
        let endpoint = NetworkServiceEndpoint::try_from(message)?;
        let (api, caller) = (self.api.clone(), way.caller(&call));
        Ok(way.answer(call.finish(&self.drain, async move { api.register_endpoint(endpoint, files, caller).await }).await?.into()))
    }

    async fn unregister_endpoint(&self, request: tonic::Request<pr::NetworkServiceEndpoint>) -> Result<Response<Empty>> {
        let way = self.way(&request)?;
        let (message, call) = Call::read(request)?;
        // Other implementations send the socket here too; it is of no use.
        if let Some(files) = &call.link.files {
            named::in_endpoint(&message).into_iter().for_each(|key| files.forget(key));
        }
        let endpoint = NetworkServiceEndpoint::try_from(message)?;
        let (api, caller) = (self.api.clone(), way.caller(&call));
        call.finish(&self.drain, async move { api.unregister_endpoint(endpoint, caller).await }).await?;
        Ok(way.answer(Empty::default()))
    }

    async fn find_endpoints(
        &self,
        request: tonic::Request<pr::NetworkServiceEndpointQuery>,
    ) -> Result<Messages<pr::NetworkServiceEndpointResponse>> {
        let (message, call) = Call::read(request)?;
        let query = EndpointQuery::try_from(message)?;
        let watch = query.watch;
        let share = self.drain.stream(&call.link.peer.id)?;
        let updates = call.within(self.api.find_endpoints(query, call.caller())).await?;
        let send = move |(update, files): (EndpointUpdate, Files)| {
            let _held = &share;
            call.attach(InodeKey::parse(&update.endpoint.url).and_then(|key| files.get(key)))?;
            Ok(update.into())
        };
        Ok(self.until_shutdown(watch, updates.map(move |update| update.and_then(&send).map_err(to_status))))
    }

    /// A watch ends with the server. A list that is not a watch must not be cut short: that would look complete.
    fn until_shutdown<M: 'static>(&self, watch: bool, messages: impl Stream<Item = Result<M, Status>> + Send + 'static) -> Messages<M> {
        if !watch {
            return messages.boxed();
        }
        let drain = self.drain.clone();
        messages.take_until(async move { drain.closing().await }).boxed()
    }
}

/// How a registration came, and what of it goes back to its caller.
struct Way {
    trail: Trail,
    /// `None` when the caller sent no path, and so wants none back.
    back: Option<RegistryPath>,
}

impl Way {
    fn caller(&self, call: &Call) -> Caller {
        Caller { trail: self.trail.clone(), ..call.caller() }
    }

    /// The answer with the path: ours, or that of the process behind us, which begins with ours.
    fn answer<T>(self, message: T) -> Response<T> {
        let mut response = Response::new(message);
        if let Some(path) = self.back {
            let path = match self.trail.answered() {
                Some(end) => path.answered(end.tokens.clone()),
                None => path,
            };
            path.write(response.metadata_mut().as_mut());
        }
        response
    }
}
