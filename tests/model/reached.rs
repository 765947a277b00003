//! What a check has come across, so that nobody takes a model for right in which nothing happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Something that a check should come across.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Situation {
    /// A rotation was committed and heard of.
    Rotated,
    /// A spent token got the successor again.
    Retried,
    /// A spent token was found out, and the session revoked.
    ReuseFound,
    /// A commit failed because something had changed, and the decision ran again.
    DecidedAgain,
    /// An unknown outcome turned out to have happened.
    UnknownHappened,
    /// An unknown outcome turned out not to have happened so far.
    UnknownOpen,
    /// A transaction was sent again after an unknown outcome, and the first sending came first.
    OwnCameFirst,
    /// A transaction came late and was committed all the same.
    LateCommitted,
    /// A transaction came late and was turned away.
    LateRefused,
    /// Revoke was acknowledged.
    Revoked,
    /// Revoke was acknowledged though another had done it.
    AlreadyRevoked,
    /// An answer had to wait for the watch.
    AnswerWaited,
    /// A replica died with a call under way.
    DiedInCall,
    /// A replica that was cut off could not prove contact.
    Frozen,
    /// `as_of` of a replica moved.
    Proved,
    /// A proof had to wait for the watch.
    ProofWaited,
    /// `as_of` reached a watcher.
    Vouched,
    /// A watcher got a snapshot with events in it.
    Snapshot,
    /// A watcher took its cursor to another replica, which had news for it.
    MovedToNews,
    /// A watcher took its cursor to a replica that was behind it, and was sent away.
    Behind,
}

impl Situation {
    const ALL: [Self; 20] = [
        Self::Rotated,
        Self::Retried,
        Self::ReuseFound,
        Self::DecidedAgain,
        Self::UnknownHappened,
        Self::UnknownOpen,
        Self::OwnCameFirst,
        Self::LateCommitted,
        Self::LateRefused,
        Self::Revoked,
        Self::AlreadyRevoked,
        Self::AnswerWaited,
        Self::DiedInCall,
        Self::Frozen,
        Self::Proved,
        Self::ProofWaited,
        Self::Vouched,
        Self::Snapshot,
        Self::MovedToNews,
        Self::Behind,
    ];
}

/// How often each situation was come across.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reached(Arc<[AtomicU64; Situation::ALL.len()]>);

impl Reached {
    pub(crate) fn note(&self, situation: Situation) {
        self.0[situation as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self, situation: Situation) -> u64 {
        self.0[situation as usize].load(Ordering::Relaxed)
    }

    /// Those of `expected` that were never come across.
    pub(crate) fn missing(&self, expected: &[Situation]) -> Vec<Situation> {
        expected.iter().copied().filter(|it| self.count(*it) == 0).collect()
    }

    /// Everything that was come across, and how often.
    pub(crate) fn summary(&self) -> String {
        let counts = Situation::ALL.iter().map(|it| (it, self.count(*it)));
        let seen = counts.filter(|(_, count)| *count > 0);
        seen.map(|(it, count)| format!("{it:?} {count}")).collect::<Vec<_>>().join(", ")
    }
}
