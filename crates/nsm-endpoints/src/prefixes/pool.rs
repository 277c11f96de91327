//! Who holds which prefix. Pure: time is passed in, as the duration since the start.

use ipnet::IpNet;
use nsm_api::{Error, Kind, Result};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// Prefixes that are known: lent, waiting for their holders, or idle. Of idle ones the oldest are forgotten beyond this.
pub const MAX_LOANS: usize = 65_536;

/// A stream of a client.
pub type StreamId = u64;

/// How long the pool is patient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// How long a prefix waits for its holder after the stream's end.
    pub grace: Duration,
    /// How long after the start only wishes are granted.
    pub settling: Duration,
}

/// What becomes of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This prefix is lent.
    Lent(IpNet),
    /// It cannot be said yet: ask again in a moment.
    Later,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Held(StreamId),
    /// Until then it waits for its holder.
    Waiting(Duration),
    /// Nobody's, since this turn.
    Idle(u64),
}

#[derive(Clone, Debug)]
struct Loan {
    holder: String,
    state: State,
}

/// One pool of prefixes of one family.
#[derive(Clone, Debug)]
pub struct Pool {
    all: IpNet,
    length: u8,
    times: Times,
    loans: BTreeMap<IpNet, Loan>,
    /// Counts prefixes that became idle.
    turn: u64,
}

impl Pool {
    /// A pool that lends prefixes of this length, or others on request, from `all`.
    pub fn new(all: IpNet, length: u8, times: Times) -> Result<Pool> {
        if length < all.prefix_len() || length > all.max_prefix_len() {
            let reason = format!("cannot be lent in prefixes of length {length}");
            let fix = format!("choose a length from {} to {}", all.prefix_len(), all.max_prefix_len());
            return Err(Error::invalid(format!("pool {all}"), reason, fix));
        }
        Ok(Pool { all: all.trunc(), length, times, loans: BTreeMap::new(), turn: 0 })
    }

    /// Takes up what a former process lent: each waits for its holder.
    pub fn restore(&mut self, loans: impl IntoIterator<Item = (IpNet, String)>) {
        let state = State::Waiting(self.times.grace);
        self.loans.extend(loans.into_iter().take(MAX_LOANS).map(|(prefix, holder)| (prefix, Loan { holder, state })));
        self.times.settling = Duration::ZERO;
    }

    /// All that must be known after a restart: prefixes, and whose they are or were.
    pub fn loans(&self) -> impl Iterator<Item = (IpNet, &str)> {
        self.loans.iter().map(|(prefix, loan)| (*prefix, loan.holder.as_str()))
    }

    /// A prefix for `stream` of `holder`, outside `excluded`: the wanted one, if it can be had, else a fresh one.
    pub fn ask(&mut self, now: Duration, (stream, holder): (StreamId, &str), wanted: Option<IpNet>, excluded: &[IpNet]) -> Result<Outcome> {
        self.tick(now);
        let wanted = wanted.map(|prefix| prefix.trunc()).filter(|prefix| self.all.contains(prefix) && !meets_any(prefix, excluded));
        let mut prefix = None;
        if let Some(wanted) = wanted {
            if self.is_free(&wanted, holder) {
                prefix = Some(wanted);
            } else if self.loans.get(&wanted).is_some_and(|loan| loan.holder == holder && matches!(loan.state, State::Held(_))) {
                return Ok(Outcome::Later); // its former stream is about to end
            }
        }
        if prefix.is_none() && now < self.times.settling {
            return Ok(Outcome::Later);
        }
        let prefix = prefix.or_else(|| self.unknown(excluded)).or_else(|| self.idle(excluded)).ok_or_else(|| self.exhausted())?;
        self.loans.retain(|known, _| !meet(known, &prefix));
        self.make_room()?;
        self.loans.insert(prefix, Loan { holder: holder.to_owned(), state: State::Held(stream) });
        Ok(Outcome::Lent(prefix))
    }

    /// `stream` gives `prefix` back.
    pub fn release(&mut self, stream: StreamId, prefix: &IpNet) -> Result<()> {
        match self.loans.get(prefix) {
            Some(loan) if loan.state == State::Held(stream) => {
                self.loans.remove(prefix);
                Ok(())
            }
            _ => Err(Error::invalid(format!("prefix {prefix}"), "was not lent on this stream", "give back what was lent, once")),
        }
    }

    /// `stream` has ended.
    pub fn end(&mut self, now: Duration, stream: StreamId) {
        let until = now.saturating_add(self.times.grace);
        let held = self.loans.values_mut().filter(|loan| loan.state == State::Held(stream));
        held.for_each(|loan| loan.state = State::Waiting(until));
    }

    /// Nobody comes any more for what has waited long enough.
    fn tick(&mut self, now: Duration) {
        for loan in self.loans.values_mut() {
            if matches!(loan.state, State::Waiting(until) if until <= now) {
                loan.state = State::Idle(self.turn);
                self.turn += 1;
            }
        }
    }

    /// Whether `holder` may have just this prefix.
    fn is_free(&self, prefix: &IpNet, holder: &str) -> bool {
        self.loans.iter().filter(|(known, _)| meet(known, prefix)).all(|(known, loan)| match loan.state {
            State::Held(_) => false,
            State::Waiting(_) => known == prefix && loan.holder == holder,
            State::Idle(_) => true,
        })
    }

    /// The lowest that nobody has had.
    fn unknown(&self, excluded: &[IpNet]) -> Option<IpNet> {
        let same_family = |prefix: &&IpNet| prefix.addr().is_ipv4() == self.all.addr().is_ipv4();
        let mut taken: Vec<(u128, u128)> = self.loans.keys().chain(excluded).filter(same_family).map(range).collect();
        taken.sort_unstable();
        let (mut next, last) = range(&self.all);
        let step = 1_u128.checked_shl(u32::from(self.all.max_prefix_len() - self.length));
        for (from, to) in taken {
            if let (true, Some(step)) = (to >= next, step) {
                if from > next + (step - 1) {
                    break;
                }
                next = (to / step).checked_add(1)?.checked_mul(step)?;
            } else if to >= next {
                return None; // there is one prefix: everything
            }
        }
        let prefix = IpNet::new(address(next, self.all.addr().is_ipv4()), self.length).ok()?;
        (next <= last).then_some(prefix)
    }

    /// That which has been idle longest.
    fn idle(&self, excluded: &[IpNet]) -> Option<IpNet> {
        let turn = |loan: &Loan| if let State::Idle(turn) = loan.state { Some(turn) } else { None };
        let mut idle: Vec<(u64, &IpNet)> = self.loans.iter().filter_map(|(prefix, loan)| Some((turn(loan)?, prefix))).collect();
        idle.sort_unstable();
        let chunk = |prefix: &IpNet| IpNet::new(prefix.addr(), self.length).map(|chunk| chunk.trunc()).ok();
        let fits = |chunk: &IpNet| {
            self.all.contains(chunk)
                && !meets_any(chunk, excluded)
                && self.loans.iter().all(|(known, loan)| !meet(known, chunk) || turn(loan).is_some())
        };
        idle.into_iter().filter_map(|(_, prefix)| chunk(prefix)).find(fits)
    }

    fn make_room(&mut self) -> Result<()> {
        if self.loans.len() < MAX_LOANS {
            return Ok(());
        }
        let turns =
            self.loans.iter().filter_map(|(prefix, loan)| if let State::Idle(turn) = loan.state { Some((turn, *prefix)) } else { None });
        let oldest = turns.min().map(|(_, prefix)| prefix).ok_or_else(|| self.exhausted())?;
        self.loans.remove(&oldest);
        Ok(())
    }

    fn exhausted(&self) -> Error {
        let reason = format!("has no free prefix of length {}: {} are in use or wait for their holders", self.length, self.loans.len());
        Error::new(Kind::Exhausted, format!("pool {}", self.all), reason, "enlarge --prefix, or choose a longer --client-prefix-len")
    }
}

fn meet(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

fn meets_any(prefix: &IpNet, others: &[IpNet]) -> bool {
    others.iter().any(|other| meet(other, prefix))
}

/// First and last address, as numbers.
fn range(prefix: &IpNet) -> (u128, u128) {
    (number(prefix.network()), number(prefix.broadcast()))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn address(number: u128, ipv4: bool) -> IpAddr {
    if ipv4 { IpAddr::V4((number as u32).into()) } else { IpAddr::V6(number.into()) }
}

#[cfg(test)]
mod tests;
