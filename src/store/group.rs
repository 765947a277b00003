//! Runs decisions one after another over what is stored, each seeing what those before it wrote.
//! What comes of a group is written at once. Knows no disk.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::StoreError;
use super::engine::{
    Answer, Commit, Decision, ENGINE_PREFIX, KeyRange, LoggedEvent, Order, Reads, Txn, Value,
    event_key, is_index_key,
};
use crate::domain::ids::Revision;

/// The longest record, key and value together. Larger ones would become files of their own in sled,
/// which it never syncs.
pub(super) const MAX_RECORD_BYTES: usize = 4096;

/// Records as they were stored when a group first read them. Nobody else writes while it decides.
pub(super) type Seen = HashMap<Vec<u8>, Option<Value>>;

/// Writes that are not stored yet, over what is.
struct Overlay<'a> {
    base: &'a dyn Reads,
    writes: BTreeMap<Vec<u8>, Option<Value>>,
    seen: RefCell<Seen>,
}

impl<'a> Overlay<'a> {
    fn new(base: &'a dyn Reads) -> Self {
        Self { base, writes: BTreeMap::new(), seen: RefCell::default() }
    }
}

impl Reads for Overlay<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        if let Some(own) = self.writes.get(key) {
            return Ok(own.clone());
        }
        // The decisions of a group mostly ask for the same few records beside their own: the epochs
        // of everything and of the client, and the latest moment.
        if let Some(known) = self.seen.borrow().get(key) {
            return Ok(known.clone());
        }
        let found = self.base.get(key)?;
        self.seen.borrow_mut().insert(key.to_vec(), found.clone());
        Ok(found)
    }

    fn scan(
        &self,
        range: &KeyRange,
        order: Order,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Value)>, StoreError> {
        if is_empty(range) {
            return Ok(Vec::new());
        }
        let own: BTreeMap<_, _> = self.writes.range::<[u8], _>(bounds(range)).collect();
        // Each own write hides at most one stored record, so this many are enough.
        let mut merged: BTreeMap<Vec<u8>, Value> =
            self.base.scan(range, order, limit.saturating_add(own.len()))?.into_iter().collect();
        for (key, value) in own {
            match value {
                Some(value) => merged.insert(key.clone(), value.clone()),
                None => merged.remove(key),
            };
        }
        Ok(match order {
            Order::Ascending => merged.into_iter().take(limit).collect(),
            Order::Descending => merged.into_iter().rev().take(limit).collect(),
        })
    }
}

/// The bounds of a range of keys that [`is_empty`] does not hold for.
pub(super) fn bounds(range: &KeyRange) -> (Bound<&[u8]>, Bound<&[u8]>) {
    let end = range.end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    (Bound::Included(&range.start), end)
}

/// Whether no key can be in the range; a map's `range` panics on such bounds.
pub(super) fn is_empty(range: &KeyRange) -> bool {
    range.end.as_ref().is_some_and(|end| *end <= range.start)
}

/// Whether a key belongs to the engine and not to decisions.
pub(super) fn is_engine_key(key: &[u8]) -> bool {
    key.first() == Some(&ENGINE_PREFIX)
}

/// Decisions that are going to be written at once.
pub(super) struct Group<'a> {
    overlay: Overlay<'a>,
    head: Revision,
    events: Vec<LoggedEvent>,
}

/// What a group wants written.
pub(super) struct Written {
    /// Every record that changes, and what it becomes.
    pub(super) writes: BTreeMap<Vec<u8>, Option<Value>>,
    /// What was read of what is stored: some of what the writes replace.
    pub(super) seen: Seen,
    /// The events among them, in order.
    pub(super) events: Vec<LoggedEvent>,
    /// The newest revision.
    pub(super) head: Revision,
}

impl<'a> Group<'a> {
    /// An empty group over `base`, whose newest revision is `head`.
    pub(super) fn new(base: &'a dyn Reads, head: Revision) -> Self {
        Self { overlay: Overlay::new(base), head, events: Vec::new() }
    }

    /// Runs one decision. When it gives an error, panics, or `admit` refuses what it wants to write,
    /// nothing of it stays.
    pub(super) fn run(
        &mut self,
        decision: &Decision,
        admit: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(Answer, Commit), StoreError> {
        let mut txn = Txn::new(&self.overlay);
        let answer = catch_unwind(AssertUnwindSafe(|| decision(&mut txn)))
            .map_err(|_| StoreError::Internal("a decision panicked"))??;
        let (writes, event) = txn.into_parts();
        if writes.is_empty() && event.is_none() {
            return Ok((answer, Commit { event: None, head: self.head }));
        }
        admit()?;
        for (key, value) in &writes {
            check_record(key, value.as_deref())?;
        }
        let revision = Revision(self.head.0 + 1);
        if let Some(value) = &event {
            check_record(&event_key(revision), Some(value))?;
        }
        self.overlay.writes.extend(writes);
        let Some(value) = event else {
            return Ok((answer, Commit { event: None, head: self.head }));
        };
        self.overlay.writes.insert(event_key(revision), Some(value.clone()));
        self.events.push(LoggedEvent { revision, value });
        self.head = revision;
        Ok((answer, Commit { event: Some(revision), head: revision }))
    }

    /// What the group wants written.
    pub(super) fn finish(self) -> Written {
        let Overlay { writes, seen, .. } = self.overlay;
        Written { writes, seen: seen.into_inner(), events: self.events, head: self.head }
    }
}

pub(super) fn check_record(key: &[u8], value: Option<&[u8]>) -> Result<(), StoreError> {
    if is_engine_key(key) {
        return Err(StoreError::Internal("a decision wrote a key of the engine"));
    }
    if key.is_empty() || key.len() + value.map_or(0, <[u8]>::len) > MAX_RECORD_BYTES {
        return Err(StoreError::Internal("a record is empty or larger than 4 KiB"));
    }
    if is_index_key(key) && value.is_some_and(|value| !value.is_empty()) {
        return Err(StoreError::Internal("an index entry has a value"));
    }
    Ok(())
}

/// The events of a log above `after` and up to `head`, read as records.
pub(super) fn events_between(
    reads: &dyn Reads,
    after: Revision,
    head: Revision,
    limit: usize,
) -> Result<Vec<LoggedEvent>, StoreError> {
    if after >= head {
        return Ok(Vec::new());
    }
    let mut end = event_key(head);
    end.push(0);
    let range = KeyRange { start: event_key(Revision(after.0 + 1)), end: Some(end) };
    let logged = |(key, value): (Vec<u8>, Value)| {
        let revision = key.get(1..).and_then(|rest| <[u8; 8]>::try_from(rest).ok());
        revision.map(|bytes| LoggedEvent { revision: Revision(u64::from_be_bytes(bytes)), value })
    };
    let records = reads.scan(&range, Order::Ascending, limit)?;
    records
        .into_iter()
        .map(|record| {
            logged(record).ok_or_else(|| StoreError::Corrupt("the key of an event".to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Holds one record and counts who asks.
    struct Counted(Cell<u32>);

    impl Reads for Counted {
        fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
            self.0.set(self.0.get() + 1);
            Ok((key == b"known").then(|| b"stored".to_vec()))
        }

        fn scan(
            &self,
            _: &KeyRange,
            _: Order,
            _: usize,
        ) -> Result<Vec<(Vec<u8>, Value)>, StoreError> {
            Ok(Vec::new())
        }
    }

    fn read(group: &mut Group<'_>, key: &'static [u8]) -> Option<Value> {
        let decision: Decision = Box::new(move |txn| Ok(Box::new(txn.get(key)?)));
        let (answer, _) = group.run(&decision, || Ok(())).unwrap();
        *answer.downcast().unwrap()
    }

    #[test]
    fn a_group_reads_a_record_once_and_sees_what_it_wrote_itself() {
        let base = Counted(Cell::new(0));
        let mut group = Group::new(&base, Revision(0));
        for _ in 0..2 {
            assert_eq!(read(&mut group, b"known"), Some(b"stored".to_vec()));
            assert_eq!(read(&mut group, b"nobody"), None);
        }
        assert_eq!(base.0.get(), 2);
        let write: Decision = Box::new(|txn| {
            txn.put(b"known".to_vec(), b"new".to_vec());
            Ok(Box::new(()))
        });
        group.run(&write, || Ok(())).unwrap();
        assert_eq!(read(&mut group, b"known"), Some(b"new".to_vec()));
        // What the write replaces is what was stored.
        let written = group.finish();
        assert_eq!(written.seen[b"known".as_slice()], Some(b"stored".to_vec()));
        assert_eq!(base.0.get(), 2);
    }
}
