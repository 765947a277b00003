//! What a decision or a query sees: what this call has read, else what the engine last saw. What is
//! neither is noted as missing and ends the run; it is run again when that was read.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;

use super::cache::{Cache, Known};
use super::keys::{EVENT, Keys, Part, parts, unstamped};
use super::log::Log;
use crate::store::StoreError;
use crate::store::engine::{Answer, Decision, KeyRange, Order, Query, Reads, Rests, Txn, Value};
use crate::store::group::{is_empty, is_engine_key};

/// What a run ends with that cannot see something. Nobody outside sees it.
const MISSING: StoreError = StoreError::Internal("a decision went on without what it asked for");

/// A scan, by decisions' keys.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Scan {
    pub(super) start: Vec<u8>,
    pub(super) end: Option<Vec<u8>>,
    pub(super) descending: bool,
    pub(super) limit: usize,
}

impl Scan {
    fn of(range: KeyRange, order: Order, limit: usize) -> Self {
        let descending = order == Order::Descending;
        Self { start: range.start, end: range.end, descending, limit }
    }

    pub(super) fn range(&self) -> KeyRange {
        KeyRange { start: self.start.clone(), end: self.end.clone() }
    }

    fn has(&self, key: &[u8]) -> bool {
        *self.start <= *key && self.end.as_deref().is_none_or(|end| key < end)
    }
}

/// What a scan found.
#[derive(Clone, Debug)]
pub(super) struct Scanned {
    /// The key of the decision, what is stored under it, and when that was last changed.
    pub(super) records: Vec<(Vec<u8>, Bytes, i64)>,
    pub(super) as_of: i64,
}

/// What may be taken for true that was not read in this call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Trust {
    /// Everything that is in the cache, and that a record of which nothing is known is not there: it is
    /// all compared before there is an answer. To guess wrong takes no longer than to ask.
    Guesses,
    /// Everything that is in the cache: it is compared before there is an answer.
    Cache,
    /// What is there; what is not may have been written since.
    WhatIsThere,
    /// Nothing.
    Nothing,
}

/// One call: what it has read so far, and what its last run rests on.
#[derive(Debug)]
pub(super) struct Attempt {
    trust: Trust,
    /// A revision that is not before the call began. What is known as of it or later is fresh.
    moment: Option<i64>,
    records: HashMap<Vec<u8>, Known>,
    scans: HashMap<Scan, Scanned>,
    /// Of the last run.
    run: Run,
}

/// What one run asked for.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// The records that it rests on, by decisions' keys.
    pub(super) got: BTreeMap<Vec<u8>, Known>,
    /// The scans that it rests on, and how.
    pub(super) scanned: Vec<(Scan, Rests)>,
    pub(super) missing: BTreeSet<Vec<u8>>,
    pub(super) missing_scans: Vec<Scan>,
}

impl Run {
    pub(super) fn is_missing_something(&self) -> bool {
        !self.missing.is_empty() || !self.missing_scans.is_empty()
    }
}

/// What a decision wants.
#[derive(Default)]
pub(super) struct Wanted {
    pub(super) writes: BTreeMap<Vec<u8>, Option<Value>>,
    pub(super) event: Option<Value>,
}

impl Wanted {
    pub(super) fn is_nothing(&self) -> bool {
        self.writes.is_empty() && self.event.is_none()
    }
}

/// Over what a run goes.
#[derive(Clone, Copy)]
pub(super) struct Over<'a> {
    pub(super) keys: &'a Keys,
    pub(super) cache: &'a Cache,
    pub(super) log: &'a Log,
}

impl Attempt {
    pub(super) fn new(trust: Trust) -> Self {
        Self {
            trust,
            moment: None,
            records: HashMap::new(),
            scans: HashMap::new(),
            run: Run::default(),
        }
    }

    /// What the last run asked for.
    pub(super) fn last_run(&self) -> &Run {
        &self.run
    }

    /// Runs a decision. When something is missing, the answer is worth nothing.
    pub(super) fn decide(
        &mut self,
        decision: &Decision,
        over: Over<'_>,
    ) -> (Result<Answer, StoreError>, Wanted) {
        let view = View::new(self, over);
        let mut txn = Txn::new(&view);
        // What it sees may never have been so at one moment, and what is stored is not looked at for
        // sense here. A panic is an answer like another.
        let answer = catch_unwind(AssertUnwindSafe(|| decision(&mut txn)))
            .unwrap_or(Err(StoreError::Internal("a decision panicked")));
        let (writes, event) = txn.into_parts();
        let mut run = view.run.into_inner();
        if run.is_missing_something() {
            // What was guessed can be read on the same way.
            let guessed = run.got.iter().filter(|(_, known)| known.as_of == 0);
            run.missing.extend(guessed.map(|(key, _)| key.clone()));
        }
        self.run = run;
        (answer, Wanted { writes, event })
    }

    /// Runs a query.
    pub(super) fn ask(&mut self, query: Query<'_>, over: Over<'_>) -> Result<Answer, StoreError> {
        let view = View::new(self, over);
        let answer = catch_unwind(AssertUnwindSafe(|| query(&view)))
            .unwrap_or(Err(StoreError::Internal("a query panicked")));
        let mut run = view.run.into_inner();
        if run.is_missing_something() && self.trust != Trust::WhatIsThere {
            // What would be compared can be read on the same way.
            let old = run.got.iter().filter(|(_, known)| !self.is_of_this_call(known));
            run.missing.extend(old.map(|(key, _)| key.clone()));
        }
        self.run = run;
        answer
    }

    /// Whether all that the last run rests on was read in this call.
    pub(super) fn is_fresh(&self) -> bool {
        if self.moment.is_none() {
            return self.run.got.is_empty() && self.run.scanned.is_empty();
        }
        self.run.got.values().all(|known| self.is_of_this_call(known))
    }

    fn is_of_this_call(&self, known: &Known) -> bool {
        self.moment.is_some_and(|moment| known.as_of >= moment)
    }

    /// Takes nothing for true any more that was not read in this call.
    pub(super) fn trust_nothing(&mut self) {
        self.trust = Trust::Nothing;
    }

    /// Whether the cache has news of something that the last run rests on.
    pub(super) fn is_outdated(&self, over: Over<'_>) -> bool {
        self.run.got.iter().any(|(key, got)| {
            over.cache
                .get(&over.keys.at(key))
                .is_some_and(|known| known.as_of > got.as_of && known.changed != got.changed)
        })
    }

    /// What was read in this call.
    pub(super) fn learn(&mut self, key: Vec<u8>, known: Known) {
        self.at_moment(known.as_of);
        self.records.insert(key, known);
    }

    pub(super) fn learn_scan(&mut self, scan: Scan, scanned: Scanned) {
        self.at_moment(scanned.as_of);
        self.scans.insert(scan, scanned);
    }

    /// Something was read at this revision, which is not before the call began.
    fn at_moment(&mut self, revision: i64) {
        let moment = self.moment.get_or_insert(revision);
        *moment = revision.min(*moment);
    }

    pub(super) fn scan(&self, scan: &Scan) -> Option<&Scanned> {
        self.scans.get(scan)
    }

    /// Of what the last run wants to write, the keys that it rests on, and the beginnings of the ranges
    /// that it rests on and writes into.
    pub(super) fn reads_and_writes<'a>(
        &'a self,
        wanted: &'a Wanted,
    ) -> impl Iterator<Item = &'a Vec<u8>> {
        let run = &self.run;
        let keys = wanted.writes.keys().filter(|key| run.got.contains_key(*key));
        let ranges = run.scanned.iter().filter(|(scan, rests)| {
            *rests != Rests::OnNothing && wanted.writes.keys().any(|key| scan.has(key))
        });
        keys.chain(ranges.map(|(scan, _)| &scan.start))
    }

    /// Scans that the last run rests on are read again if they were read before this revision. Says
    /// whether there are any.
    pub(super) fn forget_scans_before(&mut self, revision: i64) -> bool {
        let before = self.scans.len();
        let rested = &self.run.scanned;
        self.scans.retain(|scan, scanned| {
            let rests = rested.iter().any(|(of, rests)| of == scan && *rests != Rests::OnNothing);
            !rests || scanned.as_of >= revision
        });
        self.scans.len() < before
    }

    /// What the last run rests on was not so any more: scans are read again.
    pub(super) fn forget_scans(&mut self) {
        self.scans.clear();
    }
}

/// What one run sees.
struct View<'a> {
    attempt: &'a Attempt,
    over: Over<'a>,
    run: RefCell<Run>,
}

impl<'a> View<'a> {
    fn new(attempt: &'a Attempt, over: Over<'a>) -> Self {
        Self { attempt, over, run: RefCell::default() }
    }

    /// The newest of what this call and what the engine has seen, if it will do.
    fn known(&self, key: &[u8], needs: Needs) -> Option<Known> {
        let own = self.attempt.records.get(key);
        let cached = self.over.cache.get(&self.over.keys.at(key));
        let newest = match (own, cached) {
            (Some(own), Some(cached)) if cached.as_of <= own.as_of => own.clone(),
            (Some(own), None) => own.clone(),
            (_, Some(cached)) => cached,
            (None, None) if needs == Needs::Compared && self.attempt.trust == Trust::Guesses => {
                return Some(Known { value: None, changed: 0, as_of: 0 });
            }
            (None, None) => return None,
        };
        let fresh = self.attempt.is_of_this_call(&newest);
        let will_do = match (needs, self.attempt.trust) {
            (Needs::Fresh, _) => fresh,
            (Needs::Any, _) | (Needs::Compared, Trust::Guesses | Trust::Cache) => true,
            (Needs::Compared, Trust::WhatIsThere) => fresh || newest.value.is_some(),
            (Needs::Compared, Trust::Nothing) => fresh,
        };
        will_do.then_some(newest)
    }

    fn one(&self, key: &[u8], needs: Needs) -> Result<Option<Value>, StoreError> {
        if is_engine_key(key) {
            return Ok(None);
        }
        if key.first() == Some(&EVENT) {
            return Ok(self.over.log.get(key));
        }
        let mut run = self.run.borrow_mut();
        let Some(known) = self.known(key, needs) else {
            run.missing.insert(key.to_vec());
            return Err(MISSING);
        };
        let value = known.value.as_deref().map(|stored| unstamped(key, stored)).transpose()?;
        if needs == Needs::Compared {
            run.got.insert(key.to_vec(), known);
        }
        Ok(value)
    }
}

/// What a read asks of a record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Needs {
    /// It is compared, or was read in this call.
    Compared,
    /// It was read in this call.
    Fresh,
    /// It was so once.
    Any,
}

impl Reads for View<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        self.one(key, Needs::Compared)
    }

    fn scan(
        &self,
        range: &KeyRange,
        order: Order,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Value)>, StoreError> {
        self.scan_many(range, order, limit, Rests::OnAll)
    }

    fn get_many(&self, keys: &[Vec<u8>], rests: Rests) -> Result<Vec<Option<Value>>, StoreError> {
        let needs = match rests {
            Rests::OnAll | Rests::OnAdditions => Needs::Compared,
            Rests::OnNothing => Needs::Fresh,
        };
        // All of them, so that all that are missing are read at once.
        let found: Vec<_> = keys.iter().map(|key| self.one(key, needs)).collect();
        found.into_iter().collect()
    }

    fn scan_many(
        &self,
        range: &KeyRange,
        order: Order,
        limit: usize,
        rests: Rests,
    ) -> Result<Vec<(Vec<u8>, Value)>, StoreError> {
        if is_empty(range) || limit == 0 {
            return Ok(Vec::new());
        }
        let mut parts = parts(range);
        if order == Order::Descending {
            parts.reverse();
        }
        let mut found = Vec::new();
        for part in parts {
            if found.len() >= limit {
                break;
            }
            let left = limit - found.len();
            let range = match part {
                Part::Log(range) => {
                    found.extend(self.over.log.scan(&range, order, left));
                    continue;
                }
                Part::Stored(range) => range,
            };
            let scan = Scan::of(range, order, limit);
            let mut run = self.run.borrow_mut();
            let Some(scanned) = self.attempt.scans.get(&scan) else {
                run.missing_scans.push(scan);
                return Err(MISSING);
            };
            for (key, stored, _) in scanned.records.iter().take(left) {
                found.push((key.clone(), unstamped(key, stored)?));
            }
            run.scanned.push((scan, rests));
        }
        Ok(found)
    }

    fn peek(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        self.one(key, Needs::Any)
    }
}
