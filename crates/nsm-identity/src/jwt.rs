//! JWT-SVIDs of the authority: signed, published as a JWK set, validated.

use crate::peer;
use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use nsm_api::{Error, Result, SpiffeId};
use rcgen::KeyPair;
use serde_json::{Map, Value, json};
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use x509_parser::prelude::X509Certificate;

/// How long a JWT-SVID lives; workloads ask for one when they need it.
const LIFE: Duration = Duration::from_secs(300);
/// The year 9999 and a bit.
const FAR: Duration = Duration::from_secs(253_402_300_800);

/// The ES256 key of a trust domain.
pub(crate) struct JwtKey {
    header: Header,
    sign: EncodingKey,
    verify: DecodingKey,
    jwks: Vec<u8>,
}

impl JwtKey {
    /// From a P-256 key pair.
    pub(crate) fn new(key: &KeyPair) -> Result<JwtKey> {
        // An uncompressed point: 0x04, then 32 bytes of x and 32 of y.
        let point = key.public_key_raw();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..65]));
        let kid = URL_SAFE_NO_PAD.encode(&digest(&SHA256, point).as_ref()[..12]);
        let jwks = json!({"keys": [{"kty": "EC", "crv": "P-256", "use": "jwt-svid", "alg": "ES256", "kid": &kid, "x": &x, "y": &y}]});
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(kid);
        let verify = DecodingKey::from_ec_components(&x, &y).map_err(|error| Error::internal("JWT key", error.to_string()))?;
        Ok(JwtKey { header, sign: EncodingKey::from_ec_der(key.serialized_der()), verify, jwks: jwks.to_string().into_bytes() })
    }
    /// The public half as a JWK set document.
    pub(crate) fn jwks(&self) -> &[u8] {
        &self.jwks
    }
    /// A JWT-SVID for the given audiences.
    pub(crate) fn sign(&self, id: &SpiffeId, audiences: &[String]) -> Result<String> {
        let now = SystemTime::now();
        let claims = json!({"sub": id, "aud": audiences, "iat": unix_seconds(now), "exp": unix_seconds(now + LIFE)});
        jsonwebtoken::encode(&self.header, &claims, &self.sign).map_err(|error| Error::internal("JWT-SVID", error.to_string()))
    }
    /// Whose token it is, and all its claims; the error says what is wrong with it.
    pub(crate) fn validate(&self, token: &str, audience: &str) -> Result<(String, Map<String, Value>), String> {
        let mut rules = Validation::new(Algorithm::ES256);
        rules.leeway = 0;
        rules.set_audience(&[audience]);
        rules.set_required_spec_claims(&["exp", "sub", "aud"]);
        let claims = jsonwebtoken::decode::<Map<String, Value>>(token, &self.verify, &rules).map_err(|error| error.to_string())?.claims;
        match claims.get("sub").and_then(Value::as_str) {
            Some(subject) => Ok((subject.to_owned(), claims)),
            None => Err("its subject is not text".to_owned()),
        }
    }
}

/// Whole seconds since 1970; what lies before counts as 0.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The end that a token names, in whole seconds. Nothing is said about its signature. `None` when it names none; one
/// that no clock can show is far enough.
pub(crate) fn end(token: &str) -> Option<SystemTime> {
    let claims = token.split('.').nth(1)?;
    let claims: Map<String, Value> = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    let end = claims.get("exp")?.as_f64().filter(|end| *end >= 0.0)?;
    UNIX_EPOCH.checked_add(Duration::from_secs(end as u64)).or_else(|| UNIX_EPOCH.checked_add(FAR))
}

/// What an SVID needs to sign the tokens of this process.
pub(crate) struct Signer {
    pub(crate) id: SpiffeId,
    pub(crate) not_after: SystemTime,
    pub(crate) certificate: Arc<[u8]>,
    key: EncodingKey,
}

impl Signer {
    /// From the leaf certificate and its PKCS#8 key. Refuses keys that ES256 does not know.
    pub(crate) fn new(leaf: &[u8], key: &[u8]) -> Result<Signer> {
        let certificate = leaf.into();
        let der = leaf.into();
        let leaf = peer::parse(&der).ok_or_else(|| Error::internal("own SVID", "its certificate does not parse"))?;
        let id = peer::spiffe_id(&leaf).ok_or_else(|| Error::internal("own SVID", "it does not name exactly one SPIFFE ID"))?;
        usable(&leaf, id.as_str())?;
        Ok(Signer { id, not_after: peer::not_after(&leaf), certificate, key: EncodingKey::from_ec_der(key) })
    }
    /// An ES256 token that ends at `expires` and is meant for `audience` only.
    pub(crate) fn sign(&self, audience: Option<&SpiffeId>, expires: SystemTime) -> Result<String> {
        let mut claims = json!({"sub": self.id, "exp": unix_seconds(expires)});
        if let Some(audience) = audience {
            // Always a list of one: policies of peers iterate over it.
            claims["aud"] = json!([audience]);
        }
        let signed = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.key);
        signed.map_err(|error| Error::internal(format!("token of {}", self.id), error.to_string()))
    }
}

/// Whether the key of this certificate can sign tokens: the mesh knows ES256 only.
pub(crate) fn usable(leaf: &X509Certificate<'_>, id: &str) -> Result<()> {
    if peer::is_p256(leaf) {
        return Ok(());
    }
    let fix = "let the authority issue P-256 keys (in SPIRE: ec-p256, its default)";
    Err(Error::invalid(format!("own SVID {id}"), "its key is not on the curve P-256, so it cannot sign tokens", fix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, testing};
    use rcgen::{CertificateParams, PKCS_ECDSA_P384_SHA384, SanType};

    #[test]
    fn a_jwt_svid_is_for_its_audience_and_of_its_authority() {
        let authority = Authority::new("example.org").unwrap();
        let id = authority.id(&["a"]).unwrap();
        let token = authority.jwt().sign(&id, &["one".to_owned(), "two".to_owned()]).unwrap();
        let (subject, claims) = authority.jwt().validate(&token, "two").unwrap();
        assert_eq!(subject, id.as_str());
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 300);
        assert!(authority.jwt().validate(&token, "three").is_err());
        assert!(Authority::new("example.org").unwrap().jwt().validate(&token, "one").is_err());
        let set: jsonwebtoken::jwk::JwkSet = serde_json::from_slice(authority.jwt().jwks()).unwrap();
        let kid = jsonwebtoken::decode_header(&token).unwrap().kid.unwrap();
        DecodingKey::from_jwk(set.find(&kid).unwrap()).unwrap();
    }

    #[test]
    fn a_token_has_exactly_the_claims_of_the_wire() {
        let authority = Authority::new("example.org").unwrap();
        let svid = authority.issue(&authority.id(&["a"]).unwrap()).unwrap();
        let signer = Signer::new(&svid.certificate, svid.key.secret_pkcs8_der()).unwrap();
        let expires = UNIX_EPOCH + Duration::from_millis(4_102_444_800_900);
        let bob = SpiffeId::new("spiffe://other.org/b").unwrap();
        let (header, claims) = testing::verify(&signer.sign(Some(&bob), expires).unwrap(), &svid.certificate);
        assert_eq!(header, json!({"typ": "JWT", "alg": "ES256"}));
        assert_eq!(claims, json!({"sub": "spiffe://example.org/a", "aud": ["spiffe://other.org/b"], "exp": 4_102_444_800_u64}));
        let (_, claims) = testing::verify(&signer.sign(None, expires).unwrap(), &svid.certificate);
        assert_eq!(claims, json!({"sub": "spiffe://example.org/a", "exp": 4_102_444_800_u64}));
    }

    #[test]
    fn keys_that_cannot_sign_tokens_are_refused() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.subject_alt_names = vec![SanType::URI("spiffe://example.org/a".try_into().unwrap())];
        let certificate = params.self_signed(&key).unwrap();
        let error = Signer::new(certificate.der(), key.serialized_der()).err().unwrap();
        assert!(error.to_string().contains("P-256"), "{error}");
    }
}
