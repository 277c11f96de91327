//! Request, Close and Monitor at a peer.

use super::{
    channel::{Channel, Outgoing, named_file},
    connect::Connection as Transport,
    stream::Incoming,
};
use crate::{
    limits::MAX_MESSAGE_BYTES,
    named,
    rpc::{
        monitor_connection::monitor_connection_client::MonitorConnectionClient,
        network_service::network_service_client::NetworkServiceClient,
    },
};
use async_trait::async_trait;
use nsm_api::{
    Answer, Caller, Connection, ConnectionEvent, Events, Files, InodeKey, NetworkServiceApi, Request, Result, Selector,
    proto::{connection as pc, networkservice as pn},
};
use std::{collections::BTreeSet, future::ready, sync::Arc};
use tokio::time::Instant;

pub(super) struct NetworkClient {
    channel: Channel,
    calls: NetworkServiceClient<Channel>,
    monitors: MonitorConnectionClient<Channel>,
}

impl NetworkClient {
    pub(super) fn new(channel: Channel) -> NetworkClient {
        let origin = channel.origin();
        NetworkClient {
            calls: NetworkServiceClient::with_origin(channel.clone(), origin.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            monitors: MonitorConnectionClient::with_origin(channel.clone(), origin).max_decoding_message_size(MAX_MESSAGE_BYTES),
            channel,
        }
    }
}

#[async_trait]
impl NetworkServiceApi for NetworkClient {
    async fn request(&self, request: Request, caller: Caller) -> Result<Answer> {
        let ours = request.files.clone();
        let message = pn::NetworkServiceRequest::from(request);
        let call = Outgoing::new(&caller, chosen(named::in_request(&message), &ours));
        let deadline = call.deadline;
        let response = self.channel.within(deadline, self.calls.clone().request(call.wrap(message))).await?;
        let transport = response.extensions().get::<Arc<Transport>>().cloned();
        let message = response.into_inner();
        let files = answered(&message, &ours, transport.as_deref(), deadline).await?;
        let certificate = transport.map(|transport| transport.link.peer.certificate.clone());
        Ok(Answer { connection: Connection::try_from(message)?, files, certificate })
    }

    async fn close(&self, connection: Connection, files: Files, caller: Caller) -> Result<()> {
        let message = pc::Connection::from(connection);
        let call = Outgoing::new(&caller, chosen(named::in_connection(&message), &files));
        self.channel.within(call.deadline, self.calls.clone().close(call.wrap(message))).await?;
        Ok(())
    }

    async fn monitor(&self, selector: Selector, caller: Caller) -> Result<Events> {
        let call = Outgoing::endless(&caller);
        let message = pc::MonitorScopeSelector::from(selector);
        let response = self.channel.within(call.deadline, self.monitors.clone().monitor_connections(call.wrap(message))).await?;
        Ok(Incoming::new(&self.channel, response, None).read(|event, _| ready(ConnectionEvent::try_from(event))))
    }
}

/// Those of `files` that the message names. Others would lie at the peer unclaimed.
pub(super) fn chosen(keys: BTreeSet<InodeKey>, files: &Files) -> Files {
    let mut chosen = Files::default();
    for key in keys {
        if let Some(file) = files.get(key) {
            chosen.insert(key, file.clone());
        }
    }
    chosen
}

/// The files that the answer names: ours where it names one of ours, else one that the peer sends along.
async fn answered(message: &pc::Connection, ours: &Files, transport: Option<&Transport>, deadline: Instant) -> Result<Files> {
    let mut files = Files::default();
    for key in named::in_connection(message) {
        if let Some(file) = ours.get(key) {
            files.insert(key, file.clone());
            // Other implementations send it back; it must not stay open for as long as the connection.
            if let Some(transport) = transport.and_then(|transport| transport.link.files.as_ref()) {
                transport.forget(key);
            }
        } else if let Some(transport) = transport
            && let Some(file) = named_file(transport, key, deadline).await?
        {
            files.insert(key, file);
        }
    }
    Ok(files)
}
