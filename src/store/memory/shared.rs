//! One memory for several replicas in one process: the engine of tests that are about replicas. Each
//! replica has a line to the memory, which can be cut, and can hold events back.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::MemoryEngine;
use super::board::MemoryBoard;
use crate::domain::clock::Timestamp;
use crate::domain::ids::{Cursor, LogId, Revision};
use crate::store::StoreError;
use crate::store::board::{Board, Change, Lease};
use crate::store::codec;
use crate::store::engine::{
    Answer, Commit, Decision, Engine, EngineStatus, LoggedEvent, Observer, Query, Reads as _,
    TIME_KEY,
};

/// A memory that several replicas share.
pub struct SharedMemory {
    engine: Arc<MemoryEngine>,
    lines: Arc<Lines>,
    board: Arc<MemoryBoard>,
    replicas: AtomicUsize,
    reads: Arc<AtomicUsize>,
}

/// Tells every replica of what is durable.
#[derive(Default)]
struct Lines(Mutex<Vec<Arc<Line>>>);

impl Observer for Lines {
    fn durable(&self, events: &[LoggedEvent], head: Revision) {
        for line in &*lock(&self.0) {
            line.deliver(events, head);
        }
    }
}

/// The way from the memory to one replica.
#[derive(Default)]
struct Line(Mutex<State>);

/// What comes of notes, while everything else goes on.
#[derive(Clone, Copy, Default, Eq, PartialEq)]
enum Notes {
    #[default]
    Taken,
    /// There is no space for them.
    Full,
    /// Nothing of the board is in reach.
    Lost,
    /// What is asked of the board is done, and nobody hears of it.
    Unheard,
}

#[derive(Default)]
struct State {
    cut: bool,
    held: bool,
    closed: bool,
    board: Notes,
    head: Revision,
    /// What was not delivered yet.
    waiting: VecDeque<(Vec<LoggedEvent>, Revision)>,
    observer: Option<Arc<dyn Observer>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Line {
    fn deliver(&self, events: &[LoggedEvent], head: Revision) {
        let mut state = lock(&self.0);
        state.waiting.push_back((events.to_vec(), head));
        if !state.cut && !state.held {
            state.flush();
        }
    }
}

impl State {
    /// Under the lock, so that observers see events in the order of their revisions.
    fn flush(&mut self) {
        while let Some((events, head)) = self.waiting.pop_front() {
            self.head = head;
            if let Some(observer) = &self.observer {
                observer.durable(&events, head);
            }
        }
    }
}

impl SharedMemory {
    /// An empty memory with a log of this name.
    pub fn new(log_id: LogId) -> Self {
        let engine = Arc::new(MemoryEngine::new(log_id));
        let lines = Arc::new(Lines::default());
        engine.observe(Arc::clone(&lines) as Arc<dyn Observer>);
        Self {
            engine,
            lines,
            board: Arc::default(),
            replicas: AtomicUsize::new(0),
            reads: Arc::default(),
        }
    }

    /// How often anything was read by the replicas, other than in commits.
    pub fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    /// Another replica.
    pub fn replica(&self) -> SharedReplica {
        let line = Arc::new(Line::default());
        // Before the head is read: what is committed in between waits on the line, or is below.
        lock(&self.lines.0).push(Arc::clone(&line));
        let head = self.engine.head().revision;
        let mut state = lock(&line.0);
        state.head = state.head.max(head);
        drop(state);
        SharedReplica {
            engine: Arc::clone(&self.engine),
            board: Arc::clone(&self.board),
            line,
            reads: Arc::clone(&self.reads),
            number: self.replicas.fetch_add(1, Ordering::Relaxed),
        }
    }
}

/// The memory as one replica sees it. Clones are the same replica.
#[derive(Clone)]
pub struct SharedReplica {
    engine: Arc<MemoryEngine>,
    board: Arc<MemoryBoard>,
    line: Arc<Line>,
    reads: Arc<AtomicUsize>,
    number: usize,
}

impl fmt::Debug for SharedReplica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedReplica").field("number", &self.number).finish_non_exhaustive()
    }
}

impl SharedReplica {
    /// Cuts the line: nothing is read, committed or heard of until [`SharedReplica::heal`].
    pub fn cut(&self) {
        lock(&self.line.0).cut = true;
        self.board.connect(self.number, false);
    }

    /// Mends the line: what happened meanwhile comes now, in order.
    pub fn heal(&self) {
        let mut state = lock(&self.line.0);
        state.cut = false;
        if !state.held {
            state.flush();
        }
        drop(state);
        self.board.connect(self.number, true);
    }

    /// Lets events wait from now on, while everything else goes on: this replica lags.
    pub fn hold_events(&self) {
        lock(&self.line.0).held = true;
    }

    /// Lets the events come that waited.
    pub fn release_events(&self) {
        let mut state = lock(&self.line.0);
        state.held = false;
        if !state.cut {
            state.flush();
        }
    }

    /// Leaves no space for notes from now on; leases are kept as before.
    pub fn refuse_notes(&self) {
        lock(&self.line.0).board = Notes::Full;
    }

    /// Puts the board out of reach from now on, while records are read and committed as before.
    pub fn lose_board(&self) {
        lock(&self.line.0).board = Notes::Lost;
        self.board.connect(self.number, false);
    }

    /// Lets nothing be heard of the notes of others from now on, while one's own are taken.
    pub fn hold_notes(&self) {
        self.board.connect(self.number, false);
    }

    /// Loses the answers of the board from now on, while what is asked of it is done.
    pub fn lose_answers(&self) {
        lock(&self.line.0).board = Notes::Unheard;
        self.board.connect(self.number, false);
    }

    /// What came of something that was asked of the board.
    fn heard<T>(&self, answer: T) -> Result<T, StoreError> {
        match lock(&self.line.0).board {
            Notes::Unheard => Err(StoreError::Unavailable("no answer".to_owned())),
            Notes::Taken | Notes::Full | Notes::Lost => Ok(answer),
        }
    }

    fn reach_board(&self, writes: bool) -> Result<(), StoreError> {
        self.reach()?;
        match lock(&self.line.0).board {
            Notes::Full if writes => Err(StoreError::Unavailable("no space".to_owned())),
            Notes::Lost => Err(StoreError::Unavailable("the board is out of reach".to_owned())),
            Notes::Taken | Notes::Full | Notes::Unheard => Ok(()),
        }
    }

    fn reach(&self) -> Result<(), StoreError> {
        let state = lock(&self.line.0);
        let broken = state.cut || state.closed;
        (!broken).then_some(()).ok_or_else(|| StoreError::Unavailable("the line is cut".to_owned()))
    }
}

#[async_trait]
impl Engine for SharedReplica {
    async fn commit(&self, decision: Decision) -> Result<(Answer, Commit), StoreError> {
        self.reach()?;
        self.engine.commit(decision).await
    }

    async fn commit_freeing(&self, decision: Decision) -> Result<(Answer, Commit), StoreError> {
        self.commit(decision).await
    }

    async fn read(&self, query: Query<'_>) -> Result<Answer, StoreError> {
        self.reach()?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.engine.read(query).await
    }

    /// What was heard of, as from a copy that this replica keeps.
    fn events_after(&self, after: Revision, limit: usize) -> Result<Vec<LoggedEvent>, StoreError> {
        let head = lock(&self.line.0).head;
        let mut events = self.engine.events_after(after, limit)?;
        events.retain(|event| event.revision <= head);
        Ok(events)
    }

    fn log_id(&self) -> LogId {
        self.engine.log_id()
    }

    fn head(&self) -> Cursor {
        Cursor { log_id: self.log_id(), revision: lock(&self.line.0).head }
    }

    fn time_floor(&self) -> Timestamp {
        let known = self.engine.state().records.get(TIME_KEY);
        let millis = known.ok().flatten().and_then(|bytes| codec::read_number(&bytes).ok());
        Timestamp::from_millis(millis.unwrap_or(0))
    }

    fn observe(&self, observer: Arc<dyn Observer>) {
        lock(&self.line.0).observer = Some(observer);
    }

    fn status(&self) -> EngineStatus {
        self.engine.status()
    }

    /// As with an engine that is far away: the line stands, and what is behind it is heard of here.
    async fn prove_contact(&self) -> bool {
        self.reach().is_ok() && !lock(&self.line.0).held
    }

    fn board(&self) -> Option<Arc<dyn Board>> {
        Some(Arc::new(self.clone()))
    }

    async fn close(&self) {
        lock(&self.line.0).closed = true;
    }
}

#[async_trait]
impl Board for SharedReplica {
    async fn lease(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.reach_board(true)?;
        self.heard(self.board.lease(ttl))
    }

    async fn keep(&self, lease: Lease) -> Result<bool, StoreError> {
        self.reach_board(false)?;
        self.heard(self.board.keep(lease))
    }

    async fn end(&self, lease: Lease) -> Result<(), StoreError> {
        self.reach_board(false)?;
        self.board.end(lease);
        Ok(())
    }

    async fn put(&self, name: &str, value: Vec<u8>, lease: Lease) -> Result<bool, StoreError> {
        self.reach_board(true)?;
        self.heard(self.board.put(name, value, lease))
    }

    async fn take_down(&self, prefix: &str) -> Result<(), StoreError> {
        self.reach_board(false)?;
        self.board.take_down(prefix);
        Ok(())
    }

    fn follow(&self) -> mpsc::UnboundedReceiver<Change> {
        self.board.follow(self.number, self.reach_board(false).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::engine_suite::{Shape, suite};

    #[test]
    fn a_replica_does_what_an_engine_must() {
        suite(Shape::HERE, async || SharedMemory::new(LogId::from_bytes([7; 16])).replica());
    }
}
