//! The engine of tests: a map under a mutex. It forgets everything, and is the measure of what the
//! other engines must do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::StoreError;
use super::engine::{
    Answer, Commit, Decision, Engine, EngineStatus, KeyRange, LoggedEvent, Observer, Order, Query,
    Reads, Value,
};
use super::group::{self, Group};
use crate::domain::clock::Timestamp;
use crate::domain::ids::{Cursor, LogId, Revision};

mod board;
mod shared;

pub use shared::{SharedMemory, SharedReplica};

/// Keeps everything in memory.
pub struct MemoryEngine {
    log_id: LogId,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    records: Records,
    head: Revision,
    commits: u64,
    closed: bool,
    observer: Option<Arc<dyn Observer>>,
}

#[derive(Default)]
struct Records(BTreeMap<Vec<u8>, Value>);

impl MemoryEngine {
    /// An empty engine with a log of this name.
    pub fn new(log_id: LogId) -> Self {
        Self { log_id, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit_now(&self, decision: &Decision) -> Result<(Answer, Commit), StoreError> {
        let mut state = self.state();
        if state.closed {
            return Err(StoreError::Unavailable("it is closed".to_owned()));
        }
        let mut group = Group::new(&state.records, state.head);
        let outcome = group.run(decision, || Ok(()))?;
        let written = group.finish();
        for (key, value) in written.writes {
            match value {
                Some(value) => state.records.0.insert(key, value),
                None => state.records.0.remove(&key),
            };
        }
        state.head = written.head;
        state.commits += 1;
        // Under the mutex, so that observers see events in the order of their revisions.
        if let Some(observer) = &state.observer {
            observer.durable(&written.events, written.head);
        }
        Ok(outcome)
    }
}

impl Reads for Records {
    fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(
        &self,
        range: &KeyRange,
        order: Order,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Value)>, StoreError> {
        if group::is_empty(range) {
            return Ok(Vec::new());
        }
        let found = self.0.range::<[u8], _>(group::bounds(range));
        let owned = |(key, value): (&Vec<u8>, &Value)| (key.clone(), value.clone());
        Ok(match order {
            Order::Ascending => found.take(limit).map(owned).collect(),
            Order::Descending => found.rev().take(limit).map(owned).collect(),
        })
    }
}

impl Reads for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        self.state().records.get(key)
    }

    fn scan(
        &self,
        range: &KeyRange,
        order: Order,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Value)>, StoreError> {
        self.state().records.scan(range, order, limit)
    }
}

#[async_trait]
impl Engine for MemoryEngine {
    async fn commit(&self, decision: Decision) -> Result<(Answer, Commit), StoreError> {
        self.commit_now(&decision)
    }

    async fn commit_freeing(&self, decision: Decision) -> Result<(Answer, Commit), StoreError> {
        self.commit_now(&decision)
    }

    /// Under the mutex, so it shows one moment.
    async fn read(&self, query: Query<'_>) -> Result<Answer, StoreError> {
        query(&self.state().records)
    }

    fn events_after(&self, after: Revision, limit: usize) -> Result<Vec<LoggedEvent>, StoreError> {
        let state = self.state();
        group::events_between(&state.records, after, state.head, limit)
    }

    fn log_id(&self) -> LogId {
        self.log_id
    }

    fn head(&self) -> Cursor {
        Cursor { log_id: self.log_id, revision: self.state().head }
    }

    /// A new engine has committed nothing, so its clock has no floor.
    fn time_floor(&self) -> Timestamp {
        Timestamp::default()
    }

    fn observe(&self, observer: Arc<dyn Observer>) {
        self.state().observer = Some(observer);
    }

    fn status(&self) -> EngineStatus {
        let commits = self.state().commits;
        EngineStatus { free_bytes: u64::MAX, commits, groups: commits, ..EngineStatus::default() }
    }

    async fn prove_contact(&self) -> bool {
        !self.state().closed
    }

    async fn close(&self) {
        self.state().closed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::engine_suite::{Shape, suite};

    #[test]
    fn does_what_an_engine_must() {
        suite(Shape::HERE, async || MemoryEngine::new(LogId::from_bytes([7; 16])));
    }
}
