//! The scripts of `scripts/` say what happens. With NSM_BLESS set, what happens is written into them.
#![allow(clippy::unwrap_used)] // a test fails like its body

use std::{fs, path::Path};

#[test]
fn scripts_say_what_happens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 8, "{files:?}");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let played = nsm_sim::script::play(&text).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        if std::env::var_os("NSM_BLESS").is_some() {
            fs::write(&file, &played).unwrap();
        }
        assert!(!played.contains("does not hold"), "{played}");
        assert_eq!(played, fs::read_to_string(&file).unwrap(), "{file:?}: run with NSM_BLESS=1 if this is what should happen");
    }
}

/// What does not make sense is refused with the line.
#[test]
fn a_mistake_in_a_script_is_refused() {
    for (script, reason) in [
        ("> dance", "line 1"),
        ("> nodes n1\n> client c on n2 wants x", "line 2"),
        ("> nodes n1\n> start", "no endpoint"),
        ("> show vwires", "known word"),
    ] {
        let refusal = nsm_sim::script::play(script).unwrap_err().to_string();
        assert!(refusal.contains(reason), "{refusal}");
    }
}
