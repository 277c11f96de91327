//! What one key alone cannot show: names are legal and unique, and everything named exists.

use super::fields::Notes;
use crate::{
    plan::{excluded_prefixes_file, policy_routes_file},
    schema::*,
};
use std::collections::BTreeSet;

/// Notes every mistake that needs more than one key to see.
pub(super) fn verify(lab: &Lab, notes: &Notes) {
    legal_name("metadata.name", &lab.name, MAX_LAB_NAME, notes);
    if lab.nodes.is_empty() {
        notes.note("spec.nodes", "is empty, must have at least one node");
    }
    bound("spec.nodes", lab.nodes.len(), MAX_NODES, notes);
    bound("spec.checks", lab.checks.len(), MAX_CHECKS, notes);
    bound("spec", lab.pods().count(), MAX_PODS, notes);
    names(lab, notes);
    files(lab, notes);
    for (i, node) in lab.nodes.iter().enumerate() {
        if node.combined && (node.manager != Part::default() || node.forwarder != Part::default()) {
            notes.note(
                &format!("spec.nodes[{i}].combined"),
                "is one process of ours; leave it out where manager or forwarder have settings",
            );
        }
    }
    let nodes: BTreeSet<&str> = lab.nodes.iter().map(|node| node.name.as_str()).collect();
    for (i, endpoint) in lab.endpoints.iter().enumerate() {
        let at = format!("spec.endpoints[{i}]");
        known(&format!("{at}.node"), &endpoint.node, &nodes, notes);
        one_endpoint(&at, endpoint, notes);
    }
    if lab.prefix_servers.is_empty() && lab.endpoints.iter().any(|endpoint| endpoint.kind == EndpointKind::Vl3) {
        notes.note("spec.prefixServers", "is missing, must have at least one for the endpoints of kind vl3");
    }
    for (i, client) in lab.clients.iter().enumerate() {
        let at = format!("spec.clients[{i}]");
        known(&format!("{at}.node"), &client.node, &nodes, notes);
        one_client(&at, client, notes);
    }
    for (pod, names) in lab.name_servers() {
        for name in names.keys().filter(|name| hickory_proto::rr::Name::from_ascii(name).is_err()) {
            notes.note(&format!("names of {pod}"), format!("{name:?} is no name, must be as db.corp.example"));
        }
    }
    let pods: BTreeSet<&str> = lab.pods().collect();
    for (i, host) in lab.hosts.iter().enumerate() {
        known(&format!("spec.hosts[{i}].pod"), &host.pod, &pods, notes);
    }
    for (i, end) in lab.cables.iter().enumerate().flat_map(|(i, ends)| ends.iter().map(move |end| (i, end))) {
        known(&format!("spec.cables[{i}]"), &end.pod, &pods, notes);
    }
    let places: BTreeSet<&str> = pods.iter().chain(&nodes).copied().collect();
    for (i, check) in lab.checks.iter().enumerate() {
        one_check(&format!("spec.checks[{i}]"), check, &places, (lab, notes));
    }
}

fn bound(at: &str, count: usize, limit: usize, notes: &Notes) {
    if count > limit {
        notes.note(at, format!("has {count} entries, the limit is {limit}"));
    }
}

fn name(at: &str, name: &str, notes: &Notes) {
    legal_name(at, name, MAX_NAME, notes);
}

fn legal_name(at: &str, name: &str, limit: usize, notes: &Notes) {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > limit || !name.chars().all(legal) || name.starts_with('-') {
        notes.note(at, format!("is {name:?}, must be 1 to {limit} of a-z 0-9 - and not begin with -"));
    }
}

/// Processes and namespaces are called by these names, so all share one space.
fn names(lab: &Lab, notes: &Notes) {
    let mut taken = BTreeSet::from(["fabric".to_owned(), "identity".to_owned(), "registry".to_owned(), "lab".to_owned()]);
    taken.extend(lab.nodes.iter().flat_map(|node| ["manager", "forwarder", "packet"].map(|role| format!("{}-{role}", node.name))));
    let mut take = |at: String, text: &str| {
        name(&at, text, notes);
        if !taken.insert(text.to_owned()) {
            notes.note(&at, format!("{text:?} is taken; every node, endpoint, client and host needs a name of its own"));
        }
    };
    for (i, server) in lab.prefix_servers.iter().enumerate() {
        take(format!("spec.prefixServers[{i}].name"), &server.name);
    }
    for (i, node) in lab.nodes.iter().enumerate() {
        take(format!("spec.nodes[{i}].name"), &node.name);
    }
    for (i, endpoint) in lab.endpoints.iter().enumerate() {
        take(format!("spec.endpoints[{i}].name"), &endpoint.name);
    }
    for (i, client) in lab.clients.iter().enumerate() {
        take(format!("spec.clients[{i}].name"), &client.name);
    }
    for (i, host) in lab.hosts.iter().enumerate() {
        take(format!("spec.hosts[{i}].name"), &host.name);
    }
}

/// Files are names in one directory, some of which the lab makes itself.
fn files(lab: &Lab, notes: &Notes) {
    bound("spec.files", lab.files.len(), MAX_FILES, notes);
    lab.files.keys().for_each(|file| file_name("spec.files", file, notes));
    let excluding = lab.nodes.iter().filter(|node| !node.excluded_prefixes.is_empty());
    let routing = lab.endpoints.iter().filter(|endpoint| endpoint.policy_routes.is_some());
    let made = excluding.map(|node| excluded_prefixes_file(&node.name));
    for file in made.chain(routing.map(|endpoint| policy_routes_file(&endpoint.name))).filter(|file| lab.files.contains_key(file)) {
        notes.note("spec.files", format!("{file:?} is made from the settings of its node or endpoint; leave one of the two out"));
    }
    if let Some(mtu) = lab.underlay_mtu.filter(|mtu| !UNDERLAY_MTUS.contains(mtu)) {
        notes.note("spec.underlayMtu", format!("is {mtu}, must be {} to {}", UNDERLAY_MTUS.start(), UNDERLAY_MTUS.end()));
    }
}

fn file_name(at: &str, file: &str, notes: &Notes) {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if file.is_empty() || file.len() > 100 || !file.chars().all(legal) || file.starts_with('.') {
        notes.note(at, format!("{file:?} is no name for a file, must be 1 to 100 of letters, digits, . _ - and not begin with ."));
    }
}

fn known(at: &str, name: &str, names: &BTreeSet<&str>, notes: &Notes) {
    if !names.contains(name) {
        let names: Vec<&str> = names.iter().copied().collect();
        notes.note(at, format!("{name:?} does not exist; there are {}", names.join(", ")));
    }
}

fn one_endpoint(at: &str, endpoint: &Endpoint, notes: &Notes) {
    if endpoint.services.is_empty() {
        notes.note(&format!("{at}.services"), "is empty, must name at least one network service");
    }
    let responds = endpoint.kind.has_pools();
    if !endpoint.kind.goes_on() && !endpoint.client_labels.is_empty() {
        notes.note(&format!("{at}.clientLabels"), "is only for kinds passthrough and firewall, which make a request of their own");
    }
    if !responds && (endpoint.ipam.is_some() || endpoint.policy_routes.is_some() || !endpoint.dns.is_empty()) {
        notes.note(at, "ipam, policyRoutes and dns are only for kinds that give addresses: icmp-responder, router, vpn-gateway");
    }
    if endpoint.kind == EndpointKind::Vl3 && (!endpoint.cidr.is_empty() || !endpoint.routes.is_empty() || endpoint.payload.is_some()) {
        notes.note(at, "cidr, routes and payload are not for kind vl3, which carries IP and has its addresses from prefixServers");
    }
    if responds && endpoint.cidr.is_empty() {
        notes.note(&format!("{at}.cidr"), "is missing, must name at least one prefix as 172.16.1.100/31");
    }
}

fn one_client(at: &str, client: &Client, notes: &Notes) {
    if client.services.is_empty() {
        notes.note(&format!("{at}.services"), "is empty, must have at least one URL as kernel://service/nsm-1");
    }
    if !client.part.program.is_empty() && client.mode == Mode::Init {
        notes.note(&format!("{at}.program"), "is only for mode stay");
    }
    if client.app.is_some() && client.mode != Mode::Init {
        notes.note(&format!("{at}.app"), "is only for mode init, where the application waits for the vWires");
    }
    for url in client.awareness.iter().flatten().filter(|url| !client.services.contains(url)) {
        notes.note(&format!("{at}.awareness"), format!("{url:?} is not one of its services"));
    }
    if client.manager.as_ref().is_some_and(|socket| socket.contains('/')) {
        notes.note(&format!("{at}.manager"), "must be a file name without /; it is looked for in the directory of the lab");
    }
}

fn one_check(at: &str, check: &Check, places: &BTreeSet<&str>, (lab, notes): (&Lab, &Notes)) {
    let clients: BTreeSet<&str> = lab.clients.iter().map(|client| client.name.as_str()).collect();
    let nodes: BTreeSet<&str> = lab.nodes.iter().map(|node| node.name.as_str()).collect();
    match check {
        Check::Ping { from, .. } | Check::Tcp { from, .. } => known(at, from, places, notes),
        Check::Isolation { from, at: far, .. } => [from].into_iter().chain(far).for_each(|pod| known(at, pod, places, notes)),
        Check::Interface { pod, .. } | Check::Addresses { pod, .. } | Check::Route { pod, .. } => known(at, pod, places, notes),
        Check::Connections { of: Of::Client { name, .. }, .. } => known(at, name, &clients, notes),
        Check::Connections { of: Of::Node(node), .. } => known(at, node, &nodes, notes),
        Check::Ready { client } | Check::Refusal { client, .. } | Check::Close { client } => known(at, client, &clients, notes),
        Check::Lasts { client, .. } | Check::Kill { client } => known(at, client, &clients, notes),
        Check::App { client, .. } => {
            known(at, client, &clients, notes);
            if lab.client(client).is_some_and(|client| client.app.is_none()) {
                notes.note(at, format!("client {client:?} has no app"));
            }
        }
        Check::End { process, .. } | Check::Restart { process, .. } => process_known(at, process, (lab, notes)),
        Check::Do(fault) => one_fault(at, fault, places, (lab, notes)),
        Check::Steady(steady) => {
            known(at, &steady.client, &clients, notes);
            steady.faults.iter().enumerate().for_each(|(i, fault)| one_check(&format!("{at}.faults[{i}]"), fault, places, (lab, notes)));
        }
        Check::Descriptors { .. } => {}
        Check::Way { pod, .. } => known(at, pod, places, notes),
        Check::Resolves { pod, .. } | Check::ResolvConf { pod, .. } => {
            known(at, pod, &clients, notes);
            if lab.client(pod).is_some_and(|client| client.resolv_conf.is_none()) {
                notes.note(at, format!("client {pod:?} has no resolvConf"));
            }
        }
        Check::Write { file, .. } => file_name(at, file, notes),
        Check::Apply { .. } => {}
        Check::Unchanged { pods } => pods.iter().for_each(|pod| known(at, pod, places, notes)),
    }
}

fn process_known(at: &str, process: &str, (lab, notes): (&Lab, &Notes)) {
    let processes: Vec<String> = lab.processes().collect();
    known(at, process, &processes.iter().map(String::as_str).collect(), notes);
}

fn one_fault(at: &str, fault: &Fault, places: &BTreeSet<&str>, (lab, notes): (&Lab, &Notes)) {
    let nodes: BTreeSet<&str> = lab.nodes.iter().map(|node| node.name.as_str()).collect();
    match fault {
        Fault::Stop { process } | Fault::Continue { process } | Fault::Start { process } => process_known(at, process, (lab, notes)),
        Fault::Death { pod } => {
            let endpoints = lab.endpoints.iter().map(|endpoint| endpoint.name.as_str());
            let pods = endpoints.chain(lab.clients.iter().map(|client| client.name.as_str())).collect();
            known(at, pod, &pods, notes);
        }
        Fault::Remove { pod, .. } | Fault::Down { pod, .. } => known(at, pod, places, notes),
        Fault::Link { node, fault } => {
            [node].into_iter().chain(&fault.peer).for_each(|node| known(at, node, &nodes, notes));
            if lab.link_seed.is_none() {
                notes.note(at, "needs links that can be faulty; give the lab a linkSeed");
            }
        }
        Fault::Disk { .. } if lab.state_bytes.is_none() => notes.note(at, "needs a disk of its own; give the lab stateBytes"),
        Fault::Disk { .. } | Fault::Wait { .. } => {}
    }
}
