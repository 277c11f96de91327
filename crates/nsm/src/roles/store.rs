//! Where a registry keeps what it is told.

use super::ids;
use crate::settings::{Opt, Settings, Shape};
use nsm_api::{Kind, Result};
use nsm_registry::{Engine, MemoryEngine};
use nsm_store::{DurableEngine, EtcdEngine, EtcdOptions, EtcdTls, FILE_NAME};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
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

/// Copies of what a file holds.
pub(super) const BACKUP_DIR: Opt =
    Opt::new("backup-dir", "NSM_BACKUP_DIR", "", Shape::Directory, "Gets copies of a file: or default store, the last 24; empty: none");
/// How often.
pub(super) const BACKUP_PERIOD: Opt =
    Opt::new("backup-period", "NSM_BACKUP_PERIOD", "1h", Shape::Duration, "Time between two copies in the backup directory");
/// A copy to start from.
pub(super) const RESTORE_FROM: Opt = Opt::new(
    "restore-from",
    "NSM_RESTORE_FROM",
    "",
    Shape::File,
    "A copy from a backup directory: the store is made of it if there is none yet",
);

/// The directory of a registry in the state directory.
const DIRECTORY: &str = "registry";

/// What the settings say.
pub(super) struct Store {
    place: Place,
    backups: Option<PathBuf>,
    period: Duration,
    restore: Option<PathBuf>,
}

#[derive(Debug)]
enum Place {
    Memory,
    File(PathBuf),
    /// In this directory, if that can be had.
    Preferred(PathBuf),
    Etcd(EtcdOptions),
}

impl Store {
    /// From the options above.
    pub(super) fn read(settings: &mut Settings) -> Store {
        Store {
            place: Place::read(settings),
            backups: settings.optional("backup-dir"),
            period: settings.duration("backup-period"),
            restore: settings.optional("restore-from"),
        }
    }

    /// Opens it. Only a place that nobody named is done without.
    pub(super) async fn open(&self) -> Result<Arc<dyn Engine>> {
        match &self.place {
            Place::Memory => Ok(Arc::new(MemoryEngine::new())),
            Place::File(directory) => Ok(self.durable(directory).await?),
            Place::Preferred(directory) => self.preferred(directory).await,
            Place::Etcd(options) => Ok(Arc::new(EtcdEngine::new(options)?)),
        }
    }

    async fn durable(&self, directory: &Path) -> Result<Arc<DurableEngine>> {
        if let Some(backup) = self.restore.as_ref().filter(|_| !directory.join(FILE_NAME).exists()) {
            DurableEngine::restore(backup, directory)?;
        }
        let engine = Arc::new(DurableEngine::open(directory).await?);
        if let Some(backups) = &self.backups {
            tokio::spawn(DurableEngine::keep_backups(Arc::downgrade(&engine), backups.clone(), self.period));
        }
        Ok(engine)
    }

    async fn preferred(&self, directory: &Path) -> Result<Arc<dyn Engine>> {
        match self.durable(directory).await {
            Ok(engine) => Ok(engine),
            Err(error) if self.restore.is_none() && matches!(error.kind, Kind::Unavailable | Kind::Conflict) => {
                warn!(%error, "a restart of this registry will forget every registration; name a place with --store (NSM_STORE)");
                Ok(Arc::new(MemoryEngine::new()))
            }
            // What is there was acknowledged once: to start without it would be to lose it.
            Err(error) => Err(error),
        }
    }
}

impl Place {
    fn read(settings: &mut Settings) -> Place {
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

    fn at(place: Place) -> Store {
        Store { place, backups: None, period: Duration::from_secs(3600), restore: None }
    }

    /// A named place must work; another is done without, unless something is kept there.
    #[tokio::test]
    async fn only_a_place_that_nobody_named_is_done_without() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "not a directory").unwrap();
        assert!(at(Place::File(file.clone())).open().await.err().unwrap().to_string().contains("directory that it may write"));
        at(Place::Preferred(file)).open().await.unwrap();
        let kept = dir.path().join("kept");
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join(FILE_NAME), [7; 10_000]).unwrap();
        assert!(at(Place::Preferred(kept)).open().await.err().unwrap().to_string().contains("restore a backup"));
        let etcd = at(Place::Etcd(EtcdOptions::new(["http://127.0.0.1:1"]))).open().await.unwrap();
        assert_eq!(etcd.services().find(&nsm_api::ServiceQuery::default()).await.unwrap_err().kind, Kind::Unavailable);
    }

    #[tokio::test]
    async fn a_store_is_backed_up_and_restored() {
        let dir = tempfile::tempdir().unwrap();
        let (backups, store) = (dir.path().join("backups"), dir.path().join("store"));
        let backed = Store { backups: Some(backups.clone()), ..at(Place::File(store)) };
        let engine = backed.open().await.unwrap();
        let copy = tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                let mut entries = std::fs::read_dir(&backups).into_iter().flatten().flatten().map(|entry| entry.path());
                if let Some(copy) = entries.find(|path| path.extension().is_some_and(|end| end == "backup")) {
                    return copy;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let copy = copy.await.expect("a backup is made at once");
        drop(engine);
        let restored = Store { restore: Some(copy.clone()), ..at(Place::Preferred(dir.path().join("new"))) };
        assert!(restored.open().await.unwrap().services().find(&nsm_api::ServiceQuery::default()).await.unwrap().is_empty());
        assert!(dir.path().join("new").join(FILE_NAME).exists());
        let missing = Store { restore: Some(dir.path().join("none")), ..at(Place::Preferred(dir.path().join("newer"))) };
        assert_eq!(missing.open().await.err().unwrap().kind, Kind::NotFound, "nothing is begun without what was to be restored");
    }
}
