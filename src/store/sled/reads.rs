//! Reads straight from sled, each record checked.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::open::panic_text;
use super::record::unseal;
use crate::store::StoreError;
use crate::store::engine::{KeyRange, Order, Reads, Value};
use crate::store::group::{bounds, is_empty, is_engine_key};

type Record = (Vec<u8>, Value);

impl Reads for sled::Db {
    fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        if is_engine_key(key) {
            return Ok(None);
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
        if is_empty(range) {
            return Ok(Vec::new());
        }
        let found = guarded(|| {
            let records = self.range::<&[u8], _>(bounds(range));
            let ours = |record: &sled::Result<(sled::IVec, sled::IVec)>| {
                record.as_ref().map_or(true, |(key, _)| !is_engine_key(key))
            };
            match order {
                Order::Ascending => records.filter(ours).take(limit).collect(),
                Order::Descending => records.rev().filter(ours).take(limit).collect(),
            }
        });
        let found: Vec<(sled::IVec, sled::IVec)> = found?;
        let owned = |(key, stored): (sled::IVec, sled::IVec)| {
            checked(&key, &stored).map(|value| (key.to_vec(), value))
        };
        found.into_iter().map(owned).collect()
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

fn checked(key: &[u8], stored: &[u8]) -> Result<Value, StoreError> {
    let (value, _) = unseal(key, stored)
        .ok_or_else(|| StoreError::Corrupt("a record does not match its checksum".to_owned()))?;
    Ok(value.to_vec())
}
