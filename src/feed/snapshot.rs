//! The live set in chunks, without holding a lock or a copy of it.

use super::filter::Filter;
use super::ring::{is_over, wire_bytes};
use super::{Shared, WatchError};
use crate::domain::event::{Entry, Event, Revocation, Target};
use crate::domain::ids::Revision;
use crate::domain::view::{SESSION_BUCKET_SECS, TOKEN_BUCKET_SECS, bucket_end};
use crate::store::StoreError;

/// Which kind of id packed keys stand for.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum PackedKind {
    /// Access tokens.
    Token,
    /// Sessions.
    Session,
}

/// Revoked tokens or sessions of one bucket.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Packed {
    /// What the keys stand for.
    pub kind: PackedKind,
    /// When the bucket ends, in seconds since the Unix epoch.
    pub end: u64,
    /// The keys.
    pub keys: Vec<u64>,
}

/// A part of the live set.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Chunk {
    /// Revocations in full.
    pub full: Vec<Entry>,
    /// Tokens and sessions by their keys alone.
    pub packed: Vec<Packed>,
}

impl Chunk {
    /// Whether there is nothing in it.
    pub const fn is_empty(&self) -> bool {
        self.full.is_empty() && self.packed.is_empty()
    }
}

/// How much a chunk has room for.
struct Room(usize);

/// What the framing of one bucket takes.
const BUCKET_BYTES: usize = 32;
const KEY_BYTES: usize = 8;

/// Where a snapshot stands.
pub(super) enum Walk {
    /// Of everything: straight from the view, bucket by bucket. What was added meanwhile may or may
    /// not show; the stream sends it anyway, since it follows from the position it attached at.
    Open(Step),
    /// Of what a filter shows: from the store, because the view does not keep what filters ask for.
    Filtered { after: Revision, until: Revision },
}

/// Where in the view.
pub(super) enum Step {
    /// After this revision of what is sent in full.
    Coarse(Revision),
    /// After the bucket that ends here, with keys of it that are still to send.
    Bucket(PackedKind, u64, Vec<u64>),
    /// All is sent.
    Done,
}

impl Walk {
    pub(super) const fn new(filter: &Filter, until: Revision) -> Self {
        if filter.is_open() {
            Self::Open(Step::Coarse(Revision(0)))
        } else {
            Self::Filtered { after: Revision(0), until }
        }
    }

    /// The next chunk of at most about `limit` bytes; empty when nothing was found so far, none at
    /// the end.
    pub(super) fn next(
        &mut self,
        shared: &Shared,
        filter: &Filter,
        limit: usize,
    ) -> Result<Option<Chunk>, WatchError> {
        let mut chunk = Chunk::default();
        let mut room = Room(limit.saturating_sub(64));
        let over = match self {
            Self::Open(step) => {
                fill_open(step, shared, &mut chunk, &mut room);
                matches!(step, Step::Done)
            }
            Self::Filtered { after, until } => {
                fill_filtered(after, *until, shared, filter, &mut chunk, &mut room)?
            }
        };
        Ok((!over || !chunk.is_empty()).then_some(chunk))
    }
}

fn fill_open(step: &mut Step, shared: &Shared, chunk: &mut Chunk, room: &mut Room) {
    loop {
        match step {
            Step::Coarse(after) => {
                let coarse = shared.coarse();
                for (revision, revocation) in coarse.range(Revision(after.0 + 1)..) {
                    let entry = entry(*revision, revocation);
                    let bytes = wire_bytes(&entry);
                    if bytes > room.0 && !chunk.full.is_empty() {
                        return;
                    }
                    room.0 = room.0.saturating_sub(bytes);
                    *after = *revision;
                    chunk.full.push(entry);
                }
                drop(coarse);
                *step = Step::Bucket(PackedKind::Token, 0, Vec::new());
            }
            Step::Bucket(kind, end, keys) => {
                if keys.is_empty() {
                    let next = match kind {
                        PackedKind::Token => shared.view.token_bucket_after(*end),
                        PackedKind::Session => shared.view.session_bucket_after(*end),
                    };
                    *step = match (next, *kind) {
                        (Some((end, keys)), kind) => Step::Bucket(kind, end, keys),
                        (None, PackedKind::Token) => {
                            Step::Bucket(PackedKind::Session, 0, Vec::new())
                        }
                        (None, PackedKind::Session) => Step::Done,
                    };
                    continue;
                }
                let fits = room.0.saturating_sub(BUCKET_BYTES) / KEY_BYTES;
                if fits == 0 {
                    return;
                }
                let taken = keys.split_off(keys.len().saturating_sub(fits));
                room.0 = room.0.saturating_sub(BUCKET_BYTES + taken.len() * KEY_BYTES);
                chunk.packed.push(Packed { kind: *kind, end: *end, keys: taken });
            }
            Step::Done => return,
        }
    }
}

/// Whether it came to the end.
fn fill_filtered(
    after: &mut Revision,
    until: Revision,
    shared: &Shared,
    filter: &Filter,
    chunk: &mut Chunk,
    room: &mut Room,
) -> Result<bool, WatchError> {
    /// So that a filter which shows nothing does not hold a thread for the whole log.
    const PAGES: usize = 8;
    const PAGE: usize = 256;
    let now = shared.clock.now();
    for _ in 0..PAGES {
        let page = shared.source.events_after(*after, PAGE)?;
        let page = page.ok_or(StoreError::Internal("a filter without a log to look it up in"))?;
        if page.is_empty() {
            return Ok(true);
        }
        for entry in page {
            if entry.revision > until {
                return Ok(true);
            }
            if let Some(revocation) = filter.shows(&entry)
                && !is_over(revocation, now)
            {
                let packed = packed(revocation);
                let bytes = packed.map_or_else(|| wire_bytes(&entry), |_| BUCKET_BYTES + KEY_BYTES);
                if bytes > room.0 && !chunk.is_empty() {
                    return Ok(false);
                }
                room.0 = room.0.saturating_sub(bytes);
                *after = entry.revision;
                match packed {
                    Some((kind, end, key)) => add_packed(&mut chunk.packed, kind, end, key),
                    None => chunk.full.push(entry),
                }
            } else {
                *after = entry.revision;
            }
        }
    }
    Ok(false)
}

fn packed(revocation: &Revocation) -> Option<(PackedKind, u64, u64)> {
    let expires_at = revocation.expires_at;
    match &revocation.target {
        Target::Token { id, .. } => {
            Some((PackedKind::Token, bucket_end(expires_at, TOKEN_BUCKET_SECS), id.key64()))
        }
        Target::Session { id, .. } => {
            Some((PackedKind::Session, bucket_end(expires_at, SESSION_BUCKET_SECS), id.key64()))
        }
        Target::Subject { .. }
        | Target::Client { .. }
        | Target::Everything { .. }
        | Target::Key { .. } => None,
    }
}

fn add_packed(all: &mut Vec<Packed>, kind: PackedKind, end: u64, key: u64) {
    match all.iter_mut().find(|packed| packed.kind == kind && packed.end == end) {
        Some(packed) => packed.keys.push(key),
        None => all.push(Packed { kind, end, keys: vec![key] }),
    }
}

fn entry(revision: Revision, revocation: &Revocation) -> Entry {
    Entry { revision, event: Event::Revocation(revocation.clone()) }
}
