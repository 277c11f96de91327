//! Lists in files that people and controllers edit while we run: looked at when they are needed, read again when they
//! have changed.
//!
//! A file that is absent is an empty list. One that cannot be read as it should leaves the list as it was, with a warning,
//! so that a typing error takes nothing away from anybody. At a start there is no list yet, so there it is an error.

use ipnet::IpNet;
use nsm_api::{Error, PolicyRoute, Result, Route, Unknown};
use serde::Deserialize;
use std::{
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tracing::{info, warn};

/// Largest file that is read, bytes.
const MAX_BYTES: u64 = 1 << 20;

/// What tells one state of a file from another.
type Stamp = Option<(u64, u64, i64, i64, u64)>;

/// A list in a file.
pub struct Watched<T> {
    path: PathBuf,
    parse: fn(&str) -> Result<Vec<T>, String>,
    last: Mutex<(Stamp, Arc<Vec<T>>)>,
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads it for the first time.
    pub fn open(path: &Path, parse: fn(&str) -> Result<Vec<T>, String>) -> Result<Watched<T>> {
        let stamp = stamp(path);
        let list = read(path, parse).map_err(|reason| {
            Error::invalid(format!("file {}", path.display()), reason, "correct the file, or remove it: without it the list is empty")
        })?;
        Ok(Watched { path: path.to_owned(), parse, last: Mutex::new((stamp, Arc::new(list))) })
    }
    /// The list as it is now. Costs one look at the file.
    pub fn current(&self) -> Arc<Vec<T>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&self.path);
        if now != last.0 {
            last.0 = now;
            match read(&self.path, self.parse) {
                Ok(list) => {
                    info!(file = %self.path.display(), entries = list.len(), "file read again");
                    last.1 = Arc::new(list);
                }
                Err(reason) => warn!(file = %self.path.display(), "{reason}; what it said before still holds"),
            }
        }
        last.1.clone()
    }
    /// The same as a function.
    pub fn into_current(self) -> Box<dyn Fn() -> Arc<Vec<T>> + Send + Sync> {
        Box::new(move || self.current())
    }
}

fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()))
}

fn read<T>(path: &Path, parse: fn(&str) -> Result<Vec<T>, String>) -> Result<Vec<T>, String> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(format!("cannot be looked at: {error}")),
        Ok(meta) if meta.len() > MAX_BYTES => return Err(format!("has {} bytes, the limit is {MAX_BYTES}", meta.len())),
        Ok(_) => {}
    }
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))?;
    if text.trim().is_empty() { Ok(vec![]) } else { parse(&text) }
}

/// `prefixes: [10.0.0.0/8, ...]`
pub fn excluded_prefixes(text: &str) -> Result<Vec<IpNet>, String> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default, alias = "Prefixes")]
        prefixes: Vec<IpNet>,
    }
    serde_yaml_ng::from_str::<File>(text).map(|file| file.prefixes).map_err(|error| format!("is not a list of prefixes: {error}"))
}

/// A list of `{from, proto, dstport, srcport, routes: [{prefix, nexthop}]}`; `port` is an older word for `dstport`.
pub fn policy_routes(text: &str) -> Result<Vec<PolicyRoute>, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Policy {
        #[serde(default)]
        from: Option<String>,
        #[serde(default)]
        proto: Option<Scalar>,
        #[serde(default, alias = "port")]
        dstport: Option<Scalar>,
        #[serde(default)]
        srcport: Option<Scalar>,
        #[serde(default)]
        routes: Option<Vec<Hop>>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Hop {
        prefix: IpNet,
        #[serde(default)]
        nexthop: Option<std::net::IpAddr>,
    }
    /// A number or a range as people write it.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Scalar {
        Number(u32),
        Text(String),
    }
    let plain = |scalar: Option<Scalar>| match scalar {
        None => String::new(),
        Some(Scalar::Number(number)) => number.to_string(),
        Some(Scalar::Text(text)) => text,
    };
    let route = |hop: Hop| Route { prefix: hop.prefix, next_hop: hop.nexthop, unknown: Unknown::default() };
    let policies: Vec<Policy> = serde_yaml_ng::from_str(text).map_err(|error| format!("is not a list of policy routes: {error}"))?;
    let read = |policy: Policy| PolicyRoute {
        from: policy.from.unwrap_or_default(),
        proto: plain(policy.proto),
        dst_port: plain(policy.dstport),
        src_port: plain(policy.srcport),
        routes: policy.routes.unwrap_or_default().into_iter().map(route).collect(),
        unknown: Unknown::default(),
    };
    Ok(policies.into_iter().map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// E-18, E-21
    #[test]
    fn a_file_is_read_again_when_it_changes_and_a_mistake_in_it_changes_nothing() {
        let dir = std::env::temp_dir().join(format!("nsm-watched-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("excluded_prefixes.yaml");
        let watched = Watched::open(&path, excluded_prefixes).unwrap();
        assert!(watched.current().is_empty(), "there is no file");
        // As controllers do it: a new file takes the place of the old one.
        let write = |text: &str| {
            std::fs::write(dir.join("next"), text).unwrap();
            std::fs::rename(dir.join("next"), &path).unwrap();
        };
        write("prefixes:\n- 10.0.0.0/8\n- fd00::/64\n");
        assert_eq!(watched.current().len(), 2);
        write("prefixes: [nonsense]");
        assert_eq!(watched.current().len(), 2, "a mistake changes nothing");
        assert!(Watched::open(&path, excluded_prefixes).is_err(), "but nobody starts with it");
        write("prefixes: [172.16.0.0/12]");
        assert_eq!(watched.current().len(), 1);
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(watched.current().is_empty());
    }

    /// the file of the published example.
    #[test]
    fn policies_are_read_in_old_and_new_words() {
        let text = "- from: 172.16.2.201/24\n  proto: 6\n  port: 6666\n  routes:\n  - prefix: 172.16.3.0/24\n    nexthop: 172.16.2.200\n- proto: 17\n  srcport: 1000-2000\n";
        let policies = policy_routes(text).unwrap();
        assert_eq!(policies[0].from, "172.16.2.201/24");
        assert_eq!((policies[0].proto.as_str(), policies[0].dst_port.as_str()), ("6", "6666"));
        assert_eq!(policies[0].routes[0].next_hop, Some("172.16.2.200".parse().unwrap()));
        assert_eq!((policies[1].src_port.as_str(), policies[1].routes.len()), ("1000-2000", 0));
        assert!(policy_routes("- prot: 6").unwrap_err().contains("prot"));
    }
}
