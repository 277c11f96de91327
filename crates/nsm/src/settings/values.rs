//! From the text of an option to its value, by the rules of Go's envconfig.

use ipnet::IpNet;
use nsm_api::{DnsConfig, Error};
use std::{any::Any, collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

/// Any type; what it says of the text, as the end of a sentence.
pub(crate) fn parse<T: FromStr<Err: fmt::Display + 'static>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|problem: T::Err| match (&problem as &dyn Any).downcast_ref::<Error>() {
        // What is allowed is said once, by the option's shape.
        Some(error) => error.reason.clone(),
        None => problem.to_string(),
    })
}

/// The same for one of several, which the sentence names.
pub(crate) fn item<T: FromStr<Err: fmt::Display + 'static>>(text: &str) -> Result<T, String> {
    parse(text).map_err(|problem| format!("{text:?}: {problem}"))
}

/// Go's `ParseBool`.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("is neither true nor false".into()),
    }
}

/// Comma list; blank text is the empty list, blanks around an item do not count.
pub(crate) fn items(text: &str) -> Vec<&str> {
    if text.trim().is_empty() { Vec::new() } else { text.split(',').map(str::trim).collect() }
}

/// `k:v,k2:v2`; the value may hold further colons.
pub(crate) fn map(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut pairs = BTreeMap::new();
    for item in items(text) {
        let (key, value) = item.split_once(':').ok_or_else(|| format!("{item:?} has no colon"))?;
        if key.is_empty() {
            return Err(format!("{item:?} has no key"));
        }
        if pairs.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(format!("names {key:?} twice"));
        }
    }
    Ok(pairs)
}

/// `a,b` or `[a,b],[c]`: the text of each top-level group.
pub(crate) fn groups(text: &str) -> Result<Vec<Vec<&str>>, String> {
    let mut groups = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (group, after) = match rest.strip_prefix('[') {
            Some(inner) => inner.split_once(']').ok_or("has a bracket that is never closed")?,
            None => rest.split_at(rest.find(',').unwrap_or(rest.len())),
        };
        groups.push(items(group));
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(next) if next.trim().is_empty() => return Err("ends with a comma".into()),
            Some(next) => next.trim_start(),
            None if after.is_empty() => after,
            None => return Err(format!("has {after:?} where a comma should be")),
        };
    }
    Ok(groups)
}

/// Groups of prefixes. An address without length is a prefix of its full length.
pub(crate) fn prefix_groups(text: &str) -> Result<Vec<Vec<IpNet>>, String> {
    groups(text)?.into_iter().map(|group| group.into_iter().map(prefix).collect()).collect()
}

/// One prefix.
pub(crate) fn prefix(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| address()).map_err(|_| format!("{text:?} is not a prefix"))
}

/// Resolver configurations as JSON.
pub(crate) fn dns_configs(text: &str) -> Result<Vec<DnsConfig>, String> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        #[serde(default)]
        dns_server_ips: Vec<IpAddr>,
        #[serde(default)]
        search_domains: Vec<String>,
    }
    let configs: Vec<Config> = serde_json::from_str(text).map_err(|error| format!("is not a JSON list of resolvers: {error}"))?;
    let servers = |config: &Config| config.dns_server_ips.iter().map(ToString::to_string).collect();
    let read =
        |config: Config| DnsConfig { dns_server_ips: servers(&config), search_domains: config.search_domains, ..DnsConfig::default() };
    Ok(configs.into_iter().map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_those_of_go() {
        assert_eq!(["1", "t", "T", "TRUE", "true", "True"].map(boolean), [const { Ok(true) }; 6]);
        assert_eq!(["0", "f", "F", "FALSE", "false", "False"].map(boolean), [const { Ok(false) }; 6]);
        for bad in ["", "yes", "on", "tRUE", " true", "2"] {
            assert!(boolean(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn lists_and_maps() {
        assert_eq!(items(" "), Vec::<&str>::new());
        assert_eq!(items("a, b,c"), ["a", "b", "c"]);
        let read = map("a:b,c:d:e,f:").unwrap();
        assert_eq!(read.into_iter().collect::<Vec<_>>(), [("a", "b"), ("c", "d:e"), ("f", "")].map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert!(map("").unwrap().is_empty());
        for bad in ["a", ":b", "a:b,", "a:1,a:2"] {
            assert!(map(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn prefixes_come_in_groups() {
        let shown = |text: &str| prefix_groups(text).map(|groups| format!("{groups:?}"));
        assert_eq!(shown("172.16.1.100/31").unwrap(), "[[172.16.1.100/31]]");
        assert_eq!(shown("10.0.0.0/8, fd00::/64").unwrap(), "[[10.0.0.0/8], [fd00::/64]]");
        assert_eq!(shown("[10.0.0.0/24,10.0.1.0/24],[fd00::/64]").unwrap(), "[[10.0.0.0/24, 10.0.1.0/24], [fd00::/64]]");
        assert_eq!(shown("10.0.0.0/24 , [fd00::/64, fd01::/64]").unwrap(), "[[10.0.0.0/24], [fd00::/64, fd01::/64]]");
        assert_eq!(shown("10.0.0.1").unwrap(), "[[10.0.0.1/32]]");
        assert_eq!(shown("").unwrap(), "[]");
        for bad in ["10.0.0.0/33", "[10.0.0.0/8", "10.0.0.0/8]", "[10.0.0.0/8][fd00::/64]", "10.0.0.0/8,", "x"] {
            assert!(shown(bad).is_err(), "{bad}");
        }
    }
}
