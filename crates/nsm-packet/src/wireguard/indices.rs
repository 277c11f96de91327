//! Which device and session an index in a datagram names.

use super::keypair::Keypair;
use crate::keys::random;
use nsm_api::{Error, Kind, Result};
use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

/// Most indices in use at a time: each device has up to three sessions and one handshake.
const MAX_INDICES: usize = 4 * crate::MAX_DEVICES;

/// What an index stands for.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    /// Number of the device.
    pub(crate) device: u32,
    /// The session; `None` while there is only a handshake.
    pub(crate) keypair: Option<Arc<Keypair>>,
}

/// All indices of an engine. Random, so that nobody who does not see them can guess them.
#[derive(Default)]
pub(crate) struct Indices {
    slots: RwLock<BTreeMap<u32, Owner>>,
}

impl Indices {
    /// A fresh index for a device.
    pub(crate) fn take(&self, device: u32) -> Result<u32> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MAX_INDICES {
            let reason = format!("{MAX_INDICES} sessions are in use");
            return Err(Error::new(Kind::Exhausted, "a WireGuard session", reason, "close connections or wait until old keys expire"));
        }
        loop {
            let mut bytes = [0; 4];
            random(&mut bytes)?;
            let index = u32::from_ne_bytes(bytes);
            if let std::collections::btree_map::Entry::Vacant(free) = slots.entry(index) {
                free.insert(Owner { device, keypair: None });
                return Ok(index);
            }
        }
    }
    /// From now on the index names this session.
    pub(crate) fn establish(&self, keypair: &Arc<Keypair>) {
        if let Some(owner) = self.slots.write().unwrap_or_else(PoisonError::into_inner).get_mut(&keypair.local) {
            owner.keypair = Some(keypair.clone());
        }
    }
    /// The index names nothing any more.
    pub(crate) fn free(&self, index: u32) {
        self.slots.write().unwrap_or_else(PoisonError::into_inner).remove(&index);
    }
    /// What the index names.
    pub(crate) fn find(&self, index: u32) -> Option<Owner> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).get(&index).cloned()
    }
    /// How many are in use.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}
