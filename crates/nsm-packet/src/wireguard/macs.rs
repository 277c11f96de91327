//! The two codes at the end of a handshake message: one that any sender who knows the public key can make, and one that
//! proves to a receiver under load that the sender can be reached at its address.

use super::{
    message::{COOKIE_REPLY, COOKIE_REPLY_BYTES, MAC_BYTES, u32_at},
    timing::COOKIE_LIFE,
};
use crate::keys::{PublicKey, random};
use blake2::{
    Blake2s256, Blake2sMac, Digest,
    digest::{KeyInit, Mac, consts::U16},
};
use chacha20poly1305::{XChaCha20Poly1305, aead::AeadInOut};
use nsm_api::Result;
use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};
use zeroize::Zeroizing;

type Code = [u8; MAC_BYTES];
const NONCE: std::ops::Range<usize> = 8..32;
const SEALED: std::ops::Range<usize> = 32..48;
const SEAL_TAG: std::ops::Range<usize> = 48..64;

fn hash(label: &[u8; 8], key: &PublicKey) -> [u8; 32] {
    Blake2s256::new().chain_update(label).chain_update(key.bytes()).finalize().into()
}

fn code(key: &[u8], parts: &[&[u8]]) -> Code {
    let mut mac = Blake2sMac::<U16>::new_from_slice(key).expect("the keys used here have 16 or 32 bytes");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn equal(a: &Code, b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// Whether the sender of a handshake message knows the public key of this device.
pub(crate) struct Gate {
    mac1_key: [u8; 32],
    cookie_key: [u8; 32],
}

impl Gate {
    pub(crate) fn new(own: &PublicKey) -> Gate {
        Gate { mac1_key: hash(b"mac1----", own), cookie_key: hash(b"cookie--", own) }
    }
    pub(crate) fn mac1_fits(&self, message: &[u8]) -> bool {
        message.len().checked_sub(2 * MAC_BYTES).is_some_and(|end| {
            let (covered, codes) = message.split_at(end);
            equal(&code(&self.mac1_key, &[covered]), &codes[..MAC_BYTES])
        })
    }
    /// What a sender who did not prove its address is told instead of an answer.
    pub(crate) fn cookie_reply(&self, message: &[u8], cookie: &Code) -> Result<[u8; COOKIE_REPLY_BYTES]> {
        let mut reply = [0; COOKIE_REPLY_BYTES];
        reply[0] = COOKIE_REPLY;
        reply[4..8].copy_from_slice(&message[4..8]);
        random(&mut reply[NONCE])?;
        reply[SEALED].copy_from_slice(cookie);
        let nonce: [u8; 24] = reply[NONCE].try_into().expect("the range has 24 bytes");
        let mac1 = &message[message.len() - 2 * MAC_BYTES..message.len() - MAC_BYTES];
        let tag = XChaCha20Poly1305::new(&self.cookie_key.into())
            .encrypt_inout_detached(&nonce.into(), mac1, (&mut reply[SEALED]).into())
            .expect("sixteen bytes are far from the longest the cipher takes");
        reply[SEAL_TAG].copy_from_slice(&tag);
        Ok(reply)
    }
}

/// Cookies for senders: a code over their address with a secret that changes.
pub(crate) struct Cookies {
    secret: Zeroizing<[u8; 32]>,
    made: Instant,
}

impl Cookies {
    pub(crate) fn new(now: Instant) -> Result<Cookies> {
        let mut secret = Zeroizing::new([0; 32]);
        random(secret.as_mut())?;
        Ok(Cookies { secret, made: now })
    }
    /// The cookie of a sender.
    pub(crate) fn of(&mut self, sender: SocketAddr, now: Instant) -> Result<Code> {
        if now.saturating_duration_since(self.made) >= COOKIE_LIFE {
            *self = Cookies::new(now)?;
        }
        let port = sender.port().to_be_bytes();
        Ok(match sender.ip() {
            IpAddr::V4(ip) => code(self.secret.as_ref(), &[&ip.octets(), &port]),
            IpAddr::V6(ip) => code(self.secret.as_ref(), &[&ip.octets(), &port]),
        })
    }
}

/// Whether a message carries the proof of its sender's address.
pub(crate) fn mac2_fits(message: &[u8], cookie: &Code) -> bool {
    message.len().checked_sub(MAC_BYTES).is_some_and(|end| {
        let (covered, mac2) = message.split_at(end);
        equal(&code(cookie, &[covered]), mac2)
    })
}

/// Puts the codes on our own messages.
pub(crate) struct Stamp {
    mac1_key: [u8; 32],
    cookie_key: [u8; 32],
    last_mac1: Option<Code>,
    cookie: Option<(Code, Instant)>,
}

impl Stamp {
    pub(crate) fn new(peer: &PublicKey) -> Stamp {
        Stamp { mac1_key: hash(b"mac1----", peer), cookie_key: hash(b"cookie--", peer), last_mac1: None, cookie: None }
    }
    /// Fills in both codes; the second only while the peer wants it.
    pub(crate) fn put(&mut self, message: &mut [u8], now: Instant) {
        let end = message.len() - 2 * MAC_BYTES;
        let (covered, codes) = message.split_at_mut(end);
        let mac1 = code(&self.mac1_key, &[covered]);
        codes[..MAC_BYTES].copy_from_slice(&mac1);
        self.last_mac1 = Some(mac1);
        if let Some((cookie, got)) = &self.cookie
            && now.saturating_duration_since(*got) < COOKIE_LIFE
        {
            let mac2 = code(cookie, &[covered, &mac1]);
            codes[MAC_BYTES..].copy_from_slice(&mac2);
        }
    }
    /// Takes a cookie for the last message that was sent. Whether it was authentic.
    pub(crate) fn take(&mut self, reply: &[u8], now: Instant) -> bool {
        let Ok(reply) = <&[u8; COOKIE_REPLY_BYTES]>::try_from(reply) else { return false };
        let Some(mac1) = self.last_mac1 else { return false };
        let mut cookie: Code = reply[SEALED].try_into().expect("the range has 16 bytes");
        let nonce: [u8; 24] = reply[NONCE].try_into().expect("the range has 24 bytes");
        let tag: Code = reply[SEAL_TAG].try_into().expect("the range has 16 bytes");
        let cipher = XChaCha20Poly1305::new(&self.cookie_key.into());
        let opened = cipher.decrypt_inout_detached(&nonce.into(), &mac1, cookie.as_mut_slice().into(), &tag.into());
        if opened.is_ok() {
            self.last_mac1 = None; // one message gets one cookie
            self.cookie = Some((cookie, now));
        }
        opened.is_ok()
    }
    /// Of which of our sessions a cookie reply speaks.
    pub(crate) fn receiver(reply: &[u8]) -> u32 {
        u32_at(reply, 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::PrivateKey;

    #[test]
    fn a_cookie_proves_an_address_for_two_minutes() {
        let key = PrivateKey::generate().unwrap().public().unwrap();
        let now = Instant::now();
        let (gate, mut cookies, mut stamp) = (Gate::new(&key), Cookies::new(now).unwrap(), Stamp::new(&key));
        let sender: SocketAddr = "192.0.2.1:51820".parse().unwrap();
        let mut message = [1u8; 148];
        message[116..].fill(0);
        stamp.put(&mut message, now);
        assert!(gate.mac1_fits(&message));
        let cookie = cookies.of(sender, now).unwrap();
        assert!(!mac2_fits(&message, &cookie));
        let reply = gate.cookie_reply(&message, &cookie).unwrap();
        let mut forged = reply;
        forged[40] ^= 1;
        assert!(!stamp.take(&forged, now));
        assert!(stamp.take(&reply, now) && !stamp.take(&reply, now), "a cookie answers one message");
        stamp.put(&mut message, now);
        assert!(gate.mac1_fits(&message) && mac2_fits(&message, &cookie));
        assert!(!mac2_fits(&message, &cookies.of("192.0.2.2:51820".parse().unwrap(), now).unwrap()));
        message[132..].fill(0);
        stamp.put(&mut message, now + COOKIE_LIFE);
        assert!(!mac2_fits(&message, &cookie), "an old cookie is not sent any more");
        assert_ne!(cookies.of(sender, now + COOKIE_LIFE).unwrap(), cookie);
    }

    #[test]
    fn a_message_for_another_key_does_not_pass_the_gate() {
        let keys = [1, 2].map(|byte| PrivateKey::new([byte; 32]).unwrap().public().unwrap());
        let mut message = [0u8; 92];
        Stamp::new(&keys[0]).put(&mut message, Instant::now());
        assert!(Gate::new(&keys[0]).mac1_fits(&message) && !Gate::new(&keys[1]).mac1_fits(&message));
        assert!(!Gate::new(&keys[0]).mac1_fits(&message[..20]));
    }
}
