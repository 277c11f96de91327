//! Policies about registrations: who passed one on, and whose a name is.
//!
//! The names that a process has agreed to are remembered here, as policy files want to see them. A name that is
//! forgotten (it ended, or this process is new) is free as far as policies go; what is really registered, and by whom,
//! is the registry's own knowledge.

use crate::{Hop, PolicySet, Question, Resource, jwt};
use nsm_api::{Caller, Error, Kind, Result, TrailEnd, limits::MAX_PATH_SEGMENTS};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

/// Names of services, and of endpoints, that one process remembers.
pub const MAX_NAMES: usize = 65_536;

/// What is registered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// A network service.
    Service(String),
    /// An endpoint.
    Endpoint(String),
}

impl Name {
    fn text(&self) -> &str {
        match self {
            Name::Service(name) | Name::Endpoint(name) => name,
        }
    }
    fn object(&self) -> String {
        match self {
            Name::Service(name) => format!("service {name:?}"),
            Name::Endpoint(name) => format!("endpoint {name:?}"),
        }
    }
}

/// A name that was agreed to.
struct Known {
    path_ids: Vec<String>,
    until: Option<SystemTime>,
}

/// The policies of one side of registrations, and the names that they know.
#[derive(Default)]
pub struct Registrations {
    policies: PolicySet,
    names: Mutex<BTreeMap<Name, Known>>,
}

impl Registrations {
    /// Nothing is known yet.
    pub fn new(policies: PolicySet) -> Registrations {
        Registrations { policies, names: Mutex::default() }
    }

    /// May the caller register or unregister `name`? Asked by the process that is called.
    pub fn admit(&self, name: &Name, caller: &Caller, now: SystemTime) -> Result<()> {
        let own = caller.trail.tokens.len().saturating_sub(1);
        self.room(name, now)?;
        self.check(name, (own, &caller.trail.tokens), caller.certificate.as_deref(), now)
    }

    /// Was it really our peer that answered, and for us? Asked by the process that called, of a Register.
    pub fn approve(&self, name: &Name, caller: &Caller, now: SystemTime) -> Result<()> {
        let own = caller.trail.tokens.len().saturating_sub(1);
        let nothing = TrailEnd { tokens: vec![], certificate: None };
        let end = caller.trail.answered().unwrap_or(&nothing);
        self.check(name, (own, &end.tokens), end.certificate.as_deref(), now)
    }

    /// It is agreed: the name is theirs until then.
    pub fn keep(&self, name: Name, path_ids: Vec<String>, until: Option<SystemTime>) {
        self.lock().insert(name, Known { path_ids, until });
    }

    /// The name is free.
    pub fn forget(&self, name: &Name) {
        self.lock().remove(name);
    }

    /// Whether the name is somebody's.
    pub fn knows(&self, name: &Name, now: SystemTime) -> bool {
        self.lock().get(name).is_some_and(|known| known.until.is_none_or(|end| end > now))
    }

    fn check(&self, name: &Name, (own, tokens): (usize, &[String]), certificate: Option<&[u8]>, now: SystemTime) -> Result<()> {
        if self.policies.is_empty() {
            return Ok(());
        }
        let names = self.lock();
        let registered = names.get(name).filter(|known| known.until.is_none_or(|end| end > now)).map(|known| known.path_ids.clone());
        drop(names); // a policy file may take its time
        let claimant = tokens.first().and_then(|token| jwt::subject(token)).unwrap_or_default();
        let question = Question {
            index: u32::try_from(own).unwrap_or(u32::MAX),
            segments: tokens.iter().map(|token| Hop { token, ..Hop::default() }).collect(),
            certificate,
            now,
            resource: Some(Resource { name: name.text(), claimant: &claimant, registered: registered.as_deref() }),
            monitored: None,
        };
        self.policies.check(&name.object(), &question)
    }

    /// What has ended makes room for new names.
    fn room(&self, name: &Name, now: SystemTime) -> Result<()> {
        let mut names = self.lock();
        if names.len() < MAX_NAMES || names.contains_key(name) {
            return Ok(());
        }
        names.retain(|_, known| known.until.is_none_or(|end| end > now));
        if names.len() < MAX_NAMES {
            return Ok(());
        }
        Err(Error::new(
            Kind::Exhausted,
            name.object(),
            format!("{MAX_NAMES} names are registered here already"),
            "unregister what is not needed",
        ))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, Known>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who has passed a registration on, first of all its owner, then everybody up to this process. `path_ids` is what the
/// message says of it: it may say less than the tokens, but nothing else. Calls of this very process are as they say.
///
/// Only the caller itself is proven; for those before it stands its word, as a policy demands that it is signed.
pub fn proven_path_ids(name: &Name, path_ids: &[String], caller: &Caller) -> Result<Vec<String>> {
    let Some(identity) = &caller.identity else { return Ok(path_ids.to_vec()) };
    let refuse = |reason: String| {
        let fix = "send the path of the last answer, and the path_ids that came with it";
        Err(Error::new(Kind::Denied, name.object(), reason, fix))
    };
    let tokens = &caller.trail.tokens;
    let mut proven = vec![];
    for (at, token) in tokens.iter().take(tokens.len().saturating_sub(2)).enumerate() {
        let Some(subject) = jwt::subject(token) else { return refuse(format!("process {at} of its path has no readable token")) };
        if let Some(said) = path_ids.get(at).filter(|said| **said != subject) {
            return refuse(format!("path_ids[{at}] is {said:?}, but the token of its path is that of {subject:?}"));
        }
        proven.push(subject);
    }
    proven.push(identity.to_string());
    proven.extend(tokens.last().filter(|_| tokens.len() > 1).and_then(|own| jwt::subject(own)));
    if proven.len() > MAX_PATH_SEGMENTS {
        return refuse(format!("it was passed on by {} processes, the limit is {MAX_PATH_SEGMENTS}", proven.len()));
    }
    Ok(proven)
}
