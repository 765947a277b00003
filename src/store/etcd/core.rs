//! What the calls, the feed and the engine share.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Mutex, Notify, watch};
use tokio::time::Instant;

use super::cache::{Cache, Known};
use super::capture::{Pages, beneath};
use super::client::{CallError, Client};
use super::keys::{Keys, Part, Stamp, parts};
use super::locks::Locks;
use super::log::Log;
use super::pb::{KeyValue, RangeRequest, RangeResponse};
use super::request::{page, range_of_one, range_of_scan, rest_of};
use super::settings::EtcdSettings;
use super::view::{Attempt, Over, Scan, Scanned};
use crate::domain::entropy::Entropy;
use crate::store::StoreError;
use crate::store::engine::{KeyRange, Order, is_index_key};

/// The most records that are asked for at once.
pub(super) const PAGE: usize = 500;
/// The most keys that are read in one call.
const KEYS_AT_ONCE: usize = 100;

/// See the module.
pub(super) struct Core {
    pub(super) settings: EtcdSettings,
    pub(super) client: Client,
    pub(super) keys: Keys,
    pub(super) cache: Cache,
    pub(super) log: Log,
    pub(super) locks: Locks,
    pub(super) entropy: Arc<dyn Entropy>,
    /// When `!meta` was last changed. While it stays so, these are the records that were opened.
    pub(super) meta_changed: AtomicI64,
    /// What this engine makes of `!meta`, once an adoption ends.
    pub(super) next_meta: OnceLock<Vec<u8>>,
    pub(super) fence: Fence,
    pub(super) failed: watch::Sender<Option<String>>,
    pub(super) closed: AtomicBool,
    /// The revision that somebody waited for in vain: where the watch has not told of it, another member
    /// is asked.
    pub(super) missed: watch::Sender<i64>,
    /// The watch was cut. What is behind it may have been put back to an older state.
    pub(super) cut: Notify,
    pub(super) counters: Counters,
}

/// What makes the transactions of this engine that are on their way come to nothing: see `resolve.rs`.
pub(super) struct Fence {
    pub(super) number: u8,
    /// When it was last changed, as far as is known here. Zero when it never was.
    pub(super) changed: AtomicI64,
    pub(super) moving: Mutex<()>,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) commits: AtomicU64,
    pub(super) waiting: AtomicU64,
    pub(super) sync_micros: AtomicU64,
    pub(super) conflicts: AtomicU64,
    pub(super) db_bytes: AtomicU64,
    pub(super) low_space: AtomicBool,
}

impl Core {
    pub(super) fn over(&self) -> Over<'_> {
        Over { keys: &self.keys, cache: &self.cache, log: &self.log }
    }

    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.settings.deadline
    }

    pub(super) fn stamp(&self) -> Stamp {
        self.entropy.bytes()
    }

    /// Fails for good: what is there now is not what was opened.
    pub(super) fn fail(&self, why: &str) {
        self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            if first {
                tracing::error!(why, "the records in etcd are not those that were opened");
                *failed = Some(why.to_owned());
            }
            first
        });
    }

    /// Why nothing can be committed for good, if that is so.
    pub(super) fn failure(&self) -> Option<StoreError> {
        let failed = self.failed.borrow().clone();
        failed.map(StoreError::Unavailable)
    }

    /// Keeps in mind what an error of a call says.
    pub(super) fn note(&self, error: &CallError) {
        match error {
            CallError::Replaced(why) => self.fail(why),
            CallError::NoSpace => self.counters.low_space.store(true, Ordering::Relaxed),
            CallError::Unknown(_) | CallError::Refused(_) | CallError::Compacted => {}
        }
    }

    pub(super) fn noted(&self, error: CallError) -> StoreError {
        self.note(&error);
        error.into()
    }

    /// What stands at one key, as an answer shows it.
    pub(super) fn known(&self, found: &RangeResponse, as_of: i64) -> Known {
        match found.kvs.first() {
            None => Known { value: None, changed: 0, as_of },
            // A copy: what etcd answered is one piece of memory, of 8 KiB at least, that would stay for
            // as long as any part of it is known.
            Some(kv) => {
                let value = bytes::Bytes::copy_from_slice(&kv.value);
                Known { value: Some(value), changed: kv.mod_revision, as_of }
            }
        }
    }

    pub(super) fn learn(&self, attempt: &mut Attempt, key: Vec<u8>, known: Known) {
        self.cache.learn(self.keys.at(&key).into(), known.clone());
        attempt.learn(key, known);
    }

    /// Reads what the last run could not see.
    pub(super) async fn fetch(
        &self,
        attempt: &mut Attempt,
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let missing: Vec<_> = attempt.last_run().missing.iter().cloned().collect();
        let scans = attempt.last_run().missing_scans.clone();
        let mut ranges: Vec<_> = scans
            .iter()
            .map(|scan| range_of_scan(&self.keys, scan, scan.limit.min(PAGE)))
            .collect();
        let mut keys = missing.chunks(KEYS_AT_ONCE);
        let mut first = true;
        // All at one moment if etcd takes as many at once.
        loop {
            let chunk = keys.next().unwrap_or_default();
            if !first && chunk.is_empty() {
                return Ok(());
            }
            ranges.extend(chunk.iter().map(|key| range_of_one(self.keys.at(key))));
            let asked = self.client.ranges(std::mem::take(&mut ranges), deadline).await;
            let (mut found, revision) = asked.map_err(|error| self.noted(error))?;
            let of_keys = found.split_off(if first { scans.len().min(found.len()) } else { 0 });
            for (key, found) in chunk.iter().zip(&of_keys) {
                self.learn(attempt, key.clone(), self.known(found, revision));
            }
            for (scan, page) in scans.iter().zip(found) {
                let scanned = self.read_on(scan, page, revision, deadline).await?;
                attempt.learn_scan(scan.clone(), scanned);
            }
            first = false;
        }
    }

    /// The whole of a scan whose first page was read: the other pages as of the same revision.
    async fn read_on(
        &self,
        scan: &Scan,
        first: RangeResponse,
        revision: i64,
        deadline: Instant,
    ) -> Result<Scanned, StoreError> {
        let mut records = Vec::new();
        let mut page_of = first;
        loop {
            let more = page_of.more;
            for kv in page_of.kvs {
                let key = self.keys.key_at(&kv.key).unwrap_or_default().to_vec();
                records.push((key, kv.value, kv.mod_revision));
            }
            let (Some((last, _, _)), true) = (records.last(), more && records.len() < scan.limit)
            else {
                return Ok(Scanned { records, as_of: revision });
            };
            let rest = rest_of(scan, last);
            let rest = Scan { start: rest.start, end: rest.end, ..scan.clone() };
            let limit = (scan.limit - records.len()).min(PAGE);
            let range = range_of_scan(&self.keys, &rest, limit);
            let range = RangeRequest { revision, ..range };
            let asked = self.client.ranges(vec![range], deadline).await;
            let (mut found, _) = asked.map_err(|error| self.noted(error))?;
            page_of = found.pop().unwrap_or_default();
        }
    }

    /// Everything that begins so as of one revision, which is not before this was called. Gives the
    /// revision too.
    pub(super) async fn read_all(&self, at: Vec<u8>) -> Result<(Vec<KeyValue>, i64), CallError> {
        let count = RangeRequest { count_only: true, ..beneath(&at) };
        let (found, revision) = self.client.ranges(vec![count], self.deadline()).await?;
        let count = found.first().map_or(0, |found| found.count);
        let mut pages = Pages::beneath(&self.client, at, count, revision);
        let mut all = Vec::new();
        while let Some(page) = pages.next().await? {
            all.extend(page);
        }
        Ok((all, revision))
    }

    /// How many records a range holds.
    pub(super) async fn count(&self, range: &KeyRange) -> Result<u64, StoreError> {
        let (mut in_log, mut ranges) = (0, Vec::new());
        for part in parts(range) {
            match part {
                Part::Log(range) => {
                    in_log += self.log.scan(&range, Order::Ascending, usize::MAX).len()
                }
                Part::Stored(range) => {
                    let all = page(self.keys.range(&range), 0, 0);
                    ranges.push(RangeRequest { count_only: true, ..all });
                }
            }
        }
        let asked = self.client.ranges(ranges, self.deadline()).await;
        let (found, _) = asked.map_err(|error| self.noted(error))?;
        let counted: i64 = found.iter().map(|found| found.count).sum();
        Ok(u64::try_from(counted).unwrap_or_default() + u64::try_from(in_log).unwrap_or_default())
    }

    /// What the operations of a transaction that was carried out leave in the cache.
    pub(super) fn keep(
        &self,
        writes: impl IntoIterator<Item = (Vec<u8>, Option<bytes::Bytes>)>,
        revision: i64,
    ) {
        for (key, value) in writes {
            if is_index_key(&key) {
                continue;
            }
            let changed = if value.is_some() { revision } else { 0 };
            self.cache.learn(self.keys.at(&key).into(), Known { value, changed, as_of: revision });
        }
    }

    /// Looks at what the branch that is taken on a conflict has read of the engine's own records.
    pub(super) fn look_at_own(&self, revision: i64, meta: &RangeResponse, fence: &RangeResponse) {
        let changed = |found: &RangeResponse| found.kvs.first().map_or(0, |kv| kv.mod_revision);
        let is_next = |kv: &KeyValue| self.next_meta.get().is_some_and(|next| *kv.value == **next);
        if meta.kvs.first().is_some_and(is_next) {
            self.meta_changed.fetch_max(changed(meta), Ordering::Relaxed);
        }
        if changed(meta) != self.meta_changed.load(Ordering::Relaxed) {
            self.fail(&format!(
                "the records under {} were replaced or removed by revision {revision}",
                self.settings.prefix
            ));
        }
        self.fence.changed.fetch_max(changed(fence), Ordering::AcqRel);
    }

    /// Waits a little, longer with each conflict, and never as long as another that waits.
    pub(super) async fn step_back(&self, conflicts: u32) {
        if conflicts < 2 {
            return;
        }
        let most = 1_u64 << conflicts.min(6);
        let [random] = self.entropy.bytes::<1>();
        let micros = most * 1000 * u64::from(random) / 256;
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }
}
