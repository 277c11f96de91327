//! The durable engine: restarts, ends of life, full disks, shared fsyncs, locks, formats, backups.

use crate::{common::*, medium::FaultDisk};
use futures::{FutureExt, StreamExt};
use nsm_api::{EndpointQuery, Kind, NetworkService, Payload};
use nsm_registry::Engine;
use nsm_store::{DurableEngine, FILE_NAME, FORMAT, FileMedium, MAX_BACKUPS, Medium, REOPEN_PAUSE, StorageBackend};
use rustix::{
    fd::AsRawFd,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen},
};
use std::{
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// A14, I7: everything is there at once after a restart: records, rules, unknown lives, owners.
#[tokio::test(start_paused = true)]
async fn a14_a_restart_keeps_everything() {
    let (disk, clock) = (FaultDisk::default(), TestClock::new());
    let engine = open(&disk, clock).await.unwrap();
    let mut kept = endpoint("a", "s", "tcp://a");
    kept.path_ids = vec!["spiffe://d/owner".to_owned(), "spiffe://d/manager".to_owned()];
    kept.initial_registration_time = Some(clock.wall()());
    engine.endpoints().put(Arc::new(kept.clone()), None, Some(LONG)).await.unwrap().unwrap();
    let vpn = NetworkService::new(service("vpn"), Payload::Ethernet);
    engine.services().put(Arc::new(vpn.clone()), None, None).await.unwrap().unwrap();
    put(&engine, "gone", "tcp://gone", None).await.unwrap();
    remove(&engine, "gone").await.unwrap();
    engine.close().await;

    let engine = open(&disk, clock).await.unwrap();
    assert_eq!(*engine.endpoints().get(&name("a")).await.unwrap().unwrap().record, kept);
    assert_eq!(*engine.services().get(&service("vpn")).await.unwrap().unwrap().record, vpn);
    assert_eq!(all(&engine).await, ["a tcp://a"]);
    assert_eq!(engine.endpoints().find(&of_service("s")).await.unwrap().len(), 1, "indexed");
    let mut watch = engine.endpoints().watch(EndpointQuery::default()).await.unwrap();
    assert!(!watch.next().now_or_never().unwrap().unwrap().unwrap().deleted);
    engine.close().await;
}

/// M-13, I11, D1, D2: what ended while the registry was away is gone; what did not lives exactly on; a step of the
/// wall clock changes neither, and across a start of the machine it makes nothing live longer than it was given.
#[tokio::test(start_paused = true)]
async fn d1_d2_lives_go_on_over_a_restart() {
    for (boot, step, outcome) in [(1, 0, ["b"].as_slice()), (1, 9000, &["b"]), (1, -20, &["b"]), (2, 9000, &[]), (2, -20, &["a", "b"])] {
        let (disk, mut clock) = (FaultDisk::default(), TestClock::new());
        tokio::time::advance(Duration::from_secs(30)).await;
        let engine = open(&disk, clock).await.unwrap();
        put(&engine, "a", "", Some(Duration::from_secs(10))).await.unwrap();
        put(&engine, "b", "", Some(Duration::from_secs(60))).await.unwrap();
        engine.close().await;
        tokio::time::advance(Duration::from_secs(20)).await;
        (clock.boot, clock.step) = (boot, step);
        let engine = open(&disk, clock).await.unwrap();
        let names: Vec<_> = all(&engine).await.iter().map(|line| line.trim().to_owned()).collect();
        assert_eq!(names, outcome, "boot {boot} step {step}");
        tokio::time::advance(Duration::from_secs(41)).await;
        if boot == 1 {
            assert!(all(&engine).await.is_empty(), "b ends when it was to end");
        }
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!(all(&engine).await.is_empty(), "nothing lives longer than it was given");
        engine.close().await;
    }
}

/// I2: rows of ended records leave the disk without anybody's write, and a refreshed record's row does not.
#[tokio::test(start_paused = true)]
async fn ended_records_leave_the_disk() {
    let (disk, clock) = (FaultDisk::default(), TestClock::new());
    let engine = open(&disk, clock).await.unwrap();
    put(&engine, "a", "", Some(Duration::from_secs(5))).await.unwrap();
    put(&engine, "b", "", Some(Duration::from_secs(5))).await.unwrap();
    tokio::time::advance(Duration::from_secs(4)).await;
    put(&engine, "b", "", Some(Duration::from_secs(50))).await.unwrap();
    let before = disk.operations();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(disk.operations() > before, "swept");
    engine.close().await;
    // A machine whose clock is behind would show the row again, if there was one.
    let behind = TestClock { boot: 2, step: -30, ..clock };
    let engine = open(&disk, behind).await.unwrap();
    assert_eq!(all(&engine).await, ["b "]);
    engine.close().await;
}

/// C1: a full disk refuses the write, keeps what is there, and is forgotten when there is room again.
#[tokio::test(start_paused = true)]
async fn c1_a_full_disk_refuses_until_there_is_room() {
    let (disk, clock) = (FaultDisk::default(), TestClock::new());
    let engine = open(&disk, clock).await.unwrap();
    put(&engine, "a", "tcp://a", None).await.unwrap();
    disk.room(Some(disk.length()));
    let big = "x".repeat(4000);
    let (mut kept, mut refused) = (0, None);
    while refused.is_none() {
        match put(&engine, &format!("e{kept:04}"), &big, None).await {
            Ok(()) => kept += 1,
            Err(error) => refused = Some(error),
        }
        assert!(kept < 10_000, "the disk is never full");
    }
    let refused = refused.unwrap();
    assert_eq!(refused.kind, Kind::Exhausted, "{refused}");
    for _ in 0..3 {
        assert_eq!(put(&engine, "again", &big, None).await.unwrap_err().kind, Kind::Exhausted);
    }
    assert_eq!(all(&engine).await.len(), kept + 1, "what was refused is not visible, the rest is");
    disk.room(None);
    std::thread::sleep(REOPEN_PAUSE);
    put(&engine, "again", "tcp://again", None).await.unwrap();
    engine.close().await;
    let engine = open(&disk, clock).await.unwrap();
    assert_eq!(all(&engine).await.len(), kept + 2);
    engine.close().await;
}

/// C1 on a real file system without room: a tmpfs of this test only, mounted nowhere.
#[tokio::test]
async fn c1_a_full_file_system() {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).expect("this test needs root, to make a small file system");
    fsconfig_set_string(&context, "size", "16m").unwrap();
    fsconfig_create(&context).unwrap();
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    let root = std::path::PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
    let engine = DurableEngine::open(&root.join("store")).await.unwrap();
    put(&engine, "a", "tcp://a", None).await.unwrap();
    let ballast = root.join("ballast");
    let filled = fs::write(&ballast, vec![1; 16 << 20]).unwrap_err();
    assert_eq!(filled.kind(), io::ErrorKind::StorageFull);
    let (big, mut number) = ("x".repeat(4000), 0);
    let refused = loop {
        number += 1;
        match put(&engine, &format!("e{number}"), &big, None).await {
            Ok(()) => assert!(number < 10_000, "the disk is never full"),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind, Kind::Exhausted, "{refused}");
    assert_eq!(all(&engine).await.len(), number);
    engine.close().await;
    let engine = DurableEngine::open(&root.join("store")).await.expect("a full disk is no reason not to start");
    assert_eq!(all(&engine).await.len(), number);
    assert_eq!(put(&engine, "more", &"x".repeat(1 << 20), None).await.unwrap_err().kind, Kind::Exhausted);
    fs::remove_file(&ballast).unwrap();
    tokio::time::sleep(REOPEN_PAUSE).await;
    put(&engine, "after", "tcp://after", None).await.unwrap();
    engine.close().await;
    let engine = DurableEngine::open(&root.join("store")).await.unwrap();
    assert_eq!(all(&engine).await.len(), number + 1);
    engine.close().await;
}

/// Many writes at once share fsyncs, and each is durable when it is answered.
#[tokio::test(start_paused = true)]
async fn writes_that_wait_together_share_an_fsync() {
    let (disk, clock) = (FaultDisk::default(), TestClock::new());
    let engine = open(&disk, clock).await.unwrap();
    let before = disk.syncs();
    let names: Vec<_> = (0..500).map(|number| format!("e{number:03}")).collect();
    futures::future::join_all(names.iter().map(|called| async { put(&engine, called, "", None).await.unwrap() })).await;
    let syncs = disk.syncs() - before;
    assert!(syncs <= 12, "{syncs} fsyncs for 500 writes");
    disk.restart(&mut Seeded(1));
    let engine = open(&disk, clock).await.unwrap();
    assert_eq!(all(&engine).await.len(), 500);
    engine.close().await;
}

/// Of many who want a free name at once one gets it, also when their writes share an fsync.
#[tokio::test(start_paused = true)]
async fn one_of_many_gets_a_free_name() {
    let engine = open(&FaultDisk::default(), TestClock::new()).await.unwrap();
    let store = engine.endpoints();
    let tries = (0..50).map(|number| store.put(Arc::new(endpoint("a", "s", &number.to_string())), None, None));
    let won: Vec<_> = futures::future::join_all(tries).await.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(won.len(), 1);
    assert_eq!(store.get(&name("a")).await.unwrap().unwrap().revision, won[0]);
    engine.close().await;
}

/// The caller leaves in the middle of a write: it is done, or it is not; the engine goes on.
#[tokio::test(start_paused = true)]
async fn a_write_whose_caller_leaves_is_whole() {
    let engine = open(&FaultDisk::default(), TestClock::new()).await.unwrap();
    assert!(put(&engine, "a", "tcp://a", None).now_or_never().is_none(), "the disk takes a moment");
    put(&engine, "b", "tcp://b", None).await.unwrap();
    assert_eq!(all(&engine).await, ["a tcp://a", "b tcp://b"], "asked before b, so written before b");
    engine.close().await;
}

#[tokio::test]
async fn a_store_is_open_once_and_private() {
    let dir = tempfile::tempdir().unwrap();
    let engine = DurableEngine::open(dir.path()).await.unwrap();
    let second = DurableEngine::open(dir.path()).await.err().unwrap();
    assert_eq!(second.kind, Kind::Conflict, "{second}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(dir.path().join(FILE_NAME)).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    engine.close().await;
    DurableEngine::open(dir.path()).await.expect("closed").close().await;

    let elsewhere = dir.path().join("link");
    fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(dir.path().join(FILE_NAME), elsewhere.join(FILE_NAME)).unwrap();
    let refused = DurableEngine::open(&elsewhere).await.err().unwrap();
    assert_eq!(refused.kind, Kind::Unavailable, "no link is followed: {refused}");
    let refused = DurableEngine::open(&dir.path().join(FILE_NAME)).await.err().unwrap();
    assert!(refused.to_string().contains("directory that it may write"), "{refused}");
}

/// What a newer version wrote, and what is no store, is refused and left as it is.
#[tokio::test]
async fn other_formats_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    DurableEngine::open(dir.path()).await.unwrap().close().await;
    let file = dir.path().join(FILE_NAME);
    set_format(&file, FORMAT + 1);
    let refused = DurableEngine::open(dir.path()).await.err().unwrap();
    assert_eq!(refused.kind, Kind::Invalid);
    assert!(refused.to_string().contains("has format 2, and this version knows up to 1; run the version that wrote it"), "{refused}");
    let refused = DurableEngine::restore(&file, &dir.path().join("new")).unwrap_err();
    assert!(refused.to_string().contains("has format 2"), "{refused}");

    fs::write(&file, vec![7; 100_000]).unwrap();
    let refused = DurableEngine::open(dir.path()).await.err().unwrap();
    assert!(refused.to_string().contains("restore a backup"), "{refused}");
    assert_eq!(fs::read(&file).unwrap(), vec![7; 100_000]);
}

/// Damage inside the file is found when it is opened, not served.
#[tokio::test]
async fn damage_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let engine = DurableEngine::open(dir.path()).await.unwrap();
    for number in 0..50 {
        put(&engine, &format!("e{number}"), "tcp://needle", None).await.unwrap();
    }
    engine.close().await;
    let file = dir.path().join(FILE_NAME);
    let mut bytes = fs::read(&file).unwrap();
    let needles: Vec<_> = bytes.windows(12).enumerate().filter(|(_, window)| *window == b"tcp://needle").map(|(at, _)| at).collect();
    for at in needles {
        bytes[at + 6] ^= 1;
    }
    fs::write(&file, bytes).unwrap();
    let refused = DurableEngine::open(dir.path()).await.err().expect("damage is found");
    assert!(refused.to_string().contains("restore a backup"), "{refused}");
}

fn set_format(file: &std::path::Path, format: u64) {
    let database = redb::Database::open(file).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(redb::TableDefinition::<&str, u64>::new("meta")).unwrap().insert("format", format).unwrap();
    transaction.commit().unwrap();
}

#[tokio::test]
async fn a_backup_is_made_while_serving_and_becomes_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(DurableEngine::open(&dir.path().join("a")).await.unwrap());
    for number in 0..20 {
        put(&*engine, &format!("e{number:02}"), "tcp://1", Some(LONG)).await.unwrap();
    }
    let busy = tokio::spawn({
        let engine = engine.clone();
        async move {
            for number in 20..60 {
                put(&*engine, &format!("e{number:02}"), "tcp://2", Some(LONG)).await.unwrap();
            }
        }
    });
    let file = dir.path().join("backup");
    engine.backup(&file).await.unwrap();
    busy.await.unwrap();
    assert_eq!(engine.backup(&file).await.unwrap_err().kind, Kind::Conflict, "no file is replaced");

    let restored = dir.path().join("b");
    DurableEngine::restore(&file, &restored).unwrap();
    assert_eq!(DurableEngine::restore(&file, &restored).unwrap_err().kind, Kind::Conflict, "no store is replaced");
    assert_eq!(DurableEngine::restore(&dir.path().join("none"), &dir.path().join("c")).unwrap_err().kind, Kind::NotFound);
    let copy = DurableEngine::open(&restored).await.unwrap();
    let (copied, present) = (all(&copy).await, all(&*engine).await);
    assert!(copied.len() >= 20 && present[..copied.len()] == copied, "a prefix of the writes");
    copy.close().await;
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn backups_are_made_again_and_again_and_the_last_are_kept() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let medium = Arc::new(FileMedium::new(dir.path().join("store")));
    let engine = Arc::new(DurableEngine::open_on(medium, Arc::new(clock)).await.unwrap());
    let backups = dir.path().join("backups");
    let keeping = tokio::spawn(DurableEngine::keep_backups(Arc::downgrade(&engine), backups.clone(), LONG));
    let names = || {
        let mut names: Vec<_> = fs::read_dir(&backups).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    tokio::time::sleep(LONG / 2).await;
    let first = names();
    assert_eq!(first.len(), 1, "{first:?}");
    fs::write(backups.join("other"), "stays").unwrap();
    put(&*engine, "late", "tcp://late", None).await.unwrap();
    tokio::time::sleep(LONG * 30).await;
    let last = names();
    assert_eq!(last.len(), MAX_BACKUPS + 1, "{last:?}");
    assert!(last.contains(&"other".to_owned()) && !last.contains(&first[0]));
    Arc::into_inner(engine).unwrap().close().await;
    tokio::time::timeout(LONG * 2, keeping).await.expect("ends with the engine").unwrap();

    let newest = last.iter().rfind(|name| *name != "other").unwrap();
    DurableEngine::restore(&backups.join(newest), &dir.path().join("restored")).unwrap();
    let restored = DurableEngine::open(&dir.path().join("restored")).await.unwrap();
    assert_eq!(all(&restored).await, ["late tcp://late"]);
    restored.close().await;
    assert!(DurableEngine::restore(&backups.join("other"), &dir.path().join("no")).is_err(), "no backup");
}

/// A disk that never answers costs the caller a bounded time.
#[tokio::test]
async fn b_a_disk_that_hangs_is_not_waited_for_for_ever() {
    struct Hanging(FileMedium, Arc<AtomicBool>);
    #[derive(Debug)]
    struct Hung(Box<dyn StorageBackend>, Arc<AtomicBool>);
    impl Medium for Hanging {
        fn object(&self) -> String {
            self.0.object()
        }
        fn open(&self) -> io::Result<Option<Box<dyn StorageBackend>>> {
            Ok(self.0.open()?.map(|inner| Box::new(Hung(inner, self.1.clone())) as Box<_>))
        }
        fn blank(&self) -> io::Result<Box<dyn StorageBackend>> {
            self.0.blank()
        }
        fn adopt(&self) -> io::Result<()> {
            self.0.adopt()
        }
    }
    impl StorageBackend for Hung {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            while self.1.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
            self.0.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.write(offset, data)
        }
    }
    let (dir, gate) = (tempfile::tempdir().unwrap(), Arc::new(AtomicBool::new(false)));
    let medium = Arc::new(Hanging(FileMedium::new(dir.path()), gate.clone()));
    let engine = DurableEngine::open_on(medium, Arc::new(nsm_store::SystemClock::new())).await.unwrap();
    put(&engine, "a", "tcp://a", None).await.unwrap();
    gate.store(true, Ordering::Relaxed);
    let (slow, read) = tokio::join!(put(&engine, "b", "tcp://b", None), async { all(&engine).await });
    assert_eq!(slow.unwrap_err().kind, Kind::Timeout);
    assert_eq!(read, ["a tcp://a"], "readers do not wait for the disk");
    gate.store(false, Ordering::Relaxed);
    put(&engine, "c", "tcp://c", None).await.unwrap();
    engine.close().await;
}
