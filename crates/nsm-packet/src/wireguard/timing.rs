//! The constants of the protocol. A test may shorten them; both sides must then agree.

use std::time::Duration;

/// Counter after which a new handshake is due.
pub(crate) const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// Counter after which a key may no longer be used.
pub(crate) const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// A device forgets its keys when no handshake succeeded for this many times the life of a key.
pub(crate) const FORGET_AFTER_LIVES: u32 = 3;
/// How long a secret for cookies is used, and a cookie is accepted.
pub(crate) const COOKIE_LIFE: Duration = Duration::from_secs(120);
/// Shortest time between two handshakes that one peer may begin.
pub(crate) const INITIATION_SPACING: Duration = Duration::from_millis(20);
/// Handshake repetitions are spread over this time, so that two peers do not meet again and again.
pub(crate) const MAX_JITTER: Duration = Duration::from_millis(333);

/// When things are due. The default is the protocol's, with the persistent keepalive of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Age of a key after which its initiator makes a new one.
    pub rekey_after: Duration,
    /// Age after which a key is not used any more.
    pub reject_after: Duration,
    /// For how long a handshake is repeated.
    pub rekey_attempt: Duration,
    /// Time between two handshake messages.
    pub rekey_timeout: Duration,
    /// Silence after which a received packet is answered by an empty one.
    pub keepalive_timeout: Duration,
    /// Silence after which an empty packet is sent in any case; `None` for never.
    pub persistent_keepalive: Option<Duration>,
    /// Handshake messages in a second after which senders must prove their address.
    pub load_threshold: u32,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            rekey_after: Duration::from_secs(120),
            reject_after: Duration::from_secs(180),
            rekey_attempt: Duration::from_secs(90),
            rekey_timeout: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(10),
            persistent_keepalive: Some(Duration::from_secs(10)),
            load_threshold: 2000,
        }
    }
}
