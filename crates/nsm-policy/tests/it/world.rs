//! Identities and the tokens they sign.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use nsm_policy::{Hop, Question};
use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// A process with a certificate.
pub(crate) struct Identity {
    pub(crate) id: String,
    pub(crate) certificate: Vec<u8>,
    key: EncodingKey,
}

impl Identity {
    pub(crate) fn new(name: &str) -> Identity {
        let id = format!("spiffe://d/{name}");
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
        let certificate = params.self_signed(&key).unwrap().der().to_vec();
        Identity { id, certificate, key: EncodingKey::from_ec_der(key.serialized_der()) }
    }
    /// A token with these claims, whatever they are.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &self.key).unwrap()
    }
    /// As honest processes make it.
    pub(crate) fn token(&self, audience: &Identity) -> String {
        self.sign(&json!({"sub": self.id, "aud": [audience.id], "exp": seconds(SystemTime::now()) + 600}))
    }
}

pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A question about a path of these tokens.
pub(crate) fn question<'a>(index: u32, tokens: &'a [String], certificate: Option<&'a [u8]>) -> Question<'a> {
    let segments = tokens.iter().map(|token| Hop { name: "n", id: "i", token, ..Hop::default() }).collect();
    Question { index, segments, certificate, now: SystemTime::now(), resource: None, monitored: None }
}
