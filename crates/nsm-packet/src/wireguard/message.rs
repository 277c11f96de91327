//! Where the fields of the four kinds of message are. Numbers are little-endian.

/// First handshake message.
pub(crate) const INITIATION: u8 = 1;
/// Second handshake message.
pub(crate) const RESPONSE: u8 = 2;
/// What a peer under load answers to a handshake message.
pub(crate) const COOKIE_REPLY: u8 = 3;
/// A packet.
pub(crate) const TRANSPORT: u8 = 4;

/// Bytes of a first handshake message.
pub(crate) const INITIATION_BYTES: usize = 148;
/// Bytes of a second handshake message.
pub(crate) const RESPONSE_BYTES: usize = 92;
/// Bytes of a cookie reply.
pub(crate) const COOKIE_REPLY_BYTES: usize = 64;
/// Bytes before the ciphertext of a packet.
pub(crate) const TRANSPORT_HEADER_BYTES: usize = 16;
/// Bytes of an authentication tag.
pub(crate) const TAG_BYTES: usize = 16;
/// Bytes by which a datagram is longer than its padded packet.
pub(crate) const TRANSPORT_OVERHEAD: usize = TRANSPORT_HEADER_BYTES + TAG_BYTES;
/// Plaintext is padded to a multiple of this.
pub(crate) const PADDING: usize = 16;
/// Bytes of each of the two codes at the end of a handshake message.
pub(crate) const MAC_BYTES: usize = 16;

/// What a datagram says it is; nothing when its length or its reserved bytes do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Initiation,
    Response,
    CookieReply,
    Transport,
}

pub(crate) fn kind(datagram: &[u8]) -> Option<Kind> {
    let [kind, 0, 0, 0] = *datagram.first_chunk::<4>()? else { return None };
    match (kind, datagram.len()) {
        (TRANSPORT, length) if length >= TRANSPORT_OVERHEAD => Some(Kind::Transport),
        (INITIATION, INITIATION_BYTES) => Some(Kind::Initiation),
        (RESPONSE, RESPONSE_BYTES) => Some(Kind::Response),
        (COOKIE_REPLY, COOKIE_REPLY_BYTES) => Some(Kind::CookieReply),
        _ => None,
    }
}

/// The number at `offset`, which the caller has checked to be inside.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    bytes[offset..].first_chunk().map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

/// The number at `offset`, which the caller has checked to be inside.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    bytes[offset..].first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk))
}
