//! The seven default policies. Pure functions that decide exactly as their Rego sources do elsewhere, also for
//! claims of unexpected types: a test puts both before the same questions. What is refused beyond them is in
//! [`crate::strict`].

use crate::{Verdict, facts::Facts};
use serde_json::Value;

/// A default policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Builtin {
    /// Every token can be read.
    TokensValid,
    /// No token has ended.
    TokensExpired,
    /// Every token was made for the process that made the next one.
    TokensChained,
    /// The caller signed the token before ours.
    PrevTokenSigned,
    /// The process that was called signed the token after ours.
    NextTokenSigned,
    /// The name is free, or the caller's.
    ClientAllowed,
    /// The peer made one of the connections that it asks for.
    ServiceConnection,
}

impl Builtin {
    /// All of them.
    pub const ALL: [Builtin; 7] = [
        Builtin::TokensValid,
        Builtin::TokensExpired,
        Builtin::TokensChained,
        Builtin::PrevTokenSigned,
        Builtin::NextTokenSigned,
        Builtin::ClientAllowed,
        Builtin::ServiceConnection,
    ];

    /// The file that it stands for, which masks select and a real file of this name replaces.
    pub fn path(self) -> &'static str {
        match self {
            Builtin::TokensValid => "etc/nsm/opa/common/tokens_valid.rego",
            Builtin::TokensExpired => "etc/nsm/opa/common/tokens_expired.rego",
            Builtin::TokensChained => "etc/nsm/opa/common/tokens_chained.rego",
            Builtin::PrevTokenSigned => "etc/nsm/opa/server/prev_token_signed.rego",
            Builtin::NextTokenSigned => "etc/nsm/opa/client/next_token_signed.rego",
            Builtin::ClientAllowed => "etc/nsm/opa/registry/client_allowed.rego",
            Builtin::ServiceConnection => "etc/nsm/opa/monitor/service_connection.rego",
        }
    }

    /// Its decision.
    pub fn decide(self, facts: &Facts<'_>) -> Verdict {
        match self {
            Builtin::TokensValid => tokens_valid(facts),
            Builtin::TokensExpired => tokens_expired(facts),
            Builtin::TokensChained => tokens_chained(facts),
            Builtin::PrevTokenSigned => prev_token_signed(facts),
            Builtin::NextTokenSigned => next_token_signed(facts),
            Builtin::ClientAllowed => client_allowed(facts),
            Builtin::ServiceConnection => service_connection(facts),
        }
    }
}

/// A path without segments is absent from the input of a policy file, and nothing holds of what is absent.
fn has_segments(facts: &Facts<'_>) -> Verdict {
    if facts.tokens.is_empty() { Err("the path has no segments".to_owned()) } else { Ok(()) }
}

/// There are segments, and each has a readable token.
pub fn tokens_valid(facts: &Facts<'_>) -> Verdict {
    has_segments(facts)?;
    match facts.tokens.iter().position(Option::is_none) {
        Some(at) => Err(unreadable(at)),
        None => Ok(()),
    }
}

/// There are segments, and now is before the end of each token.
pub fn tokens_expired(facts: &Facts<'_>) -> Verdict {
    has_segments(facts)?;
    let now = facts.now();
    for (at, token) in facts.tokens.iter().enumerate() {
        let token = token.as_ref().ok_or_else(|| unreadable(at))?;
        match token.claims.get("exp") {
            Some(Value::Number(end)) if end.as_f64().is_some_and(|end| now < end) => {}
            // By the order of types in Rego, where a number is less than any text or collection.
            Some(Value::String(_) | Value::Array(_) | Value::Object(_)) => {}
            Some(Value::Number(end)) => {
                let ago = end.as_f64().map_or(0.0, |end| now - end);
                return Err(format!("the token of segment {at} ended {ago:.1} s ago"));
            }
            _ => return Err(format!("the token of segment {at} has no end")),
        }
    }
    Ok(())
}

/// The audience of every token but the last is the subject of the next.
pub fn tokens_chained(facts: &Facts<'_>) -> Verdict {
    has_segments(facts)?;
    for (at, pair) in facts.tokens.windows(2).enumerate() {
        let [Some(token), Some(next)] = pair else { return Err(unreadable(if pair[0].is_none() { at } else { at + 1 })) };
        // Several audiences of which only some are the subject are contradictory there, so refused.
        let chained = next.claims.get("sub").is_some_and(|subject| match token.claims.get("aud") {
            Some(Value::Array(audiences)) => all(audiences.iter(), subject),
            Some(Value::Object(audiences)) => all(audiences.values(), subject),
            _ => false,
        });
        if !chained {
            return Err(format!("the token of segment {at} was not made for the process of segment {}", at + 1));
        }
    }
    Ok(())
}

fn all<'a>(mut audiences: impl ExactSizeIterator<Item = &'a Value>, subject: &Value) -> bool {
    audiences.len() > 0 && audiences.all(|audience| same(audience, subject))
}

/// Equal as in Rego: numbers by value, however they are written.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

/// The peer signed the token before ours.
pub fn prev_token_signed(facts: &Facts<'_>) -> Verdict {
    let Some(previous) = facts.question.index.checked_sub(1) else { return Err("nobody stands before us in the path".to_owned()) };
    signed(facts, previous as usize, "the caller")
}

/// The peer signed the token after ours.
pub fn next_token_signed(facts: &Facts<'_>) -> Verdict {
    signed(facts, facts.question.index as usize + 1, "the process that was called")
}

fn signed(facts: &Facts<'_>, segment: usize, who: &str) -> Verdict {
    if facts.signed_by_peer(segment) {
        return Ok(());
    }
    Err(match (&facts.leaf, facts.tokens.get(segment)) {
        (_, None) => format!("the path has no segment {segment}"),
        (None, _) => format!("{who} showed no certificate"),
        (Some(leaf), _) if !leaf.p256 => {
            format!("the certificate that {who} showed has a key that is not on the curve P-256, so it cannot sign tokens")
        }
        (Some(_), Some(None)) => unreadable(segment),
        (Some(_), Some(Some(_))) => format!("the token of segment {segment} is not signed with the certificate that {who} showed"),
    })
}

/// The name is not registered, or by the claimant.
pub fn client_allowed(facts: &Facts<'_>) -> Verdict {
    let Some(resource) = &facts.question.resource else { return Err("it is about no registration".to_owned()) };
    match resource.registered.map(<[String]>::first) {
        None => Ok(()),
        Some(Some(owner)) if owner == resource.claimant => Ok(()),
        Some(owner) => {
            let owner = owner.map_or("nobody known", String::as_str);
            Err(format!("{:?} belongs to {owner}, not to {:?}", resource.name, resource.claimant))
        }
    }
}

/// One of the ids that are asked for is the peer's.
pub fn service_connection(facts: &Facts<'_>) -> Verdict {
    let Some(monitored) = &facts.question.monitored else { return Err("it is about no monitor".to_owned()) };
    if monitored.asked.iter().any(|id| monitored.own.contains(id)) {
        return Ok(());
    }
    Err(format!("{:?} made none of these connections here", monitored.peer))
}

fn unreadable(segment: usize) -> String {
    format!("segment {segment} has no readable token")
}
