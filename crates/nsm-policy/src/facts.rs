//! A question with its tokens and its certificate taken apart once, however many policies look at them.

use crate::{
    jwt::{self, Jwt, Leaf},
    question::Question,
};
use std::time::UNIX_EPOCH;

/// What policies judge.
pub struct Facts<'a> {
    /// As it was put.
    pub question: &'a Question<'a>,
    /// The token of each segment, where it can be read.
    pub tokens: Vec<Option<Jwt>>,
    /// The certificate of the peer, where there is one that can be read.
    pub leaf: Option<Leaf>,
}

impl<'a> Facts<'a> {
    /// Reads tokens and certificate.
    pub fn new(question: &'a Question<'a>) -> Facts<'a> {
        let tokens = question.segments.iter().map(|segment| jwt::decode(segment.token)).collect();
        Facts { question, tokens, leaf: question.certificate.and_then(Leaf::from_der) }
    }
    /// Seconds since 1970 by the asker's clock.
    pub(crate) fn now(&self) -> f64 {
        self.question.now.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
    }
    /// Whether the peer's key signed the token of this segment.
    pub(crate) fn signed_by_peer(&self, segment: usize) -> bool {
        let (Some(leaf), Some(Some(jwt))) = (&self.leaf, self.tokens.get(segment)) else { return false };
        leaf.signed_decoded(self.question.segments[segment].token, jwt)
    }
}
