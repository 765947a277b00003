//! An engine in memory that tests hold by the strings: contact and the order of things are theirs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use avouch::domain::clock::Timestamp;
use avouch::domain::ids::{Cursor, LogId, Revision};
use avouch::store::StoreError;
use avouch::store::engine::{
    Answer, Commit, Decision, Engine, EngineStatus, KeyRange, LoggedEvent, Observer, Order, Reads,
    Txn, Value, event_key,
};

/// Everything in a map under a mutex.
pub(crate) struct LogEngine {
    log_id: LogId,
    state: Mutex<State>,
    /// Whether contact can be proved.
    pub(crate) contact: Arc<AtomicBool>,
    /// How often events were read.
    pub(crate) reads: Arc<AtomicUsize>,
}

#[derive(Default)]
struct State {
    records: Records,
    head: Revision,
    observer: Option<Arc<dyn Observer>>,
}

#[derive(Default)]
struct Records(BTreeMap<Vec<u8>, Value>);

impl LogEngine {
    pub(crate) fn new(log_id: LogId) -> Self {
        Self {
            log_id,
            state: Mutex::default(),
            contact: Arc::new(AtomicBool::new(true)),
            reads: Arc::default(),
        }
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
        let end = |key: &[u8]| range.end.as_ref().is_none_or(|end| key < end.as_slice());
        let found = self.0.range(range.start.clone()..).take_while(|(key, _)| end(key));
        let found: Vec<_> = found.map(|(key, value)| (key.clone(), value.clone())).collect();
        Ok(match order {
            Order::Ascending => found.into_iter().take(limit).collect(),
            Order::Descending => found.into_iter().rev().take(limit).collect(),
        })
    }
}

impl Reads for LogEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        self.state.lock().unwrap().records.get(key)
    }

    fn scan(
        &self,
        range: &KeyRange,
        order: Order,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Value)>, StoreError> {
        self.state.lock().unwrap().records.scan(range, order, limit)
    }
}

#[async_trait]
impl Engine for LogEngine {
    async fn commit(&self, decision: Decision) -> Result<(Answer, Commit), StoreError> {
        let mut state = self.state.lock().unwrap();
        let (answer, writes, event) = {
            let mut txn = Txn::new(&state.records);
            let answer = decision(&mut txn)?;
            let (writes, event) = txn.into_parts();
            (answer, writes, event)
        };
        for (key, value) in writes {
            match value {
                Some(value) => state.records.0.insert(key, value),
                None => state.records.0.remove(&key),
            };
        }
        let mut commit = Commit { event: None, head: state.head };
        if let Some(value) = event {
            let revision = Revision(state.head.0 + 1);
            state.head = revision;
            state.records.0.insert(event_key(revision), value.clone());
            commit = Commit { event: Some(revision), head: revision };
            if let Some(observer) = &state.observer {
                observer.durable(&[LoggedEvent { revision, value }], revision);
            }
        }
        Ok((answer, commit))
    }

    async fn commit_freeing(&self, decision: Decision) -> Result<(Answer, Commit), StoreError> {
        self.commit(decision).await
    }

    fn events_after(&self, after: Revision, limit: usize) -> Result<Vec<LoggedEvent>, StoreError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let state = self.state.lock().unwrap();
        let from = event_key(Revision(after.0 + 1));
        let events = state.records.0.range(from..).take_while(|(key, _)| key[0] == b'e');
        let event = |(key, value): (&Vec<u8>, &Value)| LoggedEvent {
            revision: Revision(u64::from_be_bytes(key[1..].try_into().unwrap())),
            value: value.clone(),
        };
        Ok(events.take(limit).map(event).collect())
    }

    fn log_id(&self) -> LogId {
        self.log_id
    }

    fn head(&self) -> Cursor {
        Cursor { log_id: self.log_id, revision: self.state.lock().unwrap().head }
    }

    fn time_floor(&self) -> Timestamp {
        Timestamp::default()
    }

    fn observe(&self, observer: Arc<dyn Observer>) {
        self.state.lock().unwrap().observer = Some(observer);
    }

    fn status(&self) -> EngineStatus {
        EngineStatus::default()
    }

    async fn prove_contact(&self) -> bool {
        self.contact.load(Ordering::Relaxed)
    }

    async fn close(&self) {}
}
