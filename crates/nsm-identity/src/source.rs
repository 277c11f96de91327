//! The SVID of this process, always current.

use crate::{
    diagnosis,
    jwt::{Signer, unix_seconds},
    socket,
};
use arc_swap::ArcSwap;
use nsm_api::{Error, Kind, Result, SpiffeId, Target};
use rustls::{ClientConfig, ServerConfig};
use spiffe::{X509Source, X509Svid};
use spiffe_rustls::{TlsStatus, authorizer};
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Waits between attempts to reach the Workload API, first and longest. The longest is short because an agent
/// that is back must be noticed within a second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(800));
/// How long [`Source::ready`] waits for a new SVID to be taken into use.
const ROTATION_BOUND: Duration = Duration::from_secs(1);
/// The protocol that every peer offers.
const ALPN: [&[u8]; 1] = [b"h2"];

/// A signed token of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The JWT.
    pub text: String,
    /// Until when to call it good: never after the token's own end, in whole seconds.
    pub expires: SystemTime,
    /// The leaf certificate, as DER, whose key signed it. Peers verify it with the certificate that they were shown.
    pub certificate: Arc<[u8]>,
}

/// Who this process is, and the means to prove it. Cheap to clone.
///
/// The SVID and the trusted bundles follow the Workload API without a restart. When the API goes away, what it
/// gave last stays in use until it expires.
///
/// **Dialers try a failed handshake once more**, after [`Source::ready`]. While a new SVID is taken into use
/// (well under a millisecond, on either side) handshakes fail on purpose; the second one does not.
#[derive(Clone)]
pub struct Source(Arc<Inner>);

struct Inner {
    x509: X509Source,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    status: [TlsStatus; 2],
    current: ArcSwap<Current>,
}

/// The SVID as used last, prepared for signing.
struct Current {
    svid: Arc<X509Svid>,
    signer: Signer,
}

impl Current {
    fn new(svid: Arc<X509Svid>) -> Result<Current> {
        let signer = Signer::new(svid.leaf().as_bytes(), svid.private_key().as_bytes())?;
        Ok(Current { svid, signer })
    }
}

impl Source {
    /// Asks the Workload API at `endpoint` (`unix:///path`) for the identity of this process and waits for it,
    /// at most for `timeout`. Follows every change from then on.
    pub async fn connect(endpoint: &str, timeout: Duration) -> Result<Source> {
        install_crypto_provider();
        if endpoint.is_empty() {
            return Err(Error::invalid("Workload API", "no socket is named", "set SPIFFE_ENDPOINT_SOCKET to unix:///path"));
        }
        let build = X509Source::builder().endpoint(endpoint).reconnect_backoff(BACKOFF.0, BACKOFF.1).build();
        let given = tokio::time::timeout(timeout, build);
        let x509 = tokio::select! {
            given = given => given,
            error = diagnosis::unusable(endpoint) => return Err(error),
        };
        let x509 = match x509 {
            Ok(Ok(x509)) => x509,
            Ok(Err(error)) => return Err(unavailable(endpoint, &error.to_string())),
            Err(_) => return Err(unavailable(endpoint, &format!("it gave no identity within {timeout:?}"))),
        };
        Source::new(x509).map_err(|error| match error.kind {
            Kind::Unavailable => unavailable(endpoint, &error.reason),
            _ => error,
        })
    }

    fn new(x509: X509Source) -> Result<Source> {
        let failed = |error: spiffe_rustls::Error| Error::new(Kind::Unavailable, "TLS", error.to_string(), "");
        let svid = x509.svid().map_err(|error| Error::new(Kind::Unavailable, "own SVID", error.to_string(), ""))?;
        let server = spiffe_rustls::mtls_server(x509.clone()).authorize(authorizer::any()).with_alpn_protocols(ALPN);
        let client = spiffe_rustls::mtls_client(x509.clone()).authorize(authorizer::any()).with_alpn_protocols(ALPN);
        let (server, server_status) = server.build_with_status().map_err(failed)?;
        let (client, client_status) = client.build_with_status().map_err(failed)?;
        Ok(Source(Arc::new(Inner {
            x509,
            server: Arc::new(server),
            client: Arc::new(client),
            status: [server_status, client_status],
            current: ArcSwap::from_pointee(Current::new(svid)?),
        })))
    }

    /// Who this process is.
    pub fn id(&self) -> SpiffeId {
        // Without a usable SVID the last one still says who we are; it only proves nothing any more.
        self.current().unwrap_or_else(|_| self.0.current.load_full()).signer.id.clone()
    }
    /// The leaf certificate in use, as DER. Its key signs the tokens of now.
    pub fn certificate(&self) -> Arc<[u8]> {
        self.current().unwrap_or_else(|_| self.0.current.load_full()).signer.certificate.clone()
    }
    /// Resolves when another certificate than `shown` is in use; never for `None`.
    pub async fn superseded(&self, shown: Option<&[u8]>) {
        let mut status = self.0.status[0].clone();
        let Some(shown) = shown else { return std::future::pending().await };
        while *self.certificate() == *shown {
            if status.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
    /// For accepting: the client must prove an identity of any trusted domain; ALPN `h2`; no resumption.
    pub fn server_tls(&self) -> Arc<ServerConfig> {
        self.0.server.clone()
    }
    /// For dialling: the server must prove an identity of any trusted domain, its host name does not matter; ALPN `h2`.
    pub fn client_tls(&self) -> Arc<ClientConfig> {
        self.0.client.clone()
    }
    /// Waits while a new SVID is taken into use, so that a second handshake does not fail for that reason.
    /// Returns at once almost always, and at last after a second: a handshake then tells what is wrong.
    pub async fn ready(&self) {
        for status in &self.0.status {
            let mut status = status.clone();
            let settled = async {
                let pending = |now: spiffe_rustls::TlsStatusSnapshot| now.refreshing && now.applied_revision != now.source_revision;
                while pending(status.current()) && status.changed().await.is_ok() {}
            };
            let _ = tokio::time::timeout(ROTATION_BOUND, settled).await;
        }
    }
    /// Signs a token for `audience`, the SPIFFE ID of the peer that the call goes to (`None` only where the
    /// connection has no TLS peer). It ends after `max_life`, or with our certificate if that is earlier;
    /// `expires` is also limited by `peer_not_after`, the end of the peer's certificate.
    pub fn token(&self, audience: Option<&SpiffeId>, max_life: Duration, peer_not_after: Option<SystemTime>) -> Result<Token> {
        let current = self.current()?;
        let end = SystemTime::now().checked_add(max_life).map_or(current.signer.not_after, |end| end.min(current.signer.not_after));
        let text = current.signer.sign(audience, end)?;
        let expires = peer_not_after.map_or(end, |peer| end.min(peer));
        Ok(Token {
            text,
            expires: UNIX_EPOCH + Duration::from_secs(unix_seconds(expires)),
            certificate: current.signer.certificate.clone(),
        })
    }

    fn current(&self) -> Result<Arc<Current>> {
        let svid = self.0.x509.svid().map_err(|error| {
            let fix = "check that the Workload API answers and that the clock is right";
            Error::new(Kind::Unavailable, format!("own SVID {}", self.0.current.load().signer.id), error.to_string(), fix)
        })?;
        let cached = self.0.current.load_full();
        if Arc::ptr_eq(&cached.svid, &svid) {
            return Ok(cached);
        }
        let current = Arc::new(Current::new(svid)?);
        self.0.current.store(current.clone());
        Ok(current)
    }
}

/// Makes aws-lc-rs the TLS provider of this process. May be called any number of times.
pub fn install_crypto_provider() {
    // An error means that there is one already, which is what is wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Looks at the socket itself, because that tells more than the failed call.
fn unavailable(endpoint: &str, reason: &str) -> Error {
    let found = match Target::parse(endpoint) {
        Ok(Target::Unix(path)) => socket::probe(&path).err(),
        _ => None,
    };
    let (reason, fix) = match found {
        Some(rustix::io::Errno::NOENT) => {
            ("there is no such socket", "start `nsm identity` or an agent, or correct SPIFFE_ENDPOINT_SOCKET")
        }
        Some(rustix::io::Errno::CONNREFUSED) => ("nobody listens there", "start `nsm identity` or the agent again"),
        Some(rustix::io::Errno::ACCESS) => ("this user may not open it", "let this user open the socket, or run as its owner"),
        _ => (reason, "check the log of the authority or agent that serves it"),
    };
    Error::new(Kind::Unavailable, format!("Workload API {endpoint}"), reason, fix)
}

#[cfg(test)]
mod tests;
