//! The encryption of packets: one key for each way, counters, and the window of what has been received.

use super::{
    message::{PADDING, TAG_BYTES, TRANSPORT, TRANSPORT_HEADER_BYTES, TRANSPORT_OVERHEAD, u64_at},
    noise::Secrets,
    replay::Window,
    timing::REJECT_AFTER_MESSAGES,
};
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use nsm_api::{Error, Result};
use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The keys of one session. They are wiped by the library that holds them when the last user is gone.
pub(crate) struct Keypair {
    sending: LessSafeKey,
    receiving: LessSafeKey,
    counter: AtomicU64,
    window: Mutex<Window>,
    /// Our index, by which the peer names the session.
    pub(crate) local: u32,
    remote: u32,
    pub(crate) created: Instant,
    expires: Instant,
    /// Whether this side began the handshake; it then also renews it.
    pub(crate) initiator: bool,
}

impl fmt::Debug for Keypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keypair({:08x})", self.local)
    }
}

/// Who a session is between.
#[derive(Clone, Copy)]
pub(crate) struct Between {
    pub(crate) local: u32,
    pub(crate) remote: u32,
    pub(crate) initiator: bool,
}

fn key(bytes: &[u8]) -> Result<LessSafeKey> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, bytes);
    key.map(LessSafeKey::new).map_err(|_| Error::internal("a WireGuard session", "its key was not accepted"))
}

fn padded(length: usize, mtu: usize) -> usize {
    length.next_multiple_of(PADDING).min(mtu.max(length))
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

impl Keypair {
    /// A session that may be used from `created` for as long as `life`.
    pub(crate) fn new(secrets: &Secrets, between: Between, created: Instant, life: Duration) -> Result<Keypair> {
        Ok(Keypair {
            sending: key(secrets.send.as_ref())?,
            receiving: key(secrets.receive.as_ref())?,
            counter: AtomicU64::new(0),
            window: Mutex::new(Window::new()),
            local: between.local,
            remote: between.remote,
            created,
            expires: created + life,
            initiator: between.initiator,
        })
    }
    /// How many packets have been sent.
    pub(crate) fn sent(&self) -> u64 {
        self.counter.load(Ordering::Relaxed)
    }
    /// Whether packets may still be sent and received with it.
    pub(crate) fn usable(&self, now: Instant) -> bool {
        now < self.expires && self.sent() < REJECT_AFTER_MESSAGES
    }
    /// Bytes of the datagram that carries a packet of `length` bytes. Padding never makes a packet longer than the
    /// interface's largest, so that a datagram fits wherever the largest packet does.
    pub(crate) fn sealed_length(length: usize, mtu: usize) -> usize {
        padded(length, mtu) + TRANSPORT_OVERHEAD
    }
    /// Makes a datagram in place: the packet is at 16.. of `buffer`, which has room for [`Keypair::sealed_length`].
    /// Nothing when the key is used up.
    pub(crate) fn seal(&self, buffer: &mut [u8], length: usize, mtu: usize) -> Option<usize> {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        if counter >= REJECT_AFTER_MESSAGES {
            self.counter.store(REJECT_AFTER_MESSAGES, Ordering::Relaxed);
            return None;
        }
        let padded = padded(length, mtu);
        let (head, rest) = buffer.split_at_mut(TRANSPORT_HEADER_BYTES);
        head[..4].copy_from_slice(&[TRANSPORT, 0, 0, 0]);
        head[4..8].copy_from_slice(&self.remote.to_le_bytes());
        head[8..16].copy_from_slice(&counter.to_le_bytes());
        rest[length..padded].fill(0);
        let (plain, rest) = rest.split_at_mut(padded);
        let tag = self.sending.seal_in_place_separate_tag(nonce(counter), Aad::empty(), plain).ok()?;
        rest[..TAG_BYTES].copy_from_slice(tag.as_ref());
        Some(padded + TRANSPORT_OVERHEAD)
    }
    /// Opens a datagram in place: bytes of the padded packet, which is then at 16.. of it; nothing unless it is authentic
    /// and new.
    pub(crate) fn open(&self, datagram: &mut [u8]) -> Option<usize> {
        let counter = u64_at(datagram, 8);
        if counter >= REJECT_AFTER_MESSAGES {
            return None;
        }
        let sealed = datagram.get_mut(TRANSPORT_HEADER_BYTES..)?;
        let length = self.receiving.open_in_place(nonce(counter), Aad::empty(), sealed).ok()?.len();
        // Only now is the counter known to be the peer's.
        self.window.lock().unwrap_or_else(PoisonError::into_inner).accept(counter).then_some(length)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    const LIFE: Duration = Duration::from_secs(180);

    /// The two ends of a session.
    pub(crate) fn ends() -> (Keypair, Keypair) {
        let (one, two) = ([1; 32], [2; 32]);
        let secrets = |send, receive| Secrets { send: Zeroizing::new(send), receive: Zeroizing::new(receive) };
        let between = |local, remote, initiator| Between { local, remote, initiator };
        let now = Instant::now();
        (
            Keypair::new(&secrets(one, two), between(10, 20, true), now, LIFE).unwrap(),
            Keypair::new(&secrets(two, one), between(20, 10, false), now, LIFE).unwrap(),
        )
    }

    #[test]
    fn a_packet_arrives_once() {
        let (a, b) = ends();
        for length in [0, 1, 15, 16, 17, 1420, 1430] {
            let mut buffer = vec![0xee; Keypair::sealed_length(length, 1430)];
            buffer[16..16 + length].fill(7);
            let sealed = a.seal(&mut buffer, length, 1430).unwrap();
            assert_eq!((sealed, buffer[0], buffer[4]), (buffer.len(), 4, 20));
            let again = buffer.clone();
            let opened = b.open(&mut buffer).unwrap();
            assert_eq!(opened, length.next_multiple_of(16).min(1430));
            assert!(buffer[16..16 + length].iter().all(|byte| *byte == 7), "{length}");
            assert!(buffer[16 + length..16 + opened].iter().all(|byte| *byte == 0), "padding is zero");
            assert_eq!(b.open(&mut again.clone()), None, "a second copy is dropped");
        }
    }

    /// RFC 8439 with WireGuard's nonce: independent of the code above through another implementation.
    #[test]
    fn another_implementation_reads_it() {
        use chacha20poly1305::{ChaCha20Poly1305, KeyInit, aead::Aead};
        let (a, _) = ends();
        let mut buffer = [0x55; 64];
        for counter in 0u64..3 {
            let length = a.seal(&mut buffer, 20, 1420).unwrap();
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&counter.to_le_bytes());
            let plain = ChaCha20Poly1305::new(&[1; 32].into()).decrypt(&nonce.into(), &buffer[16..length]).unwrap();
            assert_eq!(plain.len(), 32);
        }
    }

    proptest! {
        #[test]
        fn nothing_forged_opens(mut bytes in proptest::collection::vec(any::<u8>(), 32..200), place in 0..32usize) {
            let (a, b) = ends();
            prop_assert_eq!(b.open(&mut bytes), None);
            let mut buffer = [0; 64];
            a.seal(&mut buffer, 32, 1420).unwrap();
            buffer[8 + place] ^= 0x40;
            prop_assert_eq!(b.open(&mut buffer), None, "a changed counter or text");
        }
    }
}
