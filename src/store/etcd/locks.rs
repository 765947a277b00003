//! Who changes the same record in this process does it one after another: each on what the one before
//! left, instead of in vain.

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};

const LOCKS: u64 = 1024;

/// Locks on keys. Two keys may share one. Each holds the revision at which somebody who had it wrote last.
pub(super) struct Locks {
    locks: Vec<Arc<Mutex<i64>>>,
    hasher: RandomState,
}

/// What is locked.
#[derive(Default)]
pub(super) struct Locked {
    which: BTreeSet<usize>,
    guards: Vec<(usize, OwnedMutexGuard<i64>)>,
}

impl Locked {
    pub(super) fn covers(&self, which: &BTreeSet<usize>) -> bool {
        which.is_subset(&self.which)
    }

    /// Lets go of all but these.
    pub(super) fn keep(&mut self, which: &BTreeSet<usize>) {
        self.which.retain(|number| which.contains(number));
        self.guards.retain(|(number, _)| which.contains(number));
    }

    /// The highest revision at which somebody wrote who had one of them before.
    pub(super) fn newest(&self) -> i64 {
        self.guards.iter().map(|(_, revision)| **revision).max().unwrap_or(0)
    }

    /// Lets go, having written at this revision.
    pub(super) fn wrote(self, at: i64) {
        for (_, mut revision) in self.guards {
            *revision = at.max(*revision);
        }
    }
}

impl Locks {
    pub(super) fn new() -> Self {
        let locks = (0..LOCKS).map(|_| Arc::default()).collect();
        Self { locks, hasher: RandomState::new() }
    }

    /// Which locks keys have.
    pub(super) fn of<'a>(&self, keys: impl Iterator<Item = &'a Vec<u8>>) -> BTreeSet<usize> {
        keys.filter_map(|key| usize::try_from(self.hasher.hash_one(key) % LOCKS).ok()).collect()
    }

    /// Waits for locks, in the one order in which everybody takes them.
    pub(super) async fn lock(&self, which: BTreeSet<usize>) -> Locked {
        let mut guards = Vec::with_capacity(which.len());
        for number in &which {
            if let Some(lock) = self.locks.get(*number) {
                guards.push((*number, Arc::clone(lock).lock_owned().await));
            }
        }
        Locked { which, guards }
    }
}
