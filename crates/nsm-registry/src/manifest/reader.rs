//! What both kinds of documents share: places, keys, names, labels, and the kind itself.

use super::{
    API_VERSION, Warning,
    node::{Document, Key, Node, Quotes, Shape},
};
use nsm_api::{
    Error, Labels, Result,
    limits::{MAX_MAP_ENTRIES, MAX_MAP_VALUE_BYTES},
};
use serde_yaml_ng::Value;
use std::{collections::BTreeMap, fmt::Display};

/// The present name of a key, and its old spellings.
pub(super) type KeyNames = (&'static str, &'static [&'static str]);

const DOCUMENT: &[KeyNames] = &[("apiVersion", &[]), ("kind", &[]), ("metadata", &[]), ("spec", &[]), ("status", &[])];

/// Of these only the name and nothing else has a meaning here; the others are what Kubernetes writes.
#[rustfmt::skip]
const METADATA: &[KeyNames] = &[
    ("name", &[]), ("namespace", &[]), ("labels", &[]), ("annotations", &[]), ("generateName", &[]), ("uid", &[]),
    ("resourceVersion", &[]), ("generation", &[]), ("creationTimestamp", &[]), ("deletionTimestamp", &[]),
    ("managedFields", &[]), ("ownerReferences", &[]), ("finalizers", &[]), ("selfLink", &[]),
];

/// Typing mistakes up to which the nearest known key is named.
const NEAR: usize = 3;

/// One document being read.
pub(super) struct Reader<'f> {
    file: &'f str,
    document: usize,
    pub(super) warnings: Vec<Warning>,
}

/// The entries of an object under their present names.
pub(super) struct Object<'n> {
    values: BTreeMap<&'static str, &'n Node>,
    /// Keys that have an old spelling.
    pub(super) old: Vec<&'n Key>,
}

impl<'n> Object<'n> {
    /// What is behind the key; nothing for a key without value.
    pub(super) fn get(&self, key: &str) -> Option<&'n Node> {
        self.values.get(key).copied().filter(|node| !matches!(node.shape, Shape::Null))
    }
}

impl<'f> Reader<'f> {
    pub(super) fn new(file: &'f str, document: usize) -> Reader<'f> {
        Reader { file, document, warnings: Vec::new() }
    }

    pub(super) fn place(&self, line: usize) -> String {
        format!("{} line {line} (document {})", self.file, self.document)
    }

    pub(super) fn error<T>(&self, line: usize, what: impl Display, reason: impl Into<String>, fix: impl Into<String>) -> Result<T> {
        Err(Error::invalid(format!("{}, {what}", self.place(line)), reason, fix))
    }

    pub(super) fn warn(&mut self, line: usize, what: impl Into<String>, modern: impl Into<String>) {
        let (file, document) = (self.file.to_owned(), self.document);
        self.warnings.push(Warning { file, document, line, what: what.into(), modern: modern.into() });
    }

    /// Gives an error of a lower layer the place it concerns.
    pub(super) fn located<T>(&self, line: usize, result: Result<T>) -> Result<T> {
        result.map_err(|error| Error { object: format!("{}, {}", self.place(line), error.object), ..error })
    }

    /// The kind of the document, `None` for an empty one. An object of ours must be in our group.
    pub(super) fn kind(&self, document: &Document<'_>) -> Result<Option<String>> {
        let line = document.root.line;
        let entries = match &document.root.shape {
            Shape::Null if document.alias_line.is_none() => return Ok(None),
            Shape::Object(entries) => entries,
            Shape::Null | Shape::Scalar(..) | Shape::List(_) => {
                return self.error(line, "the document", "is not an object", "start it with apiVersion and kind");
            }
        };
        match entries.iter().find(|(key, _)| key.text == "kind") {
            Some((_, Node { shape: Shape::Scalar(kind, _), .. })) => Ok(Some(kind.clone())),
            _ => self.error(line, "the document", "has no kind", "add a line such as kind: NetworkService"),
        }
    }

    /// A document of a kind that others know.
    pub(super) fn other(&self, document: &Document<'_>) -> Result<Value> {
        let line = document.root.line;
        serde_yaml_ng::from_str(document.text)
            .or_else(|error| self.error(line, "the document", format!("cannot be read: {error}"), "correct it"))
    }

    /// Checks the frame of one of our documents. Answers its name and where that stands, and its spec.
    pub(super) fn frame<'n>(&mut self, document: &'n Document<'_>, spec_keys: &[KeyNames]) -> Result<((usize, String), Object<'n>)> {
        if let Some(line) = document.alias_line {
            return self.error(line, "the alias", "stands for something written elsewhere", "write it out");
        }
        let frame = self.object(&document.root, "a document", DOCUMENT)?;
        self.api_version(&document.root, frame.get("apiVersion"))?;
        let metadata = frame.get("metadata").map(|node| self.object(node, "metadata", METADATA)).transpose()?;
        let spec = match frame.get("spec") {
            Some(node) => self.object(node, "spec", spec_keys)?,
            None => Object { values: BTreeMap::new(), old: Vec::new() },
        };
        let outer = metadata.and_then(|metadata| metadata.get("name"));
        let Some(name) = spec.get("name").or(outer) else {
            return self.error(document.root.line, "the document", "has no name", "add metadata: {name: ...}");
        };
        let text = self.text(name, "name")?;
        if spec.get("name").is_none() && super::write::kubernetes_name(&text) != text {
            let modern = format!("metadata: {{name: {}}} and spec: {{name: {text:?}}}", super::write::kubernetes_name(&text));
            self.warn(name.line, format!("metadata.name {text:?} is no name that Kubernetes accepts"), modern);
        }
        for key in &spec.old {
            let modern = spec_keys.iter().find(|(_, old)| old.contains(&key.text.as_str())).map_or("", |(name, _)| name);
            self.warn(key.line, format!("{:?} is an old spelling", key.text), format!("{modern}:"));
        }
        Ok(((name.line, text), spec))
    }

    fn api_version(&mut self, root: &Node, node: Option<&Node>) -> Result<()> {
        let modern = format!("apiVersion: {API_VERSION}");
        let Some(node) = node else {
            self.warn(root.line, "apiVersion is missing", modern);
            return Ok(());
        };
        let text = self.text(node, "apiVersion")?;
        let squeezed: String = text.split_whitespace().collect();
        if squeezed != API_VERSION && squeezed != "networkservicemesh.io/v1alpha1" {
            return self.error(node.line, format!("apiVersion {text:?}"), "is none that is known", format!("write {modern}"));
        }
        if text != API_VERSION {
            self.warn(node.line, format!("apiVersion {text:?} is an old or mistaken spelling"), modern);
        }
        Ok(())
    }

    /// The entries of an object; `what` is what the object is, such as `a match`.
    pub(super) fn object<'n>(&self, node: &'n Node, what: &str, known: &[KeyNames]) -> Result<Object<'n>> {
        self.known(self.entries(node, what)?, what, known)
    }

    /// The entries of an object, of which nothing is known yet.
    pub(super) fn entries<'n>(&self, node: &'n Node, what: &str) -> Result<Vec<&'n (Key, Node)>> {
        match &node.shape {
            Shape::Object(entries) => Ok(entries.iter().collect()),
            Shape::Null => Ok(Vec::new()),
            Shape::Scalar(..) | Shape::List(_) => self.error(node.line, what, "is not an object", "write it as key: value"),
        }
    }

    /// Puts entries under their present names and refuses those that have none.
    pub(super) fn known<'n>(&self, entries: Vec<&'n (Key, Node)>, what: &str, known: &[KeyNames]) -> Result<Object<'n>> {
        let mut object = Object { values: BTreeMap::new(), old: Vec::new() };
        for (key, node) in entries {
            let Some((name, old)) = known.iter().find(|(name, old)| *name == key.text || old.contains(&key.text.as_str())) else {
                return self.error(key.line, format!("key {:?}", key.text), format!("is not part of {what}"), nearest(&key.text, known));
            };
            if object.values.insert(name, node).is_some() {
                return self.error(key.line, format!("key {:?}", key.text), format!("says {name} a second time"), "remove one of the two");
            }
            if old.contains(&key.text.as_str()) {
                object.old.push(key);
            }
        }
        Ok(object)
    }

    pub(super) fn list<'n>(&self, node: Option<&'n Node>, what: &str, limit: usize) -> Result<&'n [Node]> {
        let Some(node) = node else { return Ok(&[]) };
        match &node.shape {
            Shape::List(nodes) if nodes.len() <= limit => Ok(nodes),
            Shape::List(nodes) => self.error(node.line, what, format!("has {} entries, the limit is {limit}", nodes.len()), "write fewer"),
            Shape::Null => Ok(&[]),
            Shape::Scalar(..) | Shape::Object(_) => self.error(node.line, what, "is not a list", "start each entry with a dash"),
        }
    }

    pub(super) fn text(&self, node: &Node, what: &str) -> Result<String> {
        match &node.shape {
            Shape::Scalar(text, _) => Ok(text.clone()),
            Shape::Null | Shape::List(_) | Shape::Object(_) => {
                self.error(node.line, what, "is not a text", format!("write {what}: \"...\""))
            }
        }
    }

    /// Labels; nothing at all is no labels. Numbers and booleans are taken as the text they are written with.
    pub(super) fn labels(&mut self, node: Option<&Node>, what: &str) -> Result<Labels> {
        let Some(node) = node else { return Ok(Labels::new()) };
        let entries = self.entries(node, what)?;
        if entries.len() > MAX_MAP_ENTRIES {
            let reason = format!("has {} entries, the limit is {MAX_MAP_ENTRIES}", entries.len());
            return self.error(node.line, what, reason, "write fewer");
        }
        entries.into_iter().map(|(key, value)| Ok((key.text.clone(), self.label(key, value)?))).collect()
    }

    pub(super) fn label(&mut self, key: &Key, value: &Node) -> Result<String> {
        let modern = |text: &str| format!("{}: {text:?}", key.text);
        let text = match &value.shape {
            Shape::Scalar(text, Quotes::Without) if not_text(text) => {
                self.warn(value.line, format!("the value of label {:?} is a number or boolean, and taken as text", key.text), modern(text));
                text.clone()
            }
            Shape::Scalar(text, _) => text.clone(),
            Shape::Null => {
                self.warn(key.line, format!("label {:?} has no value, and is taken as empty", key.text), modern(""));
                String::new()
            }
            Shape::List(_) | Shape::Object(_) => {
                return self.error(
                    value.line,
                    format!("label {:?}", key.text),
                    "has a value that is not a text",
                    format!("write {}", modern("...")),
                );
            }
        };
        if key.text.len().max(text.len()) > MAX_MAP_VALUE_BYTES {
            let reason = format!("is longer than {MAX_MAP_VALUE_BYTES} bytes");
            return self.error(key.line, "a label", reason, "write a shorter one");
        }
        Ok(text)
    }
}

/// Whether YAML takes this plain text for a number or a boolean.
fn not_text(text: &str) -> bool {
    let digits = text.trim_start_matches(['+', '-']);
    let number = digits.starts_with(|first: char| first.is_ascii_digit() || first == '.') && digits.parse::<f64>().is_ok();
    let hexadecimal = digits.strip_prefix("0x").is_some_and(|digits| u128::from_str_radix(digits, 16).is_ok());
    let octal = digits.strip_prefix("0o").is_some_and(|digits| u128::from_str_radix(digits, 8).is_ok());
    number || hexadecimal || octal || matches!(text, "true" | "True" | "TRUE" | "false" | "False" | "FALSE")
}

/// What to write instead of an unknown key.
fn nearest(key: &str, known: &[KeyNames]) -> String {
    let distance = |(name, old): &KeyNames| old.iter().chain([name]).map(|spelling| edits(key, spelling)).min().unwrap_or(usize::MAX);
    match known.iter().min_by_key(|names| distance(names)) {
        Some(names) if distance(names) <= NEAR => format!("write {:?}", names.0),
        _ => format!("write one of {}", known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")),
    }
}

/// How many letters must be added, left out or changed to get from `a` to `b`.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            let changed = diagonal + usize::from(!x.eq_ignore_ascii_case(y));
            row[j + 1] = changed.min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}
