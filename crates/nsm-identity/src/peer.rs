//! What a certificate says about its holder.

use crate::jwt;
use nsm_api::SpiffeId;
use rustls::pki_types::CertificateDer;
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use x509_parser::{
    extensions::GeneralName,
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY},
    prelude::{FromDer, X509Certificate},
};

/// Longest life of a token that a peer brings. The longest that any role of any version makes by default.
pub const MAX_TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);

/// The other side of a TLS connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub id: SpiffeId,
    /// When its certificate ends.
    pub not_after: SystemTime,
    /// That certificate, as DER.
    pub certificate: Arc<[u8]>,
}

impl Peer {
    /// Until when a token that this peer brings is good, at `now`: as it says, but not longer than the token itself
    /// (which is long over when that cannot be read), than the certificate that the peer shows, and than
    /// [`MAX_TOKEN_LIFE`].
    pub fn token_end(&self, token: &str, said: SystemTime, now: SystemTime) -> SystemTime {
        let own = jwt::end(token).unwrap_or(UNIX_EPOCH);
        let longest = now.checked_add(MAX_TOKEN_LIFE).unwrap_or(now);
        said.min(own).min(self.not_after).min(longest)
    }
}

/// Reads a verified certificate chain, leaf first. `None` when the leaf does not name exactly one SPIFFE ID.
pub fn peer(certificates: &[CertificateDer<'_>]) -> Option<Peer> {
    let der = certificates.first()?;
    let leaf = parse(der)?;
    Some(Peer { id: spiffe_id(&leaf)?, not_after: not_after(&leaf), certificate: der.as_ref().into() })
}

pub(crate) fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(certificate).ok().filter(|(rest, _)| rest.is_empty()).map(|(_, parsed)| parsed)
}

/// The first of several certificates, one after the other, and what comes after it.
pub(crate) fn parse_first<'a>(chain: &'a CertificateDer<'_>) -> Option<(X509Certificate<'a>, &'a [u8])> {
    X509Certificate::from_der(chain).ok().map(|(rest, leaf)| (leaf, rest))
}

pub(crate) fn not_after(certificate: &X509Certificate<'_>) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(certificate.validity().not_after.timestamp().try_into().unwrap_or(0))
}

/// The only URI name of the certificate, if it is a SPIFFE ID.
pub(crate) fn spiffe_id(certificate: &X509Certificate<'_>) -> Option<SpiffeId> {
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = uris.next().filter(|uri| spiffe::SpiffeId::new(uri).is_ok())?;
    if uris.next().is_some() { None } else { SpiffeId::new(uri).ok() }
}

/// Whether the key of the certificate is on the curve P-256, the only one that ES256 tokens know.
pub(crate) fn is_p256(certificate: &X509Certificate<'_>) -> bool {
    let algorithm = &certificate.public_key().algorithm;
    let curve = algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_EC_P256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use rcgen::{CertificateParams, KeyPair, SanType};

    /// reliability.md 2.2: outlive one's credentials.
    #[test]
    fn a_token_ends_with_the_first_of_all_that_bound_it() {
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
        let day = MAX_TOKEN_LIFE.as_secs();
        let peer = |not_after| Peer { id: SpiffeId::new("spiffe://d/a").unwrap(), not_after: at(not_after), certificate: Arc::default() };
        let token = |claims: &str| format!("e30.{}.AA", URL_SAFE_NO_PAD.encode(claims));
        for (what, not_after, claims, said, end) in [
            ("as said", 9_000_000, r#"{"exp":2000}"#, 1500, 1500),
            ("said before now", 9_000_000, r#"{"exp":2000}"#, 10, 10),
            ("far future", 9_000_000, r#"{"exp":2000}"#, 8_000_000_000, 2000),
            ("certificate first", 1700, r#"{"exp":2000}"#, 1900, 1700),
            ("longer than anybody", 9_000_000, r#"{"exp":5000000}"#, 5_000_000, 1000 + day),
            ("with fraction", 9_000_000, r#"{"exp":1500.75}"#, 1900, 1500),
            ("no end", 9_000_000, r#"{"sub":"a"}"#, 1500, 0),
            ("end as text", 9_000_000, r#"{"exp":"2000"}"#, 1500, 0),
            ("negative end", 9_000_000, r#"{"exp":-5}"#, 1500, 0),
            ("end beyond any clock", 9_000_000, r#"{"exp":1e300}"#, 1500, 1500),
            ("no token", 9_000_000, "nonsense", 1500, 0),
        ] {
            assert_eq!(peer(not_after).token_end(&token(claims), at(said), at(1000)), at(end), "{what}");
        }
        assert_eq!(peer(9).token_end("", at(5), at(1)), UNIX_EPOCH);
    }

    #[test]
    fn a_peer_has_exactly_one_spiffe_id() {
        let with = |uris: &[&str]| {
            let mut params = CertificateParams::new(vec!["host.example".to_owned()]).unwrap();
            params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
            params.not_after = rcgen::date_time_ymd(2040, 1, 1);
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            peer(&[certificate.der().clone()])
        };
        let one = with(&["spiffe://a/b"]).unwrap();
        assert_eq!((one.id.as_str(), one.not_after), ("spiffe://a/b", UNIX_EPOCH + Duration::from_secs(2_208_988_800)));
        for bad in [&[][..], &["spiffe://a/b", "spiffe://a/c"], &["https://a/b"], &["spiffe://a/b", "https://a/b"], &["spiffe://A b/"]] {
            assert_eq!(with(bad), None, "{bad:?}");
        }
        assert_eq!(peer(&[]), None);
        assert_eq!(peer(&[CertificateDer::from(vec![1, 2, 3])]), None);
    }
}
