//! Tokens and ids of a process: where the key of its connection ids is kept, and whom an id is given to.

use crate::settings::Settings;
use nsm_api::*;
use nsm_hop::role::Issuer;
use nsm_identity::{HopIds, Place, Source};
use std::{
    env,
    ffi::OsString,
    path::{Path as File, PathBuf},
    time::{Duration, SystemTime},
};
use tracing::warn;

/// What the settings say about it.
pub(super) enum Ids {
    /// Nobody else names connections to this process.
    Unused,
    /// In this file, and nowhere else.
    At(PathBuf),
    /// In this file, if that can be had.
    Preferred(PathBuf),
    /// There is no place.
    Nowhere,
}

impl Ids {
    /// From `--state-dir` and `--name`, where the role has them.
    pub(super) fn read(settings: &mut Settings) -> Ids {
        if !settings.has("state-dir") || !settings.has("name") {
            return Ids::Unused;
        }
        let file = file_name(&settings.words("name").concat());
        match settings.optional::<PathBuf>("state-dir") {
            Some(dir) => Ids::At(dir.join(file)),
            None => default_directory().map_or(Ids::Nowhere, |dir| Ids::Preferred(dir.join(file))),
        }
    }

    /// The ids, and the directory for all else that must survive a restart. Ids of a process that cannot keep its key end
    /// with it: its connections are then set up anew.
    pub(super) fn load(&self) -> Result<(HopIds, Option<PathBuf>)> {
        let keep = |file: &File| Ok((HopIds::load_or_create(file)?, file.parent().map(File::to_owned)));
        let reason = match self {
            Ids::Unused => return Ok((HopIds::random()?, None)),
            Ids::At(file) => return keep(file),
            Ids::Preferred(file) => match keep(file) {
                Ok(kept) => return Ok(kept),
                Err::<_, Error>(error) => error.to_string(),
            },
            Ids::Nowhere => "there is no home directory".to_owned(),
        };
        warn!(reason, "a restart of this process will interrupt its connections; name a directory with --state-dir (NSM_STATE_DIR)");
        Ok((HopIds::random()?, None))
    }
}

/// Where programs of this user keep their state, by the environment of this process.
pub(super) fn default_directory() -> Option<PathBuf> {
    default_dir(|name| env::var_os(name), rustix::process::geteuid().is_root())
}

fn default_dir(variable: impl Fn(&str) -> Option<OsString>, root: bool) -> Option<PathBuf> {
    let given = |name| variable(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    match given("XDG_STATE_HOME") {
        Some(dir) => Some(dir.join("nsm")),
        None if root => Some(File::new("/var/lib/nsm").to_owned()),
        None => given("HOME").map(|home| home.join(".local/state/nsm")),
    }
}

/// Every process of a machine has a name of its own; one that is no file name becomes one that no other name becomes.
fn file_name(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let escaped: String =
        name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02x}") }).collect();
    format!("{escaped}.hop-ids")
}

/// Tokens, ids and time of a process.
pub(super) struct ProcessIssuer {
    pub(super) source: Source,
    pub(super) ids: HopIds,
    pub(super) max_life: Duration,
}

impl Issuer for ProcessIssuer {
    fn token(&self, caller: &Caller) -> Result<(String, SystemTime)> {
        let peer_not_after = caller.certificate.as_deref().and_then(|leaf| nsm_identity::peer(&[leaf.into()])).map(|peer| peer.not_after);
        let token = self.source.token(caller.identity.as_ref(), self.max_life, peer_not_after)?;
        Ok((token.text, token.expires))
    }
    fn connection_id(&self, path: &Path, caller: &Caller) -> ConnectionId {
        let origin = origin(path, caller);
        self.ids.derive(place(&path.segments[0], &origin), place(&path.segments[path.index as usize], shown(caller)))
    }
    fn gave(&self, id: &ConnectionId, path: &Path, caller: &Caller) -> bool {
        self.ids.gave(id, place(&path.segments[0], &origin(path, caller)))
    }
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
    fn random(&self, below: u64) -> u64 {
        rand::random_range(0..below.max(1))
    }
}

fn place<'a>(segment: &'a Segment, identity: &'a str) -> Place<'a> {
    Place { name: &segment.name, id: &segment.id, identity }
}

fn shown(caller: &Caller) -> &str {
    caller.identity.as_ref().map_or("", SpiffeId::as_str)
}

/// Who began the path: the caller if it is the first, else whom the processes in between say.
fn origin(path: &Path, caller: &Caller) -> String {
    if path.index == 0 {
        return shown(caller).to_owned();
    }
    nsm_policy::jwt::subject(&path.segments[0].token).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Opt;

    const OPTIONS: &[Opt] = &[crate::roles::process::STATE_DIR, Opt::new("name", "NSM_NAME", "m", crate::settings::Shape::Text, "name")];

    #[test]
    fn the_default_follows_the_user() {
        let variables =
            |list: &'static [(&str, &str)]| move |name: &str| list.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into());
        assert_eq!(default_dir(variables(&[("XDG_STATE_HOME", "/s"), ("HOME", "/h")]), true), Some("/s/nsm".into()));
        assert_eq!(default_dir(variables(&[("XDG_STATE_HOME", "s")]), true), Some("/var/lib/nsm".into()));
        assert_eq!(default_dir(variables(&[("HOME", "/h")]), false), Some("/h/.local/state/nsm".into()));
        assert_eq!(default_dir(variables(&[]), false), None);
    }

    #[test]
    fn names_become_files_of_the_directory_and_nothing_else() {
        for (name, file) in [("nmgr", "nmgr.hop-ids"), ("../x", "..%2fx.hop-ids"), ("a b", "a%20b.hop-ids"), ("%2f", "%252f.hop-ids")] {
            assert_eq!(file_name(name), file);
        }
    }

    #[test]
    fn a_named_directory_must_work_and_another_is_done_without() {
        let file = env::temp_dir().join(format!("nsm-ids-{}", std::process::id()));
        std::fs::write(&file, "not a directory").unwrap();
        let settings = |dir: &File| Settings::new("manager", OPTIONS).with_environment([("NSM_STATE_DIR", dir.display().to_string())]);
        let named = Ids::read(&mut settings(&file));
        assert!(named.load().err().unwrap().to_string().contains("m.hop-ids"));
        assert!(Ids::Preferred(file.join("x")).load().is_ok());
        std::fs::remove_file(&file).unwrap();
        Ids::read(&mut settings(&file)).load().unwrap();
        assert!(file.join("m.hop-ids").is_file());
        std::fs::remove_dir_all(&file).unwrap();
    }
}
