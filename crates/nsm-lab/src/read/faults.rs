//! Reads faults, and the check that watches a vWire while they happen.

use super::{
    ADDRESS, PREFIX,
    checks::{check, span},
    fields::Fields,
};
use crate::schema::{Check, Direction, Ending, Fault, LinkFault, Only, Removal, Steady};
use ipnet::IpNet;

/// Descriptors of a process besides those of its connections, when a check does not say it.
pub(super) const SPARE_DESCRIPTORS: usize = 50;
/// Times that faults happen at most.
const MAX_REPEAT: u32 = 10_000;

/// Reads what `kind` names.
pub(super) fn fault(kind: &str, fields: &mut Fields<'_>) -> Option<Fault> {
    Some(match kind {
        "stop" => Fault::Stop { process: fields.need_text("process") },
        "continue" => Fault::Continue { process: fields.need_text("process") },
        "start" => Fault::Start { process: fields.need_text("process") },
        "death" => Fault::Death { pod: fields.need_text("pod") },
        "link" => Fault::Link { node: fields.need_text("node"), fault: link(fields) },
        "remove" => Fault::Remove { pod: fields.need_text("pod"), removal: removal(fields)? },
        "down" => Fault::Down { pod: fields.need_text("pod"), interface: fields.text("interface") },
        "disk" => Fault::Disk { full: fields.flag("full", true) },
        _ => {
            if fields.take("for").is_none() {
                fields.wrong("for", "is missing, must be a time as 8s or 500ms");
            }
            Fault::Wait { span: span(fields, "for")? }
        }
    })
}

fn link(fields: &mut Fields<'_>) -> LinkFault {
    LinkFault {
        loss: percent(fields, "loss"),
        duplicate: percent(fields, "duplicate"),
        reorder: percent(fields, "reorder"),
        delay: span(fields, "delay"),
        jitter: span(fields, "jitter"),
        mtu: fields.parse("mtu", "a number of bytes"),
        direction: fields.one_of("direction", &[("in", Direction::In), ("out", Direction::Out)]).unwrap_or_default(),
        only: fields.one_of("only", &[("tcp", Only::Tcp), ("udp", Only::Udp)]).unwrap_or_default(),
        peer: fields.text("peer"),
    }
}

fn percent(fields: &mut Fields<'_>, key: &'static str) -> f64 {
    let share = fields.parse(key, "a share as 2.5, in percent").unwrap_or(0.0);
    if !(0.0..=100.0).contains(&share) {
        fields.wrong(key, format!("is {share}, must be 0 to 100, in percent"));
    }
    share
}

fn removal(fields: &mut Fields<'_>) -> Option<Removal> {
    let (interface, table) = (fields.text("interface"), fields.parse("table", "the number of a routing table"));
    let (address, route): (Option<IpNet>, Option<IpNet>) = (fields.parse("address", PREFIX), fields.parse("route", PREFIX));
    match (interface, table, address, route) {
        (Some(name), None, None, None) => Some(Removal::Interface(name)),
        (Some(name), None, Some(address), None) => Some(Removal::Address(name, address)),
        (Some(name), None, None, Some(route)) => Some(Removal::Route(name, route)),
        (None, Some(table), None, None) => Some(Removal::Rules(table)),
        _ => {
            fields.notes().note(&fields.at, "must have interface, perhaps with one of address and route, or else table");
            None
        }
    }
}

pub(super) fn steady(fields: &mut Fields<'_>) -> Option<Check> {
    let (client, interface) = (fields.need_text("client"), fields.need_text("interface"));
    let to = fields.parses("to", ADDRESS);
    if to.is_empty() {
        fields.wrong("to", "is missing, must be an address as 172.16.1.100");
    }
    let mut faults: Vec<Check> =
        fields.texts("restarts").into_iter().map(|process| Check::Restart { process, ending: Ending::Kill }).collect();
    for inner in fields.maps("faults") {
        let (at, notes) = (inner.at.clone(), inner.notes());
        match check(inner) {
            Some(acts) if acts.acts() => faults.push(acts),
            Some(_) => notes.note(&at, "does nothing by itself; faults are what acts: end, restart, stop, link, wait and so on"),
            None => {}
        }
    }
    if faults.is_empty() {
        fields.wrong("faults", "is missing, must be a list of faults; or restarts, a list of processes");
    }
    let (lost, silent) = (fields.parse("lost", "a number of echoes"), span(fields, "silent"));
    let lost = if silent.is_none() { Some(lost.unwrap_or(0)) } else { lost };
    let repeat = fields.parse("repeat", "a number").unwrap_or(1);
    if !(1..=MAX_REPEAT).contains(&repeat) {
        fields.wrong("repeat", format!("is {repeat}, must be 1 to {MAX_REPEAT}"));
    }
    let same = fields.flag("same", true);
    Some(Check::Steady(Box::new(Steady { client, interface, to, faults, repeat, lost, silent, same })))
}
