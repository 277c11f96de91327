//! The connection ids that this process gives.

use crate::secret;
use aws_lc_rs::hmac::{self, HMAC_SHA256, Key};
use nsm_api::{ConnectionId, Error, HopName, Result};
use std::{path::Path, sync::Arc};

/// Bytes of the key behind the ids.
const KEY_BYTES: usize = 32;
/// Bytes of half an id.
const HALF: usize = 8;
/// Version 4, variant 1: peers expect a random UUID, and to them this is one.
const VERSION: u8 = 0x40;
const VARIANT: u8 = 0x80;

/// Gives each connection its id at this hop, and knows its own ids again, without any table.
///
/// The first half of an id is a keyed hash of who brought the connection and how they call it. So the same caller's
/// connection always has the same id here: a repeated Request, or a Close that never learnt our id, finds it. The
/// second half is a keyed hash of the first half and of the path's origin. So an id says for whose connection it was
/// made, also after a restart, and also when another process now stands between that origin and us (a forwarder that
/// was replaced); nobody can make one, or use the one of another origin.
#[derive(Clone)]
pub struct HopIds(Arc<Key>);

/// A process's place in a path: its name and what it calls the connection, and its identity.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The segment's name.
    pub name: &'a HopName,
    /// The segment's id.
    pub id: &'a ConnectionId,
    /// Its SPIFFE ID; empty when it has none.
    pub identity: &'a str,
}

impl HopIds {
    /// Ids that last as long as this process.
    pub fn random() -> Result<HopIds> {
        Ok(HopIds::from_key(&random_key()?))
    }
    /// Ids that survive a restart: the key is in the file `path` (mode 0600), made where it is missing.
    pub fn load_or_create(path: &Path) -> Result<HopIds> {
        let key = secret::load_or_create(path, || random_key().map(Vec::from))?;
        if key.len() != KEY_BYTES {
            let reason = format!("has {} bytes instead of {KEY_BYTES}", key.len());
            return Err(Error::invalid(format!("key file {}", path.display()), reason, "remove it; a new one is made at the next start"));
        }
        Ok(HopIds::from_key(&key))
    }
    /// The id, as UUID text, of the connection that `origin` began and `previous` brings.
    pub fn derive(&self, origin: Place<'_>, previous: Place<'_>) -> ConnectionId {
        let mut bringer = self.half(b"previous", &[], &previous);
        bringer[6] = bringer[6] & 0x0f | VERSION;
        let owner = self.owner(bringer, &origin);
        let hex: String = bringer.iter().chain(&owner).map(|byte| format!("{byte:02x}")).collect();
        ConnectionId::new([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")).expect("36 printable bytes")
    }
    /// Whether [`HopIds::derive`] gave `id` to a connection of `origin`, whoever brought it.
    pub fn gave(&self, id: &ConnectionId, origin: Place<'_>) -> bool {
        let Some(bytes) = uuid(id.as_str()) else { return false };
        let (bringer, owner) = bytes.split_at(HALF);
        let Ok(bringer) = bringer.try_into() else { return false };
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.owner(bringer, &origin), owner).is_ok()
    }

    /// A secret for `purpose` of the connection `id`, always the same for both; it tells nothing about any other.
    pub fn secret(&self, purpose: &str, id: &ConnectionId) -> [u8; 32] {
        let mut mac = hmac::Context::with_key(&self.0);
        for part in [b"secret".as_slice(), purpose.as_bytes(), id.as_str().as_bytes()] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        let mut secret = [0; 32];
        secret.copy_from_slice(mac.sign().as_ref());
        secret
    }

    fn owner(&self, bringer: [u8; HALF], origin: &Place<'_>) -> [u8; HALF] {
        let mut owner = self.half(b"origin", &bringer, origin);
        owner[0] = owner[0] & 0x3f | VARIANT;
        owner
    }

    fn half(&self, what: &[u8], before: &[u8], place: &Place<'_>) -> [u8; HALF] {
        let mut mac = hmac::Context::with_key(&self.0);
        // The lengths keep ("ab", "c") and ("a", "bc") apart.
        for part in [what, before, place.name.as_str().as_bytes(), place.id.as_str().as_bytes(), place.identity.as_bytes()] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        let mut half = [0; HALF];
        half.copy_from_slice(&mac.sign().as_ref()[..HALF]);
        half
    }
    fn from_key(key: &[u8]) -> HopIds {
        HopIds(Arc::new(Key::new(HMAC_SHA256, key)))
    }
}

/// The bytes of a UUID in its usual writing, lower case only: every id has one writing.
fn uuid(text: &str) -> Option<[u8; 2 * HALF]> {
    let groups: Vec<&str> = text.split('-').collect();
    let hex = groups.concat();
    let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if groups.iter().map(|group| group.len()).ne([8, 4, 4, 4, 12]) || !hex.bytes().all(lower) {
        return None;
    }
    let mut bytes = [0; 2 * HALF];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

fn random_key() -> Result<[u8; KEY_BYTES]> {
    let mut key = [0; KEY_BYTES];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| Error::internal("random numbers", "the generator failed"))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Dir;
    use std::collections::BTreeSet;

    /// The name, the id and the identity of a place.
    type Words<'a> = (&'a str, &'a str, &'a str);
    const CLIENT: Words<'_> = ("nsc", "nsc-0", "spiffe://d/nsc");
    const FORWARDER: Words<'_> = ("fwd", "f-7", "spiffe://d/fwd");

    fn place<T>(words: Words<'_>, with: impl FnOnce(Place<'_>) -> T) -> T {
        let (name, id) = (HopName::new(words.0).unwrap(), ConnectionId::new(words.1).unwrap());
        with(Place { name: &name, id: &id, identity: words.2 })
    }
    fn derive(ids: &HopIds, origin: Words<'_>, previous: Words<'_>) -> ConnectionId {
        place(origin, |origin| place(previous, |previous| ids.derive(origin, previous)))
    }
    fn gave(ids: &HopIds, id: &ConnectionId, origin: Words<'_>) -> bool {
        place(origin, |origin| ids.gave(id, origin))
    }

    /// A path takes the same places with other words.
    const OTHERS: [Words<'_>; 4] = [
        ("nsd", "nsc-0", "spiffe://d/nsc"),
        ("nsc", "nsc-1", "spiffe://d/nsc"),
        ("nsc", "nsc-0", "spiffe://d/nsd"),
        ("nscn", "sc-0", "spiffe://d/nsc"),
    ];

    #[test]
    fn ids_are_stable_distinct_and_uuids() {
        let ids = HopIds::random().unwrap();
        let id = derive(&ids, CLIENT, FORWARDER);
        assert_eq!(id, derive(&ids.clone(), CLIENT, FORWARDER));
        assert_eq!(id.as_str().len(), 36);
        assert_eq!(&id.as_str()[14..15], "4");
        assert!("89ab".contains(&id.as_str()[19..20]), "{id}");
        let mut all: BTreeSet<ConnectionId> =
            OTHERS.iter().flat_map(|other| [derive(&ids, *other, FORWARDER), derive(&ids, CLIENT, *other)]).collect();
        all.extend([derive(&HopIds::random().unwrap(), CLIENT, FORWARDER), id]);
        assert_eq!(all.len(), 2 * OTHERS.len() + 2);
    }

    #[test]
    fn an_id_belongs_to_its_origin_whoever_brings_it() {
        let ids = HopIds::random().unwrap();
        let id = derive(&ids, CLIENT, FORWARDER);
        assert!(gave(&ids, &id, CLIENT));
        for other in OTHERS {
            assert!(!gave(&ids, &id, other), "{other:?}");
        }
        assert!(!gave(&HopIds::random().unwrap(), &id, CLIENT));
        for at in (0..36).filter(|at| ![8, 13, 18, 23].contains(at)) {
            let mut bytes = id.as_str().as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            assert!(!gave(&ids, &ConnectionId::new(String::from_utf8(bytes).unwrap()).unwrap(), CLIENT), "digit {at}");
        }
        for bad in [id.as_str().to_uppercase(), id.as_str().replace('-', ""), format!("{id}0"), "nsc-0".to_owned(), "\u{e9}".repeat(18)] {
            if let Ok(bad) = ConnectionId::new(bad) {
                assert!(!gave(&ids, &bad, CLIENT), "{bad}");
            }
        }
    }

    #[test]
    fn a_persisted_key_gives_the_same_ids() {
        let dir = Dir::new();
        let (one, two) = (HopIds::load_or_create(&dir.path("key")).unwrap(), HopIds::load_or_create(&dir.path("key")).unwrap());
        assert_eq!(derive(&one, CLIENT, FORWARDER), derive(&two, CLIENT, FORWARDER));
        std::fs::write(dir.path("key"), "short").unwrap();
        assert!(HopIds::load_or_create(&dir.path("key")).err().unwrap().reason.contains("5 bytes"));
    }
}
