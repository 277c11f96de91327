//! All examples, as a user runs them: every check holds and nothing is left behind.
#![allow(clippy::unwrap_used)] // helpers of tests, too

use serde_json::Value;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

/// The names of the example files, which are those of their labs; those in directories below, too.
fn files(dir: &Path) -> BTreeSet<String> {
    let paths: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    let (dirs, files): (Vec<_>, Vec<_>) = paths.into_iter().partition(|path| path.is_dir());
    let yaml = files.into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "yaml"));
    let names = yaml.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
    names.chain(dirs.iter().flat_map(|dir| self::files(dir))).collect()
}

/// What did not hold, one line each.
fn problems(run: &Value) -> Vec<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut all = Vec::new();
    for example in list(&run["examples"]) {
        let name = example["name"].as_str().unwrap_or("?");
        let failed = list(&example["checks"]).into_iter().filter(|check| check["ok"] != true);
        all.extend(failed.map(|check| format!("{name}: {}: expected {}, seen {}", check["check"], check["expected"], check["seen"])));
        all.extend(list(&example["leftovers"]).into_iter().map(|left| format!("{name}: left behind: {left}")));
    }
    all
}

/// Needs the right to make namespaces, as root or as an ordinary user; without it this test fails.
#[test]
fn every_example_holds_and_leaves_nothing_behind() {
    let dir: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let output = Command::new(env!("CARGO_BIN_EXE_nsm")).args(["lab", "run", "--json"]).arg(&dir).output().unwrap();
    let (out, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let last = out.lines().last().unwrap_or_default();
    let run: Value = serde_json::from_str(last).unwrap_or_else(|_| {
        panic!("the examples did not run; they need root or a kernel that allows user namespaces (see `nsm doctor`):\n{told}")
    });
    assert_eq!(problems(&run), Vec::<String>::new(), "{told}");
    let ran: BTreeSet<String> =
        run["examples"].as_array().unwrap().iter().map(|example| example["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ran, files(&dir), "every file is run");
    assert!(run["ok"] == true && output.status.success(), "{told}");
}
