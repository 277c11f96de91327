//! The resolver file: pure rules, real files, and a mount point as in containers (E-20).

use crate::fake::Fake;
use nsm_dns::{
    Resolver,
    resolv_conf::{MAX_SIZE, ResolvConf, parse, restore, rewrite},
};
use proptest::prelude::*;
use std::{
    fs,
    net::IpAddr,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
};

const KUBERNETES: &str = "search default.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n";

fn ours() -> IpAddr {
    "127.0.0.1".parse().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_rewritten_text_names_us_and_keeps_the_former_lines() {
    let new = text(&rewrite(KUBERNETES.as_bytes(), ours()));
    let expected = "# nsm resolver: 127.0.0.1\nnameserver 127.0.0.1\n# nsm kept: search default.svc.cluster.local svc.cluster.local\n\
                    # nsm kept: nameserver 10.96.0.10\n# nsm kept: options ndots:5\n";
    assert_eq!(new, expected);
    let config = parse(new.as_bytes());
    assert_eq!((config.dns_server_ips, config.search_domains), (vec!["127.0.0.1".to_owned()], vec![]));
}

#[test]
fn what_others_change_meanwhile_stays() {
    let rewritten = text(&rewrite(KUBERNETES.as_bytes(), ours()));
    let table = [
        ("a line behind", format!("{rewritten}options timeout:1\n"), format!("{KUBERNETES}options timeout:1\n")),
        ("a line before", format!("nameserver 9.9.9.9\n{rewritten}"), format!("{KUBERNETES}nameserver 9.9.9.9\n")),
        (
            "another server in our place",
            rewritten.replace("\nnameserver 127.0.0.1\n", "\nnameserver 9.9.9.9\n"),
            format!("{KUBERNETES}nameserver 9.9.9.9\n"),
        ),
        ("ours once more", format!("{rewritten}nameserver 127.0.0.1\n"), format!("{KUBERNETES}nameserver 127.0.0.1\n")),
        ("all new", "nameserver 9.9.9.9".to_owned(), "nameserver 9.9.9.9".to_owned()),
        ("emptied", String::new(), String::new()),
        ("our first line taken away", rewritten.replace("# nsm resolver: 127.0.0.1\n", ""), format!("{KUBERNETES}nameserver 127.0.0.1\n")),
        (
            "a line behind one that had no end",
            format!("{}options x\n", text(&rewrite(b"nameserver 1.1.1.1", ours()))),
            "nameserver 1.1.1.1\noptions x\n".to_owned(),
        ),
    ];
    for (what, now, expected) in table {
        assert_eq!(text(&restore(now.as_bytes())), expected, "{what}");
    }
}

#[test]
fn a_text_is_read_as_resolvers_read_it() {
    let table: [(&str, &[&str], &[&str]); 8] = [
        ("", &[], &[]),
        (KUBERNETES, &["10.96.0.10"], &["default.svc.cluster.local", "svc.cluster.local"]),
        ("nameserver 1.1.1.1\nnameserver\t2.2.2.2 # two\n", &["1.1.1.1", "2.2.2.2"], &[]),
        ("search a b\ndomain c d\n", &[], &["c"]),
        ("domain c\nsearch a b\n", &[], &["a", "b"]),
        ("#nameserver 1.1.1.1\n;search a\n  nameserver fd00::1", &["fd00::1"], &[]),
        ("nameserver\nsearch\nnameservers 1.1.1.1\n", &[], &[]),
        ("search a\r\nnameserver 1.1.1.1\r\n", &["1.1.1.1"], &["a"]),
    ];
    for (text, servers, search) in table {
        let config = parse(text.as_bytes());
        assert_eq!(
            (config.dns_server_ips, config.search_domains),
            (servers.iter().map(|s| (*s).to_owned()).collect(), search.iter().map(|s| (*s).to_owned()).collect()),
            "{text:?}"
        );
    }
}

/// Any bytes and lines that look like ours, but none that is.
fn any_text() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        Just(b"nameserver 127.0.0.1\n".to_vec()),
        Just(b"# nsm\n".to_vec()),
        Just(b" # nsm kept: x\n".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"search a b".to_vec()),
    ];
    proptest::collection::vec(line, 0..12).prop_map(|lines| lines.concat())
}

proptest! {
    #[test]
    fn what_is_rewritten_is_restored_byte_by_byte(text in any_text()) {
        let once = rewrite(&text, ours());
        prop_assert_eq!(&restore(&once), &text);
        prop_assert_eq!(&restore(&text), &text, "nothing of ours, nothing to restore");
        prop_assert_eq!(&rewrite(&once, ours()), &once, "a run after a kill begins where the killed one began");
        let elsewhere = rewrite(&once, "fd00::53".parse().unwrap());
        prop_assert_eq!(&restore(&elsewhere), &text, "also when it listens elsewhere");
        prop_assert_eq!(parse(&restore(&once)), parse(&text));
    }

    #[test]
    fn lines_of_others_survive(text in any_text(), foreign in "[a-z]{0,20}", before in any::<bool>()) {
        let (once, foreign) = (rewrite(&text, ours()), format!("option {foreign}\n"));
        let now = if before { [foreign.as_bytes(), &once].concat() } else { [&once, foreign.as_bytes()].concat() };
        let restored = restore(&now);
        prop_assert!(restored.starts_with(&text) && restored.ends_with(foreign.as_bytes()));
    }
}

#[test]
fn a_file_is_replaced_in_one_step_and_restored_with_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    fs::write(&path, KUBERNETES).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    let (held, config) = ResolvConf::take_over(&path, ours()).unwrap();
    assert_eq!(config, parse(KUBERNETES.as_bytes()));
    assert_eq!(fs::read(&path).unwrap(), rewrite(KUBERNETES.as_bytes(), ours()));
    assert_ne!(fs::metadata(&path).unwrap().ino(), inode, "a new file took its place");
    held.restore().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), KUBERNETES);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn a_killed_run_is_recovered_and_a_value_that_ends_restores() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    fs::write(&path, KUBERNETES).unwrap();
    fs::write(dir.path().join(".resolv.conf.nsm"), "left by a kill").unwrap();
    std::mem::forget(ResolvConf::take_over(&path, ours()).unwrap());
    let (held, config) = ResolvConf::take_over(&path, "127.0.0.2".parse().unwrap()).unwrap();
    assert_eq!(config, parse(KUBERNETES.as_bytes()));
    assert!(fs::read_to_string(&path).unwrap().contains("\nnameserver 127.0.0.2\n"));
    drop(held);
    assert_eq!(fs::read_to_string(&path).unwrap(), KUBERNETES);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn links_missing_files_and_refusals() {
    let dir = tempfile::tempdir().unwrap();
    let (path, link) = (dir.path().join("real"), dir.path().join("link"));
    fs::write(&path, KUBERNETES).unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let (held, _) = ResolvConf::take_over(&link, ours()).unwrap();
    assert!(fs::read_to_string(&path).unwrap().contains("127.0.0.1") && link.is_symlink());
    // Another program replaces the file as a whole: it is left alone.
    fs::write(&path, "nameserver 9.9.9.9\n").unwrap();
    held.restore().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 9.9.9.9\n");

    let missing = dir.path().join("missing");
    let (held, config) = ResolvConf::take_over(&missing, ours()).unwrap();
    assert_eq!(config, parse(b""));
    held.restore().unwrap();
    assert_eq!(fs::read_to_string(&missing).unwrap(), "");

    fs::write(&path, "x".repeat(MAX_SIZE)).unwrap();
    let error = ResolvConf::take_over(&path, ours()).unwrap_err();
    assert_eq!((error.kind, fs::metadata(&path).unwrap().len()), (nsm_api::Kind::Invalid, MAX_SIZE as u64));
    let error = ResolvConf::take_over(&dir.path().join("no/such/dir"), ours()).unwrap_err();
    assert_eq!(error.kind, nsm_api::Kind::Kernel);
    assert!(error.to_string().contains("no/such/dir"), "{error}");
}

/// Set in the process that has a mount namespace of its own.
const INSIDE: &str = "NSM_DNS_TEST_INSIDE";
/// The C library asks port 53 only; this loopback address is nobody else's.
fn local() -> IpAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    IpAddr::from([127, 53, high, low | 1])
}

/// The C library of this machine reads the rewritten file, asks us, and finds what a server of a vWire knows. The
/// file is a mount point, as in a container, and so cannot be replaced.
#[test]
fn the_c_library_finds_names_of_services_through_a_file_that_is_a_mount_point() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("resolv.conf");
    fs::write(&file, KUBERNETES).unwrap();
    let name = "resolv_conf::the_c_library_finds_names_of_services_through_a_file_that_is_a_mount_point";
    let mut command = Command::new("unshare");
    command.arg("--mount").arg("sh").arg("-c").arg("mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"").arg("sh").arg(&file);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]).env(INSIDE, "1");
    let output = command.output().expect("this test needs unshare and mount of util-linux");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "this test needs root and mount namespaces:\n{said}");
    assert!(said.contains("1 passed"), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), KUBERNETES, "restored through the mount point");
}

fn inside() {
    let path = Path::new("/etc/resolv.conf");
    let inode = fs::metadata(path).unwrap().ino();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (resolver, server) = runtime.block_on(async {
        let resolver = Resolver::start((local(), 53).into()).await.unwrap();
        (resolver, Fake::zone(&[("redis.my.coredns.service.", [172, 16, 1, 100])]).await)
    });
    let (held, mut config) = ResolvConf::take_over(path, local()).unwrap();
    assert_eq!(fs::metadata(path).unwrap().ino(), inode, "written in place");
    config.dns_server_ips = vec![server.address.to_string()];
    config.search_domains.push("my.coredns.service".to_owned());
    resolver.set("connection-1", &[config]).unwrap();
    for name in ["redis.my.coredns.service", "redis"] {
        let found = Command::new("getent").args(["ahosts", name]).output().expect("this test needs getent of the C library");
        assert!(String::from_utf8_lossy(&found.stdout).starts_with("172.16.1.100 "), "{name}: {found:?} {:?}", resolver.status());
    }
    held.restore().unwrap();
    assert_eq!(fs::read_to_string(path).unwrap(), KUBERNETES);
}
