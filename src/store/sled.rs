//! The engine on sled 0.34.7, one process to a directory. The only module that knows sled.
//!
//! What it answers is durable: written as one batch, flushed, synced on a handle of its own, and
//! covered by a high-water mark beside the database, in this order, before the observer and then the
//! callers are told. It survives `kill -9` at any moment, and a power cut as far as the disk honours
//! a flush and sled's own files are whole; where they are not, the directory does not open.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use self::capture::{Recording, SledCapture};
use self::committer::{Committer, Job, Outcome};
use self::health::Health;
use self::open::Opened;
use self::record::Meta;
use self::sealer::{BACKLOG, Sealer};
use self::space::Space;
use super::backup::{Capture, CaptureError};
use super::engine::{
    Answer, Commit, Decision, Engine, EngineStatus, KeyRange, LoggedEvent, Observer, Order, Query,
    Reads, TIME_KEY, Value,
};
use super::moving::Source;
use super::{OpenError, StoreError, group};
use crate::domain::clock::Timestamp;
use crate::domain::ids::{Cursor, LogId, Revision};
use crate::metrics::StoreRecorder;

mod capture;
mod committer;
mod health;
mod integrity;
mod mark;
mod open;
mod pack;
mod reads;
mod record;
pub mod restore;
mod sealer;
mod space;

pub(in crate::store) use self::pack::{Packer, read as entries_in};
pub(in crate::store) use self::record::fingerprint;

#[cfg(test)]
mod tests;

/// How long a durable commit counts as contact with the disk.
const CONTACT_AGE: Duration = Duration::from_millis(500);
/// How old the room in a status may be.
const STATUS_AGE: Duration = Duration::from_secs(5);

/// How a [`SledEngine`] behaves.
#[derive(Clone, Debug)]
pub struct SledSettings {
    /// How much memory sled may use for pages that it has read.
    pub cache_bytes: u64,
    /// How long writing and syncing one group may take before the engine counts as failed.
    pub flush_deadline: Duration,
    /// The most decisions in one group.
    pub max_group: usize,
    /// The most decisions that may wait; more are refused.
    pub queue: usize,
    /// Writes are refused while fewer bytes are free than this plus one `free_part`-th of what the
    /// database takes. What is left must do for deleting, which appends too, until sled uses old
    /// segments again.
    pub min_free_bytes: u64,
    /// See `min_free_bytes`.
    pub free_part: u64,
    /// The version of the records of the layers above. A directory of another version does not open.
    pub schema_version: u32,
    /// Where times and sizes are recorded.
    pub recorder: StoreRecorder,
}

impl SledSettings {
    /// The defaults, for records of this version.
    pub fn new(schema_version: u32) -> Self {
        Self {
            cache_bytes: 64 << 20,
            flush_deadline: Duration::from_secs(2),
            max_group: 512,
            queue: 8192,
            min_free_bytes: 256 << 20,
            free_part: 4,
            schema_version,
            recorder: StoreRecorder::default(),
        }
    }
}

/// What the engine's threads and its callers share. The lock comes last: it must be held until the
/// database is closed.
struct Shared {
    db: sled::Db,
    health: Arc<Health>,
    space: Space,
    /// The newest durable revision.
    head: AtomicU64,
    observer: Mutex<Option<Arc<dyn Observer>>>,
    recording: Recording,
    counters: Counters,
    recorder: StoreRecorder,
    _lock: File,
}

impl Shared {
    fn observer(&self) -> Option<Arc<dyn Observer>> {
        self.observer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    fn unavailable(&self) -> StoreError {
        let why = self.health.failure();
        StoreError::Unavailable(why.unwrap_or_else(|| "it is closed".to_owned()))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.health.has_failed() {
            // Closing a sled whose disk has failed writes once more, and panics when that fails.
            std::mem::forget(self.db.clone());
        }
    }
}

#[derive(Default)]
struct Counters {
    commits: AtomicU64,
    groups: AtomicU64,
    sync_micros: AtomicU64,
    queued: AtomicU64,
}

impl Counters {
    fn add_group(&self, took: Duration) {
        self.groups.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.sync_micros.fetch_add(micros, Ordering::Relaxed);
    }
}

/// Keeps everything in sled.
pub struct SledEngine {
    log_id: LogId,
    time_floor: Timestamp,
    shared: Arc<Shared>,
    /// None once closed.
    queue: Arc<Mutex<Option<SyncSender<Job>>>>,
    threads: Vec<JoinHandle<()>>,
    watchdog: Thread,
}

impl SledEngine {
    /// Opens the data directory at `path`, or creates it with a log named `new_log_id`. Reads every
    /// record, so it takes a second or so for a million.
    ///
    /// # Errors
    /// As [`OpenError`] says. Nothing that was acknowledged is missing when this returns Ok.
    pub fn open(
        path: &Path,
        settings: &SledSettings,
        new_log_id: LogId,
    ) -> Result<Self, OpenError> {
        Self::start(path, settings, open::open(path, settings, new_log_id)?)
    }

    /// As [`SledEngine::open`], of what is to go `to` another place: from then on it opens in no other
    /// way.
    ///
    /// # Errors
    /// As for [`SledEngine::open`].
    pub fn open_to_move(
        path: &Path,
        settings: &SledSettings,
        new_log_id: LogId,
        to: &str,
    ) -> Result<(Self, Source), OpenError> {
        let opened = open::open_to_move(path, settings, new_log_id, to)?;
        let Meta { log_id, counter, digest, .. } = opened.meta;
        let source = Source { log_id, changed: counter, print: digest };
        Ok((Self::start(path, settings, opened)?, source))
    }

    /// Whether the directory says that it goes to another place, or went there.
    pub fn is_moved(path: &Path) -> bool {
        open::is_moved(path)
    }

    /// Lets be opened what was to go to another place.
    ///
    /// # Errors
    /// When it is in use, or the disk refuses.
    pub fn give_back(path: &Path) -> Result<(), OpenError> {
        open::give_back(path)
    }

    /// Begins to read, behind the records that another capture had given when it was at this
    /// [`place`](Capture::place). Nobody may have written since.
    ///
    /// # Errors
    /// See [`CaptureError`].
    pub fn capture_from(&self, place: &[u8]) -> Result<Box<dyn Capture>, CaptureError> {
        let (queue, shared) = (Arc::clone(&self.queue), Arc::clone(&self.shared));
        let submit = Box::new(move |job| submit(&queue, &shared, job));
        Ok(Box::new(SledCapture::begin(Arc::clone(&self.shared), submit, place)?))
    }

    fn start(path: &Path, settings: &SledSettings, opened: Opened) -> Result<Self, OpenError> {
        let Opened { db, data, mark, meta, lock } = opened;
        let text = path.display().to_string();
        let time = Reads::get(&db, TIME_KEY)
            .map_err(|error| OpenError::Damaged { path: text.clone(), what: error.to_string() })?;
        let time = time.and_then(|bytes| <[u8; 8]>::try_from(bytes).ok()).map(u64::from_be_bytes);
        let health = Arc::new(Health::new(settings.flush_deadline));
        let shared = Arc::new(Shared {
            db,
            health: Arc::clone(&health),
            space: Space::new(path, settings.min_free_bytes, settings.free_part),
            head: AtomicU64::new(meta.head.0),
            observer: Mutex::new(None),
            recording: Recording::default(),
            counters: Counters::default(),
            recorder: settings.recorder.clone(),
            _lock: lock,
        });
        let (queue, jobs) = sync_channel(settings.queue);
        let (to_sealer, groups) = sync_channel(BACKLOG);
        let io_error = |source| OpenError::Io { path: text.clone(), source };
        let sealer = Sealer { shared: Arc::clone(&shared), mark, groups };
        let sealer = spawn("avouch-sealer", &health, {
            let health = Arc::clone(&health);
            move || {
                sealer.run();
                health.stop();
            }
        });
        let committer = Committer {
            shared: Arc::clone(&shared),
            data,
            meta,
            max_group: settings.max_group,
            queue: jobs,
            sealer: to_sealer,
        };
        let committer = spawn("avouch-committer", &health, move || committer.run());
        Ok(Self {
            log_id: meta.log_id,
            time_floor: Timestamp::from_millis(time.unwrap_or_default()),
            shared,
            queue: Arc::new(Mutex::new(Some(queue))),
            threads: vec![committer.map_err(io_error)?, sealer.map_err(io_error)?],
            watchdog: health::start_watchdog(health).map_err(io_error)?,
        })
    }

    /// Tells when the engine fails, and why. That is for good: the process should say NOT_SERVING
    /// and end, so that the directory is opened, and checked, again.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.shared.health.watch_failure()
    }

    /// Waits in the queue. The engine answers jobs in the order in which this accepts them.
    fn submit(&self, job: Job) -> Result<(), StoreError> {
        submit(&self.queue, &self.shared, job)
    }

    /// Waits for an answer, or for the news that there will be none: the thread that has it may
    /// hang in the disk.
    async fn answer<T>(&self, answer: oneshot::Receiver<T>) -> Result<T, StoreError> {
        let mut failed = self.shared.health.watch_failure();
        // Of what `wait_for` returns nothing may be left when the reason is read: it holds the lock that
        // this takes once more, and whoever fails the engine for a second time waits between the two.
        let answer = tokio::select! {
            biased;
            answer = answer => answer.ok(),
            _ = failed.wait_for(Option::is_some) => None,
        };
        answer.ok_or_else(|| self.unavailable())
    }

    async fn decide(&self, decision: Decision, freeing: bool) -> Outcome {
        let began = Instant::now();
        let (caller, outcome) = oneshot::channel();
        self.submit(Job::Decide { decision, freeing, caller })?;
        let outcome = self.answer(outcome).await?;
        if outcome.is_ok() {
            self.shared.recorder.committed(began.elapsed());
        }
        outcome
    }

    fn unavailable(&self) -> StoreError {
        self.shared.unavailable()
    }

    fn close_queue(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn submit(
    queue: &Mutex<Option<SyncSender<Job>>>,
    shared: &Shared,
    job: Job,
) -> Result<(), StoreError> {
    let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(queue) = &*queue else { return Err(shared.unavailable()) };
    shared.counters.queued.fetch_add(1, Ordering::Relaxed);
    queue.try_send(job).map_err(|error| {
        shared.counters.queued.fetch_sub(1, Ordering::Relaxed);
        match error {
            TrySendError::Full(_) => {
                StoreError::Unavailable("too many changes wait for its disk".to_owned())
            }
            TrySendError::Disconnected(_) => shared.unavailable(),
        }
    })
}

fn spawn(
    name: &'static str,
    health: &Arc<Health>,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let health = Arc::clone(health);
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            health.fail(format!("{name} panicked: {}", open::panic_text(&*panic)));
        }
    })
}

impl Drop for SledEngine {
    /// Ends the threads, so that the directory can be opened again. What hangs in a disk is left.
    fn drop(&mut self) {
        self.close_queue();
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && !self.shared.health.has_failed() {
                thread::park_timeout(Duration::from_millis(1));
            }
            if thread.is_finished() {
                _ = thread.join();
            }
        }
        self.watchdog.unpark();
    }
}

impl Reads for SledEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        Reads::get(&self.shared.db, key)
    }

    fn scan(
        &self,
        range: &KeyRange,
        order: Order,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Value)>, StoreError> {
        self.shared.db.scan(range, order, limit)
    }
}

#[async_trait]
impl Engine for SledEngine {
    async fn commit(&self, decision: Decision) -> Result<(Answer, Commit), StoreError> {
        self.decide(decision, false).await
    }

    async fn commit_freeing(&self, decision: Decision) -> Result<(Answer, Commit), StoreError> {
        self.decide(decision, true).await
    }

    /// In place: what is in sled's memory is there to be read, and a commit that is about to become
    /// durable may be seen.
    async fn read(&self, query: Query<'_>) -> Result<Answer, StoreError> {
        query(&self.shared.db)
    }

    fn events_after(&self, after: Revision, limit: usize) -> Result<Vec<LoggedEvent>, StoreError> {
        group::events_between(&self.shared.db, after, self.head().revision, limit)
    }

    fn capture(&self) -> Result<Box<dyn Capture>, CaptureError> {
        self.capture_from(&[])
    }

    fn log_id(&self) -> LogId {
        self.log_id
    }

    fn head(&self) -> Cursor {
        let revision = Revision(self.shared.head.load(Ordering::Acquire));
        Cursor { log_id: self.log_id, revision }
    }

    fn time_floor(&self) -> Timestamp {
        self.time_floor
    }

    fn observe(&self, observer: Arc<dyn Observer>) {
        *self.shared.observer.lock().unwrap_or_else(PoisonError::into_inner) = Some(observer);
    }

    fn status(&self) -> EngineStatus {
        let counters = &self.shared.counters;
        let room = self.shared.space.room(STATUS_AGE);
        EngineStatus {
            failed: self.shared.health.failure(),
            low_space: room.low,
            disk_bytes: room.used,
            free_bytes: room.free,
            commits: counters.commits.load(Ordering::Relaxed),
            groups: counters.groups.load(Ordering::Relaxed),
            sync_time: Duration::from_micros(counters.sync_micros.load(Ordering::Relaxed)),
            queued: counters.queued.load(Ordering::Relaxed),
        }
    }

    /// A durable commit of the last half second is proof. Without one, something is written to the
    /// disk for the purpose.
    async fn prove_contact(&self) -> bool {
        let health = &self.shared.health;
        let closed = self.queue.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        if closed || health.has_failed() {
            return false;
        }
        if health.sealed_within(CONTACT_AGE) {
            return true;
        }
        let (caller, done) = oneshot::channel();
        self.submit(Job::Probe(caller)).is_ok() && self.answer(done).await.is_ok()
    }

    async fn close(&self) {
        self.close_queue();
        let mut stopped = self.shared.health.watch_stop();
        let mut failed = self.failed();
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => {}
            _ = failed.wait_for(Option::is_some) => {}
        }
        self.watchdog.unpark();
    }
}
