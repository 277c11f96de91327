use super::*;
use nsm_hop::{
    journal::{Agreed, Debt},
    role::{Candidate, Sent},
};

/// As records know time: in whole milliseconds.
fn soon() -> std::time::SystemTime {
    let whole = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    std::time::UNIX_EPOCH + std::time::Duration::from_secs(whole + 60)
}

fn connection(id: &str) -> Connection {
    let mut connection = Connection::new(id.parse().unwrap(), "svc".parse().unwrap());
    let mut segment = Segment::new("client".parse().unwrap(), "c0".parse().unwrap());
    segment.expires = Some(soon());
    connection.path.segments = vec![segment, Segment::new("m".parse().unwrap(), connection.id.clone())];
    connection.path.index = 1;
    connection.context.ip_context.src_ip_addrs = vec!["10.0.0.1/32".parse().unwrap()];
    connection
}

fn sent(id: &str, netns: &nsm_hop::kernel::Netns) -> Sent {
    let mut files = Files::default();
    let mechanism = nsm_hop::mechanism::own_kernel(netns, Some("nsm-1"), &mut files);
    let request = Request { connection: connection(id), preferences: vec![mechanism.clone()], files: files.clone() };
    let candidate =
        Candidate { target: "tcp://192.0.2.1:5001".parse().unwrap(), socket: Files::default(), registered: None, payload: Payload::Ip };
    let mut answered = connection(id);
    answered.mechanism = Some(mechanism);
    Sent { candidate, request, connection: answered, files }
}

fn record(id: &str) -> Record {
    let netns = nsm_linux::netns::current().unwrap();
    let sent = sent(id, &netns);
    let asked_by = Some("spiffe://d/nsc".parse().unwrap());
    let up = Agreed { connection: connection(id), files: sent.files.clone(), sent: Some(sent.clone()), asked_by, return_index: 0 };
    let owed = vec![Debt { sent, until: soon() }];
    Record { id: id.parse().unwrap(), up: Some(up), former: vec![], owed, given: vec!["token".to_owned()], drifted: true }
}

/// Descriptors are other ones in every process; what is told of them is the same.
fn shown(records: &[Record]) -> Vec<String> {
    let mut shown: Vec<String> = records.iter().map(|record| format!("{record:?}")).collect();
    shown.sort();
    shown
}

fn open(dir: &std::path::Path) -> Opened {
    FileJournal::open(&dir.join("m.journal"), 5).unwrap()
}

/// A8, A11
#[tokio::test]
async fn what_is_kept_is_found_by_the_next_life_with_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    assert_eq!((first.generation, first.records.len()), (5, 0));
    let all = [record("a"), record("b/../b"), record("c")];
    for record in &all {
        first.journal.keep(record.clone()).await;
    }
    first.journal.forget(&"c".parse().unwrap()).await;
    let second = open(dir.path());
    assert_eq!(second.generation, 6, "whatever the clock says");
    assert_eq!(shown(&second.records), shown(&all[..2]));
    let up = second.records[0].up.as_ref().unwrap();
    assert!(up.connection.mechanism.is_none() && up.sent.as_ref().unwrap().files.len() == 1, "the namespace is open again");
    let third = open(dir.path());
    assert_eq!(shown(&third.records), shown(&all[..2]), "what is not written again stays");
    third.journal.forget(&"a".parse().unwrap()).await;
    assert_eq!(open(dir.path()).records.len(), 1);
}

/// B8
#[tokio::test]
async fn a_former_life_that_wakes_up_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let former = open(dir.path());
    former.journal.keep(record("a")).await;
    let now = open(dir.path());
    former.journal.keep(record("late")).await;
    former.journal.forget(&"a".parse().unwrap()).await;
    now.journal.keep(record("b")).await;
    let next = open(dir.path());
    assert_eq!(shown(&next.records), shown(&[record("a"), record("b")]));
}

/// C2
#[tokio::test]
async fn what_cannot_be_read_is_left_out_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    for id in ["whole", "torn", "damaged", "newer", "empty"] {
        first.journal.keep(record(id)).await;
    }
    let life = dir.path().join("m.journal/5");
    let change = |id: &str, change: fn(&mut Vec<u8>)| {
        let file =
            life.join(format!("{id}.{}", 1 + ["whole", "torn", "damaged", "newer", "empty"].iter().position(|at| *at == id).unwrap()));
        let mut bytes = fs::read(&file).unwrap();
        change(&mut bytes);
        fs::write(&file, bytes).unwrap();
    };
    change("torn", |bytes| bytes.truncate(bytes.len() / 2));
    change("damaged", |bytes| *bytes.iter_mut().rev().find(|byte| **byte == b'o').unwrap() = b'p');
    change("newer", |bytes| bytes["nsm-journal ".len()] = b'9');
    change("empty", Vec::clear);
    fs::write(life.join("foreign"), "hello\n").unwrap();
    // Killed while it was writing anew.
    fs::write(life.join("whole.9"), "nsm-journal 1 ").unwrap();
    std::os::unix::fs::symlink("/dev/zero", life.join("link.7")).unwrap();
    assert_eq!(shown(&open(dir.path()).records), shown(&[record("whole")]));
}

/// A takeover that was itself killed.
#[tokio::test]
async fn a_takeover_that_was_not_finished_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).journal.keep(record("a")).await;
    let aside = dir.path().join("m.journal").join(ASIDE);
    fs::create_dir(&aside).unwrap();
    fs::write(aside.join("b"), "half").unwrap();
    let next = open(dir.path());
    assert_eq!((next.generation, shown(&next.records)), (6, shown(&[record("a")])));
}

/// A23: what another boot, or a process in another pod, has written is about interfaces that are not there.
#[tokio::test]
async fn records_of_another_boot_are_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).journal.keep(record("a")).await;
    fs::write(dir.path().join("m.journal/5").join(LIFE), "another\n").unwrap();
    assert_eq!(open(dir.path()).records.len(), 0);
}

/// E-36
#[tokio::test]
async fn a_connection_whose_pod_has_gone_has_ended_and_its_next_hop_is_to_hear_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let netns = nsm_linux::netns::create().unwrap();
    let mut record = record("a");
    let up = record.up.as_mut().unwrap();
    up.sent = Some(sent("a", &netns));
    record.owed.clear();
    open(dir.path()).journal.keep(record.clone()).await;
    drop((record, netns));
    let records = open(dir.path()).records;
    assert!(records[0].up.is_none() && records[0].former.len() == 1 && records[0].owed.len() == 1, "{records:?}");
}

/// C1: the disk is full, and later it is not.
#[tokio::test]
async fn a_record_that_cannot_be_written_leaves_no_older_one() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    first.journal.keep(record("a")).await;
    let mut long = record("a");
    long.given = vec!["x".repeat(MAX_RECORD_BYTES)];
    first.journal.keep(long).await;
    let files = || fs::read_dir(dir.path().join("m.journal/5")).unwrap().count();
    assert_eq!(files(), 1, "only the one that says whose they are");
    first.journal.keep(record("a")).await;
    first.journal.keep(record("a")).await;
    assert_eq!(files(), 2);
    assert_eq!(open(dir.path()).records.len(), 1);
}

/// The cost of a commit: see the figures in the documentation of releases. Far above it, something is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_written_in_no_time() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, record) = (open(dir.path()), record("a"));
    let mut times = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        opened.journal.keep(record.clone()).await;
        times.push(begun.elapsed());
    }
    times.sort();
    println!("keep: p50 {:?} p99 {:?}", times[100], times[198]);
    assert!(times[100] < std::time::Duration::from_millis(20), "{:?}", times[100]);
}
