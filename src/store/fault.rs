//! An engine that fails on demand, for tests of what happens to those above it.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::{Notify, watch};

use super::StoreError;
use super::backup::{Capture, CaptureError};
use super::board::Board;
use super::engine::{Answer, Commit, Decision, Engine, EngineStatus, LoggedEvent, Observer, Query};
use crate::domain::clock::Timestamp;
use crate::domain::ids::{Cursor, LogId, Revision};

/// How the next commit goes wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// It does not happen.
    Refuse,
    /// It becomes durable and observers hear of it; its caller gets an error.
    LoseAnswer,
    /// It becomes durable and observers hear of it; its caller hears of it after
    /// [`FaultEngine::release`].
    HoldAnswer,
}

/// Wraps an engine and makes its commits fail as a test demands.
pub struct FaultEngine<E> {
    inner: E,
    next: Mutex<Option<Fault>>,
    frozen: watch::Sender<bool>,
    released: Notify,
}

impl<E: Engine> FaultEngine<E> {
    /// An engine that does what `inner` does until told otherwise.
    pub fn new(inner: E) -> Self {
        let (next, frozen) = (Mutex::new(None), watch::Sender::new(false));
        Self { inner, next, frozen, released: Notify::new() }
    }

    /// The wrapped engine.
    pub fn inner(&self) -> &E {
        &self.inner
    }

    /// Makes the next commit fail, and only that one.
    pub fn fail_next(&self, fault: Fault) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
    }

    /// Holds every commit until [`FaultEngine::thaw`], as a disk that hangs would.
    pub fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    /// Lets the held commits go on.
    pub fn thaw(&self) {
        self.frozen.send_replace(false);
    }

    /// Gives the answer that [`Fault::HoldAnswer`] holds.
    pub fn release(&self) {
        self.released.notify_one();
    }

    async fn faulty(
        &self,
        decision: Decision,
        freeing: bool,
    ) -> Result<(Answer, Commit), StoreError> {
        // The sender lives as long as this engine, so this cannot fail.
        _ = self.frozen.subscribe().wait_for(|frozen| !frozen).await;
        let fault = self.next.lock().unwrap_or_else(PoisonError::into_inner).take();
        if fault == Some(Fault::Refuse) {
            return Err(StoreError::Unavailable("a test refused this commit".to_owned()));
        }
        let outcome = if freeing {
            self.inner.commit_freeing(decision).await
        } else {
            self.inner.commit(decision).await
        };
        if fault == Some(Fault::HoldAnswer) {
            self.released.notified().await;
        }
        if fault == Some(Fault::LoseAnswer) {
            return Err(StoreError::Unavailable("a test lost this answer".to_owned()));
        }
        outcome
    }
}

#[async_trait]
impl<E: Engine> Engine for FaultEngine<E> {
    async fn commit(&self, decision: Decision) -> Result<(Answer, Commit), StoreError> {
        self.faulty(decision, false).await
    }

    async fn commit_freeing(&self, decision: Decision) -> Result<(Answer, Commit), StoreError> {
        self.faulty(decision, true).await
    }

    async fn read(&self, query: Query<'_>) -> Result<Answer, StoreError> {
        self.inner.read(query).await
    }

    async fn recall(&self, query: Query<'_>) -> Result<Answer, StoreError> {
        self.inner.recall(query).await
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn sweeps_at_once(&self) -> usize {
        self.inner.sweeps_at_once()
    }

    fn events_after(&self, after: Revision, limit: usize) -> Result<Vec<LoggedEvent>, StoreError> {
        self.inner.events_after(after, limit)
    }

    fn capture(&self) -> Result<Box<dyn Capture>, CaptureError> {
        self.inner.capture()
    }

    fn log_id(&self) -> LogId {
        self.inner.log_id()
    }

    fn head(&self) -> Cursor {
        self.inner.head()
    }

    fn time_floor(&self) -> Timestamp {
        self.inner.time_floor()
    }

    fn observe(&self, observer: Arc<dyn Observer>) {
        self.inner.observe(observer);
    }

    fn board(&self) -> Option<Arc<dyn Board>> {
        self.inner.board()
    }

    fn status(&self) -> EngineStatus {
        self.inner.status()
    }

    async fn prove_contact(&self) -> bool {
        let frozen = *self.frozen.borrow();
        !frozen && self.inner.prove_contact().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::engine::{KeyRange, Order, Reads};
    use crate::store::memory::MemoryEngine;

    fn put(key: &'static [u8]) -> Decision {
        Box::new(move |txn| {
            txn.put(key.to_vec(), b"v".to_vec());
            Ok(Box::new(()))
        })
    }

    #[tokio::test]
    async fn fails_only_the_next_commit() {
        let engine = FaultEngine::new(MemoryEngine::new(LogId::from_bytes([1; 16])));
        engine.fail_next(Fault::Refuse);
        assert!(engine.commit(put(b"a")).await.is_err());
        engine.fail_next(Fault::LoseAnswer);
        assert!(engine.commit(put(b"b")).await.is_err());
        assert!(engine.commit_freeing(put(b"c")).await.is_ok());
        let stored = engine.inner().scan(&KeyRange::prefix(b""), Order::Ascending, 9).unwrap();
        let keys: Vec<_> = stored.iter().map(|(key, _)| key.as_slice()).collect();
        assert_eq!(keys, [b"b", b"c"]);
    }

    #[tokio::test]
    async fn holds_commits_while_frozen() {
        let engine = Arc::new(FaultEngine::new(MemoryEngine::new(LogId::from_bytes([1; 16]))));
        engine.freeze();
        assert!(!engine.prove_contact().await);
        let held = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { engine.commit(put(b"a")).await.map(|_| ()) }
        });
        tokio::task::yield_now().await;
        assert_eq!(engine.inner().get(b"a"), Ok(None));
        engine.thaw();
        assert_eq!(held.await.unwrap(), Ok(()));
        assert!(engine.prove_contact().await);
    }
}
