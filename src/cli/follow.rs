//! Follows the stream of revocations through reconnects. The one place in the command line that
//! knows the stream's frames; what it makes of them is `Update`.

use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::Instant;
use tonic::Code;

use super::args::Global;
use super::connection::Connection;
use super::failure::Failure;
use crate::domain::clock::{Clock as _, SystemClock, Timestamp};
use crate::pb::v1::watch_revocations_response::Frame;
use crate::pb::v1::{
    AckRevocationsRequest, Cursor, Revocation, RevocationFilter, SnapshotChunk,
    WatchRevocationsRequest, WatchRevocationsResponse,
};

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// What became known.
#[derive(Debug)]
pub(super) enum Update {
    /// Part of what was revoked before; so many entries.
    Known(usize),
    /// Everything up to a revision is known.
    Synced(u64),
    /// New revocations, and when they arrived.
    Revoked(Vec<Revocation>, Timestamp),
    /// Nothing new up to a revision.
    Quiet(u64),
    /// The set starts anew.
    Reset,
    /// The connection is lost, for this reason; it is being made again.
    Lost(String),
}

/// Calls `tell` with everything that becomes known, for ever. Ends when `tell` fails, or when the
/// server says that the caller may not watch.
pub(super) async fn follow(
    global: &Global,
    filter: RevocationFilter,
    subscriber_id: String,
    mut tell: impl FnMut(Update) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let clock = SystemClock::default();
    let mut request = WatchRevocationsRequest {
        filter: Some(filter),
        subscriber_id,
        ..WatchRevocationsRequest::default()
    };
    let mut backoff = FIRST_BACKOFF;
    let mut connected_once = false;
    loop {
        let began = Instant::now();
        let failure = match once(global, &mut request, &clock, &mut tell).await {
            Ok(()) => Failure::Other("the server closed the stream".into()),
            Err(End::Told(failure)) => return Err(failure),
            Err(End::Lost(failure)) => failure,
        };
        let hopeless = matches!(
            failure.code(),
            Some(
                Code::InvalidArgument
                    | Code::PermissionDenied
                    | Code::Unauthenticated
                    | Code::Unimplemented
            )
        );
        connected_once |= request.resume_after.is_some();
        if hopeless || !connected_once || matches!(failure, Failure::Usage(_) | Failure::Secret(_))
        {
            return Err(failure);
        }
        tell(Update::Lost(failure.to_string()))?;
        if began.elapsed() > MAX_BACKOFF {
            backoff = FIRST_BACKOFF;
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

/// Why one stream ended.
enum End {
    /// Whoever is told wants no more.
    Told(Failure),
    /// The stream broke.
    Lost(Failure),
}

impl<E: Into<Failure>> From<E> for End {
    fn from(error: E) -> Self {
        Self::Lost(error.into())
    }
}

/// One stream to its end. Keeps the cursor in `request`, so that the next one resumes.
async fn once(
    global: &Global,
    request: &mut WatchRevocationsRequest,
    clock: &SystemClock,
    tell: &mut impl FnMut(Update) -> Result<(), Failure>,
) -> Result<(), End> {
    let connection = Connection::authenticated(global).await?;
    let call = connection.stream_request(request.clone());
    let mut stream = connection.revocations().watch_revocations(call).await?.into_inner();
    let mut watch_id = String::new();
    let mut patience = Duration::from_secs(3);
    loop {
        // A connection that is silent for three heartbeats is dead, whatever TCP says.
        let frame = tokio::time::timeout(patience, stream.next())
            .await
            .map_err(|_| End::Lost(Failure::Other("nothing heard for three heartbeats".into())))?;
        let Some(frame) = frame.transpose()? else { return Ok(()) };
        let arrived = clock.now();
        let WatchRevocationsResponse { frame: Some(frame) } = frame else { continue };
        let mut apply = |through: Option<Cursor>, update: Update| {
            tell(update).map_err(End::Told)?;
            // Only after it was applied, so that what was not is sent again.
            request.resume_after = through.or_else(|| request.resume_after.take());
            Ok::<(), End>(())
        };
        match frame {
            Frame::Start(start) => {
                watch_id = start.watch_id;
                let heartbeat = start.heartbeat_interval.and_then(|time| time.try_into().ok());
                patience = 3 * heartbeat.unwrap_or(Duration::from_secs(1));
            }
            Frame::Snapshot(chunk) => apply(None, Update::Known(count(&chunk)))?,
            Frame::Synced(synced) => {
                let revision = revision(synced.through.as_ref());
                apply(synced.through, Update::Synced(revision))?;
            }
            Frame::Batch(batch) => {
                apply(batch.through, Update::Revoked(batch.revocations, arrived))?;
            }
            Frame::Heartbeat(beat) => {
                let revision = revision(beat.through.as_ref());
                apply(beat.through, Update::Quiet(revision))?;
            }
            Frame::Reset(_) => apply(None, Update::Reset)?,
            Frame::AckRequest(_) => {
                // Frames are applied before the next is read, so everything asked for is.
                let applied = request.resume_after.clone();
                let ack = AckRevocationsRequest { watch_id: watch_id.clone(), applied };
                connection.revocations().ack_revocations(connection.request(ack)).await?;
            }
            Frame::GoAway(away) => {
                let wait = away.reconnect_after.and_then(|time| time.try_into().ok());
                let wait: Duration = wait.unwrap_or(FIRST_BACKOFF);
                tokio::time::sleep(wait.min(MAX_BACKOFF)).await;
                return Ok(());
            }
            Frame::KeySet(_) => {}
        }
    }
}

fn revision(cursor: Option<&Cursor>) -> u64 {
    cursor.map_or(0, |cursor| cursor.revision)
}

fn count(chunk: &SnapshotChunk) -> usize {
    chunk.revocations.len() + chunk.packed.iter().map(|packed| packed.keys.len()).sum::<usize>()
}
