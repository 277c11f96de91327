//! Which counters of a key have been seen: a sliding window over a ring of bits (RFC 6479).

const WORD_BITS: u64 = 64;
const WORDS: u64 = 128;
/// How far behind the greatest counter a packet may be. One word of the ring is always being cleared.
pub(crate) const WINDOW: u64 = (WORDS - 1) * WORD_BITS;

/// The window of one receiving key.
pub(crate) struct Window {
    /// One more than the greatest counter seen; 0 when none was.
    next: u64,
    bits: [u64; WORDS as usize],
}

impl Window {
    pub(crate) fn new() -> Window {
        Window { next: 0, bits: [0; WORDS as usize] }
    }
    /// Whether the counter is new; if so, it is not any more. Only for counters of packets that were authentic.
    pub(crate) fn accept(&mut self, counter: u64) -> bool {
        if counter >= self.next {
            self.advance(counter);
        } else if self.next - counter > WINDOW {
            return false;
        }
        let (word, bit) = place(counter);
        let fresh = self.bits[word] & bit == 0;
        self.bits[word] |= bit;
        fresh
    }
    /// Makes `counter` the greatest, forgetting what falls out at the other end.
    fn advance(&mut self, counter: u64) {
        let newest = counter / WORD_BITS;
        let steps = match self.next {
            0 => 0,
            next => (newest - (next - 1) / WORD_BITS).min(WORDS),
        };
        for step in 0..steps {
            self.bits[((newest - step) % WORDS) as usize] = 0;
        }
        self.next = counter.saturating_add(1);
    }
}

fn place(counter: u64) -> (usize, u64) {
    ((counter / WORD_BITS % WORDS) as usize, 1 << (counter % WORD_BITS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Against the plainest possible statement of the rule.
        #[test]
        fn agrees_with_a_set(steps in proptest::collection::vec((any::<bool>(), 0..3 * WINDOW), 1..300), start in 0..u64::MAX / 2) {
            let (mut window, mut seen, mut greatest) = (Window::new(), BTreeSet::new(), None);
            for (ahead, step) in steps {
                let base = greatest.unwrap_or(start);
                let counter: u64 = if ahead { base + step % 200 } else { base.saturating_sub(step) };
                let recent = greatest.is_none_or(|greatest: u64| counter > greatest || greatest + 1 - counter <= WINDOW);
                let expected = recent && seen.insert(counter);
                greatest = Some(greatest.map_or(counter, |greatest| greatest.max(counter)));
                prop_assert_eq!(window.accept(counter), expected, "counter {}", counter);
            }
        }
    }

    #[test]
    fn a_far_jump_forgets_all() {
        let mut window = Window::new();
        assert!(window.accept(5) && !window.accept(5));
        assert!(window.accept(5 + 10 * WINDOW));
        assert!(!window.accept(5));
        assert!(window.accept(4 + 10 * WINDOW) && !window.accept(4 + 10 * WINDOW));
    }
}
