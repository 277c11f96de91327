//! What follows when a next hop says something new, and when packets no longer pass.
//!
//! A hop in the middle tells its own monitors; so news goes from hop to hop to the origin. The origin mends: it asks
//! again where packets still pass, and for another endpoint where they do not. No wire is touched by news alone.

use super::{Conn, Entered, Incoming};
use crate::{
    role::{Standing, WirePlan},
    watch::{What, look, says_the_same},
};
use futures::future::BoxFuture;
use nsm_api::*;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

/// Between two looks of one connection at its next hop, however much that says.
pub const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Between two wires that an origin gives up because they are silent: who has just been chosen gets some time.
pub const REBUILD_PAUSE: Duration = Duration::from_secs(5);

/// What the origin still has to mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The hops behind ask for the Request again.
    Stale,
    /// They do not have the connection any more, or cannot be heard. Packets may pass all the same.
    Control,
    /// No packets pass.
    Data,
}

impl Conn {
    /// However much there is to hear, what was to be done is done in time.
    pub(super) async fn on_news(&mut self) {
        let wake = self.wake;
        self.hear().await;
        self.schedule();
        self.wake = self.wake.min(wake);
    }

    /// Takes the news from the seat, if there is any and it is time.
    pub(super) async fn hear(&mut self) {
        let now = Instant::now();
        let news = self.seat.as_ref().filter(|_| now >= self.deaf_until).and_then(|seat| seat.take());
        let (Some(news), Some(plan)) = (news, &self.up) else { return };
        let Some(sent) = &plan.sent else { return };
        let fresh = news.since.is_some_and(|since| since > plan.committed);
        let what = if fresh || self.knows(&news.what) {
            Some(news.what)
        } else {
            // It may speak of a former life of this connection.
            let what = look(&self.role, &sent.candidate, &self.owner.connection).await;
            self.deaf_until = Instant::now() + LOOK_PAUSE;
            what
        };
        let Some(what) = what else { return };
        self.publish(&what);
        self.let_go(&what);
        if self.role.standing == Standing::Origin && self.troubled(&what, fresh) {
            self.mend().await;
        }
    }

    fn knows(&self, what: &What) -> bool {
        let ours = self.monitors.get(&self.owner.connection);
        matches!((what, ours), (What::Known(theirs), Some(ours)) if says_the_same(&ours, theirs))
    }

    /// Our own monitors hear it, if it is something new: what is ours of the connection stays, what the next hop knows better is its.
    pub(super) fn publish(&self, what: &What) {
        let Some(before) = self.monitors.get(&self.owner.connection) else { return };
        let mut now = Connection::clone(&before);
        match what {
            What::Known(theirs) => {
                now.state = theirs.state;
                now.context.clone_from(&theirs.context);
                let own = now.path.index as usize + 1;
                now.path.segments.truncate(own);
                now.path.segments.extend(theirs.path.segments.iter().skip(own).cloned());
            }
            What::Gone | What::Lost => now.state = State::Down,
        }
        if !says_the_same(&before, &now) {
            info!(state = ?now.state, "news of the next hop");
            self.monitors.update(now);
        }
    }

    /// Who has no wires needs no namespaces for a connection that the hops behind do not have: if it is asked for again, they
    /// come along again. A pod that has died is not kept by that.
    fn let_go(&mut self, what: &What) {
        let Some(plan) = self.up.as_mut().filter(|plan| plan.wires == WirePlan::default()) else { return };
        if self.role.standing == Standing::Server && matches!(what, What::Gone) {
            plan.files = Files::default();
            if let Some(sent) = &mut plan.sent {
                (sent.files, sent.request.files) = Default::default();
            }
        }
    }

    /// Whether something is to be mended at once. What is being mended already has its own pauses, unless the next hop
    /// is heard again.
    fn troubled(&mut self, what: &What, fresh: bool) -> bool {
        let trouble = match what {
            What::Known(theirs) => match theirs.state {
                State::Down => Trouble::Control,
                State::RefreshRequested => Trouble::Stale,
                State::Up | State::ReselectRequested | State::Other(_) => {
                    self.trouble = self.trouble.filter(|trouble| *trouble == Trouble::Data);
                    return false;
                }
            },
            What::Gone | What::Lost => Trouble::Control,
        };
        let heard_again = fresh && !matches!(what, What::Lost);
        self.trouble.replace(trouble).is_none() || heard_again
    }

    /// Makes the connection whole again, or leaves that to the next wake.
    pub(super) async fn mend(&mut self) {
        let Some(trouble) = self.trouble else { return };
        let alive = match trouble {
            Trouble::Stale => true,
            Trouble::Control => self.alive().await,
            Trouble::Data => false,
        };
        let Some(incoming) = (if alive { self.again() } else { self.elsewhere() }) else {
            self.trouble = None;
            return;
        };
        info!(?trouble, alive, "mending");
        let failures = self.failures;
        if let Err(error) = self.request(&incoming).await {
            self.failures = failures.saturating_add(1);
            self.trouble = Some(if trouble == Trouble::Stale { Trouble::Control } else { trouble });
            warn!(%error, "not mended; trying again");
        }
    }

    async fn alive(&self) -> bool {
        let (Some(plan), Some(liveness)) = (&self.up, &self.liveness) else { return false };
        // Who does not know in time, does not say that it is dead.
        timeout(self.role.timing.request_timeout, liveness.alive_still(&plan.connection)).await.unwrap_or(true)
    }

    /// The committed Request again, from the connection as last answered.
    pub(super) fn again(&self) -> Option<Incoming> {
        let plan = self.up.as_ref()?;
        let preferences = plan.sent.as_ref()?.request.preferences.clone();
        let request = Request { connection: plan.connection.clone(), preferences, files: plan.files.clone() };
        let caller = Caller::within(self.role.timing.request_timeout);
        let entered = Entered { return_index: plan.return_index, shown: String::new(), former_life: false };
        Some(Incoming { request, caller, entered })
    }

    /// The same service from whoever else has it. Remembered, because a failed Request of this kind leaves nothing else behind.
    fn elsewhere(&mut self) -> Option<Incoming> {
        if let Some(mut incoming) = self.again() {
            let connection = &mut incoming.request.connection;
            connection.mechanism = None;
            connection.network_service_endpoint_name = None;
            connection.state = State::ReselectRequested;
            self.wanted = Some(Box::new(incoming));
        }
        self.wanted.as_deref().cloned()
    }

    /// Resolves when packets no longer pass; `None` where nobody has to look.
    pub(super) fn pulse(&self) -> Option<BoxFuture<'static, ()>> {
        let liveness = self.liveness.clone().filter(|_| self.trouble.is_none())?;
        let connection = self.monitors.get(&self.owner.connection)?;
        let patient_until = self.patient_until;
        Some(Box::pin(async move {
            sleep_until(patient_until).await;
            loop {
                sleep(liveness.interval()).await;
                if !liveness.alive(&connection).await {
                    return;
                }
            }
        }))
    }

    /// Packets no longer pass.
    pub(super) async fn on_silence(&mut self) {
        warn!("no packets pass");
        self.patient_until = Instant::now() + REBUILD_PAUSE;
        self.trouble = Some(Trouble::Data);
        self.mend().await;
        self.schedule();
    }
}
