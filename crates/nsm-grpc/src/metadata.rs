//! What travels in the headers of every call: the caller's token, and how long the caller waits.
//!
//! The registry's `path` header is in `registry_path`.

use http::{HeaderMap, HeaderValue};
use nsm_api::limits::MAX_TOKEN_BYTES;
use std::time::{Duration, SystemTime};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

const TOKEN: &str = "nsm-client-token";
const TOKEN_EXPIRES: &str = "nsm-client-token-expires";
const TIMEOUT: &str = "grpc-timeout";
/// Digits of a timeout on the wire.
const MAX_TIMEOUT: u128 = 99_999_999;

/// A token with its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CallToken {
    pub(crate) text: String,
    pub(crate) expires: SystemTime,
}

/// The token of the caller. Absent, repeated or unreadable is the same: the path then has none, and policy decides.
pub(crate) fn read_token(headers: &HeaderMap) -> Option<CallToken> {
    let text = only(headers, TOKEN).filter(|text| text.len() <= MAX_TOKEN_BYTES)?;
    let expires = OffsetDateTime::parse(only(headers, TOKEN_EXPIRES)?, &Rfc3339).ok()?;
    Some(CallToken { text: text.to_owned(), expires: expires.into() })
}

/// Adds the token. Returns whether both values can be written.
pub(crate) fn write_token(headers: &mut HeaderMap, token: &CallToken) -> bool {
    let expires = OffsetDateTime::from(token.expires).format(&Rfc3339).ok().and_then(|text| HeaderValue::from_str(&text).ok());
    let (Ok(text), Some(expires)) = (HeaderValue::from_str(&token.text), expires) else { return false };
    headers.insert(TOKEN, text);
    headers.insert(TOKEN_EXPIRES, expires);
    true
}

/// How long the caller waits, when it says so in a readable way.
pub(crate) fn read_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = only(headers, TIMEOUT)?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// Says how long we wait, in the finest unit that has room.
pub(crate) fn write_timeout(headers: &mut HeaderMap, timeout: Duration) {
    let (count, unit) = match (timeout.as_micros(), timeout.as_millis(), u128::from(timeout.as_secs())) {
        (micros, ..) if micros <= MAX_TIMEOUT => (micros, 'u'),
        (_, millis, _) if millis <= MAX_TIMEOUT => (millis, 'm'),
        (.., seconds) => (seconds.min(MAX_TIMEOUT), 'S'),
    };
    let value = HeaderValue::from_str(&format!("{count}{unit}")).expect("digits and a letter are a header value");
    headers.insert(TIMEOUT, value);
}

fn only<'a>(headers: &'a HeaderMap, key: &str) -> Option<&'a str> {
    let mut values = headers.get_all(key).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_and_a_doubtful_one_is_none() {
        let token = CallToken { text: "a.b.c".to_owned(), expires: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123) };
        let mut headers = HeaderMap::new();
        assert!(write_token(&mut headers, &token));
        assert_eq!(read_token(&headers), Some(token));
        headers.append(TOKEN, HeaderValue::from_static("second"));
        assert_eq!(read_token(&headers), None);
        headers.insert(TOKEN, HeaderValue::from_static("one"));
        headers.insert(TOKEN_EXPIRES, HeaderValue::from_static("2023-11-14T23:13:20.5+01:00"));
        let expires = read_token(&headers).unwrap().expires;
        assert_eq!(expires, SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_500));
        headers.insert(TOKEN_EXPIRES, HeaderValue::from_static("tomorrow"));
        assert_eq!(read_token(&headers), None);
    }

    #[test]
    fn timeouts_survive_within_their_unit() {
        for (timeout, text) in [
            (Duration::from_micros(1), "1u"),
            (Duration::from_secs(15), "15000000u"),
            (Duration::from_secs(3600), "3600000m"),
            (Duration::from_secs(1 << 20), "1048576S"),
        ] {
            let mut headers = HeaderMap::new();
            write_timeout(&mut headers, timeout);
            assert_eq!(headers[TIMEOUT], text);
            assert_eq!(read_timeout(&headers), Some(timeout));
        }
        for bad in ["", "S", "1", "1s", "123456789S", "-1S", "1é", "é"] {
            let mut headers = HeaderMap::new();
            headers.insert(TIMEOUT, HeaderValue::from_bytes(bad.as_bytes()).unwrap());
            assert_eq!(read_timeout(&headers), None, "{bad}");
        }
    }
}
