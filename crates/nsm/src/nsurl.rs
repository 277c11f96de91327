//! What a client asks for, as one URL: `kernel://service@domain/interface?label=value`.
//!
//! The scheme is the local mechanism, the path's last piece the interface name (the mesh chooses one when there is
//! none), the query the client's labels. Lists are separated by commas, so a comma in a label is written `%2C`.

use nsm_api::{Class, Error, Labels, Mechanism, MechanismKind, Result, ServiceName, limits, params};
use std::str::FromStr;

/// One wish of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceUrl {
    /// The one mechanism the client offers, with the interface name as its parameter when there is one.
    pub mechanism: Mechanism,
    /// The service, with `@domain` when it is in another domain.
    pub service: ServiceName,
    /// The client's labels.
    pub labels: Labels,
}

impl ServiceUrl {
    /// The interface name, when the URL has one.
    pub fn interface(&self) -> Option<&str> {
        self.mechanism.get(params::NAME)
    }
}

impl FromStr for ServiceUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<ServiceUrl> {
        parse(text).map_err(|reason| {
            let fix = "write mechanism://service[@domain]/[interface][?label=value&...], for instance kernel://my-vpn/nsm-1?app=web";
            Error::invalid(format!("network service URL {text:?}"), reason, fix)
        })
    }
}

fn parse(text: &str) -> Result<ServiceUrl, String> {
    if let Some(odd) = text.chars().find(|c| c.is_control() || c.is_whitespace() || *c == '#') {
        return Err(format!("holds {odd:?}, write it with % and its two hexadecimal digits"));
    }
    let (scheme, rest) = text.split_once("://").ok_or("has no mechanism before ://")?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').map_or((rest, None), |(authority, path)| (authority, Some(path)));
    let mut mechanism = Mechanism::new(Class::Local, kind(scheme)?);
    if let Some(name) = interface(path.unwrap_or_default())? {
        mechanism.set(params::NAME, name);
    }
    Ok(ServiceUrl { mechanism, service: service(authority)?, labels: labels(query)? })
}

fn kind(scheme: &str) -> Result<MechanismKind, String> {
    let plain =
        scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    match MechanismKind::from(scheme.to_ascii_uppercase().as_str()) {
        _ if !plain => Err(format!("has the mechanism {scheme:?}, which is no word")),
        MechanismKind::Other(_) => Err(format!("has the mechanism {scheme:?}, known are kernel, memif, vfio and noop")),
        MechanismKind::Vxlan | MechanismKind::Wireguard | MechanismKind::Ipsec | MechanismKind::Vlan => {
            Err(format!("has the mechanism {scheme:?}, which joins nodes; a client takes kernel, memif, vfio or noop"))
        }
        local => Ok(local),
    }
}

/// `service`, `service@domain`, either with a port that does not count.
fn service(authority: &str) -> Result<ServiceName, String> {
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    let name = match user {
        Some(user) if !user.is_empty() && !host.is_empty() => format!("{}@{}", decoded(user)?, decoded(host)?),
        Some("") => return Err("names no service before @".into()),
        Some(_) => return Err("names no domain after @".into()),
        None if host.is_empty() => return Err("names no service after ://".into()),
        None => decoded(host)?,
    };
    ServiceName::new(&name).map_err(|error| format!("has the service name {name:?}, which {}", error.reason))
}

/// The last piece of the path.
fn interface(path: &str) -> Result<Option<String>, String> {
    let name = decoded(path.rsplit('/').next().unwrap_or_default())?;
    // Whether the kernel can take it is for the client to say, which then refuses by its own name.
    Ok(Some(name).filter(|name| !name.is_empty()))
}

/// `a=1&b=2`; a key that comes again adds its value after a comma.
fn labels(query: &str) -> Result<Labels, String> {
    let mut labels = Labels::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (decoded(&key.replace('+', " "))?, decoded(&value.replace('+', " "))?);
        if key.is_empty() {
            return Err(format!("has a label without name in {pair:?}"));
        }
        labels.entry(key).and_modify(|had: &mut String| *had += &format!(",{value}")).or_insert(value);
    }
    let too_long = labels.iter().any(|(key, value)| key.len().max(value.len()) > limits::MAX_MAP_VALUE_BYTES);
    match labels.len() {
        count if count > limits::MAX_MAP_ENTRIES => Err(format!("has {count} labels, the limit is {}", limits::MAX_MAP_ENTRIES)),
        _ if too_long => Err(format!("has a label of more than {} bytes", limits::MAX_MAP_VALUE_BYTES)),
        _ => Ok(labels),
    }
}

/// Text with its `%xx` resolved.
fn decoded(text: &str) -> Result<String, String> {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        let digits = piece.get(..2).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.ok_or_else(|| format!("has a % in {text:?} without two hexadecimal digits"))?);
        bytes.extend_from_slice(&piece.as_bytes()[2..]);
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("has bytes in {text:?} that are no UTF-8"))?;
    if text.contains(char::is_control) { Err(format!("has a control character in {text:?}")) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> String {
        let url: ServiceUrl = text.parse().unwrap_or_else(|error| panic!("{error}"));
        let labels: Vec<_> = url.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        format!("{} {} {} {}", url.mechanism.kind, url.service, url.interface().unwrap_or("-"), labels.join(" ")).trim_end().to_owned()
    }

    #[test]
    fn the_grammar() {
        for (text, parts) in [
            ("kernel://icmp-responder/nsm-1", "KERNEL icmp-responder nsm-1"),
            ("kernel://icmp-responder/nsm-1?app=foo&version=v1.1", "KERNEL icmp-responder nsm-1 app=foo version=v1.1"),
            ("kernel://autoscale-icmp-responder@k8s.nsm/nsm-1", "KERNEL autoscale-icmp-responder@k8s.nsm nsm-1"),
            ("kernel://service@my.cluster3/nsm-1?color=red", "KERNEL service@my.cluster3 nsm-1 color=red"),
            ("KERNEL://Service", "KERNEL Service -"),
            ("kernel://service/", "KERNEL service -"),
            ("kernel://service/a/b", "KERNEL service b"),
            ("kernel://service:5000/i", "KERNEL service i"),
            ("kernel://service@domain:53/i", "KERNEL service@domain i"),
            ("memif://vl3/nsm-a-very-long-name", "MEMIF vl3 nsm-a-very-long-name"),
            ("vfio://pingpong?sriovToken=worker.domain/10G", "VFIO pingpong - sriovToken=worker.domain/10G"),
            ("noop://s", "NOOP s -"),
            ("kernel://s?a=1&a=2&b&c=&c=3", "KERNEL s - a=1,2 b= c=,3"),
            ("kernel://s/i?a=x%2Cy+z&b=%C3%B6", "KERNEL s i a=x,y z b=ö"),
        ] {
            assert_eq!(shown(text), parts, "{text}");
        }
    }

    #[test]
    fn each_mistake_names_the_url_and_the_part() {
        for (text, part) in [
            ("icmp-responder/nsm-1", "has no mechanism before ://"),
            ("://s/i", r#"has the mechanism "", which is no word"#),
            ("kernle://s/i", r#"has the mechanism "kernle", known are kernel"#),
            ("vxlan://s/i", r#"has the mechanism "vxlan", which joins nodes"#),
            ("kernel:///nsm-1", "names no service after ://"),
            ("kernel://@domain/nsm-1", "names no service before @"),
            ("kernel://service@/nsm-1", "names no domain after @"),
            ("kernel://s/i?=x", r#"has a label without name in "=x""#),
            ("kernel://s/i?a=%z1", "has a % in"),
            ("kernel://s/i?a=%ff", "that are no UTF-8"),
            ("kernel://s/i?a=%0a", "has a control character"),
            ("kernel://s/i?a=b#c", "holds '#'"),
            ("kernel://s/i ", "holds ' '"),
            ("kernel://%20/i", r#"has the service name " ", which begins or ends with a blank"#),
        ] {
            let told = text.parse::<ServiceUrl>().expect_err(text).to_string();
            assert!(told.starts_with(&format!("network service URL {text:?}: ")) && told.contains(part), "{part:?} is missing in {told}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_fall_over(text in "(kernel|memif)?(://)?[a-z@:/?&=%0-9ö+#]{0,40}") {
            let _ = text.parse::<ServiceUrl>();
        }
    }
}
