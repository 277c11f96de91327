//! The process and the machine: what the kernel does for us, limits, clock, directories.

use super::Finding;
use nsm_linux::Feature;
use rustix::{
    fs::{Access, access},
    process::{Resource, getrlimit},
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Where the sockets are by default.
const DIRECTORIES: [(&str, &str); 2] =
    [("/run/nsm", "the workload API of `nsm identity` and `nsm node`"), ("/var/lib/networkservicemesh", "the manager's socket")];
/// A manager holds about two descriptors for each connection.
const WANTED_FILES: u64 = 4096;
pub(super) fn findings() -> Vec<Finding> {
    let mut findings = kernel(&nsm_linux::features());
    findings.extend([open_files(), clock()]);
    findings.extend(DIRECTORIES.map(|(path, what)| directory(Path::new(path), what)));
    findings
}

/// One missing thing keeps something from working; when all are missing, nothing works.
fn kernel(features: &[Feature]) -> Vec<Finding> {
    let some = features.iter().any(|feature| feature.present);
    let finding = |feature: &Feature| {
        let seen = format!("missing: {}", feature.needed_for);
        match feature.present {
            true => Finding::ok(feature.name, "works"),
            false if some => Finding::warning(feature.name, seen, feature.fix.clone()),
            false => Finding::failed(feature.name, seen, feature.fix.clone()),
        }
    };
    features.iter().map(finding).collect()
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
    fn what_the_kernel_cannot_do_is_a_warning_unless_it_can_do_nothing() {
        let feature = |present| Feature { name: "VXLAN", present, needed_for: "wires between two nodes", fix: "modprobe vxlan".into() };
        let states = |features: &[Feature]| kernel(features).iter().map(|finding| finding.state).collect::<Vec<_>>();
        assert_eq!(states(&[feature(true), feature(false)]), [Health::Ok, Health::Warning]);
        assert_eq!(states(&[feature(false)]), [Health::Failed]);
        assert_eq!(kernel(&[feature(false)])[0].seen, "missing: wires between two nodes");
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
