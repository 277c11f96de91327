//! The path of a registration: a token of every process that it has passed. It travels in a header beside the message,
//! and comes back in the headers of the answer, where the caller checks that it was really answered by its peer.
//!
//! Who owns a name is not decided here.

use http::{HeaderMap, HeaderValue};
use nsm_api::{Error, Result, limits::MAX_PATH_SEGMENTS};
use serde_json::{Value, json};

const PATH: &str = "path";

/// Tokens by process, and which of them is the sender's.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct RegistryPath {
    index: usize,
    tokens: Vec<String>,
}

impl RegistryPath {
    /// As sent by a process that a registration has reached with these tokens, the last its own; without any it begins there.
    pub(crate) fn onward(tokens: &[String]) -> RegistryPath {
        RegistryPath { index: tokens.len().saturating_sub(1), tokens: tokens.to_vec() }
    }

    /// The tokens of all processes.
    pub(crate) fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// `None` when the caller sent none, and so wants none back.
    pub(crate) fn read(headers: &HeaderMap) -> Result<Option<RegistryPath>> {
        let Some(value) = headers.get_all(PATH).iter().next_back() else { return Ok(None) };
        let value: Value = serde_json::from_slice(value.as_bytes()).map_err(|error| unreadable(error.to_string()))?;
        let index = match &value["Index"] {
            Value::Null => Some(0),
            index => index.as_u64().and_then(|index| usize::try_from(index).ok()),
        };
        let tokens = match &value["PathSegments"] {
            Value::Null => Some(vec![]),
            segments => segments.as_array().map(|segments| segments.iter().map(token).collect()),
        };
        match (index, tokens) {
            (Some(index), Some(tokens)) if index < tokens.len().max(1) && tokens.len() < MAX_PATH_SEGMENTS => {
                Ok(Some(RegistryPath { index, tokens }))
            }
            (Some(_), Some(tokens)) => Err(unreadable(format!("its index does not fit its {} segments", tokens.len()))),
            _ => Err(unreadable("it has no index or no segments".to_owned())),
        }
    }

    /// As it has reached this process: with the token of this call at the sender's place, and ours after it.
    pub(crate) fn entered(mut self, callers: &str, own: String) -> RegistryPath {
        self.tokens.truncate(self.index);
        self.tokens.extend([callers.to_owned(), own]);
        self
    }

    /// As its sender gets it back when a process behind us has answered with these tokens.
    pub(crate) fn answered(mut self, tokens: Vec<String>) -> RegistryPath {
        // Of a peer: it may be anything. The sender's own place must be there.
        if tokens.len() > self.index && tokens.len() <= MAX_PATH_SEGMENTS {
            self.tokens = tokens;
        }
        self
    }

    /// Adds the header.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        let segments: Vec<Value> = self.tokens.iter().map(|token| json!({ "token": token })).collect();
        let segments = if segments.is_empty() { Value::Null } else { Value::Array(segments) };
        // Other implementations want text that is a header value; a token that is not was never a token.
        if let Ok(value) = HeaderValue::from_str(&json!({ "Index": self.index, "PathSegments": segments }).to_string()) {
            headers.insert(PATH, value);
        }
    }
}

fn token(segment: &Value) -> String {
    segment["token"].as_str().unwrap_or_default().to_owned()
}

fn unreadable(reason: String) -> Error {
    Error::invalid("header \"path\"", format!("cannot be read: {reason}"), "send the path that came with the last answer, or none")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(PATH), HeaderValue::from_str(text).unwrap())])
    }
    fn written(path: &RegistryPath) -> String {
        let mut headers = HeaderMap::new();
        path.write(&mut headers);
        headers[PATH].to_str().unwrap().to_owned()
    }

    #[test]
    fn a_path_begins_grows_and_is_refreshed() {
        let empty = r#"{"Index":0,"PathSegments":null}"#;
        assert_eq!(written(&RegistryPath::onward(&[])), empty);
        let begun = RegistryPath::read(&header(empty)).unwrap().unwrap().entered("a", "b".into());
        assert_eq!(written(&begun), r#"{"Index":0,"PathSegments":[{"token":"a"},{"token":"b"}]}"#);
        let refreshed = RegistryPath::read(&header(&written(&begun))).unwrap().unwrap().entered("a2", "b2".into());
        assert_eq!(refreshed.tokens, ["a2", "b2"]);
        let onward = RegistryPath::onward(&["a".to_owned(), "b".to_owned()]);
        let onward = RegistryPath::read(&header(&written(&onward))).unwrap().unwrap().entered("b2", "c".into());
        assert_eq!(onward, RegistryPath { index: 1, tokens: vec!["a".into(), "b2".into(), "c".into()] });
        let answered = begun.answered(onward.tokens().to_vec());
        assert_eq!(answered, RegistryPath { index: 0, tokens: vec!["a".into(), "b2".into(), "c".into()] });
        assert_eq!(answered.answered(vec![]).tokens.len(), 3, "an answer without the sender's place is not passed on");
    }

    #[test]
    fn no_path_is_none_and_a_wrong_one_an_error() {
        assert_eq!(RegistryPath::read(&HeaderMap::new()), Ok(None));
        assert_eq!(RegistryPath::read(&header("{}")), Ok(Some(RegistryPath::default())));
        let long = written(&RegistryPath { index: 0, tokens: vec![String::new(); MAX_PATH_SEGMENTS] });
        for wrong in ["", "[", r#"{"Index":1}"#, r#"{"Index":-1}"#, r#"{"Index":1,"PathSegments":[{}]}"#, r#"{"PathSegments":7}"#, &long] {
            assert!(RegistryPath::read(&header(wrong)).is_err(), "{wrong}");
        }
    }
}
