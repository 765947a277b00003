//! What becomes of a stream that ended, and where the next one goes.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use super::{LONGEST_PAUSE, Lost, Watch, WatchEvent};
use crate::domain::clock::Timestamp;
use crate::pb::v1;

/// How long a try waits for the replicas to be found.
const FOUND_WITHIN: Duration = Duration::from_secs(5);
/// The shortest wait before connecting again.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
/// How long a replica may say nothing of being fresh before another one is tried, if one is known, and
/// if what is behind the one address is not known. Doubled each time, up to the longest: when the store
/// is gone, nobody is better off elsewhere.
const FROZEN_AFTER: (Duration, Duration) = (Duration::from_millis(2_500), Duration::from_secs(10));
const LONGEST_FROZEN: Duration = Duration::from_secs(30);

impl Watch {
    /// Looks at the replicas that were found, or else at the endpoints that were named, and at the number of
    /// the one to begin with.
    fn with_endpoints<T>(&self, look: impl FnOnce(&[Endpoint], usize) -> T) -> T {
        let found = self.settings.replicas.as_ref().map(|replicas| Arc::clone(&replicas.borrow()));
        match found.filter(|replicas| !replicas.is_empty()) {
            Some(replicas) => look(&replicas, self.first_replica),
            None => look(&self.settings.endpoints, 0),
        }
    }

    /// Where to try next. Waits a while for the first that there is.
    pub(super) async fn endpoint(&mut self) -> Option<Endpoint> {
        let there_are = |it: &Arc<[Endpoint]>| !it.is_empty();
        if self.settings.endpoints.is_empty()
            && let Some(replicas) = &mut self.settings.replicas
        {
            // After it there are some, or nobody looks for them any more.
            drop(timeout(FOUND_WITHIN, replicas.wait_for(there_are)).await);
        }
        self.next_endpoint()
    }

    fn next_endpoint(&mut self) -> Option<Endpoint> {
        let next = self.next_endpoint;
        self.next_endpoint = next.wrapping_add(1);
        self.with_endpoints(|endpoints, first| {
            endpoints.get(first.wrapping_add(next) % endpoints.len().max(1)).cloned()
        })
    }

    /// Leaves a replica that has said for too long nothing of being fresh.
    pub(super) fn move_on(&mut self, as_of: Timestamp, received: Instant) -> Result<(), Lost> {
        let others = self.with_endpoints(|endpoints, _| endpoints.len()) > 1;
        let Some(live) = &mut self.live else { return Ok(()) };
        let (since, moved) = live.stands(as_of, received);
        if moved {
            self.frozen = 0;
        }
        let first = if others { FROZEN_AFTER.0 } else { FROZEN_AFTER.1 };
        let doubled = first.saturating_mul(2_u32.saturating_pow(self.frozen.min(10)));
        // With slow heartbeats it moves as slowly. The deadline is three of them.
        let patience = doubled.min(LONGEST_FROZEN).max(live.deadline);
        if received.saturating_duration_since(since) < patience {
            return Ok(());
        }
        self.frozen = self.frozen.saturating_add(1);
        Err(Lost::Frozen)
    }

    /// The stream ended with this status, or was not to be had.
    pub(super) fn ended(&mut self, status: &Status) -> WatchEvent {
        let refused = matches!(
            status.code(),
            Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument
        );
        let reason = self.live.as_ref().and_then(|live| live.go_away).map(|(reason, _)| reason);
        let went_away = reason.is_some();
        let credential_ended = reason == Some(v1::GoAwayReason::CredentialExpiring)
            || status.code() == Code::Unauthenticated;
        if let Some(told) = self.settings.refused.as_ref().filter(|_| credential_ended) {
            told();
        }
        if refused && !went_away {
            self.forget_stream();
            self.tries = self.tries.saturating_add(1);
            self.retry_at = Some(Instant::now() + self.backoff());
            return WatchEvent::Refused(status.code(), status.message().to_owned());
        }
        self.lose(Lost::Status(status.code(), status.message().to_owned()))
    }

    /// Leaves the stream and says when the next is tried.
    pub(super) fn lose(&mut self, lost: Lost) -> WatchEvent {
        if matches!(lost, Lost::DigestMismatch) {
            // Without a cursor the next stream brings the whole set; this one stays in force until then.
            self.cursor = None;
        }
        let go_away = self.live.as_mut().and_then(|live| live.go_away.take());
        self.forget_stream();
        let (lost, retry_in) = match go_away {
            Some((reason, after)) => (Lost::GoAway(reason), after),
            None => {
                let wait = self.backoff();
                self.tries = self.tries.saturating_add(1);
                (lost, wait)
            }
        };
        self.retry_at = Some(Instant::now() + retry_in);
        WatchEvent::Disconnected { lost, retry_in }
    }

    fn forget_stream(&mut self) {
        self.live = None;
        self.pending = None;
    }

    /// Full jitter: anything between the shortest wait and one that doubles with each try.
    fn backoff(&self) -> Duration {
        let longest = (SHORTEST_PAUSE * 2_u32.saturating_pow(self.tries.saturating_add(1).min(10)))
            .min(LONGEST_PAUSE);
        let part = f64::from(u32::from_be_bytes(self.entropy.bytes())) / f64::from(u32::MAX);
        SHORTEST_PAUSE + (longest - SHORTEST_PAUSE).mul_f64(part)
    }
}
