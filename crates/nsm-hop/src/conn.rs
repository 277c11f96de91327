//! START HERE: the whole life of one connection at one hop.
//!
//! One task per connection, one event at a time. A Request runs five steps, top to bottom in [`Conn::request`]:
//! **admit → reserve → onward → wire → commit**. [`Conn::settle`] makes the outside agree with what was last
//! committed, or with nothing: it is the undo of a failed Request, the repair, the adoption after a restart,
//! and Close. The caller awaits an answer; the task owns the work, so a caller may vanish at any time.

mod guard;
mod measure;
mod memory;
mod news;
mod owed;
mod refusal;

pub use guard::{COALESCE, DISTURBED_PAUSE};
pub use measure::{Measured, Side};
pub use memory::RESTORE_SPREAD;
pub use news::{LOOK_PAUSE, REBUILD_PAUSE};
pub use owed::{MAX_OWED, OWED_LIFE};
pub(crate) use refusal::not_yours;

use crate::{
    diff::diff,
    journal::{Agreed, Journal},
    kernel::{Disturbance, Owner, Wire, Wires},
    monitor::Monitors,
    path,
    role::{Candidate, Draft, Liveness, Next, Role, Sent, Standing, WirePlan},
    watch::{Seat, Watches, What},
};
use futures::future::OptionFuture;
use guard::Guard;
use memory::{Marks, Spared};
use news::Trouble;
use nsm_api::*;
use owed::{Owed, repay};
use refusal::{combined, within};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

/// Next hops tried within one Request.
pub const MAX_CANDIDATES: usize = 16;
/// Answers of which one may have been the last to reach a previous hop.
pub const MAX_GIVEN: usize = 4;

/// The part of a Close's time that the hops behind get.
const CLOSE_SHARE: f64 = 0.8;
/// The part of a connection's life that is kept for closing it: the tokens of the path must still be good then.
const FAREWELL_SHARE: f64 = 0.1;

/// Where the answer goes. Nobody may be waiting any more.
pub(crate) type Reply<T> = oneshot::Sender<Result<T>>;

/// Everything that can be said to a connection. A closed list.
pub(crate) enum Event {
    Request(Box<Incoming>, Reply<Answer>),
    Close(Box<Closing>, Reply<()>),
    /// The next hop has said something: it lies in the seat.
    News,
    /// This hop itself no longer wants the connection.
    End,
    /// Somebody wants to know what has passed over its wire.
    Measure(oneshot::Sender<Option<Measured>>),
}

/// A Request that has entered this hop's path.
#[derive(Clone)]
pub(crate) struct Incoming {
    /// Own id, own index.
    pub(crate) request: Request,
    pub(crate) caller: Caller,
    pub(crate) entered: Entered,
}

/// What the path said before this hop wrote into it.
#[derive(Clone)]
pub(crate) struct Entered {
    /// Whose index and id the answer carries.
    pub(crate) return_index: u32,
    /// The token of ours that the caller knows of.
    pub(crate) shown: String,
    /// That token was made by a former process of this hop.
    pub(crate) former_life: bool,
}

/// A Close that has entered this hop's path.
pub(crate) struct Closing {
    pub(crate) connection: Connection,
    pub(crate) caller: Caller,
    pub(crate) entered: Entered,
}

/// All that this hop has agreed to for the connection. Plain data.
struct Plan {
    connection: Connection,
    files: Files,
    wires: WirePlan,
    sent: Option<Sent>,
    /// Who asked for it last, as the transport proved.
    asked_by: Option<SpiffeId>,
    return_index: u32,
    committed: Instant,
    /// Closes itself then, unless refreshed.
    expires: Option<Instant>,
    /// Asks again then, at an origin.
    refresh: Option<Instant>,
}

pub(crate) struct Conn {
    role: Arc<Role>,
    monitors: Monitors,
    owner: Owner,
    up: Option<Box<Plan>>,
    /// Kernel objects that may exist because of us.
    touched: Wires,
    /// Agreements that `touched` follows from, besides the one that is up.
    former: Vec<Agreed>,
    /// What a former life made that we know nothing of yet.
    spared: Option<Spared>,
    journal: Option<Arc<dyn Journal>>,
    /// What the journal says.
    noted: Option<Marks>,
    /// The Request at hand is for something that a former life had: if it fails, nobody behind hears of it.
    sparing: bool,
    /// Next hops that may hold something because of us.
    owed: Vec<Owed>,
    /// The next hop agreed to something that we then did not commit: it must hear the committed again.
    drifted: bool,
    /// Reservations may be held.
    held: bool,
    /// Tokens of ours in the latest answers, latest first.
    given: VecDeque<String>,
    failures: u32,
    wake: Instant,
    watches: Watches,
    /// Our own.
    mailbox: mpsc::WeakSender<Event>,
    /// Where we hear the next hop; of the way that is committed.
    seat: Option<Seat>,
    /// The same, of a way that is about to be committed.
    coming: Option<Seat>,
    /// News waits until then.
    deaf_until: Instant,
    guard: Guard,
    liveness: Option<Arc<dyn Liveness>>,
    /// Silence is not noticed before: the last wire that fell silent was made anew just now.
    patient_until: Instant,
    /// At an origin: what is to be mended.
    trouble: Option<Trouble>,
    /// At an origin: what is asked for until it is had, because the connection was given up for it.
    wanted: Option<Box<Incoming>>,
}

/// What a connection gets from its hop.
pub(crate) struct Place {
    pub(crate) role: Arc<Role>,
    pub(crate) monitors: Monitors,
    pub(crate) watches: Watches,
    pub(crate) liveness: Option<Arc<dyn Liveness>>,
    pub(crate) mailbox: mpsc::WeakSender<Event>,
    pub(crate) journal: Option<Arc<dyn Journal>>,
}

impl Conn {
    pub(crate) fn new(id: ConnectionId, place: Place) -> Conn {
        let Place { role, monitors, watches, liveness, mailbox, journal } = place;
        let now = Instant::now();
        Conn {
            owner: Owner { hop: role.name.clone(), connection: id, generation: role.generation },
            role,
            monitors,
            up: None,
            touched: Wires::new(),
            former: Vec::new(),
            spared: None,
            journal,
            noted: Some(Marks::default()),
            sparing: false,
            owed: Vec::new(),
            drifted: false,
            held: false,
            given: VecDeque::new(),
            failures: 0,
            wake: now,
            watches,
            mailbox,
            seat: None,
            coming: None,
            deaf_until: now,
            guard: Guard::default(),
            liveness,
            patient_until: now,
            trouble: None,
            wanted: None,
        }
    }

    /// The whole life of a Request at this hop, top to bottom.
    async fn request(&mut self, incoming: &Incoming) -> Result<Answer> {
        let deadline = Instant::now() + incoming.caller.timeout.unwrap_or(self.role.timing.request_timeout);
        let draft = self.admit(incoming)?;
        self.sparing = incoming.entered.former_life && self.up.is_none() && draft.connection.state != State::ReselectRequested;
        if self.up.is_some() && draft.connection.state == State::ReselectRequested {
            self.down();
            self.settle(self.role.timing.close_timeout).await; // whatever it could not reach is owed, and does not stop a new start
        }
        match self.establish(draft, incoming, deadline).await {
            Ok(plan) => {
                let answer = self.commit(plan);
                self.note().await;
                Ok(answer)
            }
            Err(error) => {
                self.coming = None;
                self.settle(self.role.timing.close_timeout).await; // back to the last commit, or to nothing
                if self.role.standing == Standing::Server && self.seat.is_some() {
                    self.publish(&What::Lost); // whoever wanted this refresh must know that it failed
                }
                Err(error.at(&self.role.name))
            }
        }
    }

    fn admit(&self, incoming: &Incoming) -> Result<Draft> {
        let Request { connection, preferences, files } = incoming.request.clone();
        let draft = Draft { connection, preferences, files };
        if self.role.standing == Standing::Server && draft.connection.path.previous().is_none_or(|segment| segment.expires.is_none()) {
            let object = format!("connection {:?}", draft.connection.id.as_str());
            return Err(Error::invalid(object, "the previous hop's token has no end", "send nsm-client-token-expires with every call")
                .at(&self.role.name));
        }
        self.role.admit.iter().try_for_each(|rule| rule.admit(&draft, &incoming.caller)).map_err(|error| error.at(&self.role.name))?;
        self.entitled(&incoming.caller, &incoming.entered.shown)?;
        Ok(draft)
    }

    /// Who asked last may ask again. Another process (one that took the place of a previous hop) must show a token
    /// that only those on the connection's way were given: ids are no secret.
    fn entitled(&self, caller: &Caller, shown: &str) -> Result<()> {
        let same = self.up.as_ref().is_none_or(|plan| plan.asked_by == caller.identity);
        if same || self.role.standing == Standing::Origin || self.given.iter().any(|token| !token.is_empty() && token == shown) {
            return Ok(());
        }
        Err(not_yours(&self.owner.connection).at(&self.role.name))
    }

    async fn establish(&mut self, mut draft: Draft, incoming: &Incoming, deadline: Instant) -> Result<Plan> {
        self.reserve(&mut draft)?; // in memory: the outside has not changed
        let sent = self.onward(&mut draft, deadline).await?; // the rest of the path answers with the whole
        let result = self.finish(draft, sent.clone(), incoming).await; // our own stretch of it
        if let (Err(_), Some(sent)) = (&result, sent)
            && !self.is_committed_to(&sent.candidate)
        {
            self.owe(sent); // nothing here remembers this way, so it must hear a Close
        }
        result
    }

    async fn finish(&mut self, draft: Draft, sent: Option<Sent>, incoming: &Incoming) -> Result<Plan> {
        let mut plan = self.plan(draft, sent, incoming)?;
        self.spare(&plan).await?;
        self.note_plan(&plan).await;
        if let Err(error) = self.wire(&plan.wires.now).await {
            self.note_failure(&plan);
            return Err(error);
        }
        self.note_metrics(&mut plan).await;
        Ok(plan)
    }

    fn is_committed_to(&self, candidate: &Candidate) -> bool {
        let sent = self.up.as_ref().and_then(|plan| plan.sent.as_ref());
        sent.is_some_and(|sent| sent.candidate.is(candidate))
    }

    fn reserve(&mut self, draft: &mut Draft) -> Result<()> {
        self.held = true;
        self.role.reserve.iter().try_for_each(|part| part.reserve(draft))
    }

    /// Asks next hops in turn until one agrees.
    async fn onward(&mut self, draft: &mut Draft, deadline: Instant) -> Result<Option<Sent>> {
        let before = self.up.as_ref().and_then(|plan| plan.sent.clone());
        let next = within(deadline, "discovery", self.role.onward.next(draft, before.as_ref())).await?;
        let Next::Hops(candidates) = next else {
            path::trim(&mut draft.connection.path);
            return Ok(None);
        };
        let mut failures = Vec::new();
        for candidate in candidates.into_iter().take(MAX_CANDIDATES) {
            let request = self.role.onward.request(draft, &candidate, before.as_ref())?;
            let files = request.files.clone();
            let mut sent = Sent { candidate, connection: request.connection.clone(), request, files };
            // Before it is asked, so that nothing it says about its answer is missed.
            self.coming = self.listen(&sent);
            let old = before.as_ref().filter(|old| !old.candidate.is(&sent.candidate));
            if let Some(old) = old {
                self.owe(old.clone());
                self.drifted = true;
            }
            self.note_ask(draft, &sent).await;
            if old.is_some() {
                // The way changes: the hops behind may be the same, and must not hear of the old way later.
                self.repay(self.role.timing.close_timeout).await;
            }
            let answered = match self.ask(&sent, deadline).await {
                Ok(answer) => {
                    self.drifted |= self.up.is_some();
                    sent.connection = answer.connection.clone();
                    sent.files.extend(&answer.files);
                    self.role.admit.iter().try_for_each(|rule| rule.approve(&answer)).map(|()| answer)
                }
                Err(error) => Err(error),
            };
            self.role.onward.asked(&sent.candidate, answered.as_ref().map(drop));
            match answered {
                Ok(answer) => {
                    self.role.onward.accept(draft, &answer);
                    return Ok(Some(sent));
                }
                Err(error) => {
                    debug!(target = %sent.candidate.target, %error, "next hop refused");
                    if !self.is_committed_to(&sent.candidate) {
                        self.owe(sent); // it may hold something all the same: its answer may have been lost
                        self.repay(self.role.timing.close_timeout).await;
                    }
                    failures.push(error);
                }
            }
        }
        Err(combined(&draft.connection, failures))
    }

    /// A seat at the next hop, unless there is one.
    fn listen(&self, sent: &Sent) -> Option<Seat> {
        let target = &sent.candidate.target;
        if self.seat.as_ref().is_some_and(|seat| seat.is_at(target)) {
            return None;
        }
        self.watches.join(&sent.candidate, &self.owner.connection, &self.mailbox)
    }

    async fn ask(&mut self, sent: &Sent, deadline: Instant) -> Result<Answer> {
        let api = self.role.dial.dial(&sent.candidate.target, &sent.candidate.socket);
        let caller = Caller::within(deadline.saturating_duration_since(Instant::now()));
        let answer = within(deadline, &sent.candidate.target.to_string(), api.request(sent.request.clone(), caller)).await?;
        path::check_answer(&sent.connection, &answer.connection)?;
        Ok(answer)
    }

    /// Everything decided, nothing done yet on this node.
    fn plan(&self, mut draft: Draft, mut sent: Option<Sent>, incoming: &Incoming) -> Result<Plan> {
        draft.connection.state = State::Up;
        if let Some(sent) = &mut sent {
            sent.request.connection.state = State::Up; // said once, it is not said again when the Request is repeated
        }
        self.role.reserve.iter().try_for_each(|part| part.review(&draft))?;
        let wires = self.role.wiring.wires(&draft, sent.as_ref())?;
        let (expires, refresh) = self.deadlines(&draft.connection.path);
        Ok(Plan {
            connection: draft.connection,
            files: draft.files,
            wires,
            sent,
            asked_by: incoming.caller.identity.clone(),
            return_index: incoming.entered.return_index,
            committed: Instant::now(),
            expires,
            refresh,
        })
    }

    fn commit(&mut self, plan: Plan) -> Answer {
        let first = self.up.is_none();
        if let Some(seat) = self.coming.take() {
            self.seat = Some(seat);
        }
        (self.trouble, self.wanted, self.spared) = (None, None, None);
        self.former.clear();
        self.sparing = false;
        if self.up.as_ref().is_none_or(|old| old.wires != plan.wires) {
            self.guard.leave();
        }
        let plan = self.up.insert(Box::new(plan));
        plan.committed = Instant::now();
        self.given.truncate(MAX_GIVEN - 1);
        self.given.push_front(plan.connection.path.segments[plan.connection.path.index as usize].token.clone());
        self.drifted = false;
        // The same way again supersedes what it still owed.
        if let Some(sent) = &plan.sent {
            self.owed.retain(|owed| !owed.sent.candidate.is(&sent.candidate));
        }
        for part in &self.role.reserve {
            part.keep(&plan.connection);
        }
        self.monitors.update(plan.connection.clone());
        let answer = answer(plan);
        if first {
            let endpoint = plan.connection.network_service_endpoint_name.as_ref().map_or("", EndpointName::as_str);
            info!(service = %plan.connection.network_service, endpoint, "connection up");
        }
        self.failures = 0;
        self.wake = Instant::now();
        answer
    }

    /// The connection is no longer wanted. [`Conn::settle`] makes it so.
    fn down(&mut self) {
        self.spared = None;
        let Some(plan) = self.up.take().map(|plan| *plan) else { return };
        self.seat = None;
        self.guard.leave();
        self.remember(plan.agreed());
        self.touched.extend(plan.wires.now);
        self.touched.extend(plan.wires.later);
        if let Some(sent) = plan.sent {
            self.owe(sent);
        }
        info!("connection down");
    }

    /// Makes the outside agree with `up`. The only undo, the only repair, the only restart path, and Close.
    /// Says whether all of it could be done; what could not is tried again at the next wake.
    /// `patience` bounds each Close.
    async fn settle(&mut self, patience: Duration) -> bool {
        self.note().await; // a successor must know what may be left, before anything goes
        let desired = self.desired();
        // Side by side: the kernel takes its time to remove a device, and so do the hops behind.
        let wired = wire(&self.role, &self.owner, &mut self.touched, &desired);
        let (wired, mut done) = futures::future::join(wired, repay(&self.role, &mut self.owed, patience)).await;
        match wired {
            Ok(()) => self.former.clear(),
            Err(error) => {
                warn!(%error, "kernel not settled");
                done = false;
            }
        }
        if self.up.is_some() {
            done &= self.restate().await;
        } else {
            // Only when the wire has gone: who hears of it looks whether packets still pass.
            self.monitors.delete(&self.owner.connection);
            if done && self.held && self.spared.is_none() {
                for part in &self.role.reserve {
                    part.release(&self.owner.connection); // only now may another connection have it
                }
                self.held = false;
            }
        }
        self.note().await;
        self.failures = if done { 0 } else { self.failures.saturating_add(1) };
        done
    }

    /// What should be: what is agreed; without that, for a while, what a former life had.
    fn desired(&mut self) -> Wires {
        self.spared = self.spared.take().filter(|spared| spared.until > Instant::now());
        match (&self.up, &self.spared) {
            (Some(plan), _) => plan.wires.now.union(&plan.wires.later).cloned().collect(),
            (None, Some(spared)) => spared.wires.clone(),
            (None, None) => Wires::new(),
        }
    }

    /// Brings the kernel from what is to `desired`. What waits for interfaces of others is left for later.
    async fn wire(&mut self, desired: &Wires) -> Result<()> {
        wire(&self.role, &self.owner, &mut self.touched, desired).await
    }

    /// Tells next hops to Close. True when nobody is left who has not heard it.
    async fn repay(&mut self, patience: Duration) -> bool {
        repay(&self.role, &mut self.owed, patience).await
    }

    /// The next hop last agreed to something else than what is committed here: it hears the committed again.
    async fn restate(&mut self) -> bool {
        let Some(mut sent) = self.up.as_ref().and_then(|plan| plan.sent.clone()).filter(|_| self.drifted) else { return true };
        // As it was answered, not as it was asked: a question without an endpoint's name may be answered otherwise today.
        sent.request.connection.clone_from(&sent.connection);
        sent.request.connection.state = State::Up;
        sent.request.files.extend(&sent.files);
        let deadline = Instant::now() + self.role.timing.request_timeout;
        let again = self.ask(&sent, deadline).await;
        self.drifted = again.is_err();
        !self.drifted
    }

    async fn close(&mut self, closing: &Closing) -> Result<()> {
        let admitted = self.role.admit.iter().try_for_each(|rule| rule.admit_close(&closing.connection, &closing.caller));
        admitted.map_err(|error| error.at(&self.role.name))?;
        if let Some(plan) = &self.up {
            let same = |ours: &Segment, theirs: &Segment| ours.id == theirs.id && ours.name == theirs.name;
            let (ours, theirs) = (plan.connection.path.previous(), closing.connection.path.previous());
            if !ours.zip(theirs).is_none_or(|(ours, theirs)| same(ours, theirs)) {
                debug!("close by a former way ignored");
                return Ok(());
            }
        }
        self.entitled(&closing.caller, &closing.entered.shown)?;
        debug!(identity = ?closing.caller.identity, "close asked");
        let way = self.up.as_ref().and_then(|plan| Some(plan.sent.as_ref()?.candidate.clone()));
        (self.trouble, self.wanted) = (None, None);
        self.down();
        // The hops behind get less time than we have, so that their word reaches our caller before it gives up.
        let patience = closing.caller.timeout.map_or(self.role.timing.close_timeout, |timeout| timeout.mul_f64(CLOSE_SHARE));
        self.settle(patience.max(self.role.timing.close_timeout)).await;
        // A way that was left before, to a hop that has died perhaps, is not this caller's concern any more.
        let unheard = self.owed.iter().any(|owed| way.as_ref().is_none_or(|way| owed.sent.candidate.is(way)));
        if self.touched.is_empty() && !unheard {
            return Ok(());
        }
        let object = format!("connection {:?}", self.owner.connection.as_str());
        Err(Error::new(Kind::Unavailable, object, "closed here, but not yet everywhere", "nothing: it is repeated until it is done")
            .at(&self.role.name))
    }

    /// In time, so that no token on the path ends.
    async fn refresh(&mut self) {
        let Some(incoming) = self.again() else { return };
        let failures = self.failures;
        if let Err(error) = self.request(&incoming).await {
            self.failures = failures.saturating_add(1);
            warn!(%error, "refresh failed; trying again");
        }
    }

    async fn on_event(&mut self, event: Event) {
        match event {
            Event::Request(incoming, reply) => {
                let result = self.request(&incoming).await;
                if let Err(error) = &result {
                    info!(%error, "request refused");
                }
                let _ = reply.send(result);
            }
            Event::Close(closing, reply) => {
                let _ = reply.send(self.close(&closing).await);
            }
            Event::News => return self.on_news().await,
            Event::End => {
                self.down();
                self.settle(self.role.timing.close_timeout).await;
            }
            Event::Measure(reply) => {
                let _ = reply.send(self.measure().await);
                return; // nothing has changed
            }
        }
        self.hear().await;
        self.schedule();
    }

    async fn on_wake(&mut self) {
        let now = Instant::now();
        if self.up.as_ref().and_then(|plan| plan.expires).is_some_and(|end| end <= now) {
            info!("connection expired");
            self.down();
        }
        if self.seat.as_ref().is_some_and(Seat::pending) && self.deaf_until <= now {
            self.hear().await;
        } else if self.trouble.is_some() {
            self.mend().await;
        } else if self.up.as_ref().and_then(|plan| plan.refresh).is_some_and(|at| at <= now) {
            self.refresh().await;
        } else {
            self.settle(self.role.timing.close_timeout).await;
        }
        self.schedule();
    }

    /// Sets the next wake: a retry after a failure, otherwise the earliest of expiry, refresh and repair.
    fn schedule(&mut self) {
        let (now, timing) = (Instant::now(), &self.role.timing);
        let soon = if self.failures > 0 {
            let pause = timing.retry_min.saturating_mul(1 << (self.failures - 1).min(16)).min(timing.retry_max);
            pause / 2 + Duration::from_millis(self.role.issuer.random(pause.as_millis() as u64 / 2 + 1))
        } else if self.trouble.is_some() {
            Duration::ZERO
        } else {
            timing.repair_every
        };
        let news = self.seat.as_ref().is_some_and(Seat::pending).then_some(self.deaf_until);
        let deadlines = self.up.iter().flat_map(|plan| {
            let refresh = plan.refresh.filter(|_| self.failures == 0 && self.trouble.is_none());
            plan.expires.into_iter().chain(refresh)
        });
        let spared = self.spared.as_ref().map(|spared| spared.until);
        self.wake = deadlines.chain(news).chain(spared).chain([now + soon]).min().unwrap_or(now);
    }

    /// Whether nothing is left that this task would have to look after.
    fn idle(&self) -> bool {
        let nothing = self.owed.is_empty() && self.touched.is_empty() && self.spared.is_none();
        self.up.is_none() && nothing && !self.held && self.wanted.is_none()
    }

    /// Resolves when an interface has appeared that later wires wait for.
    async fn awaited(kernel: &dyn crate::kernel::Kernel, later: &Wires) {
        for iface in later.iter().flat_map(Wire::needs) {
            if kernel.appeared(iface).await.is_err() {
                std::future::pending::<()>().await; // the periodic repair will find out
            }
        }
    }

    /// Runs until the connection has ended and `leave` agrees that nobody has written meanwhile.
    pub(crate) async fn run(mut self, mut mailbox: mpsc::Receiver<Event>, leave: impl Fn(&mpsc::Receiver<Event>) -> bool) {
        loop {
            let turn = match mailbox.try_recv() {
                Ok(event) => Turn::Event(event),
                Err(_) if self.idle() && leave(&mailbox) => return,
                Err(_) => {
                    self.stand_guard().await;
                    let role = self.role.clone();
                    let later =
                        self.up.as_ref().map(|plan| plan.wires.later.difference(&self.touched).cloned().collect()).unwrap_or_default();
                    let pulse = OptionFuture::from(self.pulse());
                    tokio::select! {
                        biased;
                        event = mailbox.recv() => match event { Some(event) => Turn::Event(event), None => return },
                        () = Box::pin(Conn::awaited(role.kernel.as_ref(), &later)), if !Wires::is_empty(&later) => Turn::Wake,
                        what = self.guard.disturbed() => Turn::Disturbed(what),
                        Some(()) = pulse => Turn::Silence,
                        () = sleep_until(self.wake) => Turn::Wake,
                    }
                }
            };
            // Boxed, so that a connection at rest is not as large as one at work.
            match turn {
                Turn::Event(event) => Box::pin(self.on_event(event)).await,
                Turn::Wake => Box::pin(self.on_wake()).await,
                Turn::Disturbed(what) => Box::pin(self.on_disturbance(what)).await,
                Turn::Silence => Box::pin(self.on_silence()).await,
            }
        }
    }
}

/// What wakes a connection at rest.
enum Turn {
    Event(Event),
    Wake,
    Silence,
    Disturbed(Disturbance),
}

/// `touched` is what may exist because of us: what is wanted from now on, and after a success only that.
async fn wire(role: &Role, owner: &Owner, touched: &mut Wires, desired: &Wires) -> Result<()> {
    touched.extend(desired.iter().cloned());
    if touched.is_empty() {
        return Ok(());
    }
    let observed = role.kernel.observe(owner, touched).await?;
    let ops = diff(desired, &observed);
    if !ops.is_empty() {
        role.kernel.apply(owner, &ops).await?;
    }
    touched.clone_from(desired);
    Ok(())
}

/// What the caller hears of a plan: its own index, its own id, the mechanism of its stretch.
fn answer(plan: &Plan) -> Answer {
    let mut connection = plan.connection.clone();
    path::leave(&mut connection, plan.return_index);
    let mut files = Files::default();
    if let Some((key, file)) = connection.mechanism.as_ref().and_then(|mechanism| Some((mechanism.inode()?, mechanism.file(&plan.files)?)))
    {
        files.insert(key, file.clone());
    }
    Answer { connection, files, certificate: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;

    /// What one connection at rest costs; growth is to be noticed, not to creep in.
    #[test]
    fn a_connection_at_rest_is_small() {
        fn size<F: Future>(_: impl FnOnce(Conn, mpsc::Receiver<Event>) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = size(|conn: Conn, mailbox| conn.run(mailbox, |_| true));
        assert!(bytes <= 4096, "the task of a connection has {bytes} bytes");
    }
}
