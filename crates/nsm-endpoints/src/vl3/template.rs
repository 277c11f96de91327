//! How a workload is called: `{{ index .Labels "podName" }}.{{ .NetworkService }}.`, as users of other implementations
//! write it.
//!
//! What comes from a workload (its labels, the name of its identity) is one label of DNS, so that it cannot stand for a
//! name elsewhere; dots are allowed in it only where something fixed follows. Who lacks a label has no name.

use nsm_api::{Connection, ServiceName};

/// Bytes of the longest name.
const MAX_NAME: usize = 253;
/// Bytes of the longest label of DNS.
const MAX_LABEL: usize = 63;

/// A template that has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Label(String),
    /// The last part of the workload's SPIFFE ID.
    Identity,
    /// The service, the part before its `@`, or that after it.
    Service,
    Target,
    Domain,
}

impl std::str::FromStr for Template {
    type Err = String;
    fn from_str(text: &str) -> Result<Template, String> {
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, after) = after.split_once("}}").ok_or_else(|| format!("template {text:?} has {{{{ without }}}}"))?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(part(action.trim()).ok_or_else(|| {
                format!("template {text:?}: {action:?} is none of .NetworkService, target .NetworkService, domain .NetworkService, index .Labels \"KEY\", .Labels.KEY, .Identity")
            })?);
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        parts.retain(|part| *part != Part::Text(String::new()));
        Ok(Template(parts))
    }
}

fn part(action: &str) -> Option<Part> {
    let words: Vec<&str> = action.split_whitespace().collect();
    let unquoted = |text: &str| text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).map(str::to_owned);
    match words.as_slice() {
        [".NetworkService"] => Some(Part::Service),
        ["target", ".NetworkService"] => Some(Part::Target),
        ["domain", ".NetworkService"] => Some(Part::Domain),
        [".Identity"] => Some(Part::Identity),
        ["index", ".Labels", key] => unquoted(key).map(Part::Label),
        [word] => word.strip_prefix(".Labels.").map(|key| Part::Label(key.to_owned())),
        _ => None,
    }
}

impl Template {
    /// The name of the workload of `connection`, absolute and in lower case. `identity` is the last part of its SPIFFE ID.
    pub fn name(&self, connection: &Connection, identity: &str) -> Option<String> {
        let fixed = |part: &Part| !matches!(part, Part::Label(_) | Part::Identity) && *part != Part::Text(".".to_owned());
        let last_fixed = self.0.iter().rposition(fixed);
        let mut name = String::new();
        for (place, part) in self.0.iter().enumerate() {
            let own = |text: &str| of_a_workload(text, last_fixed.is_some_and(|last| place < last)).then(|| text.to_owned());
            name.push_str(&match part {
                Part::Text(text) => text.clone(),
                Part::Label(key) => own(connection.labels.get(key)?)?,
                Part::Identity => own(identity)?,
                Part::Service => connection.network_service.to_string(),
                Part::Target => split(&connection.network_service).0,
                Part::Domain => split(&connection.network_service).1,
            });
        }
        let labels: Vec<&str> = name.split('.').filter(|label| !label.is_empty()).collect();
        let name = format!("{}.", labels.join(".")).to_ascii_lowercase();
        (!labels.is_empty() && name.len() <= MAX_NAME && labels.into_iter().all(is_label)).then_some(name)
    }
}

fn split(service: &ServiceName) -> (String, String) {
    let (target, domain) = service.as_str().split_once('@').unwrap_or((service.as_str(), ""));
    (target.to_owned(), domain.to_owned())
}

fn of_a_workload(text: &str, dots: bool) -> bool {
    if dots { text.split('.').all(is_label) } else { is_label(text) }
}

fn is_label(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=MAX_LABEL).contains(&text.len()) && text.chars().all(legal)
}

/// The domains in which short forms of a name are looked for: what remains without its first labels.
pub(super) fn search_domains(name: &str) -> Vec<String> {
    let mut rest = name.trim_end_matches('.');
    let mut domains = Vec::new();
    while let Some((_, parent)) = rest.split_once('.') {
        domains.push(parent.to_owned());
        rest = parent;
    }
    domains
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(template: &str, labels: &[(&str, &str)], service: &str) -> Option<String> {
        let mut connection = Connection::new("c".parse().unwrap(), service.parse().unwrap());
        connection.labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        template.parse::<Template>().unwrap().name(&connection, "nsc-7")
    }

    /// wire.md 10.4, X-056, X-145
    #[test]
    fn published_templates_mean_what_they_mean_elsewhere() {
        let pod = [("podName", "Alice-1")];
        let upstream = "{{ index .Labels \"podName\" }}.{{ .NetworkService }}.";
        assert_eq!(name(upstream, &pod, "vl3-dns").as_deref(), Some("alice-1.vl3-dns."));
        let floating = "{{ index .Labels \"podName\" }}.{{ target .NetworkService }}.{{ domain .NetworkService }}.";
        assert_eq!(name(floating, &pod, "vl3@my.cluster3").as_deref(), Some("alice-1.vl3.my.cluster3."));
        assert_eq!(name(floating, &pod, "vl3").as_deref(), Some("alice-1.vl3."), "runs of dots are one");
        assert_eq!(name("{{.Identity}}.{{ .Labels.podName }}.x", &pod, "s").as_deref(), Some("nsc-7.alice-1.x."));
        assert_eq!(search_domains("a.b.c."), ["b.c", "c"]);
        assert!("{{ range . }}".parse::<Template>().is_err() && "{{ .NetworkService".parse::<Template>().is_err());
    }

    #[test]
    fn a_label_is_no_way_to_a_name_elsewhere() {
        let of = |template: &str, value: &str| name(template, &[("dnsName", value)], "kuma");
        assert_eq!(of("{{ .Labels.dnsName }}.{{ .NetworkService }}.", "a.b").as_deref(), Some("a.b.kuma."));
        for template in ["{{ .Labels.dnsName }}.", "{{ .NetworkService }}.{{ .Labels.dnsName }}", "x-{{ .Labels.dnsName }}."] {
            assert_eq!(of(template, "www.example.com"), None, "{template}");
        }
        for bad in ["", "a b", "a..b", ".", "ä", &"x".repeat(64), "a.", "*"] {
            assert_eq!(of("{{ .Labels.dnsName }}.{{ .NetworkService }}.", bad), None, "{bad:?}");
        }
        assert_eq!(name("{{ .Labels.other }}.{{ .NetworkService }}.", &[], "kuma"), None, "without the label no name");
    }
}
