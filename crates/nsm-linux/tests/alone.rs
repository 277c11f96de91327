//! What a process does with itself at its very start: entering a namespace for good, and becoming root of its own small
//! world without being root. Runs without the usual harness, as both need a process with one thread.
#![allow(clippy::unwrap_used)] // a test's helpers fail like its body

mod common;

use common::{MUST, Real};
use nsm_hop::testing::conformance;
use nsm_linux::{net::Net, netns};
use std::{os::unix::process::CommandExt, process::Command};

/// `nobody`, as whom the test of an ordinary user runs when it was started by root.
const ORDINARY_USER: u32 = 65534;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("as-guest") => as_guest(&std::env::args().nth(2).expect("the caller names a namespace")),
        Some("as-ordinary-user") => as_ordinary_user(),
        Some("as-owner") => as_owner(),
        _ => {
            let name = format!("nsm-alone-{}", std::process::id());
            netns::create_named(&name).expect(MUST);
            let entered = again(&["as-guest", &name]).status();
            netns::delete_named(&name).unwrap();
            assert!(entered.unwrap().success(), "entering a namespace for good");
            assert!(again(&["as-owner"]).status().unwrap().success(), "a file of its own");
            let mut child = again(&["as-ordinary-user"]);
            if rustix::process::geteuid().is_root() && knows(ORDINARY_USER) {
                child.uid(ORDINARY_USER).gid(ORDINARY_USER);
            }
            assert!(child.status().unwrap().success(), "a world of its own for an ordinary user");
            println!("test alone ... ok");
        }
    }
}

/// Whether this user namespace has that user. One made by an ordinary user has its maker only.
fn knows(user: u32) -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    map.lines().any(|line| {
        let [first, _, count] = line.split_whitespace().map(|word| word.parse().unwrap()).collect::<Vec<u32>>()[..] else { return false };
        user.checked_sub(first).is_some_and(|offset| offset < count)
    })
}

fn again(arguments: &[&str]) -> Command {
    let mut command = Command::new("/proc/self/exe"); // found whatever rights the directories on the way ask for
    command.args(arguments);
    command
}

fn as_guest(name: &str) {
    let (home, wanted) = (netns::current().unwrap(), netns::open_named(name).unwrap());
    netns::enter_forever(&wanted).unwrap();
    assert!(netns::current().unwrap() == wanted && wanted != home);
    let checked = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(netns::current().unwrap(), wanted, "threads made later are there too");
            checked.wait();
        });
        let refused = netns::enter_forever(&wanted).is_err();
        checked.wait();
        assert!(refused, "with two threads it is too late");
    });
}

/// E-20: a file of the machine is another one here, which is written and restored in place of it.
fn as_owner() {
    // The directory for temporary files may be that of the user who started the test.
    let places = [std::env::temp_dir(), "/tmp".into()].map(|place| place.join(format!("nsm-own-file-{}", std::process::id())));
    let dir = places.into_iter().find(|dir| std::fs::create_dir(dir).is_ok()).unwrap();
    let (public, own) = (dir.join("public"), dir.join("own"));
    std::fs::write(&public, "of the machine").unwrap();
    std::fs::write(&own, "of one process").unwrap();
    netns::own_file(&public, &own).unwrap();
    assert_eq!(std::fs::read_to_string(&public).unwrap(), "of one process");
    std::fs::write(&public, "changed").unwrap();
    assert_eq!(std::fs::read_to_string(&own).unwrap(), "changed");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(mounts.lines().any(|line| line.split(' ').nth(4) == public.to_str()), "it is a mount of its own");
    let seen_outside = std::fs::read_to_string(format!("/proc/{}/root{}", std::os::unix::process::parent_id(), public.display()));
    assert_eq!(seen_outside.unwrap(), "of the machine");
    rustix::mount::unmount(&public, rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(std::fs::read_to_string(&public).unwrap(), "of the machine");
    std::fs::remove_dir_all(&dir).unwrap();
}

fn as_ordinary_user() {
    netns::unshare_user_and_net().unwrap();
    assert_eq!(Net::new(&netns::current().unwrap()).unwrap().links().unwrap().len(), 1, "a network of its own");
    assert_eq!(netns::list_named().unwrap(), Vec::<String>::new(), "names of its own");
    let pod = netns::create_named("pod").unwrap();
    assert_eq!(netns::open_named("pod").unwrap(), pod);
    netns::delete_named("pod").unwrap();
    assert!(again(&["as-owner"]).status().unwrap().success(), "a file of its own inside");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (world, kernel) = Real::new();
        let before = world.node.snapshot().unwrap();
        conformance(&kernel, &world).await;
        assert_eq!(world.node.snapshot().unwrap(), before);
    });
}
