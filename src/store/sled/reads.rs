//! Reads straight from sled, each record checked.

use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::open::panic_text;
use super::pack;
use super::record::unseal;
use crate::store::StoreError;
use crate::store::engine::{KeyRange, Order, Reads, Value, is_index_key};
use crate::store::group::{bounds, is_empty, is_engine_key};

type Record = (Vec<u8>, Value);

impl Reads for sled::Db {
    fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        if is_engine_key(key) {
            return Ok(None);
        }
        if is_index_key(key) {
            let Some((at, stored)) = guarded(|| pack::pack_of(self, key))? else { return Ok(None) };
            let found = entries(&at, &stored)?.iter().any(|entry| entry == key);
            return Ok(found.then(Value::new));
        }
        match guarded(|| sled::Tree::get(self, key))? {
            Some(stored) => checked(key, &stored).map(Some),
            None => Ok(None),
        }
    }

    fn scan(
        &self,
        range: &KeyRange,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        if is_empty(range) || limit == 0 {
            return Ok(Vec::new());
        }
        match order {
            Order::Ascending => ascending(self, range, limit),
            Order::Descending => descending(self, range, limit),
        }
    }
}

fn ascending(db: &sled::Db, range: &KeyRange, limit: usize) -> Result<Vec<Record>, StoreError> {
    let mut found = Found::new(range, limit);
    if is_index_key(&range.start)
        && let Some((at, stored)) = guarded(|| pack::pack_of(db, &range.start))?
    {
        found.add(&at, &stored, Order::Ascending)?;
    }
    let mut records = db.range::<&[u8], _>(bounds(range));
    while !found.is_full() {
        let Some((key, stored)) = guarded(|| records.next().transpose())? else { break };
        found.add(&key, &stored, Order::Ascending)?;
    }
    Ok(found.records)
}

/// Each record is looked up anew: what an iterator of sled's goes on with may be older than a split
/// that moved entries out of the pack that comes next.
fn descending(db: &sled::Db, range: &KeyRange, limit: usize) -> Result<Vec<Record>, StoreError> {
    let mut found = Found::new(range, limit);
    // The pack that has the first key may begin before the range.
    let first = if is_index_key(&range.start) { &range.start[..1] } else { &range.start };
    let first = Bound::Included(sled::IVec::from(first));
    let mut end = bounds(range).1.map(sled::IVec::from);
    while !found.is_full() {
        let next = guarded(|| db.range((first.clone(), end)).next_back().transpose())?;
        let Some((key, stored)) = next else { break };
        found.add(&key, &stored, Order::Descending)?;
        if *key <= *range.start {
            break;
        }
        end = Bound::Excluded(key);
    }
    Ok(found.records)
}

/// What a scan has found.
struct Found<'a> {
    range: &'a KeyRange,
    limit: usize,
    records: Vec<Record>,
}

impl<'a> Found<'a> {
    fn new(range: &'a KeyRange, limit: usize) -> Self {
        Self { range, limit, records: Vec::new() }
    }

    fn is_full(&self) -> bool {
        self.records.len() >= self.limit
    }

    /// Adds the record that sled has under `key`, or the entries if it is a pack.
    fn add(&mut self, key: &[u8], stored: &[u8], order: Order) -> Result<(), StoreError> {
        if is_engine_key(key) {
            return Ok(());
        }
        if !is_index_key(key) {
            self.records.push((key.to_vec(), checked(key, stored)?));
            return Ok(());
        }
        let mut entries = entries(key, stored)?;
        if order == Order::Descending {
            entries.reverse();
        }
        let Self { range, limit, records } = self;
        for entry in entries {
            let inside = entry >= range.start && range.end.as_ref().is_none_or(|end| entry < *end);
            // A pack that was split meanwhile shows the entries that moved once more.
            let again =
                order == Order::Ascending && records.last().is_some_and(|(last, _)| entry <= *last);
            if inside && !again && records.len() < *limit {
                records.push((entry, Value::new()));
            }
        }
        Ok(())
    }
}

/// On a page that it cannot make sense of, sled panics as often as it gives an error.
fn guarded<T>(read: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(sled::Error::Io(error))) => Err(StoreError::Unavailable(error.to_string())),
        Ok(Err(error)) => Err(StoreError::Corrupt(error.to_string())),
        Err(panic) => Err(StoreError::Corrupt(panic_text(&*panic))),
    }
}

fn entries(at: &[u8], stored: &[u8]) -> Result<Vec<Vec<u8>>, StoreError> {
    pack::read(at, &checked(at, stored)?)
        .ok_or_else(|| StoreError::Corrupt("a pack of index entries cannot be read".to_owned()))
}

fn checked(key: &[u8], stored: &[u8]) -> Result<Value, StoreError> {
    let (value, _) = unseal(key, stored)
        .ok_or_else(|| StoreError::Corrupt("a record does not match its checksum".to_owned()))?;
    Ok(value.to_vec())
}
