//! A stream in being, and how one begins.

use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use v1::revocation_service_client::RevocationServiceClient;

use super::WatchSettings;
use super::apply::write_cursor;
use crate::domain::clock::Timestamp;
use crate::domain::ids::Cursor;
use crate::pb::v1;

/// How many heartbeats may be missed: whatever TCP says, a stream that is silent for longer is dead.
const MISSED_HEARTBEATS: u32 = 3;
/// The longest that servers let anybody wait for a heartbeat.
const LONGEST_HEARTBEAT: Duration = Duration::from_secs(30);
/// How long a connection and the begin of a stream may take.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);
/// From when on a frame counts as late, by what earlier ones said of the server's clock.
const LATE: Duration = Duration::from_secs(1);
/// How long every frame may be late.
const LATE_FOR: Duration = Duration::from_secs(5);
/// Larger than the largest frame.
const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// A stream in being.
pub(super) struct Live {
    pub(super) client: RevocationServiceClient<Channel>,
    frames: Streaming<v1::WatchRevocationsResponse>,
    /// Its name on the server.
    pub(super) watch_id: String,
    /// How long a silence is one too many.
    pub(super) deadline: Duration,
    /// Since when somebody waits for the frame that has not come. Who gives up and waits anew, waits for
    /// the same one.
    waits_since: Option<Instant>,
    /// What the server said of its end, and how long to wait then.
    pub(super) go_away: Option<(v1::GoAwayReason, Duration)>,
    /// Whether it has caught up. Until then its frames may be old ones, which say neither what time it
    /// is nor how fresh the set is.
    pub(super) synced: bool,
    /// The frame that took the least time so far, by which the server's clock is told. Anew with
    /// each stream, so that the drift of the two clocks does not add up.
    pub(super) quickest: Option<(Timestamp, Instant)>,
    /// The newest `as_of`, and since when.
    as_of: Option<(Timestamp, Instant)>,
    /// Since when every frame was late, and the `as_of` of the first of them.
    late: Option<(Instant, Timestamp)>,
}

impl Live {
    /// Opens a stream over a connection of its own, that goes on after `cursor`.
    pub(super) async fn open(
        endpoint: Endpoint,
        settings: &WatchSettings,
        cursor: Option<Cursor>,
    ) -> Result<Self, Opening> {
        let opened = timeout(OPEN_DEADLINE, Self::try_open(endpoint, settings, cursor)).await;
        opened.unwrap_or_else(|_| Err(Opening::Connect("timed out".to_owned())))
    }

    async fn try_open(
        endpoint: Endpoint,
        settings: &WatchSettings,
        cursor: Option<Cursor>,
    ) -> Result<Self, Opening> {
        let channel = endpoint.connect().await.map_err(|error| {
            // The outer text is "transport error"; what helps is beneath.
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            Opening::Connect(cause.unwrap_or_else(|| error.to_string()))
        })?;
        let mut client =
            RevocationServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let request = settings.authorized(v1::WatchRevocationsRequest {
            resume_after: cursor.map(write_cursor),
            filter: Some(settings.filter.clone()),
            heartbeat_interval: prost_types::Duration::try_from(settings.heartbeat).ok(),
            max_frame_bytes: settings.max_frame_bytes,
            subscriber_id: settings.subscriber_id.clone(),
        });
        let frames = client.watch_revocations(request).await?.into_inner();
        Ok(Self {
            client,
            frames,
            watch_id: String::new(),
            deadline: silence(settings.heartbeat),
            waits_since: None,
            go_away: None,
            synced: false,
            quickest: None,
            as_of: None,
            late: None,
        })
    }

    /// The next frame, or the status that ended the stream. None after a silence that was one too many.
    /// Dropping the future loses nothing.
    pub(super) async fn read(&mut self) -> Option<Result<v1::WatchRevocationsResponse, Status>> {
        let since = *self.waits_since.get_or_insert_with(Instant::now);
        let read = timeout_at(since + self.deadline, self.frames.message()).await.ok()?;
        self.waits_since = None;
        Some(read.and_then(|frame| frame.ok_or_else(|| Status::ok(""))))
    }

    /// The stream is called `watch_id`, and its heartbeats come this often.
    pub(super) fn begin(&mut self, watch_id: &str, heartbeat: Option<Duration>) {
        watch_id.clone_into(&mut self.watch_id);
        if let Some(heartbeat) = heartbeat {
            self.deadline = silence(heartbeat);
        }
    }

    /// Since when `as_of` stands where it does. Whether it has moved goes with it.
    pub(super) fn stands(&mut self, as_of: Timestamp, received: Instant) -> (Instant, bool) {
        match self.as_of {
            Some((known, since)) if known >= as_of => (since, false),
            known => {
                self.as_of = Some((as_of, received));
                (received, known.is_some())
            }
        }
    }

    /// Whether this frame, and all others for long, came later than the server's clock explains, though
    /// it vouches for new things: what is taken for that clock here is ahead of it. As long as `as_of`
    /// stands this decides nothing, so that who is cut off does not seem fresh for having a clock that
    /// stands. Whoever could hold all frames up so long could cut the stream as well.
    pub(super) fn is_late(&mut self, by: Duration, as_of: Timestamp, received: Instant) -> bool {
        if by < LATE {
            self.late = None;
            return false;
        }
        let (since, first) = *self.late.get_or_insert((received, as_of));
        as_of > first && received.saturating_duration_since(since) >= LATE_FOR
    }

    /// The server's clock at `received`, when a frame says `sent`.
    pub(super) fn server_time(&mut self, sent: Timestamp, received: Instant) -> Timestamp {
        let known =
            self.quickest.map(|(sent, at)| sent.after(received.saturating_duration_since(at)));
        match known {
            Some(known) if known >= sent => known,
            Some(_) | None => {
                self.quickest = Some((sent, received));
                sent
            }
        }
    }
}

/// How long a silence is one too many, with heartbeats this far apart.
fn silence(heartbeat: Duration) -> Duration {
    heartbeat.min(LONGEST_HEARTBEAT) * MISSED_HEARTBEATS
}

/// Why a stream did not open.
pub(super) enum Opening {
    Connect(String),
    Status(Status),
}

impl From<Status> for Opening {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}
