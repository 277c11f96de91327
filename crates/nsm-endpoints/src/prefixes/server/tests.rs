use super::*;
use std::future::Future;

const TIMES: Times = Times { grace: Duration::from_secs(60), settling: Duration::from_secs(3) };

fn server(dir: &Path) -> PrefixServer {
    PrefixServer::open("172.16.0.0/16".parse().unwrap(), 24, TIMES, Some(dir.join("prefixes"))).unwrap()
}

fn stream(server: &PrefixServer, holder: &str) -> Box<dyn PrefixStream> {
    PrefixApi::open(server, format!("spiffe://example.org/{holder}").parse().unwrap())
}

async fn ask(stream: &mut Box<dyn PrefixStream>, wanted: Option<&str>) -> String {
    let wanted = wanted.map(|text| text.parse().unwrap());
    let granted = bounded(stream.ask(PrefixRequest::Allocate { wanted, excluded: vec![] })).await;
    granted.unwrap().unwrap().prefix.to_string()
}

async fn bounded<T>(step: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), step).await.expect("the step did not end in time")
}

/// G-28, A-09: killed and started again, it lends nothing that a living client holds.
#[tokio::test(start_paused = true)]
async fn what_was_lent_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let first = server(dir.path());
    let (mut a, mut b) = (stream(&first, "a"), stream(&first, "b"));
    assert_eq!(ask(&mut a, None).await, "172.16.0.0/24");
    assert_eq!(ask(&mut b, None).await, "172.16.1.0/24");
    let second = server(dir.path());
    assert_eq!(ask(&mut stream(&second, "new"), None).await, "172.16.2.0/24", "at once: it remembers");
    assert_eq!(ask(&mut stream(&second, "thief"), Some("172.16.0.0/24")).await, "172.16.3.0/24");
    assert_eq!(ask(&mut stream(&second, "a"), Some("172.16.0.0/24")).await, "172.16.0.0/24");
    assert_eq!(ask(&mut stream(&second, "b"), Some("172.16.1.0/24")).await, "172.16.1.0/24");
}

/// G-28: the very first start cannot know whether it is one.
#[tokio::test(start_paused = true)]
async fn without_a_file_fresh_prefixes_wait_and_wishes_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let (server, start) = (server(dir.path()), Instant::now());
    let (mut new, mut old) = (stream(&server, "new"), stream(&server, "old"));
    let (new, old) = tokio::join!(ask(&mut new, None), async {
        let prefix = ask(&mut old, Some("172.16.0.0/24")).await;
        (prefix, start.elapsed())
    });
    assert_eq!((new.as_str(), old.0.as_str()), ("172.16.1.0/24", "172.16.0.0/24"));
    assert!(old.1 < TIMES.settling && start.elapsed() >= TIMES.settling);
}

/// A client notices the end of a stream before the server does.
#[tokio::test(start_paused = true)]
async fn a_client_that_is_back_early_waits_for_its_own_former_stream() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path());
    let mut former = stream(&server, "a");
    assert_eq!(ask(&mut former, Some("172.16.5.0/24")).await, "172.16.5.0/24");
    let mut back = stream(&server, "a");
    let (prefix, ()) = tokio::join!(ask(&mut back, Some("172.16.5.0/24")), async {
        sleep(HANDOVER / 2).await;
        drop(former);
    });
    assert_eq!(prefix, "172.16.5.0/24");
    let start = Instant::now();
    let other = ask(&mut stream(&server, "a"), Some("172.16.5.0/24")).await;
    assert_ne!(other, "172.16.5.0/24", "a stream that lives on keeps it");
    assert!(start.elapsed() >= HANDOVER);
    bounded(back.ask(PrefixRequest::Release("172.16.5.0/24".parse().unwrap()))).await.unwrap();
    assert_eq!(ask(&mut stream(&server, "b"), Some("172.16.5.0/24")).await, "172.16.5.0/24", "given back");
}

/// What cannot be remembered is not lent.
#[tokio::test(start_paused = true)]
async fn nothing_is_lent_that_cannot_be_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let server = PrefixServer::open("10.0.0.0/16".parse().unwrap(), 24, TIMES, Some(missing.join("prefixes"))).unwrap();
    let wanted = Some("10.0.0.0/24".parse().unwrap());
    let request = PrefixRequest::Allocate { wanted, excluded: vec![] };
    assert!(bounded(stream(&server, "a").ask(request)).await.is_err());
    fs::create_dir(&missing).unwrap();
    assert_eq!(ask(&mut stream(&server, "b"), Some("10.0.0.0/24")).await, "10.0.0.0/24", "it was nobody's");
    fs::write(missing.join("prefixes"), "nonsense").unwrap();
    assert!(PrefixServer::open("10.0.0.0/16".parse().unwrap(), 24, TIMES, Some(missing.join("prefixes"))).is_err());
}
