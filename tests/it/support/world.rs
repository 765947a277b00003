//! A feed over a store in memory, with a clock that tests move.

use std::sync::Arc;
use std::time::Duration;

use avouch::domain::clock::{ManualClock, Timestamp};
use avouch::domain::entropy::{Entropy, SeededEntropy};
use avouch::domain::event::{Cause, Entry, Initiator, Reason, Target};
use avouch::domain::ids::{ClientId, LogId, Revision, SubjectId, TokenId};
use avouch::domain::scope::Names;
use avouch::feed::subscription::{Item, Subscription};
use avouch::feed::{Feed, FeedSettings, Subscribe};
use avouch::grpc::frame::BatchEncoder;
use avouch::pb::v1;
use avouch::pb::v1::watch_revocations_response::Frame;
use avouch::store::fault::FaultEngine;
use avouch::store::ledger::Ledger;
use avouch::store::memory::MemoryEngine;
use avouch::store::{Level, Revoked, Store};
use prost::Message as _;

pub(crate) const LOG: LogId = LogId::from_bytes([7; 16]);
pub(crate) const START: Timestamp = Timestamp::from_secs(1_800_000_000);
pub(crate) const CAUSE: Cause = Cause { reason: Reason::Logout, initiator: Initiator::User };

pub(crate) struct World {
    pub(crate) store: Arc<Ledger<FaultEngine<MemoryEngine>>>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) entropy: Arc<dyn Entropy>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::of(LOG)
    }

    pub(crate) fn of(log_id: LogId) -> Self {
        Self {
            store: Arc::new(Ledger::new(FaultEngine::new(MemoryEngine::new(log_id)))),
            clock: Arc::new(ManualClock::new(START)),
            entropy: Arc::new(SeededEntropy::new(42)),
        }
    }

    pub(crate) fn feed(&self, settings: FeedSettings) -> Arc<Feed> {
        let store = Arc::clone(&self.store) as Arc<dyn Store>;
        let clock = Arc::clone(&self.clock);
        Feed::start(store, clock, Arc::clone(&self.entropy), Arc::new(BatchEncoder), settings)
            .unwrap()
    }

    /// Revokes a token that lives five minutes, of this client and audience.
    pub(crate) async fn revoke_of(&self, client: &str, audience: &str) -> Entry {
        let now = avouch::domain::clock::Clock::now(&*self.clock);
        revoke(&*self.store, self.entropy.token_id(), client, audience, now).await
    }

    pub(crate) async fn revoke(&self) -> Entry {
        self.revoke_of("shop", "api").await
    }

    pub(crate) async fn raise(&self, subject: &str) -> Entry {
        let now = avouch::domain::clock::Clock::now(&*self.clock);
        self.store.raise_epoch(Level::Subject(subject.parse().unwrap()), CAUSE, now).await.unwrap()
    }
}

pub(crate) async fn revoke(
    store: &dyn Store,
    id: TokenId,
    client: &str,
    audience: &str,
    now: Timestamp,
) -> Entry {
    let target = Target::Token {
        id,
        expires_at: now.after(Duration::from_secs(300)),
        client: client.parse::<ClientId>().unwrap(),
        subject: "ann".parse::<SubjectId>().unwrap(),
        audience: Names::new([audience]).unwrap(),
    };
    match store.revoke_token(target, CAUSE, now).await.unwrap() {
        Revoked::Now(entry) => entry,
        other => panic!("not revoked: {other:?}"),
    }
}

pub(crate) fn subscribe() -> Subscribe {
    Subscribe {
        heartbeat: Duration::from_secs(1),
        max_frame_bytes: 256 * 1024,
        subscriber: "pod".to_owned(),
        owner: "client sidecar".to_owned(),
        ..Subscribe::default()
    }
}

pub(crate) fn small_ring(entries: usize) -> FeedSettings {
    FeedSettings { ring_entries: entries, ..FeedSettings::default() }
}

/// The next item as the frame that a watcher gets.
pub(crate) async fn next(subscription: &mut Subscription) -> Frame {
    decode(subscription.next().await.unwrap().unwrap())
}

pub(crate) fn decode(item: Item) -> Frame {
    let bytes = avouch::grpc::frame::item(item);
    v1::WatchRevocationsResponse::decode(bytes).unwrap().frame.unwrap()
}

/// Reads up to `synced` and gives what came before it.
pub(crate) async fn until_synced(subscription: &mut Subscription) -> (Vec<Frame>, v1::Synced) {
    let mut before = Vec::new();
    loop {
        match next(subscription).await {
            Frame::Synced(synced) => return (before, synced),
            frame => before.push(frame),
        }
    }
}

/// The revisions in batches until the stream has shown everything up to `through`.
pub(crate) async fn revisions_until(
    subscription: &mut Subscription,
    through: Revision,
) -> Vec<u64> {
    let mut revisions = Vec::new();
    loop {
        if let Frame::Batch(batch) = next(subscription).await {
            revisions.extend(batch.revocations.iter().map(|it| it.revision));
            if batch.through.unwrap().revision >= through.0 {
                return revisions;
            }
        }
    }
}
