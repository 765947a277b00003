//! From records to a prefix that opens like any other, with a log of its own.
//!
//! Until everything is there and was read back, `!meta` says that it is unfinished, and no engine opens
//! it: a restore that is cut off leaves nothing that serves. The next one removes what it has left.
//!
//! A move leaves a mark with each transaction and goes on from there when it was cut off: it is given all
//! records again, writes those that the mark does not tell of, and reads all of them back as any other. To
//! write a record once more changes nothing, so the mark may be behind.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::capture::{Pages, record};
use super::client::{CallError, Client};
use super::keys::{EVENT, Keys, Stamp, stamped};
use super::meta::{Meta, Standing, write, write_with};
use super::onward::Onward;
use super::pb::request_op::Request as Op;
use super::pb::{DeleteRangeRequest, KeyValue, RangeRequest, RequestOp, TxnRequest};
use super::request::{put, range_of_one, unchanged};
use super::settings::EtcdSettings;
use crate::domain::ids::{Cursor, LogId, Revision};
use crate::store::OpenError;
use crate::store::backup::{Change, Point, RestoreError};
use crate::store::engine::{KeyRange, Value, is_index_key};
use crate::store::moving::{CHANGED, Mark, Source};
use crate::store::sled::{entries_in, fingerprint};

/// How many records go into one transaction. etcd takes 128 unless it is told otherwise.
const BATCH_RECORDS: usize = 120;
/// How many bytes. etcd takes 1.5 MiB unless it is told otherwise.
const BATCH_BYTES: usize = 1 << 20;
/// How many transactions are on their way at once.
const IN_FLIGHT: usize = 16;
/// How long one try may take at least before another member is asked: on a slow way, of the many that
/// are on it at once.
const LONG: Duration = Duration::from_secs(20);
/// How long one may take, with all that are asked.
const PATIENCE: Duration = Duration::from_secs(60);
/// The stamp of records that no engine wrote.
const STAMP: Stamp = [0; 8];

/// A prefix that is being filled.
pub struct EtcdRestore {
    client: Arc<Client>,
    keys: Keys,
    settings: EtcdSettings,
    /// What `!meta` holds meanwhile, and when it was put there.
    meta: Meta,
    begun: i64,
    batch: Vec<RequestOp>,
    batch_bytes: usize,
    /// Each gives its number.
    writes: JoinSet<Result<u64, CallError>>,
    /// How much was given, in packs, and how much of it is there.
    onward: Onward,
    /// What a move left that was cut off.
    left: Option<Mark>,
    /// What is to be there then, one by one.
    there: Tally,
    events: Vec<(Vec<u8>, Value)>,
}

/// What records come to. Those of events have other keys after a restore.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Tally {
    records: u64,
    digest: u128,
    events: u64,
    digest_of_events: u128,
}

impl Tally {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        if key.first() == Some(&EVENT) {
            self.events += 1;
            self.digest_of_events =
                self.digest_of_events.wrapping_add(fingerprint(&[EVENT], value));
        } else {
            self.records += 1;
            self.digest = self.digest.wrapping_add(fingerprint(key, value));
        }
    }
}

impl EtcdRestore {
    /// Begins, under a prefix that has nothing, or what a restore left that was cut off. It becomes the
    /// log `log_id`.
    ///
    /// # Errors
    /// See [`RestoreError`].
    pub async fn begin(settings: EtcdSettings, log_id: LogId) -> Result<Self, RestoreError> {
        Self::begin_with(settings, log_id, false).await
    }

    /// Begins a move. What one left that was cut off stays, unless it is to begin anew. Next is
    /// [`Self::set_source`].
    ///
    /// # Errors
    /// See [`RestoreError`].
    pub async fn begin_move(
        settings: EtcdSettings,
        log_id: LogId,
        anew: bool,
    ) -> Result<Self, RestoreError> {
        Self::begin_with(settings, log_id, !anew).await
    }

    async fn begin_with(
        settings: EtcdSettings,
        log_id: LogId,
        goes_on: bool,
    ) -> Result<Self, RestoreError> {
        let request_timeout = settings.request_timeout.max(LONG);
        let patient = EtcdSettings { request_timeout, ..settings.clone() };
        let client = Arc::new(Client::new(&patient, 0));
        let keys = Keys::new(&settings.prefix);
        let failed = |error: CallError| unreachable(&settings, &error);
        let own = vec![range_of_one(keys.meta())];
        let (found, _) = client.ranges(own, deadline()).await.map_err(failed)?;
        let known = found.into_iter().next().unwrap_or_default().kvs.into_iter().next();
        let left = match &known {
            None => None,
            Some(kv) => match Meta::decode(&kv.value) {
                Some(meta) if meta.standing == Standing::Restoring => Some(meta),
                Some(_) | None => return Err(not_empty(&settings)),
            },
        };
        let meta = Meta {
            schema: settings.schema_version,
            log_id,
            cluster_id: client.cluster_id(),
            standing: Standing::Restoring,
        };
        // What is left is taken over from whoever left it. If that one is at it still, what it writes
        // from now on comes to nothing, as each of its transactions compares this record.
        let before = known.map_or(0, |kv| kv.mod_revision);
        let begun = write(&client, &keys, &meta, before, deadline()).await.map_err(failed)?;
        let Some(begun) = begun else { return Err(not_empty(&settings)) };
        let mut restore = Self {
            client,
            keys,
            settings,
            meta,
            begun,
            batch: Vec::new(),
            batch_bytes: 0,
            writes: JoinSet::new(),
            onward: Onward::default(),
            left: None,
            there: Tally::default(),
            events: Vec::new(),
        };
        // Of another etcd, or another version, there is nothing to go on with.
        let is_ours = |left: Meta| left.cluster_id == meta.cluster_id && left.schema == meta.schema;
        if goes_on && left.is_some_and(is_ours) {
            restore.left = restore.mark_that_is_there().await?;
        }
        if let Some(mark) = &restore.left {
            restore.onward = Onward::from(mark);
        } else if left.is_some() {
            restore.remove_the_rest().await?;
        } else if !restore.page_without_meta().await?.is_empty() {
            // It was not empty, and is now as it was.
            restore.remove(restore.keys.meta()).await?;
            return Err(not_empty(&restore.settings));
        }
        Ok(restore)
    }

    async fn mark_that_is_there(&self) -> Result<Option<Mark>, RestoreError> {
        let moving = vec![range_of_one(self.keys.moving())];
        let asked = self.client.ranges(moving, deadline()).await;
        let (found, _) = asked.map_err(|error| self.failed(&error))?;
        let kv = found.first().and_then(|found| found.kvs.first());
        Ok(kv.and_then(|kv| Mark::decode(&kv.value)))
    }

    /// What a move writes from now on comes from here. Gives what is there of it. It is to be given from
    /// its beginning all the same.
    ///
    /// # Errors
    /// When what is there is of something else. It stays.
    pub fn set_source(&mut self, source: Source) -> Result<Mark, RestoreError> {
        let mark = self.left.clone().unwrap_or_else(|| Mark::new(source));
        if let Some(what) = mark.refusal(&source) {
            return Err(self.other_move(what));
        }
        self.onward.source = Some(source);
        Ok(mark)
    }

    fn other_move(&self, what: &'static str) -> RestoreError {
        RestoreError::OtherMove { path: self.settings.place(), what }
    }

    /// Whether another move can go on with what is there.
    pub const fn can_go_on(&self) -> bool {
        self.left.is_some() || self.onward.source.is_some()
    }

    /// Removes everything but `!meta`, a part at a time.
    async fn remove_the_rest(&self) -> Result<(), RestoreError> {
        while !self.page_without_meta().await?.is_empty() {
            let own = vec![range_of_one(self.keys.meta())];
            let asked = self.client.ranges(own, deadline()).await;
            let (_, revision) = asked.map_err(|error| self.failed(&error))?;
            let mut pages = Pages::new(&self.client, &self.keys, revision);
            loop {
                match pages.next().await {
                    Ok(Some(page)) => self.remove_page(&page).await?,
                    // What came late, or was compacted before it was read, is there at the next look.
                    Ok(None) | Err(CallError::Compacted) => break,
                    Err(error) => return Err(self.failed(&error)),
                }
            }
        }
        Ok(())
    }

    /// Removes keys that stand side by side, but for `!meta`.
    async fn remove_page(&self, page: &[KeyValue]) -> Result<(), RestoreError> {
        let meta = self.keys.meta();
        let (Some(first), Some(last)) = (page.first(), page.last()) else { return Ok(()) };
        let (first, end) = (first.key.to_vec(), [&last.key, [0].as_slice()].concat());
        // Around `!meta`, which may lie between.
        let parts = if first <= meta && meta < end {
            vec![(first, meta.clone()), ([&meta[..], &[0]].concat(), end)]
        } else {
            vec![(first, end)]
        };
        // A range that ends where it begins is no range.
        let parts = parts.into_iter().filter(|(from, end)| from < end);
        let remove = parts.map(|(from, end)| RequestOp {
            request: Some(Op::RequestDeleteRange(DeleteRangeRequest {
                key: from.into(),
                range_end: end.into(),
            })),
        });
        self.carry_out(remove.collect()).await.map(drop)
    }

    async fn remove(&self, at: Vec<u8>) -> Result<(), RestoreError> {
        self.carry_out(vec![delete(at)]).await.map(drop)
    }

    async fn page_without_meta(&self) -> Result<Vec<Vec<u8>>, RestoreError> {
        let (key, range_end) = self.keys.range(&KeyRange { start: Vec::new(), end: None });
        let range = RangeRequest {
            key: key.into(),
            range_end: range_end.into(),
            limit: 1_000,
            keys_only: true,
            ..RangeRequest::default()
        };
        let (found, _) =
            self.client.ranges(vec![range], deadline()).await.map_err(|e| self.failed(&e))?;
        let kvs = found.into_iter().next().unwrap_or_default().kvs;
        let meta = self.keys.meta();
        Ok(kvs.into_iter().map(|kv| kv.key.to_vec()).filter(|key| *key != meta).collect())
    }

    /// Writes records. Each may come once: a backup of a store that was in use is brought into this
    /// form by restoring it elsewhere first.
    ///
    /// # Errors
    /// When etcd refuses them or does not answer.
    pub async fn apply(&mut self, changes: Vec<Change>) -> Result<(), RestoreError> {
        for (key, value) in changes {
            let Some(value) = value else {
                return Err(RestoreError::Damaged("a record was removed while it was read".into()));
            };
            let print = fingerprint(&key, &value);
            if key.first() == Some(&EVENT) {
                self.there.add(&key, &value);
                self.events.push((key, value));
            } else if is_index_key(&key) {
                let entries = entries_in(&key, &value).ok_or_else(|| {
                    RestoreError::Damaged("a pack of index entries cannot be read".to_owned())
                })?;
                for entry in entries {
                    self.add(&entry, &[]).await?;
                }
            } else {
                self.add(&key, &value).await?;
            }
            self.onward.gave(print);
            if !self.onward.agrees() {
                return Err(self.other_move(CHANGED));
            }
        }
        Ok(())
    }

    /// Writes a record, soon, unless it is there.
    async fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), RestoreError> {
        self.there.add(key, value);
        if self.onward.is_there() {
            return Ok(());
        }
        let (at, stored) = (self.keys.at(key), stamped(key, value, STAMP));
        self.batch_bytes += at.len() + stored.len() + 16;
        self.batch.push(put(at, stored));
        if self.batch.len() >= BATCH_RECORDS || self.batch_bytes >= BATCH_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Sends what has gathered, once there is room on the way.
    async fn flush(&mut self) -> Result<(), RestoreError> {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if !batch.is_empty() {
            self.send(batch).await?;
        }
        Ok(())
    }

    async fn send(&mut self, operations: Vec<RequestOp>) -> Result<(), RestoreError> {
        while self.writes.len() >= IN_FLIGHT {
            self.arrived().await?;
        }
        let mut operations = operations;
        let mark = self.onward.mark();
        operations.extend(mark.map(|mark| put(self.keys.moving(), mark.encode())));
        let (client, txn) = (Arc::clone(&self.client), self.txn(operations));
        let number = self.onward.sets_out();
        self.writes.spawn(async move { sent(&client, txn).await.map(|_| number) });
        Ok(())
    }

    /// Waits for one that is on its way.
    async fn arrived(&mut self) -> Result<(), RestoreError> {
        match self.writes.join_next().await {
            None => Ok(()),
            Some(Ok(Ok(number))) => {
                self.onward.arrived(number);
                Ok(())
            }
            Some(Ok(Err(error))) => Err(self.failed(&error)),
            Some(Err(error)) => {
                let error = CallError::Unknown(error.to_string());
                Err(self.failed(&error))
            }
        }
    }

    /// A transaction that comes to nothing once another restore has taken this one over. It may be
    /// carried out any number of times.
    fn txn(&self, success: Vec<RequestOp>) -> TxnRequest {
        let compare = vec![unchanged(self.keys.meta(), self.begun)];
        TxnRequest { compare, success, failure: Vec::new() }
    }

    async fn carry_out(&self, operations: Vec<RequestOp>) -> Result<i64, RestoreError> {
        sent(&self.client, self.txn(operations)).await.map_err(|error| self.failed(&error))
    }

    /// Removes what was written, so that it is as empty as before. What cannot be removed opens for
    /// nobody, and the next restore removes it.
    pub async fn abandon(mut self) {
        self.writes.shutdown().await;
        let removed = match self.remove_the_rest().await {
            Ok(()) => self.remove(self.keys.meta()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            tracing::warn!(%error, "what was written before the restore failed is still there; it opens for no server");
        }
    }

    /// Everything was given, and comes to `point`. Writes the log, reads everything back, and lets it be
    /// opened. Says where the log stands.
    ///
    /// # Errors
    /// When what was given does not come to `point`, what is there is not what was given, or etcd
    /// refuses.
    pub async fn finish(&mut self, point: &Point) -> Result<Cursor, RestoreError> {
        self.flush().await?;
        let mut events = std::mem::take(&mut self.events);
        if self.onward.is_there() {
            return Err(self.other_move(CHANGED));
        }
        if self.onward.given.digest != point.digest {
            let text = "its records do not come to what it says";
            return Err(RestoreError::Damaged(text.to_owned()));
        }
        while !self.writes.is_empty() {
            self.arrived().await?;
        }
        // Each in a transaction of its own, which gives it a revision of its own. They keep their order,
        // but for a few that are on their way at once: nothing asks which of two came first.
        events.sort();
        // One that is written once more takes its own place.
        let log_id = self.onward.source.map_or(self.meta.log_id, |source| source.log_id);
        for (number, (key, value)) in (1..).zip(events) {
            if number <= self.onward.there.events {
                continue;
            }
            self.onward.given.events = number;
            let name = fingerprint(log_id.as_bytes(), &key).to_be_bytes();
            let (at, head) = (self.keys.event(name), self.keys.head());
            self.send(vec![put(at, value), put(head, STAMP.to_vec())]).await?;
        }
        while !self.writes.is_empty() {
            self.arrived().await?;
        }
        let (head, there) = self.read_back().await?;
        if there != self.there {
            return Err(RestoreError::Open(OpenError::Damaged {
                path: self.settings.place(),
                what: format!("{there:?} is there, {:?} was written", self.there),
            }));
        }
        let begun = super::raft::begin(&self.client, &self.keys, deadline()).await;
        begun.map_err(|error| self.failed(&error))?;
        let whole = Meta { standing: Standing::Whole, ..self.meta };
        let besides = vec![delete(self.keys.moving())];
        let written =
            write_with(&self.client, &self.keys, &whole, self.begun, besides, deadline()).await;
        match written.map_err(|error| self.failed(&error))? {
            Some(_) => Ok(Cursor { log_id: whole.log_id, revision: head }),
            None => Err(self.failed(&taken_over())),
        }
    }

    /// What is there, as of one revision, and the newest event of it.
    async fn read_back(&self) -> Result<(Revision, Tally), RestoreError> {
        let head = vec![range_of_one(self.keys.head())];
        let (found, revision) =
            self.client.ranges(head, deadline()).await.map_err(|error| self.failed(&error))?;
        let head =
            found.first().and_then(|found| found.kvs.first()).map_or(0, |kv| kv.mod_revision);
        let mut pages = Pages::new(&self.client, &self.keys, revision);
        let mut tally = Tally::default();
        while let Some(page) = pages.next().await.map_err(|error| self.failed(&error))? {
            for kv in &page {
                let found = record(&self.keys, kv);
                let found = found.map_err(|error| RestoreError::Damaged(error.to_string()))?;
                if let Some((key, value)) = found {
                    tally.add(&key, &value);
                }
            }
        }
        Ok((Revision(u64::try_from(head).unwrap_or_default()), tally))
    }

    fn failed(&self, error: &CallError) -> RestoreError {
        unreachable(&self.settings, error)
    }
}

fn delete(at: Vec<u8>) -> RequestOp {
    let remove = DeleteRangeRequest { key: at.into(), ..DeleteRangeRequest::default() };
    RequestOp { request: Some(Op::RequestDeleteRange(remove)) }
}

/// Carries out a transaction of [`EtcdRestore::txn`].
async fn sent(client: &Client, txn: TxnRequest) -> Result<i64, CallError> {
    let answer = client.txn(txn, deadline()).await?;
    if !answer.succeeded {
        return Err(taken_over());
    }
    Ok(super::client::revision_of(&answer))
}

fn taken_over() -> CallError {
    CallError::Refused("another restore has begun under this prefix".to_owned())
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

fn unreachable(settings: &EtcdSettings, error: &CallError) -> RestoreError {
    RestoreError::Open(OpenError::Unreachable { place: settings.place(), what: error.to_string() })
}

fn not_empty(settings: &EtcdSettings) -> RestoreError {
    RestoreError::NotEmpty { path: settings.place() }
}
