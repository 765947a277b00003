//! What a feed is told, and what it says of itself.

use std::sync::Arc;
use std::time::Duration;

use super::filter::Filter;
use super::registry::Close;
use crate::domain::clock::Timestamp;
use crate::domain::event::Entry;
use crate::domain::ids::{Cursor, Revision};
use crate::domain::view::View;
use crate::store::StoreError;

/// How the feed behaves.
#[derive(Clone, Debug)]
pub struct FeedSettings {
    /// The most entries that the ring holds.
    pub ring_entries: usize,
    /// About the most bytes that the ring holds.
    pub ring_bytes: usize,
    /// The most watchers.
    pub max_watchers: usize,
    /// The most watchers of one caller.
    pub max_watchers_per_caller: usize,
    /// How often contact with the store is proved.
    pub prove_every: Duration,
    /// How often what has expired is dropped.
    pub expire_every: Duration,
    /// How long a cursor may be ahead of this replica.
    pub behind_wait: Duration,
    /// How long a stream may take nothing while there is something to take.
    pub slow_after: Duration,
    /// How long a stream lives, a fifth more or less.
    pub lifetime: Duration,
}

impl Default for FeedSettings {
    fn default() -> Self {
        Self {
            ring_entries: 65_536,
            ring_bytes: 16 * 1024 * 1024,
            max_watchers: 10_000,
            max_watchers_per_caller: 1_000,
            prove_every: Duration::from_millis(250),
            expire_every: Duration::from_secs(5),
            behind_wait: Duration::from_secs(2),
            slow_after: Duration::from_secs(30),
            lifetime: Duration::from_secs(600),
        }
    }
}

/// What a feed without a log begins with.
pub struct Known {
    /// The live set, for the feed alone to change or for who changes it only to what the feed was
    /// told before.
    pub view: Arc<View>,
    /// What of it a snapshot shows in full: everything but tokens and sessions.
    pub coarse: Vec<Entry>,
    /// Where that stands.
    pub through: Cursor,
    /// The oldest cursor whose holder needs no snapshot.
    pub oldest: Revision,
}

/// Why a watch did not begin, or ended.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WatchError {
    /// There is no complete set to show yet.
    #[error("the set of revocations is not complete yet")]
    NotReady,
    /// The server shuts down.
    #[error("the server is draining")]
    Draining,
    /// The cursor is ahead of this replica.
    #[error("this replica has not seen the cursor yet; it is at {head}")]
    Behind {
        /// Where this replica is.
        head: Cursor,
    },
    /// The store is out of reach of this replica, so nobody knows what was revoked meanwhile.
    #[error("this replica is cut off from its store")]
    CutOff,
    /// The cursor belongs to another log.
    #[error("the cursor belongs to another log")]
    OtherLog,
    /// There are too many watchers.
    #[error("too many watchers")]
    Busy {
        /// Whether it is the caller's own share that is used up.
        per_caller: bool,
        /// How many there may be.
        limit: usize,
    },
    /// The stream took nothing for too long.
    #[error("the watcher does not read fast enough; resume from {through}")]
    Slow {
        /// What it was sent.
        through: Cursor,
    },
    /// The credential of the stream expired or was taken back.
    #[error("the credential of the stream is no longer good")]
    CredentialEnded,
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Says whether the credential of a stream was taken back.
pub type Revoked = Arc<dyn Fn() -> bool + Send + Sync>;

/// What a watcher wants.
#[derive(Clone, Default)]
pub struct Subscribe {
    /// The last position that it applied; none to begin with a snapshot.
    pub resume_after: Option<Cursor>,
    /// What it sees.
    pub filter: Filter,
    /// How often it hears something when nothing happens.
    pub heartbeat: Duration,
    /// The most bytes in one frame.
    pub max_frame_bytes: usize,
    /// The name it gave itself.
    pub subscriber: String,
    /// Who calls, for the caps and for acknowledgements.
    pub owner: String,
    /// When its credential expires.
    pub valid_until: Option<Timestamp>,
    /// Whether its credential was taken back.
    pub revoked: Option<Revoked>,
    /// Ends its connection when it takes nothing any more.
    pub close: Option<Close>,
}

/// How the feed is doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FeedStats {
    /// How many watch.
    pub watchers: usize,
    /// The newest event.
    pub head: Revision,
    /// How far this replica can vouch.
    pub as_of: Timestamp,
    /// Entries in the ring.
    pub ring_entries: usize,
    /// About how many bytes the ring takes.
    pub ring_bytes: usize,
    /// Live revocations.
    pub live: usize,
    /// Streams that were cut because they took nothing.
    pub cut: u64,
    /// Times that a stream was behind the ring and read the store.
    pub reread: u64,
}

/// A part of the log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Page {
    /// The live revocations in it, in order.
    pub entries: Vec<Entry>,
    /// Everything up to here was looked at.
    pub through: Revision,
}
