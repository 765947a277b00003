//! How a decision is committed and a query answered.
//!
//! A decision is run on what the engine knows, which may be old. What it then wants is one transaction:
//! it compares the revision of everything that the decision rests on, and writes. If something was not
//! so any more, the other branch of the same transaction reads what is there, and the decision is run
//! again. A decision that writes nothing is compared in the same way, so no answer rests on what is
//! old; only what was read in one piece, in this very call, needs no second look.
//!
//! Besides, each transaction compares two records of the engine: `!meta`, so that nobody writes into
//! records that were replaced under it, and the fence of `resolve.rs`.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::time::Instant;

use super::client::{CallError, found, revision_of};
use super::core::Core;
use super::keys::{Stamp, stamped};
use super::locks::Locked;
use super::pb::{RequestOp, TxnRequest, TxnResponse};
use super::request::{compares, operations, put, range_of_one, read, transaction, unchanged};
use super::resolve::Witness;
use super::view::{Attempt, Trust, Wanted};
use crate::domain::ids::Revision;
use crate::store::StoreError;
use crate::store::engine::{Answer, Commit, Decision, Query, TIME_KEY, event_key, is_index_key};
use crate::store::group::check_record;

/// How often a decision waits for others in this process and then finds that it rests on other records
/// than before, until it no longer waits.
const MAX_WAITS: u32 = 4;

/// The most records that a query compares. More than that are read.
const MAX_COMPARED: usize = 100;

/// What came of sending a transaction.
enum Sent {
    /// It was carried out at this revision.
    Done(i64),
    /// Something was not so any more.
    Conflict,
}

impl Core {
    pub(super) async fn commit(
        &self,
        decision: Decision,
        freeing: bool,
    ) -> Result<(Answer, Commit), StoreError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(StoreError::Unavailable("it is closed".to_owned()));
        }
        let began = Instant::now();
        self.counters.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(self);
        let outcome = self.commit_by(decision, freeing, self.deadline()).await;
        drop(waiting);
        if outcome.is_ok() {
            self.settings.recorder.committed(began.elapsed());
            let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.counters.sync_micros.fetch_add(micros, Ordering::Relaxed);
        }
        outcome
    }

    async fn commit_by(
        &self,
        decision: Decision,
        freeing: bool,
        deadline: Instant,
    ) -> Result<(Answer, Commit), StoreError> {
        let mut attempt = Attempt::new(Trust::Guesses);
        let mut locked = Locked::default();
        let (mut conflicts, mut waits) = (0, 0);
        loop {
            if let Some(failed) = self.failure() {
                return Err(failed);
            }
            if Instant::now() >= deadline {
                return Err(StoreError::Unavailable("others change the same records".to_owned()));
            }
            let (answer, mut wanted) = attempt.decide(&decision, self.over());
            if attempt.last_run().is_missing_something() {
                self.fetch(&mut attempt, deadline).await?;
                continue;
            }
            let (answer, wanted) = match answer {
                Ok(answer) if !wanted.is_nothing() => {
                    if freeing && self.counters.low_space.load(Ordering::Relaxed) {
                        // etcd takes what only removes even when it has no room.
                        wanted.writes.remove(TIME_KEY);
                    }
                    (answer, wanted)
                }
                answer => {
                    locked = Locked::default();
                    if let Some(head) = self.is_still_so(&mut attempt, deadline).await? {
                        // What it saw may be the work of an event that this replica has not heard of.
                        if !self.hears_of(head, deadline).await {
                            return Err(silent());
                        }
                        let head = self.log.head();
                        return answer.map(|answer| (answer, Commit { event: None, head }));
                    }
                    conflicts += 1;
                    self.step_back(conflicts).await;
                    continue;
                }
            };
            check(&wanted)?;
            // Only what is read and written: of what is only read, many may be under way at once.
            let both = self.locks.of(attempt.reads_and_writes(&wanted));
            // Who waited for a record that another has written meanwhile makes nobody else wait for it.
            locked.keep(&both);
            if !locked.covers(&both) && waits < MAX_WAITS {
                waits += 1;
                // None while waiting for others, or two could wait for each other.
                drop(std::mem::take(&mut locked));
                locked = self.lock(both, deadline).await?;
                // What a scan found is in no cache, so that it has to be read again.
                let scans_again = attempt.forget_scans_before(locked.newest());
                if scans_again || attempt.is_outdated(self.over()) {
                    continue;
                }
            }
            let stamp = self.stamp();
            let sent = self.send(&mut attempt, &wanted, stamp, freeing, deadline).await?;
            let Sent::Done(revision) = sent else {
                conflicts += 1;
                self.counters.conflicts.fetch_add(1, Ordering::Relaxed);
                self.step_back(conflicts).await;
                continue;
            };
            self.counters.commits.fetch_add(1, Ordering::Relaxed);
            self.keep_writes(&wanted, stamp, revision);
            locked.wrote(revision);
            return self.told(answer, &wanted, revision, deadline).await;
        }
    }

    async fn lock(&self, which: BTreeSet<usize>, deadline: Instant) -> Result<Locked, StoreError> {
        tokio::time::timeout_at(deadline, self.locks.lock(which))
            .await
            .map_err(|_| StoreError::Unavailable("too many change the same records".to_owned()))
    }

    /// What a commit answers, once this engine has told its observer of the event.
    async fn told(
        &self,
        answer: Answer,
        wanted: &Wanted,
        revision: i64,
        deadline: Instant,
    ) -> Result<(Answer, Commit), StoreError> {
        if wanted.event.is_none() {
            return Ok((answer, Commit { event: None, head: self.log.head() }));
        }
        if !self.hears_of(revision, deadline).await {
            return Err(silent());
        }
        let event = Revision(u64::try_from(revision).unwrap_or_default());
        Ok((answer, Commit { event: Some(event), head: event }))
    }

    /// Waits until the watch has told of everything up to a revision. When it is slow to, it is begun
    /// again at another member.
    pub(super) async fn hears_of(&self, revision: i64, deadline: Instant) -> bool {
        let patience = Instant::now() + self.client.request_timeout() / 2;
        if self.log.wait_for(revision, patience.min(deadline)).await {
            return true;
        }
        self.missed.send_modify(|missed| *missed = revision.max(*missed));
        self.log.wait_for(revision, deadline).await
    }

    fn keep_writes(&self, wanted: &Wanted, stamp: Stamp, revision: i64) {
        let mut kept = Vec::with_capacity(wanted.writes.len());
        for (key, value) in &wanted.writes {
            if key.first() == Some(&super::keys::EVENT) {
                let swept = super::keys::revision_in(key);
                if let Some(at) = swept.and_then(|revision| self.log.place_of(revision)) {
                    self.log.remove(&at);
                }
                continue;
            }
            let value = value.as_ref().map(|value| Bytes::from(stamped(key, value, stamp)));
            kept.push((key.clone(), value));
        }
        self.keep(kept, revision);
    }

    /// Sends what a decision wants, and finds out what became of it.
    async fn send(
        &self,
        attempt: &mut Attempt,
        wanted: &Wanted,
        stamp: Stamp,
        freeing: bool,
        deadline: Instant,
    ) -> Result<Sent, StoreError> {
        let (txn, witness) = self.transaction(attempt, wanted, stamp, freeing)?;
        let floor = self.client.seen();
        match self.client.txn_once(txn, deadline).await {
            Ok(answer) if answer.succeeded => {
                self.counters.low_space.store(false, Ordering::Relaxed);
                Ok(Sent::Done(revision_of(&answer)))
            }
            Ok(answer) => {
                self.learn_conflict(attempt, answer);
                Ok(Sent::Conflict)
            }
            Err(CallError::Unknown(why)) => {
                tracing::debug!(%why, "the answer to a change was lost");
                match self.resolve(&witness, floor, deadline).await? {
                    Some(revision) => Ok(Sent::Done(revision)),
                    None => Ok(Sent::Conflict),
                }
            }
            Err(error) => Err(self.noted(error)),
        }
    }

    /// The transaction, and what shows that it was carried out.
    pub(super) fn transaction(
        &self,
        attempt: &Attempt,
        wanted: &Wanted,
        stamp: Stamp,
        freeing: bool,
    ) -> Result<(TxnRequest, Witness), StoreError> {
        let mut operations = operations(&self.keys, &self.log, wanted, stamp)?;
        let got = &attempt.last_run().got;
        let was_there = |key: &Vec<u8>| got.get(key).is_some_and(|known| known.changed > 0);
        let stamped = wanted
            .writes
            .iter()
            .find(|(key, value)| value.is_some() && !is_index_key(key) && was_there(key));
        let witness = if let Some(event) = &wanted.event {
            let at = self.keys.event(self.entropy.bytes());
            operations.push(put(at.clone(), event.clone()));
            operations.push(put(self.keys.head(), stamp.to_vec()));
            Witness::Event(at)
        } else if let Some((key, _)) = stamped {
            Witness::Stamped { at: self.keys.at(key), stamp }
        } else {
            let at = self.keys.mark(self.fence.number);
            let no_room = freeing && self.counters.low_space.load(Ordering::Relaxed);
            if !no_room {
                operations.push(put(at.clone(), stamp.to_vec()));
            }
            Witness::Stamped { at, stamp }
        };
        Ok((self.compared(attempt, operations)?, witness))
    }

    /// A transaction that is carried out only if what the last run rests on is so, and otherwise reads
    /// it again.
    fn compared(
        &self,
        attempt: &Attempt,
        success: Vec<RequestOp>,
    ) -> Result<TxnRequest, StoreError> {
        let own = [
            (self.keys.meta(), self.meta_changed.load(Ordering::Relaxed)),
            (self.keys.fence(self.fence.number), self.fence.changed.load(Ordering::Acquire)),
        ];
        let mut compare = compares(&self.keys, attempt);
        let mut failure = Vec::with_capacity(attempt.last_run().got.len() + own.len());
        for (at, changed) in own {
            failure.push(read(range_of_one(at.clone())));
            compare.push(unchanged(at, changed));
        }
        for key in attempt.last_run().got.keys() {
            failure.push(read(range_of_one(self.keys.at(key))));
        }
        transaction(compare, success, failure)
    }

    /// Takes what a transaction has read instead of being carried out.
    fn learn_conflict(&self, attempt: &mut Attempt, answer: TxnResponse) {
        let revision = revision_of(&answer);
        let keys: Vec<_> = attempt.last_run().got.keys().cloned().collect();
        let found = found(answer);
        let mut found = found.iter();
        if let (Some(meta), Some(fence)) = (found.next(), found.next()) {
            self.look_at_own(revision, meta, fence);
        }
        for (key, found) in keys.into_iter().zip(found) {
            self.learn(attempt, key, self.known(found, revision));
        }
        attempt.forget_scans();
    }

    /// Whether all that the last run rests on is so at one moment of this call; if so, how far the log
    /// had come then. If not, it was read again.
    async fn is_still_so(
        &self,
        attempt: &mut Attempt,
        deadline: Instant,
    ) -> Result<Option<i64>, StoreError> {
        let head = vec![read(range_of_one(self.keys.head()))];
        let txn = self.compared(attempt, head)?;
        let answer = self.client.txn(txn, deadline).await.map_err(|error| self.noted(error))?;
        if !answer.succeeded {
            self.learn_conflict(attempt, answer);
            return Ok(None);
        }
        let found = found(answer);
        let head = found.first().and_then(|found| found.kvs.first());
        Ok(Some(head.map_or(0, |kv| kv.mod_revision)))
    }

    pub(super) async fn ask(&self, query: Query<'_>, trust: Trust) -> Result<Answer, StoreError> {
        let deadline = self.deadline();
        let mut attempt = Attempt::new(trust);
        loop {
            if let Some(failed) = self.failure() {
                return Err(failed);
            }
            if Instant::now() >= deadline {
                return Err(StoreError::Unavailable("etcd was too slow".to_owned()));
            }
            let answer = attempt.ask(query, self.over());
            if attempt.last_run().is_missing_something() {
                self.fetch(&mut attempt, deadline).await?;
                continue;
            }
            // What was read in this call was so while it went on, and more is not promised.
            if trust == Trust::WhatIsThere || attempt.is_fresh() {
                return answer;
            }
            if attempt.last_run().got.len() > MAX_COMPARED {
                attempt.trust_nothing();
            } else if self.is_still_so(&mut attempt, deadline).await?.is_some() {
                return answer;
            }
        }
    }
}

fn silent() -> StoreError {
    StoreError::Unavailable(
        "the watch did not tell in time of what the answer rests on, which may have been made"
            .to_owned(),
    )
}

fn check(wanted: &Wanted) -> Result<(), StoreError> {
    for (key, value) in &wanted.writes {
        check_record(key, value.as_deref())?;
    }
    match &wanted.event {
        Some(value) => check_record(&event_key(Revision(0)), Some(value)),
        None => Ok(()),
    }
}

/// One that waits for its commit.
struct Waiting<'a>(&'a Core);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.counters.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
