//! Settings of a role: flag over environment over file over default, all mistakes reported at once.
//!
//! A role declares its options as a table and reads them into its own plain struct:
//!
//! ```
//! use nsm::settings::{Opt, Settings, Shape};
//! use nsm_api::{HopName, Result, Target};
//! use std::time::Duration;
//!
//! pub const OPTIONS: &[Opt] = &[
//!     Opt::new("name", "NSM_NAME", "nmgr", Shape::Text, "Name of this process in paths"),
//!     Opt::new("listen-on", "NSM_LISTEN_ON", "unix:///run/nsm/manager.sock", Shape::Targets, "Where to listen"),
//!     Opt::new("registry-url", "NSM_REGISTRY_URL", "", Shape::Target, "The registry; empty: one in this process"),
//!     Opt::new("dial-timeout", "NSM_DIAL_TIMEOUT", "750ms", Shape::Duration, "Longest wait for a peer to accept"),
//!     Opt::accepted("vpp-init", "NSM_VPP_INIT"),
//! ];
//!
//! struct Config { name: HopName, listen_on: Vec<Target>, registry: Option<Target>, dial_timeout: Duration }
//!
//! fn config(mut s: Settings) -> Result<Config> {
//!     let config = Config {
//!         name: s.text("name"),
//!         listen_on: s.list("listen-on"),
//!         registry: s.optional("registry-url"),
//!         dial_timeout: s.duration("dial-timeout"),
//!     };
//!     s.finish()?; // one error with every mistake; until here a getter answers its default instead of a bad value
//!     Ok(config)
//! }
//!
//! let given = Settings::new("manager", OPTIONS).with_environment([("NSM_NAME", "m"), ("NSM_DIAL_TIMEOUT", "1x")]);
//! assert!(config(given).err().expect("1x is no duration").to_string().contains("NSM_DIAL_TIMEOUT"));
//! ```
//!
//! A variable of `NSM_` that nobody knows is a warning with the nearest known name, never an error: upstream's
//! manifests set variables for programs that share an environment.

mod args;
mod duration;
mod nearest;
mod table;
#[cfg(test)]
mod tests;
mod values;
mod yaml;

pub use args::with_options;
pub use duration::GoDuration;
pub use table::{COMMON, Effect, Opt, Place, Shape};
pub(crate) use values::{boolean, dns_configs};

use clap::ArgMatches;
use ipnet::IpNet;
use nsm_api::{Error, Labels, Result};
use std::{collections::BTreeMap, fmt, path::Path, str::FromStr, time::Duration};

/// Variables of `NSM_` that the program reads before any role does.
const PROCESS_VARIABLES: &[&str] = &["NSM_DIE_WITH_PARENT"];
/// Upstream's device plugins set variables with this beginning; SR-IOV is not here yet.
const TOKEN_PREFIX: &str = "NSM_SRIOV_TOKENS_";

/// Where a value came from; the later wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    File(String),
    Environment,
    Flag,
}

#[derive(Clone, Debug)]
struct Given {
    texts: Vec<String>,
    source: Source,
}

/// What was given for one command, checked while it is read. See the module for an example.
#[derive(Debug)]
#[must_use = "mistakes are only reported by finish()"]
pub struct Settings {
    command: String,
    table: BTreeMap<&'static str, &'static Opt>,
    given: BTreeMap<&'static str, Given>,
    mistakes: Vec<String>,
    unknown: Vec<String>,
}

impl Settings {
    /// Only the defaults of `options` and of [`COMMON`]; `command` is named in errors.
    pub fn new(command: impl Into<String>, options: &'static [Opt]) -> Settings {
        let table = COMMON.iter().chain(options).map(|opt| (opt.flag, opt)).collect();
        Settings { command: command.into(), table, given: BTreeMap::new(), mistakes: Vec::new(), unknown: Vec::new() }
    }
    /// Everything the process was given: `matches` of the command line, its environment, and the file when there is one.
    pub fn load(command: &str, options: &'static [Opt], matches: &ArgMatches, file: Option<&Path>) -> Settings {
        let environment =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())));
        let mut settings = Settings::new(command, options).with_flags(matches).with_environment(environment);
        if let Some(path) = file {
            match std::fs::read_to_string(path) {
                Ok(text) => settings = settings.with_file(&path.display().to_string(), &text),
                Err(problem) => settings.mistakes.push(format!("--config {}: cannot be read: {problem}", path.display())),
            }
        }
        settings
    }
    /// Adds what the command line says.
    pub fn with_flags(mut self, matches: &ArgMatches) -> Settings {
        for flag in self.table.keys().copied().collect::<Vec<_>>() {
            if let Ok(Some(texts)) = matches.try_get_many::<String>(flag) {
                self.offer(flag, texts.cloned().collect(), Source::Flag);
            }
        }
        self
    }
    /// Adds variables; those that are none of ours are left alone.
    pub fn with_environment<N: AsRef<str>, V: Into<String>>(mut self, variables: impl IntoIterator<Item = (N, V)>) -> Settings {
        for (name, value) in variables {
            let name = name.as_ref();
            let known = self.table.values().find(|opt| !opt.env.is_empty() && opt.env == name).map(|opt| opt.flag);
            match known {
                Some(flag) => self.offer(flag, vec![value.into()], Source::Environment),
                None if name.starts_with("NSM_") && !PROCESS_VARIABLES.contains(&name) => self.unknown.push(name.to_owned()),
                None => {}
            }
        }
        self.unknown.sort();
        self
    }
    /// Adds a YAML map from flag names to values; `origin` is named in errors.
    pub fn with_file(mut self, origin: &str, text: &str) -> Settings {
        let entries = match yaml::entries(text) {
            Ok(entries) => entries,
            Err(problem) => {
                self.mistakes.push(format!("{origin}: {problem}"));
                return self;
            }
        };
        for (key, text) in entries {
            match self.table.get_key_value(key.as_str()) {
                Some((flag, _)) => self.offer(flag, vec![text], Source::File(origin.to_owned())),
                None => {
                    let hint = nearest::hint(&key, self.table.keys().copied());
                    self.mistakes.push(format!("{key:?} in {origin} is no setting of `nsm {}`{hint}", self.command));
                }
            }
        }
        self
    }
    fn offer(&mut self, flag: &'static str, texts: Vec<String>, source: Source) {
        if self.given.get(flag).is_none_or(|had| had.source < source) {
            self.given.insert(flag, Given { texts, source });
        }
    }

    /// A value of any type that is read from text.
    pub fn text<T: FromStr<Err: fmt::Display + 'static>>(&mut self, flag: &str) -> T {
        self.read(flag, values::parse)
    }
    /// The same; empty text is `None`.
    pub fn optional<T: FromStr<Err: fmt::Display + 'static>>(&mut self, flag: &str) -> Option<T> {
        self.read(flag, |text| if text.is_empty() { Ok(None) } else { values::parse(text).map(Some) })
    }
    /// Comma list; a flag that is given several times adds up. Empty text is the empty list.
    pub fn list<T: FromStr<Err: fmt::Display + 'static>>(&mut self, flag: &str) -> Vec<T> {
        self.read(flag, |text| values::items(text).into_iter().map(values::item).collect())
    }
    /// Go's boolean.
    pub fn boolean(&mut self, flag: &str) -> bool {
        self.read(flag, boolean)
    }
    /// Go's duration, zero or longer.
    pub fn duration(&mut self, flag: &str) -> Duration {
        self.read(flag, |text| text.parse::<GoDuration>()?.to_std().ok_or_else(|| "is negative".into()))
    }
    /// `k:v,k2:v2`
    pub fn map(&mut self, flag: &str) -> Labels {
        self.read(flag, values::map)
    }
    /// Groups of prefixes: `a,b` is two groups of one, `[a,b],[c]` two groups whose first has two pools.
    pub fn prefix_groups(&mut self, flag: &str) -> Vec<Vec<IpNet>> {
        self.read(flag, values::prefix_groups)
    }
    /// Groups of items in the same writing, each item read as `T`.
    pub fn groups<T: FromStr<Err: fmt::Display + 'static>>(&mut self, flag: &str) -> Vec<Vec<T>> {
        self.read(flag, |text| values::groups(text)?.into_iter().map(|group| group.into_iter().map(values::item).collect()).collect())
    }
    /// One of the words that [`Shape::OneOf`] declares.
    pub fn choice(&mut self, flag: &str) -> &'static str {
        let Shape::OneOf(words) = self.option(flag).shape else { unreachable!("{flag} declares its words") };
        self.read(flag, |text| words.iter().copied().find(|word| *word == text).ok_or_else(|| "is none of them".into()))
    }
    /// The words of a positional option, or of a flag that may be repeated, as they were written.
    pub fn words(&self, flag: &str) -> Vec<String> {
        let default = || values::items(self.option(flag).default).into_iter().map(str::to_owned).collect();
        self.given.get(flag).map_or_else(default, |given| given.texts.clone())
    }
    /// Reads by `parse`; its error completes the sentence "the value ...".
    pub fn read<T>(&mut self, flag: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let opt = self.option(flag);
        let fallback = || parse(opt.default).unwrap_or_else(|problem| unreachable!("the default of {flag} can be read: {problem}"));
        let Some(given) = self.given.get(opt.flag) else {
            if opt.required {
                self.mistakes.push(format!("{} is not set, set it as for instance {}={}", spelled(opt), opt.env, opt.default));
            }
            return fallback();
        };
        let text = given.joined();
        parse(&text).unwrap_or_else(|problem| {
            self.mistakes.push(format!("{}: {problem}, allowed is {}", given.shown(opt), opt.shape.allowed()));
            fallback()
        })
    }
    /// Adds a mistake that no single value shows, for instance two that exclude each other.
    pub fn mistake(&mut self, sentence: impl Into<String>) {
        self.mistakes.push(sentence.into());
    }
    /// Whether the command declares the option.
    pub fn has(&self, flag: &str) -> bool {
        self.table.contains_key(flag)
    }
    /// Whether somebody gave the option.
    pub fn is_given(&self, flag: &str) -> bool {
        self.given.contains_key(self.option(flag).flag)
    }
    /// All mistakes as one error, or nothing.
    pub fn finish(self) -> Result<()> {
        if self.mistakes.is_empty() {
            return Ok(());
        }
        let fix = match self.mistakes.len() {
            1 => format!("correct it, `nsm {} --help` lists every setting", self.command),
            many => format!("correct these {many}, `nsm {} --help` lists every setting", self.command),
        };
        Err(Error::invalid(format!("settings of `nsm {}`", self.command), self.mistakes.join(";\n  "), fix))
    }
    /// Every setting with the value that holds, secrets hidden: `name=m dial-timeout=750ms`.
    pub fn effective(&self) -> String {
        let shown = self.table.values().filter(|opt| opt.effect != Effect::None).map(|opt| {
            let given = self.given.get(opt.flag).map(Given::joined);
            let text = given.as_deref().unwrap_or(if opt.required { "" } else { opt.default });
            match opt.effect {
                Effect::Secret if !text.is_empty() => format!("{}=***", opt.flag),
                _ if text.contains(char::is_whitespace) => format!("{}={text:?}", opt.flag),
                _ => format!("{}={text}", opt.flag),
            }
        });
        shown.collect::<Vec<_>>().join(" ")
    }
    /// Variables that nobody here knows: a sentence each, with the name that was likely meant.
    pub fn unknown(&self) -> Vec<String> {
        let known = || self.table.values().map(|opt| opt.env).filter(|env| !env.is_empty());
        let sentence = |name: &String| format!("{name} is no setting of `nsm {}`{}", self.command, nearest::hint(name, known()));
        self.unknown.iter().filter(|name| !name.starts_with(TOKEN_PREFIX)).map(sentence).collect()
    }
    /// Variables and flags of upstream that were given, and have no effect yet.
    pub fn without_effect(&self) -> Vec<&str> {
        let idle = self.given.keys().filter_map(|flag| self.table.get(flag)).filter(|opt| opt.effect == Effect::None).map(|opt| opt.env);
        let tokens = self.unknown.iter().map(String::as_str).filter(|name| name.starts_with(TOKEN_PREFIX));
        idle.chain(tokens).collect()
    }
    fn option(&self, flag: &str) -> &'static Opt {
        self.table.get(flag).copied().unwrap_or_else(|| unreachable!("`nsm {}` declares the option {flag} it reads", self.command))
    }
}

impl Given {
    fn joined(&self) -> String {
        self.texts.join(",")
    }
    fn shown(&self, opt: &Opt) -> String {
        let text = if opt.effect == Effect::Secret { "***".to_owned() } else { format!("{:?}", self.joined()) };
        match &self.source {
            Source::Flag if opt.place == Place::Position => format!("{} {text}", opt.flag),
            Source::Flag => format!("--{} {text}", opt.flag),
            Source::Environment => format!("{}={text}", opt.env),
            Source::File(origin) => format!("{} {text} in {origin}", opt.flag),
        }
    }
}

fn spelled(opt: &Opt) -> String {
    if opt.env.is_empty() { format!("--{}", opt.flag) } else { format!("{} (--{})", opt.env, opt.flag) }
}
