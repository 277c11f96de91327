//! One largest packet for the whole network: the smallest that any wire of this endpoint carries.

use super::Changes;
use nsm_api::*;
use nsm_hop::{
    journal::Agreed,
    role::{Draft, Reserve},
};
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// Where it begins, in bytes.
pub const LARGEST: u32 = 9000;

/// The smallest seen, and who is told when it shrinks. Clones are the same.
#[derive(Clone)]
pub struct LeastMtu {
    least: Arc<AtomicU32>,
    changes: Changes,
}

impl LeastMtu {
    /// Nothing seen yet.
    pub fn new(changes: Changes) -> LeastMtu {
        LeastMtu { least: Arc::new(AtomicU32::new(LARGEST)), changes }
    }
}

impl Reserve for LeastMtu {
    fn reserve(&self, draft: &mut Draft) -> Result<()> {
        let (mtu, least) = (&mut draft.connection.context.mtu, self.least.load(Ordering::Relaxed));
        if *mtu == 0 || *mtu > least {
            *mtu = least;
        }
        Ok(())
    }
    fn keep(&self, connection: &Connection) {
        let mtu = connection.context.mtu;
        if mtu > 0 && self.least.fetch_min(mtu, Ordering::Relaxed) > mtu {
            self.changes.tell();
        }
    }
    fn restore(&self, Agreed { connection, .. }: &Agreed) {
        if connection.context.mtu > 0 {
            self.least.fetch_min(connection.context.mtu, Ordering::Relaxed); // all others have heard of it
        }
    }
    fn release(&self, _: &ConnectionId) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// wire.md 10.3
    #[test]
    fn the_smallest_is_for_all_and_others_hear_of_it() {
        let changes = Changes::default();
        let (least, mut heard) = (LeastMtu::new(changes.clone()), changes.listen());
        let mut draft = Draft {
            connection: Connection::new("c".parse().unwrap(), "svc".parse().unwrap()),
            preferences: vec![],
            files: Files::default(),
        };
        least.reserve(&mut draft).unwrap();
        assert_eq!(draft.connection.context.mtu, LARGEST);
        draft.connection.context.mtu = 1440;
        least.reserve(&mut draft).unwrap();
        least.keep(&draft.connection);
        assert!(heard.has_changed().unwrap());
        heard.mark_unchanged();
        draft.connection.context.mtu = 0;
        least.clone().reserve(&mut draft).unwrap();
        assert_eq!(draft.connection.context.mtu, 1440);
        least.keep(&draft.connection);
        assert!(!heard.has_changed().unwrap(), "nothing new");
    }
}
