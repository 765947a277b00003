//! The log in memory: every event that has not been swept, as the watch told it, and who is to be told
//! next. Events come in the order of their revisions and none is left out, or this is not called.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::domain::ids::Revision;
use crate::store::engine::{KeyRange, LoggedEvent, Observer, Order, Value, event_key};
use crate::store::group::{bounds, is_empty};

use super::keys::{EVENT, revision_in};

/// An event and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) revision: i64,
    pub(super) at: Bytes,
    pub(super) value: Bytes,
}

/// The log.
pub(super) struct Log {
    state: RwLock<State>,
    observer: Mutex<Option<Arc<dyn Observer>>>,
    /// The newest event that the observer was told of.
    told: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    events: BTreeMap<u64, (Bytes, Bytes)>,
    revisions: HashMap<Bytes, u64>,
    head: u64,
}

impl Log {
    pub(super) fn new() -> Self {
        let (state, observer) = (RwLock::default(), Mutex::default());
        Self { state, observer, told: watch::Sender::new(0) }
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn head(&self) -> Revision {
        Revision(self.state().head)
    }

    pub(super) fn observe(&self, observer: Arc<dyn Observer>) {
        *self.observer.lock().unwrap_or_else(PoisonError::into_inner) = Some(observer);
    }

    /// Adds events, tells the observer, and then whoever waits. Only the one task that follows the
    /// watch calls this, so the observer is told in order. `through` is a revision up to which there
    /// is no other event.
    pub(super) fn add(&self, events: Vec<Placed>, through: i64) {
        let mut state = self.state_mut();
        let before = state.head;
        let mut logged = Vec::with_capacity(events.len());
        for event in events {
            let Ok(revision) = u64::try_from(event.revision) else { continue };
            // Told already: a watch that begins again may begin early.
            if revision <= state.head {
                continue;
            }
            state.head = revision;
            state.revisions.insert(event.at.clone(), revision);
            let value = event.value.to_vec();
            state.events.insert(revision, (event.at, event.value));
            logged.push(LoggedEvent { revision: Revision(revision), value });
        }
        state.head = state.head.max(u64::try_from(through).unwrap_or_default());
        let head = state.head;
        drop(state);
        let observer = self.observer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // The newest event may have been swept before it was heard of here. The end of the log has moved
        // all the same, and whoever follows it would wait for it for ever.
        if let Some(observer) = observer
            && head > before
        {
            observer.durable(&logged, Revision(head));
        }
        self.told.send_replace(head);
    }

    /// Forgets an event that was swept.
    pub(super) fn remove(&self, at: &[u8]) {
        let mut state = self.state_mut();
        if let Some(revision) = state.revisions.remove(at) {
            state.events.remove(&revision);
        }
    }

    /// Forgets all but these.
    pub(super) fn retain(&self, there: impl Fn(&[u8]) -> bool) {
        let mut state = self.state_mut();
        let gone: Vec<_> = state.revisions.keys().filter(|at| !there(at)).cloned().collect();
        for at in gone {
            if let Some(revision) = state.revisions.remove(&at) {
                state.events.remove(&revision);
            }
        }
    }

    /// Waits until the observer was told of everything up to `revision`. False when that was not
    /// before the deadline.
    pub(super) async fn wait_for(&self, revision: i64, deadline: Instant) -> bool {
        let wanted = u64::try_from(revision).unwrap_or_default();
        let mut told = self.told.subscribe();
        matches!(timeout_at(deadline, told.wait_for(|told| *told >= wanted)).await, Ok(Ok(_)))
    }

    /// Up to `limit` events above `after`.
    pub(super) fn after(&self, after: Revision, limit: usize) -> Vec<LoggedEvent> {
        let Some(first) = after.0.checked_add(1) else { return Vec::new() };
        let state = self.state();
        let found = state.events.range(first..).take(limit);
        found
            .map(|(revision, (_, value))| LoggedEvent {
                revision: Revision(*revision),
                value: value.to_vec(),
            })
            .collect()
    }

    /// Where the event of a revision stands.
    pub(super) fn place_of(&self, revision: Revision) -> Option<Bytes> {
        self.state().events.get(&revision.0).map(|(at, _)| at.clone())
    }

    /// The event under a decision's key.
    pub(super) fn get(&self, key: &[u8]) -> Option<Value> {
        let revision = revision_in(key)?;
        self.state().events.get(&revision.0).map(|(_, value)| value.to_vec())
    }

    /// Events by decisions' keys.
    pub(super) fn scan(
        &self,
        range: &KeyRange,
        order: Order,
        limit: usize,
    ) -> Vec<(Vec<u8>, Value)> {
        if is_empty(range) {
            return Vec::new();
        }
        let state = self.state();
        // A key that is no revision lies between two that are: the eight bytes that it begins with
        // say where to begin.
        let first = range.start.strip_prefix(&[EVENT]).unwrap_or_default();
        let mut bytes = [0; 8];
        for (byte, from) in bytes.iter_mut().zip(first) {
            *byte = *from;
        }
        let within = state
            .events
            .range(u64::from_be_bytes(bytes)..)
            .map(|(revision, (_, value))| (event_key(Revision(*revision)), value));
        let (from, to) = bounds(range);
        let inside = |key: &[u8]| std::ops::RangeBounds::<[u8]>::contains(&(from, to), key);
        let records =
            within.filter(|(key, _)| inside(key)).map(|(key, value)| (key, value.to_vec()));
        match order {
            Order::Ascending => records.take(limit).collect(),
            Order::Descending => {
                let mut all: Vec<_> = records.collect();
                all.reverse();
                all.truncate(limit);
                all
            }
        }
    }
}
