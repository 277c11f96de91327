//! Reads one check: a map with one key.

use super::{ADDRESS, PREFIX, faults, fields::Fields};
use crate::schema::{Check, Connections, Ending, Expect, Of, Sought, Span};
use hickory_proto::rr::Name;
use nsm_linux::{net::Packet, probe::MAX_PING_BYTES};
use serde_yaml_ng::Value;
use std::time::Duration;

/// Echoes of a ping that does not say how many.
const DEFAULT_COUNT: u32 = 3;
/// Echoes of a ping that expects none: one is enough, each costs its whole wait.
const DEFAULT_COUNT_NONE: u32 = 1;
/// Echoes of one check at most.
const MAX_COUNT: u32 = 1000;
/// Bytes of an echo that does not say how many, as other programs send.
const DEFAULT_SIZE: usize = 56;
/// Bytes of the shortest echo: by those its answer is known.
const MIN_SIZE: usize = 8;
/// Longest time of a check.
const MAX_SPAN: Span = Span(Duration::from_secs(600));
const KINDS: &str = "ping, tcp, interface, addresses, route, way, resolves, resolvConf, connections, ready, refusal, app, close, lasts, \
     kill, end, restart, steady, write, apply, isolation, unchanged, descriptors, stop, continue, start, death, link, remove, down, disk, wait";

/// Reads a check; `None` when it cannot be one (noted).
pub(super) fn check(outer: Fields<'_>) -> Option<Check> {
    let Some((kind, value)) = outer.single() else {
        outer.notes().note(&outer.at, format!("must be a map with exactly one key, one of {KINDS}"));
        return None;
    };
    let mut fields = Fields::of(format!("{}.{kind}", outer.at), value, outer.notes());
    let check = match kind {
        "ping" => ping(&mut fields),
        "tcp" => tcp(&mut fields),
        "interface" => interface(&mut fields),
        "addresses" => addresses(&mut fields),
        "route" => route(&mut fields),
        "way" => way(&mut fields),
        "resolves" => resolves(&mut fields),
        "resolvConf" => Some(Check::ResolvConf { pod: fields.need_text("pod"), rewritten: fields.flag("rewritten", true) }),
        "write" => Some(Check::Write { file: fields.need_text("file"), text: fields.need_text("text") }),
        "apply" => apply(&mut fields),
        "connections" => connections(&mut fields),
        "ready" => Some(Check::Ready { client: fields.need_text("client") }),
        "refusal" => refusal(&mut fields),
        "app" => app(&mut fields),
        "close" => Some(Check::Close { client: fields.need_text("client") }),
        "lasts" => lasts(&mut fields),
        "kill" => Some(Check::Kill { client: fields.need_text("client") }),
        "end" => Some(Check::End { process: fields.need_text("process"), ending: ending(&mut fields) }),
        "restart" => Some(Check::Restart { process: fields.need_text("process"), ending: ending(&mut fields) }),
        "steady" => faults::steady(&mut fields),
        "descriptors" => {
            Some(Check::Descriptors { spare: fields.parse("spare", "a number of descriptors").unwrap_or(faults::SPARE_DESCRIPTORS) })
        }
        "stop" | "continue" | "start" | "death" | "link" | "remove" | "down" | "disk" | "wait" => {
            faults::fault(kind, &mut fields).map(Check::Do)
        }
        "isolation" => isolation(&mut fields),
        "unchanged" => Some(Check::Unchanged { pods: fields.texts("pods") }),
        _ => {
            outer.wrong(kind, format!("is not a known check; known: {KINDS}"));
            return None;
        }
    };
    fields.finish();
    check
}

fn ping(fields: &mut Fields<'_>) -> Option<Check> {
    let from = fields.need_text("from");
    let to = fields.need("to", ADDRESS);
    let expect = fields.one_of("expect", &[("all", Expect::All), ("none", Expect::None)]).unwrap_or(Expect::All);
    let usual = if expect == Expect::All { DEFAULT_COUNT } else { DEFAULT_COUNT_NONE };
    let count = fields.parse("count", "a number").unwrap_or(usual);
    if !(1..=MAX_COUNT).contains(&count) {
        fields.wrong("count", format!("is {count}, must be 1 to {MAX_COUNT}"));
    }
    let size = fields.parse("size", "a number of bytes").unwrap_or(DEFAULT_SIZE);
    if !(MIN_SIZE..=MAX_PING_BYTES).contains(&size) {
        fields.wrong("size", format!("is {size}, must be {MIN_SIZE} to {MAX_PING_BYTES}"));
    }
    let whole = fields.flag("whole", false);
    Some(Check::Ping { from, to: to?, count, expect, size, whole })
}

fn tcp(fields: &mut Fields<'_>) -> Option<Check> {
    let (from, to, port) = (fields.need_text("from"), fields.need("to", ADDRESS), fields.need("port", "a port number"));
    let expect = fields.one_of("expect", &[("all", Expect::All), ("none", Expect::None)]).unwrap_or(Expect::All);
    Some(Check::Tcp { from, to: to?, port: port?, expect, send: fields.text("send") })
}

fn interface(fields: &mut Fields<'_>) -> Option<Check> {
    let (pod, name) = (fields.need_text("pod"), fields.need_text("name"));
    Some(Check::Interface { pod, name, present: fields.flag("present", true), mtu: fields.parse("mtu", "a number of bytes") })
}

fn addresses(fields: &mut Fields<'_>) -> Option<Check> {
    let (pod, interface) = (fields.need_text("pod"), fields.need_text("interface"));
    let (equal, inside) = (fields.parses("equal", PREFIX), fields.parse("inside", PREFIX));
    if inside.is_some() && fields.take("equal").is_some() {
        fields.wrong("inside", "and equal say the same in two ways; leave one out");
    }
    Some(Check::Addresses { pod, interface, equal, inside })
}

fn route(fields: &mut Fields<'_>) -> Option<Check> {
    let (pod, to) = (fields.need_text("pod"), fields.need("to", PREFIX));
    let (via, dev) = (fields.parse("via", ADDRESS), fields.text("dev"));
    let present = fields.flag("present", true);
    Some(Check::Route { pod, to: to?, via, dev, present })
}

fn way(fields: &mut Fields<'_>) -> Option<Check> {
    let (pod, to) = (fields.need_text("pod"), fields.need("to", ADDRESS));
    let protocol = match fields.text("protocol").as_deref() {
        None => None,
        Some("tcp") => Some(6),
        Some("udp") => Some(17),
        Some(_) => fields.parse("protocol", "tcp, udp or the number of an IP protocol"),
    };
    let (from, src_port, dst_port) = (fields.parse("from", ADDRESS), port(fields, "srcPort"), port(fields, "dstPort"));
    if protocol.is_none() && (src_port.is_some() || dst_port.is_some()) {
        fields.wrong("protocol", "is missing: ports are those of tcp or udp");
    }
    let via = match fields.text("via").as_deref() {
        None => None,
        Some("none") => Some(None),
        Some(_) => fields.parse("via", "none or an address as 172.16.1.100").map(Some),
    };
    let sought = Sought { via, dev: fields.text("dev"), table: fields.parse("table", "a number"), src: fields.parse("src", ADDRESS) };
    Some(Check::Way { pod, packet: Packet { to: to?, from, protocol, src_port, dst_port }, sought })
}

fn port(fields: &mut Fields<'_>, key: &'static str) -> Option<u16> {
    fields.parse(key, "a port number")
}

fn resolves(fields: &mut Fields<'_>) -> Option<Check> {
    let (pod, name) = (fields.need_text("pod"), fields.need_text("name"));
    if Name::from_ascii(&name).is_err() {
        fields.wrong("name", format!("is {name:?}, must be a name as db.corp.example"));
    }
    if fields.take("to").is_none() {
        fields.wrong("to", "is missing, must be a list of addresses, empty for a name that does not exist");
    }
    Some(Check::Resolves { pod, name, to: fields.parses("to", ADDRESS) })
}

/// A NetworkService as in a document of its own; what it means is the registry's business.
fn apply(fields: &mut Fields<'_>) -> Option<Check> {
    let Some(service) = fields.take("service") else {
        fields.wrong("service", "is missing, must be a NetworkService with apiVersion, kind, metadata and spec");
        return None;
    };
    let name = service.get("metadata").and_then(|meta| meta.get("name")).and_then(Value::as_str);
    if service.get("kind").and_then(Value::as_str) != Some("NetworkService") || name.is_none() {
        fields.wrong("service", "must be a NetworkService with apiVersion, kind, metadata.name and spec");
    }
    let text = serde_yaml_ng::to_string(service).expect("what came from YAML is YAML");
    Some(Check::Apply { name: name?.to_owned(), text })
}

fn connections(fields: &mut Fields<'_>) -> Option<Check> {
    let (client, node, interface) = (fields.text("client"), fields.text("node"), fields.text("interface"));
    let within = span(fields, "within");
    let expected = Box::new(Connections {
        count: fields.parse("count", "a number"),
        endpoint: fields.text("endpoint"),
        mechanism: fields.text("mechanism"),
        path: fields.texts("path"),
        through: fields.texts("through"),
        avoids: fields.texts("avoids"),
    });
    match (client, node) {
        (Some(name), None) => Some(Check::Connections { of: Of::Client { name, interface }, expected, within }),
        (None, Some(node)) => Some(Check::Connections { of: Of::Node(node), expected, within }),
        _ => {
            fields.notes().note(&fields.at, "must have either client or node");
            None
        }
    }
}

fn refusal(fields: &mut Fields<'_>) -> Option<Check> {
    Some(Check::Refusal { client: fields.need_text("client"), hop: fields.text("hop"), contains: fields.texts("contains") })
}

fn app(fields: &mut Fields<'_>) -> Option<Check> {
    let client = fields.need_text("client");
    let (interface, route) = (fields.text("interface"), fields.parse("route", PREFIX));
    Some(Check::App { client, interface, route, reaches: fields.flag("reaches", false) })
}

fn lasts(fields: &mut Fields<'_>) -> Option<Check> {
    let (client, interface) = (fields.need_text("client"), fields.need_text("interface"));
    if fields.take("for").is_none() {
        fields.wrong("for", "is missing, must be a time as 8s or 500ms");
    }
    let within = span(fields, "within");
    Some(Check::Lasts { client, interface, span: span(fields, "for")?, within })
}

pub(super) fn span(fields: &mut Fields<'_>, key: &'static str) -> Option<Span> {
    let span: Option<Span> = fields.parse(key, "a time as 8s or 500ms");
    if span.is_some_and(|span| span > MAX_SPAN) {
        fields.wrong(key, format!("is too long, must be at most {MAX_SPAN}"));
    }
    span
}

fn ending(fields: &mut Fields<'_>) -> Ending {
    fields.one_of("signal", &[("TERM", Ending::Term), ("KILL", Ending::Kill)]).unwrap_or(Ending::Term)
}

fn isolation(fields: &mut Fields<'_>) -> Option<Check> {
    let (from, to) = (fields.need_text("from"), fields.need("to", ADDRESS));
    Some(Check::Isolation { from, to: to?, at: fields.text("at") })
}
