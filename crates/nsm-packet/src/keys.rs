//! Keys of a WireGuard device: made, shown and forgotten. Private parts never appear in a log and are wiped when dropped.
//!
//! Not here: keys of one session; they never leave `wireguard`.

use aws_lc_rs::agreement;
use base64::{Engine, engine::general_purpose::STANDARD};
use nsm_api::{Error, Result};
use std::{fmt, str::FromStr};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Bytes of every key.
pub const KEY_BYTES: usize = 32;

/// The private key of a device.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; KEY_BYTES]);

impl PrivateKey {
    /// A new one, from the randomness of the operating system.
    pub fn generate() -> Result<PrivateKey> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        random(bytes.as_mut())?;
        PrivateKey::new(*bytes)
    }
    /// Checks a key that somebody else made: it may not be all zero, which means "no key" in every tool.
    pub fn new(bytes: [u8; KEY_BYTES]) -> Result<PrivateKey> {
        if bytes == [0; KEY_BYTES] {
            return Err(Error::invalid("a WireGuard private key", "it is all zero", "make one with `wg genkey`"));
        }
        Ok(PrivateKey(bytes))
    }
    /// What the other side has to know.
    pub fn public(&self) -> Result<PublicKey> {
        let key = agreement::PrivateKey::from_private_key(&agreement::X25519, &self.0).ok().and_then(|key| key.compute_public_key().ok());
        let key = key.ok_or_else(|| Error::internal("a WireGuard private key", "its public key cannot be computed"))?;
        let bytes = key.as_ref().try_into().map_err(|_| Error::internal("a WireGuard public key", "it has not 32 bytes"))?;
        Ok(PublicKey(bytes))
    }
    pub(crate) fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(hidden)")
    }
}

/// A secret that both sides know beforehand and that is mixed into every handshake.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; KEY_BYTES]);

impl PresharedKey {
    /// Any 32 bytes.
    pub fn new(bytes: [u8; KEY_BYTES]) -> PresharedKey {
        PresharedKey(bytes)
    }
    pub(crate) fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(hidden)")
    }
}

/// The public key of a device. Shown in base64, as WireGuard's tools and the mesh's API do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicKey([u8; KEY_BYTES]);

impl PublicKey {
    /// Checks a key that a peer sent: it may not be all zero.
    pub fn new(bytes: [u8; KEY_BYTES]) -> Result<PublicKey> {
        if bytes == [0; KEY_BYTES] {
            return Err(unusable("it is all zero"));
        }
        Ok(PublicKey(bytes))
    }
    /// The 32 bytes.
    pub fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

fn unusable(reason: &str) -> Error {
    Error::invalid("a WireGuard public key", reason, "send 32 bytes in base64, as `wg pubkey` prints them")
}

impl FromStr for PublicKey {
    type Err = Error;
    fn from_str(text: &str) -> Result<PublicKey> {
        let bytes = STANDARD.decode(text).map_err(|_| unusable("it is not base64"))?;
        PublicKey::new(bytes.try_into().map_err(|_| unusable("it has not 32 bytes"))?)
    }
}
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}
impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Fills `bytes` from the randomness of the operating system.
pub(crate) fn random(bytes: &mut [u8]) -> Result<()> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| Error::internal("the random number generator", "it gave nothing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7748, 6.1.
    #[test]
    fn the_public_key_is_that_of_the_standard() {
        let private = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
        let private = PrivateKey::new(STANDARD.decode(private).unwrap().try_into().unwrap()).unwrap();
        assert_eq!(private.public().unwrap().to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }

    #[test]
    fn secrets_are_not_shown() {
        let private = PrivateKey::new([7; 32]).unwrap();
        let shown = format!("{private:?} {:?}", PresharedKey::new([7; 32]));
        assert!(shown.contains("hidden") && !shown.contains('7'), "{shown}");
    }

    #[test]
    fn keys_that_cannot_be_are_refused() {
        assert!(PrivateKey::new([0; 32]).is_err());
        for text in ["", "AAAA", "not base64!", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="] {
            assert!(text.parse::<PublicKey>().is_err(), "{text}");
        }
    }
}
