//! The thread that writes, and the bounded queue before it.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Thread};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::event::AuditEvent;
use super::otlp::{Collector, OtlpSink};
use super::sink::{FileSink, Line, Sink, Unsynced};

/// The audit log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AuditOpenError {
    /// The file cannot be opened for appending.
    #[error("the audit log {0} cannot be opened: {1}")]
    File(PathBuf, #[source] io::Error),
    /// The thread could not be started.
    #[error("the audit log's thread cannot be started: {0}")]
    Thread(#[source] io::Error),
    /// The collector's address or the CA of its certificate makes no sense.
    #[error("the audit log's collector cannot be used: {0}")]
    Collector(String),
}

/// The event was not written. What depends on it must not happen.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the audit log cannot be written")]
pub struct AuditDown;

enum Job {
    Line(Line, Option<oneshot::Sender<bool>>),
    Flush(oneshot::Sender<bool>),
}

#[derive(Debug, Default)]
struct Counters {
    written: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
    /// Whether the last lines could not be written.
    failing: AtomicBool,
}

/// The audit log. Clones share it; the thread ends with the last of them.
#[derive(Clone, Debug)]
pub struct AuditLog {
    queue: SyncSender<Job>,
    counters: Arc<Counters>,
    writer: Thread,
    /// Whether a collector takes nothing now, and what is recorded waits.
    away: watch::Receiver<bool>,
}

impl AuditLog {
    /// Appends to a file, made with mode 0600 if it is not there. `max_queued` lines may wait.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread not started.
    pub fn file(path: &Path, max_queued: usize) -> Result<Self, AuditOpenError> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| AuditOpenError::File(path.into(), error))?;
        Self::start(FileSink(BufWriter::new(file)), max_queued, here())
    }

    /// Writes to stdout.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn stdout(max_queued: usize) -> Result<Self, AuditOpenError> {
        Self::start(Unsynced(BufWriter::new(io::stdout())), max_queued, here())
    }

    /// Sends to a collector. While it takes nothing, events wait, `max_queued` of them and the
    /// thousand at most that are on their way.
    ///
    /// # Errors
    /// When the settings make no sense or the thread cannot be started. A collector that cannot be
    /// reached is none.
    pub fn otlp(collector: Collector, max_queued: usize) -> Result<Self, AuditOpenError> {
        let (away, seen) = watch::channel(false);
        Self::start(OtlpSink::new(collector, away)?, max_queued, seen)
    }

    /// Writes to anything.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn writer(
        writer: impl Write + Send + 'static,
        max_queued: usize,
    ) -> Result<Self, AuditOpenError> {
        Self::start(Unsynced(writer), max_queued, here())
    }

    fn start(
        sink: impl Sink,
        max_queued: usize,
        away: watch::Receiver<bool>,
    ) -> Result<Self, AuditOpenError> {
        let (queue, jobs) = sync_channel(max_queued.max(1));
        let counters = Arc::new(Counters::default());
        let own = Arc::clone(&counters);
        let writer = thread::Builder::new()
            .name("audit".into())
            .spawn(move || run(sink, &jobs, &own))
            .map_err(AuditOpenError::Thread)?;
        Ok(Self { queue, counters, writer: writer.thread().clone(), away })
    }

    /// Records an event, for calls that must not wait: logins, refreshes. It is written some
    /// milliseconds later, with those that came meanwhile. When the queue is full the event is
    /// dropped and counted.
    pub fn record(&self, event: &AuditEvent) {
        if self.queue.try_send(Job::Line(Line::of(event), None)).is_err() {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            self.writer.unpark();
        }
    }

    /// Records an event and waits until it is written, for calls that must not happen unrecorded:
    /// what an administrator does.
    ///
    /// # Errors
    /// When it could not be written, the queue is full, or the collector takes nothing: then the
    /// event waits for it with the others.
    pub async fn record_surely(&self, event: &AuditEvent) -> Result<(), AuditDown> {
        let mut away = self.away.clone();
        if *away.borrow() {
            self.record(event);
            return Err(AuditDown);
        }
        let (done, written) = oneshot::channel();
        if self.queue.try_send(Job::Line(Line::of(event), Some(done))).is_err() {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            self.writer.unpark();
            return Err(AuditDown);
        }
        self.writer.unpark();
        let written = tokio::select! {
            biased;
            written = written => written.unwrap_or(false),
            Ok(_) = away.wait_for(|away| *away) => false,
        };
        if written { Ok(()) } else { Err(AuditDown) }
    }

    /// Waits until everything recorded so far is written and synced. Call it before the end.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn flush(&self) -> Result<(), AuditDown> {
        let (done, written) = oneshot::channel();
        let Self { queue, writer, .. } = self.clone();
        // The queue may be full, and then sending waits.
        let sent = tokio::task::spawn_blocking(move || {
            writer.unpark();
            let sent = queue.send(Job::Flush(done)).is_ok();
            writer.unpark();
            sent
        });
        let sent = sent.await;
        if sent.unwrap_or(false) && written.await.unwrap_or(false) {
            Ok(())
        } else {
            Err(AuditDown)
        }
    }

    /// Events that were written.
    pub fn written(&self) -> u64 {
        self.counters.written.load(Ordering::Relaxed)
    }

    /// Events that found the queue full.
    pub fn dropped(&self) -> u64 {
        self.counters.dropped.load(Ordering::Relaxed)
    }

    /// Whether nothing can be recorded surely now: the last lines could not be written, or the
    /// collector takes nothing.
    pub fn is_down(&self) -> bool {
        *self.away.borrow() || self.counters.failing.load(Ordering::Relaxed)
    }

    /// Events that could not be written.
    pub fn failed(&self) -> u64 {
        self.counters.failed.load(Ordering::Relaxed)
    }
}

/// What is never away.
fn here() -> watch::Receiver<bool> {
    watch::channel(false).1
}

/// The lines that go out with one flush, and who waits for them.
#[derive(Default)]
struct Batch {
    lines: u64,
    failed: bool,
    sync: bool,
    for_lines: Vec<oneshot::Sender<bool>>,
    for_flush: Vec<oneshot::Sender<bool>>,
}

const MAX_BATCH: u64 = 1_000;

/// How long the thread waits for more lines when nobody waits for those that it has. To wake it for
/// each line would cost the one who records more than the line does.
const GATHERS_FOR: Duration = Duration::from_millis(2);

impl Batch {
    fn take(&mut self, job: Job, sink: &mut impl Sink) {
        match job {
            Job::Line(line, done) => {
                self.lines += 1;
                self.failed |= sink.write_line(&line).is_err();
                self.sync |= done.is_some();
                self.for_lines.extend(done);
            }
            Job::Flush(done) => {
                self.sync = true;
                self.for_flush.push(done);
            }
        }
    }

    /// Takes what is there, up to the limit.
    fn take_all(&mut self, jobs: &Receiver<Job>, sink: &mut impl Sink) {
        while self.lines < MAX_BATCH
            && let Ok(job) = jobs.try_recv()
        {
            self.take(job, sink);
        }
    }
}

/// Writes in batches: whatever waits goes out with one flush, and only then are those told who wait.
fn run(mut sink: impl Sink, jobs: &Receiver<Job>, counters: &Counters) {
    // Whether a line was lost since a flush last said so.
    let mut lost = false;
    while let Ok(first) = jobs.recv() {
        let mut batch = Batch::default();
        batch.take(first, &mut sink);
        batch.take_all(jobs, &mut sink);
        if !batch.sync && batch.lines < MAX_BATCH {
            // Whoever waits, or finds the queue full, ends this.
            thread::park_timeout(GATHERS_FOR);
            batch.take_all(jobs, &mut sink);
        }
        finish(&mut sink, batch, &mut lost, counters);
    }
}

fn finish(sink: &mut impl Sink, batch: Batch, lost: &mut bool, counters: &Counters) {
    let good = sink.flush().is_ok() && !batch.failed && (!batch.sync || sink.sync().is_ok());
    let counter = if good { &counters.written } else { &counters.failed };
    counter.fetch_add(batch.lines, Ordering::Relaxed);
    counters.failing.store(!good, Ordering::Relaxed);
    *lost |= !good;
    for done in batch.for_lines {
        let _ = done.send(good);
    }
    for done in batch.for_flush {
        let _ = done.send(!std::mem::take(lost));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::mpsc;

    use super::*;
    use crate::audit::AuditName;
    use crate::domain::clock::Timestamp;

    fn event(revision: u64) -> AuditEvent {
        AuditEvent::new(AuditName::AuthnTokenRevoked, Timestamp::from_secs(1)).revision(revision)
    }

    #[tokio::test]
    async fn writes_every_event_in_order_to_a_private_file_and_appends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        for round in 0..2 {
            let log = AuditLog::file(&path, 10_000).unwrap();
            for revision in 0..2_500 {
                log.record(&event(round * 2_500 + revision));
            }
            log.flush().await.unwrap();
            assert_eq!((log.written(), log.dropped()), (2_500, 0));
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let revisions = text.lines().map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["revision"].as_u64().unwrap()
        });
        assert!(revisions.eq(0..5_000));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    /// Blocks in its first write until told; then fails.
    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Err(io::Error::other("disk full"))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_counts_and_who_must_be_sure_is_told() {
        let (go, stuck) = mpsc::channel();
        let log = AuditLog::writer(Stuck(stuck), 2).unwrap();
        for revision in 0..10 {
            log.record(&event(revision));
        }
        assert!(log.dropped() >= 7, "{}", log.dropped());
        assert_eq!(log.record_surely(&event(10)).await, Err(AuditDown));
        drop(go);
        assert_eq!(log.flush().await, Err(AuditDown));
        assert_eq!(log.record_surely(&event(11)).await, Err(AuditDown));
        assert_eq!(log.written(), 0);
    }
}
