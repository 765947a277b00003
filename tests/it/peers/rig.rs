//! Replicas over one memory: feeds alone, on a clock of tokio that tests may pause, and whole servers.

use std::sync::Arc;
use std::time::Duration;

use avouch::app::{Options, StoreOptions};
use avouch::client::watch::{Authorization, Watch, WatchEvent, WatchSettings};
use avouch::domain::clock::{Clock, ManualClock};
use avouch::domain::entropy::{Entropy, SeededEntropy};
use avouch::domain::event::Entry;
use avouch::domain::ids::LogId;
use avouch::feed::subscription::{Item, Subscription};
use avouch::feed::{Feed, FeedSettings, Subscribe};
use avouch::grpc::frame::BatchEncoder;
use avouch::pb::v1 as pb;
use avouch::store::Store;
use avouch::store::ledger::Ledger;
use avouch::store::memory::{SharedMemory, SharedReplica};
use tokio::sync::watch;
use tonic::transport::Endpoint;

use crate::harness::{self, NOW, Server, options};
use crate::support::world;

pub(crate) const LOG: LogId = LogId::from_bytes([9; 16]);

/// One replica without a server.
pub(crate) struct Replica {
    pub(crate) line: SharedReplica,
    pub(crate) store: Arc<Ledger<SharedReplica>>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) feed: Arc<Feed>,
    entropy: Arc<dyn Entropy>,
}

impl Replica {
    pub(crate) async fn join(memory: &SharedMemory, seed: u64) -> Self {
        Self::at(memory, seed, ManualClock::new(NOW)).await
    }

    pub(crate) async fn at(memory: &SharedMemory, seed: u64, clock: ManualClock) -> Self {
        let line = memory.replica();
        let store = Arc::new(Ledger::new(line.clone()));
        let clock = Arc::new(clock);
        let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(seed));
        let feed = Feed::join(
            Arc::clone(&store) as Arc<dyn Store>,
            Arc::clone(&clock) as Arc<dyn Clock>,
            Arc::clone(&entropy),
            Arc::new(BatchEncoder),
            FeedSettings::default(),
        );
        let feed = feed.await.expect("it joins");
        Self { line, store, clock, feed, entropy }
    }

    /// Revokes some token.
    pub(crate) async fn revoke(&self) -> Entry {
        let id = self.entropy.token_id();
        world::revoke(&*self.store, id, "shop", "api", self.clock.now()).await
    }

    /// Somebody who watches here and acknowledges when asked; when not `acks`, never.
    pub(crate) async fn watcher(&self, acks: bool) -> Watcher {
        let mut subscription = self.feed.subscribe(world::subscribe()).await.expect("it watches");
        let (synced, mut is_synced) = watch::channel(false);
        let feed = Arc::clone(&self.feed);
        let task = tokio::spawn(async move { pump(&feed, &mut subscription, acks, &synced).await });
        is_synced.wait_for(|synced| *synced).await.expect("it goes on");
        Watcher(task)
    }

    /// Waits until the others know how many watch here.
    pub(crate) async fn told(&self, by: &Self, watchers: u32) {
        while by
            .feed
            .replicas()
            .expect("there may be others")
            .values()
            .all(|it| it.watchers != watchers)
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Ends with this.
pub(crate) struct Watcher(tokio::task::JoinHandle<()>);

impl Watcher {
    /// Goes away, as a connection that broke.
    pub(crate) async fn leave(self) {
        self.0.abort();
        _ = self.0.await;
    }
}

async fn pump(
    feed: &Feed,
    subscription: &mut Subscription,
    acks: bool,
    synced: &watch::Sender<bool>,
) {
    let mut id = String::new();
    let owner = Subscribe { ..world::subscribe() }.owner;
    while let Ok(Some(item)) = subscription.next().await {
        match item {
            Item::Start { watch_id, .. } => id = watch_id,
            Item::Synced(_) => _ = synced.send_replace(true),
            Item::AckRequest(through) if acks => feed.ack(&id, &owner, through),
            _ => {}
        }
    }
}

/// Whole servers over one memory, with clocks of their own.
pub(crate) struct Fleet {
    pub(crate) servers: Vec<Server>,
    pub(crate) lines: Vec<SharedReplica>,
    pub(crate) memory: SharedMemory,
}

impl Fleet {
    pub(crate) async fn of(count: usize) -> Self {
        Self::with(count, |_| {}).await
    }

    /// With other options.
    pub(crate) async fn with(count: usize, change: impl Fn(&mut Options)) -> Self {
        let mut fleet =
            Self { servers: Vec::new(), lines: Vec::new(), memory: SharedMemory::new(LOG) };
        for _ in 0..count {
            fleet.add(&change).await;
        }
        fleet
    }

    async fn add(&mut self, change: impl Fn(&mut Options)) {
        let line = self.memory.replica();
        let mut options = options(StoreOptions::Shared(line.clone()));
        change(&mut options);
        self.servers.push(Server::with(options, Arc::new(ManualClock::new(NOW))).await);
        self.lines.push(line);
    }
}

/// A watcher over the wire, at one server or at several.
pub(crate) fn follow(servers: &[&Server], token: &str) -> Watch {
    let endpoint =
        |server: &&Server| Endpoint::from_shared(format!("http://{}", server.grpc)).expect("a URL");
    let value = harness::bearer((), token).metadata().get("authorization").cloned();
    let authorization: Authorization = Arc::new(move || value.clone());
    let mut settings = WatchSettings::new(servers.iter().map(endpoint).collect());
    settings.heartbeat = Duration::from_millis(200);
    settings.authorization = Some(authorization);
    Watch::new(settings, Arc::new(SeededEntropy::new(7)))
}

/// Follows until the set is complete, and goes on in the background.
pub(crate) async fn keep_following(mut watch: Watch) -> tokio::task::JoinHandle<()> {
    while !matches!(watch.next().await, WatchEvent::Synced(_)) {}
    tokio::spawn(async move {
        loop {
            watch.next().await;
        }
    })
}

/// A request to take everything of a client back that waits this long.
pub(crate) fn waiting(
    client: &pb::ClientAuthentication,
    target: pb::revoke_request::Target,
    seconds: i64,
) -> pb::RevokeRequest {
    pb::RevokeRequest {
        client: Some(client.clone()),
        target: Some(target),
        wait: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..Default::default()
    }
}
