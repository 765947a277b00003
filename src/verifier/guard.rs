//! Ends what a token opened: streams and long answers, when the token is revoked or expires.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use crate::domain::view::{Changed, Marks, RevokedBy, Standing, View};

/// Why something that a token opened must end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// The token was revoked.
    Revoked(RevokedBy),
    /// It has expired.
    Expired,
}

struct Waiting {
    marks: Marks,
    end: oneshot::Sender<RevokedBy>,
}

/// Everybody who wants to know, findable by each mark that may be revoked.
#[derive(Default)]
struct Registry {
    next: u64,
    waiting: HashMap<u64, Waiting>,
    by_mark: HashMap<u64, HashSet<u64>>,
}

/// Who waits for tokens to end.
#[derive(Default)]
pub(super) struct Guards(Mutex<Registry>);

impl Guards {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end of a token. Register first, then look whether it has ended already.
    pub(super) fn register(self: &Arc<Self>, marks: Marks, expires: Instant) -> Guard {
        let (end, ended) = oneshot::channel();
        let mut registry = self.registry();
        let id = registry.next;
        registry.next += 1;
        for mark in marks.each() {
            registry.by_mark.entry(mark).or_default().insert(id);
        }
        registry.waiting.insert(id, Waiting { marks, end });
        drop(registry);
        Guard {
            place: Place { guards: Arc::downgrade(self), id },
            ended: Some(ended),
            expires: Box::pin(tokio::time::sleep_until(expires)),
        }
    }

    /// Ends what these changes revoke by now.
    pub(super) fn changed(&self, view: &View, changes: impl IntoIterator<Item = Changed>) {
        let mut registry = self.registry();
        if registry.waiting.is_empty() {
            return;
        }
        for change in changes {
            match change {
                Changed::Mark(mark) => {
                    let ids = registry.by_mark.get(&mark).cloned().unwrap_or_default();
                    ids.into_iter().for_each(|id| registry.end_if_revoked(id, view));
                }
                Changed::Everything => registry.check_all(view),
            }
        }
    }

    /// Ends what is revoked in a view that took the place of another.
    pub(super) fn check_all(&self, view: &View) {
        self.registry().check_all(view);
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.registry().waiting.len()
    }
}

impl Registry {
    fn check_all(&mut self, view: &View) {
        let ids: Vec<u64> = self.waiting.keys().copied().collect();
        ids.into_iter().for_each(|id| self.end_if_revoked(id, view));
    }

    fn end_if_revoked(&mut self, id: u64, view: &View) {
        let Some(waiting) = self.waiting.get(&id) else { return };
        if let Standing::Revoked(by) = view.standing(&waiting.marks)
            && let Some(waiting) = self.remove(id)
        {
            // Who no longer waits has ended already.
            let _gone = waiting.end.send(by);
        }
    }

    fn remove(&mut self, id: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&id)?;
        for mark in waiting.marks.each() {
            if let Some(ids) = self.by_mark.get_mut(&mark) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_mark.remove(&mark);
                }
            }
        }
        Some(waiting)
    }
}

/// A place in the registry, given back when it is dropped.
struct Place {
    guards: Weak<Guards>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(guards) = self.guards.upgrade() {
            guards.registry().remove(self.id);
        }
    }
}

/// Resolves when what a token opened must end. Dropping it is free of consequences.
pub struct Guard {
    place: Place,
    /// None once the verifier is gone: then only the expiry is known.
    ended: Option<oneshot::Receiver<RevokedBy>>,
    expires: Pin<Box<Sleep>>,
}

impl Guard {
    /// Ends at once if the token is revoked already.
    pub(super) fn check(self, view: &View) -> Self {
        if let Some(guards) = self.place.guards.upgrade() {
            guards.registry().end_if_revoked(self.place.id, view);
        }
        self
    }
}

impl Future for Guard {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Ended> {
        if let Some(ended) = &mut self.ended {
            match Pin::new(ended).poll(context) {
                Poll::Ready(Ok(by)) => return Poll::Ready(Ended::Revoked(by)),
                Poll::Ready(Err(_)) => self.ended = None,
                Poll::Pending => {}
            }
        }
        ready!(self.expires.as_mut().poll(context));
        Poll::Ready(Ended::Expired)
    }
}
