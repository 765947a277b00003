//! Hashing on threads of its own, behind a short queue. A storm of logins fills the queue, and what
//! does not fit is turned away at once; nothing else in the process waits for a hash.
//!
//! * A job holds its thread until its hash is done, whether or not its caller still waits. A caller who
//!   leaves frees nothing that is in use; a job whose caller left before it started is skipped.
//! * A job is turned away when it is put in, not after waiting: when the queue is full, when it would
//!   wait too long, or when its source holds its share of the queue already.
//! * An unknown user costs what a known one costs: the same queue, the same work, the same answer. A
//!   stored hash with more work than the current settings takes longer, though, until its user logs in
//!   and it is replaced: whoever lowers the settings lives with that.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::domain::entropy::Entropy;
use crate::domain::secret::SecretText;
use crate::password::engine::{Engine, EngineError};
use crate::password::params::HashParams;
use crate::password::pepper::Pepper;
use crate::password::phc::{OUTPUT_BYTES, PasswordHash, SALT_BYTES};
use crate::precis::{self, PasswordError};

const MAX_WORKERS: usize = 256;
/// Sooner than this, a caller would only be turned away again.
const MIN_RETRY_AFTER: Duration = Duration::from_millis(100);

/// How many hashes run and wait.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PoolSettings {
    /// How many hashes run at a time. Each worker keeps the memory of one hash.
    pub workers: usize,
    /// How many jobs may wait, however fast they are done.
    pub max_queued: usize,
    /// How long a job may have to wait, by the time that hashes took of late.
    pub queue_max_wait: Duration,
    /// One source may hold one in so many places of the queue, and at least one.
    pub source_share: usize,
}

impl Default for PoolSettings {
    /// As many workers as there are cores, a second of waiting, a quarter of the queue for one source.
    fn default() -> Self {
        Self {
            workers: thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS),
            max_queued: 1024,
            queue_max_wait: Duration::from_secs(1),
            source_share: 4,
        }
    }
}

/// The pool could not be started.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A setting makes no sense.
    #[error("{0}")]
    Settings(&'static str),
    /// There is no memory for one hash.
    #[error("there is not enough memory for one hash")]
    Memory,
    /// A thread could not be started.
    #[error("cannot start a hashing thread")]
    Thread(#[source] std::io::Error),
}

/// A password was neither hashed nor checked.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HashError {
    /// Too many are waiting, or too many of this source.
    #[error("too many passwords are waiting to be hashed")]
    Busy {
        /// When to ask again.
        retry_after: Duration,
    },
    /// The text can be no password. Nothing was hashed.
    #[error("the password {0}")]
    Password(#[from] PasswordError),
    /// The pool is stopping.
    #[error("hashing has stopped")]
    Stopped,
    /// The hash failed: it panicked, or there was no memory.
    #[error("hashing failed")]
    Internal,
}

/// Whether a password was the right one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verification {
    /// It was.
    Match,
    /// It was not, or there is no such user.
    Mismatch,
}

/// What the pool is doing and has done.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PoolStats {
    /// Jobs that wait now.
    pub queued: usize,
    /// Hashes that run now.
    pub running: usize,
    /// Hashes done since the start, failed ones included.
    pub completed: u64,
    /// The work of those hashes, in KiB written: memory times passes.
    pub work_kib: u64,
    /// Jobs turned away because too many were waiting.
    pub shed_full: u64,
    /// Jobs turned away because their source had its share.
    pub shed_source: u64,
    /// Jobs dropped unhashed because their caller had left.
    pub abandoned: u64,
    /// Jobs that failed.
    pub failed: u64,
    /// How long a hash took of late.
    pub mean: Duration,
}

/// Hashes and checks passwords. Dropping it drops the jobs that wait and lets those that run finish.
pub struct Hasher {
    shared: Arc<Shared>,
}

impl Hasher {
    /// Starts the threads. Takes as long as one hash, to learn how long that is.
    ///
    /// # Errors
    /// When a setting makes no sense, or there is no memory or thread to be had.
    pub fn new(
        params: HashParams,
        settings: PoolSettings,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, PoolError> {
        Self::with_pepper(params, Pepper::default(), settings, entropy)
    }

    /// As [`Hasher::new`], with keys that passwords are hashed with besides their salt.
    ///
    /// # Errors
    /// As [`Hasher::new`].
    pub fn with_pepper(
        params: HashParams,
        pepper: Pepper,
        settings: PoolSettings,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, PoolError> {
        if !(1..=MAX_WORKERS).contains(&settings.workers) {
            return Err(PoolError::Settings("there must be between 1 and 256 hashing workers"));
        }
        if settings.max_queued == 0 || settings.queue_max_wait.is_zero() {
            return Err(PoolError::Settings("the hashing queue must have room and time"));
        }
        if settings.source_share == 0 {
            return Err(PoolError::Settings("the share of one source must be at least 1 in 1"));
        }

        // No password is known to have this output, and to find one is to break BLAKE2b.
        let pepper = Arc::new(pepper);
        let unknown = PasswordHash {
            params,
            key: pepper.current(),
            salt: entropy.bytes::<SALT_BYTES>().into(),
            output: Zeroizing::new(entropy.bytes::<OUTPUT_BYTES>().into()),
        };
        let started = Instant::now();
        Engine::new(params, Arc::clone(&pepper))
            .verify(&SecretText::new(String::from("a first hash")), &unknown)
            .map_err(|EngineError| PoolError::Memory)?;
        let stats = PoolStats { mean: started.elapsed(), ..PoolStats::default() };

        let workers = settings.workers;
        let state = State { stats, ..State::default() };
        let (state, wake) = (Mutex::new(state), Condvar::new());
        let shared = Arc::new(Shared { params, pepper, settings, entropy, unknown, state, wake });
        // From here on, an early return stops the threads that have started.
        let hasher = Self { shared };
        for n in 0..workers {
            let shared = hasher.shared.clone();
            thread::Builder::new()
                .name(format!("hash-{n}"))
                .spawn(move || shared.work())
                .map_err(PoolError::Thread)?;
        }
        Ok(hasher)
    }

    /// Whether `candidate` is the password of the `stored` hash. No stored hash means no such user: the
    /// same work is done, and the answer is a mismatch. `source` is whoever should not crowd out others.
    ///
    /// # Errors
    /// When the candidate can be no password, when too many are waiting, or when hashing fails.
    pub async fn verify(
        &self,
        source: u64,
        candidate: SecretText,
        stored: Option<PasswordHash>,
    ) -> Result<Verification, HashError> {
        let password = precis::password(&candidate)?;
        self.submit(source, |reply| Task::Verify { password, stored, reply }).await
    }

    /// A new hash of a password, with a new salt and the current settings. Whether the password is good
    /// enough is for a [`PasswordPolicy`](crate::password::PasswordPolicy) to say, before.
    ///
    /// # Errors
    /// When the text can be no password, when too many are waiting, or when hashing fails.
    pub async fn hash(&self, source: u64, password: SecretText) -> Result<PasswordHash, HashError> {
        let password = precis::password(&password)?;
        self.submit(source, |reply| Task::Hash { password, reply }).await
    }

    /// Whether a hash for `source` would be taken in now. Ask before the work that comes before a
    /// hash, so that a storm is turned away at the door; the answer may change until then.
    ///
    /// # Errors
    /// When too many are waiting.
    pub fn admit(&self, source: u64) -> Result<(), HashError> {
        self.shared.admit(&mut self.shared.lock(), source)
    }

    /// Whether a stored hash should be replaced, now that its password is at hand.
    pub fn needs_rehash(&self, hash: &PasswordHash) -> bool {
        hash.needs_rehash(&self.shared.params, self.shared.pepper.current())
    }

    /// What the pool is doing and has done.
    pub fn stats(&self) -> PoolStats {
        let state = self.shared.lock();
        PoolStats { queued: state.queue.len(), ..state.stats }
    }

    async fn submit<T>(
        &self,
        source: u64,
        task: impl FnOnce(Reply<T>) -> Task,
    ) -> Result<T, HashError> {
        let (reply, answer) = oneshot::channel();
        self.shared.enqueue(Job { source, task: task(reply) })?;
        answer.await.unwrap_or(Err(HashError::Stopped))
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher").field("params", &self.shared.params).finish_non_exhaustive()
    }
}

impl Drop for Hasher {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        state.queue.clear();
        state.waiting.clear();
        drop(state);
        // The threads are not joined: a hash cannot be interrupted, and whoever drops may be async.
        self.shared.wake.notify_all();
    }
}

type Reply<T> = oneshot::Sender<Result<T, HashError>>;

enum Task {
    Hash { password: SecretText, reply: Reply<PasswordHash> },
    Verify { password: SecretText, stored: Option<PasswordHash>, reply: Reply<Verification> },
}

struct Job {
    source: u64,
    task: Task,
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
struct State {
    queue: VecDeque<Job>,
    /// How many jobs of the queue are of each source. A source without any is not in it.
    waiting: HashMap<u64, usize>,
    stats: PoolStats,
    stopping: bool,
}

impl State {
    fn push(&mut self, job: Job) {
        *self.waiting.entry(job.source).or_default() += 1;
        self.queue.push_back(job);
    }

    /// The next job whose caller is still there.
    fn pop(&mut self) -> Option<Job> {
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

struct Shared {
    params: HashParams,
    pepper: Arc<Pepper>,
    settings: PoolSettings,
    entropy: Arc<dyn Entropy>,
    /// What an unknown user's password is checked against.
    unknown: PasswordHash,
    state: Mutex<State>,
    wake: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that may panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(&self, job: Job) -> Result<(), HashError> {
        let mut state = self.lock();
        self.admit(&mut state, job.source)?;
        state.push(job);
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    fn admit(&self, state: &mut State, source: u64) -> Result<(), HashError> {
        if state.stopping {
            return Err(HashError::Stopped);
        }
        if self.refusal(state, source).is_some() {
            state.drop_abandoned();
        }
        if let Some(refusal) = self.refusal(state, source) {
            match refusal {
                Refusal::Full => state.stats.shed_full += 1,
                Refusal::Source => state.stats.shed_source += 1,
            }
            let retry_after = self.wait_at(state, self.place(state)).max(MIN_RETRY_AFTER);
            return Err(HashError::Busy { retry_after });
        }
        Ok(())
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
    fn place(&self, state: &State) -> usize {
        (state.queue.len() + state.stats.running + 1).saturating_sub(self.settings.workers)
    }

    /// How long the job at this place waits, as hashes went of late.
    fn wait_at(&self, state: &State, place: usize) -> Duration {
        let nanos = state.stats.mean.as_nanos().saturating_mul(place as u128)
            / self.settings.workers as u128;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// How many may wait: the last of them waits no longer than it may.
    fn capacity(&self, state: &State) -> usize {
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

    fn work(&self) {
        step_back();
        let mut engine = Engine::new(self.params, Arc::clone(&self.pepper));
        while let Some(job) = self.next(&mut engine) {
            match job.task {
                Task::Hash { password, reply } => {
                    let result = self
                        .run(&mut engine, |engine| engine.hash(&password, self.entropy.bytes()));
                    // The caller may have left by now.
                    let _ = reply.send(result);
                }
                Task::Verify { password, stored, reply } => {
                    let known = stored.is_some();
                    let hash = stored.as_ref().unwrap_or(&self.unknown);
                    let result = self.run(&mut engine, |engine| engine.verify(&password, hash));
                    let verdict = |matches: bool| match matches & known {
                        true => Verification::Match,
                        false => Verification::Mismatch,
                    };
                    let _ = reply.send(result.map(verdict));
                }
            }
        }
    }

    /// Waits for a job and takes it; none when the pool stops.
    fn next(&self, engine: &mut Engine) -> Option<Job> {
        let mut state = self.lock();
        let mut wiped = false;
        loop {
            if state.stopping {
                return None;
            }
            if let Some(job) = state.pop() {
                state.stats.running += 1;
                return Some(job);
            }
            if wiped {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(state);
            engine.wipe();
            wiped = true;
            state = self.lock();
        }
    }

    /// Runs one hash and counts it, before its caller can know that it is done.
    fn run<T>(
        &self,
        engine: &mut Engine,
        hash: impl FnOnce(&mut Engine) -> Result<T, EngineError>,
    ) -> Result<T, HashError> {
        let started = Instant::now();
        let result = match catch_unwind(AssertUnwindSafe(|| hash(engine))) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(EngineError)) => {
                tracing::error!("there was no memory for a password hash");
                Err(HashError::Internal)
            }
            Err(_panic) => {
                tracing::error!("a password hash panicked");
                *engine = Engine::new(self.params, Arc::clone(&self.pepper));
                Err(HashError::Internal)
            }
        };
        let took = started.elapsed();
        let work = engine.take_work();

        let mut state = self.lock();
        let stats = &mut state.stats;
        stats.running -= 1;
        stats.completed += 1;
        stats.work_kib += work;
        stats.failed += u64::from(result.is_err());
        // Moves an eighth of the way: a single slow hash does not close the queue.
        stats.mean = (stats.mean * 7 + took) / 8;
        drop(state);
        result
    }
}

enum Refusal {
    Full,
    Source,
}

/// Lets this thread run only with what the others leave: a hash takes a core for long, and whoever
/// waits for one is used to waiting.
#[cfg(target_os = "linux")]
fn step_back() {
    // On Linux this concerns the calling thread alone, against POSIX (see setpriority(2)).
    if let Err(error) = rustix::process::nice(10) {
        tracing::debug!(%error, "hashing threads keep the ordinary priority");
    }
}

#[cfg(not(target_os = "linux"))]
fn step_back() {}

#[cfg(test)]
mod tests;
