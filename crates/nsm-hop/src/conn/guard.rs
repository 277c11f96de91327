//! What others do to the wires of a connection, as the kernel tells it: what is missing is made again at once, without a
//! word to anybody; and a pod that has gone needs no connection.

use super::Conn;
use crate::kernel::{Disturbance, Sentry, Wires};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info};

/// From a disturbance to the look: one is seldom alone.
pub const COALESCE: Duration = Duration::from_millis(50);
/// Between two looks because of disturbances: nobody is fought with faster than this.
pub const DISTURBED_PAUSE: Duration = Duration::from_millis(500);

/// The sentry of one connection.
#[derive(Default)]
pub(super) struct Guard {
    sentry: Option<Box<dyn Sentry>>,
    /// It is where the wires are, as far as there can be one.
    stands: bool,
    calm_until: Option<Instant>,
}

impl Guard {
    /// The wires are other ones now.
    pub(super) fn leave(&mut self) {
        (self.sentry, self.stands) = (None, false);
    }

    /// Resolves when somebody has disturbed the wires; never when nobody tells.
    pub(super) async fn disturbed(&self) -> Disturbance {
        let Some(sentry) = &self.sentry else { return std::future::pending().await };
        if let Some(calm_until) = self.calm_until {
            sleep_until(calm_until).await;
        }
        sentry.disturbed().await
    }
}

impl Conn {
    /// Sends the sentry to the wires that are up.
    pub(super) async fn stand_guard(&mut self) {
        let Some(plan) = self.up.as_ref().filter(|_| !self.guard.stands) else { return };
        let wires: Wires = plan.wires.now.union(&plan.wires.later).cloned().collect();
        if wires.is_empty() {
            return;
        }
        match self.role.kernel.watch(&wires).await {
            Ok(sentry) => (self.guard.sentry, self.guard.stands) = (sentry, true),
            Err(error) => debug!(%error, "what others do to its wires is seen later"),
        }
    }

    pub(super) async fn on_disturbance(&mut self, what: Disturbance) {
        match what {
            Disturbance::Changed => sleep(COALESCE).await,
            Disturbance::Ended => {
                info!("the pod at an end of this connection has gone");
                self.down();
            }
        }
        self.settle(self.role.timing.close_timeout).await;
        self.guard.calm_until = Some(Instant::now() + DISTURBED_PAUSE);
        self.schedule();
    }
}
