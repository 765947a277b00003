//! A board in memory, for the replicas of one process.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::store::board::{Change, Lease};

/// What everybody sees.
#[derive(Default)]
pub(super) struct MemoryBoard(Mutex<State>);

#[derive(Default)]
struct State {
    notes: BTreeMap<String, (Vec<u8>, Lease)>,
    leases: HashMap<Lease, (Duration, Instant)>,
    next_lease: i64,
    followers: Vec<Follower>,
}

struct Follower {
    /// Which replica's.
    replica: usize,
    connected: bool,
    changes: mpsc::UnboundedSender<Change>,
}

impl State {
    fn tell(&mut self, change: &Change) {
        self.followers.retain(|follower| {
            !follower.connected || follower.changes.send(change.clone()).is_ok()
        });
    }

    fn all(&self) -> Change {
        let note = |(name, (value, _)): (&String, &(Vec<u8>, Lease))| (name.clone(), value.clone());
        Change::All(self.notes.iter().map(note).collect())
    }

    fn take_down(&mut self, gone: impl Fn(&str, Lease) -> bool) {
        let names: Vec<String> = self
            .notes
            .iter()
            .filter(|(name, (_, lease))| gone(name, *lease))
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            self.notes.remove(&name);
            self.tell(&Change::Gone(name));
        }
    }

    fn end(&mut self, lease: Lease) {
        self.leases.remove(&lease);
        self.take_down(|_, of| of == lease);
    }
}

impl MemoryBoard {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lease(self: &Arc<Self>, ttl: Duration) -> Lease {
        let mut state = self.state();
        state.next_lease += 1;
        let lease = Lease(state.next_lease);
        state.leases.insert(lease, (ttl, Instant::now() + ttl));
        drop(state);
        let board = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Some(end) = board.upgrade().and_then(|board| board.end_of(lease)) {
                sleep_until(end).await;
            }
        });
        lease
    }

    /// When a lease ends; none when it has, and its notes with it.
    fn end_of(&self, lease: Lease) -> Option<Instant> {
        let mut state = self.state();
        let (_, end) = *state.leases.get(&lease)?;
        if Instant::now() < end {
            return Some(end);
        }
        state.end(lease);
        None
    }

    pub(super) fn keep(&self, lease: Lease) -> bool {
        let mut state = self.state();
        let Some((ttl, end)) = state.leases.get_mut(&lease) else { return false };
        *end = Instant::now() + *ttl;
        true
    }

    pub(super) fn end(&self, lease: Lease) {
        self.state().end(lease);
    }

    pub(super) fn put(&self, name: &str, value: Vec<u8>, lease: Lease) -> bool {
        let mut state = self.state();
        if !state.leases.contains_key(&lease) {
            return false;
        }
        state.notes.insert(name.to_owned(), (value.clone(), lease));
        state.tell(&Change::Put(name.to_owned(), value));
        true
    }

    pub(super) fn take_down(&self, prefix: &str) {
        self.state().take_down(|name, _| name.starts_with(prefix));
    }

    pub(super) fn follow(
        &self,
        replica: usize,
        connected: bool,
    ) -> mpsc::UnboundedReceiver<Change> {
        let (changes, receiver) = mpsc::unbounded_channel();
        let mut state = self.state();
        if connected {
            // The other end is the receiver below.
            let _sent = changes.send(state.all());
        }
        state.followers.push(Follower { replica, connected, changes });
        receiver
    }

    /// From now on the followers of a replica hear of nothing; or again they do, all that is there
    /// first.
    pub(super) fn connect(&self, replica: usize, connected: bool) {
        let mut state = self.state();
        let all = state.all();
        for follower in state.followers.iter_mut().filter(|it| it.replica == replica) {
            if connected && !follower.connected {
                // Whoever follows no more is dropped at the next change.
                let _sent = follower.changes.send(all.clone());
            }
            follower.connected = connected;
        }
    }
}
