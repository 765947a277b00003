//! Where records stand in etcd, and what stands there.
//!
//! | key, after the prefix | value |
//! |---|---|
//! | a key of a decision | its record, and a stamp of eight bytes |
//! | that of an index entry | nothing |
//! | `e` and sixteen random bytes | an event; etcd's revision of the key is the event's |
//! | `!meta` | which log this is, and in which cluster it was begun |
//! | `!raft` | how far etcd's own log had come when it was written; see `raft.rs` |
//! | `!head` | a stamp; etcd's revision of the key is that of the newest event |
//! | `!moving` | how far a move into this prefix is, until it is there; see `onward.rs` |
//! | `!board/` and a name | a note of a replica, under a lease; see `peers.rs` |
//! | `!fence/` and a number | a stamp; see `resolve.rs` |
//! | `!mark/` and a number | a stamp; see `resolve.rs` |
//!
//! A decision sees the event of a revision under `e` and that revision, as on every engine. The log in
//! memory knows which key that is.

use crate::domain::ids::Revision;
use crate::store::StoreError;
use crate::store::engine::{ENGINE_PREFIX, KeyRange, Value, is_index_key};

/// The kind of keys that are events.
pub(super) const EVENT: u8 = b'e';

/// What the value of a record ends with: which attempt of which engine wrote it.
pub(super) type Stamp = [u8; 8];

/// How many fences there are. Engines that have one in common disturb each other when an answer was
/// lost, and only then.
pub(super) const FENCES: u8 = 64;

/// Puts keys under the prefix, and takes it off.
#[derive(Clone, Debug)]
pub(in crate::store) struct Keys {
    prefix: Vec<u8>,
}

impl Keys {
    /// Under this prefix.
    pub(in crate::store) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.as_bytes().to_vec() }
    }

    /// Where a key of a decision stands, unless it is that of an event.
    pub(in crate::store) fn at(&self, key: &[u8]) -> Vec<u8> {
        [&self.prefix, key].concat()
    }

    /// The key of a decision that stands here.
    pub(in crate::store) fn key_at<'a>(&self, at: &'a [u8]) -> Option<&'a [u8]> {
        at.strip_prefix(self.prefix.as_slice())
    }

    /// Where a range of keys stands, and the key after it, as etcd wants it: one zero byte for none.
    pub(in crate::store) fn range(&self, range: &KeyRange) -> (Vec<u8>, Vec<u8>) {
        let end = match &range.end {
            Some(end) => self.at(end),
            None => KeyRange::prefix(&self.prefix).end.unwrap_or_else(|| vec![0]),
        };
        (self.at(&range.start), end)
    }

    /// Where all events stand.
    pub(in crate::store) fn events(&self) -> (Vec<u8>, Vec<u8>) {
        self.range(&KeyRange::prefix(&[EVENT]))
    }

    /// Where an event of this name stands.
    pub(super) fn event(&self, name: [u8; 16]) -> Vec<u8> {
        self.at(&[&[EVENT], name.as_slice()].concat())
    }

    /// Where the engine's own record stands.
    pub(in crate::store) fn meta(&self) -> Vec<u8> {
        self.at(b"!meta")
    }

    /// Where the revision of the newest event is kept.
    pub(in crate::store) fn head(&self) -> Vec<u8> {
        self.at(b"!head")
    }

    /// Where it is kept how far etcd's own log has come.
    pub(super) fn raft(&self) -> Vec<u8> {
        self.at(b"!raft")
    }

    /// Where a move says how far it is.
    pub(super) fn moving(&self) -> Vec<u8> {
        self.at(b"!moving")
    }

    pub(super) fn fence(&self, number: u8) -> Vec<u8> {
        self.at(format!("!fence/{number:02}").as_bytes())
    }

    pub(super) fn mark(&self, number: u8) -> Vec<u8> {
        self.at(format!("!mark/{number:02}").as_bytes())
    }
}

/// A value as it stands in etcd.
pub(in crate::store) fn stamped(key: &[u8], value: &[u8], stamp: Stamp) -> Vec<u8> {
    if is_index_key(key) { Vec::new() } else { [value, stamp.as_slice()].concat() }
}

/// The value of a record that stands in etcd.
pub(in crate::store) fn unstamped(key: &[u8], stored: &[u8]) -> Result<Value, StoreError> {
    if is_index_key(key) {
        return Ok(Value::new());
    }
    stored
        .len()
        .checked_sub(size_of::<Stamp>())
        .map(|end| stored[..end].to_vec())
        .ok_or_else(|| StoreError::Corrupt("a record has no stamp".to_owned()))
}

/// Who wrote a value.
pub(super) fn stamp_of(stored: &[u8]) -> Option<Stamp> {
    stored.last_chunk().copied()
}

/// The revision in a decision's key of an event.
pub(super) fn revision_in(key: &[u8]) -> Option<Revision> {
    let rest = key.strip_prefix(&[EVENT])?;
    rest.try_into().ok().map(|bytes| Revision(u64::from_be_bytes(bytes)))
}

/// A part of a range.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Part {
    /// It stands in etcd as it is.
    Stored(KeyRange),
    /// It is of the log.
    Log(KeyRange),
}

/// A range without the engine's own keys, and with the log apart. In the order of the keys.
pub(super) fn parts(range: &KeyRange) -> Vec<Part> {
    let kinds = [(ENGINE_PREFIX, None), (EVENT, Some(Part::Log as fn(KeyRange) -> Part))];
    let mut parts = Vec::new();
    let mut rest = range.clone();
    for (kind, part) in kinds {
        let inner = KeyRange::prefix(&[kind]);
        let before = cut(&rest, None, Some(&inner.start));
        let within = cut(&rest, Some(&inner.start), inner.end.as_deref());
        parts.extend(before.map(Part::Stored));
        parts.extend(part.zip(within).map(|(part, within)| part(within)));
        match inner.end.as_deref().and_then(|end| cut(&rest, Some(end), None)) {
            Some(after) => rest = after,
            None => return parts,
        }
    }
    parts.push(Part::Stored(rest));
    parts
}

/// What of a range is not before `from` and before `to`; none if that is nothing.
fn cut(range: &KeyRange, from: Option<&[u8]>, to: Option<&[u8]>) -> Option<KeyRange> {
    let start = from.map_or(range.start.as_slice(), |from| from.max(&range.start));
    let end = match (range.end.as_deref(), to) {
        (Some(end), Some(to)) => Some(end.min(to)),
        (end, to) => end.or(to),
    };
    let some = end.is_none_or(|end| start < end);
    some.then(|| KeyRange { start: start.to_vec(), end: end.map(<[u8]>::to_vec) })
}
