//! A manifest written for the Go implementation runs with the image swapped: its variables are known, with its defaults.

#![allow(clippy::unwrap_used)] // helpers of tests, too

use nsm::{
    roles::{client, endpoint, forwarder, manager, registry},
    settings::{COMMON, Effect, Opt, Settings},
};
use std::collections::BTreeSet;

/// Role, name, default.
const VARIABLES: &str = include_str!("data/upstream-variables.txt");

const ROLES: [(&str, &[Opt]); 5] = [
    ("client", client::OPTIONS),
    ("endpoint icmp-responder", endpoint::ICMP_RESPONDER),
    ("forwarder", forwarder::OPTIONS),
    ("manager", manager::OPTIONS),
    ("registry", registry::OPTIONS),
];

/// Where our default is another one, on purpose.
const OTHER_DEFAULTS: [(&str, &str); 5] = [
    ("client", "NSM_LOCAL_DNS_SERVER_ENABLED"), // only where resolv.conf is the workload's own
    ("forwarder", "NSM_CONNECT_TO"),            // upstream's is a place holder
    ("forwarder", "NSM_PROMETHEUS_LISTEN_ON"),  // no port is opened that nobody asked for
    ("registry", "NSM_LISTEN_ON"),              // upstream's is a place holder
    ("registry", "NSM_EXPIRE_PERIOD"),          // a second is shorter than a busy machine's pauses
];

fn variables() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    VARIABLES.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let mut parts = line.split('\t');
        (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap())
    })
}

fn options(role: &str) -> impl Iterator<Item = &'static Opt> {
    ROLES.iter().find(|(name, _)| *name == role).unwrap().1.iter().chain(COMMON)
}

#[test]
fn every_variable_of_upstream_is_known_with_its_default() {
    let mut wrong = vec![];
    for (role, name, default) in variables() {
        match options(role).find(|opt| opt.env == name) {
            None => wrong.push(format!("{role} does not know {name}")),
            Some(opt) if opt.effect == Effect::None || opt.default == default || OTHER_DEFAULTS.contains(&(role, name)) => {}
            Some(opt) => wrong.push(format!("{role} has {name}={:?}, upstream {default:?}", opt.default)),
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    let stale = OTHER_DEFAULTS.iter().filter(|(role, name)| {
        let same = |(r, n, default): (&str, &str, &str)| {
            (r, n) == (*role, *name) && options(role).any(|opt| opt.env == n && opt.default == default)
        };
        variables().any(same)
    });
    assert_eq!(stale.count(), 0, "an exception that is none");
}

/// All of them together, as a manifest may set them, are no reason not to start, and nothing is passed over in silence.
#[test]
fn all_variables_of_upstream_at_once_are_taken_or_named() {
    for (role, table) in ROLES {
        let given: Vec<(&str, &str)> = variables().filter(|(of, ..)| *of == role).map(|(_, name, default)| (name, default)).collect();
        let settings = Settings::new(role, table).with_environment(given.clone());
        assert_eq!(settings.unknown(), Vec::<String>::new(), "{role}");
        let idle: BTreeSet<&str> = settings.without_effect().into_iter().collect();
        let expected: BTreeSet<&str> = options(role)
            .filter(|opt| opt.effect == Effect::None && given.iter().any(|(name, _)| *name == opt.env))
            .map(|opt| opt.env)
            .collect();
        assert_eq!(idle, expected, "{role}: what has no effect is said");
    }
    let settings = Settings::new("manager", manager::OPTIONS).with_environment([("NSM_LISTEN_ONN", "x"), ("NSM_DNS_CONFIGS", "[]")]);
    assert_eq!(settings.unknown().len(), 2, "{:?}", settings.unknown());
}
