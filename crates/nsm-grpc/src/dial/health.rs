//! Asks a peer whether it serves.

use super::channel::{Channel, Outgoing};
use crate::rpc::{HealthCheckRequest, ServingStatus, health_service::health_client::HealthClient};
use nsm_api::{Caller, Error, Files, Kind, Result};
use std::time::Duration;

pub(super) async fn check(channel: Channel, service: &str, timeout: Duration) -> Result<()> {
    let call = Outgoing::new(&Caller::within(timeout), Files::default());
    let message = HealthCheckRequest { service: service.to_owned(), ..Default::default() };
    let mut client = HealthClient::with_origin(channel.clone(), channel.origin());
    let response = channel.within(call.deadline, client.check(call.wrap(message))).await?.into_inner();
    if response.status == ServingStatus::SERVING {
        return Ok(());
    }
    let reason = format!("does not serve {service:?} now");
    Err(Error::new(Kind::Unavailable, format!("peer {}", channel.peer()), reason, "see the log of that process"))
}
