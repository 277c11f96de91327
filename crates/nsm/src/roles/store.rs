//! Where a registry keeps what it is told.

use super::ids;
use crate::settings::{Opt, Settings, Shape};
use nsm_api::{Kind, Result};
use nsm_registry::{Engine, MemoryEngine};
use nsm_store::{DurableEngine, EtcdEngine, EtcdOptions, EtcdTls};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tracing::warn;

/// Where registrations are kept.
pub(super) const STORE: Opt = Opt::new(
    "store",
    "NSM_STORE",
    "",
    Shape::Text,
    "Keeps registrations: memory, file:DIR, etcd://HOST:PORT,..., or etcds:// with TLS; empty: a file in the state directory if that can be had",
);
/// Where they are kept if nobody says.
pub(super) const STATE_DIR: Opt = Opt::new(
    "state-dir",
    "NSM_STATE_DIR",
    "",
    Shape::Directory,
    "Keeps registrations in its directory registry; empty: $XDG_STATE_HOME/nsm, /var/lib/nsm or ~/.local/state/nsm",
);
/// Of `etcds://`.
pub(super) const ETCD_CA: Opt = Opt::new("etcd-ca", "NSM_ETCD_CA", "", Shape::File, "Who signed the certificates of etcds:// members, PEM");
/// Of `etcds://`.
pub(super) const ETCD_CERTIFICATE: Opt =
    Opt::new("etcd-certificate", "NSM_ETCD_CERTIFICATE", "", Shape::File, "Our certificate for etcds://, PEM");
/// Of `etcds://`.
pub(super) const ETCD_KEY: Opt = Opt::new("etcd-key", "NSM_ETCD_KEY", "", Shape::File, "Its key, PEM");

/// The directory of a registry in the state directory.
const DIRECTORY: &str = "registry";

/// What the settings say.
#[derive(Debug)]
pub(super) enum Place {
    Memory,
    File(PathBuf),
    /// In this directory, if that can be had.
    Preferred(PathBuf),
    Etcd(EtcdOptions),
}

impl Place {
    /// From the options above.
    pub(super) fn read(settings: &mut Settings) -> Place {
        let directory = settings.optional::<PathBuf>("state-dir").map(|dir| dir.join(DIRECTORY));
        let preferred = directory.map(Place::File).or_else(|| ids::default_directory().map(|dir| Place::Preferred(dir.join(DIRECTORY))));
        let tls = EtcdTls {
            authority: settings.optional("etcd-ca"),
            identity: settings.optional("etcd-certificate").zip(settings.optional("etcd-key")),
            server_name: None,
        };
        match settings.read("store", |text| parse(text, &tls)) {
            Some(place) => place,
            None => preferred.unwrap_or(Place::Memory),
        }
    }

    /// Opens it. Only a place that nobody named is done without.
    pub(super) async fn open(&self) -> Result<Arc<dyn Engine>> {
        match self {
            Place::Memory => Ok(Arc::new(MemoryEngine::new())),
            Place::File(directory) => Ok(Arc::new(DurableEngine::open(directory).await?)),
            Place::Preferred(directory) => preferred(directory).await,
            Place::Etcd(options) => Ok(Arc::new(EtcdEngine::new(options)?)),
        }
    }
}

async fn preferred(directory: &Path) -> Result<Arc<dyn Engine>> {
    match DurableEngine::open(directory).await {
        Ok(engine) => Ok(Arc::new(engine)),
        Err(error) if matches!(error.kind, Kind::Unavailable | Kind::Conflict) => {
            warn!(%error, "a restart of this registry will forget every registration; name a place with --store (NSM_STORE)");
            Ok(Arc::new(MemoryEngine::new()))
        }
        // What is there was acknowledged once: to start without it would be to lose it.
        Err(error) => Err(error),
    }
}

/// `None` if the text leaves it open.
fn parse(text: &str, tls: &EtcdTls) -> Result<Option<Place>, String> {
    let members = |scheme: &str, hosts: &str| {
        let endpoints = hosts.split(',').map(|host| format!("{scheme}://{}", host.trim()));
        Ok(Some(Place::Etcd(EtcdOptions { tls: tls.clone(), ..EtcdOptions::new(endpoints) })))
    };
    match text.split_once(':') {
        None if text.is_empty() => Ok(None),
        None if text == "memory" => Ok(Some(Place::Memory)),
        Some(("file", directory)) if !directory.is_empty() => Ok(Some(Place::File(directory.into()))),
        Some(("etcd", hosts)) if hosts.len() > 2 && hosts.starts_with("//") => members("http", &hosts[2..]),
        Some(("etcds", hosts)) if hosts.len() > 2 && hosts.starts_with("//") => members("https", &hosts[2..]),
        _ => Err("is none of memory, file:DIR, etcd://HOST:PORT,... and etcds://HOST:PORT,...".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::registry::OPTIONS;

    fn place(variables: &[(&str, &str)]) -> (Place, Result<()>) {
        let mut settings = Settings::new("registry", OPTIONS).with_environment(variables.iter().copied());
        let place = Place::read(&mut settings);
        (place, settings.finish())
    }

    #[test]
    fn places_are_read() {
        for (store, expected) in [
            ("memory", "Memory"),
            ("file:/x/y", "File(\"/x/y\")"),
            ("", "File(\"/s/registry\")"),
            ("etcd://a:1,b:2", "Etcd(EtcdOptions { endpoints: [\"http://a:1\", \"http://b:2\"]"),
            ("etcds://[::1]:1", "Etcd(EtcdOptions { endpoints: [\"https://[::1]:1\"]"),
        ] {
            let (place, outcome) = place(&[("NSM_STORE", store), ("NSM_STATE_DIR", "/s")]);
            outcome.unwrap();
            assert!(format!("{place:?}").starts_with(expected), "{place:?}");
        }
        for store in ["disk", "file:", "etcd:a", "etcd://", "http://a"] {
            let refused = place(&[("NSM_STORE", store)]).1.unwrap_err().to_string();
            assert!(refused.contains("is none of memory, file:DIR"), "{refused}");
        }
    }

    /// A named place must work; another is done without, unless something is kept there.
    #[tokio::test]
    async fn only_a_place_that_nobody_named_is_done_without() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "not a directory").unwrap();
        assert!(Place::File(file.clone()).open().await.err().unwrap().to_string().contains("directory that it may write"));
        Place::Preferred(file).open().await.unwrap();
        let kept = dir.path().join("kept");
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join(nsm_store::FILE_NAME), [7; 10_000]).unwrap();
        assert!(Place::Preferred(kept).open().await.err().unwrap().to_string().contains("restore a backup"));
        let etcd = Place::Etcd(EtcdOptions::new(["http://127.0.0.1:1"])).open().await.unwrap();
        assert_eq!(etcd.services().find(&nsm_api::ServiceQuery::default()).await.unwrap_err().kind, Kind::Unavailable);
    }
}
