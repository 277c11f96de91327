//! A network service in user space: whoever is connected to it gets his datagrams back.
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
use std::process::ExitCode;
use tokio::net::UdpSocket;

/// Where the service listens in its pod.
const ADDRESS: &str = "[::]:7";

fn main() -> ExitCode {
    Endpoint::new("echo").service("echo").payload(Payload::Ip).addresses("10.77.0.0/24").label("app", "echo").beside(serve).run()
}

/// Sends every datagram back where it came from.
async fn serve() -> Result<()> {
    let failed = |error: std::io::Error| Error::internal("the echo service", error.to_string());
    let socket = UdpSocket::bind(ADDRESS).await.map_err(failed)?;
    let mut buffer = vec![0; u16::MAX.into()];
    loop {
        // An error is news about an earlier answer, whose asker has gone.
        if let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..length], from).await;
        }
    }
}
