//! What this engine last saw of records: what a decision is tried on first. Nothing here is taken for
//! true: a transaction compares it with what is there.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// A record, or that there was none, as of a revision.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Known {
    /// The value as it stands in etcd.
    pub(super) value: Option<Bytes>,
    /// When it was last changed; zero when it is not there.
    pub(super) changed: i64,
    /// A revision at which it was so.
    pub(super) as_of: i64,
}

/// The most records in one generation.
const GENERATION: usize = 1 << 16;

/// Records by their keys in etcd. What was not used for a generation goes with it.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Bytes, Known>,
    old: HashMap<Bytes, Known>,
}

impl Cache {
    fn generations(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the record at `at`.
    pub(super) fn get(&self, at: &[u8]) -> Option<Known> {
        let mut generations = self.generations();
        if let Some(known) = generations.young.get(at) {
            return Some(known.clone());
        }
        let (at, known) = generations.old.remove_entry(at)?;
        generations.add(at, known.clone());
        Some(known)
    }

    /// Keeps what is newer than what is known.
    pub(super) fn learn(&self, at: Bytes, known: Known) {
        let mut generations = self.generations();
        let newer = |other: Option<&Known>| other.is_none_or(|other| other.as_of <= known.as_of);
        if newer(generations.young.get(&at)) && newer(generations.old.get(&at)) {
            generations.old.remove(&at);
            generations.add(at, known);
        }
    }
}

impl Generations {
    fn add(&mut self, at: Bytes, known: Known) {
        self.young.insert(at, known);
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
    }
}
