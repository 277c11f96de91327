//! What is written down before the outside changes, and a connection that begins from what a former process wrote.

use super::{Conn, Owed, Place, Plan};
use crate::{
    journal::{Agreed, Debt, MAX_FORMER, Record},
    kernel::Wires,
    role::{Draft, Sent, Standing},
};
use nsm_api::*;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// The connections of a former process are looked at one after the other within this time, not all at once.
pub const RESTORE_SPREAD: Duration = Duration::from_millis(500);

/// What was there before the first Request of this life. That Request may fail without an end for what a former life made
/// and was not told of: it carries somebody's packets.
pub(super) struct Spared {
    pub(super) wires: Wires,
    /// Whoever had it has no token any more.
    pub(super) until: Instant,
}

/// What of a record has been written, as far as one record differs from the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    up: bool,
    former: usize,
    owed: usize,
    drifted: bool,
}

impl Conn {
    /// Writes the truth, unless it is what was last written.
    pub(super) async fn note(&mut self) {
        let marks =
            Marks { up: self.up.is_some(), former: self.former.len(), owed: self.owed.len(), drifted: self.drifted && self.up.is_some() };
        if self.noted != Some(marks) {
            let up = self.up.as_deref().map(Plan::agreed);
            self.write(marks, up).await;
        }
    }

    async fn write(&mut self, marks: Marks, up: Option<Agreed>) {
        let Some(journal) = self.journal.clone() else { return };
        self.noted = Some(marks);
        if marks == Marks::default() {
            return journal.forget(&self.owner.connection).await;
        }
        let (now, wall) = (Instant::now(), self.role.issuer.now());
        let debt = |owed: &Owed| Debt { sent: owed.sent.clone(), until: wall + owed.until.saturating_duration_since(now) };
        let record = Record {
            id: self.owner.connection.clone(),
            up,
            former: self.former.clone(),
            owed: self.owed.iter().map(debt).collect(),
            given: self.given.iter().cloned().collect(),
            drifted: marks.drifted,
        };
        journal.keep(record).await;
    }

    /// Before a next hop is asked: from now on it may hold something.
    pub(super) async fn note_ask(&mut self, draft: &Draft, sent: &Sent) {
        if self.journal.is_none() || self.sparing {
            return;
        }
        let before = self.up.as_ref().and_then(|plan| plan.sent.as_ref()).filter(|before| before.candidate.is(&sent.candidate));
        if let Some(before) = before {
            if !asks_the_same(&before.request.connection, &sent.request.connection) && !self.drifted {
                let marks = Marks { up: true, former: self.former.len(), owed: self.owed.len(), drifted: true };
                let up = self.up.as_deref().map(Plan::agreed);
                self.write(marks, up).await;
            }
            return;
        }
        // What is reserved for it by now must not be given to anybody else.
        let reserved =
            Agreed { connection: draft.connection.clone(), files: draft.files.clone(), sent: None, asked_by: None, return_index: 0 };
        let (former, owed) = (self.former.len(), self.owed.len());
        self.former.push(reserved);
        self.owed.push(Owed::of(sent.clone(), self.role.issuer.now(), self.role.timing.close_timeout));
        let marks = Marks { up: self.up.is_some(), former: former + 1, owed: owed + 1, drifted: self.up.is_some() };
        let up = self.up.as_deref().map(Plan::agreed);
        self.write(marks, up).await;
        self.former.truncate(former);
        self.owed.truncate(owed);
    }

    /// Before its wires are made: from now on a successor brings it to its end.
    pub(super) async fn note_plan(&mut self, plan: &Plan) {
        if self.journal.is_none() {
            return;
        }
        let changes = |old: &Plan| old.wires != plan.wires || old.connection.context.ip_context != plan.connection.context.ip_context;
        if let Some(old) = self.up.as_deref().filter(|old| changes(old)).map(Plan::agreed) {
            self.remember(old);
        }
        let superseded = |owed: &Owed| plan.sent.as_ref().is_some_and(|sent| sent.candidate.is(&owed.sent.candidate));
        let owed = std::mem::take(&mut self.owed);
        let (superseded, others): (Vec<Owed>, Vec<Owed>) = owed.into_iter().partition(superseded);
        self.owed = others;
        let token = plan.connection.path.segments[plan.connection.path.index as usize].token.clone();
        self.given.push_front(token);
        let marks = Marks { up: true, former: self.former.len(), owed: self.owed.len(), drifted: false };
        self.write(marks, Some(plan.agreed())).await;
        self.given.pop_front();
        self.owed.extend(superseded);
    }

    /// Its wires could not be made; some of them may have been.
    pub(super) fn note_failure(&mut self, plan: &Plan) {
        self.remember(plan.agreed());
        self.noted = None;
    }

    /// Before the first change of this life to what a former one may have made: remembers what there is.
    pub(super) async fn spare(&mut self, plan: &Plan) -> Result<()> {
        if !self.sparing || self.spared.is_some() || plan.wires.now.is_empty() {
            return Ok(());
        }
        let wires = self.role.kernel.observe(&self.owner, &plan.wires.now).await?;
        let longest = plan.connection.path.segments.iter().filter_map(|segment| segment.expires).max();
        let left = longest.and_then(|end| end.duration_since(self.role.issuer.now()).ok()).unwrap_or_default();
        self.spared = Some(Spared { wires, until: Instant::now() + left });
        Ok(())
    }

    /// Something of it may be left until the kernel agrees.
    pub(super) fn remember(&mut self, agreed: Agreed) {
        if self.journal.is_none() || self.sparing {
            return; // what is spared must not be undone by a successor either
        }
        if self.former.len() == MAX_FORMER {
            self.former.remove(0);
        }
        self.former.push(agreed);
    }

    /// As `record` says a former process left it. Nothing outside has changed yet: the first wake does that.
    pub(crate) fn restored(record: Record, place: Place) -> Conn {
        let mut conn = Conn::new(record.id, place);
        let (now, wall) = (Instant::now(), conn.role.issuer.now());
        conn.noted = Some(Marks { up: record.up.is_some(), former: record.former.len(), owed: record.owed.len(), drifted: record.drifted });
        conn.given = record.given.into();
        conn.held = true;
        let left = |debt: &Debt| debt.until.duration_since(wall).unwrap_or_default();
        conn.owed = record.owed.into_iter().map(|debt| Owed { until: now + left(&debt), sent: debt.sent }).collect();
        conn.former = record.former;
        for agreed in &conn.former {
            // What cannot be computed did not come so far that it was made.
            conn.touched.extend(conn.wires_of(agreed).into_iter().flatten());
        }
        if let Some(agreed) = record.up {
            conn.resume(agreed, record.drifted);
        }
        conn.wake = now + Duration::from_millis(conn.role.issuer.random(RESTORE_SPREAD.as_millis() as u64 + 1));
        conn
    }

    fn resume(&mut self, agreed: Agreed, drifted: bool) {
        let draft = agreed.draft();
        let (expires, refresh) = self.deadlines(&agreed.connection.path);
        if expires.is_some_and(|end| end <= Instant::now()) {
            info!("a connection of a former life has expired");
            return self.part_with(agreed);
        }
        let wires = match self.role.wiring.wires(&draft, agreed.sent.as_ref()) {
            Ok(wires) => wires,
            // Something of it is out of sight. What there is stays as it is, for its client brings it along.
            Err(error) => return warn!(%error, "a connection of a former life waits until its client asks again"),
        };
        self.drifted = drifted;
        self.monitors.update(agreed.connection.clone());
        let Agreed { connection, files, sent, asked_by, return_index } = agreed;
        self.seat = sent.as_ref().and_then(|sent| self.listen(sent));
        let committed = Instant::now();
        let plan = Plan { connection, files, wires, sent, asked_by, return_index, committed, expires, refresh };
        self.touched.extend(plan.wires.now.iter().cloned());
        self.up = Some(Box::new(plan));
        debug!("taken up from a former life");
    }

    /// It ends here, and behind.
    fn part_with(&mut self, agreed: Agreed) {
        self.touched.extend(self.wires_of(&agreed).into_iter().flatten());
        if let Some(sent) = agreed.sent.clone() {
            self.owe(sent);
        }
        self.remember(agreed);
    }

    fn wires_of(&self, agreed: &Agreed) -> Option<Wires> {
        let plan = self.role.wiring.wires(&agreed.draft(), agreed.sent.as_ref()).ok()?;
        Some(plan.now.into_iter().chain(plan.later).collect())
    }

    /// When a connection with this path ends here, and when it is to be asked for again.
    pub(super) fn deadlines(&self, path: &Path) -> (Option<Instant>, Option<Instant>) {
        let (now, wall) = (Instant::now(), self.role.issuer.now());
        match self.role.standing {
            Standing::Origin => (None, Some(now + crate::path::refresh_delay(path, wall).unwrap_or(self.role.timing.retry_min))),
            Standing::Server => {
                let left =
                    path.previous().and_then(|segment| segment.expires).and_then(|end| end.duration_since(wall).ok()).unwrap_or_default();
                let farewell = left.mul_f64(super::FAREWELL_SHARE).min(2 * self.role.timing.close_timeout);
                (Some(now + left - farewell), None)
            }
        }
    }
}

impl Plan {
    pub(super) fn agreed(&self) -> Agreed {
        Agreed {
            connection: self.connection.clone(),
            files: self.files.clone(),
            sent: self.sent.clone(),
            asked_by: self.asked_by.clone(),
            return_index: self.return_index,
        }
    }
}

impl Agreed {
    fn draft(&self) -> Draft {
        Draft { connection: self.connection.clone(), preferences: vec![], files: self.files.clone() }
    }
}

/// Whether the two differ in nothing but what is new in every Request: tokens and their ends.
fn asks_the_same(a: &Connection, b: &Connection) -> bool {
    let way = |connection: &Connection| {
        connection.path.segments.iter().map(|segment| (segment.name.clone(), segment.id.clone())).collect::<Vec<_>>()
    };
    a.context == b.context
        && a.labels == b.labels
        && a.mechanism == b.mechanism
        && a.network_service_endpoint_name == b.network_service_endpoint_name
        && a.payload == b.payload
        && way(a) == way(b)
}
