//! Register, Find and Unregister at a registry.

use super::{
    channel::{Channel, Outgoing, named_file},
    connect::Connection as Transport,
    network::chosen,
    stream::{Length, open},
};
use crate::{
    limits::{FD_WAIT, MAX_MESSAGE_BYTES},
    named,
    registry_path::RegistryPath,
    rpc::{
        endpoint_registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient,
        service_registry::network_service_registry_client::NetworkServiceRegistryClient,
    },
};
use async_trait::async_trait;
use nsm_api::{
    Caller, EndpointQuery, EndpointUpdate, EndpointUpdates, Files, InodeKey, NetworkService, NetworkServiceEndpoint, RegistryApi, Result,
    ServiceQuery, ServiceUpdate, ServiceUpdates, TrailEnd, proto::registry as pr,
};
use std::{future::ready, sync::Arc};
use tokio::time::Instant;

pub(super) struct RegistryClient {
    channel: Channel,
    services: NetworkServiceRegistryClient<Channel>,
    endpoints: NetworkServiceEndpointRegistryClient<Channel>,
}

impl RegistryClient {
    pub(super) fn new(channel: Channel) -> RegistryClient {
        let origin = channel.origin();
        RegistryClient {
            services: NetworkServiceRegistryClient::with_origin(channel.clone(), origin.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
            endpoints: NetworkServiceEndpointRegistryClient::with_origin(channel.clone(), origin)
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
            channel,
        }
    }
}

#[async_trait]
impl RegistryApi for RegistryClient {
    async fn register_service(&self, service: NetworkService, caller: Caller) -> Result<NetworkService> {
        let call = Outgoing::new(&caller, Files::default());
        let deadline = call.deadline;
        let response = self.channel.within(deadline, self.services.clone().register(registering(call, &caller, service.into()))).await?;
        answered(&caller, &response);
        response.into_inner().try_into()
    }

    async fn unregister_service(&self, service: NetworkService, caller: Caller) -> Result<()> {
        let call = Outgoing::new(&caller, Files::default());
        self.channel.within(call.deadline, self.services.clone().unregister(registering(call, &caller, service.into()))).await?;
        Ok(())
    }

    async fn find_services(&self, query: ServiceQuery, caller: Caller) -> Result<ServiceUpdates> {
        let (mut client, length) = (self.services.clone(), length(query.watch));
        let message = pr::NetworkServiceQuery::from(query);
        let find = |call: Outgoing| async move { client.find(call.wrap(message)).await };
        open(&self.channel, length, caller, find, |update, _| ready(ServiceUpdate::try_from(update))).await
    }

    async fn register_endpoint(&self, endpoint: NetworkServiceEndpoint, files: Files, caller: Caller) -> Result<NetworkServiceEndpoint> {
        let message = pr::NetworkServiceEndpoint::from(endpoint);
        let call = Outgoing::new(&caller, chosen(named::in_endpoint(&message), &files));
        let response = self.channel.within(call.deadline, self.endpoints.clone().register(registering(call, &caller, message))).await?;
        answered(&caller, &response);
        response.into_inner().try_into()
    }

    async fn unregister_endpoint(&self, endpoint: NetworkServiceEndpoint, caller: Caller) -> Result<()> {
        let call = Outgoing::new(&caller, Files::default());
        self.channel.within(call.deadline, self.endpoints.clone().unregister(registering(call, &caller, endpoint.into()))).await?;
        Ok(())
    }

    async fn find_endpoints(&self, query: EndpointQuery, caller: Caller) -> Result<EndpointUpdates> {
        let (mut client, length) = (self.endpoints.clone(), length(query.watch));
        let message = pr::NetworkServiceEndpointQuery::from(query);
        let find = |call: Outgoing| async move { client.find(call.wrap(message)).await };
        open(&self.channel, length, caller, find, with_socket).await
    }
}

/// The call with the path of the registration.
fn registering<M>(call: Outgoing, caller: &Caller, message: M) -> tonic::Request<M> {
    let mut request = call.wrap(message);
    RegistryPath::onward(&caller.trail.tokens).write(request.metadata_mut().as_mut());
    request
}

/// Tells the caller what path came back, and from whom. A path that cannot be read is none.
fn answered<M>(caller: &Caller, response: &tonic::Response<M>) {
    let path = RegistryPath::read(response.metadata().as_ref()).ok().flatten();
    let transport = response.extensions().get::<Arc<Transport>>();
    caller.trail.answer(TrailEnd {
        tokens: path.map(|path| path.tokens().to_vec()).unwrap_or_default(),
        certificate: transport.map(|transport| transport.link.peer.certificate.clone()),
    });
}

fn length(watch: bool) -> Length {
    if watch { Length::Endless } else { Length::Bounded }
}

/// Reads an update and takes its socket, where one came along. One that did not come is missed only by who dials it.
async fn with_socket(message: pr::NetworkServiceEndpointResponse, transport: Option<Arc<Transport>>) -> Result<(EndpointUpdate, Files)> {
    let update = EndpointUpdate::try_from(message)?;
    let mut files = Files::default();
    let key = InodeKey::parse(&update.endpoint.url).filter(|_| !update.deleted);
    if let (Some(key), Some(transport)) = (key, transport) {
        match named_file(&transport, key, Instant::now() + FD_WAIT).await {
            Ok(Some(file)) => files.insert(key, file),
            Ok(None) => {}
            Err(error) => tracing::warn!(endpoint = %update.endpoint.name, %error, "an endpoint came without its socket"),
        }
    }
    Ok((update, files))
}
