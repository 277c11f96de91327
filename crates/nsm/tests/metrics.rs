//! Counters of a real wire, as a collector reads them (E-23). Needs root or a user namespace of its own, and bash.

#![allow(clippy::unwrap_used)] // helpers of tests, too

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

const LAB: &str = r#"
apiVersion: networkservicemesh.io/v1
kind: NetworkService
metadata: {name: counted}
spec: {payload: IP}
---
apiVersion: networkservicemesh.io/v1
kind: Lab
metadata: {name: metrics-NUMBER}
spec:
  nodes:
  - name: node-1
    forwarder: {env: {NSM_PROMETHEUS_LISTEN_ON: "127.0.0.1:9108"}}
  endpoints:
  - {name: responder, node: node-1, kind: icmp-responder, services: [counted], cidr: [172.16.1.0/30]}
  clients:
  - {name: client, node: node-1, services: ["kernel://counted/nsm-1"], env: {NSM_LIVENESS_CHECK_ENABLED: "false"}}
  checks:
  - ping: {from: client, to: 172.16.1.0}
"#;

/// A lab that is up until this value ends.
struct Lab(PathBuf);

impl Lab {
    fn up() -> Lab {
        let number = std::process::id().to_string();
        let file = std::env::temp_dir().join(format!("nsm-metrics-{number}.yaml"));
        fs::write(&file, LAB.replace("NUMBER", &number)).unwrap();
        let lab = Lab(file);
        let output = lab.nsm(&["up"], &[]);
        assert!(output.status.success(), "{output:?}");
        lab
    }
    fn nsm(&self, words: &[&str], after: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_nsm")).arg("lab").args(words).arg(&self.0).args(after).output().unwrap()
    }
    /// The answer of the node's forwarder to a collector.
    fn metrics(&self, path: &str) -> String {
        let ask = format!("exec 3<>/dev/tcp/127.0.0.1/9108; printf 'GET {path} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' >&3; cat <&3");
        let lab = format!("metrics-{}", std::process::id());
        let words = ["lab", "exec", "--lab", &lab, "node-1", "--", "bash", "-c", &ask];
        let output = Command::new(env!("CARGO_BIN_EXE_nsm")).args(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
    fn ping(&self, count: u32) {
        let lab = format!("metrics-{}", std::process::id());
        let netns = nsm_linux::netns::open_named(&format!("{lab}-client")).unwrap();
        let options = nsm_linux::probe::PingOptions { count, ..nsm_linux::probe::PingOptions::once("172.16.1.0".parse().unwrap()) };
        let options = nsm_linux::probe::PingOptions { interval: std::time::Duration::from_millis(1), ..options };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert_eq!(runtime.block_on(nsm_linux::probe::ping(&netns, options)).unwrap().received, count);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.nsm(&["down"], &[]);
        let _ = fs::remove_file(&self.0);
    }
}

/// The value of a family at one side of the only wire.
fn value(text: &str, family: &str, side: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(&format!("{family}{{")) && line.contains(&format!("side=\"{side}\"")));
    let line = line.unwrap_or_else(|| panic!("no {family} of {side} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_collector_sees_what_passes() {
    let lab = Lab::up();
    let before = lab.metrics("/metrics");
    assert!(before.starts_with("HTTP/1.1 200 OK") && before.contains("nsm_connections{hop=\"node-1-forwarder\"} 1\n"), "{before}");
    lab.ping(5);
    let after = lab.metrics("/metrics");
    let grown = |family, side| value(&after, family, side) - value(&before, family, side);
    for (family, side) in [
        ("nsm_wire_sent_packets_total", "server"),
        ("nsm_wire_received_packets_total", "server"),
        ("nsm_wire_sent_packets_total", "client"),
        ("nsm_wire_received_packets_total", "client"),
    ] {
        // Besides, the kernel itself may ask for routers.
        assert!((5..15).contains(&grown(family, side)), "{family} of {side}");
    }
    assert!(grown("nsm_wire_sent_bytes_total", "server") >= 5 * 84);
    assert!(lab.metrics("/").starts_with("HTTP/1.1 404"));
}
