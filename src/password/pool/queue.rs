//! The queue before the threads: what waits, and what is turned away.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{HashError, PoolSettings, PoolStats, Verification};
use crate::domain::entropy::Entropy;
use crate::domain::secret::SecretText;
use crate::metrics::HashRecorder;
use crate::password::params::HashParams;
use crate::password::pepper::Pepper;
use crate::password::phc::PasswordHash;
use crate::trace::Child;

/// Sooner than this, a caller would only be turned away again.
pub(super) const MIN_RETRY_AFTER: Duration = Duration::from_millis(100);

pub(super) type Reply<T> = oneshot::Sender<Result<T, HashError>>;

pub(super) enum Task {
    Hash { password: SecretText, reply: Reply<PasswordHash> },
    Verify { password: SecretText, stored: Option<PasswordHash>, reply: Reply<Verification> },
}

pub(super) struct Job {
    pub(super) source: u64,
    /// When it was put in.
    pub(super) since: Instant,
    /// Its wait, in the trace of its call.
    pub(super) span: Child,
    pub(super) task: Task,
}

impl Job {
    fn is_abandoned(&self) -> bool {
        match &self.task {
            Task::Hash { reply, .. } => reply.is_closed(),
            Task::Verify { reply, .. } => reply.is_closed(),
        }
    }
}

#[derive(Default)]
pub(super) struct State {
    pub(super) queue: VecDeque<Job>,
    /// How many places of the queue are kept for jobs that are still to come.
    pub(super) reserved: usize,
    /// How many jobs of the queue, and places that are kept, are of each source. A source without any
    /// is not in it.
    pub(super) waiting: HashMap<u64, usize>,
    pub(super) stats: PoolStats,
    pub(super) stopping: bool,
}

impl State {
    /// Puts a job in the place that was kept for it.
    fn push(&mut self, job: Job) {
        self.reserved -= 1;
        self.queue.push_back(job);
    }

    /// The next job whose caller is still there.
    pub(super) fn pop(&mut self) -> Option<Job> {
        while let Some(job) = self.queue.pop_front() {
            self.forget(job.source);
            if !job.is_abandoned() {
                return Some(job);
            }
            self.stats.abandoned += 1;
        }
        None
    }

    fn drop_abandoned(&mut self) {
        for job in std::mem::take(&mut self.queue) {
            if job.is_abandoned() {
                self.forget(job.source);
                self.stats.abandoned += 1;
            } else {
                self.queue.push_back(job);
            }
        }
    }

    fn forget(&mut self, source: u64) {
        if let Some(count) = self.waiting.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.waiting.remove(&source);
            }
        }
    }
}

pub(super) struct Shared {
    pub(super) params: HashParams,
    pub(super) pepper: Arc<Pepper>,
    pub(super) settings: PoolSettings,
    pub(super) entropy: Arc<dyn Entropy>,
    /// What an unknown user's password is checked against.
    pub(super) unknown: PasswordHash,
    pub(super) state: Mutex<State>,
    pub(super) wake: Condvar,
    pub(super) recorder: OnceLock<HashRecorder>,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that may panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a place of the queue.
    pub(super) fn reserve(self: &Arc<Self>, source: u64) -> Result<Place, HashError> {
        let mut state = self.lock();
        if state.stopping {
            return Err(HashError::Stopped);
        }
        if self.refusal(&state, source).is_some() {
            state.drop_abandoned();
        }
        if let Some(refusal) = self.refusal(&state, source) {
            match refusal {
                Refusal::Full => state.stats.shed_full += 1,
                Refusal::Source => state.stats.shed_source += 1,
            }
            let retry_after = self.wait_at(&state, self.place(&state)).max(MIN_RETRY_AFTER);
            return Err(HashError::Busy { retry_after });
        }
        state.reserved += 1;
        *state.waiting.entry(source).or_default() += 1;
        drop(state);
        Ok(Place { shared: Arc::clone(self), source, taken: false })
    }

    fn refusal(&self, state: &State, source: u64) -> Option<Refusal> {
        let place = self.place(state);
        if place == 0 {
            return None;
        }
        let capacity = self.capacity(state);
        if place > capacity {
            return Some(Refusal::Full);
        }
        let share = (capacity / self.settings.source_share).max(1);
        let held = state.waiting.get(&source).copied().unwrap_or(0);
        (held >= share).then_some(Refusal::Source)
    }

    /// The place in the queue that a job put in now would get; 0 when a worker is free for it.
    pub(super) fn place(&self, state: &State) -> usize {
        (state.queue.len() + state.reserved + state.stats.running + 1)
            .saturating_sub(self.settings.workers)
    }

    /// How long the job at this place waits, as hashes went of late.
    pub(super) fn wait_at(&self, state: &State, place: usize) -> Duration {
        let nanos = state.stats.mean.as_nanos().saturating_mul(place as u128)
            / self.settings.workers as u128;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// How many may wait: the last of them waits no longer than it may.
    pub(super) fn capacity(&self, state: &State) -> usize {
        let in_time = self
            .settings
            .queue_max_wait
            .as_nanos()
            .saturating_mul(self.settings.workers as u128)
            .checked_div(state.stats.mean.as_nanos())
            .and_then(|places| usize::try_from(places).ok())
            .unwrap_or(usize::MAX);
        in_time.min(self.settings.max_queued)
    }
}

/// A place of the queue that is kept for one hash. Dropped, it is free for others.
pub struct Place {
    shared: Arc<Shared>,
    source: u64,
    taken: bool,
}

impl Place {
    /// Puts a job in it.
    pub(super) fn take(mut self, job: Task, span: Child) -> Result<(), HashError> {
        let mut state = self.shared.lock();
        if state.stopping {
            return Err(HashError::Stopped);
        }
        state.push(Job { source: self.source, since: Instant::now(), span, task: job });
        drop(state);
        self.taken = true;
        self.shared.wake.notify_one();
        Ok(())
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").finish_non_exhaustive()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.taken {
            let mut state = self.shared.lock();
            state.reserved -= 1;
            state.forget(self.source);
        }
    }
}

enum Refusal {
    Full,
    Source,
}
