//! Every type, precedence, all mistakes at once, and names that nobody knows.

use super::*;
use clap::Command;
use nsm_api::{HopName, Kind, Target};
use std::net::IpAddr;

const OPTIONS: &[Opt] = &[
    Opt::new("name", "NSM_NAME", "nmgr", Shape::Text, "name"),
    Opt::new("listen-on", "NSM_LISTEN_ON", "unix:///a.sock", Shape::Targets, "listen"),
    Opt::new("registry-url", "NSM_REGISTRY_URL", "", Shape::Target, "registry"),
    Opt::new("dial-timeout", "NSM_DIAL_TIMEOUT", "750ms", Shape::Duration, "dial"),
    Opt::new("register", "NSM_REGISTER", "false", Shape::Bool, "register"),
    Opt::new("labels", "NSM_LABELS", "p2p:true", Shape::Map, "labels"),
    Opt::new("tunnel-ip", "NSM_TUNNEL_IP", "", Shape::Address, "tunnel"),
    Opt::new("port", "NSM_PORT", "4789", Shape::Number(65535), "port"),
    Opt::new("cidr", "NSM_CIDR_PREFIX", "169.254.0.0/16", Shape::Prefixes, "prefixes"),
    Opt::new("policy", "NSM_POLICY", "polite", Shape::OneOf(&["polite", "strict"]), "policy"),
    Opt::new("password", "NSM_PASSWORD", "", Shape::Text, "password").secret(),
    Opt::required("service", "NSM_SERVICE", "vpn", Shape::Text, "service"),
    Opt::accepted("vpp-init", "NSM_VPP_INIT"),
    Opt::words("file", Shape::File, "files"),
];

fn flags(words: &[&str]) -> ArgMatches {
    with_options(with_options(Command::new("t"), COMMON), OPTIONS).no_binary_name(true).try_get_matches_from(words).unwrap()
}

fn settings() -> Settings {
    Settings::new("test", OPTIONS)
}

#[test]
fn defaults_hold_when_nobody_says_anything() {
    let mut s = settings().with_environment([("NSM_SERVICE", "x")]);
    assert_eq!(s.text::<HopName>("name").as_str(), "nmgr");
    assert_eq!(s.list::<Target>("listen-on"), [Target::Unix("/a.sock".into())]);
    assert_eq!(s.optional::<Target>("registry-url"), None);
    assert_eq!(s.duration("dial-timeout"), Duration::from_millis(750));
    assert!(!s.boolean("register"));
    assert_eq!(s.map("labels").into_iter().collect::<Vec<_>>(), [("p2p".to_owned(), "true".to_owned())]);
    assert_eq!(s.optional::<IpAddr>("tunnel-ip"), None);
    assert_eq!(s.text::<u16>("port"), 4789);
    assert_eq!(s.prefix_groups("cidr").len(), 1);
    assert_eq!(s.choice("policy"), "polite");
    assert_eq!(s.words("file"), Vec::<String>::new());
    assert_eq!(s.text::<String>("service"), "x");
    assert!(s.unknown().is_empty() && s.without_effect().is_empty());
    s.finish().unwrap();
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let file = "name: file\nport: 1\nregister: true\nlisten-on: [tcp://:1, tcp://:2]\n";
    let mut s = settings()
        .with_file("f.yaml", file)
        .with_flags(&flags(&["--name", "flag", "--register=true", "a", "b,c"]))
        .with_environment([("NSM_NAME", "env"), ("NSM_PORT", "2"), ("NSM_REGISTER", "false"), ("NSM_SERVICE", "")]);
    assert_eq!(s.text::<String>("name"), "flag");
    assert_eq!(s.text::<u16>("port"), 2);
    assert!(s.boolean("register"));
    assert_eq!(s.list::<Target>("listen-on").len(), 2);
    assert_eq!(s.words("file"), ["a", "b,c"]);
    assert!(s.is_given("port") && !s.is_given("policy"));
    s.finish().unwrap();
}

#[test]
fn repeated_flags_of_a_list_add_up_and_a_bool_takes_a_value() {
    let mut s =
        settings().with_flags(&flags(&["--listen-on", "tcp://:1,tcp://:2", "--listen-on=tcp://:3", "--register=false", "--service=x"]));
    assert_eq!(s.list::<Target>("listen-on").len(), 3);
    assert!(!s.boolean("register"));
    s.finish().unwrap();
    for (words, expected) in [(["--register", "false"].as_slice(), false), (&["--register", "--service", "x"], true)] {
        assert_eq!(settings().with_flags(&flags(words)).boolean("register"), expected, "{words:?}");
    }
}

#[test]
fn all_mistakes_are_told_at_once_with_name_value_and_what_is_allowed() {
    let mut s =
        settings().with_file("f.yaml", "nmae: x\ncidr: 10.0.0.0/99\n").with_flags(&flags(&["--tunnel-ip", "here"])).with_environment([
            ("NSM_DIAL_TIMEOUT", "-1m"),
            ("NSM_REGISTER", "yes"),
            ("NSM_LISTEN_ON", "http://x:1,tcp://:1"),
            ("NSM_PASSWORD", "\n"),
            ("NSM_PORT", "70000"),
        ]);
    let (_, _): (Duration, bool) = (s.duration("dial-timeout"), s.boolean("register"));
    let _: Vec<Target> = s.list("listen-on");
    let _: Option<IpAddr> = s.optional("tunnel-ip");
    s.read("password", |text| if text.is_empty() { Ok(()) } else { Err("is weak".into()) });
    assert_eq!(s.text::<u16>("port"), 4789);
    assert_eq!(s.prefix_groups("cidr").len(), 1);
    assert_eq!(s.text::<String>("service"), "vpn");
    s.mistake("a and b exclude each other");
    let error = s.finish().unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
    let told = error.to_string();
    for part in [
        r#""nmae" in f.yaml is no setting of `nsm test`, did you mean name?"#,
        r#"cidr "10.0.0.0/99" in f.yaml: "10.0.0.0/99" is not a prefix, allowed is prefixes such as"#,
        r#"--tunnel-ip "here": invalid IP address syntax, allowed is an IPv4 or IPv6 address"#,
        r#"NSM_DIAL_TIMEOUT="-1m": is negative, allowed is a duration such as 750ms"#,
        r#"NSM_REGISTER="yes": is neither true nor false, allowed is true or false"#,
        r#"NSM_LISTEN_ON="http://x:1,tcp://:1": "http://x:1": has a scheme nobody knows, allowed is unix:///path, tcp://host:port or host:port;"#,
        r#"NSM_PORT="70000": number too large to fit in target type, allowed is a whole number from 0 to 65535"#,
        r#"NSM_SERVICE (--service) is not set, set it as for instance NSM_SERVICE=vpn"#,
        "NSM_PASSWORD=***: is weak",
        "a and b exclude each other",
        "correct these 10, `nsm test --help` lists every setting",
    ] {
        assert!(told.contains(part), "{part:?} is missing in:\n{told}");
    }
}

#[test]
fn what_does_nothing_is_said_and_never_fatal() {
    let s = settings().with_environment([
        ("NSM_LISTENON", "x"),
        ("NSM_UNHEARD_OF_ENTIRELY", "x"),
        ("NSM_VPP_INIT", "NONE"),
        ("NSM_PPROF_ENABLED", "true"),
        ("NSM_SRIOV_TOKENS_a/b", "1"),
        ("NSM_DIE_WITH_PARENT", "1"),
        ("HOME", "/"),
        ("NSM_SERVICE", "x"),
    ]);
    let unknown =
        ["NSM_LISTENON is no setting of `nsm test`, did you mean NSM_LISTEN_ON?", "NSM_UNHEARD_OF_ENTIRELY is no setting of `nsm test`"];
    assert_eq!(s.unknown(), unknown);
    assert_eq!(s.without_effect(), ["NSM_PPROF_ENABLED", "NSM_VPP_INIT", "NSM_SRIOV_TOKENS_a/b"]);
    s.finish().unwrap();
}

#[test]
fn effective_values_hide_secrets() {
    let shown = settings().with_environment([("NSM_PASSWORD", "hunter2"), ("NSM_NAME", "two words")]).effective();
    assert!(shown.contains("password=***") && shown.contains(r#"name="two words""#) && shown.contains("dial-timeout=750ms"), "{shown}");
    assert!(!shown.contains("hunter2") && !shown.contains("vpp-init"), "{shown}");
}

#[test]
fn an_unreadable_file_is_a_mistake_like_any_other() {
    let s = Settings::load("test", OPTIONS, &flags(&[]), Some(Path::new("/nonexistent/nsm.yaml")));
    assert!(s.finish().unwrap_err().to_string().contains("--config /nonexistent/nsm.yaml: cannot be read"));
}
