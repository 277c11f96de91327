//! `GET /metrics` in the text format of Prometheus: the connections of a process and what has passed over their wires.
//!
//! Everything is asked when somebody asks, so idle wires cost nothing. Plain HTTP: listen on loopback or on an address that
//! only the collector reaches.

use crate::shutdown::Shutdown;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header::CONTENT_TYPE, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nsm_api::{Error, Kind, Result};
use nsm_hop::{
    conn::{Measured, Side},
    hop::Hop,
    kernel::Counters,
};
use std::{convert::Infallible, fmt::Write, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::Semaphore};
use tracing::{debug, info};

/// Collectors that are answered at the same time.
const MAX_CALLERS: usize = 8;
/// Longest wait for a collector's question.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Listens, and answers until the shutdown.
pub async fn serve(address: SocketAddr, hops: Vec<Hop>, shutdown: Shutdown) -> Result<()> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        let fix = "choose another address with --prometheus-listen-on";
        Error::new(Kind::Unavailable, format!("metrics address {address}"), format!("cannot be listened on: {error}"), fix)
    })?;
    info!(address = %listener.local_addr().unwrap_or(address), "metrics are served");
    tokio::spawn(async move {
        tokio::select! {
            () = accept(listener, hops) => {}
            () = shutdown.started() => {}
        }
    });
    Ok(())
}

async fn accept(listener: TcpListener, hops: Vec<Hop>) {
    let callers = Arc::new(Semaphore::new(MAX_CALLERS));
    loop {
        let Ok(permit) = callers.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await; // out of descriptors, most likely
            continue;
        };
        let hops = hops.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |request| answer(request, hops.clone()));
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).keep_alive(false);
            if let Err(error) = http.serve_connection(TokioIo::new(stream), answer).await {
                debug!(%error, "a collector went away");
            }
            drop(permit);
        });
    }
}

async fn answer(request: Request<Incoming>, hops: Vec<Hop>) -> std::result::Result<Response<String>, Infallible> {
    let plain = |status, text: &str| {
        let mut response = Response::new(text.to_owned());
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return Ok(plain(StatusCode::NOT_FOUND, "only /metrics is here\n"));
    }
    if request.method() != Method::GET {
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"));
    }
    let mut measured = vec![];
    for hop in &hops {
        measured.push((hop.name().to_string(), hop.monitors().snapshot().len(), hop.measure().await));
    }
    let mut response = Response::new(text(&measured));
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain; version=0.0.4"));
    Ok(response)
}

/// A family of metrics: its name, what it says, and where its value is.
type Family = (&'static str, &'static str, fn(&Counters) -> u64);

const FAMILIES: [Family; 5] = [
    ("nsm_wire_received_packets_total", "Packets that the pod at this end has received.", |counters| counters.rx_packets),
    ("nsm_wire_received_bytes_total", "Bytes that the pod at this end has received.", |counters| counters.rx_bytes),
    ("nsm_wire_sent_packets_total", "Packets that the pod at this end has sent.", |counters| counters.tx_packets),
    ("nsm_wire_sent_bytes_total", "Bytes that the pod at this end has sent.", |counters| counters.tx_bytes),
    ("nsm_wire_dropped_packets_total", "Packets that the kernel has dropped at this end.", |counters| counters.drops),
];

fn text(measured: &[(String, usize, Vec<Measured>)]) -> String {
    let mut text = String::from("# HELP nsm_connections Connections that are up.\n# TYPE nsm_connections gauge\n");
    for (hop, count, _) in measured {
        let _ = writeln!(text, "nsm_connections{{hop=\"{}\"}} {count}", escaped(hop));
    }
    for (name, help, value) in FAMILIES {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
        for (hop, _, wires) in measured {
            for wire in wires {
                wire.ends.iter().for_each(|(side, counters)| sample(&mut text, name, (hop, wire, *side), value(counters)));
            }
        }
    }
    text
}

fn sample(text: &mut String, name: &str, (hop, wire, side): (&str, &Measured, Side), value: u64) {
    let endpoint = wire.endpoint.as_ref().map_or("", |endpoint| endpoint.as_str());
    let labels = [
        ("hop", hop),
        ("connection", wire.connection.as_str()),
        ("service", wire.service.as_str()),
        ("endpoint", endpoint),
        ("side", side.as_str()),
    ];
    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
    let _ = writeln!(text, "{name}{{{}}} {value}", labels.join(","));
}

/// A label's value as the format wants it: names of peers may hold anything.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nsm_api::ConnectionId;
    use std::collections::BTreeMap;

    /// E-23
    #[test]
    fn every_wire_has_a_line_in_every_family() {
        let wire = Measured {
            connection: ConnectionId::new("c\"1").unwrap(),
            service: "svc".parse().unwrap(),
            endpoint: None,
            ends: BTreeMap::from([(Side::Server, Counters { rx_bytes: 84, ..Counters::default() }), (Side::Client, Counters::default())]),
        };
        let text = text(&[("fwd".into(), 1, vec![wire])]);
        assert!(text.contains("nsm_connections{hop=\"fwd\"} 1\n"), "{text}");
        let line = "nsm_wire_received_bytes_total{hop=\"fwd\",connection=\"c\\\"1\",service=\"svc\",endpoint=\"\",side=\"server\"} 84\n";
        assert!(text.contains(line), "{text}");
        assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), 1 + 5 * 2);
    }
}
