//! Which certificate a handshake showed.
//!
//! A new SVID may come into use while a handshake is under way, or later while the connection lives. Peers verify
//! tokens with the certificate that the connection showed them, so tokens of another one must not go out on it.

use rustls::{
    ClientConfig, ServerConfig, SignatureScheme,
    client::ResolvesClientCert,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::sync::{Arc, OnceLock};

/// Chooses as its resolver does, and remembers what for one handshake.
#[derive(Debug)]
pub(crate) struct Shown<R: ?Sized> {
    certificate: OnceLock<Arc<[u8]>>,
    resolver: Arc<R>,
}

impl<R: ?Sized> Shown<R> {
    fn new(resolver: Arc<R>) -> Arc<Shown<R>> {
        Arc::new(Shown { certificate: OnceLock::new(), resolver })
    }
    /// The leaf, as DER. `None` when the peer did not want to see any.
    pub(crate) fn certificate(&self) -> Option<Arc<[u8]>> {
        self.certificate.get().cloned()
    }
    fn remember(&self, key: Option<Arc<CertifiedKey>>) -> Option<Arc<CertifiedKey>> {
        if let Some(leaf) = key.as_ref().and_then(|key| key.cert.first()) {
            self.certificate.get_or_init(|| leaf.as_ref().into());
        }
        key
    }
}

/// The same configuration, for one handshake.
pub(crate) fn client(config: &ClientConfig) -> (Arc<ClientConfig>, Arc<Shown<dyn ResolvesClientCert>>) {
    let mut config = config.clone();
    let shown = Shown::new(config.client_auth_cert_resolver.clone());
    config.client_auth_cert_resolver = Arc::new(Client(shown.clone()));
    (Arc::new(config), shown)
}

/// The same configuration, for one handshake.
pub(crate) fn server(config: &ServerConfig) -> (Arc<ServerConfig>, Arc<Shown<dyn ResolvesServerCert>>) {
    let mut config = config.clone();
    let shown = Shown::new(config.cert_resolver.clone());
    config.cert_resolver = Arc::new(Server(shown.clone()));
    (Arc::new(config), shown)
}

#[derive(Debug)]
struct Client(Arc<Shown<dyn ResolvesClientCert>>);

impl ResolvesClientCert for Client {
    fn resolve(&self, hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.remember(self.0.resolver.resolve(hints, schemes))
    }
    fn only_raw_public_keys(&self) -> bool {
        self.0.resolver.only_raw_public_keys()
    }
    fn has_certs(&self) -> bool {
        self.0.resolver.has_certs()
    }
}

#[derive(Debug)]
struct Server(Arc<Shown<dyn ResolvesServerCert>>);

impl ResolvesServerCert for Server {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.remember(self.0.resolver.resolve(hello))
    }
    fn only_raw_public_keys(&self) -> bool {
        self.0.resolver.only_raw_public_keys()
    }
}
