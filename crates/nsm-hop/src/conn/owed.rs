//! Closes that next hops still have to hear.

use super::{Conn, refusal::within};
use crate::{
    path,
    role::{Role, Sent},
};
use nsm_api::*;
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

/// Closes that a connection may still owe to next hops that did not answer.
pub const MAX_OWED: usize = 16;
/// How long a next hop is asked to Close before its own expiry is left to do it, when no token says.
pub const OWED_LIFE: Duration = Duration::from_secs(600);

/// A Close that somebody still has to hear.
pub(super) struct Owed {
    pub(super) sent: Sent,
    pub(super) until: Instant,
}

impl Owed {
    pub(super) fn of(sent: Sent, wall: SystemTime, least: Duration) -> Owed {
        let life = path::life(&sent.connection.path, wall).unwrap_or(OWED_LIFE);
        Owed { sent, until: Instant::now() + life.max(least) }
    }
}

impl Conn {
    /// One Close for each target, the oldest given up first.
    pub(super) fn owe(&mut self, mut sent: Sent) {
        if self.sparing {
            return; // it may carry what a former life of ours asked for; its own expiry will end it
        }
        // A Close needs no namespace, and what is only owed must not keep one alive.
        (sent.files, sent.request.files) = Default::default();
        self.owed.retain(|owed| !owed.sent.candidate.is(&sent.candidate));
        if self.owed.len() == MAX_OWED {
            self.owed.remove(0); // its own expiry will end it
        }
        self.owed.push(Owed::of(sent, self.role.issuer.now(), self.role.timing.close_timeout));
    }
}

/// Each of `owed` is told to Close, and stays while it has not heard it and its own expiry does not end it.
pub(super) async fn repay(role: &Role, owed: &mut Vec<Owed>, patience: Duration) -> bool {
    for mut debt in std::mem::take(owed) {
        let now = Instant::now();
        let mut heard = close(role, &debt.sent, now + patience).await;
        if heard.is_err()
            && let Ok(Some(candidate)) = timeout_at(now + patience, role.onward.moved(&debt.sent.candidate)).await
        {
            if candidate.is(&debt.sent.candidate) {
                debt.sent.candidate = candidate;
                heard = close(role, &debt.sent, now + patience).await;
            } else {
                // On another node its successor is another process. It is owed nothing: a Close would end there what is agreed by now.
                heard = Ok(());
            }
        }
        match heard {
            Ok(()) => {}
            Err(error) if error.retryable() && debt.until > now => {
                debug!(%error, "close not heard yet");
                owed.push(debt);
            }
            Err(error) => warn!(%error, "close given up; the next hop's own expiry ends it"),
        }
    }
    owed.is_empty()
}

async fn close(role: &Role, sent: &Sent, deadline: Instant) -> Result<()> {
    let target = &sent.candidate.target;
    let api = role.dial.dial(target, &sent.candidate.socket);
    let patience = deadline.saturating_duration_since(Instant::now());
    within(deadline, &target.to_string(), api.close(sent.connection.clone(), sent.files.clone(), Caller::within(patience))).await
}
