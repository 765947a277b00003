//! What the parts record in as they work. The rest they count themselves, and it is read when
//! somebody scrapes.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use super::labels::{Level, LevelLabels};
use super::register::Register;
use super::{Count, GROUP_BUCKETS, latency};

/// What the hashing threads record in.
#[derive(Clone, Debug)]
pub struct HashRecorder {
    wait: Histogram,
    run: Histogram,
}

impl Default for HashRecorder {
    fn default() -> Self {
        Self { wait: latency(), run: latency() }
    }
}

impl HashRecorder {
    pub(super) fn register(r: &mut Register<'_>) -> Self {
        Self {
            wait: r.made_in_seconds(
                "password_hash_wait",
                "Time that a password waited to be hashed",
                latency(),
            ),
            run: r.made_in_seconds(
                "password_hash_run",
                "Time that hashing a password took",
                latency(),
            ),
        }
    }

    /// A password waited so long.
    pub fn waited(&self, time: Duration) {
        self.wait.observe(time.as_secs_f64());
    }

    /// Hashing one took so long.
    pub fn ran(&self, time: Duration) {
        self.run.observe(time.as_secs_f64());
    }
}

/// What the store records in.
#[derive(Clone, Debug)]
pub struct StoreRecorder {
    commit: Histogram,
    changes: Histogram,
    sync: Histogram,
}

impl Default for StoreRecorder {
    fn default() -> Self {
        Self { commit: latency(), changes: Histogram::new(GROUP_BUCKETS), sync: latency() }
    }
}

impl StoreRecorder {
    pub(super) fn register(r: &mut Register<'_>) -> Self {
        Self {
            commit: r.made_in_seconds(
                "store_commit",
                "Time of a state change from being asked for until it is durable",
                latency(),
            ),
            changes: r.made(
                "store_group_changes",
                "State changes in one group",
                Histogram::new(GROUP_BUCKETS),
            ),
            sync: r.made_in_seconds(
                "store_sync",
                "Time of writing and syncing one group",
                latency(),
            ),
        }
    }

    /// A state change was durable so long after it was asked for.
    pub fn committed(&self, time: Duration) {
        self.commit.observe(time.as_secs_f64());
    }

    /// A group of so many changes was written and synced in so long.
    pub fn group(&self, changes: u32, sync: Duration) {
        self.changes.observe(f64::from(changes));
        self.sync.observe(sync.as_secs_f64());
    }
}

/// What the feed records in.
#[derive(Clone, Debug)]
pub struct FeedRecorder {
    pub(super) revocations: Family<LevelLabels, Count>,
    propagation: Histogram,
    frames: Count,
    ack: Histogram,
    ack_timeouts: Count,
}

impl Default for FeedRecorder {
    fn default() -> Self {
        Self {
            revocations: Family::default(),
            propagation: latency(),
            frames: Counter::default(),
            ack: latency(),
            ack_timeouts: Counter::default(),
        }
    }
}

impl FeedRecorder {
    pub(super) fn register(r: &mut Register<'_>) -> Self {
        Self {
            revocations: r.number("revocations", "Revocations, by level"),
            propagation: r.made_in_seconds(
                "revocation_propagation",
                "Time from a revocation being durable until a watcher's stream had it, per watcher",
                latency(),
            ),
            frames: r.number("watcher_frames", "Frames that streams took"),
            ack: r.made_in_seconds(
                "revocation_ack",
                "Time that a Revoke waited until every watcher had applied it",
                latency(),
            ),
            ack_timeouts: r.number(
                "revocation_ack_timeouts",
                "Waits that ended before every watcher had applied the revocation",
            ),
        }
    }

    /// A revocation is durable.
    pub fn revoked(&self, level: Level) {
        self.revocations.get_or_create(&LevelLabels { level }).inc();
    }

    /// A stream has what was published so long ago.
    pub fn propagated(&self, time: Duration) {
        self.propagation.observe(time.as_secs_f64());
    }

    /// A stream took a frame.
    pub fn frame(&self) {
        self.frames.inc();
    }

    /// A wait for the watchers ended after `time`, with all of them or without.
    pub fn waited(&self, complete: bool, time: Duration) {
        if complete {
            self.ack.observe(time.as_secs_f64());
        } else {
            self.ack_timeouts.inc();
        }
    }
}
