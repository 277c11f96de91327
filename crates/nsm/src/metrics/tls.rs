//! TLS towards collectors, from files that somebody else puts there.

use nsm_api::{Error, Kind, Result};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use std::{
    fmt::Display,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio_rustls::TlsAcceptor;
use tracing::warn;

/// Where certificates and key are, in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Our certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities of collectors, which then must show a certificate; `None`: anybody may ask.
    pub authorities: Option<PathBuf>,
    /// The files may change; each collector gets what is there when it comes.
    pub watched: bool,
}

/// The files as they were read last.
pub(super) struct Tls {
    files: TlsFiles,
    current: Mutex<Arc<ServerConfig>>,
}

impl Tls {
    pub(super) fn new(files: TlsFiles) -> Result<Tls> {
        let current = Mutex::new(Arc::new(files.read()?));
        Ok(Tls { files, current })
    }
    /// For one collector. Files that cannot be read just now are no reason to refuse it.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if self.files.watched {
            match self.files.read() {
                Ok(config) => *current = Arc::new(config),
                Err(error) => warn!(%error, "the former certificate of the metrics stays in use"),
            }
        }
        current.clone().into()
    }
}

impl TlsFiles {
    fn read(&self) -> Result<ServerConfig> {
        let certificates = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|problem| bad(&self.key, problem))?;
        let verifier = self.authorities.as_deref().map_or_else(|| Ok(Arc::new(NoClientAuth) as _), verifier)?;
        let config = ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(certificates, key);
        let mut config = config.map_err(|problem| bad(&self.certificate, problem))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// Lets in whoever has a certificate of these authorities.
fn verifier(path: &Path) -> Result<Arc<dyn ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(path)? {
        roots.add(authority).map_err(|problem| bad(path, problem))?;
    }
    WebPkiClientVerifier::builder(roots.into()).build().map_err(|problem| bad(path, problem))
}

/// At least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    match found.map_err(|problem| bad(path, problem))? {
        none if none.is_empty() => Err(bad(path, "it has no certificate")),
        found => Ok(found),
    }
}

fn bad(path: &Path, problem: impl Display) -> Error {
    let fix = "put a file in PEM there, or correct --prometheus-cert-file, --prometheus-key-file or --prometheus-ca-file";
    Error::new(Kind::Invalid, format!("file {}", path.display()), format!("is of no use for metrics over TLS: {problem}"), fix)
}
