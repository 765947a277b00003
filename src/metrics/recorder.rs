//! What the parts record in as they work. The rest they count themselves, and it is read when
//! somebody scrapes.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use super::labels::{Level, LevelLabels};
use super::{Count, GROUP_BUCKETS, latency};

/// What the hashing threads record in.
#[derive(Clone, Debug)]
pub struct HashRecorder {
    pub(super) wait: Histogram,
    pub(super) run: Histogram,
}

impl Default for HashRecorder {
    fn default() -> Self {
        Self { wait: latency(), run: latency() }
    }
}

impl HashRecorder {
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
    pub(super) commit: Histogram,
    pub(super) changes: Histogram,
    pub(super) sync: Histogram,
}

impl Default for StoreRecorder {
    fn default() -> Self {
        Self { commit: latency(), changes: Histogram::new(GROUP_BUCKETS), sync: latency() }
    }
}

impl StoreRecorder {
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
    pub(super) propagation: Histogram,
    pub(super) frames: Count,
    pub(super) ack: Histogram,
    pub(super) ack_timeouts: Count,
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
