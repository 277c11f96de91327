//! Where a process listens or dials.

use crate::{Error, InodeKey, Result};
use std::{fmt, path::PathBuf};

/// A parsed address of a gRPC server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// `unix:///path`
    Unix(PathBuf),
    /// `inode://dev/ino`: a unix socket whose descriptor travelled beside the message.
    Inode(InodeKey),
    /// `tcp://host:port`, or `host:port` without scheme. An empty host means all addresses (to listen) or loopback (to dial).
    Tcp {
        /// Name or literal address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// `inproc://name`: a role of this very process, called without a wire.
    InProcess(String),
}

impl Target {
    /// Reads an address in any of its spellings.
    pub fn parse(text: &str) -> Result<Target> {
        let bad = |reason: &str| Err(Error::invalid(format!("address {text:?}"), reason, "write unix:///path or tcp://host:port"));
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { bad("has no path") } else { Ok(Target::Unix(path.into())) };
        }
        if text.starts_with("inode://") {
            return InodeKey::parse(text).map_or_else(|| bad("is not inode://device/inode"), |key| Ok(Target::Inode(key)));
        }
        if let Some(name) = text.strip_prefix("inproc://") {
            return Ok(Target::InProcess(name.to_owned()));
        }
        let rest = text.strip_prefix("tcp://").unwrap_or(text);
        if rest.contains("://") {
            return bad("has a scheme nobody knows");
        }
        let Some((host, port)) = rest.rsplit_once(':') else { return bad("has no port") };
        let Ok(port) = port.parse() else { return bad("has a port that is not a number up to 65535") };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if bare.contains(':') && bare == host {
            return bad("has an IPv6 address without brackets");
        }
        Ok(Target::Tcp { host: bare.to_owned(), port })
    }
    /// Whether the other side is on this node, so that local mechanisms make sense.
    pub fn is_local(&self) -> bool {
        match self {
            Target::Unix(_) | Target::Inode(_) | Target::InProcess(_) => true,
            Target::Tcp { .. } => false,
        }
    }
}

impl std::str::FromStr for Target {
    type Err = Error;
    fn from_str(text: &str) -> Result<Target> {
        Target::parse(text)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Unix(path) => write!(f, "unix://{}", path.display()),
            Target::Inode(key) => write!(f, "{key}"),
            Target::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Target::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Target::InProcess(name) => write!(f, "inproc://{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_round_trip_or_are_refused() {
        for (text, shown) in [
            ("unix:///run/a.sock", "unix:///run/a.sock"),
            ("tcp://1.2.3.4:5", "tcp://1.2.3.4:5"),
            ("tcp://[::1]:5", "tcp://[::1]:5"),
            ("tcp://:5002", "tcp://:5002"),
            ("registry:5002", "tcp://registry:5002"),
            ("inode://4/5", "inode://4/5"),
        ] {
            assert_eq!(Target::parse(text).unwrap().to_string(), shown);
        }
        for bad in ["", "unix://", "tcp://host", "tcp://host:99999", "http://a:1", "tcp://::1:5", "inode://x/1"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }
}
