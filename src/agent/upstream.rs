//! What the server claims, as a source of a feed, and its clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::time::Instant;

use super::lock;
use crate::client::watch::Fresh;
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::event::Entry;
use crate::domain::ids::Revision;
use crate::feed::{Proof, Source};
use crate::store::StoreError;

/// The server's clock, as far as can be known here. It goes on while the server is silent.
pub(super) struct UpstreamClock {
    fresh: Mutex<Fresh>,
    latest: AtomicU64,
}

impl UpstreamClock {
    pub(super) fn new(fresh: Fresh) -> Self {
        Self { fresh: Mutex::new(fresh), latest: AtomicU64::new(0) }
    }
}

impl Clock for UpstreamClock {
    fn now(&self) -> Timestamp {
        let now = lock(&self.fresh).server_time(Instant::now()).as_millis();
        Timestamp::from_millis(self.latest.fetch_max(now, Ordering::Relaxed).max(now))
    }
}

/// One log, as far as the server vouches for what was passed on.
pub(super) struct Upstream {
    clock: Arc<UpstreamClock>,
    proof: Mutex<Proof>,
}

const fn proof(fresh: Fresh) -> Proof {
    Proof { as_of: fresh.as_of, head: fresh.through.revision }
}

impl Upstream {
    pub(super) fn new(clock: Arc<UpstreamClock>, fresh: Fresh) -> Self {
        Self { clock, proof: Mutex::new(proof(fresh)) }
    }

    /// The server said so, and everything up to there was passed on.
    pub(super) fn renew(&self, fresh: Fresh) {
        *lock(&self.clock.fresh) = fresh;
        let mut known = lock(&self.proof);
        // Another replica may be behind the last one.
        if fresh.as_of >= known.as_of {
            *known = proof(fresh);
        }
    }
}

#[async_trait]
impl Source for Upstream {
    fn events_after(&self, _: Revision, _: usize) -> Result<Option<Vec<Entry>>, StoreError> {
        Ok(None)
    }

    /// What the server said last, however long ago: an agent that is cut off says so by an `as_of`
    /// that stands still.
    async fn prove(&self, _: Timestamp) -> Option<Proof> {
        Some(*lock(&self.proof))
    }
}
