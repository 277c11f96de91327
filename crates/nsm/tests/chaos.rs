//! The small form of `nsm lab chaos`, of `nsm lab heals` and of `nsm lab soak`: the same code as in the large one, on few vWires.
#![allow(clippy::unwrap_used)] // helpers of tests, too

use serde_json::Value;
use std::process::Command;

/// Runs `nsm lab ...` and reads its line of JSON. Needs the right to make namespaces and, for links that can be bad, TAP devices,
/// as root or as an ordinary user; without it the test fails.
fn lab(words: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_nsm")).arg("lab").args(words).arg("--json").output().unwrap();
    let (out, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let last = out.lines().last().unwrap_or_default();
    let value: Value = serde_json::from_str(last).unwrap_or_else(|_| {
        panic!("nsm lab {words:?} did not run; it needs root, or user namespaces and /dev/net/tun (see `nsm doctor`):\n{told}")
    });
    assert!(value["ok"] == true && output.status.success(), "{value:#}\n{told}");
    value
}

/// A2, A8, A11, A14, A20, B8; I1, I2, I3, I4, I6: every role alone, and with every fault.
#[test]
fn chaos_loses_nothing_and_leaves_nothing() {
    let outcome = lab(&["chaos", "--vwires", "8", "--alone"]);
    let cases = outcome["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 24);
    let plain = cases.iter().filter(|case| case["roles"][0] != "packet");
    assert!(plain.clone().all(|case| case["lost"] == 0 && case["sent"].as_u64() > Some(500)), "{outcome:#}");
    assert_eq!(plain.count(), 21);
}

/// B6: loss and jitter are no reason to heal. The long form: `nsm lab heals --lossy 10`.
#[test]
fn a_lossy_link_heals_nothing() {
    let outcome = lab(&["heals", "--lossy", "0.3"]);
    let (sent, lost) = (outcome["sent"].as_u64().unwrap(), outcome["lost"].as_u64().unwrap());
    // Five of a hundred each way; a test of a link that lost nothing would show nothing.
    assert!(sent > 500 && lost * 100 > sent * 4 && lost * 100 < sent * 20, "{outcome}");
}

/// I2, I9: what comes and goes while processes die leaves nothing. The long form: `nsm lab soak`, half an hour.
#[test]
fn a_soak_leaves_nothing() {
    let outcome = lab(&["soak", "--minutes", "0.5", "--rate", "5"]);
    assert!(outcome["count"]["created"].as_u64() > Some(50), "{outcome:#}");
    assert_eq!(outcome["count"]["created"], outcome["count"]["closed"], "{outcome:#}");
}
