use super::*;
use crate::{
    Authority, Peer, peer,
    testing::{Dir, Running, Scripted, bounded, svid, verify},
};
use rustls::{ProtocolVersion, pki_types::CertificateDer};
use std::io;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const HOUR: Duration = Duration::from_secs(3600);
const BOUND: Duration = Duration::from_secs(20);

/// What both sides of a handshake saw of each other.
#[derive(Debug)]
struct Seen {
    server: CertificateDer<'static>,
    client: CertificateDer<'static>,
    version: Option<ProtocolVersion>,
    alpn: Option<Vec<u8>>,
}

async fn shake<S: AsyncRead + AsyncWrite + Unpin>(server: Arc<ServerConfig>, client: Arc<ClientConfig>, ends: (S, S)) -> io::Result<Seen> {
    let accept = TlsAcceptor::from(server).accept(ends.0);
    let dial = TlsConnector::from(client).connect("nsm".try_into().unwrap(), ends.1);
    let (accepted, dialled) = bounded(async { tokio::join!(accept, dial) }).await;
    let (accepted, dialled) = (accepted?, dialled?);
    let leaf = |certificates: Option<&[CertificateDer<'static>]>| certificates.unwrap()[0].clone();
    Ok(Seen {
        client: leaf(accepted.get_ref().1.peer_certificates()),
        server: leaf(dialled.get_ref().1.peer_certificates()),
        version: accepted.get_ref().1.protocol_version(),
        alpn: dialled.get_ref().1.alpn_protocol().map(<[u8]>::to_vec),
    })
}

async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (accepted, dialled) = tokio::join!(listener.accept(), TcpStream::connect(address));
    (accepted.unwrap().0, dialled.unwrap())
}

async fn refused(server: &Source, client: Arc<ClientConfig>, why: &str) {
    let error = shake(server.server_tls(), client, UnixStream::pair().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
}

/// This process as a client that believes any server, so that the server must be the one that refuses.
fn reckless(source: &Source) -> Arc<ClientConfig> {
    let mut client = (*source.client_tls()).clone();
    client.dangerous().set_certificate_verifier(trusting::verifier());
    Arc::new(client)
}

/// As dialers do: once more if the first handshake met a rotation.
async fn shake_twice(server: &Source, client: &Source) -> Seen {
    for _ in 0..2 {
        server.ready().await;
        client.ready().await;
        if let Ok(seen) = shake(server.server_tls(), client.client_tls(), UnixStream::pair().unwrap()).await {
            return seen;
        }
    }
    panic!("two handshakes in a row failed");
}

#[tokio::test]
async fn both_sides_prove_who_they_are() {
    let dir = Dir::new();
    let running = Running::workload(&dir, HOUR);
    let source = running.source().await;
    assert_eq!(source.id().as_str(), "spiffe://example.org/workload/w");
    source.ready().await;
    let over_tcp = shake(source.server_tls(), source.client_tls(), tcp().await).await.unwrap();
    source.ready().await;
    let over_unix = shake(source.server_tls(), source.client_tls(), UnixStream::pair().unwrap()).await.unwrap();
    for seen in [over_tcp, over_unix] {
        assert_eq!((seen.version, seen.alpn.as_deref()), (Some(ProtocolVersion::TLSv1_3), Some(&b"h2"[..])));
        for leaf in [seen.server, seen.client] {
            let Peer { id, not_after, .. } = peer(&[leaf]).unwrap();
            assert_eq!(id, source.id());
            assert!(not_after > SystemTime::now() + HOUR - Duration::from_secs(30));
        }
    }
    let versions = [&rustls::version::TLS12];
    let mut old = ClientConfig::builder_with_protocol_versions(&versions)
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    old.client_auth_cert_resolver = source.client_tls().client_auth_cert_resolver.clone();
    old.alpn_protocols = vec![b"h2".to_vec()];
    old.dangerous().set_certificate_verifier(trusting::verifier());
    let seen = shake(source.server_tls(), Arc::new(old), UnixStream::pair().unwrap()).await.unwrap();
    assert_eq!(seen.version, Some(ProtocolVersion::TLSv1_2));
    running.stop().await;
}

#[tokio::test]
async fn strangers_and_the_nameless_are_refused() {
    let (dir, foreign_dir) = (Dir::new(), Dir::new());
    let (running, foreign) = (Running::workload(&dir, HOUR), Running::of(Authority::new("evil.org").unwrap(), &foreign_dir));
    let (source, stranger) = (running.source().await, foreign.source().await);
    refused(&source, reckless(&stranger), "no bundle for trust domain evil.org").await;
    // Here the client refuses, and the server hears of it.
    refused(&stranger, source.client_tls(), "fatal alert").await;

    let mut nameless = ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    nameless.dangerous().set_certificate_verifier(trusting::verifier());
    refused(&source, Arc::new(nameless), "no certificates").await;

    // The same name from another root is a stranger too.
    let twin_dir = Dir::new();
    let twin = Running::workload(&twin_dir, HOUR);
    refused(&source, reckless(&twin.source().await), "invalid peer certificate").await;
    for running in [running, foreign, twin] {
        running.stop().await;
    }
}

#[tokio::test]
async fn new_handshakes_use_the_new_svid() {
    let dir = Dir::new();
    let running = Running::workload(&dir, Duration::from_secs(4));
    let source = running.source().await;
    let first = shake_twice(&source, &source).await;
    let mut updates = source.0.x509.updated();
    bounded(async {
        loop {
            let seen = shake_twice(&source, &source).await;
            if seen.server != first.server && seen.client != first.client {
                return;
            }
            updates.changed().await.unwrap();
        }
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn an_authority_that_restarts_is_found_again() {
    let (dir, keys) = (Dir::new(), Dir::new());
    let authority = || Authority::load_or_create(keys.root(), "example.org").unwrap();
    let running = Running::of(authority(), &dir);
    let source = running.source().await;
    let first = shake_twice(&source, &source).await;
    running.stop().await;
    shake_twice(&source, &source).await;
    let running = Running::of(authority(), &dir);
    let mut updates = source.0.x509.updated();
    bounded(async {
        while shake_twice(&source, &source).await.server == first.server {
            updates.changed().await.unwrap();
        }
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn a_token_ends_with_the_earliest_of_three() {
    let dir = Dir::new();
    let running = Running::workload(&dir, HOUR);
    let source = running.source().await;
    let bob = SpiffeId::new("spiffe://other.org/bob").unwrap();
    let own = source.0.x509.svid().unwrap();
    let own: CertificateDer<'_> = own.leaf().as_bytes().into();
    let own_end = peer(&[own]).unwrap().not_after;
    let claims = |token: &Token| {
        let svid = source.0.x509.svid().unwrap();
        verify(&token.text, &svid.leaf().as_bytes().into()).1
    };
    let minute = Duration::from_secs(60);

    let before = SystemTime::now();
    let token = source.token(Some(&bob), minute, None).unwrap();
    let end = unix_seconds(token.expires);
    assert!((unix_seconds(before + minute)..=unix_seconds(SystemTime::now() + minute)).contains(&end));
    assert_eq!(claims(&token), serde_json::json!({"sub": source.id(), "aud": [bob], "exp": end}));

    let token = source.token(Some(&bob), minute, Some(before + Duration::from_secs(5))).unwrap();
    assert_eq!(unix_seconds(token.expires), unix_seconds(before + Duration::from_secs(5)));
    assert!(
        claims(&token)["exp"].as_u64().unwrap() >= unix_seconds(before + minute),
        "the peer's end limits only what is said beside the token"
    );

    for life in [HOUR * 24, Duration::MAX] {
        let token = source.token(None, life, None).unwrap();
        let end = claims(&token)["exp"].as_u64().unwrap();
        assert!(end == unix_seconds(token.expires) && token.expires >= own_end && end <= unix_seconds(own_end) + 30, "{end}");
        assert_eq!(claims(&token).get("aud"), None);
    }
    running.stop().await;
}

async fn scripted(dir: &Dir, name: &str, first: crate::pb::X509svidResponse) -> (Scripted, Source) {
    let api = Scripted::start(dir.path(name), first);
    let source = Source::connect(&api.endpoint(), BOUND).await.unwrap();
    (api, source)
}

/// E4: a domain is trusted while the Workload API names it, and only then.
#[tokio::test]
async fn a_federated_domain_is_trusted_and_an_unknown_one_is_not() {
    let dir = Dir::new();
    let [home, abroad, nowhere] = ["home.org", "abroad.org", "nowhere.org"].map(|domain| Authority::new(domain).unwrap());
    let (api, source) = scripted(&dir, "a", svid(&home, "a", &[&abroad])).await;
    let (_abroad, friend) = scripted(&dir, "b", svid(&abroad, "b", &[&home])).await;
    let (_nowhere, stranger) = scripted(&dir, "c", svid(&nowhere, "c", &[&home])).await;
    for (server, client) in [(&source, &friend), (&friend, &source)] {
        let seen = shake_twice(server, client).await;
        assert_eq!(peer(&[seen.client]).unwrap().id, client.id());
        assert_eq!(peer(&[seen.server]).unwrap().id, server.id());
    }
    refused(&source, stranger.client_tls(), "no bundle for trust domain nowhere.org").await;
    api.say(svid(&home, "a", &[]));
    bounded(async {
        while shake(source.server_tls(), friend.client_tls(), UnixStream::pair().unwrap()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    source.ready().await;
    refused(&source, friend.client_tls(), "no bundle for trust domain abroad.org").await;
}

/// An SVID whose key is of another kind, signed by nobody in particular.
fn other_key(algorithm: &'static rcgen::SignatureAlgorithm) -> crate::pb::X509svidResponse {
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.subject_alt_names = vec![rcgen::SanType::URI("spiffe://home.org/a".try_into().unwrap())];
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    let leaf = params.self_signed(&key).unwrap();
    let mut response = svid(&Authority::new("home.org").unwrap(), "a", &[]);
    response.svids[0].x509_svid = leaf.der().to_vec();
    response.svids[0].x509_svid_key = key.serialize_der();
    response
}

/// E5
#[tokio::test]
async fn an_identity_that_cannot_sign_tokens_is_refused_in_one_sentence() {
    for (number, algorithm) in [&rcgen::PKCS_RSA_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519].into_iter().enumerate() {
        let dir = Dir::new();
        let api = Scripted::start(dir.path(&number.to_string()), other_key(algorithm));
        let error = bounded(Source::connect(&api.endpoint(), Duration::from_secs(5))).await.err().unwrap().to_string();
        assert!(error.contains("P-256") && error.contains("ec-p256"), "{error}");
    }
}

#[tokio::test]
async fn a_missing_api_is_named_with_what_to_do() {
    let dir = Dir::new();
    let endpoint = format!("unix://{}", dir.path("none.sock").display());
    let short = Duration::from_millis(200);
    let error = Source::connect(&endpoint, short).await.err().unwrap();
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(error.to_string().contains(&endpoint) && error.to_string().contains("there is no such socket; start"), "{error}");
    drop(std::os::unix::net::UnixListener::bind(dir.path("none.sock")).unwrap());
    assert!(Source::connect(&endpoint, short).await.err().unwrap().reason.contains("nobody listens"));
    let _mute = std::os::unix::net::UnixListener::bind(dir.path("mute.sock")).unwrap();
    let endpoint = format!("unix://{}", dir.path("mute.sock").display());
    assert!(Source::connect(&endpoint, short).await.err().unwrap().reason.contains("200ms"));
    assert_eq!(Source::connect("", short).await.err().unwrap().kind, Kind::Invalid);
}

/// A client that believes every server, to see the server's own refusals.
mod trusting {
    use rustls::{
        DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        pki_types::{CertificateDer, ServerName, UnixTime},
    };
    use std::sync::Arc;

    #[derive(Debug)]
    struct Trusting;

    pub(super) fn verifier() -> Arc<dyn ServerCertVerifier> {
        Arc::new(Trusting)
    }

    impl ServerCertVerifier for Trusting {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ECDSA_NISTP256_SHA256]
        }
    }
}
