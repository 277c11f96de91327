//! `GET /metrics` in the text format of Prometheus: the connections of a process and what has passed over their wires.
//!
//! Everything is asked when somebody asks, so idle wires cost nothing. Plain HTTP unless there is a certificate (`tls`): then
//! listen on loopback or on an address that only the collector reaches.

mod tls;

use crate::shutdown::Shutdown;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header::CONTENT_TYPE, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nsm_api::{Error, Kind, Result};
use nsm_hop::{
    conn::{Measured, Side},
    hop::Hop,
    kernel::Counters,
};
use std::{convert::Infallible, fmt::Write, io, net::SocketAddr, sync::Arc, time::Duration};
use tls::Tls;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
    time::timeout,
};
use tracing::{debug, info};

pub use tls::TlsFiles;

/// Collectors that are answered at the same time.
const MAX_CALLERS: usize = 8;

/// Where and how collectors are served.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// The address.
    pub address: SocketAddr,
    /// Certificate and key; `None` for plain HTTP.
    pub tls: Option<TlsFiles>,
    /// Longest wait for a collector's handshake, and again for its question.
    pub patience: Duration,
}

/// Listens, and answers until the shutdown.
pub async fn serve(metrics: Metrics, hops: Vec<Hop>, shutdown: Shutdown) -> Result<()> {
    let address = metrics.address;
    let tls = metrics.tls.map(Tls::new).transpose()?.map(Arc::new);
    let listener = TcpListener::bind(address).await.map_err(|error| {
        let fix = "choose another address with --prometheus-listen-on";
        Error::new(Kind::Unavailable, format!("metrics address {address}"), format!("cannot be listened on: {error}"), fix)
    })?;
    info!(address = %listener.local_addr().unwrap_or(address), tls = tls.is_some(), "metrics are served");
    tokio::spawn(async move {
        tokio::select! {
            () = accept(listener, (tls, metrics.patience), hops) => {}
            () = shutdown.started() => {}
        }
    });
    Ok(())
}

async fn accept(listener: TcpListener, (tls, patience): (Option<Arc<Tls>>, Duration), hops: Vec<Hop>) {
    let callers = Arc::new(Semaphore::new(MAX_CALLERS));
    loop {
        let Ok(permit) = callers.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await; // out of descriptors, most likely
            continue;
        };
        let (hops, tls) = (hops.clone(), tls.clone());
        tokio::spawn(async move {
            let talked = match tls {
                None => talk(stream, hops, patience).await,
                Some(tls) => match timeout(patience, tls.acceptor().accept(stream)).await {
                    Ok(Ok(stream)) => talk(stream, hops, patience).await,
                    Ok(Err(error)) => Err(error),
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                },
            };
            if let Err(error) = talked {
                debug!(%error, "a collector went away");
            }
            drop(permit);
        });
    }
}

/// Answers one question.
async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin + Send, hops: Vec<Hop>, patience: Duration) -> io::Result<()> {
    let answer = service_fn(move |request| answer(request, hops.clone()));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience).keep_alive(false);
    http.serve_connection(TokioIo::new(stream), answer).await.map_err(io::Error::other)
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
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    };
    use std::{collections::BTreeMap, fs, path::Path};
    use tempfile::TempDir;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    const PATIENCE: Duration = Duration::from_secs(20);

    /// An authority, its certificate in `ca.pem`, and one by it for our name in `cert.pem` and `key.pem`.
    fn certificates(dir: &Path) {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["metrics.test".into()]).unwrap().signed_by(&key, &authority).unwrap();
        fs::write(dir.join("ca.pem"), authority.pem()).unwrap();
        fs::write(dir.join("cert.pem"), certificate.pem()).unwrap();
        fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
    }
    fn files(dir: &Path, authorities: bool, watched: bool) -> TlsFiles {
        let authorities = authorities.then(|| dir.join("ca.pem"));
        TlsFiles { certificate: dir.join("cert.pem"), key: dir.join("key.pem"), authorities, watched }
    }
    async fn served(files: TlsFiles) -> SocketAddr {
        nsm_identity::install_crypto_provider();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, (Some(Arc::new(Tls::new(files).unwrap())), PATIENCE), vec![]));
        address
    }
    /// What a collector gets that trusts the authority in `dir`, and shows a certificate by it or none.
    async fn collected(address: SocketAddr, dir: &Path, own: bool) -> io::Result<String> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap()).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots);
        let config = match own {
            false => config.with_no_client_auth(),
            true => {
                let certificate = CertificateDer::from_pem_file(dir.join("cert.pem")).unwrap();
                config.with_client_auth_cert(vec![certificate], PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap()).unwrap()
            }
        };
        let name = ServerName::try_from("metrics.test").unwrap();
        let mut stream =
            tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await.unwrap()).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.map(|_| text)
    }

    /// E-23
    #[tokio::test]
    async fn with_a_certificate_metrics_are_served_over_tls_only() {
        let (dir, stranger) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        certificates(dir.path());
        certificates(stranger.path());
        let address = served(files(dir.path(), false, false)).await;
        assert!(collected(address, dir.path(), false).await.unwrap().starts_with("HTTP/1.1 200"));
        let mut plain = TcpStream::connect(address).await.unwrap();
        plain.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = vec![];
        let _ = plain.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP"), "plain HTTP is not answered");
        let strict = served(files(dir.path(), true, false)).await;
        assert!(collected(strict, dir.path(), true).await.unwrap().starts_with("HTTP/1.1 200"));
        assert!(collected(strict, dir.path(), false).await.is_err(), "a collector must show a certificate");
        fs::copy(dir.path().join("ca.pem"), stranger.path().join("ca.pem")).unwrap();
        assert!(collected(strict, stranger.path(), true).await.is_err(), "of this authority");
    }

    /// E-23, E-33
    #[tokio::test]
    async fn a_watched_certificate_may_change() {
        let dir = TempDir::new().unwrap();
        certificates(dir.path());
        let (fixed, watched) = (served(files(dir.path(), false, false)).await, served(files(dir.path(), false, true)).await);
        certificates(dir.path());
        assert!(collected(watched, dir.path(), false).await.unwrap().starts_with("HTTP/1.1 200"));
        assert!(collected(fixed, dir.path(), false).await.is_err(), "the one that was read at the start");
        fs::remove_file(dir.path().join("key.pem")).unwrap();
        assert!(collected(watched, dir.path(), false).await.is_ok(), "a key that is missing for a moment");
        let error = Tls::new(files(dir.path(), false, true)).err().unwrap();
        assert!(error.to_string().contains("key.pem"), "{error}");
    }

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
