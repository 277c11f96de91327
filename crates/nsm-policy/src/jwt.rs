//! Tokens as policies see them: taken apart without trust, and verified with the certificate of a peer.
//!
//! This is security code. What it cannot read it answers with `None`, never with a guess.

use base64::{Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use nsm_api::limits::MAX_TOKEN_BYTES;
use serde_json::{Map, Value};
use x509_parser::{
    extensions::GeneralName,
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY},
    pem::parse_x509_pem,
    prelude::{FromDer, SubjectPublicKeyInfo, X509Certificate},
};

/// Characters in a line of PEM.
const PEM_LINE: usize = 64;

/// A token taken apart. Nothing is said about its signature.
#[derive(Clone, Debug, PartialEq)]
pub struct Jwt {
    /// Its header.
    pub header: Map<String, Value>,
    /// Its claims.
    pub claims: Map<String, Value>,
    /// The bytes of its signature.
    pub signature: Vec<u8>,
}

/// Takes a token apart: three parts, of which the first two are JSON objects. `None` also for nested and encrypted
/// tokens, and beyond [`MAX_TOKEN_BYTES`].
pub fn decode(token: &str) -> Option<Jwt> {
    if token.len() > MAX_TOKEN_BYTES {
        return None;
    }
    let mut parts = token.split('.');
    let (header, claims, signature, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else { return None };
    let header = object(header)?;
    let nested = header.get("cty").and_then(Value::as_str).is_some_and(|kind| kind.eq_ignore_ascii_case("jwt"));
    if nested || header.contains_key("enc") {
        return None;
    }
    Some(Jwt { header, claims: object(claims)?, signature: URL_SAFE_NO_PAD.decode(signature).ok()? })
}

/// The process that a token names as its maker. Nothing is said about its signature.
pub fn subject(token: &str) -> Option<String> {
    Some(decode(token)?.claims.get("sub")?.as_str()?.to_owned())
}

fn object(part: &str) -> Option<Map<String, Value>> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// A certificate as policies need it.
pub struct Leaf {
    /// Its only URI name.
    pub identity: Option<String>,
    /// Whether its key is on the curve P-256, so that it can have signed a token at all.
    pub p256: bool,
    key: DecodingKey,
}

impl Leaf {
    /// Reads the DER of one certificate.
    pub fn from_der(der: &[u8]) -> Option<Leaf> {
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        Some(Leaf { identity: only_uri(&certificate), p256: is_p256(certificate.public_key()), key: key(certificate.public_key()) })
    }
    /// Reads the first block of a PEM text: a certificate, or a public key alone.
    pub fn from_pem(text: &str) -> Option<Leaf> {
        let (_, block) = parse_x509_pem(text.as_bytes()).ok()?;
        match block.label.as_str() {
            "CERTIFICATE" => Leaf::from_der(&block.contents),
            "PUBLIC KEY" => {
                let (rest, info) = SubjectPublicKeyInfo::from_der(&block.contents).ok()?;
                rest.is_empty().then(|| Leaf { identity: None, p256: is_p256(&info), key: key(&info) })
            }
            _ => None,
        }
    }
    /// Whether the holder of this certificate's key signed the token by ES256. `None` when it is no token.
    pub fn signed(&self, token: &str) -> Option<bool> {
        let jwt = decode(token)?;
        Some(self.signed_decoded(token, &jwt))
    }
    /// The same for a token that has been taken apart already.
    pub(crate) fn signed_decoded(&self, token: &str, jwt: &Jwt) -> bool {
        if jwt.header.get("alg").and_then(Value::as_str) != Some("ES256") {
            return false;
        }
        let Some((message, signature)) = token.rsplit_once('.') else { return false };
        // Keys of other kinds and curves are not points of P-256, and verify nothing.
        crypto::verify(signature, message.as_bytes(), &self.key, Algorithm::ES256).unwrap_or(false)
    }
}

fn key(info: &SubjectPublicKeyInfo<'_>) -> DecodingKey {
    DecodingKey::from_ec_der(&info.subject_public_key.data)
}

fn is_p256(info: &SubjectPublicKeyInfo<'_>) -> bool {
    let curve = info.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    info.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_EC_P256)
}

fn only_uri(certificate: &X509Certificate<'_>) -> Option<String> {
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    let uri = uris.next()?;
    uris.next().is_none().then_some(uri)
}

/// A certificate as policy files see it.
pub(crate) fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(PEM_LINE) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}
