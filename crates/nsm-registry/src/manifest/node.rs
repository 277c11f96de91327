//! YAML as a tree that knows its lines, and text as it was written.

use super::MAX_DEPTH;
use nsm_api::{Error, Result};
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};

/// A key of an object.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) line: usize,
    pub(super) text: String,
}

/// A value.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) shape: Shape,
}

#[derive(Debug)]
pub(super) enum Shape {
    Null,
    /// Text, and whether it stands there without quotes.
    Scalar(String, Quotes),
    List(Vec<Node>),
    Object(Vec<(Key, Node)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quotes {
    Without,
    With,
}

/// One document of a file.
#[derive(Debug)]
pub(super) struct Document<'t> {
    pub(super) root: Node,
    /// Where it uses an alias, which no network service needs; other kinds may.
    pub(super) alias_line: Option<usize>,
    /// The lines it was read from.
    pub(super) text: &'t str,
}

struct Builder<'t> {
    file: &'t str,
    parser: Parser<'t, StrInput<'t>>,
    alias_line: Option<usize>,
}

/// The documents of `text`, in order.
pub(super) fn documents<'t>(file: &'t str, text: &'t str) -> Result<Vec<Document<'t>>> {
    let mut builder = Builder { file, parser: Parser::new_from_str(text), alias_line: None };
    let mut found = Vec::new();
    let mut starts = Vec::new();
    while let Some((event, span)) = builder.next()? {
        if let Event::DocumentStart(_) = event {
            starts.push(span.start.line());
            let (first, span) = builder.some()?;
            let root = builder.node(first, span, 0)?;
            found.push((root, builder.alias_line.take()));
        }
    }
    let slices = slices(text, &starts);
    Ok(found.into_iter().zip(slices).map(|((root, alias_line), text)| Document { root, alias_line, text }).collect())
}

/// `text` cut before each of the lines `starts`, counted from 1.
fn slices<'t>(text: &'t str, starts: &[usize]) -> Vec<&'t str> {
    let offsets: Vec<usize> = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let offset = |line: usize| offsets.get(line.saturating_sub(1)).copied().unwrap_or(text.len());
    let ends = starts.iter().skip(1).map(|line| offset(*line)).chain([text.len()]);
    starts.iter().zip(ends).map(|(start, end)| &text[offset(*start)..end]).collect()
}

impl<'t> Builder<'t> {
    fn next(&mut self) -> Result<Option<(Event<'t>, Span)>> {
        self.parser.next_event().transpose().map_err(|error| syntax(self.file, &error))
    }

    fn some(&mut self) -> Result<(Event<'t>, Span)> {
        self.next()?.ok_or_else(|| Error::invalid(format!("manifest {}", self.file), "ends in the middle of a document", "complete it"))
    }

    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Node> {
        let line = span.start.line();
        if depth > MAX_DEPTH {
            let reason = format!("is nested deeper than {MAX_DEPTH} levels");
            return Err(Error::invalid(format!("{} line {line}", self.file), reason, "write it flatter"));
        }
        let shape = match event {
            Event::Scalar(text, style, _, tag) => scalar(&text, style == ScalarStyle::Plain && tag.is_none()),
            Event::SequenceStart(..) => Shape::List(self.list(depth)?),
            Event::MappingStart(..) => Shape::Object(self.object(depth)?),
            Event::Alias(_) => {
                self.alias_line.get_or_insert(line);
                Shape::Null
            }
            _ => Shape::Null,
        };
        Ok(Node { line, shape })
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>> {
        let mut nodes = Vec::new();
        loop {
            match self.some()? {
                (Event::SequenceEnd, _) => return Ok(nodes),
                (event, span) => nodes.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Vec<(Key, Node)>> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        loop {
            let (event, span) = self.some()?;
            let line = span.start.line();
            let text = match event {
                Event::MappingEnd => return Ok(entries),
                Event::Scalar(text, ..) => text.into_owned(),
                _ => {
                    return Err(Error::invalid(
                        format!("{} line {line}", self.file),
                        "has a key that is not a word",
                        "write the key as text",
                    ));
                }
            };
            if !seen.insert(text.clone()) {
                return Err(Error::invalid(format!("{} line {line}, key {text:?}", self.file), "is there twice", "remove one of the two"));
            }
            let (event, span) = self.some()?;
            entries.push((Key { line, text }, self.node(event, span, depth + 1)?));
        }
    }
}

fn scalar(text: &str, plain: bool) -> Shape {
    match text {
        "" | "~" | "null" | "Null" | "NULL" if plain => Shape::Null,
        _ if plain => Shape::Scalar(text.to_owned(), Quotes::Without),
        _ => Shape::Scalar(text.to_owned(), Quotes::With),
    }
}

fn syntax(file: &str, error: &ScanError) -> Error {
    let place = format!("{file} line {} column {}", error.marker().line(), error.marker().col() + 1);
    Error::invalid(place, format!("is not YAML: {}", error.info()), "check indentation, colons and quotes there")
}
