use super::*;

const GOOD: &str = "
apiVersion: networkservicemesh.io/v1
kind: NetworkService
metadata: {name: hello}
spec: {payload: IP}
---
apiVersion: networkservicemesh.io/v1
kind: Lab
metadata: {name: hello}
spec:
  nodes: [{name: node-1}]
  endpoints:
  - {name: responder, node: node-1, kind: icmp-responder, services: hello, labels: {version: 1.1, up: true}, cidr: 172.16.1.100/31}
  clients:
  - {name: client, node: node-1, services: ['kernel://hello/nsm-1'], mode: stay}
  checks:
  - ping: {from: client, to: 172.16.1.100}
  - connections: {client: client, endpoint: responder, path: [client, node-1-manager]}
";

fn mistakes(text: &str) -> Vec<String> {
    read(text).expect_err("has mistakes").iter().map(ToString::to_string).collect()
}

#[test]
fn reads_services_as_text_and_the_lab_as_data() {
    let (lab, services) = read(GOOD).unwrap();
    assert_eq!(services.len(), 1);
    assert!(services[0].contains("kind: NetworkService"));
    assert_eq!(lab.namespace("client"), "hello-client");
    assert_eq!(lab.endpoints[0].labels["version"], "1.1");
    assert_eq!(lab.endpoints[0].labels["up"], "true");
    assert_eq!(lab.checks[0].to_string(), "client pings 172.16.1.100");
    assert_eq!(lab.checks[0].expected(), "3 of 3 echoes");
    assert_eq!(lab.checks[1].expected(), "endpoint responder; client > node-1-manager");
}

#[test]
fn all_mistakes_are_reported_at_once_with_their_key_and_what_is_allowed() {
    let text = GOOD
        .replace("mode: stay", "mode: later, colour: red")
        .replace("node: node-1, kind", "node: nowhere, kind")
        .replace("to: 172.16.1.100", "to: here, count: 0")
        .replace("172.16.1.100/31", "172.16.1.100/99");
    let all = mistakes(&text).join("\n");
    for part in [
        "spec.clients[0].mode: is \"later\", must be stay or init",
        "spec.clients[0].colour: is not a known key; known here: app, env,",
        "spec.endpoints[0].node: \"nowhere\" does not exist; there are node-1",
        "spec.endpoints[0].cidr: holds \"172.16.1.100/99\", must hold a prefix",
        "spec.checks[0].ping.to: is \"here\", must be an address",
        "spec.checks[0].ping.count: is 0, must be 1 to 1000",
    ] {
        assert!(all.contains(part), "{part}\nnot in\n{all}");
    }
}

#[test]
fn names_share_one_space_and_are_safe_in_paths() {
    let all =
        mistakes(&GOOD.replace("name: client,", "name: responder,").replace("{name: hello}\nspec:\n", "{name: ../x}\nspec:\n")).join("\n");
    assert!(all.contains("spec.clients[0].name: \"responder\" is taken"), "{all}");
    assert!(all.contains("metadata.name: is \"../x\""), "{all}");
}

#[test]
fn times_have_a_unit_and_a_bound() {
    let with = |text: &str| {
        GOOD.replace("- ping: {from: client, to: 172.16.1.100}", &format!("- lasts: {{client: client, interface: i, for: {text}}}"))
    };
    let (lab, _) = read(&with("1500ms")).unwrap();
    assert_eq!(lab.checks[0].expected(), "no echo lost in 1.5 s, same interface, tokens renewed");
    for (text, problem) in [
        ("8", "is \"8\", must be a time as 8s"),
        ("8h", "is \"8h\", must be a time as 8s"),
        ("9999s", "is too long, must be at most 600 s"),
    ] {
        let all = mistakes(&with(text)).join("\n");
        assert!(all.contains(&format!("spec.checks[0].lasts.for: {problem}")), "{all}");
    }
}

#[test]
fn a_file_without_a_lab_or_with_an_unknown_check_says_so() {
    assert!(mistakes("kind: NetworkService\n")[0].contains("0 documents of kind Lab"));
    let all = mistakes(&GOOD.replace("- ping:", "- pong:")).join("\n");
    assert!(all.contains("spec.checks[0].pong: is not a known check; known: ping, tcp"), "{all}");
    assert!(mistakes(": :\n  - x: [").join(" ").contains("is not YAML"));
}

#[test]
fn every_example_reads() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ext| ext == "yaml") {
            let file = read_file(&path).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(Some(file.lab.name.as_str()), path.file_stem().and_then(|stem| stem.to_str()), "the lab is called as its file");
            assert!(!file.lab.checks.is_empty());
            seen += 1;
        }
    }
    assert!(seen >= 10, "{seen} examples");
}

#[test]
fn who_plays_a_role_is_a_path_beside_the_file_and_only_where_it_can_be() {
    let played = GOOD
        .replace("mode: stay", "program: [../bin/nsc, -v], env: {NSM_X: 1}")
        .replace("{name: node-1}", "{name: node-1, manager: {program: m}}");
    let (lab, _) = read(&played).unwrap();
    assert_eq!(lab.clients[0].part.program, ["../bin/nsc", "-v"]);
    assert_eq!((lab.clients[0].part.env["NSM_X"].as_str(), lab.nodes[0].manager.program.as_slice()), ("1", ["m".to_owned()].as_slice()));

    let dir = std::env::temp_dir().join(format!("nsm-lab-read-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("a.yaml"), played).unwrap();
    let file = read_file(&dir.join("a.yaml"));
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(file.unwrap().lab.clients[0].part.program[0], dir.join("../bin/nsc").display().to_string());

    let text = GOOD
        .replace("mode: stay", "program: [], mode: init")
        .replace("{name: node-1}", "{name: node-1, combined: true, forwarder: {program: f, flags: x}}")
        .replace("  - ping:", "  - restart: {process: nobody, signal: HUP}\n  - ping:");
    let all = mistakes(&text).join("\n");
    for part in [
        "spec.clients[0].program: must be the path of a program and its arguments",
        "spec.nodes[0].combined: is one process of ours",
        "spec.nodes[0].forwarder.flags: is not a known key; known here: env, program",
        "spec.checks[0].restart.signal: is \"HUP\", must be TERM or KILL",
        "spec.checks[0]: \"nobody\" does not exist; there are client, identity, node-1, registry, responder",
    ] {
        assert!(all.contains(part), "{part} not in\n{all}");
    }
    let init = mistakes(&GOOD.replace("mode: stay", "program: x, mode: init")).join("\n");
    assert!(init.contains("spec.clients[0].program: is only for mode stay"), "{init}");
}
