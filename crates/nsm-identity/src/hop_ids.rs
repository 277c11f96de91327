//! The connection ids that this process gives.

use crate::secret;
use aws_lc_rs::hmac::{self, HMAC_SHA256, Key};
use nsm_api::{ConnectionId, Error, HopName, Result};
use std::{path::Path, sync::Arc};

/// Bytes of the key behind the ids.
const KEY_BYTES: usize = 32;

/// Gives each connection of a previous hop its id at this hop.
///
/// The id is a keyed hash of the previous hop's name and id, so the same caller's connection always has the
/// same id here: a repeated Request, or a Close that never learnt our id, finds its connection without any
/// table. Nobody else can compute it, so knowing an id proves having been told it.
#[derive(Clone)]
pub struct HopIds(Arc<Key>);

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
    /// The id at this hop of the connection that the hop `previous_hop` calls `previous_id`, as UUID text.
    pub fn derive(&self, previous_hop: &HopName, previous_id: &ConnectionId) -> ConnectionId {
        let mut mac = hmac::Context::with_key(&self.0);
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        mac.update(&(previous_hop.as_str().len() as u64).to_be_bytes());
        mac.update(previous_hop.as_str().as_bytes());
        mac.update(previous_id.as_str().as_bytes());
        let tag = mac.sign();
        let mut id = [0; 16];
        id.copy_from_slice(&tag.as_ref()[..16]);
        // Version 4, variant 1: peers expect a random UUID, and to them this is one.
        id[6] = id[6] & 0x0f | 0x40;
        id[8] = id[8] & 0x3f | 0x80;
        let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        ConnectionId::new([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")).expect("36 printable bytes")
    }
    fn from_key(key: &[u8]) -> HopIds {
        HopIds(Arc::new(Key::new(HMAC_SHA256, key)))
    }
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

    fn derive(ids: &HopIds, hop: &str, id: &str) -> String {
        ids.derive(&HopName::new(hop).unwrap(), &ConnectionId::new(id).unwrap()).as_str().to_owned()
    }

    #[test]
    fn ids_are_stable_distinct_and_uuids() {
        let ids = HopIds::random().unwrap();
        let id = derive(&ids, "nsmgr", "c-0");
        assert_eq!(id, derive(&ids.clone(), "nsmgr", "c-0"));
        assert_eq!(id.len(), 36);
        assert_eq!(&id[14..15], "4");
        assert!("89ab".contains(&id[19..20]), "{id}");
        let others = [derive(&ids, "nsmgr", "c-1"), derive(&ids, "nsmgrc", "-0"), derive(&HopIds::random().unwrap(), "nsmgr", "c-0"), id];
        assert_eq!(BTreeSet::from(others).len(), 4);
    }

    #[test]
    fn a_persisted_key_gives_the_same_ids() {
        let dir = Dir::new();
        let (one, two) = (HopIds::load_or_create(&dir.path("key")).unwrap(), HopIds::load_or_create(&dir.path("key")).unwrap());
        assert_eq!(derive(&one, "a", "b"), derive(&two, "a", "b"));
        std::fs::write(dir.path("key"), "short").unwrap();
        assert!(HopIds::load_or_create(&dir.path("key")).err().unwrap().reason.contains("5 bytes"));
    }
}
