//! Whether the engine still can be believed. One failure is for good: after a failed sync nobody
//! knows what the disk has, so nothing is tried again and nothing is acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// A step that talks to the disk and may hang in it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// The database is written and synced.
    Commit,
    /// The mark is written and synced, and the observer told.
    Seal,
}

/// Shared by the engine's threads and its callers.
pub(super) struct Health {
    failed: watch::Sender<Option<String>>,
    stopped: watch::Sender<bool>,
    started: Instant,
    deadline: Duration,
    /// When each step that is going on has begun, in microseconds since `started`; 0 if it is not.
    since: [AtomicU64; 2],
    last_sealed: AtomicU64,
}

impl Health {
    pub(super) fn new(deadline: Duration) -> Self {
        Self {
            failed: watch::Sender::new(None),
            stopped: watch::Sender::new(false),
            started: Instant::now(),
            deadline,
            since: [AtomicU64::new(0), AtomicU64::new(0)],
            last_sealed: AtomicU64::new(0),
        }
    }

    /// Fails the engine. The first reason stands.
    pub(super) fn fail(&self, why: String) {
        let first = self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            if first {
                *failed = Some(why.clone());
            }
            first
        });
        if first {
            tracing::error!(reason = %why, "the store failed; it must be opened again");
        }
    }

    /// Why the engine failed, if it has.
    pub(super) fn failure(&self) -> Option<String> {
        self.failed.borrow().clone()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.borrow().is_some()
    }

    pub(super) fn watch_failure(&self) -> watch::Receiver<Option<String>> {
        self.failed.subscribe()
    }

    /// The last thread that answers callers has ended.
    pub(super) fn stop(&self) {
        self.stopped.send_replace(true);
    }

    pub(super) fn watch_stop(&self) -> watch::Receiver<bool> {
        self.stopped.subscribe()
    }

    /// Does a step under the deadline. What took longer counts as failed even if it ended well: its
    /// callers may have been told so.
    pub(super) fn within_deadline<T>(
        &self,
        step: Step,
        work: impl FnOnce() -> Result<T, String>,
    ) -> Option<(T, Duration)> {
        let begun = Instant::now();
        self.since[step as usize].store(self.micros().max(1), Ordering::Release);
        let result = work();
        self.since[step as usize].store(0, Ordering::Release);
        let took = begun.elapsed();
        match result {
            Ok(_) if took > self.deadline => self.fail(self.overdue(step)),
            Ok(_) if self.has_failed() => {}
            Ok(done) => return Some((done, took)),
            Err(why) => self.fail(why),
        }
        None
    }

    /// Something was made durable just now.
    pub(super) fn sealed_now(&self) {
        self.last_sealed.store(self.micros().max(1), Ordering::Release);
    }

    /// Whether something was made durable no longer ago than `age`.
    pub(super) fn sealed_within(&self, age: Duration) -> bool {
        let last = self.last_sealed.load(Ordering::Acquire);
        last > 0 && u128::from(self.micros().saturating_sub(last)) < age.as_micros()
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn overdue(&self, step: Step) -> String {
        let what = match step {
            Step::Commit => "writing and syncing the database",
            Step::Seal => "syncing the high-water mark or telling the observer",
        };
        format!("{what} took longer than {:?}", self.deadline)
    }

    fn check_deadline(&self) {
        for step in [Step::Commit, Step::Seal] {
            let since = self.since[step as usize].load(Ordering::Acquire);
            let took = Duration::from_micros(self.micros().saturating_sub(since));
            if since > 0 && took > self.deadline {
                self.fail(self.overdue(step));
            }
        }
    }
}

/// Starts the thread that fails the engine when a step hangs in the disk: the thread that hangs
/// cannot. It ends once the engine has failed or stopped; unpark it to make it look.
pub(super) fn start_watchdog(health: Arc<Health>) -> std::io::Result<Thread> {
    let tick = (health.deadline / 8).clamp(Duration::from_millis(5), Duration::from_millis(250));
    let watchdog = thread::Builder::new().name("avouch-watchdog".to_owned()).spawn(move || {
        while !health.has_failed() && !*health.stopped.borrow() {
            health.check_deadline();
            thread::park_timeout(tick);
        }
    })?;
    Ok(watchdog.thread().clone())
}
