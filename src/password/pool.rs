//! Hashing on threads of its own, behind a short queue. A storm of logins fills the queue, and what
//! does not fit is turned away at once; nothing else in the process waits for a hash.
//!
//! * A job holds its thread until its hash is done, whether or not its caller still waits. A caller who
//!   leaves frees nothing that is in use; a job whose caller left before it started is skipped.
//! * A job is turned away when it asks for a place, not after waiting: when the queue is full, when it
//!   would wait too long, or when its source holds its share of the queue already. Who has work to do
//!   before the hash asks before that work, and keeps the place meanwhile.
//! * An unknown user costs what a known one costs: the same queue, the same work, the same answer. A
//!   stored hash with more work than the current settings takes longer, though, until its user logs in
//!   and it is replaced: whoever lowers the settings lives with that.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::domain::entropy::Entropy;
use crate::domain::secret::SecretText;
use crate::metrics::HashRecorder;
use crate::password::engine::{Engine, EngineError};
use crate::password::params::HashParams;
use crate::password::pepper::Pepper;
use crate::password::phc::{OUTPUT_BYTES, PasswordHash, SALT_BYTES};
use crate::precis::{self, PasswordError};
use crate::trace;

mod queue;
mod worker;

pub use queue::Place;
use queue::{Reply, Shared, State, Task};

const MAX_WORKERS: usize = 256;

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
        let recorder = OnceLock::new();
        let shared =
            Arc::new(Shared { params, pepper, settings, entropy, unknown, state, wake, recorder });
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

    /// Keeps a place for a hash for `source`, whoever should not crowd out others. Ask before the work
    /// that comes before a hash: so many as have a place do that work, and a storm is turned away at the
    /// door.
    ///
    /// # Errors
    /// When too many are waiting.
    pub fn reserve(&self, source: u64) -> Result<Place, HashError> {
        self.shared.reserve(source)
    }

    /// Whether `candidate` is the password of the `stored` hash. No stored hash means no such user: the
    /// same work is done, and the answer is a mismatch.
    ///
    /// # Errors
    /// When the candidate can be no password, or when hashing fails.
    pub async fn verify(
        &self,
        place: Place,
        candidate: SecretText,
        stored: Option<PasswordHash>,
    ) -> Result<Verification, HashError> {
        let password = precis::password(&candidate)?;
        let span = trace::child("password queue");
        submit(place, span, |reply| Task::Verify { password, stored, reply }).await
    }

    /// A new hash of a password, with a new salt and the current settings. Whether the password is good
    /// enough is for a [`PasswordPolicy`](crate::password::PasswordPolicy) to say, before.
    ///
    /// # Errors
    /// When the text can be no password, when too many are waiting, or when hashing fails.
    pub async fn hash(&self, source: u64, password: SecretText) -> Result<PasswordHash, HashError> {
        let password = precis::password(&password)?;
        let mut span = trace::child("password queue");
        let place = self.reserve(source).inspect_err(|_| span.fail("shed"))?;
        submit(place, span, |reply| Task::Hash { password, reply }).await
    }

    /// Whether a stored hash should be replaced, now that its password is at hand.
    pub fn needs_rehash(&self, hash: &PasswordHash) -> bool {
        hash.needs_rehash(&self.shared.params, self.shared.pepper.current())
    }

    /// Records in `recorder` from now on; a second one is ignored.
    pub fn measure(&self, recorder: HashRecorder) {
        _ = self.shared.recorder.set(recorder);
    }

    /// What the pool is doing and has done.
    pub fn stats(&self) -> PoolStats {
        let state = self.shared.lock();
        PoolStats { queued: state.queue.len(), ..state.stats }
    }
}

async fn submit<T>(
    place: Place,
    span: trace::Child,
    task: impl FnOnce(Reply<T>) -> Task,
) -> Result<T, HashError> {
    let (reply, answer) = oneshot::channel();
    place.take(task(reply), span)?;
    answer.await.unwrap_or(Err(HashError::Stopped))
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

#[cfg(test)]
mod tests;
