//! A network service in user space: whoever is connected to it gets back what he sends.
//!
//! The endpoint gives each client a pair of addresses and is told about the mesh by variables, as every endpoint:
//! `NSM_CONNECT_TO` is the manager of this node, `SPIFFE_ENDPOINT_SOCKET` gives the identity. The server beside it sees
//! nothing of the mesh: clients' packets arrive at an interface in its pod.
//!
//! ```sh
//! nsm --netns blue client --network-services kernel://echo/nsm-1 &      # in one namespace, with `nsm node` running
//! cargo run -p nsm --example echo                                       # in another
//! ```

use nsm::sdk::Endpoint;
use nsm_api::{Error, Payload, Result};
use std::{process::ExitCode, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};

/// Where the service listens in its pod.
const ADDRESS: &str = "[::]:7";
/// Most callers at a time; further ones wait.
const MAX_CALLERS: usize = 64;
/// Longest call.
const CALL: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    Endpoint::new("echo").service("echo").payload(Payload::Ip).addresses("10.77.0.0/24").label("app", "echo").beside(serve).run()
}

/// Sends everything back where it came from.
async fn serve() -> Result<()> {
    let failed = |error: std::io::Error| Error::internal("the echo service", error.to_string());
    let listener = TcpListener::bind(ADDRESS).await.map_err(failed)?;
    let callers = Arc::new(Semaphore::new(MAX_CALLERS));
    loop {
        let caller = callers.clone().acquire_owned().await.map_err(|error| Error::internal("the echo service", error.to_string()))?;
        let (mut stream, _) = listener.accept().await.map_err(failed)?;
        tokio::spawn(async move {
            let (mut read, mut write) = stream.split();
            let _ = timeout(CALL, tokio::io::copy(&mut read, &mut write)).await; // whoever breaks off gets no answer
            drop(caller);
        });
    }
}
