//! Deleting links together. The kernel waits some 20 ms for each deletion, however many links it takes along, so all
//! who want to delete in one namespace at the same time share one.

use super::tag::DOOMED;
use crate::{
    link::link_fixed,
    nl::{Message, Refusal, Socket},
    uapi::*,
};
use nsm_api::InodeKey;
use rustix::io::Errno;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Deletions under way, by namespace. An entry lives only while somebody waits, so the table is bounded by the jobs.
#[derive(Default)]
pub(super) struct Reaper(Mutex<BTreeMap<InodeKey, Arc<Flight>>>);

/// Those who wait draw tickets; a deletion that began after a ticket was drawn serves it.
#[derive(Default)]
struct Flight {
    drawn: AtomicU64,
    served: Mutex<u64>,
}

impl Reaper {
    /// Deletes every link of the doomed group in the socket's namespace; returns when they are gone.
    pub(super) fn reap(&self, netns: InodeKey, socket: &mut Socket) -> Result<(), Refusal> {
        let flight = self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(netns).or_default().clone();
        let result = flight.join(socket);
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody else can take a copy while the table is locked: two are the table's and this one.
        if Arc::strong_count(&flight) <= 2 {
            table.remove(&netns);
        }
        result
    }
}

impl Flight {
    fn join(&self, socket: &mut Socket) -> Result<(), Refusal> {
        let ticket = self.drawn.fetch_add(1, Ordering::SeqCst) + 1;
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if *served >= ticket {
            return Ok(());
        }
        let until = self.drawn.load(Ordering::SeqCst);
        delete_doomed(socket)?;
        *served = until;
        Ok(())
    }
}

fn delete_doomed(socket: &mut Socket) -> Result<(), Refusal> {
    match socket.ask(Message::new(RTM_DELLINK, 0, &link_fixed(0, 0, 0)).u32(IFLA_GROUP, DOOMED)) {
        Err(refusal) if refusal.errno != Errno::NODEV => Err(refusal),
        _ => Ok(()),
    }
}
