//! Follows WatchRevocations for good: holds the live set, resumes where it was, and tells a dead
//! stream from a quiet one. Knows nothing of tokens and their verification.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use v1::revocation_service_client::RevocationServiceClient;
use v1::watch_revocations_response::Frame;

use crate::domain::clock::Timestamp;
use crate::domain::entropy::Entropy;
use crate::domain::ids::Cursor;
use crate::domain::view::View;
use crate::pb::v1;

mod apply;

use apply::{apply_chunk, apply_revocation, read_cursor};
pub(crate) use apply::{changed, moment};

/// The shortest and the longest wait before connecting again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How many heartbeats may be missed: whatever TCP says, a stream that is silent for longer is dead.
const MISSED_HEARTBEATS: u32 = 3;
/// How long a replica may say nothing of being fresh before another one is tried, if one is known, and
/// if what is behind the one address is not known. Doubled each time, up to the longest: when the store
/// is gone, nobody is better off elsewhere.
const FROZEN_AFTER: (Duration, Duration) = (Duration::from_millis(2_500), Duration::from_secs(10));
const LONGEST_FROZEN: Duration = Duration::from_secs(30);
/// The longest that servers let anybody wait for a heartbeat.
const LONGEST_HEARTBEAT: Duration = Duration::from_secs(30);
/// How often what has expired is dropped, at the most, when there are no heartbeats.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);
/// How long a connection, or an acknowledgement, may take.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
const ACK_DEADLINE: Duration = Duration::from_secs(1);
/// Larger than the largest frame.
const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// Gives the value of `authorization` for the next call.
pub type Authorization = Arc<dyn Fn() -> Option<MetadataValue<Ascii>> + Send + Sync>;

/// The set that is in force, put in place whole when another one takes over.
pub type SharedView = Arc<ArcSwap<View>>;

/// Serves the stream on to others.
pub trait Relay: Send + Sync + 'static {
    /// Takes a frame before the set has it. None when it cannot be understood.
    fn take(&self, frame: &Frame) -> Option<()>;

    /// Whether everybody who is served has applied everything up to `through`, as soon as that can be
    /// told.
    fn applied(&self, through: Cursor) -> BoxFuture<'static, bool>;
}

/// What to follow, and how.
#[derive(Clone)]
pub struct WatchSettings {
    /// The replicas. Each try takes the next, over a connection of its own.
    pub endpoints: Vec<Endpoint>,
    /// The replicas as they come and go, in place of `endpoints` as long as there are any
    /// ([`Replicas::endpoints`](crate::client::balance::Replicas::endpoints)).
    pub replicas: Option<tokio::sync::watch::Receiver<Arc<[Endpoint]>>>,
    /// What to see; nothing set for everything.
    pub filter: v1::RevocationFilter,
    /// How often to hear from the server.
    pub heartbeat: Duration,
    /// The most bytes in one frame; zero for the server's default.
    pub max_frame_bytes: u32,
    /// The name for metrics and logs on the server.
    pub subscriber_id: String,
    /// The credential, when it is not the certificate.
    pub authorization: Option<Authorization>,
    /// Told when the server does not take the credential any more, so that the next one is new
    /// ([`TokenSource::refused`](crate::client::token_source::TokenSource::refused)). Who revokes everything
    /// revokes the tokens of watchers, too.
    pub refused: Option<Arc<dyn Fn() + Send + Sync>>,
    /// The most entries to hold. What comes over it is left out, and the server has to be asked about
    /// tokens that it might concern ([`View::with_limit`]).
    pub max_entries: u64,
    /// Who serves the stream on, if anybody does.
    pub relay: Option<Arc<dyn Relay>>,
}

impl WatchSettings {
    /// Everything, from these replicas, with a heartbeat each second.
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        Self {
            endpoints,
            replicas: None,
            filter: v1::RevocationFilter::default(),
            heartbeat: Duration::from_secs(1),
            max_frame_bytes: 0,
            subscriber_id: String::new(),
            authorization: None,
            refused: None,
            max_entries: u64::MAX,
            relay: None,
        }
    }
}

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
    /// [`Watch::next`], is for who has something new to say.
    Refused(Code, String),
}

/// A stream in being.
struct Live {
    client: RevocationServiceClient<Channel>,
    frames: Streaming<v1::WatchRevocationsResponse>,
    watch_id: String,
    /// How long a silence is one too many.
    deadline: Duration,
    go_away: Option<(v1::GoAwayReason, Duration)>,
    /// Whether it has caught up. Until then its frames may be old ones, which say neither what time it
    /// is nor how fresh the set is.
    synced: bool,
    /// The frame that took the least time so far, by which the server's clock is told. Anew with
    /// each stream, so that the drift of the two clocks does not add up.
    quickest: Option<(Timestamp, Instant)>,
    /// The newest `as_of`, and since when.
    as_of: Option<(Timestamp, Instant)>,
}

impl Live {
    /// Since when `as_of` stands where it does. Whether it has moved goes with it.
    fn stands(&mut self, as_of: Timestamp, received: Instant) -> (Instant, bool) {
        match self.as_of {
            Some((known, since)) if known >= as_of => (since, false),
            known => {
                self.as_of = Some((as_of, received));
                (received, known.is_some())
            }
        }
    }

    /// The server's clock at `received`, when a frame says `sent`.
    fn server_time(&mut self, sent: Timestamp, received: Instant) -> Timestamp {
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

/// Follows the revocations of one avouch.
pub struct Watch {
    settings: WatchSettings,
    entropy: Arc<dyn Entropy>,
    view: SharedView,
    /// The set that is being fetched; the old one stays in force until this one is complete.
    pending: Option<View>,
    /// Everything up to here is applied.
    cursor: Option<Cursor>,
    fresh: Option<Fresh>,
    live: Option<Live>,
    /// Tries since the last complete set.
    tries: u32,
    /// Streams that were left because they were not fresh, since one was.
    frozen: u32,
    next_endpoint: usize,
    retry_at: Option<Instant>,
    /// When what has expired was dropped last.
    expired_at: Instant,
}

impl Watch {
    /// Follows as `settings` say; `entropy` spreads the retries.
    pub fn new(settings: WatchSettings, entropy: Arc<dyn Entropy>) -> Self {
        let view = Arc::new(ArcSwap::from_pointee(View::with_limit(settings.max_entries)));
        Self {
            settings,
            entropy,
            view,
            pending: None,
            cursor: None,
            fresh: None,
            live: None,
            tries: 0,
            frozen: 0,
            next_endpoint: 0,
            retry_at: None,
            expired_at: Instant::now(),
        }
    }

    /// The set. It is complete once [`Watch::fresh`] says something.
    pub fn view(&self) -> SharedView {
        Arc::clone(&self.view)
    }

    /// Everything up to here is applied.
    pub const fn cursor(&self) -> Option<Cursor> {
        self.cursor
    }

    /// How fresh the set is; none before the first `Synced`.
    pub const fn fresh(&self) -> Option<Fresh> {
        self.fresh
    }

    /// Waits for the next thing to happen. Dropping the future loses nothing.
    pub async fn next(&mut self) -> WatchEvent {
        loop {
            if let Some(at) = self.retry_at {
                tokio::time::sleep_until(at).await;
                self.retry_at = None;
            }
            let Some(live) = &mut self.live else {
                match self.connect().await {
                    Ok(live) => self.live = Some(live),
                    Err(event) => return event,
                }
                continue;
            };
            let read = tokio::time::timeout(live.deadline, live.frames.message()).await;
            let event = match read {
                Err(_) => self.lose(Lost::Silent),
                Ok(Err(status)) => self.ended(&status),
                Ok(Ok(None)) => self.ended(&Status::ok("")),
                Ok(Ok(Some(response))) => match self.take(response) {
                    Ok(None) => continue,
                    Ok(Some(event)) => event,
                    Err(lost) => self.lose(lost),
                },
            };
            return event;
        }
    }

    async fn connect(&mut self) -> Result<Live, WatchEvent> {
        let endpoint = self.next_endpoint();
        let Some(endpoint) = endpoint else {
            return Err(self.lose(Lost::Connect("there are no endpoints".to_owned())));
        };
        let opened = tokio::time::timeout(CALL_DEADLINE, self.open(endpoint)).await;
        match opened {
            Ok(Ok(live)) => Ok(live),
            Ok(Err(Opening::Connect(text))) => Err(self.lose(Lost::Connect(text))),
            Ok(Err(Opening::Status(status))) => Err(self.ended(&status)),
            Err(_) => Err(self.lose(Lost::Connect("timed out".to_owned()))),
        }
    }

    /// Leaves a replica that has said for too long nothing of being fresh.
    fn move_on(&mut self, as_of: Timestamp, received: Instant) -> Result<(), Lost> {
        let others = self.with_endpoints(<[Endpoint]>::len) > 1;
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

    fn with_endpoints<T>(&self, look: impl FnOnce(&[Endpoint]) -> T) -> T {
        let replicas =
            self.settings.replicas.as_ref().map(|replicas| Arc::clone(&replicas.borrow()));
        let known = replicas.as_deref().filter(|replicas| !replicas.is_empty());
        look(known.unwrap_or(&self.settings.endpoints))
    }

    fn next_endpoint(&mut self) -> Option<Endpoint> {
        let next = self.next_endpoint;
        self.next_endpoint = next.wrapping_add(1);
        self.with_endpoints(|endpoints| endpoints.get(next % endpoints.len().max(1)).cloned())
    }

    async fn open(&self, endpoint: Endpoint) -> Result<Live, Opening> {
        let channel = endpoint.connect().await.map_err(|error| {
            // The outer text is "transport error"; what helps is beneath.
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            Opening::Connect(cause.unwrap_or_else(|| error.to_string()))
        })?;
        let mut client =
            RevocationServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let request = self.authorized(v1::WatchRevocationsRequest {
            resume_after: self.cursor.map(|cursor| v1::Cursor {
                log_id: cursor.log_id.to_string(),
                revision: cursor.revision.0,
            }),
            filter: Some(self.settings.filter.clone()),
            heartbeat_interval: prost_types::Duration::try_from(self.settings.heartbeat).ok(),
            max_frame_bytes: self.settings.max_frame_bytes,
            subscriber_id: self.settings.subscriber_id.clone(),
        });
        let frames = client.watch_revocations(request).await?.into_inner();
        let deadline = self.settings.heartbeat.min(LONGEST_HEARTBEAT) * MISSED_HEARTBEATS;
        Ok(Live {
            client,
            frames,
            watch_id: String::new(),
            deadline,
            go_away: None,
            synced: false,
            quickest: None,
            as_of: None,
        })
    }

    fn authorized<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(value) = self.settings.authorization.as_ref().and_then(|value| value()) {
            request.metadata_mut().insert("authorization", value);
        }
        request
    }

    /// Takes a frame in.
    fn take(&mut self, response: v1::WatchRevocationsResponse) -> Result<Option<WatchEvent>, Lost> {
        let received = Instant::now();
        // A frame of a kind that a newer server knows says nothing about the set: those that do are
        // fixed.
        let Some(frame) = response.frame else { return Ok(None) };
        if let Some(relay) = &self.settings.relay {
            relay.take(&frame).ok_or(MALFORMED)?;
        }
        match frame {
            Frame::Start(start) => Ok(Some(self.begin(start))),
            Frame::KeySet(keys) => Ok(Some(WatchEvent::KeySet(keys))),
            Frame::Reset(_) => {
                self.pending = Some(self.empty_view());
                Ok(Some(WatchEvent::Reset))
            }
            Frame::Snapshot(chunk) => self.change(|view| apply_chunk(view, &chunk)).map(|()| None),
            Frame::Batch(batch) => {
                let revocations = batch.revocations;
                self.change(|view| {
                    revocations.iter().try_for_each(|it| apply_revocation(view, it))
                })?;
                let sent = batch.send_time.as_ref();
                let fresh = self.fresh_of(
                    batch.through.as_ref(),
                    batch.as_of_time.as_ref(),
                    sent,
                    received,
                )?;
                self.advance(fresh);
                // A stream that is never silent has no heartbeats.
                if received.saturating_duration_since(self.expired_at) >= EXPIRE_EVERY {
                    self.expire(fresh.sent, received);
                }
                Ok(Some(WatchEvent::Batch(revocations, fresh)))
            }
            Frame::Synced(synced) => {
                let sent = synced.send_time.as_ref();
                if let Some(live) = &mut self.live {
                    live.synced = true;
                    // What was told by frames of before is too long ago.
                    live.quickest = None;
                }
                let fresh = self.fresh_of(
                    synced.through.as_ref(),
                    synced.as_of_time.as_ref(),
                    sent,
                    received,
                )?;
                // What is in force may not go back in time: the replica lacks what is known here.
                let behind = self.fresh.is_some_and(|known| {
                    known.through.log_id == fresh.through.log_id
                        && known.through.revision > fresh.through.revision
                });
                if behind {
                    return Err(Lost::Behind);
                }
                if let Some(pending) = &self.pending {
                    self.verify(pending, synced.digest, fresh.sent)?;
                } else {
                    self.verify(&self.view.load(), synced.digest, fresh.sent)?;
                }
                if let Some(complete) = self.pending.take() {
                    self.view.store(Arc::new(complete));
                }
                self.tries = 0;
                self.cursor = Some(fresh.through);
                self.fresh = Some(fresh);
                Ok(Some(WatchEvent::Synced(fresh)))
            }
            Frame::Heartbeat(beat) => {
                let sent = beat.send_time.as_ref();
                let fresh =
                    self.fresh_of(beat.through.as_ref(), beat.as_of_time.as_ref(), sent, received)?;
                self.advance(fresh);
                self.expire(fresh.sent, received);
                self.verify(&self.view.load(), beat.digest, fresh.sent)?;
                self.move_on(fresh.as_of, received)?;
                Ok(Some(WatchEvent::Heartbeat(fresh)))
            }
            Frame::GoAway(go_away) => {
                let after = go_away.reconnect_after.and_then(|it| Duration::try_from(it).ok());
                if let Some(live) = &mut self.live {
                    let after = after.unwrap_or_default().min(BACKOFF.1);
                    live.go_away = Some((go_away.reason(), after));
                }
                Ok(None)
            }
            Frame::AckRequest(request) => {
                let through = request.through.as_ref();
                let through = through.and_then(read_cursor).ok_or(MALFORMED)?;
                self.acknowledge(through);
                Ok(None)
            }
        }
    }

    fn fresh_of(
        &mut self,
        through: Option<&v1::Cursor>,
        as_of: Option<&prost_types::Timestamp>,
        sent: Option<&prost_types::Timestamp>,
        received: Instant,
    ) -> Result<Fresh, Lost> {
        let mut fresh = fresh(through, as_of, sent, received)?;
        if let Some(live) = &mut self.live {
            fresh.sent = live.server_time(fresh.sent, received);
        }
        Ok(fresh)
    }

    fn begin(&mut self, start: v1::WatchStart) -> WatchEvent {
        // Without a resume a whole set follows. What is in force stays so until that is complete.
        self.pending = (!start.resumed).then(|| self.empty_view());
        if let Some(live) = &mut self.live {
            live.watch_id.clone_from(&start.watch_id);
            let heartbeat = start.heartbeat_interval.and_then(|it| Duration::try_from(it).ok());
            if let Some(heartbeat) = heartbeat {
                live.deadline = heartbeat.min(LONGEST_HEARTBEAT) * MISSED_HEARTBEATS;
            }
        }
        WatchEvent::Connected { watch_id: start.watch_id, resumed: start.resumed }
    }

    fn empty_view(&self) -> View {
        View::with_limit(self.settings.max_entries)
    }

    fn change(&self, change: impl FnOnce(&View) -> Option<()>) -> Result<(), Lost> {
        let changed = match &self.pending {
            Some(pending) => change(pending),
            None => change(&self.view.load()),
        };
        changed.ok_or(MALFORMED)
    }

    /// What was applied moves the cursor, never what was only received; and what is being fetched
    /// anew is not in force yet.
    fn advance(&mut self, fresh: Fresh) {
        if self.pending.is_none() {
            self.cursor = Some(fresh.through);
            if self.fresh.is_some() && self.live.as_ref().is_some_and(|live| live.synced) {
                self.fresh = Some(fresh);
            }
        }
    }

    fn expire(&mut self, now: Timestamp, received: Instant) {
        self.expired_at = received;
        self.view.load().expire(now);
    }

    /// Holds a set against what the server says of its own at `sent`.
    fn verify(
        &self,
        view: &View,
        digest: Option<v1::SetDigest>,
        sent: Timestamp,
    ) -> Result<(), Lost> {
        let Some(digest) = digest else { return Ok(()) };
        let Some(after) = digest.counted_after_time.as_ref().and_then(moment) else {
            return Ok(());
        };
        // What was counted then may be gone from either side by now.
        if view.is_partial() || after <= sent {
            return Ok(());
        }
        let own = view.digest(after);
        if own.count == digest.live_count && own.xor == digest.xor_of_keys {
            return Ok(());
        }
        Err(Lost::DigestMismatch)
    }

    fn acknowledge(&self, through: Cursor) {
        let (Some(live), Some(applied)) = (&self.live, self.cursor) else { return };
        if applied.log_id != through.log_id || applied.revision < through.revision {
            return;
        }
        let mut client = live.client.clone();
        let mut request = self.authorized(v1::AckRevocationsRequest {
            watch_id: live.watch_id.clone(),
            applied: Some(v1::Cursor {
                log_id: applied.log_id.to_string(),
                revision: applied.revision.0,
            }),
        });
        request.set_timeout(ACK_DEADLINE);
        let relay = self.settings.relay.clone();
        // Beside the stream, which goes on meanwhile. Whoever waits has a deadline of its own.
        tokio::spawn(async move {
            let served = match relay {
                Some(relay) => relay.applied(through).await,
                None => true,
            };
            if served {
                // Unless it arrives, whoever waits is told that it did not.
                let _acknowledged = client.ack_revocations(request).await;
            }
        });
    }

    fn ended(&mut self, status: &Status) -> WatchEvent {
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

    fn lose(&mut self, lost: Lost) -> WatchEvent {
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
        let longest =
            (BACKOFF.0 * 2_u32.saturating_pow(self.tries.saturating_add(1).min(10))).min(BACKOFF.1);
        let part = f64::from(u32::from_be_bytes(self.entropy.bytes())) / f64::from(u32::MAX);
        BACKOFF.0 + (longest - BACKOFF.0).mul_f64(part)
    }
}

/// Why a stream did not open.
enum Opening {
    Connect(String),
    Status(Status),
}

impl From<Status> for Opening {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

const MALFORMED: Lost = Lost::Protocol("a frame could not be understood");

fn fresh(
    through: Option<&v1::Cursor>,
    as_of: Option<&prost_types::Timestamp>,
    sent: Option<&prost_types::Timestamp>,
    received: Instant,
) -> Result<Fresh, Lost> {
    Ok(Fresh {
        through: through.and_then(read_cursor).ok_or(MALFORMED)?,
        as_of: as_of.and_then(moment).unwrap_or_default(),
        sent: sent.and_then(moment).ok_or(MALFORMED)?,
        received,
    })
}
