//! Endpoints that a user writes with `nsm::sdk` serve in a mesh of real processes.
#![allow(clippy::unwrap_used)] // helpers of tests, too

use serde_json::Value;
use std::process::Command;

/// A lab in which an example of this crate plays the endpoint, and checks that see what is its own.
fn lab(example: &str, service: &str, url: &str, checks: &str) -> String {
    // Beside this test; `cargo test -p nsm` builds them, a single `--test sdk` does not.
    let built = std::env::current_exe().unwrap().parent().unwrap().with_file_name("examples").join(example);
    assert!(built.exists(), "{} is not built: run `cargo build -p nsm --examples`", built.display());
    format!(
        "apiVersion: networkservicemesh.io/v1\nkind: NetworkService\nmetadata: {{name: {service}}}\nspec: {{payload: IP}}\n---\n\
         apiVersion: networkservicemesh.io/v1\nkind: Lab\nmetadata: {{name: sdk-{service}}}\nspec:\n  nodes: [{{name: node-1}}]\n  endpoints:\n  \
         - {{name: mine, node: node-1, services: [{service}], cidr: [10.79.0.0/24], program: [{}]}}\n  clients:\n  \
         - {{name: client, node: node-1, services: [\"{url}\"]}}\n{checks}",
        built.display()
    )
}

fn run(name: &str, text: &str) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(format!("{name}.yaml"));
    std::fs::write(&file, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_nsm")).args(["lab", "run", "--json"]).arg(&file).output().unwrap();
    let (out, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let run: Value = serde_json::from_str(out.lines().last().unwrap_or_default())
        .unwrap_or_else(|_| panic!("the lab did not run; it needs root or a kernel that allows user namespaces:\n{told}"));
    assert!(run["ok"] == true && output.status.success(), "{run:#}\n{told}");
}

#[test]
fn a_service_in_user_space() {
    let checks = "  checks:\n  - tcp: {from: client, to: 10.79.0.0, port: 7}\n  - addresses: {pod: client, interface: nsm-1, equal: [10.79.0.1/32]}\n  - close: {client: client}\n";
    run("sdk-echo", &lab("echo", "echo", "kernel://echo/nsm-1", checks));
}

#[test]
fn a_kernel_endpoint_with_a_rule_of_its_own() {
    let checks = "  - {name: stranger, node: node-1, services: [\"kernel://intranet/nsm-1\"], expectRefusal: true}\n  checks:\n  \
         - route: {pod: client, to: 172.31.0.0/16, dev: nsm-1}\n  - ping: {from: client, to: 10.79.0.0}\n  \
         - refusal: {client: stranger, contains: [\"department\"]}\n";
    run("sdk-intranet", &lab("kernel_endpoint", "intranet", "kernel://intranet/nsm-1?department=sales", checks));
}
