//! The shared ring: the newest frames, each encoded once for all who see everything. A watcher holds
//! a position, never a queue of its own; one that falls behind the ring reads the store again.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::time::Instant;

use super::source::Proof;
use crate::domain::clock::Timestamp;
use crate::domain::event::{Entry, Event, Revocation, Target};
use crate::domain::ids::Revision;
use crate::domain::view::{Digest, SESSION_BUCKET_SECS, TOKEN_BUCKET_SECS, bucket_end};

/// The most entries of one frame.
pub(super) const FRAME_ENTRIES: usize = 64;
/// How much of one frame its entries fill at the most, as [`wire_bytes`] counts.
const FRAME_BYTES: usize = 64 * 1024;

/// Entries that became durable together, or a part of them.
pub(super) struct Frame {
    pub(super) entries: Vec<Entry>,
    /// Whoever has seen this frame has seen everything up to here.
    pub(super) through: Revision,
    /// What was proved when the frame was published.
    pub(super) as_of: Timestamp,
    /// When it was published.
    pub(super) at: Timestamp,
    /// The same as a moment that time spans are measured from.
    pub(super) published: Instant,
    pub(super) encoded: OnceLock<Bytes>,
    bytes: usize,
}

/// A check of the whole view at one position.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Check {
    /// The count and the exclusive or.
    pub digest: Digest,
    /// Only buckets that end later than this are counted.
    pub counted_after: Timestamp,
}

/// The newest frames and where they stand.
pub(super) struct Ring {
    frames: VecDeque<Arc<Frame>>,
    /// Every event after this one is in the frames.
    floor: Revision,
    head: Revision,
    pub(super) proof: Proof,
    /// When the making of the proof began, or of a later one that says the same.
    pub(super) proved_at: Option<Instant>,
    check: Option<(Revision, Check)>,
    entries: usize,
    bytes: usize,
    max_entries: usize,
    max_bytes: usize,
}

/// What follows a position.
pub(super) enum After {
    /// This frame; some of its entries may be at or before the position.
    Frame(Arc<Frame>),
    /// Nothing yet: everything up to here is before the position or not to be shown.
    Nothing(Revision),
    /// It is behind the ring. The ring holds everything after the revision given.
    Behind(Revision),
}

impl Ring {
    pub(super) fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self {
            frames: VecDeque::new(),
            floor: Revision(0),
            head: Revision(0),
            proof: Proof::default(),
            proved_at: None,
            check: None,
            entries: 0,
            bytes: 0,
            max_entries,
            max_bytes,
        }
    }

    pub(super) const fn head(&self) -> Revision {
        self.head
    }

    /// Every event after this one is held.
    pub(super) const fn floor(&self) -> Revision {
        self.floor
    }

    /// Entries and bytes held.
    pub(super) const fn size(&self) -> (usize, usize) {
        (self.entries, self.bytes)
    }

    /// Everything up to `revision` was read from the store; what follows comes by [`Ring::push`].
    pub(super) fn loaded(&mut self, revision: Revision) {
        self.floor = self.floor.max(revision);
        self.head = self.head.max(revision);
    }

    /// Adds the entries that are not here yet. `head` may be later than the last of them.
    pub(super) fn push(&mut self, entries: &[Entry], head: Revision, at: Timestamp) {
        let new = &entries[entries.partition_point(|entry| entry.revision <= self.head)..];
        let mut rest = new;
        while !rest.is_empty() {
            let count = fitting(rest, FRAME_BYTES).min(FRAME_ENTRIES);
            let (taken, left) = rest.split_at(count);
            rest = left;
            let last = taken.last().map_or(head, |entry| entry.revision);
            let through = if rest.is_empty() { last.max(head) } else { last };
            let bytes = taken.iter().map(|entry| 2 * wire_bytes(entry)).sum();
            self.entries += taken.len();
            self.bytes += bytes;
            self.head = through;
            self.frames.push_back(Arc::new(Frame {
                entries: taken.to_vec(),
                through,
                as_of: self.proof.as_of,
                at,
                published: Instant::now(),
                encoded: OnceLock::new(),
                bytes,
            }));
        }
        self.head = self.head.max(head);
        while self.entries > self.max_entries || self.bytes > self.max_bytes {
            let Some(oldest) = self.frames.pop_front() else { break };
            self.entries -= oldest.entries.len();
            self.bytes -= oldest.bytes;
            self.floor = self.floor.max(oldest.through);
        }
    }

    /// What follows `position`.
    pub(super) fn after(&self, position: Revision) -> After {
        if position < self.floor {
            return After::Behind(self.floor);
        }
        let next = self.frames.partition_point(|frame| frame.through <= position);
        self.frames
            .get(next)
            .map_or(After::Nothing(self.head), |frame| After::Frame(Arc::clone(frame)))
    }

    pub(super) fn set_check(&mut self, check: Check) {
        self.check = Some((self.head, check));
    }

    /// The check of the set at `position`, when nothing was added since it was made, and nothing that it
    /// counts can be gone by `now`: no new one is made while the store proves nothing.
    pub(super) fn check_at(&self, position: Revision, now: Timestamp) -> Option<Check> {
        self.check
            .filter(|(revision, _)| *revision == position && self.head == position)
            .map(|(_, check)| check)
            .filter(|check| now < check.counted_after)
    }
}

/// How many of the first `entries` fit into `limit` bytes; at least one, because a revision is never
/// split.
pub(super) fn fitting(entries: &[Entry], limit: usize) -> usize {
    let mut used = 0;
    let fits = |entry: &&Entry| {
        used += wire_bytes(entry);
        used <= limit
    };
    entries.iter().take_while(fits).count().max(1)
}

/// No fewer bytes than an entry takes on the wire.
pub(super) fn wire_bytes(entry: &Entry) -> usize {
    const FIXED: usize = 160;
    let Event::Revocation(revocation) = &entry.event else { return FIXED };
    FIXED
        + match &revocation.target {
            Target::Token { client, subject, audience, .. }
            | Target::Session { client, subject, audience, .. } => {
                client.as_str().len()
                    + subject.as_str().len()
                    + audience.iter().map(|name| name.len() + 4).sum::<usize>()
            }
            Target::Subject { id, .. } => id.as_str().len(),
            Target::Client { id, .. } => id.as_str().len(),
            Target::Key { id } => id.as_str().len(),
            Target::Everything { .. } => 0,
        }
}

/// Whether every view has dropped a revocation by `now`. Tokens and sessions go with their bucket,
/// not on their own: both ends of a stream count whole buckets.
pub(super) fn is_over(revocation: &Revocation, now: Timestamp) -> bool {
    match &revocation.target {
        Target::Token { .. } => {
            bucket_end(revocation.expires_at, TOKEN_BUCKET_SECS) <= now.as_secs()
        }
        Target::Session { .. } => {
            bucket_end(revocation.expires_at, SESSION_BUCKET_SECS) <= now.as_secs()
        }
        Target::Subject { .. }
        | Target::Client { .. }
        | Target::Everything { .. }
        | Target::Key { .. } => revocation.expires_at <= now,
    }
}
