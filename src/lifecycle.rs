//! Whether the process is ready: nothing that it waits for is outstanding, and it is not about to
//! stop. Knows names, not what they stand for.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

#[derive(Debug, Default)]
struct State {
    awaited: BTreeSet<&'static str>,
    draining: bool,
}

/// The readiness of the process. Clones share it.
#[derive(Clone, Debug)]
pub struct Readiness {
    state: Arc<Mutex<State>>,
    ready: Arc<watch::Sender<bool>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { state: Arc::default(), ready: Arc::new(watch::Sender::new(true)) }
    }
}

impl Readiness {
    /// Something has to happen before the process is ready: it has once the latch is dropped.
    /// Register every latch before the listeners are bound, or the process is ready in between.
    #[must_use = "dropping the latch at once says that it has happened"]
    pub fn register(&self, name: &'static str) -> Latch {
        self.change(|state| {
            state.awaited.insert(name);
        });
        Latch { name, readiness: self.clone() }
    }

    /// The process is about to stop and will not be ready again.
    pub fn drain(&self) {
        self.change(|state| state.draining = true);
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        let state = self.lock();
        Status { awaited: state.awaited.iter().copied().collect(), draining: state.draining }
    }

    /// Follows whether the process is ready.
    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        // Sent under the lock, so that the last word that is sent is the last that is true.
        let ready = state.awaited.is_empty() && !state.draining;
        self.ready.send_if_modified(|known| std::mem::replace(known, ready) != ready);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that has not happened yet.
#[derive(Debug)]
pub struct Latch {
    name: &'static str,
    readiness: Readiness,
}

impl Latch {
    /// It has happened.
    pub fn release(self) {
        drop(self);
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        self.readiness.change(|state| {
            state.awaited.remove(self.name);
        });
        tracing::debug!(latch = self.name, "released");
    }
}

/// How the process stands, as `/readyz` says it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Status {
    /// What it waits for.
    pub awaited: Vec<&'static str>,
    /// Whether it is about to stop.
    pub draining: bool,
}

impl Status {
    /// Whether it is ready.
    pub fn is_ready(&self) -> bool {
        self.awaited.is_empty() && !self.draining
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.draining, self.awaited.is_empty()) {
            (true, _) => f.write_str("draining"),
            (false, true) => f.write_str("ready"),
            (false, false) => write!(f, "waiting for: {}", self.awaited.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_ready_when_every_latch_is_released_and_until_it_drains() {
        let readiness = Readiness::default();
        let watch = readiness.subscribe();
        let store = readiness.register("store");
        let keys = readiness.register("keys");
        assert_eq!(readiness.status().to_string(), "waiting for: keys, store");
        store.release();
        assert!(!*watch.borrow());
        keys.release();
        assert!(*watch.borrow() && readiness.status().is_ready());
        readiness.drain();
        assert!(!*watch.borrow());
        assert_eq!(readiness.status().to_string(), "draining");
    }
}
