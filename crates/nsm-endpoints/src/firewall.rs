//! Files of firewall rules: our own form, and the map of access lists of the Go implementation's firewall.
//!
//! ```yaml
//! default: deny                 # where no rule fits; deny when left out
//! rules:                        # in order, the first that fits decides; each needs a name
//! - {name: web, action: permit, proto: tcp, to: [10.0.0.0/8, "fd00::/8"], port: [80, 8000-8999]}
//! - {name: ping, action: permit, proto: icmp}           # both families
//! - {name: callback, action: permit, direction: in, proto: tcp, port: 9000}   # what the service begins
//! - {name: log4shell, action: deny, proto: tcp, begins: "GET /${jndi"}        # what a payload begins with
//! ```
//!
//! What is permitted may be answered. `from` and `sourcePort` are like `to` and `port`; `icmpType` is a number.
//!
//! Not here: what the kernel makes of it (`nsm_linux::firewall`).

use ipnet::IpNet;
use nsm_api::Error;
use nsm_linux::firewall::{Direction, Firewall, MAX_BEGINNING, Rule, Rules, Verdict};
use serde::Deserialize;
use serde_yaml_ng::Value;
use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::time::sleep;
use tracing::{info, warn};

/// Largest file of rules, bytes.
const MAX_FILE: u64 = 4 << 20;
/// Between two looks at a file of rules.
const LOOK: Duration = Duration::from_millis(500);

/// Bytes of the longest name of a rule.
const MAX_NAME: usize = 100;

/// Reads either form. An empty text is no rule at all, and permits everything: the wire is a plain passthrough.
///
/// # Errors
/// One sentence that names the first mistake.
pub fn parse(text: &str) -> Result<Rules, String> {
    if text.trim().is_empty() {
        return Ok(Rules { list: vec![], otherwise: Verdict::Permit });
    }
    let value: Value = serde_yaml_ng::from_str(text).map_err(|error| format!("is not YAML: {error}"))?;
    let Value::Mapping(map) = &value else { return Err("must be a map with the key `rules`, or a map of access lists".to_owned()) };
    let ours = map.is_empty() || map.contains_key("rules") || map.contains_key("default");
    let rules = if ours { own_form(value)? } else { access_lists(value)? };
    let mut names = BTreeSet::new();
    for rule in &rules.list {
        let reserved = ["established", "default"].contains(&rule.name.as_str());
        if rule.name.is_empty() || rule.name.len() > MAX_NAME || reserved || !names.insert(&rule.name) {
            return Err(format!(
                "rule {:?} needs a name of its own of 1 to {MAX_NAME} bytes, other than established and default",
                rule.name
            ));
        }
    }
    Ok(rules)
}

/// A file of rules that may change.
#[derive(Clone, Debug)]
pub struct RuleFile {
    path: PathBuf,
    text: String,
}

impl RuleFile {
    /// Reads it for the first time. One that is absent is empty.
    ///
    /// # Errors
    /// [`nsm_api::Kind::Invalid`] for one that cannot be read or has a mistake: nobody starts with half a firewall.
    pub fn open(path: &Path) -> nsm_api::Result<(Rules, RuleFile)> {
        let wrong = |mistake: String| Error::invalid(format!("rules in {}", path.display()), mistake, "correct the file");
        let text = read(path).map_err(wrong)?;
        let rules = parse(&text).map_err(wrong)?;
        Ok((rules, RuleFile { path: path.to_owned(), text }))
    }
}

fn read(path: &Path) -> Result<String, String> {
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
        file => file.map_err(|error| format!("cannot be opened: {error}"))?,
    };
    let mut text = String::new();
    let read = file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|error| format!("cannot be read: {error}"))?;
    if read as u64 > MAX_FILE { Err(format!("has more than {MAX_FILE} bytes")) } else { Ok(text) }
}

/// Gives the firewall the rules of the file whenever that has changed; never ends. With a mistake in it, or without the
/// file, the former rules hold: what vanishes by accident opens nothing.
pub async fn follow(mut file: RuleFile, firewall: Arc<Firewall>) {
    loop {
        sleep(LOOK).await;
        let text = match read(&file.path) {
            Ok(text) if text == file.text || !file.path.exists() => continue,
            Ok(text) => text,
            Err(mistake) => {
                warn!(file = %file.path.display(), "{mistake}; what it said before still holds");
                continue;
            }
        };
        let replaced = parse(&text).map_err(|mistake| format!("{mistake}; what it said before still holds"));
        match replaced.map(|rules| (rules.list.len(), firewall.replace(&rules))) {
            Ok((rules, Ok(()))) => info!(file = %file.path.display(), rules, "rules replaced"),
            Ok((_, Err(error))) => warn!(%error, "rules not replaced"),
            Err(mistake) => warn!(file = %file.path.display(), "{mistake}"),
        }
        file.text = text;
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    default: Option<Action>,
    #[serde(default)]
    rules: Vec<Entry>,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Action {
    #[serde(alias = "allow", alias = "accept")]
    Permit,
    #[serde(alias = "drop", alias = "forbid")]
    Deny,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Way {
    #[default]
    Out,
    In,
}

/// One or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    Many(Vec<T>),
    One(T),
}

impl<T> OneOrMany<T> {
    fn list(all: Option<OneOrMany<T>>) -> Vec<T> {
        match all {
            None => vec![],
            Some(OneOrMany::One(one)) => vec![one],
            Some(OneOrMany::Many(many)) => many,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Number(u32),
    Text(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Entry {
    name: String,
    action: Action,
    #[serde(default)]
    direction: Way,
    proto: Option<OneOrMany<Scalar>>,
    from: Option<OneOrMany<IpNet>>,
    to: Option<OneOrMany<IpNet>>,
    port: Option<OneOrMany<Scalar>>,
    source_port: Option<OneOrMany<Scalar>>,
    icmp_type: Option<u8>,
    begins: Option<String>,
}

fn own_form(value: Value) -> Result<Rules, String> {
    let file: File = serde_yaml_ng::from_value(value).map_err(|error| format!("has a mistake: {error}"))?;
    let otherwise = if file.default == Some(Action::Permit) { Verdict::Permit } else { Verdict::Deny };
    Ok(Rules { list: file.rules.into_iter().map(rule).collect::<Result<_, _>>()?, otherwise })
}

fn rule(entry: Entry) -> Result<Rule, String> {
    let Entry { name, action, direction, proto, from, to, port, source_port, icmp_type, begins } = entry;
    let at = |what: String| format!("rule {name:?}: {what}");
    let ports = |list| OneOrMany::list(list).into_iter().map(port_range).collect::<Result<Vec<_>, _>>();
    let mut protocols = Vec::new();
    for one in OneOrMany::list(proto) {
        protocols.extend(protocol(one).map_err(at)?);
    }
    let (to_ports, from_ports) = (ports(port).map_err(at)?, ports(source_port).map_err(at)?);
    let begins = begins.unwrap_or_default().into_bytes();
    let carries = |numbers: &[u8]| !protocols.is_empty() && protocols.iter().all(|number| numbers.contains(number));
    let has_ports = !to_ports.is_empty() || !from_ports.is_empty();
    if has_ports && !carries(&[6, 17]) {
        return Err(at("ports need `proto: tcp` or `proto: udp`".to_owned()));
    }
    if icmp_type.is_some() && !carries(&[1, 58]) {
        return Err(at("icmpType needs `proto: icmp`".to_owned()));
    }
    if !begins.is_empty() && (action == Action::Permit || !carries(&[6, 17]) || begins.len() > MAX_BEGINNING) {
        return Err(at(format!("begins is for `action: deny` and `proto: tcp` or `udp`, and has at most {MAX_BEGINNING} bytes")));
    }
    let verdict = if action == Action::Permit { Verdict::Permit } else { Verdict::Deny };
    let direction = if matches!(direction, Way::In) { Direction::In } else { Direction::Out };
    let (from, to) = (OneOrMany::list(from), OneOrMany::list(to));
    Ok(Rule { name, verdict, direction, protocols, from, to, from_ports, to_ports, icmp_type, begins })
}

fn protocol(word: Scalar) -> Result<Vec<u8>, String> {
    let wrong = |text: String| format!("proto {text:?} must be tcp, udp, icmp, any or the number of an IP protocol");
    match word {
        Scalar::Number(number) => u8::try_from(number).map(|number| vec![number]).map_err(|_| wrong(number.to_string())),
        Scalar::Text(text) => match text.as_str() {
            "tcp" => Ok(vec![6]),
            "udp" => Ok(vec![17]),
            "icmp" => Ok(vec![1, 58]),
            "any" => Ok(vec![]),
            other => other.parse().map(|number| vec![number]).map_err(|_| wrong(text)),
        },
    }
}

fn port_range(text: Scalar) -> Result<(u16, u16), String> {
    let text = match text {
        Scalar::Number(number) => number.to_string(),
        Scalar::Text(text) => text,
    };
    let (first, last) = text.split_once('-').unwrap_or((&text, &text));
    let range = first.trim().parse().ok().zip(last.trim().parse().ok());
    range.filter(|(first, last): &(u16, u16)| first <= last).ok_or_else(|| format!("port {text:?} must be a port or a range as 8000-8999"))
}

/// An entry of the other form, whose keys are written in any case. For ICMP the ports are type and code.
#[derive(Default)]
struct AccessList {
    permit: u64,
    protocol: u64,
    source: Option<IpNet>,
    destination: Option<IpNet>,
    source_ports: (u64, u64),
    destination_ports: (u64, u64),
}

/// In the order of the file.
fn access_lists(value: Value) -> Result<Rules, String> {
    let Value::Mapping(map) = value else { return Err("must be a map".to_owned()) };
    let mut list = vec![];
    for (name, entry) in map {
        let name = name.as_str().ok_or("has a rule whose name is not text")?.to_owned();
        let read = access_list(&entry).map_err(|mistake| format!("rule {name:?}: {mistake}"))?;
        list.push(from_access_list(name, read)?);
    }
    Ok(Rules { list, otherwise: Verdict::Deny })
}

fn access_list(entry: &Value) -> Result<AccessList, String> {
    let Value::Mapping(entry) = entry else { return Err("must be a map with keys as proto and ispermit".to_owned()) };
    let mut read = AccessList::default();
    for (key, value) in entry {
        let key = key.as_str().unwrap_or_default().to_ascii_lowercase();
        let number = || value.as_u64().ok_or_else(|| format!("{key} must be a number"));
        let net = || match value.as_str() {
            Some("") => Ok(None),
            text => text.and_then(|text| text.parse().ok()).map(Some).ok_or_else(|| format!("{key} must be a prefix as 10.0.0.0/8")),
        };
        match key.as_str() {
            "ispermit" => read.permit = number()?,
            "proto" => read.protocol = number()?,
            "srcprefix" => read.source = net()?,
            "dstprefix" => read.destination = net()?,
            "srcportoricmptypefirst" => read.source_ports.0 = number()?,
            "srcportoricmptypelast" => read.source_ports.1 = number()?,
            "dstportoricmpcodefirst" => read.destination_ports.0 = number()?,
            "dstportoricmpcodelast" => read.destination_ports.1 = number()?,
            "tcpflagsmask" | "tcpflagsvalue" if value.as_u64() == Some(0) => {}
            _ => return Err(format!("{key} is not supported here")),
        }
    }
    Ok(read)
}

fn from_access_list(name: String, read: AccessList) -> Result<Rule, String> {
    let wrong = |what: &str| format!("rule {name:?}: {what}");
    let protocol = u8::try_from(read.protocol).map_err(|_| wrong("proto must be the number of an IP protocol"))?;
    let verdict = match read.permit {
        0 => Verdict::Deny,
        1 | 2 => Verdict::Permit, // what is permitted may be answered in either case
        _ => return Err(wrong("ispermit must be 0, 1 or 2")),
    };
    let with_ports = [6, 17].contains(&protocol);
    let ports = |(first, last): (u64, u64)| match (u16::try_from(first), u16::try_from(last)) {
        (Ok(0), Ok(u16::MAX)) => Ok(vec![]),
        (Ok(first), Ok(last)) if first <= last => Ok(vec![(first, last)]),
        _ => Err(wrong("ports must be 0 to 65535, the first not after the last")),
    };
    let (from_ports, to_ports) = (ports(read.source_ports)?, ports(read.destination_ports)?);
    let one_type = |(first, last): (u64, u64)| (first == last).then(|| u8::try_from(first).ok()).flatten();
    let any = |net: Option<IpNet>| net.filter(|net| net.prefix_len() > 0).into_iter().collect();
    Ok(Rule {
        icmp_type: if [1, 58].contains(&protocol) { one_type(read.source_ports) } else { None },
        name,
        verdict,
        direction: Direction::Out,
        protocols: if protocol == 0 { vec![] } else { vec![protocol] },
        from: any(read.source),
        to: any(read.destination),
        from_ports: if with_ports { from_ports } else { vec![] },
        to_ports: if with_ports { to_ports } else { vec![] },
        begins: vec![],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_form() {
        let text = "
rules:
- {name: web, action: permit, proto: tcp, to: [10.0.0.0/8, 'fd00::/8'], port: [80, 8000-8999]}
- {name: ping, action: permit, proto: icmp, icmpType: 8}
- {name: back, action: permit, direction: in, proto: [udp, 6], sourcePort: 53}
- {name: bad, action: deny, proto: tcp, begins: 'GET /evil'}
";
        let rules = parse(text).unwrap();
        assert_eq!(rules.otherwise, Verdict::Deny);
        let [web, ping, back, bad] = rules.list.as_slice() else { panic!("{rules:?}") };
        assert_eq!((web.to.len(), &web.to_ports[..], &web.protocols[..]), (2, &[(80, 80), (8000, 8999)][..], &[6][..]));
        assert_eq!((&ping.protocols[..], ping.icmp_type), (&[1, 58][..], Some(8)));
        assert_eq!((back.direction, &back.protocols[..], &back.from_ports[..]), (Direction::In, &[17, 6][..], &[(53, 53)][..]));
        assert_eq!((bad.verdict, &bad.begins[..]), (Verdict::Deny, &b"GET /evil"[..]));
        assert_eq!(parse("default: permit").unwrap().otherwise, Verdict::Permit);
        assert_eq!(parse("").unwrap().otherwise, Verdict::Permit, "no file, no filter");
    }

    /// X-050: the file of the published example; G-06: in its order.
    #[test]
    fn the_other_form() {
        let text = "
allow tcp8080:
    proto: 6
    srcportoricmptypelast: 65535
    dstportoricmpcodefirst: 8080
    dstportoricmpcodelast: 8080
    ispermit: 1
forbid tcp80:
    proto: 6
    srcportoricmptypelast: 65535
    dstportoricmpcodefirst: 80
    dstportoricmpcodelast: 80
allow icmp:
    proto: 1
    srcportoricmptypelast: 65535
    dstportoricmpcodelast: 65535
    srcprefix: 10.0.0.0/8
    ispermit: 1
";
        let rules = parse(text).unwrap();
        let shown: Vec<_> = rules.list.iter().map(|rule| (rule.name.as_str(), rule.verdict, &rule.to_ports[..], rule.icmp_type)).collect();
        let expected: [(_, _, &[(u16, u16)], _); 3] = [
            ("allow tcp8080", Verdict::Permit, &[(8080, 8080)], None),
            ("forbid tcp80", Verdict::Deny, &[(80, 80)], None),
            ("allow icmp", Verdict::Permit, &[], None),
        ];
        assert_eq!(shown, expected);
        assert_eq!((rules.otherwise, rules.list[2].from.len()), (Verdict::Deny, 1));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("rules: [{name: a, action: permit, port: 80}]", "proto: tcp"),
            ("rules: [{name: a, action: permit, proto: tpc}]", "tpc"),
            ("rules: [{name: a, action: permit, proto: tcp, port: 9-1}]", "9-1"),
            ("rules: [{name: a, action: permit}, {name: a, action: deny}]", "of its own"),
            ("rules: [{name: default, action: permit}]", "other than"),
            ("rules: [{name: a, action: permit, proto: tcp, begins: x}]", "action: deny"),
            ("rules: [{name: a, action: permit, prto: tcp}]", "prto"),
            ("a: {proto: 6, tcpflagsmask: 2}", "tcpflagsmask"),
            ("a: {proto: 600}", "proto"),
            ("[]", "map"),
        ] {
            let mistake = parse(text).unwrap_err();
            assert!(mistake.contains(word), "{text}: {mistake}");
        }
    }
}
