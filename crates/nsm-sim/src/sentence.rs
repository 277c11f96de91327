//! Sentences of faults and scripts, word by word.

use nsm_api::{Error, Result};
use std::time::Duration;

/// Longest time that a sentence may name.
const MAX_SECONDS: f64 = 1_000_000.0;

/// What is left of a sentence.
pub(crate) struct Words<'a> {
    whole: &'a str,
    left: &'a str,
}

impl<'a> Words<'a> {
    pub(crate) fn of(whole: &'a str) -> Words<'a> {
        Words { whole, left: whole.trim() }
    }
    fn bad(&self, reason: impl Into<String>, fix: &str) -> Error {
        Error::invalid(format!("sentence {:?}", self.whole), reason, fix)
    }
    /// The first word is none of those that are known here.
    pub(crate) fn unknown(&self, known: &str) -> Error {
        self.bad("does not begin with a known word", &format!("begin with one of {known}"))
    }
    pub(crate) fn is_over(&self) -> bool {
        self.left.is_empty()
    }
    /// All that is left.
    pub(crate) fn rest(self) -> &'a str {
        self.left
    }
    pub(crate) fn word(&mut self) -> Result<&'a str> {
        let (word, left) = self.left.split_once(char::is_whitespace).unwrap_or((self.left, ""));
        if word.is_empty() {
            return Err(self.bad("ends too early", "say the whole sentence"));
        }
        self.left = left.trim_start();
        Ok(word)
    }
    pub(crate) fn name(&mut self) -> Result<String> {
        self.word().map(str::to_owned)
    }
    /// Whether this word comes next, which is then read.
    pub(crate) fn take(&mut self, wanted: &str) -> bool {
        let found = self.left.split_whitespace().next() == Some(wanted);
        if found {
            self.left = self.left[wanted.len()..].trim_start();
        }
        found
    }
    pub(crate) fn expect(&mut self, wanted: &str) -> Result<()> {
        if self.take(wanted) {
            return Ok(());
        }
        let reason = format!("has {:?} where {wanted:?} belongs", self.left);
        Err(self.bad(reason, "say it as the documentation does"))
    }
    pub(crate) fn number<T: std::str::FromStr>(&mut self) -> Result<T> {
        let word = self.word()?;
        word.parse().map_err(|_| self.bad(format!("has {word:?} where a number belongs"), "say a number"))
    }
    /// As `3s` or `0.250s`.
    pub(crate) fn time(&mut self) -> Result<Duration> {
        let word = self.word()?;
        let seconds = word.strip_suffix('s').and_then(|number| number.parse::<f64>().ok());
        match seconds.filter(|seconds| (0.0..=MAX_SECONDS).contains(seconds)) {
            Some(seconds) => Ok(Duration::from_millis((seconds * 1000.0).round() as u64)),
            None => Err(self.bad(format!("has {word:?} where a time belongs"), "say it in seconds, as 3s or 0.250s")),
        }
    }
    /// `for 3s`.
    pub(crate) fn lasting(&mut self) -> Result<Duration> {
        self.expect("for")?;
        self.time()
    }
    pub(crate) fn end(&self) -> Result<()> {
        if self.is_over() {
            return Ok(());
        }
        Err(self.bad(format!("goes on with {:?}, which has no meaning", self.left), "leave that out"))
    }
}
