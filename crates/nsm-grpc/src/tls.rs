//! TLS over a connected socket, and who is at the other end. Certificates and their rotation are in `nsm-identity`.

use crate::{descriptors::Descriptors, limits::TLS_HANDSHAKE_TIMEOUT, shown, socket::Socket};
use nsm_api::{Error, Kind, Result};
use nsm_identity::{Peer, Source};
use rustls::{
    CommonState,
    pki_types::{CertificateDer, ServerName},
};
use std::{io, sync::Arc};
use tokio::{io::AsyncBufReadExt, time::timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

const ALPN_H2: &[u8] = b"h2";

/// What is known of a connection: the other end as TLS proved it, and the files that come and go beside the bytes.
pub(crate) struct Link {
    pub(crate) peer: Peer,
    /// The certificate that we showed; `None` when the peer did not want to see any.
    pub(crate) shown: Option<Arc<[u8]>>,
    /// `None` where the socket cannot carry files.
    pub(crate) files: Option<Descriptors>,
}

#[cfg(not(feature = "plaintext"))]
type Secured<T> = T; // what `From` gives of itself
#[cfg(feature = "plaintext")]
type Secured<T> = crate::plain::Stream<T>;

/// Server side of the handshake, within its bound.
pub(crate) async fn accept(source: &Source, socket: Socket) -> Result<(Secured<server::TlsStream<Socket>>, Arc<Link>)> {
    #[cfg(feature = "plaintext")]
    if let Some(link) = crate::plain::link(&socket) {
        return Ok((Secured::Plain(socket), link));
    }
    let handshake = async {
        source.ready().await;
        let (config, shown) = shown::server(&source.server_tls());
        TlsAcceptor::from(config).accept(socket).await.map(|stream| (stream, shown))
    };
    let (stream, shown) = match timeout(TLS_HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(error)) => return Err(failed("a client", &error)),
        Err(_) => return Err(refused("a client", format!("no TLS handshake within {TLS_HANDSHAKE_TIMEOUT:?}"))),
    };
    let (socket, session) = stream.get_ref();
    let link = link(session, socket, shown.certificate())?;
    Ok((Secured::from(stream), link))
}

/// Client side of the handshake. Returns when the server has spoken after it, that is, accepted our certificate.
pub(crate) async fn connect(source: &Source, socket: Socket) -> Result<(Secured<client::TlsStream<Socket>>, Arc<Link>)> {
    #[cfg(feature = "plaintext")]
    if let Some(link) = crate::plain::link(&socket) {
        return Ok((Secured::Plain(socket), link));
    }
    let name = ServerName::try_from("localhost").expect("a constant name is well-formed");
    let handshake = async {
        source.ready().await;
        let (config, shown) = shown::client(&source.client_tls());
        let mut stream = TlsConnector::from(config).connect(name, socket).await?;
        // TLS 1.3 ends our side of the handshake before the server has checked our certificate. A server begins
        // with its HTTP/2 settings, so its first bytes, or an alert in their place, are sure to come.
        match stream.fill_buf().await?.len() {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the server after the TLS handshake")),
            _ => Ok((stream, shown)),
        }
    };
    let (stream, shown) = handshake.await.map_err(|error: io::Error| failed("the server", &error))?;
    let (socket, session) = stream.get_ref();
    let link = link(session, socket, shown.certificate())?;
    Ok((Secured::from(stream), link))
}

fn link(session: &CommonState, socket: &Socket, shown: Option<Arc<[u8]>>) -> Result<Arc<Link>> {
    if session.alpn_protocol() != Some(ALPN_H2) {
        return Err(refused("the peer", "does not offer ALPN protocol h2"));
    }
    let certificates: &[CertificateDer<'static>] = session.peer_certificates().unwrap_or_default();
    let peer = nsm_identity::peer(certificates).ok_or_else(|| refused("the peer", "its certificate names no SPIFFE ID"))?;
    Ok(Arc::new(Link { peer, shown, files: socket.files() }))
}

fn refused(who: &str, reason: impl Into<String>) -> Error {
    Error::new(Kind::Denied, format!("TLS with {who}"), reason, "give both processes an identity of a domain that the other trusts")
}

/// Certificates that do not convince are a refusal; anything else is a broken connection.
fn failed(who: &str, error: &io::Error) -> Error {
    use rustls::Error as Tls;
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()) {
        Some(tls @ (Tls::InvalidCertificate(_) | Tls::NoCertificatesPresented | Tls::AlertReceived(_))) => refused(who, tls.to_string()),
        _ => Error::new(Kind::Unavailable, format!("TLS with {who}"), error.to_string(), "see the log of the other process"),
    }
}
