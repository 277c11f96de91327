//! The standard health service. Who answers it serves: there is no state besides.

use crate::{
    drain::Drain,
    rpc::{HealthCheckRequest, HealthCheckResponse, ServingStatus, health_service::health_server},
};
use futures::{StreamExt, stream, stream::BoxStream};
use tonic::{Request, Response, Status};

pub(super) struct Health {
    /// Full names of the services of this process.
    pub(super) names: Vec<&'static str>,
    pub(super) drain: Drain,
}

impl Health {
    fn status(&self, name: &str) -> ServingStatus {
        if name.is_empty() || self.names.contains(&name) { ServingStatus::SERVING } else { ServingStatus::SERVICE_UNKNOWN }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into(), ..Default::default() }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match self.status(&request.get_ref().service) {
            ServingStatus::SERVING => Ok(Response::new(response(ServingStatus::SERVING))),
            _ => Err(Status::not_found("this process does not serve it")),
        }
    }

    /// Says the present status; the next change is the end of the server.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let now = stream::iter([Ok(response(self.status(&request.get_ref().service)))]);
        let drain = self.drain.clone();
        let end = stream::pending().take_until(async move { drain.closing().await });
        Ok(Response::new(now.chain(end).boxed()))
    }
}
