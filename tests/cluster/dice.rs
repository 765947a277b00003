//! Choices that the same seed makes again.

use std::time::Duration;

use avouch::domain::entropy::{Entropy, SeededEntropy};

pub(crate) struct Dice(SeededEntropy);

impl Dice {
    /// `who` tells one from the other that have the same seed.
    pub(crate) fn new(seed: u64, who: &str) -> Self {
        let mixed = who.bytes().fold(seed, |seed, byte| {
            (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3).rotate_left(17)
        });
        Self(SeededEntropy::new(mixed))
    }

    /// A number below `limit`.
    pub(crate) fn below(&self, limit: usize) -> usize {
        let entropy: &dyn Entropy = &self.0;
        let drawn = u64::from_le_bytes(entropy.bytes());
        usize::try_from(drawn % limit.max(1) as u64).expect("below a usize")
    }

    /// True `percent` times in a hundred.
    pub(crate) fn chance(&self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// Something between the two, to the millisecond.
    pub(crate) fn between(&self, shortest: Duration, longest: Duration) -> Duration {
        let range = usize::try_from((longest.saturating_sub(shortest)).as_millis()).unwrap_or(0);
        shortest + Duration::from_millis(self.below(range + 1) as u64)
    }

    /// One of these.
    pub(crate) fn of<'a, T>(&self, them: &'a [T]) -> &'a T {
        &them[self.below(them.len())]
    }
}
