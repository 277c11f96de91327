//! The ten published forms of features.md 1.4 (Y-01 to Y-10), and what is in none of them.

use crate::common::*;
use nsm_api::{Destination, Kind, Labels, Match, NetworkService, NetworkServiceEndpoint, Payload};
use nsm_registry::manifest::{Documents, endpoint_to_yaml, service_to_yaml};
use proptest::prelude::*;

const HEAD: &str = "apiVersion: networkservicemesh.io/v1\nkind: NetworkService\nmetadata:\n  name: vpn\n";

fn rule(source: &[(&str, &str)], routes: &[&[(&str, &str)]]) -> Match {
    let route = |pairs: &&[(&str, &str)]| Destination { destination_selector: labels(pairs), ..Destination::default() };
    Match { source_selector: labels(source), routes: routes.iter().map(route).collect(), ..Match::default() }
}

fn read(text: &str) -> Documents {
    let documents = Documents::read("vpn.yaml", text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    // Whatever was read is written in the present form, which says the same and needs no warning.
    let again = Documents::read("again.yaml", &documents.to_yaml()).unwrap_or_else(|error| panic!("{error}\n{}", documents.to_yaml()));
    assert_eq!((&again.services, &again.endpoints, again.warnings), (&documents.services, &documents.endpoints, vec![]));
    documents
}

/// The only service of `HEAD` and `spec`, and where warnings point: line and text.
fn spec(spec: &str) -> (NetworkService, Vec<(usize, String)>) {
    let mut documents = read(&format!("{HEAD}{spec}"));
    assert_eq!(documents.services.len(), 1);
    (documents.services.remove(0), documents.warnings.iter().map(|warning| (warning.line, warning.to_string())).collect())
}

#[test]
fn y01_the_present_form_in_all_its_parts() {
    let (service, warnings) = spec(
        "spec:
  payload: IP
  matches:
    - source_selector:
        app: firewall
      fallthrough: true
      routes:
        - destination_selector:
            app: vpn-gateway
          weight: 3
        - destination_selector: {app: other}
    - source_selector:
      metadata:
        labels: {p2p: \"true\"}
    - source_selector: {}
      routes:
        - destination_selector:
    - routes: [{destination_selector: {a: b}}]
    - metadata:
",
    );
    assert_eq!(warnings, []);
    assert_eq!((service.name.as_str(), &service.payload), ("vpn", &Payload::Ip));
    let mut first = rule(&[("app", "firewall")], &[&[("app", "vpn-gateway")], &[("app", "other")]]);
    (first.fallthrough, first.routes[0].weight) = (true, 3);
    let forwarder = Match { metadata: Some(labels(&[("p2p", "true")])), ..Match::default() };
    assert_eq!(service.matches, [first, forwarder, rule(&[], &[&[]]), rule(&[], &[&[("a", "b")]]), Match::default()]);
    for empty in ["", "spec:\n", "spec: {}\n", "spec:\n  matches:\n", "spec: {matches: []}\n"] {
        let (service, warnings) = spec(empty);
        assert_eq!((service.matches, service.payload, warnings), (vec![], Payload::Unset, vec![]), "{empty:?}");
    }
}

/// Y-02, Y-03, Y-04: forms of a match that differ from the present one, what they mean, and the line of the warning.
#[test]
fn y02_y03_y04_other_forms_of_a_match() {
    let through = rule(&[("app", "firewall")], &[&[("app", "vpn-gateway")]]);
    let catch_all = rule(&[], &[&[("app", "firewall")]]);
    let weighted = Match { routes: vec![Destination { weight: 7, ..catch_all.routes[0].clone() }], ..catch_all.clone() };
    for (row, text, expected, line) in [
        (
            "Y-02",
            "    - match:
        sourceSelector:
          app: firewall
        route:
          - destination:
              destinationSelector:
                app: vpn-gateway
",
            &through,
            7,
        ),
        ("Y-02", "    - match: {route: [{destination: {destinationSelector: {app: firewall}}}]}\n", &catch_all, 7),
        (
            "Y-03",
            "    - match:
      sourceSelector:
        app: firewall
      route:
        - destination:
          destinationSelector:
            app: vpn-gateway
",
            &through,
            7,
        ),
        (
            "Y-03",
            "    - match:
      route:
        - destination:
          destinationSelector:
            app: firewall
          weight: 7
",
            &weighted,
            7,
        ),
        (
            "Y-04",
            "    - source_selector:
        routes:
          - destination_selector:
              app: firewall
",
            &catch_all,
            8,
        ),
    ] {
        let (service, warnings) = spec(&format!("spec:\n  matches:\n{text}"));
        assert_eq!(service.matches, std::slice::from_ref(expected), "{row} {text}");
        let [(at, warning)] = &warnings[..] else { panic!("{row}: one warning, not {warnings:?}") };
        assert_eq!(*at, line, "{row} {warning}");
        assert!(warning.starts_with(&format!("vpn.yaml:{line} (document 1): ")), "{warning}");
        assert!(warning.contains("- source_selector:") && warning.contains("destination_selector:"), "shows the present form: {warning}");
    }
}

/// Y-04: a label may be called routes, as long as it is a text.
#[test]
fn y04_a_label_called_routes_stays_a_label() {
    let (service, warnings) = spec("spec: {matches: [{source_selector: {routes: all}}]}\n");
    assert_eq!((service.matches, warnings), (vec![rule(&[("routes", "all")], &[])], vec![]));
}

#[test]
fn y05_spellings_of_the_version() {
    for (version, warned) in [
        ("apiVersion: networkservicemesh.io/v1\n", false),
        ("apiVersion: \"networkservicemesh.io/v1\"\n", false),
        ("apiVersion: network servicemesh.io/v1\n", true),
        ("apiVersion: networkservicemesh.io/v1alpha1\n", true),
        ("apiVersion: network servicemesh.io/v1alpha1\n", true),
        ("", true),
    ] {
        let documents = read(&format!("{version}kind: NetworkService\nmetadata: {{name: vpn}}\n"));
        assert_eq!(documents.services.len(), 1, "{version}");
        assert_eq!(documents.warnings.len(), usize::from(warned), "{version}");
        if let [warning] = &documents.warnings[..] {
            assert!(warning.to_string().ends_with("write apiVersion: networkservicemesh.io/v1"), "{warning}");
        }
    }
}

#[test]
fn y06_names_with_a_domain() {
    let text = "apiVersion: networkservicemesh.io/v1\nkind: NetworkService\nmetadata:\n  name: service-mesh@finance.example.com\n";
    let documents = read(text);
    assert_eq!(documents.services[0].name.as_str(), "service-mesh@finance.example.com");
    assert_eq!(documents.warnings[0].line, 4);
    let written = service_to_yaml(&documents.services[0]);
    assert!(written.contains("  name: service-mesh-finance.example.com\n"), "{written}");
    assert!(written.contains("  name: service-mesh@finance.example.com\n"), "{written}");
}

/// Y-07, M-10: labels are texts, and keep the digits they are written with.
#[test]
fn y07_labels_without_quotes() {
    for (written, expected, warned) in [
        ("true", "true", true),
        ("False", "False", true),
        ("1.10", "1.10", true),
        ("007", "007", true),
        ("-1e3", "-1e3", true),
        ("0x1F", "0x1F", true),
        ("v1.1", "v1.1", false),
        ("1.1.0", "1.1.0", false),
        ("\"true\"", "true", false),
        ("'1.1'", "1.1", false),
        ("", "", true),
        ("\"{{ .nodeName }}\"", "{{ .nodeName }}", false),
        ("a b", "a b", false),
    ] {
        let (service, warnings) = spec(&format!("spec:\n  matches:\n    - source_selector:\n        k: {written}\n"));
        assert_eq!(service.matches, [rule(&[("k", expected)], &[])], "{written}");
        assert_eq!(warnings.iter().map(|warning| warning.0).collect::<Vec<_>>(), if warned { vec![8] } else { vec![] }, "{written}");
        if warned {
            assert!(warnings[0].1.ends_with(&format!("write k: {expected:?}")), "{}", warnings[0].1);
        }
    }
}

#[test]
fn y08_several_documents_comments_and_styles() {
    let text = format!(
        "# first comes a comment
---
{HEAD}---
# nothing here
---
# an endpoint, in flow style
{{apiVersion: networkservicemesh.io/v1, kind: NetworkServiceEndpoint, metadata: {{name: gw}}, spec: {{
  network_service_names: [vpn], network_service_labels: {{vpn: {{labels: {{app: vpn-gateway}}}}}}, url: 'tcp://10.0.0.1:5001'}}}}
---
kind: Lab   # not ours
nodes: [{{name: n1, mtu: 1500, up: yes, ratio: 1.10}}]
notes: |
  text with
  --- three dashes
anchors: &same {{a: 1}}
again: *same
---
apiVersion: networkservicemesh.io/v1
kind: NetworkService
metadata: {{name: lan}}
spec: {{payload: ethernet}}
...
"
    );
    let documents = Documents::read("all.yaml", &text).unwrap();
    assert_eq!(documents.services.iter().map(|service| service.name.as_str()).collect::<Vec<_>>(), ["vpn", "lan"]);
    assert_eq!(documents.endpoints, [endpoint("gw", "vpn", &[("app", "vpn-gateway")])]);
    assert_eq!(documents.others.len(), 1);
    let lab = &documents.others[0];
    assert_eq!(lab["nodes"][0]["mtu"], 1500);
    assert_eq!((lab["notes"].as_str(), &lab["again"]["a"]), (Some("text with\n--- three dashes\n"), &serde_yaml_ng::Value::from(1)));
    let [warning] = &documents.warnings[..] else { panic!("{:?}", documents.warnings) };
    assert_eq!(
        warning.to_string(),
        "all.yaml:25 (document 5): payload \"ethernet\" is not spelled as the mesh compares it; write payload: ETHERNET"
    );
    assert_eq!(Documents::read("empty.yaml", "").unwrap(), Documents::default());
    assert_eq!(Documents::read("empty.yaml", "# only this\n").unwrap(), Documents::default());
}

#[test]
fn y09_the_oldest_form_chooses_by_selector() {
    let (service, warnings) = spec("spec:\n  payload: IP\n  selector:\n    app: vpng\n");
    assert_eq!(service.matches, [rule(&[], &[&[("app", "vpng")]])]);
    assert!(
        warnings[0].1.contains("(document 1): \"selector\" is an old form; write\n    matches:\n    - source_selector: {}\n"),
        "{warnings:?}"
    );
}

#[test]
fn y10_spellings_of_the_payload() {
    for (written, expected, warned) in [
        ("IP", Payload::Ip, false),
        ("ETHERNET", Payload::Ethernet, false),
        ("\"IP\"", Payload::Ip, false),
        ("Ethernet", Payload::Ethernet, true),
        ("ip", Payload::Ip, true),
        ("ATM", Payload::Other("ATM".to_owned()), true),
    ] {
        let text = format!("{HEAD}spec:\n  payload: {written}\n");
        let documents = Documents::read("vpn.yaml", &text).unwrap();
        assert_eq!(documents.services[0].payload, expected);
        assert_eq!(documents.warnings.len(), usize::from(warned), "{written}");
    }
}

/// What Kubernetes exports can be read: its own metadata is passed over, what the registry adds is left out with a word.
#[test]
fn exported_objects_can_be_read() {
    let documents = Documents::read(
        "export.yaml",
        "apiVersion: networkservicemesh.io/v1
kind: NetworkServiceEndpoint
metadata:
  name: nse-1-xyz
  namespace: nsm-system
  generateName: nse-
  uid: 1-2-3
  resourceVersion: \"12\"
  creationTimestamp: 2024-01-01T00:00:00Z
  generation: 1
  managedFields: [{manager: x}]
spec:
  name: nse-1
  networkServiceNames: [vpn]
  network_service_labels: {vpn: {}}
  expiration_time: {seconds: 1, nanos: 2}
  path_ids: [spiffe://d/a]
  url: tcp://10.0.0.1:5001
status: {}
",
    )
    .unwrap();
    assert_eq!(documents.endpoints, [endpoint("nse-1", "vpn", &[])]);
    let warned: Vec<_> = documents.warnings.iter().map(|warning| warning.to_string()).collect();
    assert_eq!(warned.len(), 3, "{warned:?}");
    assert!(warned[0].contains(":14 (document 1): \"networkServiceNames\" is an old spelling; write network_service_names:"), "{warned:?}");
    assert!(warned[1].ends_with("expiration_time is said by the registry, and not read from a file; leave it out"), "{warned:?}");
}

/// What is in no form is refused in one sentence that says where, what, why and what to do.
#[test]
fn mistakes_are_named_with_place_and_cure() {
    for (text, expected) in [
        ("spec: {matchs: []}\n", "vpn.yaml line 5 (document 1), key \"matchs\": is not part of spec; write \"matches\""),
        (
            "spec:\n  matches:\n    - sourceSelecter: {}\n",
            "vpn.yaml line 7 (document 1), key \"sourceSelecter\": is not part of a match; write \"source_selector\"",
        ),
        (
            "spec: {quality: high}\n",
            "vpn.yaml line 5 (document 1), key \"quality\": is not part of spec; write one of name, payload, matches, selector, path_ids",
        ),
        (
            "spec: {matches: [{routes: [{weigth: 1}]}]}\n",
            "vpn.yaml line 5 (document 1), key \"weigth\": is not part of a route; write \"weight\"",
        ),
        (
            "spec: {matches: [{routes: [{weight: much}]}]}\n",
            "vpn.yaml line 5 (document 1), weight \"much\": is not a whole number from 0 on; write weight: 1",
        ),
        (
            "spec: {matches: [{fallthrough: maybe}]}\n",
            "vpn.yaml line 5 (document 1), fallthrough \"maybe\": is neither true nor false; write fallthrough: true",
        ),
        ("spec: {matches: {a: b}}\n", "vpn.yaml line 5 (document 1), matches: is not a list; start each entry with a dash"),
        (
            "spec: {matches: [{source_selector: {a: [b]}}]}\n",
            "vpn.yaml line 5 (document 1), label \"a\": has a value that is not a text; write a: \"...\"",
        ),
        (
            "spec: {matches: [{source_selector: {}, sourceSelector: {}}]}\n",
            "vpn.yaml line 5 (document 1), key \"sourceSelector\": says source_selector a second time; remove one of the two",
        ),
        (
            "spec: {matches: [{}], selector: {a: b}}\n",
            "vpn.yaml line 5 (document 1), key \"selector\": stands beside matches, which say the same in the present form; remove it",
        ),
        ("spec: {payload: IP, payload: IP}\n", "vpn.yaml line 5, key \"payload\": is there twice; remove one of the two"),
        ("spec: []\n", "vpn.yaml line 5 (document 1), spec: is not an object; write it as key: value"),
        (
            "spec: &a {payload: IP}\nstatus: *a\n",
            "vpn.yaml line 6 (document 1), the alias: stands for something written elsewhere; write it out",
        ),
    ] {
        let error = Documents::read("vpn.yaml", &format!("{HEAD}{text}")).unwrap_err();
        assert_eq!((error.kind, error.to_string().as_str()), (Kind::Invalid, expected));
    }
    for (text, expected) in [
        ("- a\n", "vpn.yaml line 1 (document 1), the document: is not an object; start it with apiVersion and kind"),
        ("spec: {}\n", "vpn.yaml line 1 (document 1), the document: has no kind; add a line such as kind: NetworkService"),
        ("kind: NetworkService\n", "vpn.yaml line 1 (document 1), the document: has no name; add metadata: {name: ...}"),
        (
            "---\n---\nkind: NetworkService\napiVersion: other/v1\n",
            "vpn.yaml line 4 (document 2), apiVersion \"other/v1\": is none that is known; write apiVersion: networkservicemesh.io/v1",
        ),
    ] {
        assert_eq!(Documents::read("vpn.yaml", text).unwrap_err().to_string(), expected);
    }
    let syntax = Documents::read("vpn.yaml", "kind: [\n").unwrap_err().to_string();
    assert!(syntax.starts_with("vpn.yaml line ") && syntax.contains("is not YAML"), "{syntax}");
    let bad_name = Documents::read("vpn.yaml", "kind: NetworkService\nmetadata: {name: \" \"}\n").unwrap_err().to_string();
    assert!(bad_name.starts_with("vpn.yaml line 2 (document 1), a network service name"), "{bad_name}");
}

/// Whatever a file holds, it costs bounded time and space and no crash.
#[test]
fn hostile_files_are_refused() {
    let deep = |levels: usize| Documents::read("deep.yaml", &format!("{}{}", "[".repeat(levels), "]".repeat(levels))).unwrap_err();
    assert!(deep(66).to_string().contains("nested deeper than 64"));
    assert_eq!(deep(100_000).kind, Kind::Invalid);
    let big = " ".repeat(nsm_registry::manifest::MAX_MANIFEST_BYTES + 1);
    assert_eq!(Documents::read("big.yaml", &big).unwrap_err().kind, Kind::Invalid);
    let many = format!("{HEAD}spec: {{matches: [{}]}}\n", "{},".repeat(1025));
    assert!(Documents::read("many.yaml", &many).unwrap_err().to_string().contains("the limit is 1024"));
}

fn some_labels() -> impl Strategy<Value = Labels> {
    let text = prop_oneof![
        "[a-z]{1,5}",
        "[ -~]{0,6}",
        Just("true".to_owned()),
        Just("1.0".to_owned()),
        Just("null".to_owned()),
        Just("é: #\n".to_owned())
    ];
    prop::collection::btree_map("[a-zA-Z{][ -~]{0,5}", text, 0..3)
}

fn some_rule() -> impl Strategy<Value = Match> {
    let route = (some_labels(), 0..3u32);
    let routes = prop::collection::vec(
        route.prop_map(|(destination_selector, weight)| Destination { destination_selector, weight, ..Destination::default() }),
        0..3,
    );
    (some_labels(), routes, any::<bool>(), prop::option::of(some_labels())).prop_map(|(source_selector, routes, fallthrough, metadata)| {
        Match { source_selector, routes, fallthrough, metadata, ..Match::default() }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// What is written is read as the same, without a warning.
    #[test]
    fn the_present_form_is_read_as_it_was_written(called in "[!-~]{1,12}", matches in prop::collection::vec(some_rule(), 0..3)) {
        let mut vpn = NetworkService::new(service(&called), Payload::Ip);
        vpn.matches = matches;
        let documents = Documents::read("vpn.yaml", &service_to_yaml(&vpn)).unwrap();
        prop_assert_eq!(&documents.services, &[vpn]);
        prop_assert_eq!(documents.warnings, vec![]);
    }

    #[test]
    fn endpoints_are_read_as_they_were_written(called in "[!-~]{1,12}", serves in "[!-~]{1,5}", pairs in some_labels()) {
        let mut gateway = NetworkServiceEndpoint::new(name(&called), vec![service(&serves)], "tcp://[::1]:5");
        gateway.network_service_labels = [(service(&serves), pairs)].into();
        let documents = Documents::read("gw.yaml", &endpoint_to_yaml(&gateway)).unwrap();
        prop_assert_eq!(&documents.endpoints, &[gateway]);
        prop_assert_eq!(documents.warnings, vec![]);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "[ \\-\\[\\]{}:,&*!|>'\"%@`#a-c\\n\\t.?~]{0,60}") {
        let _ = Documents::read("any.yaml", &text);
    }
}
