//! The one thread that writes. It takes what waits, decides it in order, writes it as one batch and
//! syncs that. One, because sled's flushes deadlock when many tasks ask for them, and because order
//! is what makes decisions simple.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use tokio::sync::oneshot;

use super::Shared;
use super::health::Step;
use super::mark::Mark;
use super::pack;
use super::record::{META_KEY, Meta, fingerprint, seal, unseal};
use super::sealer::{Decided, Sealing};
use crate::store::StoreError;
use crate::store::engine::{Answer, Commit, Decision, is_index_key};
use crate::store::group::{Group, Written};

/// How old what is known of the disk's room may be when a group is admitted.
const ROOM_AGE: Duration = Duration::from_secs(1);

/// What a caller gets.
pub(super) type Outcome = Result<(Answer, Commit), StoreError>;

/// What a caller asks for.
pub(super) enum Job {
    /// To run a decision and commit what it writes.
    Decide {
        /// The decision.
        decision: Decision,
        /// Whether it may write although space is low.
        freeing: bool,
        /// Where the caller waits.
        caller: oneshot::Sender<Outcome>,
    },
    /// To make something durable, whatever it is.
    Probe(oneshot::Sender<()>),
}

/// The state of the thread.
pub(super) struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) data: File,
    pub(super) meta: Meta,
    pub(super) max_group: usize,
    pub(super) queue: Receiver<Job>,
    pub(super) sealer: SyncSender<Sealing>,
}

impl Committer {
    /// Works until the queue is closed and empty, or the engine fails.
    pub(super) fn run(mut self) {
        while let Ok(first) = self.queue.recv() {
            let mut jobs = vec![first];
            jobs.extend(self.queue.try_iter().take(self.max_group.saturating_sub(1)));
            self.shared.counters.queued.fetch_sub(jobs.len() as u64, Ordering::Relaxed);
            if self.shared.health.has_failed() {
                return;
            }
            // The sealer answers, and in order: a decision that wrote nothing, or failed, may have
            // read what a group before it wrote and what is not durable yet.
            let Some(sealing) = self.commit(jobs) else { return };
            if self.sealer.send(sealing).is_err() {
                return;
            }
        }
    }

    /// Commits one group. None when the engine failed.
    fn commit(&mut self, jobs: Vec<Job>) -> Option<Sealing> {
        let low = self.shared.space.room(ROOM_AGE).low;
        let mut group = Group::new(&self.shared.db, self.meta.head);
        let mut decided = Vec::with_capacity(jobs.len());
        let mut probes = Vec::new();
        for job in jobs {
            match job {
                Job::Decide { decision, freeing, caller } => {
                    let admit = || if low && !freeing { Err(low_space()) } else { Ok(()) };
                    decided.push(Decided { outcome: group.run(&decision, admit), caller });
                }
                Job::Probe(caller) => probes.push(caller),
            }
        }
        let written = group.finish();
        let health = Arc::clone(&self.shared.health);
        let mark = if !written.writes.is_empty() {
            let mut next = self.meta;
            next.head = written.head;
            let ((), took) =
                health.within_deadline(Step::Commit, || self.write(&written, &mut next))?;
            self.meta = next;
            self.shared.counters.add_group(took);
            Some(self.mark())
        } else if !probes.is_empty() {
            health.within_deadline(Step::Commit, || sync(&self.data))?;
            Some(self.mark())
        } else {
            None
        };
        Some(Sealing { mark, events: written.events, head: written.head, decided, probes })
    }

    /// Writes a group as one batch, which sled recovers whole or not at all, and syncs it.
    fn write(&self, written: &Written, meta: &mut Meta) -> Result<(), String> {
        let db = &self.shared.db;
        let mut packs = BTreeMap::new();
        let (entries, records): (Vec<_>, Vec<_>) =
            written.writes.iter().partition(|(key, _)| is_index_key(key));
        pack::repack(
            db,
            entries.into_iter().map(|(key, value)| (key, value.is_some())),
            &mut packs,
        )?;
        // A pack may stand under the key of an entry that was seen, so what was seen tells of records
        // alone.
        let records = records.into_iter().map(|(key, value)| (key, value, written.seen.get(key)));
        let packs = packs.iter().map(|(key, value)| (key, value, None));
        let mut batch = sled::Batch::default();
        for (key, value, seen) in records.chain(packs) {
            let print = match seen {
                // It was held against its checksum when it was read.
                Some(old) => old.as_ref().map(|old| fingerprint(key, old)),
                None => sled::Tree::get(db, key)
                    .map_err(|error| error.to_string())?
                    .map(|old| unseal(key, &old).map(|(_, print)| print))
                    .map(|print| print.ok_or("a record does not match its checksum"))
                    .transpose()?,
            };
            if let Some(print) = print {
                meta.digest = meta.digest.wrapping_sub(print);
            }
            match value {
                Some(value) => {
                    let (stored, print) = seal(key, value);
                    meta.digest = meta.digest.wrapping_add(print);
                    batch.insert(key.as_slice(), stored);
                }
                None => batch.remove(key.as_slice()),
            }
        }
        meta.counter += 1;
        batch.insert(META_KEY, seal(META_KEY, &meta.encode()).0);
        db.apply_batch(batch).map_err(|error| error.to_string())?;
        db.flush().map_err(|error| error.to_string())?;
        // sled's flush is sync_file_range: neither the length of the file nor the cache of the disk.
        sync(&self.data)
    }

    fn mark(&self) -> Mark {
        let Meta { log_id, counter, digest, .. } = self.meta;
        Mark { log_id, counter, digest }
    }
}

fn sync(file: &File) -> Result<(), String> {
    file.sync_data().map_err(|error| format!("the database cannot be synced: {error}"))
}

fn low_space() -> StoreError {
    StoreError::Unavailable("space is low on its disk".to_owned())
}
