//! What a certificate says about its holder.

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

/// Reads a verified certificate chain, leaf first. `None` when the leaf does not name exactly one SPIFFE ID.
pub fn peer(certificates: &[CertificateDer<'_>]) -> Option<Peer> {
    let der = certificates.first()?;
    let leaf = parse(der)?;
    Some(Peer { id: spiffe_id(&leaf)?, not_after: not_after(&leaf), certificate: der.as_ref().into() })
}

pub(crate) fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(certificate).ok().filter(|(rest, _)| rest.is_empty()).map(|(_, parsed)| parsed)
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
    use rcgen::{CertificateParams, KeyPair, SanType};

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
