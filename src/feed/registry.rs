//! Who watches: the caps, the list that operators see, and who has applied what.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::WatchError;
use crate::domain::clock::Timestamp;
use crate::domain::ids::Revision;

/// Ends a connection whose stream takes nothing any more.
pub type Close = Arc<dyn Fn() + Send + Sync>;

/// One watcher, as its stream and everybody else see it.
pub(super) struct Watcher {
    pub(super) id: String,
    /// The caller that opened it: the only one that may acknowledge for it.
    pub(super) owner: String,
    pub(super) subscriber: String,
    pub(super) since: Timestamp,
    /// The newest event when it attached. It sees what is not later in its snapshot.
    pub(super) attached_at: Revision,
    /// Everything up to here was handed to its stream.
    pub(super) position: AtomicU64,
    /// Everything up to here it says that it has applied.
    applied: AtomicU64,
    /// Somebody waits for it to apply everything up to here.
    pub(super) asked: AtomicU64,
    pub(super) frames: AtomicU64,
    /// Set when it took nothing for too long.
    pub(super) cut: AtomicBool,
    gone: AtomicBool,
    pub(super) heartbeat: Duration,
    pub(super) close: Option<Close>,
    pub(super) pulse: Mutex<Pulse>,
}

/// When a stream last asked for more, and since when it should have.
pub(super) struct Pulse {
    pub(super) asked_at: Instant,
    pub(super) overdue_since: Option<Instant>,
}

impl Watcher {
    pub(super) fn new(
        id: String,
        subscribe: &super::Subscribe,
        since: Timestamp,
        attached_at: Revision,
    ) -> Self {
        Self {
            id,
            owner: subscribe.owner.clone(),
            subscriber: subscribe.subscriber.clone(),
            since,
            attached_at,
            position: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            cut: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            heartbeat: subscribe.heartbeat,
            close: subscribe.close.clone(),
            pulse: Mutex::new(Pulse { asked_at: Instant::now(), overdue_since: None }),
        }
    }

    pub(super) fn position(&self) -> Revision {
        Revision(self.position.load(Ordering::Acquire))
    }

    /// The stream asks for more.
    pub(super) fn beat(&self) {
        let mut pulse = self.pulse();
        pulse.asked_at = Instant::now();
        pulse.overdue_since = None;
    }

    pub(super) fn pulse(&self) -> MutexGuard<'_, Pulse> {
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A watcher as operators see it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WatcherInfo {
    /// Its `watch_id`.
    pub watch_id: String,
    /// The name it gave itself.
    pub subscriber: String,
    /// Who called.
    pub owner: String,
    /// Since when it watches.
    pub since: Timestamp,
    /// Everything up to here was handed to its stream.
    pub position: Revision,
    /// How many revisions it is behind.
    pub lag: u64,
    /// How many frames its stream has taken.
    pub frames: u64,
}

/// How many of the watchers have applied an event.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Acked {
    /// The watchers that were connected and still are, or that have applied it.
    pub connected: u32,
    /// Those that have applied it.
    pub applied: u32,
    /// Whether all of them have.
    pub complete: bool,
}

impl Acked {
    /// Both together.
    #[must_use]
    pub(super) const fn and(self, other: Self) -> Self {
        Self {
            connected: self.connected.saturating_add(other.connected),
            applied: self.applied.saturating_add(other.applied),
            complete: self.complete && other.complete,
        }
    }
}

/// Everybody who watches.
pub(super) struct Registry {
    watchers: Mutex<Watchers>,
    /// How many wait, or are about to, for watchers to acknowledge.
    holds: AtomicUsize,
    /// Rises whenever somebody acknowledges or leaves.
    changed: watch::Sender<u64>,
    max: usize,
    max_per_owner: usize,
}

#[derive(Default)]
struct Watchers {
    by_id: HashMap<String, Arc<Watcher>>,
    by_owner: HashMap<String, usize>,
}

impl Registry {
    pub(super) fn new(max: usize, max_per_owner: usize) -> Self {
        Self {
            watchers: Mutex::default(),
            holds: AtomicUsize::new(0),
            changed: watch::Sender::new(0),
            max,
            max_per_owner,
        }
    }

    fn watchers(&self) -> MutexGuard<'_, Watchers> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, watcher: Watcher) -> Result<Arc<Watcher>, WatchError> {
        let mut watchers = self.watchers();
        if watchers.by_id.len() >= self.max {
            return Err(WatchError::Busy { per_caller: false, limit: self.max });
        }
        let own = watchers.by_owner.entry(watcher.owner.clone()).or_default();
        if *own >= self.max_per_owner {
            return Err(WatchError::Busy { per_caller: true, limit: self.max_per_owner });
        }
        *own += 1;
        let watcher = Arc::new(watcher);
        watchers.by_id.insert(watcher.id.clone(), Arc::clone(&watcher));
        Ok(watcher)
    }

    pub(super) fn remove(&self, watcher: &Watcher) {
        watcher.gone.store(true, Ordering::Release);
        let mut watchers = self.watchers();
        watchers.by_id.remove(&watcher.id);
        if let Some(own) = watchers.by_owner.get_mut(&watcher.owner) {
            *own -= 1;
            if *own == 0 {
                watchers.by_owner.remove(&watcher.owner);
            }
        }
        drop(watchers);
        self.changed.send_modify(|version| *version += 1);
    }

    pub(super) fn all(&self) -> Vec<Arc<Watcher>> {
        self.watchers().by_id.values().cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.watchers().by_id.len()
    }

    /// Takes note of what a watcher has applied. What it was never sent it cannot have applied, and
    /// nobody speaks for another's watch.
    pub(super) fn ack(&self, watch_id: &str, owner: &str, applied: Revision) {
        let Some(watcher) = self.watchers().by_id.get(watch_id).cloned() else { return };
        if watcher.owner == owner && applied <= watcher.position() {
            watcher.applied.fetch_max(applied.0, Ordering::AcqRel);
            self.changed.send_modify(|version| *version += 1);
        }
    }

    /// Whether somebody waits for watchers.
    pub(super) fn is_held(&self) -> bool {
        self.holds.load(Ordering::Acquire) > 0
    }

    pub(super) fn hold(&self) {
        self.holds.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn release(&self) {
        self.holds.fetch_sub(1, Ordering::AcqRel);
    }

    /// The one whom a watch belongs to, by its name: a name is random, and nobody but that one was told.
    pub(super) fn owner_of(&self, watch_id: &str) -> Option<String> {
        self.watchers().by_id.get(watch_id).map(|watcher| watcher.owner.clone())
    }

    /// Asks all who were attached before `through` to apply everything up to it.
    pub(super) fn expect(&self, through: Revision) -> Waiter {
        let mut watchers = self.all();
        // Who attached later has the event in its snapshot or in what it resumed with, before its
        // `synced`; it cannot be serving without it.
        watchers.retain(|watcher| watcher.attached_at < through);
        for watcher in &watchers {
            watcher.asked.fetch_max(through.0, Ordering::AcqRel);
        }
        Waiter { watchers, through, changed: self.changed.subscribe() }
    }
}

/// Waits until the watchers have applied an event.
pub struct Waiter {
    watchers: Vec<Arc<Watcher>>,
    through: Revision,
    changed: watch::Receiver<u64>,
}

impl Waiter {
    /// How many have applied it by now. Who left without having applied it does not count.
    pub fn now(&self) -> Acked {
        let mut acked = Acked::default();
        for watcher in &self.watchers {
            // Gone first: a watcher that acknowledges and leaves between the two loads counts.
            let gone = watcher.gone.load(Ordering::Acquire);
            let applied = watcher.applied.load(Ordering::Acquire) >= self.through.0;
            acked.connected += u32::from(applied || !gone);
            acked.applied += u32::from(applied);
        }
        acked.complete = acked.applied == acked.connected;
        acked
    }

    /// Returns once all have, or after `limit`.
    pub async fn wait(mut self, limit: Duration) -> Acked {
        self.wait_until(Instant::now() + limit).await
    }

    /// Returns once all have, or at `deadline`.
    pub(super) async fn wait_until(&mut self, deadline: Instant) -> Acked {
        loop {
            self.changed.borrow_and_update();
            let acked = self.now();
            if acked.complete {
                return acked;
            }
            match tokio::time::timeout_at(deadline, self.changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return self.now(),
            }
        }
    }
}
