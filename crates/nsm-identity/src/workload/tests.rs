use super::*;
use crate::{
    jwt::Signer,
    pb::spiffe_workload_api_client::SpiffeWorkloadApiClient,
    testing::{Dir, Running, bounded},
};
use hyper_util::rt::TokioIo;
use std::path::Path;
use tokio::net::UnixStream;
use tonic::{
    Code,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

async fn channel(path: &Path) -> Channel {
    let path = path.to_owned();
    let connect = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connect).await.unwrap()
}

type Client = SpiffeWorkloadApiClient<InterceptedService<Channel, fn(Request<()>) -> Result<Request<()>, Status>>>;

async fn client(path: &Path) -> Client {
    SpiffeWorkloadApiClient::with_interceptor(channel(path).await, |mut request| {
        request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
        Ok(request)
    })
}

#[tokio::test]
async fn nobody_gets_anything_without_the_header() {
    let dir = Dir::new();
    let server = Running::workload(&dir, DAY);
    let mut bare = SpiffeWorkloadApiClient::new(channel(&server.path).await);
    let mut wrong = Request::new(pb::X509svidRequest {});
    wrong.metadata_mut().insert("workload.spiffe.io", "false".parse().unwrap());
    for refused in [
        bounded(bare.fetch_x509svid(wrong)).await.err().unwrap(),
        bounded(bare.fetch_x509svid(pb::X509svidRequest {})).await.err().unwrap(),
        bounded(bare.fetch_x509_bundles(pb::X509BundlesRequest {})).await.err().unwrap(),
        bounded(bare.fetch_jwtsvid(pb::JwtsvidRequest::default())).await.err().unwrap(),
        bounded(bare.fetch_jwt_bundles(pb::JwtBundlesRequest {})).await.err().unwrap(),
        bounded(bare.validate_jwtsvid(pb::ValidateJwtsvidRequest::default())).await.err().unwrap(),
    ] {
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with("security header missing from request"), "{refused}");
    }
    server.stop().await;
}

const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn a_stream_stays_open_and_brings_the_next_svid_before_half_life() {
    let dir = Dir::new();
    let life = Duration::from_secs(2);
    let server = Running::workload(&dir, life);
    let mut stream = client(&server.path).await.fetch_x509svid(pb::X509svidRequest {}).await.unwrap().into_inner();
    let mut last = Vec::new();
    for round in 0..3 {
        let asked = tokio::time::Instant::now();
        let mut answer = bounded(stream.message()).await.unwrap().unwrap();
        assert!(round == 0 || asked.elapsed() < life / 2, "took {:?}", asked.elapsed());
        let svid = answer.svids.remove(0);
        assert_eq!((svid.spiffe_id.as_str(), &svid.bundle[..]), ("spiffe://example.org/workload/w", &server.authority.root()[..]));
        assert_eq!(Signer::new(&svid.x509_svid, &svid.x509_svid_key).unwrap().id.as_str(), svid.spiffe_id);
        assert_ne!(svid.x509_svid, last);
        last = svid.x509_svid;
    }
    let mut again = client(&server.path).await.fetch_x509svid(pb::X509svidRequest {}).await.unwrap().into_inner();
    assert_eq!(bounded(again.message()).await.unwrap().unwrap().svids[0].x509_svid, last, "who connects again keeps its SVID");
    let path = server.path.clone();
    server.stop().await;
    assert!(bounded(stream.message()).await.unwrap().is_none(), "the stream ends without an error");
    assert!(!path.exists());
}

#[tokio::test]
async fn a_user_socket_names_the_host_and_the_user() {
    let dir = Dir::new();
    let socket = WorkloadSocket::new(dir.path("u.sock"), Identity::PeerUser);
    let server = Running::start(Authority::new("example.org").unwrap(), socket);
    let mut stream = client(&server.path).await.fetch_x509svid(pb::X509svidRequest {}).await.unwrap().into_inner();
    let svid = bounded(stream.message()).await.unwrap().unwrap().svids.remove(0);
    let uid = rustix::process::getuid().as_raw();
    assert_eq!(svid.spiffe_id, format!("spiffe://example.org/host/{}/uid/{uid}", host_name()));
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn bundles_and_jwt_svids_are_served() {
    let dir = Dir::new();
    let server = Running::workload(&dir, DAY);
    let mut client = client(&server.path).await;
    let mut bundles = client.fetch_x509_bundles(pb::X509BundlesRequest {}).await.unwrap().into_inner();
    let found = bounded(bundles.message()).await.unwrap().unwrap().bundles;
    assert_eq!(found, BTreeMap::from([("spiffe://example.org".to_owned(), server.authority.root().to_vec())]));
    let mut bundles = client.fetch_jwt_bundles(pb::JwtBundlesRequest {}).await.unwrap().into_inner();
    let found = bounded(bundles.message()).await.unwrap().unwrap().bundles;
    assert_eq!(found["spiffe://example.org"], server.authority.jwt().jwks());

    let ask = |audience: &[&str], id: &str| pb::JwtsvidRequest {
        audience: audience.iter().map(|name| (*name).to_owned()).collect(),
        spiffe_id: id.to_owned(),
    };
    let svid = client.fetch_jwtsvid(ask(&["db"], "spiffe://example.org/workload/w")).await.unwrap().into_inner().svids.remove(0).svid;
    let valid = pb::ValidateJwtsvidRequest { audience: "db".to_owned(), svid: svid.clone() };
    let answer = client.validate_jwtsvid(valid).await.unwrap().into_inner();
    assert_eq!(answer.spiffe_id, "spiffe://example.org/workload/w");
    assert_eq!(answer.claims.unwrap().fields["sub"].kind, Some(JsonKind::StringValue(answer.spiffe_id)));
    let wrong = pb::ValidateJwtsvidRequest { audience: "web".to_owned(), svid };
    assert_eq!(client.validate_jwtsvid(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(client.fetch_jwtsvid(ask(&[], "")).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(client.fetch_jwtsvid(ask(&["db"], "spiffe://example.org/other")).await.unwrap_err().code(), Code::PermissionDenied);
    server.stop().await;
}

#[tokio::test]
async fn a_foreign_identity_is_refused_before_anything_listens() {
    let dir = Dir::new();
    let id = SpiffeId::new("spiffe://other.org/a").unwrap();
    let socket = WorkloadSocket::new(dir.path("w.sock"), Identity::Fixed(id));
    let refused = Authority::new("example.org").unwrap().serve(vec![socket], futures::future::pending()).err().unwrap();
    assert!(refused.reason.contains("another trust domain"));
    assert!(!dir.path("w.sock").exists());
}
