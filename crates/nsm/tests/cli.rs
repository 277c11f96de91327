//! The command line from outside: help, exit codes, and mistakes that are told all at once.

#![allow(clippy::unwrap_used)] // helpers of tests, too

use std::process::{Command, Output};

fn nsm(args: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nsm"));
    let Output { status, stdout, stderr } = command.args(args).env_clear().envs(variables.iter().copied()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().expect("it ends by itself"), text(stdout), text(stderr))
}

#[test]
fn every_command_has_help() {
    let mut waiting = vec![vec![]];
    let mut leaves = 0;
    while let Some(words) = waiting.pop() {
        let mut args: Vec<&str> = words.iter().map(String::as_str).collect();
        args.push("--help");
        let (code, help, problem) = nsm(&args, &[]);
        assert_eq!((code, problem.as_str()), (0, ""), "{args:?}");
        let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        let inner: Vec<String> =
            commands.map(|line| line.split_whitespace().next().unwrap().to_owned()).filter(|word| word != "help").collect();
        leaves += usize::from(inner.is_empty());
        waiting.extend(inner.into_iter().map(|word| words.iter().cloned().chain([word]).collect()));
    }
    assert!(leaves > 20, "{leaves}");
}

#[test]
fn exit_codes_are_documented_and_kept() {
    let (_, help, _) = nsm(&["--help"], &[]);
    for line in [
        "0  done; everything that was checked holds",
        "1  tried and failed, or something that was checked does not hold",
        "2  the command line, a setting or a file is wrong",
        "3  the mesh refused, or has no such thing (yet)",
        "4  somebody cannot be reached or did not answer in time",
        "5  told to stop, and stopped before everything was undone",
    ] {
        assert!(help.contains(line), "{line:?} is missing in:\n{help}");
    }
    let nobody = ("SPIFFE_ENDPOINT_SOCKET", "unix:///nonexistent/nsm/workload.sock");
    for (args, expected) in [
        (["version"].as_slice(), 0),
        (&["completion", "bash"], 0),
        (&[], 2),
        (&["no-such-command"], 2),
        (&["get", "services", "--no-such-flag"], 2),
        (&["apply"], 2),
        (&["apply", "-f", "/nonexistent/nsm.yaml"], 2),
        (&["describe", "service"], 2),
        (&["get", "services"], 4),
        (&["watch", "connections"], 4),
        (&["--netns", "nsm-test-no-such-namespace", "get", "services"], 3),
    ] {
        let (code, _, problem) = nsm(args, &[nobody]);
        assert_eq!(code, expected, "{args:?}: {problem}");
    }
}

#[test]
fn all_mistakes_of_a_role_are_told_at_once() {
    let variables = [("NSM_LISTEN_ON", "http://x"), ("NSM_DIAL_TIMEOUT", "5"), ("NSM_MAX_TOKEN_LIFETIME", "soon"), ("NSM_LISTENON", "x")];
    let (code, _, problem) = nsm(&["registry"], &variables);
    assert_eq!(code, 2, "{problem}");
    for part in [
        "settings of `nsm registry`",
        r#"NSM_LISTEN_ON="http://x""#,
        r#"NSM_DIAL_TIMEOUT="5": 5 has no unit, allowed is a duration"#,
        r#"NSM_MAX_TOKEN_LIFETIME="soon""#,
        "NSM_LISTENON is no setting of `nsm registry`, did you mean NSM_LISTEN_ON?",
        "correct these 3",
    ] {
        assert!(problem.contains(part), "{part:?} is missing in:\n{problem}");
    }
}

#[test]
fn errors_are_objects_when_json_is_wanted() {
    let (code, out, problem) = nsm(&["--json", "get", "services"], &[("SPIFFE_ENDPOINT_SOCKET", "unix:///nonexistent/nsm.sock")]);
    let told: serde_json::Value = serde_json::from_str(&problem).unwrap_or_else(|_| panic!("{problem}"));
    assert_eq!((code, out.as_str(), told["error"]["kind"].as_str()), (4, "", Some("unavailable")));
}

#[test]
fn the_doctor_has_a_row_for_everything() {
    let (code, out, problem) = nsm(&["doctor", "--json"], &[("SPIFFE_ENDPOINT_SOCKET", "unix:///nonexistent/nsm.sock")]);
    let rows: Vec<serde_json::Value> = serde_json::from_str(&out).unwrap();
    let checks: Vec<&str> = rows.iter().map(|row| row["check"].as_str().unwrap()).collect();
    for check in ["CAP_NET_ADMIN", "user namespace", "veth", "VXLAN", "open files", "clock", "UDP port 4789", "MTU", "identity"] {
        assert!(checks.contains(&check), "{check} is missing in {checks:?}");
    }
    let failed = rows.iter().any(|row| row["state"] == "failed");
    assert_eq!(code, i32::from(failed), "{problem}");
    assert!(rows.iter().all(|row| row["state"] == "ok" || !row["fix"].as_str().unwrap().is_empty()), "{out}");
}
