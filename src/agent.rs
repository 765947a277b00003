//! The node agent: follows the revocations of one avouch and serves them on to whoever runs beside it,
//! so that a server sees nodes and not pods.
//!
//! Cursors are the server's, and so is the time: the agent claims nothing that the server did not. It
//! knows no listeners and no tokens.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::client::watch::{Fresh, SharedView, Watch, WatchEvent, WatchSettings, moment};
use crate::domain::entropy::Entropy;
use crate::domain::ids::{Cursor, Revision};
use crate::feed::{Encoder, Feed, FeedSettings, Known, WatchError};
use crate::grpc::watch::CurrentFeed;
use crate::pb::v1;

mod neighbour;
mod read;
mod relay;
mod upstream;

pub use neighbour::Neighbours;
use relay::{Building, Relaying};
use upstream::{Upstream, UpstreamClock};

/// How an agent behaves.
pub struct AgentSettings {
    /// What it follows. A filter would leave its neighbours without what they need, so it has none.
    pub watch: WatchSettings,
    /// How it serves.
    pub feed: FeedSettings,
}

/// How an agent is doing.
#[derive(Clone, Debug, Default)]
pub struct AgentStatus {
    /// Whether a complete set is served.
    pub synced: bool,
    /// Whether the stream from the server is there.
    pub connected: bool,
    /// Everything up to here is passed on.
    pub cursor: Option<Cursor>,
    /// How long ago the moment was up to which all revocations are known.
    pub age: Option<Duration>,
    /// How long the newest revocation took from its commit until it was here.
    pub lag: Option<Duration>,
    /// How many revocations are held.
    pub entries: usize,
    /// What they take, in bytes.
    pub bytes: usize,
    /// Who watches here.
    pub neighbours: usize,
    /// How many revisions the last of them is behind.
    pub behind: u64,
    /// Events that are held for those who resume.
    pub ring_entries: usize,
    /// About what they take, in bytes.
    pub ring_bytes: usize,
    /// Neighbours that were cut because they took nothing.
    pub cut: u64,
    /// Sets that were fetched whole.
    pub snapshots: u64,
    /// Why the stream was lost last.
    pub lost: Option<String>,
}

/// Why the agent cannot have the whole set. Half a set is worse than none: what it lacks would be good
/// again.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unfit {
    /// There are more revocations than it may hold.
    #[error("there are more revocations than {0} entries have room for; raise --max-entries")]
    Full(u64),
    /// The server does not show it everything.
    #[error(
        "the agent's credentials may not watch everything; grant its client the right `watch` without an audience, a client or a subject"
    )]
    Limited,
}

/// What the task that follows, the neighbours' calls and the operators look at.
struct Inner {
    relaying: Arc<Relaying>,
    entropy: Arc<dyn Entropy>,
    encoder: Arc<dyn Encoder>,
    feed_settings: FeedSettings,
    max_entries: u64,
    view: SharedView,
    upstream: Mutex<Option<Arc<Upstream>>>,
    fresh: Mutex<Option<Fresh>>,
    synced: watch::Sender<bool>,
    unfit: watch::Sender<Option<Unfit>>,
    draining: AtomicBool,
    connected: AtomicBool,
    snapshots: AtomicU64,
    cut: AtomicU64,
    /// In milliseconds; `u64::MAX` while there is none.
    lag: AtomicU64,
    lost: Mutex<Option<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Follows one avouch and has its revocations for others.
pub struct Agent {
    inner: Arc<Inner>,
    task: tokio::task::AbortHandle,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agent {
    /// Begins to follow. Must be called in a tokio runtime.
    pub fn start(
        settings: AgentSettings,
        entropy: Arc<dyn Entropy>,
        encoder: Arc<dyn Encoder>,
    ) -> Self {
        let relaying = Arc::new(Relaying::default());
        let max_entries = settings.watch.max_entries;
        let watch = WatchSettings {
            filter: v1::RevocationFilter::default(),
            relay: Some(Arc::clone(&relaying) as Arc<dyn crate::client::watch::Relay>),
            ..settings.watch
        };
        let watch = Watch::new(watch, Arc::clone(&entropy));
        let inner = Arc::new(Inner {
            relaying,
            entropy,
            encoder,
            feed_settings: settings.feed,
            max_entries,
            view: watch.view(),
            upstream: Mutex::default(),
            fresh: Mutex::default(),
            synced: watch::Sender::new(false),
            unfit: watch::Sender::new(None),
            draining: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            snapshots: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            lag: AtomicU64::new(u64::MAX),
            lost: Mutex::default(),
        });
        let task = tokio::spawn(follow(watch, Arc::clone(&inner))).abort_handle();
        Self { inner, task }
    }

    /// What neighbours are served, as it is when they call.
    pub fn feed(&self) -> CurrentFeed {
        let inner = Arc::clone(&self.inner);
        Arc::new(move || inner.feed())
    }

    /// Waits for the first complete set.
    pub async fn synced(&self) {
        let mut synced = self.inner.synced.subscribe();
        let _synced = synced.wait_for(|synced| *synced).await;
    }

    /// Waits until it turns out that it cannot have the whole set. It is of no use from then on.
    pub async fn unfit(&self) -> Unfit {
        let mut unfit = self.inner.unfit.subscribe();
        match unfit.wait_for(Option::is_some).await.map(|why| *why) {
            Ok(Some(why)) => why,
            // The sender is held here.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Ends every neighbour's stream with a go-away and begins no new one.
    pub fn drain(&self) {
        self.inner.draining.store(true, Ordering::Release);
        if let Some(feed) = self.inner.relaying.feed() {
            feed.drain();
        }
    }

    /// How it is doing.
    pub fn status(&self) -> AgentStatus {
        let inner = &self.inner;
        let feed = inner.relaying.feed();
        let stats = feed.as_ref().map(|feed| feed.stats());
        let watchers = feed.as_ref().map(|feed| feed.watchers()).unwrap_or_default();
        let fresh = *lock(&inner.fresh);
        let view = inner.view.load();
        let lag = inner.lag.load(Ordering::Relaxed);
        AgentStatus {
            synced: feed.is_some(),
            connected: inner.connected.load(Ordering::Relaxed),
            cursor: feed.as_ref().map(|feed| feed.head()),
            age: fresh.map(|fresh| fresh.server_time(Instant::now()).since(fresh.as_of)),
            lag: (lag != u64::MAX).then(|| Duration::from_millis(lag)),
            entries: view.len(),
            bytes: view.bytes(),
            neighbours: watchers.len(),
            behind: watchers.iter().map(|watcher| watcher.lag).max().unwrap_or(0),
            ring_entries: stats.map_or(0, |stats| stats.ring_entries),
            ring_bytes: stats.map_or(0, |stats| stats.ring_bytes),
            cut: inner.cut.load(Ordering::Relaxed) + stats.map_or(0, |stats| stats.cut),
            snapshots: inner.snapshots.load(Ordering::Relaxed),
            lost: lock(&inner.lost).clone(),
        }
    }
}

async fn follow(mut watch: Watch, inner: Arc<Inner>) {
    while inner.unfit.borrow().is_none() {
        let event = watch.next().await;
        inner.take(event).await;
    }
}

impl Inner {
    fn feed(&self) -> Result<Arc<Feed>, WatchError> {
        if self.draining.load(Ordering::Acquire) {
            return Err(WatchError::Draining);
        }
        self.relaying.feed().ok_or(WatchError::NotReady)
    }

    /// Takes in what happened. What a frame brings was passed on already: here it is claimed to be
    /// fresh, after the set was checked against the server's digest.
    async fn take(&self, event: WatchEvent) {
        match event {
            WatchEvent::Connected { resumed, .. } => {
                tracing::info!(resumed, "following revocations");
                self.connected.store(true, Ordering::Relaxed);
            }
            WatchEvent::KeySet(_) => {}
            WatchEvent::Reset => tracing::info!("the log is another one; fetching the whole set"),
            WatchEvent::Synced(fresh) => match self.relaying.built() {
                Some(building) => self.begin(building, fresh).await,
                None => self.renew(fresh).await,
            },
            WatchEvent::Batch(revocations, fresh) => {
                if !self.relaying.is_building() {
                    self.renew(fresh).await;
                    self.measure(&revocations, fresh);
                }
            }
            WatchEvent::Heartbeat(fresh) => {
                if !self.relaying.is_building() {
                    self.renew(fresh).await;
                }
            }
            WatchEvent::Disconnected { lost, retry_in } => {
                tracing::warn!(?lost, ?retry_in, "the stream of revocations is lost");
                self.lose(format!("{lost:?}"));
            }
            WatchEvent::Refused(code, message) => {
                tracing::error!(?code, %message, "the server does not let us follow revocations");
                self.lose(format!("{code:?}: {message}"));
            }
        }
    }

    /// A whole set has come: from now on it is what neighbours get.
    async fn begin(&self, building: Building, fresh: Fresh) {
        let view = self.view.load_full();
        if self.is_unfit() {
            return;
        }
        let old = self.relaying.feed();
        // A set that was fetched anew although the log is the same was not the server's: whoever has
        // it from here needs another, too.
        let same = old.as_ref().is_some_and(|old| old.head().log_id == fresh.through.log_id);
        let oldest = Revision(fresh.through.revision.0 + u64::from(same));
        let clock = Arc::new(UpstreamClock::new(fresh));
        let upstream = Arc::new(Upstream::new(Arc::clone(&clock), fresh));
        let known = Known { view, coarse: building.coarse, through: fresh.through, oldest };
        let feed = Feed::relay(
            Arc::clone(&upstream) as Arc<dyn crate::feed::Source>,
            known,
            clock,
            Arc::clone(&self.entropy),
            Arc::clone(&self.encoder),
            self.feed_settings.clone(),
        );
        if let Some((through, frame)) = building.key_set {
            feed.set_key_set(through, frame);
        }
        feed.prove().await;
        self.snapshots.fetch_add(1, Ordering::Relaxed);
        *lock(&self.upstream) = Some(upstream);
        *lock(&self.fresh) = Some(fresh);
        self.relaying.serve(feed);
        if let Some(old) = old {
            self.cut.fetch_add(old.stats().cut, Ordering::Relaxed);
            old.replace();
        }
        tracing::info!(through = %fresh.through, "the set of revocations is complete");
        self.synced.send_replace(true);
    }

    /// The server vouches for everything up to here.
    async fn renew(&self, fresh: Fresh) {
        if self.is_unfit() {
            return;
        }
        let upstream = lock(&self.upstream).clone();
        let (Some(feed), Some(upstream)) = (self.relaying.feed(), upstream) else { return };
        // Positions without an entry, a change of the keys for example.
        feed.publish(&[], fresh.through.revision);
        upstream.renew(fresh);
        *lock(&self.fresh) = Some(fresh);
        feed.prove().await;
    }

    /// Serves nobody any more, if something is missing.
    fn is_unfit(&self) -> bool {
        let why = if self.view.load().is_partial() {
            Unfit::Full(self.max_entries)
        } else if self.relaying.is_limited() {
            Unfit::Limited
        } else {
            return false;
        };
        tracing::error!("{why}");
        if let Some(feed) = self.relaying.stop() {
            feed.drain();
        }
        self.unfit.send_replace(Some(why));
        true
    }

    fn measure(&self, revocations: &[v1::Revocation], fresh: Fresh) {
        let newest = revocations.last().and_then(|it| it.event_time.as_ref());
        if let Some(committed) = newest.and_then(moment) {
            let lag = fresh.server_time(Instant::now()).since(committed);
            let millis = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
            self.lag.store(millis, Ordering::Relaxed);
        }
    }

    fn lose(&self, why: String) {
        self.connected.store(false, Ordering::Relaxed);
        self.relaying.abandon();
        *lock(&self.lost) = Some(why);
    }
}
