//! Follows the stream of revocations for a command, with [`client::watch`](crate::client::watch):
//! gets a new token when the old one has expired, and gives up when there is no hope.

use std::sync::{Arc, Mutex, PoisonError};

use tonic::Code;
use tonic::metadata::{Ascii, MetadataValue};

use super::args::Global;
use super::connection::{Connection, endpoint};
use super::failure::Failure;
use crate::client::watch::{Lost, Watch, WatchEvent, WatchSettings};
use crate::crypto::OsEntropy;
use crate::domain::clock::{Clock as _, SystemClock, Timestamp};
use crate::pb::v1::{Revocation, RevocationFilter};

/// What became known.
#[derive(Debug)]
pub(super) enum Update {
    /// Everything up to a revision is known; so many entries are held.
    Synced(u64, usize),
    /// New revocations, and when they arrived.
    Revoked(Vec<Revocation>, Timestamp),
    /// Nothing new up to a revision.
    Quiet(u64),
    /// The set starts anew.
    Reset,
    /// The connection is lost, for this reason; it is being made again.
    Lost(String),
}

/// Calls `tell` with everything that becomes known, for ever. Ends when `tell` fails, when the
/// server says that the caller may not watch, or when it cannot be reached in the first place.
pub(super) async fn follow(
    global: &Global,
    filter: RevocationFilter,
    subscriber_id: String,
    mut tell: impl FnMut(Update) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let clock = SystemClock::default();
    let bearer: Arc<Mutex<Option<MetadataValue<Ascii>>>> = Arc::default();
    let set_bearer = |connection: &Connection| {
        *bearer.lock().unwrap_or_else(PoisonError::into_inner) = connection.bearer();
    };
    set_bearer(&Connection::authenticated(global).await?);
    let shown = Arc::clone(&bearer);
    let settings = WatchSettings {
        filter,
        subscriber_id,
        authorization: Some(Arc::new(move || {
            shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
        })),
        ..WatchSettings::new(vec![endpoint(global)?])
    };
    let mut watch = Watch::new(settings, Arc::new(OsEntropy));
    let mut connected = false;
    // A token that was good a moment ago has expired; one that was just made is refused for good.
    let mut token_is_new = true;
    loop {
        let event = watch.next().await;
        let arrived = clock.now();
        match event {
            WatchEvent::Connected { .. } => (connected, token_is_new) = (true, false),
            WatchEvent::Synced(fresh) => {
                let held = watch.view().load().len();
                tell(Update::Synced(fresh.through.revision.0, held))?;
            }
            WatchEvent::Batch(revocations, _) => tell(Update::Revoked(revocations, arrived))?,
            WatchEvent::Heartbeat(fresh) => tell(Update::Quiet(fresh.through.revision.0))?,
            WatchEvent::KeySet(_) => {}
            WatchEvent::Reset => tell(Update::Reset)?,
            WatchEvent::Disconnected { lost, .. } => {
                let why = describe(lost);
                if !connected {
                    return Err(Failure::Other(format!("cannot watch: {why}")));
                }
                tell(Update::Lost(why))?;
            }
            WatchEvent::Refused(Code::Unauthenticated, _) if !token_is_new => {
                set_bearer(&Connection::authenticated(global).await?);
                token_is_new = true;
            }
            WatchEvent::Refused(code, message) => {
                return Err(Failure::Other(format!("cannot watch: {code:?}: {message}")));
            }
        }
    }
}

fn describe(lost: Lost) -> String {
    match lost {
        Lost::GoAway(reason) => format!("the server goes away: {}", reason.as_str_name()),
        Lost::Status(code, message) => format!("{code:?}: {message}"),
        Lost::Connect(why) => format!("cannot connect: {why}"),
        Lost::Silent => "nothing heard for three heartbeats".to_owned(),
        Lost::DigestMismatch => "the set is not the server's; fetching it anew".to_owned(),
        Lost::Behind => "the replica knows less than is known here".to_owned(),
        Lost::Late => "the server's clock was set back, or the way to it became slow".to_owned(),
        Lost::Frozen => "the replica is cut off from its store".to_owned(),
        Lost::Protocol(what) => format!("the server does not make sense: {what}"),
    }
}
