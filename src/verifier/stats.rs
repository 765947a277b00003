//! What a verifier has answered so far.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Refusal, VerifiedToken};

/// The answers of a verifier since it began.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct VerifierStats {
    /// Tokens that were accepted.
    pub accepted: u64,
    /// Tokens that were none of the issuer's, or not in their time.
    pub invalid: u64,
    /// Tokens that were known to be revoked.
    pub revoked: u64,
    /// Tokens that the server said were not good.
    pub inactive: u64,
    /// Tokens that nobody could judge, as what was known was too old.
    pub stale: u64,
    /// Tokens that came before the set was complete.
    pub not_ready: u64,
    /// Questions to the server.
    pub asked: u64,
    /// Tokens that were accepted although what was known was too old, under the policy `open`.
    pub opened: u64,
}

/// The same, as it is counted.
#[derive(Default)]
pub(super) struct Counters {
    accepted: AtomicU64,
    invalid: AtomicU64,
    revoked: AtomicU64,
    inactive: AtomicU64,
    stale: AtomicU64,
    not_ready: AtomicU64,
    asked: AtomicU64,
    opened: AtomicU64,
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    pub(super) fn count(&self, result: &Result<Arc<VerifiedToken>, Refusal>) {
        add(match result {
            Ok(_) => &self.accepted,
            Err(Refusal::Invalid(_)) => &self.invalid,
            Err(Refusal::Revoked(_)) => &self.revoked,
            Err(Refusal::Inactive) => &self.inactive,
            Err(Refusal::Stale) => &self.stale,
            Err(Refusal::NotReady) => &self.not_ready,
        });
    }

    pub(super) fn asked(&self) {
        add(&self.asked);
    }

    pub(super) fn opened(&self) {
        add(&self.opened);
    }

    pub(super) fn read(&self) -> VerifierStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        VerifierStats {
            accepted: read(&self.accepted),
            invalid: read(&self.invalid),
            revoked: read(&self.revoked),
            inactive: read(&self.inactive),
            stale: read(&self.stale),
            not_ready: read(&self.not_ready),
            asked: read(&self.asked),
            opened: read(&self.opened),
        }
    }
}
