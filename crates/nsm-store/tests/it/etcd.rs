//! The engine over real etcd members, which each test starts and ends: conformance of what only a cluster can do.

use crate::{
    common::*,
    conform,
    history::{Record, storm},
    linear::Reply,
};
use futures::StreamExt;
use nsm_api::{EndpointQuery, Kind};
use nsm_registry::{Engine, Registry};
use nsm_store::{EtcdEngine, EtcdOptions, EtcdTls};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How long a cluster may take to serve.
pub(crate) const START: Duration = Duration::from_secs(60);

/// Members on loopback, gone with the value.
pub(crate) struct Cluster {
    members: Vec<Member>,
    directory: TempDir,
    tls: bool,
}

pub(crate) struct Member {
    arguments: Vec<String>,
    port: u16,
    process: Option<Child>,
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Member {
    fn start(&mut self) {
        // The program ends with this test, however the test ends.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "etcd"])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.process =
            Some(command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").spawn().expect("setpriv of util-linux can be started"));
    }
    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.process.as_ref().unwrap().id()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }
    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            process.wait().unwrap();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.members.iter_mut().for_each(Member::kill);
    }
}

impl Cluster {
    pub(crate) async fn start(size: usize) -> Cluster {
        Cluster::with(size, &[], false).await
    }

    async fn with(size: usize, more: &[&str], tls: bool) -> Cluster {
        let ports: Vec<_> = (0..size).map(|_| free_port()).map(|port| (port, port)).collect();
        Cluster::between(&ports, more, tls).await
    }

    /// For each member where it listens to the others, and where they call it.
    pub(crate) async fn between(peers: &[(u16, u16)], more: &[&str], tls: bool) -> Cluster {
        assert!(
            ["/usr/bin/etcd", "/usr/sbin/etcd"].iter().any(|file| PathBuf::from(file).exists()),
            "this test needs the etcd of the distribution: apt-get install etcd-server"
        );
        let directory = tempfile::tempdir().unwrap();
        let names: Vec<_> = peers.iter().enumerate().map(|(number, (_, called))| format!("m{number}=http://127.0.0.1:{called}")).collect();
        let scheme = if tls { "https" } else { "http" };
        let members = peers.iter().enumerate().map(|(number, (listens, called))| {
            let client = free_port();
            let client_url = format!("{scheme}://127.0.0.1:{client}");
            let data = directory.path().join(format!("m{number}")).display().to_string();
            let options = [
                ("name", format!("m{number}")),
                ("data-dir", data),
                ("listen-client-urls", client_url.clone()),
                ("advertise-client-urls", client_url),
                ("listen-peer-urls", format!("http://127.0.0.1:{listens}")),
                ("initial-advertise-peer-urls", format!("http://127.0.0.1:{called}")),
                ("initial-cluster", names.join(",")),
                // As docs/registry.md advises: a member that was alone and comes back unseats nobody.
                ("pre-vote", "true".to_owned()),
            ];
            let arguments = options.iter().map(|(key, value)| format!("--{key}={value}"));
            let mut member = Member {
                arguments: arguments.chain(more.iter().map(|argument| (*argument).to_owned())).collect(),
                port: client,
                process: None,
            };
            member.start();
            member
        });
        let cluster = Cluster { members: members.collect(), directory, tls };
        if !tls {
            cluster.serves(&cluster.options()).await;
        }
        cluster
    }

    pub(crate) fn options(&self) -> EtcdOptions {
        let scheme = if self.tls { "https" } else { "http" };
        EtcdOptions::new(self.members.iter().map(|member| format!("{scheme}://127.0.0.1:{}", member.port)))
    }

    /// An engine that knows one member only.
    pub(crate) fn engine_at(&self, member: usize) -> EtcdEngine {
        EtcdEngine::new(&EtcdOptions::new([format!("http://127.0.0.1:{}", self.members[member].port)])).unwrap()
    }

    /// The ids of the members, in their order, as they write them.
    pub(crate) fn ids(&self) -> Vec<String> {
        let list = self.post("/v3/cluster/member/list", "{}");
        let id = |number: usize| {
            let before = list.split(&format!("\"name\":\"m{number}\"")).next().unwrap();
            let id = before.rsplit("\"ID\":\"").next().unwrap().split('"').next().unwrap();
            format!("{:x}", id.parse::<u64>().unwrap())
        };
        (0..self.members.len()).map(id).collect()
    }

    pub(crate) fn engine(&self) -> EtcdEngine {
        EtcdEngine::new(&self.options()).unwrap()
    }

    async fn serves(&self, options: &EtcdOptions) {
        let probe = EtcdOptions { prefix: "/probe/".to_owned(), ..options.clone() };
        let (engine, start) = (EtcdEngine::new(&probe).unwrap(), Instant::now());
        while let Err(error) = put(&engine, "first", "", Some(Duration::from_secs(1))).await {
            assert!(start.elapsed() < START, "the cluster does not serve: {error}");
        }
    }

    /// One call of the JSON form of the API.
    fn post(&self, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.members[0].port)).unwrap();
        let length = body.len();
        write!(stream, "POST {path} HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        answer
    }

    /// Forgets all history up to now.
    fn compact(&self) {
        let answer = self.post("/v3/kv/range", r#"{"key":"YQ=="}"#);
        let revision = answer.split("\"revision\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        self.post("/v3/kv/compaction", &format!(r#"{{"revision":"{revision}","physical":true}}"#));
    }
}

/// What a watcher knows, as `name url`, once it knows `expected`.
async fn follows(watch: &mut nsm_registry::Changes<nsm_api::NetworkServiceEndpoint>, known: &mut Vec<String>, expected: &[&str]) {
    while known != expected {
        let change = tokio::time::timeout(LONG, watch.next()).await.unwrap_or_else(|_| panic!("{known:?} never becomes {expected:?}"));
        let change = change.unwrap().unwrap();
        let called = format!("{} ", change.record.name);
        known.retain(|line| !line.starts_with(&called));
        if !change.deleted {
            known.push(format!("{called}{}", change.record.url));
        }
        known.sort();
    }
}

/// K5, I7: two processes over one cluster: what one writes the other finds at once, owns and ends; nobody's refresh is undone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k5_several_registries_are_one() {
    let cluster = Cluster::start(1).await;
    let (one, two) = (cluster.engine(), cluster.engine());
    for number in 0..50 {
        put(&one, &format!("e{number:02}"), "tcp://1", Some(LONG)).await.unwrap();
        assert_eq!(two.endpoints().find(&of_service("s")).await.unwrap().iter().filter(|found| found.url == "tcp://1").count(), number + 1);
    }
    let (mut watch, mut known) =
        (two.endpoints().watch(EndpointQuery { url: "tcp://2".into(), ..of_service("s") }).await.unwrap(), Vec::new());
    put(&one, "e00", "tcp://2", None).await.unwrap();
    follows(&mut watch, &mut known, &["e00 tcp://2"]).await;
    let old = one.endpoints().get(&name("e00")).await.unwrap().unwrap().revision;
    put(&two, "e00", "tcp://2", None).await.unwrap();
    assert!(!one.endpoints().remove(&name("e00"), old).await.unwrap(), "a refresh at the other is not undone");
    assert!(one.endpoints().put(Arc::new(endpoint("e00", "s", "")), Some(old), None).await.unwrap().is_none());
    remove(&one, "e00").await.unwrap();
    follows(&mut watch, &mut known, &[]).await;
    assert!(two.endpoints().get(&name("e00")).await.unwrap().is_none());
}

/// I11, M-13: a record ends with its life, whoever wrote it last, and not before; a service does not end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i11_lives_end_in_the_cluster() {
    let cluster = Cluster::start(1).await;
    let (one, two) = (cluster.engine(), cluster.engine());
    let (mut watch, mut known) =
        (two.endpoints().watch(EndpointQuery { url: "tcp".into(), ..EndpointQuery::default() }).await.unwrap(), Vec::new());
    put(&one, "refreshed", "tcp://1", Some(Duration::from_secs(3))).await.unwrap();
    put(&one, "short", "tcp://1", Some(Duration::from_secs(3))).await.unwrap();
    let start = Instant::now();
    put(&two, "refreshed", "tcp://2", Some(LONG)).await.unwrap();
    drop(one);
    follows(&mut watch, &mut known, &["refreshed tcp://2", "short tcp://1"]).await;
    follows(&mut watch, &mut known, &["refreshed tcp://2"]).await;
    let lived = start.elapsed();
    assert!(lived >= Duration::from_millis(2900) && lived < Duration::from_secs(8), "{lived:?}");
    assert!(two.endpoints().get(&name("refreshed")).await.unwrap().is_some());
}

/// K2, I6: the process cannot hear the cluster; meanwhile records come, change and go, and history is compacted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k2_a_compacted_watch_is_brought_up_to_date() {
    let mut cluster = Cluster::start(1).await;
    let proxy = Proxy::new(cluster.members[0].port);
    let far = EtcdEngine::new(&EtcdOptions::new([format!("http://127.0.0.1:{}", proxy.port)])).unwrap();
    let near = cluster.engine();
    for called in ["a", "b", "c"] {
        put(&near, called, "tcp://1", None).await.unwrap();
    }
    let query = EndpointQuery { url: "tcp".into(), ..EndpointQuery::default() };
    let (mut watch, mut known) = (far.endpoints().watch(query).await.unwrap(), Vec::new());
    follows(&mut watch, &mut known, &["a tcp://1", "b tcp://1", "c tcp://1"]).await;
    for round in 0..2 {
        proxy.cut();
        remove(&near, "a").await.unwrap();
        put(&near, "b", &format!("tcp://{round}/2"), None).await.unwrap();
        put(&near, "d", "tcp://1", None).await.unwrap();
        if round == 0 {
            cluster.compact();
        }
        assert_eq!(far.endpoints().find(&EndpointQuery::default()).await.unwrap_err().kind, Kind::Unavailable);
        proxy.mend();
        follows(&mut watch, &mut known, &[&format!("b tcp://{round}/2"), "c tcp://1", "d tcp://1"]).await;
        put(&near, "a", "tcp://1", None).await.unwrap();
        follows(&mut watch, &mut known, &["a tcp://1", &format!("b tcp://{round}/2"), "c tcp://1", "d tcp://1"]).await;
        remove(&near, "d").await.unwrap();
        follows(&mut watch, &mut known, &["a tcp://1", &format!("b tcp://{round}/2"), "c tcp://1"]).await;
    }
    cluster.members[0].kill();
    cluster.members[0].start();
    put_again(&near, "z", "tcp://1").await;
    follows(&mut watch, &mut known, &["a tcp://1", "b tcp://1/2", "c tcp://1", "z tcp://1"]).await;
}

/// I6: the cluster is made anew behind the registry's back. What it does not have is not shown any longer, and the
/// revisions of its former life mean nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i6_a_cluster_that_begins_anew() {
    let mut cluster = Cluster::start(1).await;
    let engine = cluster.engine();
    for number in 0..20 {
        put(&engine, &format!("e{number:02}"), "tcp://1", None).await.unwrap();
    }
    let query = EndpointQuery { url: "tcp".into(), ..EndpointQuery::default() };
    let mut watch = engine.endpoints().watch(query).await.unwrap();
    cluster.members[0].kill();
    fs::remove_dir_all(cluster.directory.path().join("m0")).unwrap();
    cluster.members[0].start();
    put_again(&engine, "new", "tcp://2").await;
    follows(&mut watch, &mut Vec::new(), &["new tcp://2"]).await;
    assert_eq!(all(&engine).await, ["new tcp://2"]);
}

/// How long a cluster that has lost a member may refuse writes: an election of a second or two, on two processors that run
/// several clusters and compilers. What the registry adds is bounded by `CALL_TIMEOUT`.
pub(crate) const FAILOVER: Duration = Duration::from_secs(30);

/// Writes until a cluster that has lost a member takes it.
pub(crate) async fn put_again(engine: &EtcdEngine, called: &str, url: &str) {
    let start = Instant::now();
    while let Err(error) = put(engine, called, url, None).await {
        assert!(start.elapsed() < FAILOVER, "{error}");
    }
}

/// I7, B1, B8: three members; in the middle of the work of three registries' clients one member is stopped and goes on
/// later, then one is killed and started again. What anybody was told can have happened, and watches (I6) lose nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_histories_over_a_cluster_that_loses_members() {
    let mut cluster = Cluster::start(3).await;
    let engines: Vec<_> = (0..3).map(|_| Arc::new(cluster.engine())).collect();
    let registries: Vec<_> =
        engines.iter().map(|engine| Arc::new(Registry::new(engine.clone(), real()).with_expire_period(LONG * 10))).collect();
    let mut watchers = Vec::new();
    for engine in &engines {
        watchers.push((engine.endpoints().watch(of_service("s")).await.unwrap(), BTreeMap::new()));
    }
    let (mut known, mut unknown) = (0, 0);
    for seed in 0..6u64 {
        let record = Record::default();
        let (stopped, killed) = (usize::try_from(seed % 3).unwrap(), usize::try_from((seed + 1) % 3).unwrap());
        let work = tokio::spawn({
            let (record, registries) = (record.clone(), registries.clone());
            async move { storm(&record, &registries, 50, seed).await }
        });
        record.reaches(100, &work).await;
        assert!(!work.is_finished(), "the faults come too late");
        cluster.members[stopped].signal(Signal::STOP);
        record.reaches(250, &work).await;
        cluster.members[stopped].signal(Signal::CONT);
        record.reaches(350, &work).await;
        assert!(!work.is_finished(), "the faults come too late");
        cluster.members[killed].kill();
        record.reaches(500, &work).await;
        cluster.members[killed].start();
        work.await.unwrap();
        for registry in &registries {
            record.look(registry, 4).await;
        }
        // Whoever watched through all of it knows what is there, and never heard of the end of what it did not know.
        for (watch, heard) in &mut watchers {
            let expected = all(&*engines[0]).await;
            while conform::lines(heard) != expected {
                conform::hear(heard, &conform::next(watch).await);
            }
        }
        let (some, others) = record.judge(&format!("etcd, seed {seed}"));
        (known, unknown) = (known + some, unknown + others);
        // The next seed begins with nothing.
        for number in 0..4 {
            let called = format!("e{number}");
            while remove(&*engines[0], &called).await.is_err() {}
        }
    }
    println!("{known} calls judged, {unknown} with unknown outcome");
    assert!(known > 1000, "{known} calls went through");
}

/// Without a majority nothing is acknowledged and nobody is told old things; with it again everything goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i10_a_minority_answers_nothing() {
    let mut cluster = Cluster::start(3).await;
    let engine = cluster.engine();
    put(&engine, "a", "tcp://a", None).await.unwrap();
    cluster.members[0].kill();
    cluster.members[1].kill();
    let query = of_service("s");
    let (write, read, watch) =
        tokio::join!(put(&engine, "b", "tcp://b", None), engine.endpoints().find(&query), engine.endpoints().watch(query.clone()));
    assert!(matches!(write.as_ref().unwrap_err().kind, Kind::Timeout | Kind::Unavailable), "{write:?}");
    assert_eq!(read.unwrap_err().kind, Kind::Unavailable);
    assert_eq!(watch.err().unwrap().kind, Kind::Unavailable);
    cluster.members[0].start();
    put_again(&engine, "c", "tcp://c").await;
    let found = all(&engine).await;
    assert!(found.contains(&"a tcp://a".to_owned()) && found.contains(&"c tcp://c".to_owned()), "{found:?}");
}

/// Certificates on both sides; without ours, or with another authority, nothing is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clusters_with_certificates() {
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str| files.path().join(name);
    let authority = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(file("ca.pem"), parameters.self_signed(&authority).unwrap().pem()).unwrap();
    let issuer = Issuer::new(parameters, authority);
    for (name, usage) in [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)] {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        parameters.extended_key_usages = vec![usage, ExtendedKeyUsagePurpose::ClientAuth];
        fs::write(file(&format!("{name}.pem")), parameters.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        fs::write(file(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let argument = |key: &str, name: &str| format!("--{key}={}", file(name).display());
    let arguments = [argument("cert-file", "server.pem"), argument("key-file", "server.key"), argument("trusted-ca-file", "ca.pem")];
    let arguments: Vec<_> = arguments.iter().map(String::as_str).chain(["--client-cert-auth"]).collect();
    let cluster = Cluster::with(1, &arguments, true).await;

    let identity = Some((file("client.pem"), file("client.key")));
    let tls = EtcdTls { authority: Some(file("ca.pem")), identity, server_name: None };
    let options = EtcdOptions { tls: tls.clone(), ..cluster.options() };
    cluster.serves(&options).await;
    let engine = EtcdEngine::new(&options).unwrap();
    put(&engine, "a", "tcp://a", None).await.unwrap();
    assert!(all(&engine).await.contains(&"a tcp://a".to_owned()));

    for tls in [EtcdTls { identity: None, ..tls.clone() }, EtcdTls { server_name: Some("elsewhere".to_owned()), ..tls }] {
        let stranger = EtcdEngine::new(&EtcdOptions { tls, ..cluster.options() }).unwrap();
        assert_eq!(stranger.endpoints().get(&name("a")).await.unwrap_err().kind, Kind::Unavailable);
    }
    assert!(cluster.directory.path().exists());
}

/// A name that nobody answers at: refused with a reason, in bounded time.
#[tokio::test]
async fn no_cluster_at_all() {
    let engine = EtcdEngine::new(&EtcdOptions::new([format!("http://127.0.0.1:{}", free_port())])).unwrap();
    let refused = put(&engine, "a", "", None).await.unwrap_err();
    assert_eq!(refused.kind, Kind::Unavailable);
    assert!(refused.to_string().contains("cannot be reached"), "{refused}");
    let record = Record::default();
    let registry = Registry::new(Arc::new(engine), real());
    assert_eq!(record.make(&registry, 0, crate::linear::Call::Find).await, Reply::Unknown);
}

/// A way to the cluster that can be cut.
struct Proxy {
    port: u16,
    open: tokio::sync::watch::Sender<bool>,
    task: tokio::task::AbortHandle,
}

impl Proxy {
    fn new(to: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (open, opened) = tokio::sync::watch::channel(true);
        let task = tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let mut opened = opened.clone();
                if !*opened.borrow_and_update() {
                    continue;
                }
                tokio::spawn(async move {
                    let mut far = tokio::net::TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = opened.wait_for(|open| !*open) => {}
                    }
                });
            }
        });
        Proxy { port, open, task: task.abort_handle() }
    }
    fn cut(&self) {
        self.open.send_replace(false);
    }
    fn mend(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
