//! The engine on etcd, for any number of replicas. The only module that knows etcd.

use std::sync::Arc;

use async_trait::async_trait;

pub use self::settings::{EtcdLogin, EtcdSettings, EtcdTls};
use super::engine::{Answer, Commit, Decision, Engine, EngineStatus, LoggedEvent, Observer, Query};
use super::{OpenError, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::entropy::Entropy;
use crate::domain::ids::{Cursor, LogId, Revision};

mod pb;
mod settings;

/// Keeps everything in etcd.
pub struct EtcdEngine {
    log_id: LogId,
}

impl EtcdEngine {
    /// Opens the records under the prefix, or begins them with a log named `new_log_id`.
    ///
    /// # Errors
    /// As [`OpenError`] says. Nothing that was acknowledged is missing when this returns Ok.
    pub async fn open(
        settings: EtcdSettings,
        new_log_id: LogId,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, OpenError> {
        _ = (new_log_id, entropy);
        Err(OpenError::Unreachable { place: settings.place(), what: "not built yet".to_owned() })
    }

    /// Opens records that [`EtcdEngine::open`] refuses as [`OpenError::Replaced`], under a log of
    /// another name. What was acknowledged may be missing from them, so the caller revokes everything
    /// ([`Ledger::revoke_after_restore`](super::ledger::Ledger::revoke_after_restore)) and then calls
    /// [`EtcdEngine::finish_adoption`]; until then they do not open otherwise.
    ///
    /// # Errors
    /// As for [`EtcdEngine::open`].
    pub async fn adopt(
        settings: EtcdSettings,
        new_log_id: LogId,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, OpenError> {
        Self::open(settings, new_log_id, entropy).await
    }

    /// Lets adopted records be opened.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when etcd does not answer.
    pub async fn finish_adoption(&self) -> Result<(), StoreError> {
        Err(StoreError::Unavailable("not built yet".to_owned()))
    }

    /// Tells when the engine fails for good, and why: its records were replaced under it. That etcd
    /// does not answer is no such reason.
    pub fn failed(&self) -> tokio::sync::watch::Receiver<Option<String>> {
        tokio::sync::watch::Sender::new(None).subscribe()
    }
}

#[async_trait]
impl Engine for EtcdEngine {
    async fn commit(&self, _: Decision) -> Result<(Answer, Commit), StoreError> {
        Err(StoreError::Unavailable("not built yet".to_owned()))
    }

    async fn commit_freeing(&self, decision: Decision) -> Result<(Answer, Commit), StoreError> {
        self.commit(decision).await
    }

    async fn read(&self, _: Query<'_>) -> Result<Answer, StoreError> {
        Err(StoreError::Unavailable("not built yet".to_owned()))
    }

    fn events_after(&self, _: Revision, _: usize) -> Result<Vec<LoggedEvent>, StoreError> {
        Ok(Vec::new())
    }

    fn log_id(&self) -> LogId {
        self.log_id
    }

    fn head(&self) -> Cursor {
        Cursor { log_id: self.log_id, revision: Revision(0) }
    }

    fn time_floor(&self) -> Timestamp {
        Timestamp::default()
    }

    fn observe(&self, _: Arc<dyn Observer>) {}

    fn status(&self) -> EngineStatus {
        EngineStatus::default()
    }

    async fn prove_contact(&self) -> bool {
        false
    }

    async fn close(&self) {}
}
