//! How much of what a server has one identity may take, so that whatever it does leaves room for others.

use nsm_api::SpiffeId;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A thing of which every identity may take so many.
pub(crate) struct Shares {
    limit: usize,
    taken: Mutex<BTreeMap<SpiffeId, usize>>,
}

/// One of them. Given back when it is dropped.
pub(crate) struct Share {
    of: Arc<Shares>,
    owner: SpiffeId,
}

impl Shares {
    /// Nobody has any.
    pub(crate) fn new(limit: usize) -> Arc<Shares> {
        Arc::new(Shares { limit, taken: Mutex::default() })
    }
    /// `None` when `owner` has all that it may have.
    pub(crate) fn take(self: &Arc<Self>, owner: &SpiffeId) -> Option<Share> {
        let mut taken = self.lock();
        let count = taken.entry(owner.clone()).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Share { of: self.clone(), owner: owner.clone() })
    }
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SpiffeId, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.of.lock();
        if let Some(count) = taken.get_mut(&self.owner) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_takes_its_share_and_leaves_that_of_others() {
        let [greedy, other] = ["spiffe://d/greedy", "spiffe://d/other"].map(|id| SpiffeId::new(id).unwrap());
        let shares = Shares::new(2);
        let mut mine = vec![shares.take(&greedy).unwrap(), shares.take(&greedy).unwrap()];
        assert!(shares.take(&greedy).is_none());
        let theirs = shares.take(&other).unwrap();
        mine.pop();
        mine.push(shares.take(&greedy).unwrap());
        assert!(shares.take(&greedy).is_none());
        drop((mine, theirs));
        assert!(shares.lock().is_empty(), "nobody is remembered who has nothing");
    }
}
