//! The policies of one direction of one role, chosen by masks.

use crate::{
    Builtin, Verdict,
    facts::Facts,
    question::Question,
    rego::{self, Compiled},
    strict::{self, Peer},
};
use nsm_api::{Error, Kind, Result};
use regex::Regex;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Policy files of one set.
pub(crate) const MAX_FILES: usize = 64;
/// Bytes of one policy file.
pub(crate) const MAX_FILE_BYTES: u64 = 256 * 1024;
/// Directories below that of a mask, and entries among them, that are looked at.
const MAX_DEPTH: usize = 8;
const MAX_ENTRIES: usize = 10_000;

/// Policies of which all must agree. An empty set agrees with everything.
#[derive(Clone, Debug, Default)]
pub struct PolicySet {
    native: BTreeSet<Builtin>,
    files: Vec<Compiled>,
}

impl PolicySet {
    /// These default policies.
    pub fn of(native: impl IntoIterator<Item = Builtin>) -> PolicySet {
        PolicySet { native: native.into_iter().collect(), files: Vec::new() }
    }
    /// The policies of every server of connections.
    pub fn server() -> PolicySet {
        PolicySet::of([Builtin::TokensValid, Builtin::TokensExpired, Builtin::TokensChained, Builtin::PrevTokenSigned])
    }
    /// The policies of every client that starts a connection.
    pub fn client() -> PolicySet {
        PolicySet::of([Builtin::TokensValid, Builtin::TokensExpired, Builtin::TokensChained, Builtin::NextTokenSigned])
    }

    /// The policies that these masks choose. Each mask is a path, or a regular expression for whole paths, such as
    /// `etc/nsm/opa/common/.*.rego`. It is held against the files below its directory, then against
    /// [`Builtin::path`]; a real file of the same path replaces a built-in policy. A mask that matches nothing is
    /// an error: a policy that is meant to protect must not be missing silently.
    pub fn load(masks: &[String]) -> Result<PolicySet> {
        let mut files: BTreeMap<PathBuf, Compiled> = BTreeMap::new();
        let mut native = BTreeSet::new();
        for mask in masks {
            let found = find(mask)?;
            let stock: Vec<Builtin> = builtins(mask)?;
            if found.is_empty() && stock.is_empty() {
                let fix = "correct the mask: it must match whole paths, as etc/nsm/opa/common/.*.rego does";
                return Err(bad_mask(mask, "matches no file and no built-in policy", fix));
            }
            for path in found {
                let compiled = Compiled::new(&path.to_string_lossy(), &rego::read(&path, MAX_FILE_BYTES)?)?;
                files.insert(path, compiled);
            }
            native.extend(stock);
        }
        if files.len() > MAX_FILES {
            let reason = format!("choose {} files, the limit is {MAX_FILES}", files.len());
            return Err(Error::invalid("policy masks", reason, "make them more specific"));
        }
        native.retain(|builtin| !files.contains_key(Path::new(builtin.path())));
        Ok(PolicySet { native, files: files.into_values().collect() })
    }

    /// Whether it agrees with everything.
    pub fn is_empty(&self) -> bool {
        self.native.is_empty() && self.files.is_empty()
    }
    /// Its built-in policies.
    pub fn builtins(&self) -> &BTreeSet<Builtin> {
        &self.native
    }
    /// Its files.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(Compiled::name)
    }

    /// Refuses unless all agree. `object` is what the question is about, for instance `connection "nsc-0"`.
    pub fn check(&self, object: &str, question: &Question<'_>) -> Result<()> {
        if !self.native.is_empty() {
            let facts = Facts::new(question);
            for builtin in &self.native {
                builtin.decide(&facts).map_err(|why| denied(object, builtin.path(), &why))?;
            }
            strict::honest(&facts, self.peer()).map_err(|why| denied(object, "honest", &why))?;
        }
        if !self.files.is_empty() {
            let input = question.to_json();
            self.files.iter().try_for_each(|file| file.decide(&input).map_err(|why| denied(object, file.name(), &why)))?;
        }
        Ok(())
    }

    fn peer(&self) -> Option<Peer> {
        if self.native.contains(&Builtin::PrevTokenSigned) {
            return Some(Peer::Before);
        }
        self.native.contains(&Builtin::NextTokenSigned).then_some(Peer::After)
    }
}

/// These words are what users and scripts look for.
fn denied(object: &str, policy: &str, why: &str) -> Error {
    let reason = format!("no sufficient privileges: policy {policy} refuses, because {why}");
    Error::new(Kind::Denied, object, reason, "compare the clocks and identities of both processes, or change the policies of this one")
}

fn bad_mask(mask: &str, reason: impl Into<String>, fix: &str) -> Error {
    Error::invalid(format!("policy mask {mask:?}"), reason, fix)
}

fn compile(mask: &str) -> Result<Regex> {
    Regex::new(&format!("^(?:{mask})$"))
        .map_err(|error| bad_mask(mask, format!("is no regular expression: {error}"), "write one, or the path of a file"))
}

fn builtins(mask: &str) -> Result<Vec<Builtin>> {
    let expression = compile(mask)?;
    Ok(Builtin::ALL.into_iter().filter(|builtin| expression.is_match(builtin.path())).collect())
}

/// Real files that the mask matches.
fn find(mask: &str) -> Result<Vec<PathBuf>> {
    let exact = Path::new(mask);
    if exact.is_file() {
        return Ok(vec![exact.to_owned()]);
    }
    let expression = compile(mask)?;
    let directory = exact.parent().unwrap_or(Path::new(""));
    let mut walk = Walk { expression, entries: 0, found: Vec::new() };
    walk.below(directory, MAX_DEPTH).map_err(|reason| bad_mask(mask, reason, "name a directory that holds policies only"))?;
    walk.found.sort();
    Ok(walk.found)
}

struct Walk {
    expression: Regex,
    entries: usize,
    found: Vec<PathBuf>,
}

impl Walk {
    fn below(&mut self, directory: &Path, depth: usize) -> Verdict {
        let here = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        let Ok(entries) = std::fs::read_dir(here) else { return Ok(()) };
        for entry in entries.flatten() {
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(format!("more than {MAX_ENTRIES} files lie below its directory"));
            }
            let path = directory.join(entry.file_name());
            if path.is_dir() {
                // Mounted configurations are links to directories; a circle of links ends with the depth.
                if depth > 0 {
                    self.below(&path, depth - 1)?;
                }
            } else if path.to_str().is_some_and(|text| self.expression.is_match(text)) {
                self.found.push(path);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn masks(masks: &[&str]) -> Vec<String> {
        masks.iter().map(|mask| (*mask).to_owned()).collect()
    }

    #[test]
    fn masks_choose_built_in_policies() {
        let chosen = |list: &[&str]| PolicySet::load(&masks(list)).unwrap().native;
        let server = chosen(&["etc/nsm/opa/common/.*.rego", "etc/nsm/opa/server/.*.rego"]);
        assert_eq!(server, PolicySet::server().native);
        assert_eq!(chosen(&["etc/nsm/opa/common/.*.rego", "etc/nsm/opa/client/.*.rego"]), PolicySet::client().native);
        assert_eq!(chosen(&["etc/nsm/opa/registry/client_allowed.rego"]), [Builtin::ClientAllowed].into());
        assert_eq!(chosen(&["etc/nsm/opa/.*"]).len(), Builtin::ALL.len());
        assert!(PolicySet::load(&[]).unwrap().is_empty());
    }

    #[test]
    fn masks_that_match_nothing_are_refused_by_name() {
        for bad in ["etc/nsm/opa/comon/.*.rego", "common", "(", "/no/such/file.rego"] {
            let error = PolicySet::load(&masks(&[bad])).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn real_files_are_added_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("deep")).unwrap();
        std::fs::write(dir.path().join("a.rego"), "package nsm\nvalid { input.index == 1 }").unwrap();
        std::fs::write(dir.path().join("deep/b.rego"), "package nsm\nvalid = true").unwrap();
        std::fs::write(dir.path().join("notes.txt"), "not a policy").unwrap();
        let mask = format!("{}/.*.rego", dir.path().display());
        let set = PolicySet::load(&masks(&[&mask])).unwrap();
        assert_eq!(set.files().count(), 2);
        assert!(set.builtins().is_empty());
        let segments = vec![crate::Hop::default(); 2];
        let question = |index| Question {
            index,
            segments: segments.clone(),
            certificate: None,
            now: std::time::UNIX_EPOCH,
            resource: None,
            monitored: None,
        };
        assert!(set.check("connection \"a\"", &question(1)).is_ok());
        let error = set.check("connection \"a\"", &question(0)).unwrap_err();
        assert_eq!(error.kind, Kind::Denied);
        assert!(error.to_string().contains("no sufficient privileges") && error.to_string().contains("a.rego"), "{error}");
        assert_eq!(question(1).to_json(), json!({"index": 1, "path_segments": [{}, {}], "auth_info": {"certificate": ""}}));
        std::fs::write(dir.path().join("c.rego"), "package nsm\nvalid { io.jwt.verify_hs256(input.a, \"\") }").unwrap();
        assert!(PolicySet::load(&masks(&[&mask])).unwrap_err().to_string().contains("c.rego"));
    }
}
