//! What no lint of the compiler holds: sizes of files, where `unsafe` may be, which crate may know which, and words that
//! have no place here. Reads the sources as text; knows nothing of their syntax.
#![allow(clippy::unwrap_used)] // a test's helpers fail like its body

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Lines of a source file without its tests.
const MAX_FILE: usize = 800;
/// Lines of code of a role without its tests: it puts parts together.
const MAX_ROLE: usize = 200;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Every text file below `dir` that belongs to the project, with its path from the root.
fn files(dir: &str) -> Vec<(String, String)> {
    let (root, mut found) = (root(), Vec::new());
    let mut waiting = vec![root.join(dir)];
    while let Some(path) = waiting.pop() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            let skip = name == "target" || name == ".git";
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).filter(|_| !skip));
        } else if let Ok(text) = fs::read_to_string(&path) {
            found.push((path.strip_prefix(&root).unwrap().to_string_lossy().into_owned(), text));
        }
    }
    found.sort();
    assert!(!found.is_empty(), "{dir} is empty");
    found
}

fn sources() -> Vec<(String, String)> {
    files("crates").into_iter().filter(|(path, _)| path.ends_with(".rs")).collect()
}

/// The lines before the tests at the end of a file; none of a file that is a test as a whole.
fn shipped<'a>(path: &str, text: &'a str) -> Vec<&'a str> {
    let is_test = path.contains("/tests/") || path.ends_with("/tests.rs") || path.ends_with("_tests.rs");
    text.lines().take_while(|line| !is_test && *line != "#[cfg(test)]").collect()
}

/// Fails with all mistakes at once.
fn none(mistakes: impl Iterator<Item = String>) {
    let mistakes: Vec<String> = mistakes.collect();
    assert!(mistakes.is_empty(), "\n{}", mistakes.join("\n"));
}

#[test]
fn files_are_short() {
    let sources = sources();
    let lengths = sources.iter().map(|(path, text)| (path, shipped(path, text).len()));
    none(lengths.filter(|(_, lines)| *lines > MAX_FILE).map(|(path, lines)| format!("{path}: {lines} lines, at most {MAX_FILE}")));
}

#[test]
fn roles_put_parts_together_and_no_more() {
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
    let roles: Vec<(String, usize)> = files("crates/nsm/src/roles")
        .into_iter()
        .map(|(path, text)| (path.clone(), shipped(&path, &text).into_iter().filter(is_code).count()))
        .collect();
    none(
        roles
            .iter()
            .filter(|(_, lines)| *lines > MAX_ROLE)
            .map(|(path, lines)| format!("{path}: {lines} lines of code, at most {MAX_ROLE}")),
    );
}

/// The kernel's crate and the packet engine, and there one file each.
#[test]
fn only_two_files_may_be_unsafe() {
    let rooms = ["crates/nsm-linux/", "crates/nsm-packet/"];
    let begins = [["unsafe", " {"].concat(), ["unsafe", " fn"].concat(), ["unsafe", " impl"].concat()];
    none(sources().iter().filter_map(|(path, text)| {
        if rooms.iter().any(|room| path.starts_with(room)) {
            let here = path.ends_with("/src/sys.rs") || !begins.iter().any(|word| text.contains(word));
            return (!here).then(|| format!("{path}: has unsafe code, which belongs into sys.rs"));
        }
        let is_root = path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs");
        (is_root && !text.contains("#![forbid(unsafe_code)]")).then(|| format!("{path}: does not forbid unsafe code"))
    }));
}

#[test]
fn nothing_is_unbounded_or_left_out() {
    let banned = [["unbounded", "_channel"].concat(), ["#[ign", "ore"].concat()];
    none(sources().iter().flat_map(|(path, text)| {
        banned.iter().filter(|word| text.contains(*word)).map(|word| format!("{path}: contains {word}")).collect::<Vec<_>>()
    }));
}

#[test]
fn dependencies_point_one_way() {
    let outside = ["tonic", "tonic-prost", "hyper", "hyper-util", "h2", "rustix", "libc", "rustls", "tokio-rustls"];
    let rules: [(&str, &[&str]); 9] = [
        ("nsm-dns", &["nsm-hop", "nsm-registry", "nsm-identity", "nsm-grpc", "nsm-linux", "nsm-lab", "tonic"]),
        ("nsm-packet", &["nsm-hop", "nsm-registry", "nsm-identity", "nsm-grpc", "nsm-linux", "nsm-lab", "tokio", "tonic"]),
        ("nsm-api", &["tokio", "nsm-hop", "nsm-registry", "nsm-identity", "nsm-grpc", "nsm-linux", "nsm-lab"]),
        ("nsm-hop", &["nsm-registry", "nsm-identity", "nsm-grpc", "nsm-linux", "nsm-lab"]),
        ("nsm-registry", &["nsm-hop", "nsm-identity", "nsm-grpc", "nsm-linux", "nsm-lab"]),
        ("nsm-store", &["nsm-hop", "nsm-identity", "nsm-grpc", "nsm-linux", "nsm-lab"]),
        ("nsm-identity", &["nsm-hop", "nsm-registry", "nsm-grpc", "nsm-linux", "nsm-lab"]),
        ("nsm-grpc", &["nsm-hop", "nsm-registry", "nsm-linux", "nsm-lab"]),
        ("nsm-linux", &["nsm-registry", "nsm-identity", "nsm-grpc", "nsm-lab", "tonic"]),
    ];
    none(rules.into_iter().flat_map(|(name, never)| {
        let pure = ["nsm-api", "nsm-hop", "nsm-registry"].contains(&name);
        let known = dependencies(name);
        let never = never.iter().chain(outside.iter().filter(|_| pure));
        never.filter(|other| known.iter().any(|one| one == *other)).map(|other| format!("{name} knows {other}")).collect::<Vec<_>>()
    }));
}

/// The crates that a crate of ours needs when it runs, not those of its build or its tests.
fn dependencies(name: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("crates").join(name).join("Cargo.toml")).unwrap();
    let section = text.lines().skip_while(|line| *line != "[dependencies]").skip(1).take_while(|line| !line.starts_with('['));
    let words = section.filter_map(|line| line.split(['.', ' ', '=']).next()).filter(|word| !word.is_empty() && !word.starts_with('#'));
    let found: Vec<String> = words.map(str::to_owned).collect();
    assert!(!found.is_empty(), "{name} has no dependencies");
    found
}

#[test]
fn no_machine_is_named() {
    let words = [["/wo", "rk/"].concat(), ["fa", "rm"].concat(), ["/ro", "ot/"].concat(), ["/ho", "me/"].concat()];
    // Parts of other words, as in "platform".
    let within = |text: &str, at: usize| text[..at].chars().next_back().is_some_and(char::is_alphanumeric);
    none(files(".").iter().filter(|(path, _)| path != "Cargo.lock").flat_map(|(path, text)| {
        let found = words.iter().filter(|word| text.match_indices(*word).any(|(at, _)| !within(text, at)));
        found.map(|word| format!("{path}: contains {word}")).collect::<Vec<_>>()
    }));
}
