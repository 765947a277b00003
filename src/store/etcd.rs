//! The engine on etcd, for any number of replicas. The only module that knows etcd.
//!
//! * A change is one transaction of etcd that compares what the decision rests on: `commit.rs`,
//!   `view.rs`, `request.rs`.
//! * When its answer is lost, what became of it is found out before anybody gets an answer:
//!   `resolve.rs`.
//! * An event is a key of its own, put in that transaction. etcd's revision is its revision, and a watch
//!   brings it to every replica: `feed.rs`, `log.rs`. A change with an event is answered when the watch
//!   of this replica has told of it, so what follows on this replica knows of it.
//! * `prove_contact` asks etcd how far the log has come and is true once the watch has come as far. A
//!   replica that is cut off, or whose watch is, proves nothing.
//! * Whose records these are stands in one of them: `meta.rs`. Whether etcd went back to an older state
//!   shows in how far its own log is: `raft.rs`, `looking.rs`, `seen.rs`.
//!
//! No record has a lease. When a record is over is decided by avouch's time, which never runs backwards;
//! a lease would be over by the time of the leader of the moment, and begins anew with the next. What
//! is over is swept, on every engine by the same decisions.
//!
//! That etcd is away is never the end: calls get [`StoreError::Unavailable`] while it lasts.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::cache::Cache;
use self::capture::{Capturing, EtcdCapture};
use self::client::{CallError, Client};
use self::core::{Core, Counters, Fence};
use self::keys::{FENCES, Keys, unstamped};
use self::locks::Locks;
use self::log::Log;
use self::looking::Looking;
use self::meta::{Claim, Meta, Standing};
use self::request::range_of_one;
pub use self::settings::{EtcdLogin, EtcdSettings, EtcdTls, SEEN_FILE};
use self::view::Trust;
use super::backup::{Capture, CaptureError};
use super::board::Board;
use super::engine::{
    Answer, Commit, Decision, Engine, EngineStatus, KeyRange, LoggedEvent, Observer, Query,
    TIME_KEY,
};
use super::{OpenError, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::entropy::Entropy;
use crate::domain::ids::{Cursor, LogId, Revision};

mod cache;
mod capture;
pub(in crate::store) mod client;
mod commit;
mod core;
mod feed;
pub(in crate::store) mod keys;
mod locks;
mod log;
mod looking;
mod member;
pub(in crate::store) mod meta;
pub mod moving;
mod onward;
pub(in crate::store) mod pb;
mod peers;
mod raft;
mod request;
mod resolve;
pub mod restore;
mod seen;
mod settings;
mod socket;
mod txn;
mod view;

#[cfg(test)]
mod tests;

/// How many records of a kind one transaction sweeps: three operations for each, of the 128 that etcd
/// takes.
const SWEEPS_AT_ONCE: usize = 40;

/// Keeps everything in etcd.
pub struct EtcdEngine {
    core: Arc<Core>,
    meta: Meta,
    time_floor: Timestamp,
    tasks: Vec<JoinHandle<()>>,
    capturing: Capturing,
}

impl EtcdEngine {
    /// Opens the records under the prefix, or begins them with a log named `new_log_id`.
    ///
    /// # Errors
    /// As [`OpenError`] says. Nothing that was acknowledged is missing when this returns Ok, as far as
    /// etcd can be asked.
    pub async fn open(
        settings: EtcdSettings,
        new_log_id: LogId,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, OpenError> {
        Self::claim(settings, new_log_id, entropy, Claim::Open).await
    }

    /// Opens records that [`EtcdEngine::open`] refuses as [`OpenError::Replaced`], under a log of
    /// another name, while no other replica runs. What was acknowledged may be missing from them, so
    /// the caller revokes everything
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
        Self::claim(settings, new_log_id, entropy, Claim::Adopt).await
    }

    async fn claim(
        settings: EtcdSettings,
        new_log_id: LogId,
        entropy: Arc<dyn Entropy>,
        claim: Claim,
    ) -> Result<Self, OpenError> {
        let place = settings.place();
        let away = |error: CallError| meta::not_opened(place.clone(), error);
        let [first] = entropy.bytes::<1>();
        let client = Client::new(&settings, usize::from(first));
        let keys = Keys::new(&settings.prefix);
        let deadline = Instant::now() + settings.deadline;
        let (meta, meta_changed) =
            meta::claim(&client, &keys, &settings, new_log_id, claim, deadline).await?;
        let known = settings.seen_file.as_deref().and_then(|path| seen::read(path, meta.log_id));
        let proved = match claim {
            Claim::Open => raft::prove(&client, &keys, known.as_ref(), deadline).await,
            Claim::Adopt => raft::look(&client, &keys, deadline).await,
        };
        let mut look = proved.map_err(away)?;
        if look.mark.is_none() || claim == Claim::Adopt {
            look = raft::begin(&client, &keys, deadline).await.map_err(away)?;
        }
        let [random] = entropy.bytes::<1>();
        let number = random % FENCES;
        let ranges = vec![range_of_one(keys.fence(number)), range_of_one(keys.at(TIME_KEY))];
        let (found, revision) = client.ranges(ranges, deadline).await.map_err(away)?;
        let kv = |index: usize| found.get(index).and_then(|found| found.kvs.first());
        let fence = kv(0).map_or(0, |kv| kv.mod_revision);
        let time = kv(1).and_then(|kv| unstamped(TIME_KEY, &kv.value).ok());
        let time = time.and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
        let core = Arc::new(Core {
            client,
            keys,
            cache: Cache::default(),
            log: Log::new(),
            locks: Locks::new(),
            entropy,
            meta_changed: AtomicI64::new(meta_changed),
            next_meta: OnceLock::new(),
            fence: Fence { number, changed: AtomicI64::new(fence), moving: Mutex::new(()) },
            failed: watch::Sender::new(None),
            closed: AtomicBool::new(false),
            missed: watch::Sender::new(0),
            cut: Notify::new(),
            counters: Counters::default(),
            settings,
        });
        if let Some(found) = found.get(1) {
            // Each decision looks at it.
            core.cache.learn(core.keys.at(TIME_KEY).into(), core.known(found, revision));
        }
        let read = feed::load(&core).await.map_err(away)?;
        let known = look.known().ok_or_else(|| away(CallError::Unknown("no mark".to_owned())))?;
        let looking = Looking::new(&core, meta.log_id, known, &look);
        let tasks = vec![
            tokio::spawn(feed::follow(Arc::clone(&core), usize::from(first), read + 1)),
            tokio::spawn(looking.go_on(Arc::clone(&core))),
        ];
        let time_floor = Timestamp::from_millis(time.unwrap_or_default());
        Ok(Self { core, meta, time_floor, tasks, capturing: Capturing::default() })
    }

    /// Lets adopted records be opened.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when etcd does not answer.
    pub async fn finish_adoption(&self) -> Result<(), StoreError> {
        let core = &self.core;
        let meta = Meta { standing: Standing::Whole, ..self.meta };
        // Before it is there: who compares the record meanwhile is to take it for this engine's own work.
        _ = core.next_meta.set(meta.encode());
        let known = core.meta_changed.load(Ordering::Relaxed);
        let written = meta::write(&core.client, &core.keys, &meta, known, core.deadline()).await?;
        let changed = written.ok_or_else(|| {
            StoreError::Unavailable("somebody else adopted the same records".to_owned())
        })?;
        core.meta_changed.fetch_max(changed, Ordering::Relaxed);
        Ok(())
    }

    /// Tells when the engine fails for good, and why: its records were replaced under it. That etcd
    /// does not answer is no such reason.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.core.failed.subscribe()
    }

    /// How many calls were made to etcd.
    pub fn calls(&self) -> u64 {
        self.core.client.calls()
    }

    /// How often a change had to be decided again because something that it rests on was not so any
    /// more.
    pub fn conflicts(&self) -> u64 {
        self.core.counters.conflicts.load(Ordering::Relaxed)
    }
}

impl Core {
    async fn prove_contact(&self) -> bool {
        if self.closed.load(Ordering::Acquire) || self.failure().is_some() {
            return false;
        }
        let deadline = Instant::now() + self.client.request_timeout();
        let ranges = vec![
            range_of_one(self.keys.meta()),
            range_of_one(self.keys.fence(self.fence.number)),
            range_of_one(self.keys.head()),
        ];
        let found = match self.client.ranges(ranges, deadline).await {
            Ok((found, revision)) => {
                if let [meta, fence, _] = found.as_slice() {
                    self.look_at_own(revision, meta, fence);
                }
                found
            }
            Err(error) => {
                self.note(&error);
                return false;
            }
        };
        let head = found.last().and_then(|found| found.kvs.first());
        let head = head.map_or(0, |kv| kv.mod_revision);
        self.failure().is_none() && self.hears_of(head, deadline).await
    }
}

impl Drop for EtcdEngine {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

#[async_trait]
impl Engine for EtcdEngine {
    async fn commit(&self, decision: Decision) -> Result<(Answer, Commit), StoreError> {
        self.core.commit(decision, false).await
    }

    async fn commit_freeing(&self, decision: Decision) -> Result<(Answer, Commit), StoreError> {
        self.core.commit(decision, true).await
    }

    async fn read(&self, query: Query<'_>) -> Result<Answer, StoreError> {
        self.core.ask(query, Trust::Cache).await
    }

    async fn recall(&self, query: Query<'_>) -> Result<Answer, StoreError> {
        self.core.ask(query, Trust::WhatIsThere).await
    }

    /// Counted by etcd, which reads no record for it.
    async fn count(&self, range: KeyRange) -> Result<u64, StoreError> {
        self.core.count(&range).await
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn sweeps_at_once(&self) -> usize {
        SWEEPS_AT_ONCE
    }

    fn events_after(&self, after: Revision, limit: usize) -> Result<Vec<LoggedEvent>, StoreError> {
        Ok(self.core.log.after(after, limit))
    }

    fn capture(&self) -> Result<Box<dyn Capture>, CaptureError> {
        let (settings, log_id) = (&self.core.settings, self.meta.log_id);
        Ok(Box::new(EtcdCapture::begin(settings, log_id, &self.capturing)?))
    }

    fn log_id(&self) -> LogId {
        self.meta.log_id
    }

    fn head(&self) -> Cursor {
        Cursor { log_id: self.meta.log_id, revision: self.core.log.head() }
    }

    fn time_floor(&self) -> Timestamp {
        self.time_floor
    }

    fn observe(&self, observer: Arc<dyn Observer>) {
        self.core.log.observe(observer);
    }

    fn board(&self) -> Option<Arc<dyn Board>> {
        Some(Arc::new(peers::EtcdBoard(Arc::clone(&self.core))))
    }

    fn status(&self) -> EngineStatus {
        let counters = &self.core.counters;
        let commits = counters.commits.load(Ordering::Relaxed);
        EngineStatus {
            failed: self.core.failed.borrow().clone(),
            low_space: counters.low_space.load(Ordering::Relaxed),
            disk_bytes: counters.db_bytes.load(Ordering::Relaxed),
            // How much room etcd has is not to be asked.
            free_bytes: u64::MAX,
            commits,
            groups: commits,
            sync_time: Duration::from_micros(counters.sync_micros.load(Ordering::Relaxed)),
            queued: counters.waiting.load(Ordering::Relaxed),
        }
    }

    async fn prove_contact(&self) -> bool {
        self.core.prove_contact().await
    }

    async fn close(&self) {
        self.core.closed.store(true, Ordering::Release);
    }
}
