//! What no honest process sends, whatever its version: refused wherever a default policy applies.
//!
//! The default policies alone let a caller write another subject into its own token, or an end that is not a number
//! and never comes.

use crate::{Verdict, facts::Facts, jwt::Jwt};
use nsm_api::{
    SpiffeId,
    limits::{MAX_PATH_SEGMENTS, MAX_TOKEN_BYTES},
};
use serde_json::Value;
use std::time::{Duration, UNIX_EPOCH};

/// The end of a token is cut to whole seconds; the end that its sender names beside it may not be.
const ROUNDING: Duration = Duration::from_secs(1);

/// Which segment's token the peer made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// It called us.
    Before,
    /// We called it.
    After,
}

/// Sizes; types of all claims; and of the token that the `peer` made: its subject is the peer, and its end is not
/// before the one that was named beside it.
pub fn honest(facts: &Facts<'_>, peer: Option<Peer>) -> Verdict {
    let segments = &facts.question.segments;
    if segments.len() > MAX_PATH_SEGMENTS {
        return Err(format!("the path has {} segments, the limit is {MAX_PATH_SEGMENTS}", segments.len()));
    }
    let last = segments.len().saturating_sub(1);
    for (at, (segment, token)) in segments.iter().zip(&facts.tokens).enumerate() {
        if segment.token.len() > MAX_TOKEN_BYTES {
            return Err(format!("the token of segment {at} has {} bytes, the limit is {MAX_TOKEN_BYTES}", segment.token.len()));
        }
        if let Some(token) = token {
            well_typed(token, at < last, facts.now()).map_err(|what| format!("the token of segment {at} {what}"))?;
        }
    }
    let own = facts.question.index as usize;
    match peer {
        None => Ok(()),
        Some(Peer::Before) => own.checked_sub(1).map_or(Ok(()), |at| of_peer(facts, at)),
        Some(Peer::After) => of_peer(facts, own + 1),
    }
}

/// `audience`: somebody will look at it.
fn well_typed(token: &Jwt, audience: bool, now: f64) -> Verdict {
    let fail = |what: &str| Err(what.to_owned());
    if token.header.get("alg").and_then(Value::as_str) != Some("ES256") {
        return fail("is not signed by ES256");
    }
    if !token.claims.get("exp").is_some_and(Value::is_number) {
        return fail("has an end that is not a number");
    }
    if token.claims.get("nbf").is_some_and(|start| start.as_f64().is_none_or(|start| start > now)) {
        return fail("is not good yet");
    }
    if subject(token).is_none_or(|subject| SpiffeId::new(subject).is_err()) {
        return fail("has a subject that is no SPIFFE ID");
    }
    match token.claims.get("aud") {
        Some(Value::Array(names)) if matches!(names[..], [Value::String(_)]) => Ok(()),
        _ if !audience => Ok(()),
        _ => fail("is not made for exactly one process"),
    }
}

fn subject(token: &Jwt) -> Option<&str> {
    token.claims.get("sub").and_then(Value::as_str)
}

fn of_peer(facts: &Facts<'_>, at: usize) -> Verdict {
    let (Some(Some(token)), Some(segment)) = (facts.tokens.get(at), facts.question.segments.get(at)) else { return Ok(()) };
    let identity = facts.leaf.as_ref().and_then(|leaf| leaf.identity.as_deref());
    if identity.is_none() || subject(token) != identity {
        let (named, shown) = (subject(token).unwrap_or_default(), identity.unwrap_or("nobody"));
        return Err(format!("the token of segment {at} names {named:?}, but its sender showed the certificate of {shown}"));
    }
    let end = token.claims.get("exp").and_then(Value::as_f64).unwrap_or_default();
    let named = segment.expires.and_then(|named| named.checked_sub(ROUNDING)?.duration_since(UNIX_EPOCH).ok());
    if named.is_some_and(|named| named.as_secs_f64() > end) {
        return Err(format!("the token of segment {at} ends before its sender says"));
    }
    Ok(())
}
