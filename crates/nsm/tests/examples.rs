//! The examples that teach, as a user runs them: every check holds and nothing is left behind. Those of healing and of
//! faults, in directories of their own, take minutes; `./test` brings up all of them.
#![allow(clippy::unwrap_used)] // helpers of tests, too

use serde_json::Value;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

fn files() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|ext| ext == "yaml")).collect()
}

/// The names of example files are those of their labs.
fn names(files: &[PathBuf]) -> BTreeSet<String> {
    files.iter().map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
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
    let files = files();
    let output = Command::new(env!("CARGO_BIN_EXE_nsm")).args(["lab", "run", "--json"]).args(&files).output().unwrap();
    let (out, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let last = out.lines().last().unwrap_or_default();
    let run: Value = serde_json::from_str(last).unwrap_or_else(|_| {
        panic!("the examples did not run; they need root or a kernel that allows user namespaces (see `nsm doctor`):\n{told}")
    });
    assert_eq!(problems(&run), Vec::<String>::new(), "{told}");
    let ran: BTreeSet<String> =
        run["examples"].as_array().unwrap().iter().map(|example| example["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ran, names(&files), "every file is run");
    assert!(run["ok"] == true && output.status.success(), "{told}");
}
