//! Gets a prefix from a server and keeps it, whatever becomes of the stream.

use super::Addresses;
use nsm_api::{Caller, PrefixRequest};
use nsm_grpc::PrefixClient;
use std::time::Duration;
use tokio::time::sleep;
use tracing::{info, warn};

/// Longest wait for the first answer. A server that settles after a start answers later than others.
const PATIENCE: Duration = Duration::from_secs(15);
/// Pauses between tries, doubled from the first to the last, with jitter.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Never ends: holds what the server of this number lends, and comes back at once when the stream has ended, with the
/// name of what it had; a process that has started anew begins with that of its predecessor. Meanwhile everything stays as it is: losing the control plane undoes nothing.
pub async fn lease(client: PrefixClient, server: usize, addresses: Addresses) {
    let mut pause = PAUSE.0;
    loop {
        let request = PrefixRequest::Allocate { wanted: addresses.wanted(server), excluded: vec![] };
        match client.hold(request, Caller::within(PATIENCE)).await {
            Ok(mut held) => {
                pause = PAUSE.0;
                take(&addresses, server, &held.first);
                while let Some(Ok(other)) = held.next().await {
                    take(&addresses, server, &other);
                }
                info!(server, "the stream of the prefix server has ended; coming back");
            }
            Err(error) => warn!(%error, server, "no prefix (yet)"),
        }
        sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

fn take(addresses: &Addresses, server: usize, grant: &nsm_api::PrefixGrant) {
    if addresses.current(server) != Some(grant.prefix) {
        info!(prefix = %grant.prefix, server, "prefix of this endpoint");
    }
    addresses.set(server, grant.prefix);
}
