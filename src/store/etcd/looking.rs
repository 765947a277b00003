//! Asks etcd every few seconds how it is doing, whether it is the one that it was, and how far it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::core::Core;
use super::pb::StatusResponse;
use super::raft::{self, Known, Look};
use super::seen;
use crate::domain::ids::LogId;

/// How often etcd is asked.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How old what is written of how far etcd is may get.
const MARK_EVERY: Duration = Duration::from_secs(60);

/// What is known of how far etcd is.
pub(super) struct Looking {
    log_id: LogId,
    known: Known,
    /// Since when this mark is the newest.
    since: Instant,
}

impl Looking {
    pub(super) fn new(core: &Core, log_id: LogId, known: Known, look: &Look) -> Self {
        core.note_status(&look.status);
        let looking = Self { log_id, known, since: Instant::now() };
        looking.keep(core);
        looking
    }

    /// For as long as the engine lives.
    pub(super) async fn go_on(mut self, core: Arc<Core>) {
        while core.failure().is_none() {
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                // Where the watch was cut, another etcd may be in its place.
                () = core.cut.notified() => {}
            }
            self.look(&core).await;
        }
    }

    async fn look(&mut self, core: &Core) {
        let (client, keys) = (&core.client, &core.keys);
        let look = match raft::prove(client, keys, Some(&self.known), core.deadline()).await {
            Ok(look) => look,
            Err(error) => return core.note(&error),
        };
        core.note_status(&look.status);
        let mark = self.known.mark;
        self.known.learn(&look);
        self.known.revision = client.seen().max(self.known.revision);
        if self.known.mark != mark {
            self.since = Instant::now();
        } else if look.mark.is_none() || self.since.elapsed() >= MARK_EVERY {
            match raft::mark(client, keys, &look, core.deadline()).await {
                Ok(Some(mark)) => {
                    self.known.mark = mark;
                    self.since = Instant::now();
                }
                Ok(None) => {}
                Err(error) => core.note(&error),
            }
        }
        self.keep(core);
    }

    fn keep(&self, core: &Core) {
        if let Some(path) = &core.settings.seen_file
            && let Err(error) = seen::write(path, self.log_id, &self.known)
        {
            tracing::warn!(path = %path.display(), %error, "how far etcd is cannot be written");
        }
    }
}

impl Core {
    fn note_status(&self, status: &StatusResponse) {
        let bytes = u64::try_from(status.db_size).unwrap_or_default();
        self.counters.db_bytes.store(bytes, Ordering::Relaxed);
        let low = status.errors.iter().any(|error| error.contains("NOSPACE"));
        self.counters.low_space.store(low, Ordering::Relaxed);
    }
}
