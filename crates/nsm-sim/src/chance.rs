//! The only source of chance: one seed, one sequence. The same on every machine and with every version of any library.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// SplitMix64. Shared by all tasks of a run, which run one at a time and in a fixed order.
pub(crate) struct Chance(AtomicU64);

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Chance {
    pub(crate) fn new(seed: u64) -> Chance {
        Chance(AtomicU64::new(seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1)))
    }
    pub(crate) fn draw(&self) -> u64 {
        let state = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    }
    /// A number below `below`; 0 when that is 0.
    pub(crate) fn below(&self, below: u64) -> u64 {
        self.draw() % below.max(1)
    }
    /// Whether something happens that does so `permille` times of a thousand. Draws nothing for what never happens.
    pub(crate) fn happens(&self, permille: u64) -> bool {
        permille > 0 && self.below(1000) < permille
    }
    /// A length of time from `from` to `to`, in milliseconds.
    pub(crate) fn millis(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to.saturating_sub(from) + 1))
    }
    /// One of these; `None` of none.
    pub(crate) fn pick<'a, T>(&self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.below(of.len() as u64) as usize)
    }
}

/// A number for a text, the same everywhere.
pub(crate) fn fingerprint(start: u64, text: &str) -> u64 {
    text.bytes().fold(start ^ 0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
