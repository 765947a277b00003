//! What a hashing thread does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};

use tokio::time::Instant;

use super::queue::{Job, Shared, Task};
use super::{HashError, Verification};
use crate::password::engine::{Engine, EngineError};

impl Shared {
    pub(super) fn work(&self) {
        step_back();
        let mut engine = Engine::new(self.params, Arc::clone(&self.pepper));
        while let Some(job) = self.next(&mut engine) {
            if let Some(recorder) = self.recorder.get() {
                recorder.waited(job.since.elapsed());
            }
            let span = job.span.then("password hash");
            match job.task {
                Task::Hash { password, reply } => {
                    let result = self
                        .run(&mut engine, |engine| engine.hash(&password, self.entropy.bytes()));
                    drop(span);
                    // The caller may have left by now.
                    let _ = reply.send(result);
                }
                Task::Verify { password, stored, reply } => {
                    let known = stored.is_some();
                    let hash = stored.as_ref().unwrap_or(&self.unknown);
                    let result = self.run(&mut engine, |engine| engine.verify(&password, hash));
                    drop(span);
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
        if let Some(recorder) = self.recorder.get() {
            recorder.ran(took);
        }

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

/// Lets this thread run only with what the others leave: a hash takes a core for long, and whoever
/// waits for one is used to waiting.
#[cfg(target_os = "linux")]
pub(super) fn step_back() {
    // On Linux this concerns the calling thread alone, against POSIX (see setpriority(2)).
    if let Err(error) = rustix::process::nice(10) {
        tracing::debug!(%error, "hashing threads keep the ordinary priority");
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn step_back() {}
