//! From a file to a [`LabFile`]: splits it into documents, reads the `Lab`, reports all mistakes at once.
//!
//! The `NetworkService` documents are kept as text: what they mean is the registry's business, and they are
//! handed to it unchanged.

mod checks;
mod faults;
mod fields;
mod pods;
mod verify;

pub use fields::Mistake;

use crate::schema::*;
use fields::{Fields, Notes};
use nsm_api::{Error, Result};
use serde_yaml_ng::Value;
use std::path::{Path, PathBuf};

/// Bytes of the largest lab file.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// A lab with the services of its file.
#[derive(Clone, Debug, PartialEq)]
pub struct LabFile {
    /// Where it came from.
    pub path: PathBuf,
    /// The lab.
    pub lab: Lab,
    /// All documents that are not the lab, as written, in order.
    pub services: Vec<String>,
}

/// Reads one lab file.
pub fn read_file(path: &Path) -> Result<LabFile> {
    let object = format!("lab file {:?}", path.display().to_string());
    let unreadable = |reason: String| Error::invalid(&*object, reason, "name a readable YAML file with a document of kind Lab");
    let size = std::fs::metadata(path).map_err(|e| unreadable(format!("cannot be read ({e})")))?.len();
    if size > MAX_FILE_BYTES {
        return Err(unreadable(format!("has {size} bytes, the limit is {MAX_FILE_BYTES}")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| unreadable(format!("cannot be read ({e})")))?;
    let (mut lab, services) = read(&text).map_err(|mistakes| {
        let lines: Vec<String> = mistakes.iter().map(|mistake| format!("  {mistake}")).collect();
        Error::invalid(&*object, format!("has mistakes ({}):\n{}", lines.len(), lines.join("\n")), "correct each of these keys")
    })?;
    let beside = std::path::absolute(path).map_err(|e| unreadable(format!("cannot be located ({e})")))?;
    for program in lab.parts().into_iter().filter_map(|part| part.program.first_mut()) {
        *program = beside.with_file_name("").join(&*program).display().to_string();
    }
    Ok(LabFile { path: path.to_owned(), lab, services })
}

/// Reads the text of a lab file: the lab, and the other documents as text. Otherwise all mistakes.
pub fn read(text: &str) -> Result<(Lab, Vec<String>), Vec<Mistake>> {
    let notes = Notes::default();
    let mut labs = Vec::new();
    let mut services = Vec::new();
    for (number, document) in documents(text).into_iter().enumerate() {
        match serde_yaml_ng::from_str::<Value>(&document) {
            Err(error) => notes.note(&format!("document {}", number + 1), format!("is not YAML: {error}")),
            Ok(Value::Null) => {}
            Ok(value) if value.get("kind").and_then(Value::as_str) == Some("Lab") => labs.push(value),
            Ok(_) => services.push(document),
        }
    }
    if labs.len() != 1 {
        notes.note("kind", format!("the file has {} documents of kind Lab, must have one", labs.len()));
    }
    let lab = labs.first().map(|value| {
        let lab = lab(value, &notes);
        verify::verify(&lab, &notes);
        lab
    });
    let mistakes = notes.into_mistakes();
    match lab {
        Some(lab) if mistakes.is_empty() => Ok((lab, services)),
        _ => Err(mistakes),
    }
}

/// Cuts at lines that begin with `---`.
fn documents(text: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    for line in text.lines() {
        if line.starts_with("---") {
            all.push(String::new());
        } else if let Some(last) = all.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    all
}

fn lab(value: &Value, notes: &Notes) -> Lab {
    let mut top = Fields::of("", value, notes);
    for key in ["apiVersion", "kind"] {
        top.need_text(key);
    }
    let mut meta = top.map("metadata");
    let name = meta.need_text("name");
    meta.finish();
    let mut spec = top.map("spec");
    let lab = Lab {
        name,
        trust_domain: spec.text("trustDomain").unwrap_or_else(|| "lab.nsm".to_owned()),
        identity: spec.optional_map("identity").map(part).unwrap_or_default(),
        registry: spec.optional_map("registry").map(part).unwrap_or_default(),
        prefix_servers: spec.maps("prefixServers").into_iter().filter_map(pods::prefix_server).collect(),
        underlay: spec.one_of("underlay", &[("ipv4", Underlay::V4), ("ipv6", Underlay::V6)]).unwrap_or(Underlay::V4),
        underlay_mtu: spec.parse("underlayMtu", "a number of bytes"),
        link_seed: spec.parse("linkSeed", "a number"),
        state_bytes: spec.parse("stateBytes", "a number of bytes"),
        files: spec.labels("files"),
        nodes: spec.maps("nodes").into_iter().map(node).collect(),
        endpoints: spec.maps("endpoints").into_iter().map(endpoint).collect(),
        clients: spec.maps("clients").into_iter().map(client).collect(),
        hosts: spec.maps("hosts").into_iter().map(host).collect(),
        cables: spec.maps("cables").into_iter().map(cable).collect(),
        checks: spec.maps("checks").into_iter().filter_map(checks::check).collect(),
    };
    spec.finish();
    top.finish();
    lab
}

fn node(mut fields: Fields<'_>) -> Node {
    let node = Node {
        name: fields.need_text("name"),
        combined: fields.flag("combined", false),
        lifetime: fields.text("lifetime"),
        excluded_prefixes: fields.parses("excludedPrefixes", PREFIX),
        manager: fields.optional_map("manager").map(part).unwrap_or_default(),
        forwarder: fields.optional_map("forwarder").map(part).unwrap_or_default(),
    };
    fields.finish();
    node
}

fn part(mut fields: Fields<'_>) -> Part {
    let part = part_of(&mut fields);
    fields.finish();
    part
}

/// Who plays it, and with what settings.
fn part_of(fields: &mut Fields<'_>) -> Part {
    let given = fields.take("program").is_some();
    let program = fields.texts("program");
    if given && program.first().is_none_or(String::is_empty) {
        fields.wrong("program", "must be the path of a program and its arguments, as [../bin/nsc, -v]");
    }
    Part { program, env: fields.labels("env") }
}

const PREFIX: &str = "a prefix as 172.16.1.100/31";
const PAYLOADS: [(&str, &str); 2] = [("IP", "IP"), ("ETHERNET", "ETHERNET")];
const ADDRESS: &str = "an address as 172.16.1.100";

fn endpoint(mut fields: Fields<'_>) -> Endpoint {
    let kinds = EndpointKind::ALL.map(|kind| (kind.as_str(), kind));
    let endpoint = Endpoint {
        name: fields.need_text("name"),
        node: fields.need_text("node"),
        kind: fields.one_of("kind", &kinds).unwrap_or(EndpointKind::IcmpResponder),
        services: fields.texts("services"),
        labels: fields.labels("labels"),
        client_labels: fields.labels("clientLabels"),
        cidr: fields.parses("cidr", PREFIX),
        payload: fields.one_of("payload", &PAYLOADS),
        ipam: fields.one_of("ipam", &[("strict", "strict"), ("polite", "polite")]),
        routes: fields.parses("routes", PREFIX),
        policy_routes: pods::policy_routes(&mut fields),
        dns: fields.maps("dns").into_iter().map(pods::dns_servers).collect(),
        names: fields.named("names", ADDRESS),
        lifetime: fields.text("lifetime"),
        later: fields.flag("later", false),
        part: part_of(&mut fields),
    };
    fields.finish();
    endpoint
}

fn client(mut fields: Fields<'_>) -> Client {
    let client = Client {
        name: fields.need_text("name"),
        node: fields.need_text("node"),
        services: fields.texts("services"),
        payload: fields.one_of("payload", &PAYLOADS),
        lifetime: fields.text("lifetime"),
        mode: fields.one_of("mode", &[("stay", Mode::Stay), ("init", Mode::Init)]).unwrap_or(Mode::Stay),
        app: fields.optional_map("app").map(app),
        expect_refusal: fields.flag("expectRefusal", false),
        later: fields.flag("later", false),
        manager: fields.text("manager"),
        awareness: fields.lists("awareness"),
        resolv_conf: fields.text("resolvConf"),
        part: part_of(&mut fields),
    };
    fields.finish();
    client
}

fn app(mut fields: Fields<'_>) -> App {
    let app = App { ping: fields.parse("ping", ADDRESS), tcp: fields.parse("tcp", "address:port") };
    fields.finish();
    app
}

fn host(mut fields: Fields<'_>) -> Host {
    let host = Host {
        name: fields.need_text("name"),
        pod: fields.need_text("pod"),
        interface: fields.text("interface").unwrap_or_else(|| "eth1".to_owned()),
        address: fields.need("address", PREFIX).unwrap_or_default(),
        pod_interface: fields.need_text("podInterface"),
        pod_address: fields.parse("podAddress", PREFIX),
        routes: fields.maps("routes").into_iter().filter_map(host_route).collect(),
        listen: fields.parses("listen", "a port number"),
        names: fields.named("names", ADDRESS),
    };
    fields.finish();
    host
}

fn cable(mut fields: Fields<'_>) -> [PodEnd; 2] {
    let ends = ["a", "b"].map(|end| {
        let mut fields = fields.map(end);
        let (pod, interface) = (fields.need_text("pod"), fields.text("interface").unwrap_or_else(|| "eth1".to_owned()));
        let address = fields.need("address", PREFIX).unwrap_or_default();
        fields.finish();
        PodEnd { pod, interface, address }
    });
    fields.finish();
    ends
}

fn host_route(mut fields: Fields<'_>) -> Option<HostRoute> {
    let (to, via) = (fields.need("to", PREFIX), fields.need("via", ADDRESS));
    fields.finish();
    Some(HostRoute { to: to?, via: via? })
}

#[cfg(test)]
mod tests;
