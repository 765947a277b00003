//! What an engine must do: run one decision after another over keys and values, make what they
//! wrote durable, tell the observer, and only then answer. Knows no sessions and no tokens.
//!
//! The verbs of [`Store`](super::Store) are written once, over [`Txn`], in `ledger.rs`; an engine
//! carries bytes.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::StoreError;
use super::backup::{Capture, CaptureError};
use super::board::Board;
use crate::domain::clock::Timestamp;
use crate::domain::ids::{Cursor, LogId, Revision};

/// A record as it lies in the engine, without the engine's own checksum.
pub type Value = Vec<u8>;

/// Where the latest moment that was ever committed stands: milliseconds, big-endian. Decisions write
/// it like any record; the engine reads it once, when it opens.
pub const TIME_KEY: &[u8] = b"m/time";

/// Where the event of a revision stands. The engine writes it, with what [`Txn::append`] was given;
/// decisions delete it once it has expired.
pub fn event_key(revision: Revision) -> Vec<u8> {
    let mut key = b"e".to_vec();
    key.extend_from_slice(&revision.0.to_be_bytes());
    key
}

/// Key prefixes beginning with this byte belong to the engine itself.
pub const ENGINE_PREFIX: u8 = b'!';

/// Kinds of keys, by their first byte, whose records are index entries: many, and without a value.
/// An engine may keep many of them as one.
pub const INDEX_KINDS: [u8; 3] = *b"ixz";

/// Whether a key is that of an index entry.
pub fn is_index_key(key: &[u8]) -> bool {
    key.first().is_some_and(|kind| INDEX_KINDS.contains(kind))
}

/// A range of keys, the end excluded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyRange {
    /// The first key.
    pub start: Vec<u8>,
    /// The first key beyond; none means up to the last.
    pub end: Option<Vec<u8>>,
}

impl KeyRange {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        let mut end = prefix.to_vec();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return Self { start: prefix.to_vec(), end: Some(end) };
            }
        }
        Self { start: prefix.to_vec(), end: None }
    }
}

/// Which end of a range to read from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    /// From the first key.
    Ascending,
    /// From the last key.
    Descending,
}

/// How much of what a decision has read its outcome rests on. An engine that runs decisions one
/// after another need not care; one that decides over what may be old commits only if what the
/// decision rests on is still so.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rests {
    /// On all of it: whatever changes of it, the decision runs again.
    OnAll,
    /// On nothing having been added to it or changed in it; what was removed does not matter.
    OnAdditions,
    /// On nothing of it. It shows what was committed when the decision began, or later.
    OnNothing,
}

/// Point and range reads.
///
/// Within a decision they show one moment. Within a query ([`Engine::read`]) they show everything
/// that was acknowledged before it was asked; of what is committed meanwhile, one read may show
/// something that another does not. Who needs one durable moment reads in a decision that writes
/// nothing.
pub trait Reads {
    /// The value under `key`.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the record does not match its checksum, and whatever the
    /// engine's I/O may give.
    fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError>;

    /// Up to `limit` records of a range.
    ///
    /// # Errors
    /// As for [`Reads::get`].
    fn scan(
        &self,
        range: &KeyRange,
        order: Order,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Value)>, StoreError>;

    /// The values under many keys, in their order: one way for an engine that is far away.
    ///
    /// # Errors
    /// As for [`Reads::get`].
    fn get_many(&self, keys: &[Vec<u8>], rests: Rests) -> Result<Vec<Option<Value>>, StoreError> {
        _ = rests;
        keys.iter().map(|key| self.get(key)).collect()
    }

    /// As [`Reads::scan`].
    ///
    /// # Errors
    /// As for [`Reads::get`].
    fn scan_many(
        &self,
        range: &KeyRange,
        order: Order,
        limit: usize,
        rests: Rests,
    ) -> Result<Vec<(Vec<u8>, Value)>, StoreError> {
        _ = rests;
        self.scan(range, order, limit)
    }

    /// The value under `key`, perhaps as it was some time ago.
    ///
    /// # Errors
    /// As for [`Reads::get`].
    fn peek(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        self.get(key)
    }
}

/// One decision in the making: it reads through what it has written itself, and writes nothing
/// until the engine commits it.
pub struct Txn<'a> {
    base: &'a dyn Reads,
    writes: BTreeMap<Vec<u8>, Option<Value>>,
    event: Option<Value>,
}

impl<'a> Txn<'a> {
    /// A transaction over `base`, which for a group commit includes the decisions before this one.
    pub fn new(base: &'a dyn Reads) -> Self {
        Self { base, writes: BTreeMap::new(), event: None }
    }

    /// The value under `key` as this decision sees it.
    ///
    /// # Errors
    /// As for [`Reads::get`].
    pub fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        match self.writes.get(key) {
            Some(own) => Ok(own.clone()),
            None => self.base.get(key),
        }
    }

    /// The value under `key`, perhaps as it was some time ago: for what the decision can do without.
    ///
    /// # Errors
    /// As for [`Reads::get`].
    pub fn peek(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        match self.writes.get(key) {
            Some(own) => Ok(own.clone()),
            None => self.base.peek(key),
        }
    }

    /// The values under many keys, in their order, without what this decision itself has written.
    ///
    /// # Errors
    /// As for [`Reads::get`].
    pub fn get_committed(
        &self,
        keys: &[Vec<u8>],
        rests: Rests,
    ) -> Result<Vec<Option<Value>>, StoreError> {
        self.base.get_many(keys, rests)
    }

    /// Up to `limit` records of a range, without what this decision itself has written.
    ///
    /// # Errors
    /// As for [`Reads::scan`].
    pub fn scan_committed(
        &self,
        range: &KeyRange,
        order: Order,
        limit: usize,
        rests: Rests,
    ) -> Result<Vec<(Vec<u8>, Value)>, StoreError> {
        self.base.scan_many(range, order, limit, rests)
    }

    /// Writes a record.
    pub fn put(&mut self, key: Vec<u8>, value: Value) {
        self.writes.insert(key, Some(value));
    }

    /// Removes a record.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.writes.insert(key, None);
    }

    /// Appends the one event of this change to the log. The engine gives it its revision.
    ///
    /// # Errors
    /// [`StoreError::Internal`] when the change has an event already: one change, one event.
    pub fn append(&mut self, event: Value) -> Result<(), StoreError> {
        if self.event.replace(event).is_some() {
            return Err(StoreError::Internal("a change appended two events"));
        }
        Ok(())
    }

    /// What the decision wants committed.
    pub fn into_parts(self) -> (BTreeMap<Vec<u8>, Option<Value>>, Option<Value>) {
        (self.writes, self.event)
    }
}

/// What a decision answers, its type forgotten on the way through the engine.
pub type Answer = Box<dyn Any + Send>;

/// A decision: a pure function of what it reads. An engine may run it more than once and commits
/// what the last run wrote.
pub type Decision = Box<dyn Fn(&mut Txn<'_>) -> Result<Answer, StoreError> + Send>;

/// What only reads: a pure function of what it reads. An engine may run it more than once.
pub type Query<'a> = &'a (dyn Fn(&dyn Reads) -> Result<Answer, StoreError> + Send + Sync);

/// Where a committed decision stands in the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Commit {
    /// The revision of its event, if it had one.
    pub event: Option<Revision>,
    /// The newest revision once it was committed.
    pub head: Revision,
}

/// An event of the log as an engine keeps it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LoggedEvent {
    /// Its revision.
    pub revision: Revision,
    /// What [`Txn::append`] was given.
    pub value: Value,
}

/// Is told of every durable group of commits, in order, before any of their callers gets an answer.
pub trait Observer: Send + Sync + 'static {
    /// These events are durable, and so is everything up to `head`. It must be quick and must not
    /// call the store.
    fn durable(&self, events: &[LoggedEvent], head: Revision);
}

/// How an engine is doing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct EngineStatus {
    /// Why it no longer commits, if it does not.
    pub failed: Option<String>,
    /// Whether it refuses writes because space is low.
    pub low_space: bool,
    /// Bytes on disk; zero for an engine that has none.
    pub disk_bytes: u64,
    /// Bytes free on its disk; `u64::MAX` when it has none.
    pub free_bytes: u64,
    /// Decisions committed since it was opened.
    pub commits: u64,
    /// Groups they were committed in.
    pub groups: u64,
    /// Time spent making groups durable, in all.
    pub sync_time: Duration,
    /// Decisions waiting for their group.
    pub queued: u64,
}

/// Carries the records of one avouch.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Runs `decision` after all that were submitted before it and commits what it wrote, whole or
    /// not at all. When this returns Ok, the commit is durable, so is everything that the decision
    /// read, and the observer has seen its event. When the decision returns an error, nothing of it
    /// is written.
    ///
    /// # Errors
    /// What the decision returned, or [`StoreError::Unavailable`] when the engine cannot say that
    /// the commit is durable; its outcome is then unknown until the store is opened again.
    async fn commit(&self, decision: Decision) -> Result<(Answer, Commit), StoreError>;

    /// As [`Engine::commit`], but allowed although space is low: for decisions that free space.
    ///
    /// # Errors
    /// As for [`Engine::commit`].
    async fn commit_freeing(&self, decision: Decision) -> Result<(Answer, Commit), StoreError>;

    /// Answers a query. It sees everything that was acknowledged before this was called, by whomever;
    /// and perhaps what is about to become durable.
    ///
    /// # Errors
    /// What the query returned, or [`StoreError::Unavailable`] when the engine cannot say what is
    /// stored.
    async fn read(&self, query: Query<'_>) -> Result<Answer, StoreError>;

    /// As [`Engine::read`], but what is there may be shown as it was some time ago: for what never
    /// changes of a record once it is written.
    ///
    /// # Errors
    /// As for [`Engine::read`].
    async fn recall(&self, query: Query<'_>) -> Result<Answer, StoreError> {
        self.read(query).await
    }

    /// How many records a range holds, about: others write while they are counted. By default it
    /// reads them all, a page at a time; an engine that is far away should know better.
    ///
    /// # Errors
    /// As for [`Engine::read`].
    async fn count(&self, mut range: KeyRange) -> Result<u64, StoreError> {
        const PAGE: usize = 4096;
        let mut count = 0;
        loop {
            let page = |reads: &dyn Reads| {
                let found = reads.scan_many(&range, Order::Ascending, PAGE, Rests::OnNothing)?;
                let last = found.last().map(|(key, _)| key.clone());
                Ok(Box::new((found.len(), last)) as Answer)
            };
            let answer = self.read(&page).await?.downcast::<(usize, Option<Vec<u8>>)>();
            let (found, last) =
                *answer.map_err(|_| StoreError::Internal("a count came to no number"))?;
            count += found as u64;
            let Some(mut next) = last.filter(|_| found == PAGE) else { return Ok(count) };
            next.push(0);
            range.start = next;
            // Nobody waits for it, and others do for this thread.
            tokio::task::yield_now().await;
        }
    }

    /// Whether other processes commit to the same log, each by a clock of its own.
    fn is_shared(&self) -> bool {
        false
    }

    /// How many records of a kind one decision may sweep.
    fn sweeps_at_once(&self) -> usize {
        usize::MAX
    }

    /// Up to `limit` durable events with a revision above `after`, in order.
    ///
    /// # Errors
    /// As for [`Reads::scan`].
    fn events_after(&self, after: Revision, limit: usize) -> Result<Vec<LoggedEvent>, StoreError>;

    /// Begins to read the whole state while others write. One at a time.
    ///
    /// # Errors
    /// [`CaptureError::Busy`] while another goes on, [`CaptureError::Unsupported`] where it cannot be
    /// done.
    fn capture(&self) -> Result<Box<dyn Capture>, CaptureError> {
        Err(CaptureError::Unsupported)
    }

    /// Which log this is.
    fn log_id(&self) -> LogId;

    /// The newest durable position.
    fn head(&self) -> Cursor;

    /// The latest moment that was committed under [`TIME_KEY`]; the floor of the
    /// clock when the engine was opened.
    fn time_floor(&self) -> Timestamp;

    /// Sets who is told of durable events. At most one; a later call replaces it.
    fn observe(&self, observer: Arc<dyn Observer>);

    /// Where the replicas that share what is stored here leave notes; none when there can be only one.
    ///
    /// [`Board`] says how they are used.
    fn board(&self) -> Option<Arc<dyn Board>> {
        None
    }

    /// How it is doing.
    fn status(&self) -> EngineStatus;

    /// Whether the engine has proved just now that it can make something durable. `as_of` freezes
    /// while this is false.
    async fn prove_contact(&self) -> bool;

    /// Makes durable what is not, and stops. Later commits get [`StoreError::Unavailable`].
    async fn close(&self);
}
