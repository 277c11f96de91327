//! Request, Close, MonitorConnections.

use super::{Call, answer};
use crate::{
    drain::Drain,
    named,
    rpc::{monitor_connection::monitor_connection_server::MonitorConnection, network_service::network_service_server::NetworkService},
    status::to_status,
};
use buffa_types::google::protobuf::Empty;
use futures::{StreamExt, stream::BoxStream};
use nsm_api::{
    Connection, ConnectionEvent, Error, NetworkServiceApi, Request, Result, Selector,
    proto::{connection as pc, networkservice as pn},
};
use std::{panic::AssertUnwindSafe, sync::Arc};
use tonic::{Response, Status};

#[derive(Clone)]
pub(super) struct Network {
    pub(super) api: Arc<dyn NetworkServiceApi>,
    pub(super) drain: Drain,
}

#[tonic::async_trait]
impl NetworkService for Network {
    async fn request(&self, request: tonic::Request<pn::NetworkServiceRequest>) -> Result<Response<pc::Connection>, Status> {
        answer(self.on_request(request).await)
    }
    async fn close(&self, request: tonic::Request<pc::Connection>) -> Result<Response<Empty>, Status> {
        answer(self.on_close(request).await)
    }
}

#[tonic::async_trait]
impl MonitorConnection for Network {
    type MonitorConnectionsStream = BoxStream<'static, Result<pc::ConnectionEvent, Status>>;

    async fn monitor_connections(
        &self,
        request: tonic::Request<pc::MonitorScopeSelector>,
    ) -> Result<Response<Self::MonitorConnectionsStream>, Status> {
        answer(self.on_monitor(request).await)
    }
}

impl Network {
    async fn on_request(&self, request: tonic::Request<pn::NetworkServiceRequest>) -> Result<pc::Connection> {
        let (message, call) = Call::read(request)?;
        let brought = call.collect(named::in_request(&message)).await?;
        let request = Request { files: brought.clone(), ..Request::try_from(message)? };
        let (api, caller) = (self.api.clone(), call.caller());
        let answered = call.finish(&self.drain, async move { api.request(request, caller).await }).await?;
        // What the caller brought it has.
        let key = answered.connection.mechanism.as_ref().and_then(|mechanism| mechanism.inode());
        call.attach(key.filter(|key| brought.get(*key).is_none()).and_then(|key| answered.files.get(key)))?;
        Ok(answered.connection.into())
    }

    async fn on_close(&self, request: tonic::Request<pc::Connection>) -> Result<Empty> {
        let (message, call) = Call::read(request)?;
        // What is closed is what was agreed before; a file that does not come along any more must not keep a wire up.
        let files = call.present(named::in_connection(&message)).await;
        let connection = Connection::try_from(message)?;
        let (api, caller) = (self.api.clone(), call.caller());
        call.finish(&self.drain, async move { api.close(connection, files, caller).await }).await?;
        Ok(Empty::default())
    }

    async fn on_monitor(
        &self,
        request: tonic::Request<pc::MonitorScopeSelector>,
    ) -> Result<BoxStream<'static, Result<pc::ConnectionEvent, Status>>> {
        let (message, call) = Call::read(request)?;
        let share = self.drain.stream(&call.link.peer.id)?;
        let events = call.within(self.api.monitor(Selector::try_from(message)?, call.caller())).await?;
        let drain = self.drain.clone();
        let closing = async move { drain.closing().await };
        // A body that is dropped unfinished becomes a reset with CANCEL, and whoever gets that does not heal.
        let whole = AssertUnwindSafe(events).catch_unwind();
        let events = whole.map(|event| event.unwrap_or_else(|_| Err(Error::internal("monitor", "its stream panicked"))));
        let message = move |event: Result<ConnectionEvent>| {
            let _held = &share;
            event.map(Into::into).map_err(to_status)
        };
        Ok(events.map(message).take_until(closing).boxed())
    }
}
