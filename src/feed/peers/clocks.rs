//! How far the clocks of the replicas are apart, as far as one of them can tell: each writes what its
//! clock shows, and the others see it a moment later.

use std::collections::HashMap;
use std::time::Duration;

use crate::domain::clock::Timestamp;

/// How far apart clocks may be. Half of what revocations are kept beyond the end of what they
/// revoke ([`SKEW`](crate::domain::event::SKEW)): a sweeper that is ahead and a verifier that is
/// behind by this much still agree.
pub(super) const MAX_APART: Duration = Duration::from_secs(30);

/// How the clock of this replica stands to those of the others.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ClockStanding {
    /// How many others were heard.
    pub others: usize,
    /// How many milliseconds this clock is ahead of the middle one of the others; below zero, behind.
    pub ahead_millis: i64,
    /// Whether the others agree with each other and not with this one.
    pub outvoted: bool,
}

impl ClockStanding {
    /// How many seconds this clock is ahead.
    pub fn ahead_seconds(&self) -> f64 {
        let ahead = Duration::from_millis(self.ahead_millis.unsigned_abs()).as_secs_f64();
        if self.ahead_millis < 0 { -ahead } else { ahead }
    }

    /// Whether this clock is further from those of the others than may be.
    pub fn is_off(&self) -> bool {
        self.others > 0 && self.ahead_millis.unsigned_abs() > limit().unsigned_abs()
    }
}

fn limit() -> i64 {
    i64::try_from(MAX_APART.as_millis()).unwrap_or(i64::MAX)
}

/// How far the clock of each other replica is ahead of this one, in milliseconds.
#[derive(Debug, Default)]
pub(super) struct Offsets(HashMap<String, i64>);

impl Offsets {
    /// A replica wrote `clock` a moment ago; `here` is what this one's clock shows now.
    pub(super) fn heard(&mut self, id: &str, clock: Timestamp, here: Timestamp) {
        let millis = |at: Timestamp| i64::try_from(at.as_millis()).unwrap_or(i64::MAX);
        self.0.insert(id.to_owned(), millis(clock).saturating_sub(millis(here)));
    }

    pub(super) fn keep_only(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|id, _| keep(id));
    }

    pub(super) fn standing(&self) -> ClockStanding {
        let mut offsets: Vec<i64> = self.0.values().copied().collect();
        offsets.sort_unstable();
        let (Some(first), Some(last)) = (offsets.first(), offsets.last()) else {
            return ClockStanding::default();
        };
        let middle = offsets[offsets.len() / 2];
        let agree = last.saturating_sub(*first) <= limit();
        let standing = ClockStanding {
            others: offsets.len(),
            ahead_millis: middle.saturating_neg(),
            outvoted: false,
        };
        // Of two that disagree, nobody can say which is wrong.
        ClockStanding { outvoted: offsets.len() >= 2 && agree && standing.is_off(), ..standing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(others: &[u64]) -> ClockStanding {
        let mut offsets = Offsets::default();
        for (at, clock) in others.iter().enumerate() {
            let here = Timestamp::from_secs(1_000);
            offsets.heard(&at.to_string(), Timestamp::from_secs(*clock), here);
        }
        offsets.standing()
    }

    #[test]
    fn the_one_that_differs_from_two_that_agree_is_outvoted_and_one_of_two_is_not() {
        assert_eq!(standing(&[]), ClockStanding::default());
        assert!(!standing(&[]).is_off());
        let near = standing(&[1_004, 997]);
        assert!(!near.is_off() && !near.outvoted);
        let two = standing(&[900]);
        assert_eq!((two.others, two.ahead_millis), (1, 100_000));
        assert!(two.is_off() && !two.outvoted);
        let three = standing(&[900, 901]);
        assert!(three.is_off() && three.outvoted && three.ahead_millis > 0);
        let behind = standing(&[1_100, 1_101]);
        assert!(behind.outvoted && behind.ahead_millis < 0);
        // One of the others is the one that is wrong.
        let other = standing(&[1_001, 5_000, 999]);
        assert!(!other.is_off() && !other.outvoted);
        let torn = standing(&[900, 5_000]);
        assert!(torn.is_off() && !torn.outvoted);
        let at_the_limit = standing(&[1_030]);
        assert!(!at_the_limit.is_off());
    }
}
