//! What is due without a packet: one thread for all devices, which sleeps until the first of them is due.

use super::{shared::Shared, tunnel::Tunnel};
use crate::wireguard::peer::Outbox;
use std::{
    collections::BTreeSet,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Shortest time between two times that the thread wakes: of many devices several are then served together.
const SPACING: Duration = Duration::from_millis(20);

/// The queue of what is due: time and number of the device.
#[derive(Default)]
pub(super) struct Timers {
    queue: Mutex<BTreeSet<(Instant, u32)>>,
    changed: Condvar,
}

impl Timers {
    fn queue(&self) -> MutexGuard<'_, BTreeSet<(Instant, u32)>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// The device is looked at no later than then. One that is looked at earlier says itself when next.
    pub(super) fn at_latest(&self, tunnel: &Tunnel, deadline: Option<Instant>) {
        let Some(deadline) = deadline else { return };
        if tunnel.scheduled.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|scheduled| scheduled <= deadline) {
            return;
        }
        let mut queue = self.queue();
        let old = tunnel.scheduled.lock().unwrap_or_else(PoisonError::into_inner).replace(deadline);
        if let Some(old) = old {
            queue.remove(&(old, tunnel.number));
        }
        queue.insert((deadline, tunnel.number));
        if queue.first().is_some_and(|(_, number)| *number == tunnel.number) {
            self.changed.notify_one();
        }
    }
    pub(super) fn cancel(&self, tunnel: &Tunnel) {
        let mut queue = self.queue();
        if let Some(old) = tunnel.scheduled.lock().unwrap_or_else(PoisonError::into_inner).take() {
            queue.remove(&(old, tunnel.number));
        }
    }
    pub(super) fn wake(&self) {
        drop(self.queue());
        self.changed.notify_all();
    }
    /// Waits for the next device that is due; nothing when it is over.
    fn next(&self, shared: &Shared, woken: &mut Instant) -> Option<Arc<Tunnel>> {
        let mut queue = self.queue();
        while !shared.stopped() {
            let now = Instant::now();
            let Some((due, number)) = queue.first().copied() else {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            if due > now {
                let until = due.max(*woken + SPACING);
                queue = self.changed.wait_timeout(queue, until - now).unwrap_or_else(PoisonError::into_inner).0;
                *woken = Instant::now();
                continue;
            }
            queue.remove(&(due, number));
            if let Some(tunnel) = shared.tunnel(number) {
                *tunnel.scheduled.lock().unwrap_or_else(PoisonError::into_inner) = None;
                return Some(tunnel);
            }
        }
        None
    }
}

/// The thread.
pub(super) fn run(shared: &Shared) {
    let mut woken = Instant::now();
    while let Some(tunnel) = shared.timers.next(shared, &mut woken) {
        let (now, mut out) = (Instant::now(), Outbox::default());
        tunnel.peer().tick(now, &mut out);
        shared.settle(&tunnel, now, out);
    }
}
