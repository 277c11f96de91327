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
        "spec.clients[0].colour: is not a known key; known here: app, awareness, env,",
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

/// E-17, E-22
#[test]
fn what_wires_carry_is_read_and_each_mistake_in_it_is_named() {
    let text = GOOD
        .replace(
            "  nodes: [{name: node-1}]",
            "  underlay: ipv6\n  underlayMtu: 1400\n  files: {a.txt: text}\n  nodes: [{name: node-1, excludedPrefixes: [10.0.0.0/8]}]",
        )
        .replace(
            "cidr: 172.16.1.100/31",
            "cidr: 172.16.1.100/31, ipam: strict, dns: [{servers: [10.0.0.1], search: [a]}], names: {x.a: '::1'},
             policyRoutes: [{from: 10.0.0.1/24, proto: 6, dstport: 80, routes: [{prefix: 0.0.0.0/0, nexthop: 10.0.0.2}]}]",
        )
        .replace("mode: stay", "awareness: [['kernel://hello/nsm-1']], resolvConf: ''")
        .replace(
            "  - ping:",
            "  - way: {pod: client, to: 10.9.9.9, protocol: tcp, dstPort: 80, via: none, table: 1}
  - resolves: {pod: client, name: x.a, to: []}
  - write: {file: a.txt, text: other}
  - apply: {service: {apiVersion: networkservicemesh.io/v1, kind: NetworkService, metadata: {name: hello}, spec: {payload: IP}}}
  - ping: {from: client, to: 172.16.1.100, size: 1400, whole: true}
  - ping:",
        );
    let (lab, _) = read(&text).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
    let told: Vec<String> = lab.checks.iter().take(5).map(|check| format!("{check}: {}", check.expected())).collect();
    assert_eq!(
        told,
        [
            "way out of client to 10.9.9.9 by TCP to port 80: on the link table 1",
            "client asks for x.a: no such name",
            "file a.txt changes: written",
            "service hello changes: registered",
            "client pings 172.16.1.100 with 1400 bytes, unsplit: 3 of 3 echoes",
        ]
    );
    let bad = text
        .replace("underlay: ipv6", "underlay: token-ring")
        .replace("underlayMtu: 1400", "underlayMtu: 100")
        .replace("{a.txt: text}", "{../x: text, node-1-excluded-prefixes.yaml: text}")
        .replace("ipam: strict", "ipam: rude")
        .replace("x.a: '::1'", "x.a: here")
        .replace("nexthop:", "gateway:")
        .replace("[['kernel://hello/nsm-1']]", "[['kernel://hello/nsm-2'], other]")
        .replace(", resolvConf: ''", "")
        .replace("protocol: tcp, ", "")
        .replace("kind: NetworkService,", "kind: Lab,")
        .replace("size: 1400", "size: 7")
        .replace("  - write:", "  - addresses: {pod: client, interface: nsm-1, equal: [], inside: 10.0.0.0/8}\n  - write:");
    let all = mistakes(&bad).join("\n");
    for part in [
        "spec.underlay: is \"token-ring\", must be ipv4 or ipv6",
        "spec.underlayMtu: is 100, must be 1280 to 9000",
        "spec.files: \"../x\" is no name for a file",
        "spec.files: \"node-1-excluded-prefixes.yaml\" is made from the settings",
        "spec.endpoints[0].ipam: is \"rude\", must be strict or polite",
        "spec.endpoints[0].names.x.a: is \"here\", must be an address",
        "spec.endpoints[0].policyRoutes[0].routes[0].gateway: is not a known key; known here: nexthop, prefix",
        "spec.clients[0].awareness: \"kernel://hello/nsm-2\" is not one of its services",
        "spec.clients[0].awareness[1]: is a single value, must be a list of texts",
        "spec.checks[0].way.protocol: is missing: ports are those of tcp or udp",
        "spec.checks[1]: client \"client\" has no resolvConf",
        "spec.checks[2].addresses.inside: and equal say the same in two ways",
        "spec.checks[4].apply.service: must be a NetworkService",
        "spec.checks[5].ping.size: is 7, must be 8 to 65000",
    ] {
        assert!(all.contains(part), "{part} not in\n{all}");
    }
}

fn with_check(text: &str) -> String {
    GOOD.replace("- ping: {from: client, to: 172.16.1.100}", &format!("- {text}"))
}

#[test]
fn faults_are_read_alone_and_under_a_vwire() {
    let faulty = |text: &str| with_check(text).replace("  nodes:", "  linkSeed: 7\n  stateBytes: 65536\n  nodes:");
    for (text, words) in [
        (
            "link: {node: node-1, loss: 5, delay: 50ms, jitter: 30ms, only: tcp}",
            "link of node-1: 5 % lost, 0.05 s late, ± 0.03 s, TCP only",
        ),
        ("link: {node: node-1}", "link of node-1: good"),
        ("remove: {pod: client, interface: nsm-1, address: 10.0.0.1/32}", "client loses address 10.0.0.1/32 of nsm-1"),
        ("remove: {pod: client, table: 1}", "client loses rules to table 1"),
        ("stop: {process: node-1-manager}", "node-1-manager is stopped"),
        ("death: {pod: responder}", "pod responder dies"),
        ("disk: {full: true}", "the disk is full"),
        ("wait: {for: 2s}", "2 s pass"),
    ] {
        let (lab, _) = read(&faulty(text)).unwrap_or_else(|mistakes| panic!("{text}: {mistakes:?}"));
        assert_eq!(lab.checks[0].to_string(), words);
        let inside = format!("steady: {{client: client, interface: nsm-1, to: 10.0.0.1, faults: [{{{text}}}], repeat: 2, silent: 3s}}");
        let (lab, _) = read(&faulty(&inside)).unwrap_or_else(|mistakes| panic!("{inside}: {mistakes:?}"));
        assert_eq!(lab.checks[0].to_string(), format!("nsm-1 of client while {words}; 2 times"));
        assert_eq!(lab.checks[0].expected(), "never silent for 3 s, same interface");
    }
    let (lab, _) = read(&faulty("steady: {client: client, interface: nsm-1, to: 10.0.0.1, restarts: [registry]}")).unwrap();
    assert_eq!(lab.checks[0].expected(), "no echo lost, same interface");
}

#[test]
fn faults_that_cannot_be_are_told() {
    for (text, problem) in [
        ("link: {node: node-1, loss: 5}", "give the lab a linkSeed"),
        ("link: {node: nowhere, loss: 101}", "loss: is 101, must be 0 to 100"),
        ("disk: {full: true}", "give the lab stateBytes"),
        ("death: {pod: node-1}", "\"node-1\" does not exist; there are client, responder"),
        ("stop: {process: nobody}", "\"nobody\" does not exist"),
        ("remove: {pod: client}", "must have interface"),
        ("wait: {}", "for: is missing"),
        ("steady: {client: client, interface: nsm-1, to: 10.0.0.1}", "faults: is missing"),
        ("steady: {client: client, interface: nsm-1, faults: [{wait: {for: 1s}}]}", "to: is missing"),
        ("steady: {client: client, interface: nsm-1, to: 10.0.0.1, faults: [{ready: {client: client}}]}", "does nothing by itself"),
        (
            "steady: {client: client, interface: nsm-1, to: 10.0.0.1, faults: [{stop: {process: nobody}}]}",
            "faults[0]: \"nobody\" does not exist",
        ),
    ] {
        let all = mistakes(&with_check(text)).join("\n");
        assert!(all.contains(problem), "{text}: {problem}\nnot in\n{all}");
    }
}
