//! How far a move into etcd is, with several transactions on their way at once: a mark says only what is
//! there whichever of them arrive.

use std::collections::VecDeque;

use crate::store::moving::{Mark, Progress, Source};

/// How far a move is.
#[derive(Debug, Default)]
pub(super) struct Onward {
    /// What moves; none for a restore, which leaves no mark.
    pub(super) source: Option<Source>,
    /// What is there of one that was cut off.
    pub(super) there: Progress,
    /// What was given.
    pub(super) given: Progress,
    /// What is there for certain.
    safe: Progress,
    /// What will be there with each transaction that is on its way and those before it, and whether that
    /// one has arrived.
    on_way: VecDeque<(Progress, bool)>,
    /// The number of the first of them.
    first: u64,
}

impl Onward {
    /// Goes on from a mark.
    pub(super) fn from(mark: &Mark) -> Self {
        Self { there: mark.progress, safe: mark.progress, ..Self::default() }
    }

    /// A record was given.
    pub(super) fn gave(&mut self, print: u128) {
        self.given.records += 1;
        self.given.digest = self.given.digest.wrapping_add(print);
    }

    /// Whether the next record that is given is there already.
    pub(super) const fn is_there(&self) -> bool {
        self.given.records < self.there.records
    }

    /// Whether what was given is what the mark says: it can say so of its own end alone.
    pub(super) const fn agrees(&self) -> bool {
        self.given.records != self.there.records || self.given.digest == self.there.digest
    }

    /// A transaction sets out with everything that was given so far and has not set out yet. Gives its
    /// number.
    pub(super) fn sets_out(&mut self) -> u64 {
        let number = self.first + self.on_way.len() as u64;
        self.on_way.push_back((self.given, false));
        number
    }

    /// It arrived.
    pub(super) fn arrived(&mut self, number: u64) {
        let at = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some((_, arrived)) = at.and_then(|at| self.on_way.get_mut(at)) {
            *arrived = true;
        }
        while let Some((progress, true)) = self.on_way.front().copied() {
            self.on_way.pop_front();
            self.first += 1;
            // What is given again is still there.
            if progress.records >= self.safe.records {
                self.safe = progress;
            }
        }
    }

    /// What to leave there now.
    pub(super) fn mark(&self) -> Option<Mark> {
        self.source.map(|source| Mark { progress: self.safe, ..Mark::new(source) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::LogId;

    #[test]
    fn a_mark_waits_for_the_slowest() {
        let source = Source { log_id: LogId::from_bytes([1; 16]), changed: 1, print: 1 };
        let mut onward = Onward { source: Some(source), ..Onward::default() };
        let numbers: Vec<_> = (0..4)
            .map(|_| {
                onward.gave(1);
                onward.sets_out()
            })
            .collect();
        let safe = |onward: &Onward| onward.mark().unwrap().progress.records;
        for (number, expected) in [(1, 0), (3, 0), (0, 2), (2, 4)] {
            onward.arrived(numbers[number]);
            assert_eq!(safe(&onward), expected);
        }
        onward.gave(1);
        assert_eq!(safe(&onward), 4, "it was not sent");
        let number = onward.sets_out();
        onward.arrived(number);
        assert_eq!(onward.mark().unwrap().progress.digest, 5);
    }

    #[test]
    fn what_is_there_is_not_lost_from_sight_and_must_be_what_is_given_again() {
        let source = Source { log_id: LogId::from_bytes([1; 16]), changed: 1, print: 1 };
        let progress = Progress { records: 3, digest: 9, events: 0 };
        let mark = Mark { progress, ..Mark::new(source) };
        let mut onward = Onward { source: Some(source), ..Onward::from(&mark) };
        for print in [2, 3, 4] {
            assert!(onward.is_there() && onward.agrees());
            onward.gave(print);
        }
        assert!(!onward.is_there() && onward.agrees());
        assert_eq!(onward.mark(), Some(mark.clone()));
        let mut other = Onward::from(&mark);
        for print in [2, 3, 5] {
            other.gave(print);
        }
        assert!(!other.agrees());
    }
}
