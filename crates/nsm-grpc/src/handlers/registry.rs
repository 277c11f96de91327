//! Register, Find and Unregister, of services and of endpoints.

use super::{Call, answer};
use crate::{
    drain::Drain,
    limits::REGISTRATION_TOKEN_LIFE,
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
    EndpointQuery, EndpointUpdate, Files, InodeKey, NetworkService, NetworkServiceEndpoint, RegistryApi, Result, ServiceQuery,
    proto::registry as pr,
};
use nsm_identity::Source;
use std::sync::Arc;
use tonic::{Response, Status};

#[derive(Clone)]
pub(super) struct Registry {
    pub(super) api: Arc<dyn RegistryApi>,
    pub(super) source: Source,
    pub(super) drain: Drain,
}

type Messages<M> = BoxStream<'static, Result<M, Status>>;

#[tonic::async_trait]
impl NetworkServiceRegistry for Registry {
    type FindStream = Messages<pr::NetworkServiceResponse>;

    async fn register(&self, request: tonic::Request<pr::NetworkService>) -> Result<Response<pr::NetworkService>, Status> {
        let path = self.path(&request).map_err(to_status)?;
        with_path(path, self.register_service(request).await)
    }
    async fn find(&self, request: tonic::Request<pr::NetworkServiceQuery>) -> Result<Response<Self::FindStream>, Status> {
        answer(self.find_services(request).await)
    }
    async fn unregister(&self, request: tonic::Request<pr::NetworkService>) -> Result<Response<Empty>, Status> {
        let path = self.path(&request).map_err(to_status)?;
        with_path(path, self.unregister_service(request).await)
    }
}

#[tonic::async_trait]
impl NetworkServiceEndpointRegistry for Registry {
    type FindStream = Messages<pr::NetworkServiceEndpointResponse>;

    async fn register(&self, request: tonic::Request<pr::NetworkServiceEndpoint>) -> Result<Response<pr::NetworkServiceEndpoint>, Status> {
        let path = self.path(&request).map_err(to_status)?;
        with_path(path, self.register_endpoint(request).await)
    }
    async fn find(&self, request: tonic::Request<pr::NetworkServiceEndpointQuery>) -> Result<Response<Self::FindStream>, Status> {
        answer(self.find_endpoints(request).await)
    }
    async fn unregister(&self, request: tonic::Request<pr::NetworkServiceEndpoint>) -> Result<Response<Empty>, Status> {
        let path = self.path(&request).map_err(to_status)?;
        with_path(path, self.unregister_endpoint(request).await)
    }
}

impl Registry {
    /// The path of a registration as its caller wants it back, if they do.
    fn path<M>(&self, request: &tonic::Request<M>) -> Result<Option<RegistryPath>> {
        let headers: &HeaderMap = request.metadata().as_ref();
        let (Some(path), Some(link)) = (RegistryPath::read(headers)?, request.extensions().get::<Arc<Link>>()) else { return Ok(None) };
        let token = metadata::read_token(headers).map(|token| token.text).unwrap_or_default();
        let own = self.source.token(Some(&link.peer.id), REGISTRATION_TOKEN_LIFE, Some(link.peer.not_after))?;
        Ok(Some(path.answered(&token, own.text)))
    }

    async fn register_service(&self, request: tonic::Request<pr::NetworkService>) -> Result<pr::NetworkService> {
        let (message, call) = Call::read(request)?;
        let service = NetworkService::try_from(message)?;
        let (api, caller) = (self.api.clone(), call.caller());
        Ok(call.finish(&self.drain, async move { api.register_service(service, caller).await }).await?.into())
    }

    async fn unregister_service(&self, request: tonic::Request<pr::NetworkService>) -> Result<Empty> {
        let (message, call) = Call::read(request)?;
        let service = NetworkService::try_from(message)?;
        let (api, caller) = (self.api.clone(), call.caller());
        call.finish(&self.drain, async move { api.unregister_service(service, caller).await }).await?;
        Ok(Empty::default())
    }

    async fn find_services(&self, request: tonic::Request<pr::NetworkServiceQuery>) -> Result<Messages<pr::NetworkServiceResponse>> {
        let (message, call) = Call::read(request)?;
        let query = ServiceQuery::try_from(message)?;
        let watch = query.watch;
        let updates = call.within(self.api.find_services(query, call.caller())).await?;
        Ok(self.until_shutdown(watch, updates.map(|update| update.map(Into::into).map_err(to_status))))
    }

    async fn register_endpoint(&self, request: tonic::Request<pr::NetworkServiceEndpoint>) -> Result<pr::NetworkServiceEndpoint> {
        let (message, call) = Call::read(request)?;
        let files = call.collect(named::in_endpoint(&message)).await?;
        let endpoint = NetworkServiceEndpoint::try_from(message)?;
        let (api, caller) = (self.api.clone(), call.caller());
        Ok(call.finish(&self.drain, async move { api.register_endpoint(endpoint, files, caller).await }).await?.into())
    }

    async fn unregister_endpoint(&self, request: tonic::Request<pr::NetworkServiceEndpoint>) -> Result<Empty> {
        let (message, call) = Call::read(request)?;
        // Other implementations send the socket here too; it is of no use.
        if let Some(files) = &call.link.files {
            named::in_endpoint(&message).into_iter().for_each(|key| files.forget(key));
        }
        let endpoint = NetworkServiceEndpoint::try_from(message)?;
        let (api, caller) = (self.api.clone(), call.caller());
        call.finish(&self.drain, async move { api.unregister_endpoint(endpoint, caller).await }).await?;
        Ok(Empty::default())
    }

    async fn find_endpoints(
        &self,
        request: tonic::Request<pr::NetworkServiceEndpointQuery>,
    ) -> Result<Messages<pr::NetworkServiceEndpointResponse>> {
        let (message, call) = Call::read(request)?;
        let query = EndpointQuery::try_from(message)?;
        let watch = query.watch;
        let updates = call.within(self.api.find_endpoints(query, call.caller())).await?;
        let send = move |(update, files): (EndpointUpdate, Files)| {
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

fn with_path<T>(path: Option<RegistryPath>, result: Result<T>) -> Result<Response<T>, Status> {
    let mut response = answer(result)?;
    if let Some(path) = path {
        path.write(response.metadata_mut().as_mut());
    }
    Ok(response)
}
