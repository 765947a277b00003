//! What is told of a stream.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Code;

use crate::domain::clock::Timestamp;
use crate::domain::ids::Cursor;
use crate::pb::v1;

/// How fresh the set is, in the time of the server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fresh {
    /// The set has everything up to here.
    pub through: Cursor,
    /// Every revocation that was acknowledged before this moment is in the set. The Unix epoch while
    /// the server has proved nothing.
    pub as_of: Timestamp,
    /// The server's clock when this arrived, as far as can be known here: when it was sent, or
    /// later where earlier frames of the stream say so. A frame that was held up on its way looks
    /// as old as it is.
    pub sent: Timestamp,
    /// When this arrived. The server's present is `sent` plus what has passed since.
    pub received: Instant,
}

impl Fresh {
    /// The server's clock at `now`, as far as can be known here. Never later than it is.
    pub fn server_time(&self, now: Instant) -> Timestamp {
        self.sent.after(now.saturating_duration_since(self.received))
    }
}

/// Why a stream ended. It is tried again in any case.
#[derive(Clone, Debug)]
pub enum Lost {
    /// The server said that it would close it.
    GoAway(v1::GoAwayReason),
    /// It ended or failed.
    Status(Code, String),
    /// No replica could be reached.
    Connect(String),
    /// Nothing came for three heartbeats.
    Silent,
    /// The server's set is another one: it is fetched anew, the old one stays in force meanwhile.
    DigestMismatch,
    /// The replica knows less than is known here; what is known stays in force.
    Behind,
    /// The replica goes on, but has not said for long that what it has is fresh: it is cut off from
    /// its store.
    Frozen,
    /// All that came for long was late, by what the first frames said of the server's clock: that clock
    /// has stood still meanwhile, as it does when it is set back. A new stream tells what it shows.
    Late,
    /// The server said something that makes no sense here.
    Protocol(&'static str),
}

/// What happened. The set has it already.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    /// The stream has begun.
    Connected {
        /// Its name on the server.
        watch_id: String,
        /// Whether it goes on from the cursor.
        resumed: bool,
    },
    /// The set is complete and in force.
    Synced(Fresh),
    /// New revocations.
    Batch(Vec<v1::Revocation>, Fresh),
    /// Nothing new.
    Heartbeat(Fresh),
    /// The whole set of published keys.
    KeySet(v1::KeySet),
    /// The log is another one; the old set stays in force until the next `Synced`.
    Reset,
    /// The stream is gone. The set stays in force, growing stale.
    Disconnected {
        /// Why.
        lost: Lost,
        /// When it is tried again.
        retry_in: Duration,
    },
    /// The server will not have this caller, or not this request. Asking again, with
    /// [`Watch::next`](super::Watch::next), is for who has something new to say.
    Refused(Code, String),
}
