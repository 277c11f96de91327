//! Reads a YAML map key by key and notes every mistake with the path of its key and what is allowed.

use nsm_api::Labels;
use serde_yaml_ng::Value;
use std::{cell::RefCell, collections::BTreeMap, fmt, str::FromStr};

/// Mistakes shown at most; a file with more is not a lab.
const MAX_MISTAKES: usize = 100;

/// One mistake of the author.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The path of the key, for instance `spec.clients[0].mode`.
    pub at: String,
    /// What is wrong and what is allowed.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.what)
    }
}

/// All mistakes so far.
#[derive(Debug, Default)]
pub(crate) struct Notes(RefCell<Vec<Mistake>>);

impl Notes {
    pub(crate) fn note(&self, at: &str, what: impl Into<String>) {
        let mut notes = self.0.borrow_mut();
        if notes.len() < MAX_MISTAKES {
            notes.push(Mistake { at: at.to_owned(), what: what.into() });
        }
    }
    pub(crate) fn into_mistakes(self) -> Vec<Mistake> {
        self.0.into_inner()
    }
}

/// One map being read.
pub(crate) struct Fields<'a> {
    /// Path of the map itself.
    pub(crate) at: String,
    entries: BTreeMap<String, &'a Value>,
    known: Vec<&'static str>,
    notes: &'a Notes,
}

impl<'a> Fields<'a> {
    /// Starts reading `value`; something that is not a map is noted and read as an empty one.
    pub(crate) fn of(at: impl Into<String>, value: &'a Value, notes: &'a Notes) -> Fields<'a> {
        let at = at.into();
        let entries = match value {
            Value::Mapping(map) => map.iter().map(|(key, value)| (scalar(key).unwrap_or_default(), value)).collect(),
            Value::Null => BTreeMap::new(),
            other => {
                notes.note(&at, format!("is {}, must be a map", kind(other)));
                BTreeMap::new()
            }
        };
        Fields { at, entries, known: Vec::new(), notes }
    }
    fn path(&self, key: &str) -> String {
        if self.at.is_empty() { key.to_owned() } else { format!("{}.{key}", self.at) }
    }
    /// Notes a mistake about one key.
    pub(crate) fn wrong(&self, key: &str, what: impl Into<String>) {
        self.notes.note(&self.path(key), what);
    }
    /// The value of a key; an explicit null counts as absent.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        self.entries.get(key).copied().filter(|value| !value.is_null())
    }
    /// A nested map; absent is empty.
    pub(crate) fn map(&mut self, key: &'static str) -> Fields<'a> {
        let path = self.path(key);
        Fields::of(path, self.take(key).unwrap_or(&Value::Null), self.notes)
    }
    /// A nested map when there is one.
    pub(crate) fn optional_map(&mut self, key: &'static str) -> Option<Fields<'a>> {
        let value = self.take(key)?;
        Some(Fields::of(self.path(key), value, self.notes))
    }
    /// The maps of a list; absent is empty.
    pub(crate) fn maps(&mut self, key: &'static str) -> Vec<Fields<'a>> {
        let items = self.items(key);
        items.into_iter().map(|(at, value)| Fields::of(at, value, self.notes)).collect()
    }
    fn items(&mut self, key: &'static str) -> Vec<(String, &'a Value)> {
        let path = self.path(key);
        match self.take(key) {
            None => Vec::new(),
            Some(Value::Sequence(list)) => list.iter().enumerate().map(|(i, value)| (format!("{path}[{i}]"), value)).collect(),
            Some(Value::Mapping(_)) => {
                self.wrong(key, "is a map, must be a list");
                Vec::new()
            }
            Some(single) => vec![(path, single)],
        }
    }
    /// A text; numbers and booleans count as their text.
    pub(crate) fn text(&mut self, key: &'static str) -> Option<String> {
        let value = self.take(key)?;
        let text = scalar(value);
        if text.is_none() {
            self.wrong(key, format!("is {}, must be text", kind(value)));
        }
        text
    }
    /// A text that must be there.
    pub(crate) fn need_text(&mut self, key: &'static str) -> String {
        if self.take(key).is_none() {
            self.wrong(key, "is missing");
        }
        self.text(key).unwrap_or_default()
    }
    /// A list of texts; a single text is a list of one.
    pub(crate) fn texts(&mut self, key: &'static str) -> Vec<String> {
        let read = |(at, value): (String, &Value)| {
            let text = scalar(value);
            if text.is_none() {
                self.notes.note(&at, format!("is {}, must be text", kind(value)));
            }
            text
        };
        let items = self.items(key);
        items.into_iter().filter_map(read).collect()
    }
    /// A value of another type, `allowed` saying what may stand here.
    pub(crate) fn parse<T: FromStr>(&mut self, key: &'static str, allowed: &str) -> Option<T> {
        let text = self.text(key)?;
        let value = text.parse().ok();
        if value.is_none() {
            self.wrong(key, format!("is {text:?}, must be {allowed}"));
        }
        value
    }
    /// Like [`Fields::parse`], but it must be there.
    pub(crate) fn need<T: FromStr>(&mut self, key: &'static str, allowed: &str) -> Option<T> {
        if self.take(key).is_none() {
            self.wrong(key, format!("is missing, must be {allowed}"));
            return None;
        }
        self.parse(key, allowed)
    }
    /// A list of values of another type.
    pub(crate) fn parses<T: FromStr>(&mut self, key: &'static str, allowed: &str) -> Vec<T> {
        let mut values = Vec::new();
        for text in self.texts(key) {
            match text.parse() {
                Ok(value) => values.push(value),
                Err(_) => self.wrong(key, format!("holds {text:?}, must hold {allowed}")),
            }
        }
        values
    }
    /// One word of a closed list.
    pub(crate) fn one_of<T: Copy>(&mut self, key: &'static str, words: &[(&'static str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let allowed: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.wrong(key, format!("is {text:?}, must be {}", allowed.join(" or ")));
        }
        found
    }
    /// `true` or `false`, or `otherwise` when absent.
    pub(crate) fn flag(&mut self, key: &'static str, otherwise: bool) -> bool {
        self.one_of(key, &[("true", true), ("false", false)]).unwrap_or(otherwise)
    }
    /// A map of texts.
    pub(crate) fn labels(&mut self, key: &'static str) -> Labels {
        let inner = self.map(key);
        let mut labels = Labels::new();
        for (name, value) in &inner.entries {
            match scalar(value) {
                Some(text) => drop(labels.insert(name.clone(), text)),
                None => inner.wrong(name, format!("is {}, must be text", kind(value))),
            }
        }
        labels
    }
    /// A map of names to values of another type.
    pub(crate) fn named<T: FromStr>(&mut self, key: &'static str, allowed: &str) -> BTreeMap<String, T> {
        let texts = self.labels(key);
        let read = |(name, text): (String, String)| {
            let value = text.parse().ok();
            if value.is_none() {
                self.wrong(&format!("{key}.{name}"), format!("is {text:?}, must be {allowed}"));
            }
            Some((name, value?))
        };
        texts.into_iter().filter_map(read).collect()
    }
    /// A list of lists of texts.
    pub(crate) fn lists(&mut self, key: &'static str) -> Vec<Vec<String>> {
        let items = self.items(key);
        let mut lists = Vec::new();
        for (at, value) in items {
            match value {
                Value::Sequence(list) if list.iter().all(|value| scalar(value).is_some()) => {
                    lists.push(list.iter().filter_map(scalar).collect())
                }
                other => self.notes.note(&at, format!("is {}, must be a list of texts", kind(other))),
            }
        }
        lists
    }
    /// The only key of a map that must have one, with its value.
    pub(crate) fn single(&self) -> Option<(&str, &'a Value)> {
        let mut entries = self.entries.iter();
        match (entries.next(), entries.next()) {
            (Some((key, value)), None) => Some((key, value)),
            _ => None,
        }
    }
    /// The shared notes.
    pub(crate) fn notes(&self) -> &'a Notes {
        self.notes
    }
    /// Notes every key that nobody asked for.
    pub(crate) fn finish(self) {
        for key in self.entries.keys().filter(|key| !self.known.contains(&key.as_str())) {
            let mut known = self.known.clone();
            known.sort_unstable();
            known.dedup();
            self.wrong(key, format!("is not a known key; known here: {}", known.join(", ")));
        }
    }
}

/// A scalar as text.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_) => None,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "empty",
        Value::Bool(_) | Value::Number(_) | Value::String(_) => "a single value",
        Value::Sequence(_) => "a list",
        Value::Mapping(_) => "a map",
        Value::Tagged(_) => "a tagged value",
    }
}
