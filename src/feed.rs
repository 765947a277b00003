//! From durable to subscribed: holds the live set of this replica, keeps the newest events in a
//! shared ring, and hands every watcher all of them, in order, at least once.
//!
//! Its events come from the store, or from another avouch by way of a [`Source`]. Knows the store and the domain. Must not know protobuf or gRPC: bytes that are shared among
//! watchers come from an [`Encoder`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::domain::clock::{Clock, Timestamp};
use crate::domain::entropy::Entropy;
use crate::domain::event::{Entry, Event, Revocation, Target};
use crate::domain::ids::{Cursor, LogId, Revision};
use crate::domain::view::{Marks, RevokedBy, View};
use crate::metrics::{FeedRecorder, Level};
use crate::store::{EntryObserver, Store, StoreError};

pub mod filter;
mod peers;
mod registry;
mod ring;
mod settings;
mod snapshot;
mod source;
pub mod subscription;
mod tasks;

pub use peers::{ClockStanding, Registration, clocks_of};
use peers::{Joined, Peers};
pub use registry::{Acked, Close, Waiter, WatcherInfo};
use registry::{Registry, Watcher};
pub use ring::Check;
use ring::Ring;
pub use settings::{FeedSettings, FeedStats, Known, Page, Revoked, Subscribe, WatchError};
use source::Stored;
pub use source::{Proof, Source};
use subscription::Subscription;

/// Turns a batch that many watchers share into bytes.
pub trait Encoder: Send + Sync + 'static {
    /// The frame that carries these entries. `as_of` is the Unix epoch while nothing was proved.
    fn batch(&self, entries: &[Entry], through: Cursor, as_of: Timestamp, at: Timestamp) -> Bytes;
}

/// The public keys as a frame, and since when they are so.
#[derive(Clone)]
struct KeySetFrame {
    version: u64,
    through: Revision,
    frame: Bytes,
}

/// How old the proof may be that what is here is all there is, for an answer that rests on it.
const RELY_FOR: Duration = Duration::from_secs(2);
/// How long an answer waits for a newer proof.
const PROOF_PATIENCE: Duration = Duration::from_millis(300);

/// What a feed needs, whatever its source.
struct Means {
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    encoder: Arc<dyn Encoder>,
    settings: FeedSettings,
}

/// What the streams, the tasks and the observer share.
struct Shared {
    source: Arc<dyn Source>,
    /// Of a source that keeps no log: the oldest cursor that may be resumed from.
    oldest: Option<Revision>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    encoder: Arc<dyn Encoder>,
    settings: FeedSettings,
    log_id: LogId,
    /// Changed under `ring`, so that a digest taken under it belongs to one position.
    view: Arc<View>,
    /// What a snapshot shows in full: everything but tokens and sessions.
    coarse: Mutex<BTreeMap<Revision, Revocation>>,
    ring: Mutex<Ring>,
    head: watch::Sender<Revision>,
    /// Rises with everything that a stream should look at. Apart from `head`, because waking all
    /// streams takes the longer the more there are, and Revoke waits for `head`.
    tick: watch::Sender<u64>,
    key_set: RwLock<Option<KeySetFrame>>,
    /// The newest event of those in `coarse`, those that are over too.
    coarse_head: AtomicU64,
    /// The newest event that changed the published keys.
    keys_changed: watch::Sender<Revision>,
    draining: watch::Sender<bool>,
    /// Rises with every proof.
    proofs: watch::Sender<u64>,
    /// Another feed has taken its place.
    replaced: AtomicBool,
    registry: Registry,
    /// The other replicas, if there can be any.
    peers: Option<Arc<Peers>>,
    next_watch: AtomicU64,
    cut: AtomicU64,
    reread: AtomicU64,
    recorder: OnceLock<FeedRecorder>,
}

impl Shared {
    fn new(
        source: Arc<dyn Source>,
        log_id: LogId,
        view: Arc<View>,
        oldest: Option<Revision>,
        peers: Option<Arc<Peers>>,
        Means { clock, entropy, encoder, settings }: Means,
    ) -> Arc<Self> {
        Arc::new(Self {
            source,
            oldest,
            log_id,
            view,
            coarse: Mutex::default(),
            coarse_head: AtomicU64::new(0),
            ring: Mutex::new(Ring::new(settings.ring_entries, settings.ring_bytes)),
            head: watch::Sender::new(Revision(0)),
            tick: watch::Sender::new(0),
            key_set: RwLock::default(),
            keys_changed: watch::Sender::new(Revision(0)),
            draining: watch::Sender::new(false),
            proofs: watch::Sender::new(0),
            replaced: AtomicBool::new(false),
            registry: Registry::new(settings.max_watchers, settings.max_watchers_per_caller),
            peers,
            next_watch: AtomicU64::new(u64::from_be_bytes(entropy.bytes())),
            cut: AtomicU64::new(0),
            reread: AtomicU64::new(0),
            recorder: OnceLock::new(),
            clock,
            entropy,
            encoder,
            settings,
        })
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn coarse(&self) -> MutexGuard<'_, BTreeMap<Revision, Revocation>> {
        self.coarse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    const fn cursor(&self, revision: Revision) -> Cursor {
        Cursor { log_id: self.log_id, revision }
    }

    fn wake(&self) {
        self.tick.send_modify(|tick| *tick = tick.wrapping_add(1));
    }

    /// Whether everything after `revision` can be shown without a snapshot.
    fn can_resume_from(&self, revision: Revision) -> bool {
        self.oldest.is_none_or(|oldest| revision >= oldest.max(self.ring().floor()))
    }

    /// Adds entries to the view. Twice is as good as once, and so is any order.
    fn apply(&self, entries: &[Entry]) {
        for entry in entries {
            if let Event::Revocation(revocation) = &entry.event {
                self.view.apply(revocation);
                if !matches!(revocation.target, Target::Token { .. } | Target::Session { .. }) {
                    self.coarse().insert(entry.revision, revocation.clone());
                    self.coarse_head.fetch_max(entry.revision.0, Ordering::AcqRel);
                }
            }
        }
    }
}

/// What the store tells of durable events. It does not keep the feed alive.
struct Listener(Weak<Shared>);

impl EntryObserver for Listener {
    fn durable(&self, entries: &[Entry], head: Revision) {
        if let Some(shared) = self.0.upgrade() {
            shared.publish(entries, head);
        }
    }
}

impl Shared {
    /// Takes in what became durable. Everything that waits for it is quick: the view, the ring, and
    /// one wake-up, however many watch.
    fn publish(&self, entries: &[Entry], head: Revision) {
        if let Some(recorder) = self.recorder.get() {
            entries.iter().filter_map(level).for_each(|level| recorder.revoked(level));
        }
        let now = self.clock.now();
        {
            let mut ring = self.ring();
            // The view first: whoever sees the new head finds the view at least as new.
            self.apply(entries);
            ring.push(entries, head, now);
        }
        let changes_keys = |entry: &&Entry| match &entry.event {
            Event::KeySetChanged { .. } => true,
            Event::Revocation(revocation) => matches!(revocation.target, Target::Key { .. }),
        };
        if let Some(entry) = entries.iter().rev().find(changes_keys) {
            self.keys_changed.send_replace(entry.revision);
        }
        self.head.send_if_modified(|known| {
            let later = head > *known;
            *known = head.max(*known);
            later
        });
    }
}

/// The feed of one replica.
pub struct Feed {
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::AbortHandle>,
}

impl Drop for Feed {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Feed {
    /// Loads the live set and follows the store from then on, as if no other replica followed it.
    /// Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn start(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        encoder: Arc<dyn Encoder>,
        settings: FeedSettings,
    ) -> Result<Arc<Self>, StoreError> {
        Self::load(store, None, Means { clock, entropy, encoder, settings })
    }

    /// Registers with the other replicas, if the store can have any, and then does as
    /// [`Feed::start`]. Until [`Feed::leave`] the others count the watchers of this feed.
    ///
    /// # Errors
    /// When the store cannot be read, or others cannot be told.
    pub async fn join(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        encoder: Arc<dyn Encoder>,
        settings: FeedSettings,
    ) -> Result<Arc<Self>, StoreError> {
        // First: who registers is asked for its watchers from then on, and what is loaded after that
        // has the events that others were not asked for.
        let joined = match store.board() {
            Some(board) => {
                Some(Peers::join(board, Arc::clone(&clock), Arc::clone(&entropy)).await?)
            }
            None => None,
        };
        Self::load(store, joined, Means { clock, entropy, encoder, settings })
    }

    fn load(
        store: Arc<dyn Store>,
        joined: Option<Joined>,
        means: Means,
    ) -> Result<Arc<Self>, StoreError> {
        const PAGE: usize = 1024;
        let source = Arc::new(Stored(Arc::clone(&store)));
        let log_id = store.head().log_id;
        let peers = joined.as_ref().map(|joined| Arc::clone(&joined.peers));
        let shared = Shared::new(source, log_id, Arc::default(), None, peers, means);
        // Listen first, read then: an event is in what is read, or heard, or both. Applying it
        // twice changes nothing.
        store.observe(Arc::new(Listener(Arc::downgrade(&shared))));
        let mut loaded = Revision(0);
        let now = shared.clock.now();
        let end = store.head().revision;
        loop {
            let mut page = store.events_after(loaded, PAGE)?;
            let Some(last) = page.last() else { break };
            loaded = last.revision;
            page.retain(|entry| match &entry.event {
                Event::Revocation(revocation) => !ring::is_over(revocation, now),
                Event::KeySetChanged { .. } => false,
            });
            shared.apply(&page);
        }
        let head = {
            let mut ring = shared.ring();
            // Revisions up to `end` that were not read have expired and are swept.
            ring.loaded(loaded.max(end));
            ring.head()
        };
        shared.head.send_modify(|known| *known = head.max(*known));
        let mut tasks = tasks::spawn(&shared);
        if let Some(joined) = joined {
            tasks.extend(peers::spawn(&shared, joined));
        }
        Ok(Arc::new(Self { shared, tasks }))
    }

    /// Records in `recorder` from now on; a second one is ignored.
    pub fn measure(&self, recorder: FeedRecorder) {
        _ = self.shared.recorder.set(recorder);
    }

    /// Begins with what is known of another avouch's log, and goes on with what [`Feed::publish`] is
    /// told. Everybody who may watch sees everything: filters and limited rights are for who has the
    /// log. Must be called in a tokio runtime.
    pub fn relay(
        source: Arc<dyn Source>,
        known: Known,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        encoder: Arc<dyn Encoder>,
        settings: FeedSettings,
    ) -> Arc<Self> {
        let Known { view, coarse, through, oldest } = known;
        let means = Means { clock, entropy, encoder, settings };
        let shared = Shared::new(source, through.log_id, view, Some(oldest), None, means);
        shared.apply(&coarse);
        shared.ring().loaded(through.revision);
        shared.head.send_replace(through.revision);
        let tasks = tasks::spawn(&shared);
        Arc::new(Self { shared, tasks })
    }

    /// Takes in events that its source does not announce itself. `head` may be later than the last
    /// of them.
    pub fn publish(&self, entries: &[Entry], head: Revision) {
        self.shared.publish(entries, head);
    }

    /// Asks the source how far it can vouch, without waiting for the next time.
    pub async fn prove(&self) {
        tasks::prove(&self.shared).await;
    }

    /// What revokes a token with these marks, if anything does.
    pub fn revoked_by(&self, marks: &Marks) -> Option<RevokedBy> {
        self.shared.view.revoked_by(marks)
    }

    /// The newest position that the view has.
    pub fn head(&self) -> Cursor {
        self.shared.cursor(*self.shared.head.borrow())
    }

    /// The newest revocation of more than a token or a session that the view has.
    pub fn coarse_head(&self) -> Revision {
        Revision(self.shared.coarse_head.load(Ordering::Acquire))
    }

    /// Every Revoke that was acknowledged before this moment is in the view. It stands still while
    /// the store cannot prove that something can be made durable.
    pub fn as_of(&self) -> Timestamp {
        self.shared.ring().proof.as_of
    }

    /// Waits until the view has everything up to `cursor`.
    ///
    /// # Errors
    /// [`WatchError::OtherLog`] for a cursor of another log, [`WatchError::Behind`] after `limit`.
    pub async fn wait_for(&self, cursor: Cursor, limit: Duration) -> Result<(), WatchError> {
        if cursor.log_id != self.shared.log_id {
            return Err(WatchError::OtherLog);
        }
        let mut head = self.shared.head.subscribe();
        let seen = head.wait_for(|head| *head >= cursor.revision);
        match tokio::time::timeout(limit, seen).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(WatchError::Behind { head: self.head() }),
        }
    }

    /// Begins a watch.
    ///
    /// # Errors
    /// [`WatchError::Draining`], [`WatchError::Busy`], and [`WatchError::Behind`] when the cursor is
    /// still ahead of this replica after a while.
    pub async fn subscribe(&self, mut subscribe: Subscribe) -> Result<Subscription, WatchError> {
        let shared = &self.shared;
        if shared.oldest.is_some() {
            // Which tokens a filter shows is in the log alone. More than was asked for is allowed.
            subscribe.filter = filter::Filter::default();
        }
        if *shared.draining.borrow() {
            return Err(WatchError::Draining);
        }
        let resume = subscribe.resume_after.filter(|cursor| {
            cursor.log_id == shared.log_id && shared.can_resume_from(cursor.revision)
        });
        // The place is taken before the wait, so that waiting ones count.
        let number = shared.next_watch.fetch_add(1, Ordering::Relaxed);
        let id = format!("{number:016x}{:016x}", u64::from_be_bytes(shared.entropy.bytes()));
        let attached_at = resume.map_or_else(|| shared.ring().head(), |cursor| cursor.revision);
        let watcher = Watcher::new(id, &subscribe, shared.clock.now(), attached_at);
        let place = subscription::Place::take(shared, watcher)?;
        if let Some(cursor) = resume {
            self.wait_for(cursor, shared.settings.behind_wait).await?;
        }
        Ok(Subscription::new(place, subscribe, resume))
    }

    /// Asks every watcher to say when it has applied everything up to `through`.
    pub fn expect_acks(&self, through: Revision) -> Waiter {
        let waiter = self.shared.registry.expect(through);
        self.shared.wake();
        waiter
    }

    /// Waits until every watcher of every replica has applied everything up to `through`, at most for
    /// `limit`.
    pub async fn wait_for_acks(&self, through: Revision, limit: Duration) -> Acked {
        let began = Instant::now();
        let here = self.expect_acks(through).wait(limit);
        let acked = match &self.shared.peers {
            None => here.await,
            Some(peers) => {
                let (here, elsewhere) = tokio::join!(here, peers.wait(through, limit));
                here.and(elsewhere)
            }
        };
        if let Some(recorder) = self.shared.recorder.get()
            && acked.connected > 0
        {
            recorder.waited(acked.complete, began.elapsed());
        }
        acked
    }

    /// The replicas that share the store, this one among them, by their names; none where there can be
    /// only one.
    pub fn replicas(&self) -> Option<BTreeMap<String, Registration>> {
        self.shared.peers.as_ref().map(|peers| peers.replicas())
    }

    /// How the clock here stands to those of the other replicas; none where there can be only one.
    pub fn clock_standing(&self) -> Option<ClockStanding> {
        self.shared.peers.as_ref().map(|peers| peers.clock_standing())
    }

    /// Says that the watchers of this feed count no more: they are gone.
    pub async fn leave(&self) {
        if let Some(peers) = &self.shared.peers {
            peers.leave().await;
        }
    }

    /// How long ago the last proof began that holds: that the store was in reach, and what it had is
    /// here. Told by a clock that nobody sets; none while nothing was proved.
    pub fn proved_ago(&self) -> Option<Duration> {
        self.shared.ring().proved_at.map(|at| at.elapsed())
    }

    /// Returns once it is proved that all which was revoked up to 2 s ago is in the view.
    ///
    /// # Errors
    /// [`WatchError::CutOff`] when that is not so within 300 ms.
    pub async fn in_touch(&self) -> Result<(), WatchError> {
        let mut proofs = self.shared.proofs.subscribe();
        let proved = proofs.wait_for(|_| self.proved_ago().is_some_and(|ago| ago < RELY_FOR));
        match tokio::time::timeout(PROOF_PATIENCE, proved).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(WatchError::CutOff),
        }
    }

    /// Keeps the streams of those whose credentials are about to be revoked until it is dropped, so that
    /// whoever waits for the watchers waits for them, too. Take it before the revocation.
    pub fn hold(&self) -> Hold {
        self.shared.registry.hold();
        Hold(Arc::clone(&self.shared))
    }

    /// Whose watch this is, while it is there.
    pub fn owner_of(&self, watch_id: &str) -> Option<String> {
        self.shared.registry.owner_of(watch_id)
    }

    /// A watcher says that it has applied everything up to `applied`. Unknown watches, watches of
    /// other callers and positions that were never sent change nothing.
    pub fn ack(&self, watch_id: &str, owner: &str, applied: Cursor) {
        if applied.log_id == self.shared.log_id {
            self.shared.registry.ack(watch_id, owner, applied.revision);
        }
    }

    /// Publishes the whole current key set: `frame` goes to every stream as it is, not before the
    /// event at `through` that made it so. A set older than the one already published is ignored.
    pub fn set_key_set(&self, through: Revision, frame: Bytes) {
        let mut slot = self.shared.key_set.write().unwrap_or_else(PoisonError::into_inner);
        let version = slot.as_ref().map_or(1, |known| known.version + 1);
        if slot.as_ref().is_none_or(|known| known.through <= through) {
            *slot = Some(KeySetFrame { version, through, frame });
        }
        drop(slot);
        self.shared.wake();
    }

    /// Changes with every event that changes the published keys: whoever keeps the keys reads the
    /// ring again and calls [`Feed::set_key_set`].
    pub fn key_changes(&self) -> watch::Receiver<Revision> {
        self.shared.keys_changed.subscribe()
    }

    /// The live revocations among the next `limit` events after a position, and whether there are
    /// more events. None where there is no log.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self, after: Revision, limit: usize) -> Result<Option<(Page, bool)>, StoreError> {
        let now = self.shared.clock.now();
        let Some(mut entries) = self.shared.source.events_after(after, limit)? else {
            return Ok(None);
        };
        let more = entries.len() == limit;
        let through = entries.last().map_or(after, |last| last.revision);
        entries.retain(|entry| match &entry.event {
            Event::Revocation(revocation) => now < revocation.expires_at,
            Event::KeySetChanged { .. } => false,
        });
        Ok(Some((Page { entries, through }, more)))
    }

    /// Everybody who watches, in no particular order.
    pub fn watchers(&self) -> Vec<WatcherInfo> {
        let head = *self.shared.head.borrow();
        let info = |watcher: Arc<Watcher>| WatcherInfo {
            watch_id: watcher.id.clone(),
            subscriber: watcher.subscriber.clone(),
            owner: watcher.owner.clone(),
            since: watcher.since,
            position: watcher.position(),
            lag: head.0.saturating_sub(watcher.position().0),
            frames: watcher.frames.load(Ordering::Relaxed),
        };
        self.shared.registry.all().into_iter().map(info).collect()
    }

    /// How the feed is doing.
    pub fn stats(&self) -> FeedStats {
        let (head, as_of, (ring_entries, ring_bytes)) = {
            let ring = self.shared.ring();
            (ring.head(), ring.proof.as_of, ring.size())
        };
        FeedStats {
            watchers: self.shared.registry.len(),
            head,
            as_of,
            ring_entries,
            ring_bytes,
            live: self.shared.view.len(),
            cut: self.shared.cut.load(Ordering::Relaxed),
            reread: self.shared.reread.load(Ordering::Relaxed),
        }
    }

    /// Ends every stream: another feed has taken its place, and they shall come back to it at once.
    pub fn replace(&self) {
        self.shared.replaced.store(true, Ordering::Release);
        self.shared.wake();
    }

    /// Ends every stream with a go-away and begins no new one.
    pub fn drain(&self) {
        self.shared.draining.send_replace(true);
        self.shared.wake();
    }
}

/// Keeps streams whose credentials were revoked; see [`Feed::hold`].
pub struct Hold(Arc<Shared>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.registry.release();
        self.0.wake();
    }
}

/// How much an entry takes back, if it takes back anything.
fn level(entry: &Entry) -> Option<Level> {
    let Event::Revocation(revocation) = &entry.event else { return None };
    Some(match revocation.target {
        Target::Token { .. } => Level::Token,
        Target::Session { .. } => Level::Session,
        Target::Subject { .. } => Level::Subject,
        Target::Client { .. } => Level::Client,
        Target::Everything { .. } => Level::Everything,
        Target::Key { .. } => Level::Key,
    })
}

/// A span between the two, at random.
fn spread(entropy: &dyn Entropy, from: Duration, to: Duration) -> Duration {
    let part = f64::from(u32::from_be_bytes(entropy.bytes())) / f64::from(u32::MAX);
    from + to.saturating_sub(from).mul_f64(part)
}

/// When a stream that begins now has lived long enough: a fifth more or less than `lifetime`, so that
/// streams that began together do not end together.
fn end_of_life(entropy: &dyn Entropy, lifetime: Duration) -> Instant {
    Instant::now() + spread(entropy, lifetime.mul_f64(0.8), lifetime.mul_f64(1.2))
}
