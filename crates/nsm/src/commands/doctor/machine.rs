//! The process and the machine: rights, limits, clock, directories.

use super::Finding;
use rustix::{
    fs::{Access, access},
    process::{Resource, getrlimit},
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Bits of the capabilities that a forwarder and a lab need.
const CAPABILITIES: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (21, "CAP_SYS_ADMIN")];
/// Where the sockets are by default.
const DIRECTORIES: [(&str, &str); 2] =
    [("/run/nsm", "the workload API of `nsm identity` and `nsm node`"), ("/var/lib/networkservicemesh", "the manager's socket")];
/// A manager holds about two descriptors for each connection.
const WANTED_FILES: u64 = 4096;
/// Settings of the kernel that forbid user namespaces, and the value that does.
const USER_NAMESPACES: [(&str, &str, &str); 3] = [
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
];

pub(super) fn findings() -> Vec<Finding> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut findings = vec![privileges(&status), user_namespaces(|path| fs::read_to_string(path).ok()), open_files(), clock()];
    findings.extend(DIRECTORIES.map(|(path, what)| directory(Path::new(path), what)));
    findings
}

fn privileges(status: &str) -> Finding {
    let held = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok()).unwrap_or(0);
    let missing: Vec<_> = CAPABILITIES.iter().filter(|(bit, _)| held & (1 << bit) == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return Finding::ok("privileges", "may change networks");
    }
    let fix = "run forwarders and nodes as root; `nsm lab` uses its own user namespace without";
    Finding::warning("privileges", format!("{} missing", missing.join(", ")), fix)
}

fn user_namespaces(read: impl Fn(&str) -> Option<String>) -> Finding {
    let check = "user namespaces";
    for (path, forbids, fix) in USER_NAMESPACES {
        if read(path).is_some_and(|value| value.trim() == forbids) {
            return Finding::warning(check, format!("{path} is {forbids}: no lab without root"), fix);
        }
    }
    Finding::ok(check, "allowed")
}

fn open_files() -> Finding {
    let limit = getrlimit(Resource::Nofile);
    match (limit.current, limit.maximum) {
        (Some(current), _) if current < WANTED_FILES => {
            let fix = format!("ulimit -n {WANTED_FILES}, or LimitNOFILE={WANTED_FILES} in the unit");
            Finding::warning("open files", format!("{current} per process: some {} connections on a node", current / 2), fix)
        }
        (current, _) => Finding::ok("open files", current.map_or("unlimited".into(), |current| format!("{current} per process"))),
    }
}

/// A clock that is behind this program's own file is certainly wrong; certificates and tokens would be, too.
fn clock() -> Finding {
    let built = std::env::current_exe().and_then(fs::metadata).and_then(|file| file.modified());
    match built {
        Ok(built) if SystemTime::now() < built => {
            let fix = "set the clock (timedatectl set-ntp true): certificates and tokens depend on it";
            Finding::failed("clock", "it is earlier than this program was written", fix)
        }
        Ok(_) => Finding::ok("clock", "later than this program was written"),
        Err(problem) => Finding::warning("clock", format!("nothing to compare it with: {problem}"), "compare it with another machine"),
    }
}

fn directory(path: &Path, what: &str) -> Finding {
    let check = format!("directory {}", path.display());
    let mut there = PathBuf::from(path);
    while !there.exists() && there.pop() {}
    let state = if there == path { "there and writable" } else { "can be made" };
    match access(&there, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Finding::ok(check, state),
        Err(problem) => {
            let fix = format!("it holds {what}: run as root, or give --listen-on another path");
            Finding::warning(check, format!("{} cannot be written: {problem}", there.display()), fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;

    #[test]
    fn rights_are_read_from_the_effective_set() {
        assert_eq!(privileges("CapPrm:\t0\nCapEff:\t000001ffffffffff\n").state, Health::Ok);
        let none = privileges("CapEff:\t0000000000000000\n");
        assert_eq!((none.state, none.seen.as_str()), (Health::Warning, "CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN missing"));
    }

    #[test]
    fn what_forbids_user_namespaces_is_named() {
        assert_eq!(user_namespaces(|_| None).state, Health::Ok);
        let found = user_namespaces(|path| path.contains("apparmor").then(|| "1\n".to_owned()));
        assert!(found.seen.contains("apparmor_restrict") && found.fix.contains("sysctl -w kernel.apparmor"), "{found:?}");
    }

    #[test]
    fn a_directory_is_judged_by_its_nearest_parent() {
        let missing = std::env::temp_dir().join("nsm-doctor-missing/a/b");
        assert_eq!(directory(&missing, "x").seen, "can be made");
        assert_eq!(directory(&std::env::temp_dir(), "x").state, Health::Ok);
    }

    #[test]
    fn the_clock_of_this_machine_is_right() {
        assert_eq!(clock().state, Health::Ok);
    }
}
