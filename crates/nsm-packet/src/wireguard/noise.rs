//! The handshake: Noise_IKpsk2 by `snow`, with the primitives of aws-lc and BLAKE2s.
//!
//! The two codes at the end of each message are left zero here; see `macs`.

use super::message::{INITIATION, INITIATION_BYTES, RESPONSE, RESPONSE_BYTES, u32_at};
use crate::{
    keys::{KEY_BYTES, PresharedKey, PrivateKey, PublicKey, random},
    sys::WipedBox,
};
use aws_lc_rs::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    agreement,
};
use blake2::{Blake2s256, Digest};
use nsm_api::{Error, Result};
use snow::{
    HandshakeState,
    params::{CipherChoice, DHChoice, HashChoice, NoiseParams},
    resolvers::CryptoResolver,
    types::{Cipher, Dh, Hash, Random},
};
use zeroize::{Zeroize, Zeroizing};

const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
const PSK_PLACE: u8 = 2;
const HASH_BYTES: usize = 32;
const HASH_BLOCK_BYTES: usize = 64;
const AEAD_TAG_BYTES: usize = 16;
/// Bytes of the time stamp in a first message.
pub(crate) const TIMESTAMP_BYTES: usize = 12;
/// Where the Noise part of a first message is.
const INITIATION_NOISE: std::ops::Range<usize> = 8..116;
/// Where the Noise part of a second message is.
const RESPONSE_NOISE: std::ops::Range<usize> = 12..60;

/// A TAI64N label; later ones compare greater.
pub(crate) type Timestamp = [u8; TIMESTAMP_BYTES];

/// Who this device is and whom it talks to.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) private: PrivateKey,
    pub(crate) public: PublicKey,
    pub(crate) peer: PublicKey,
    pub(crate) psk: Option<PresharedKey>,
}

/// The keys of a session.
pub(crate) struct Secrets {
    pub(crate) send: Zeroizing<[u8; KEY_BYTES]>,
    pub(crate) receive: Zeroizing<[u8; KEY_BYTES]>,
}

/// A handshake that this side began and that waits for its answer.
pub(crate) struct Initiating {
    state: WipedBox<HandshakeState>,
}

/// A first message of the peer that was authentic.
pub(crate) struct Incoming {
    state: WipedBox<HandshakeState>,
    pub(crate) timestamp: Timestamp,
    /// The peer's index for the session.
    pub(crate) index: u32,
}

impl Identity {
    /// The identity of a device with this private key.
    pub(crate) fn new(private: PrivateKey, peer: PublicKey, psk: Option<PresharedKey>) -> Result<Identity> {
        let public = private.public()?;
        Ok(Identity { private, public, peer, psk })
    }
    fn handshake(&self, initiator: bool) -> std::result::Result<WipedBox<HandshakeState>, snow::Error> {
        let params: NoiseParams = PATTERN.parse()?;
        let no_psk = [0; KEY_BYTES];
        let psk = self.psk.as_ref().map_or(&no_psk, PresharedKey::expose);
        let builder = snow::Builder::with_resolver(params, Box::new(Resolver))
            .prologue(PROLOGUE)?
            .local_private_key(self.private.expose())?
            .psk(PSK_PLACE, psk)?;
        let state = if initiator { builder.remote_public_key(self.peer.bytes())?.build_initiator()? } else { builder.build_responder()? };
        Ok(WipedBox::new(state))
    }
    /// Begins a handshake: the first message, without its codes, and what waits for the second.
    pub(crate) fn initiate(&self, timestamp: &Timestamp, index: u32) -> Result<(Initiating, [u8; INITIATION_BYTES])> {
        let failed = |error| Error::internal("a WireGuard handshake", format!("its first message cannot be made: {error}"));
        let mut state = self.handshake(true).map_err(failed)?;
        let mut message = [0; INITIATION_BYTES];
        message[0] = INITIATION;
        message[4..8].copy_from_slice(&index.to_le_bytes());
        state.write_message(timestamp, &mut message[INITIATION_NOISE]).map_err(failed)?;
        Ok((Initiating { state }, message))
    }
    /// Reads a first message; nothing unless it is authentic and from the peer.
    pub(crate) fn read_initiation(&self, message: &[u8]) -> Option<Incoming> {
        let message: &[u8; INITIATION_BYTES] = message.try_into().ok()?;
        let mut state = self.handshake(false).ok()?;
        let mut timestamp = [0; TIMESTAMP_BYTES];
        let read = state.read_message(&message[INITIATION_NOISE], &mut timestamp).ok()?;
        let from_peer = state.get_remote_static() == Some(self.peer.bytes().as_slice());
        (read == TIMESTAMP_BYTES && from_peer).then(|| Incoming { state, timestamp, index: u32_at(message, 4) })
    }
}

impl Incoming {
    /// The second message, without its codes, and the keys of the session, which the initiator confirms by using them.
    pub(crate) fn respond(mut self, index: u32) -> Option<(Secrets, [u8; RESPONSE_BYTES])> {
        let mut message = [0; RESPONSE_BYTES];
        message[0] = RESPONSE;
        message[4..8].copy_from_slice(&index.to_le_bytes());
        message[8..12].copy_from_slice(&self.index.to_le_bytes());
        self.state.write_message(&[], &mut message[RESPONSE_NOISE]).ok()?;
        let (of_initiator, of_responder) = split(&mut self.state);
        Some((Secrets { send: of_responder, receive: of_initiator }, message))
    }
}

impl Initiating {
    /// Reads the second message; nothing, and nothing changed, unless it is authentic. Afterwards this is of no more use.
    pub(crate) fn finish(&mut self, message: &[u8]) -> Option<(Secrets, u32)> {
        let message: &[u8; RESPONSE_BYTES] = message.try_into().ok()?;
        let read = self.state.read_message(&message[RESPONSE_NOISE], &mut []).ok()?;
        let (of_initiator, of_responder) = split(&mut self.state);
        (read == 0).then(|| (Secrets { send: of_initiator, receive: of_responder }, u32_at(message, 4)))
    }
}

fn split(state: &mut HandshakeState) -> (Zeroizing<[u8; KEY_BYTES]>, Zeroizing<[u8; KEY_BYTES]>) {
    let (mut first, mut second) = state.dangerously_get_raw_split();
    let keys = (Zeroizing::new(first), Zeroizing::new(second));
    first.zeroize();
    second.zeroize();
    keys
}

/// Hands the primitives to `snow`.
struct Resolver;

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(SystemRandom))
    }
    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::<X25519>::default() as Box<dyn Dh>)
    }
    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::Blake2s).then(|| Box::<Blake2s>::default() as Box<dyn Hash>)
    }
    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::ChaChaPoly).then(|| Box::<ChaChaPoly>::default() as Box<dyn Cipher>)
    }
}

struct SystemRandom;

impl Random for SystemRandom {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> std::result::Result<(), snow::Error> {
        random(bytes).map_err(|_| snow::Error::Rng)
    }
}

#[derive(Default)]
struct X25519 {
    private: Zeroizing<[u8; KEY_BYTES]>,
    public: [u8; KEY_BYTES],
}

impl X25519 {
    fn own(&self) -> std::result::Result<agreement::PrivateKey, snow::Error> {
        agreement::PrivateKey::from_private_key(&agreement::X25519, self.private.as_ref()).map_err(|_| snow::Error::Dh)
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }
    fn pub_len(&self) -> usize {
        KEY_BYTES
    }
    fn priv_len(&self) -> usize {
        KEY_BYTES
    }
    fn set(&mut self, private: &[u8]) {
        self.private.copy_from_slice(private);
        // A key without a public part makes a handshake that nobody answers; `PrivateKey` has computed the same before.
        if let Ok(public) = self.own().and_then(|key| key.compute_public_key().map_err(|_| snow::Error::Dh)) {
            self.public.copy_from_slice(public.as_ref());
        }
    }
    fn generate(&mut self, rng: &mut dyn Random) -> std::result::Result<(), snow::Error> {
        let mut private = Zeroizing::new([0; KEY_BYTES]);
        rng.try_fill_bytes(private.as_mut())?;
        self.set(private.as_ref());
        Ok(())
    }
    fn pubkey(&self) -> &[u8] {
        &self.public
    }
    fn privkey(&self) -> &[u8] {
        self.private.as_ref()
    }
    fn dh(&self, public: &[u8], out: &mut [u8]) -> std::result::Result<(), snow::Error> {
        let peer = agreement::UnparsedPublicKey::new(&agreement::X25519, public.get(..KEY_BYTES).ok_or(snow::Error::Dh)?);
        let own = self.own()?;
        agreement::agree(&own, peer, snow::Error::Dh, |shared| {
            out.get_mut(..shared.len()).ok_or(snow::Error::Dh)?.copy_from_slice(shared);
            Ok(())
        })
    }
}

#[derive(Default)]
struct Blake2s {
    state: Blake2s256,
}

impl Hash for Blake2s {
    fn name(&self) -> &'static str {
        "BLAKE2s"
    }
    fn block_len(&self) -> usize {
        HASH_BLOCK_BYTES
    }
    fn hash_len(&self) -> usize {
        HASH_BYTES
    }
    fn reset(&mut self) {
        self.state = Blake2s256::default();
    }
    fn input(&mut self, data: &[u8]) {
        self.state.update(data);
    }
    fn result(&mut self, out: &mut [u8]) {
        let hash = std::mem::take(&mut self.state).finalize();
        out[..HASH_BYTES].copy_from_slice(&hash);
    }
}

#[derive(Default)]
struct ChaChaPoly {
    key: Option<LessSafeKey>,
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

impl Cipher for ChaChaPoly {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }
    fn set(&mut self, key: &[u8; KEY_BYTES]) {
        self.key = UnboundKey::new(&CHACHA20_POLY1305, key).ok().map(LessSafeKey::new);
    }
    fn encrypt(&self, counter: u64, authenticated: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let length = plaintext.len();
        out[..length].copy_from_slice(plaintext);
        let key = self.key.as_ref().expect("snow encrypts only after it has set a key");
        let tag = key.seal_in_place_separate_tag(nonce(counter), Aad::from(authenticated), &mut out[..length]);
        let tag = tag.expect("a handshake message is far shorter than the longest the cipher takes");
        out[length..length + AEAD_TAG_BYTES].copy_from_slice(tag.as_ref());
        length + AEAD_TAG_BYTES
    }
    fn decrypt(&self, counter: u64, authenticated: &[u8], ciphertext: &[u8], out: &mut [u8]) -> std::result::Result<usize, snow::Error> {
        let mut buffer = [0; 64];
        let work = buffer.get_mut(..ciphertext.len()).ok_or(snow::Error::Decrypt)?;
        work.copy_from_slice(ciphertext);
        let key = self.key.as_ref().ok_or(snow::Error::Decrypt)?;
        let plain = key.open_in_place(nonce(counter), Aad::from(authenticated), work).map_err(|_| snow::Error::Decrypt)?;
        out.get_mut(..plain.len()).ok_or(snow::Error::Decrypt)?.copy_from_slice(plain);
        Ok(plain.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(psk: Option<[u8; 32]>) -> (Identity, Identity) {
        let (a, b) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        let psk = psk.map(PresharedKey::new);
        let (public_a, public_b) = (a.public().unwrap(), b.public().unwrap());
        (Identity::new(a, public_b, psk.clone()).unwrap(), Identity::new(b, public_a, psk).unwrap())
    }

    #[test]
    fn both_sides_get_the_same_keys() {
        for psk in [None, Some([9; 32])] {
            let (a, b) = pair(psk);
            let (mut waiting, first) = a.initiate(&[7; 12], 0x0102_0304).unwrap();
            let incoming = b.read_initiation(&first).unwrap();
            assert_eq!((incoming.timestamp, incoming.index), ([7; 12], 0x0102_0304));
            let (of_b, second) = incoming.respond(99).unwrap();
            let (of_a, index) = waiting.finish(&second).unwrap();
            assert_eq!((*of_a.send, *of_a.receive, index), (*of_b.receive, *of_b.send, 99));
            assert_ne!(*of_a.send, *of_a.receive);
        }
    }

    #[test]
    fn strangers_and_changed_messages_are_not_heard() {
        let (a, b) = pair(None);
        let (stranger, _) = pair(None);
        let stranger = Identity { peer: b.public, ..stranger };
        assert!(b.read_initiation(&stranger.initiate(&[0; 12], 1).unwrap().1).is_none());
        let (mut waiting, first) = a.initiate(&[0; 12], 1).unwrap();
        for place in INITIATION_NOISE {
            let mut changed = first;
            changed[place] ^= 1;
            assert!(b.read_initiation(&changed).is_none(), "byte {place}");
        }
        let (_, second) = b.read_initiation(&first).unwrap().respond(2).unwrap();
        for place in RESPONSE_NOISE {
            let mut changed = second;
            changed[place] ^= 1;
            assert!(waiting.finish(&changed).is_none(), "byte {place}");
        }
        assert!(waiting.finish(&second).is_some(), "forged answers must not spoil the true one");
    }

    #[test]
    fn another_preshared_key_ends_the_handshake() {
        let (a, mut b) = pair(Some([1; 32]));
        b.psk = Some(PresharedKey::new([2; 32]));
        let (mut waiting, first) = a.initiate(&[0; 12], 1).unwrap();
        let (_, second) = b.read_initiation(&first).unwrap().respond(2).unwrap();
        assert!(waiting.finish(&second).is_none());
    }
}
