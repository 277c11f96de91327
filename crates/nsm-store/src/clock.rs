//! Time that outlives a process.

use rustix::time::{ClockId, clock_gettime};
use std::{
    fs,
    time::{Duration, SystemTime},
};

/// One moment, on two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Which run of the machine [`Moment::since_boot`] counts in.
    pub boot: u64,
    /// Since the machine started, also while it slept. No clock step changes it.
    pub since_boot: Duration,
    /// The time of day.
    pub wall: SystemTime,
}

/// Tells what a stored deadline is measured by.
pub trait Clock: Send + Sync {
    /// This moment.
    fn now(&self) -> Moment;
}

/// The clocks of this machine.
pub struct SystemClock {
    boot: u64,
}

impl SystemClock {
    /// Where the kernel does not name its run, deadlines are kept by the time of day over a restart.
    pub fn new() -> SystemClock {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        let boot = u64::from_str_radix(&digits, 16).unwrap_or_else(|_| rand::random());
        SystemClock { boot }
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        let time = clock_gettime(ClockId::Boottime);
        let since_boot = Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0));
        Moment { boot: self.boot, since_boot, wall: SystemTime::now() }
    }
}

/// When a stored record ends, so that any later process can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    boot: u64,
    since_boot: u64,
    wall: u64,
    life: u64,
}

/// Bytes of an [`End`].
pub(crate) const END_BYTES: usize = 32;

impl End {
    pub(crate) fn new(now: Moment, life: Duration) -> End {
        End {
            boot: now.boot,
            since_boot: nanos(now.since_boot.saturating_add(life)),
            wall: nanos(since_epoch(now.wall).saturating_add(life)),
            life: nanos(life).max(1),
        }
    }

    /// What is left of the life. In the same run of the machine no clock step matters; after it the time of day
    /// decides, and never gives more than the whole life.
    pub(crate) fn left(&self, now: Moment) -> Duration {
        let (end, now) =
            if self.boot == now.boot { (self.since_boot, nanos(now.since_boot)) } else { (self.wall, nanos(since_epoch(now.wall))) };
        Duration::from_nanos(end.saturating_sub(now).min(self.life))
    }

    pub(crate) fn to_bytes(end: Option<End>) -> [u8; END_BYTES] {
        let End { boot, since_boot, wall, life } = end.unwrap_or(End { boot: 0, since_boot: 0, wall: 0, life: 0 });
        let mut bytes = [0; END_BYTES];
        for (place, part) in bytes.chunks_exact_mut(8).zip([boot, since_boot, wall, life]) {
            place.copy_from_slice(&part.to_be_bytes());
        }
        bytes
    }

    /// `None` for a record that does not end: its life is zero.
    pub(crate) fn from_bytes(bytes: &[u8; END_BYTES]) -> Option<End> {
        let mut parts = bytes.chunks_exact(8).map(|part| part.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte)));
        let mut part = || parts.next().unwrap_or(0);
        let end = End { boot: part(), since_boot: part(), wall: part(), life: part() };
        (end.life > 0).then_some(end)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn since_epoch(wall: SystemTime) -> Duration {
    wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(boot: u64, since_boot: u64, wall: u64) -> Moment {
        Moment { boot, since_boot: Duration::from_secs(since_boot), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(wall) }
    }

    /// D1, D2: steps of the wall clock end nothing early and make nothing immortal.
    #[test]
    fn steps_of_the_wall_clock_do_not_matter_within_a_run_and_are_bounded_after_it() {
        let end = End::new(moment(1, 100, 5000), Duration::from_secs(60));
        for wall in [0, 5000, 8600, 1_000_000] {
            assert_eq!(end.left(moment(1, 130, wall)), Duration::from_secs(30));
            assert_eq!(end.left(moment(1, 161, wall)), Duration::ZERO);
        }
        for (wall, left) in [(5030, 30), (0, 60), (5060, 0), (9000, 0)] {
            assert_eq!(end.left(moment(2, 1, wall)), Duration::from_secs(left), "{wall}");
        }
    }

    #[test]
    fn ends_are_read_back() {
        let end = End::new(moment(u64::MAX, 3, 4), Duration::MAX);
        assert_eq!(End::from_bytes(&End::to_bytes(Some(end))), Some(end));
        assert_eq!(End::from_bytes(&End::to_bytes(None)), None);
        assert!(End::new(moment(1, 1, 1), Duration::ZERO).left(moment(1, 1, 1)) <= Duration::from_nanos(1));
    }

    #[test]
    fn this_machine_has_a_clock_that_goes_on() {
        let clock = SystemClock::new();
        let (a, b) = (clock.now(), clock.now());
        assert!(b.since_boot >= a.since_boot && a.boot == b.boot && a.boot == SystemClock::new().now().boot);
    }
}
