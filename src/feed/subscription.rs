//! One watcher's stream: a position, and the rules for what comes next. It holds no queue.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::registry::Watcher;
use super::ring::{After, Frame, fitting, is_over};
use super::snapshot::Walk;
pub use super::snapshot::{Chunk, Packed, PackedKind};
use super::{Check, Shared, Subscribe, WatchError, end_of_life, spread};
use crate::domain::clock::Timestamp;
use crate::domain::event::{Entry, RETENTION};
use crate::domain::ids::{Cursor, Revision};

/// How long before its credential expires a stream is ended, so that the watcher is back with a new
/// one in time.
const CREDENTIAL_MARGIN: Duration = Duration::from_secs(1);
/// How long a stream whose credential was revoked stays for the question of another replica, which
/// follows the event.
const LINGER: Duration = Duration::from_secs(1);
/// How many events are read from the log at once.
const PAGE: usize = 256;

/// Why a stream is closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Leave {
    /// The server shuts down.
    Drain,
    /// The stream is old.
    Rebalance,
    /// The watcher takes nothing.
    Slow,
    /// The credential ends.
    CredentialExpiring,
}

/// How far a stream is, and how fresh that is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mark {
    /// The stream has shown everything up to here.
    pub through: Cursor,
    /// Every revocation that was acknowledged before this moment has been shown. The Unix epoch while
    /// nothing was proved.
    pub as_of: Timestamp,
    /// When this was said.
    pub at: Timestamp,
    /// A check of the whole set, where one can be given.
    pub check: Option<Check>,
}

/// What a stream shows next.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// The beginning.
    Start {
        /// The name of the watch.
        watch_id: String,
        /// Whether it resumes.
        resumed: bool,
        /// The newest position.
        head: Cursor,
        /// How often to expect something.
        heartbeat: Duration,
        /// How long a revocation is kept at the most.
        retention: Duration,
        /// The audiences it shows; empty for all.
        audiences: Vec<Box<str>>,
        /// The clients it shows; empty for all.
        clients: Vec<crate::domain::ids::ClientId>,
    },
    /// The set starts anew, because the cursor belonged to another log.
    Reset,
    /// A frame as it goes on the wire: a batch that many share, or the key set.
    Ready(Bytes),
    /// A part of the live set.
    Snapshot(Chunk),
    /// The live set is complete.
    Synced(Mark),
    /// New revocations; all that the filter left of them.
    Batch(Mark, Vec<Entry>),
    /// Nothing new.
    Heartbeat(Mark),
    /// Somebody waits until everything up to here is applied.
    AckRequest(Cursor),
    /// The stream is about to end.
    GoAway {
        /// Why.
        leave: Leave,
        /// How long to wait before coming back.
        reconnect_after: Duration,
    },
}

/// A watcher's place in the registry; it is given up with this.
pub(super) struct Place {
    shared: Arc<Shared>,
    watcher: Arc<Watcher>,
}

impl Place {
    pub(super) fn take(shared: &Arc<Shared>, watcher: Watcher) -> Result<Self, WatchError> {
        let watcher = shared.registry.add(watcher)?;
        Ok(Self { shared: Arc::clone(shared), watcher })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.registry.remove(&self.watcher);
    }
}

/// What a look at the state of things came to.
enum Step {
    /// This is next.
    Show(Item),
    /// There is more to do at once, after others had their turn.
    Again,
    /// Nothing, until something happens.
    Wait,
}

/// Where a stream is in its life.
enum Phase {
    Start,
    Reset,
    KeySet,
    Snapshot(Walk),
    /// Until everything up to the head at the beginning is shown.
    CatchUp,
    Live,
    /// The last mark is said; the go-away is to follow.
    Leaving(Leave),
    /// The error that ends it, if it is one.
    Over(Option<WatchError>),
}

/// One watcher's stream.
pub struct Subscription {
    place: Place,
    subscribe: Subscribe,
    phase: Phase,
    resumed: bool,
    /// Everything up to here is shown.
    position: Revision,
    /// Everything up to here is shown, and the watcher was told so.
    told: Revision,
    /// The newest `as_of` that was stated; it holds at every later position.
    as_of: Timestamp,
    /// Where the replica stood when the stream began.
    began: super::source::Proof,
    key_set: u64,
    acked: u64,
    /// Where the log stood when its credential was found revoked.
    revoked_by: Option<(Revision, Instant)>,
    tick: watch::Receiver<u64>,
    heartbeat_at: Instant,
    ends_at: Instant,
}

impl Subscription {
    pub(super) fn new(place: Place, subscribe: Subscribe, resume: Option<Cursor>) -> Self {
        let shared = &place.shared;
        // To the tail first: from here on every event comes through the ring or is found in the
        // store behind it. What a snapshot then reads is at least as new as this.
        let tick = shared.tick.subscribe();
        let (head, mut proof) = {
            let ring = shared.ring();
            (ring.head(), ring.proof)
        };
        proof.head = head;
        let ends_at = end_of_life(&*shared.entropy, shared.settings.lifetime);
        Self {
            phase: Phase::Start,
            resumed: resume.is_some(),
            position: resume.map_or(Revision(0), |cursor| cursor.revision),
            told: Revision(0),
            as_of: Timestamp::default(),
            began: proof,
            key_set: 0,
            acked: 0,
            revoked_by: None,
            tick,
            heartbeat_at: Instant::now() + subscribe.heartbeat,
            ends_at,
            place,
            subscribe,
        }
    }

    /// What comes next; none when the stream is over. Waits until there is something, which is never
    /// longer than the heartbeat.
    ///
    /// # Errors
    /// What ends the stream, at last.
    pub async fn next(&mut self) -> Result<Option<Item>, WatchError> {
        loop {
            // Before looking, so that what changes while looking wakes the wait below.
            self.tick.borrow_and_update();
            self.place.watcher.beat();
            let step = self.step()?;
            self.place.watcher.position.store(self.position.0, Ordering::Release);
            match step {
                Step::Show(item) => {
                    self.place.watcher.frames.fetch_add(1, Ordering::Relaxed);
                    if let Some(recorder) = self.place.shared.recorder.get() {
                        recorder.frame();
                    }
                    self.heartbeat_at = Instant::now() + self.subscribe.heartbeat;
                    return Ok(Some(item));
                }
                Step::Again => {
                    if let Some(item) = self.sign_of_life() {
                        return Ok(Some(item));
                    }
                    tokio::task::yield_now().await;
                    continue;
                }
                Step::Wait => {}
            }
            if let Phase::Over(error) = &mut self.phase {
                return error.take().map_or(Ok(None), Err);
            }
            let lingered = self.revoked_by.map(|(_, since)| since + LINGER);
            let until = self.heartbeat_at.min(self.ends_at).min(self.credential_end());
            let until =
                lingered.filter(|at| *at > Instant::now()).map_or(until, |at| until.min(at));
            // The channel cannot close: this stream holds its other end.
            drop(tokio::time::timeout_at(until, self.tick.changed()).await);
        }
    }

    /// Everything up to here is shown.
    pub fn position(&self) -> Cursor {
        self.place.shared.cursor(self.position)
    }

    /// Something to show while a long way shows nothing, so that nobody takes the stream for dead.
    fn sign_of_life(&mut self) -> Option<Item> {
        if Instant::now() < self.heartbeat_at {
            return None;
        }
        let item = match self.phase {
            Phase::Snapshot(_) => Item::Snapshot(Chunk::default()),
            Phase::CatchUp => Item::Batch(Mark { check: None, ..self.mark() }, Vec::new()),
            _ => return None,
        };
        self.heartbeat_at = Instant::now() + self.subscribe.heartbeat;
        Some(item)
    }

    fn step(&mut self) -> Result<Step, WatchError> {
        if !matches!(self.phase, Phase::Leaving(_) | Phase::Over(_))
            && let Some(leave) = self.must_leave()
        {
            let synced = matches!(self.phase, Phase::Live);
            self.phase = Phase::Leaving(leave);
            if synced {
                return Ok(Step::Show(Item::Heartbeat(self.mark())));
            }
        }
        match &mut self.phase {
            Phase::Start => {
                let log_id = self.place.shared.log_id;
                let other_log =
                    self.subscribe.resume_after.is_some_and(|cursor| cursor.log_id != log_id);
                self.phase = if other_log { Phase::Reset } else { Phase::KeySet };
                Ok(Step::Show(self.start()))
            }
            Phase::Reset => {
                self.phase = Phase::KeySet;
                Ok(Step::Show(Item::Reset))
            }
            Phase::KeySet => {
                self.phase = if self.resumed {
                    Phase::CatchUp
                } else {
                    Phase::Snapshot(Walk::new(&self.subscribe.filter, self.began.head))
                };
                // A newer set than the position is no harm here: it is whole, and a key that is gone
                // from it is not to be trusted any more.
                Ok(self.new_key_set(Revision(u64::MAX)).map_or(Step::Again, Step::Show))
            }
            Phase::Snapshot(walk) => {
                let shared = &self.place.shared;
                let limit = self.subscribe.max_frame_bytes;
                let Some(chunk) = walk.next(shared, &self.subscribe.filter, limit)? else {
                    self.position = self.began.head;
                    self.phase = Phase::CatchUp;
                    return Ok(Step::Again);
                };
                Ok(if chunk.is_empty() { Step::Again } else { Step::Show(Item::Snapshot(chunk)) })
            }
            Phase::CatchUp => {
                if self.position < self.began.head {
                    return Ok(match self.batch()? {
                        Step::Wait => Step::Again,
                        step @ (Step::Show(_) | Step::Again) => step,
                    });
                }
                self.phase = Phase::Live;
                self.as_of = self.as_of.max(self.began.as_of);
                Ok(Step::Show(Item::Synced(self.mark())))
            }
            Phase::Live => self.live(),
            Phase::Leaving(leave) => {
                let leave = *leave;
                Ok(Step::Show(self.leave(leave)))
            }
            Phase::Over(_) => Ok(Step::Wait),
        }
    }

    fn live(&mut self) -> Result<Step, WatchError> {
        if let Some(item) = self.due() {
            return Ok(Step::Show(item));
        }
        let step = self.batch()?;
        if !matches!(step, Step::Wait) {
            return Ok(step);
        }
        // What a filter hides moves the position without a frame.
        if let Some(item) = self.due() {
            return Ok(Step::Show(item));
        }
        let silent = Instant::now() >= self.heartbeat_at;
        Ok(if silent { Step::Show(Item::Heartbeat(self.mark())) } else { Step::Wait })
    }

    /// What is owed at this position before anything later is shown: the key set, and the question
    /// of who waits.
    fn due(&mut self) -> Option<Item> {
        if let Some(frame) = self.new_key_set(self.position) {
            return Some(frame);
        }
        let asked = self.place.watcher.asked.load(Ordering::Acquire);
        if asked <= self.acked || asked > self.position.0 {
            return None;
        }
        if self.told.0 < asked {
            let mark = self.mark();
            return Some(Item::Batch(Mark { check: None, ..mark }, Vec::new()));
        }
        self.acked = asked;
        Some(Item::AckRequest(self.place.shared.cursor(Revision(asked))))
    }

    /// The last words.
    fn leave(&mut self, leave: Leave) -> Item {
        let (error, most) = match leave {
            Leave::Drain => (Some(WatchError::Draining), Duration::from_secs(1)),
            // What it has is no longer the truth.
            Leave::Rebalance if self.is_replaced() => (None, Duration::from_millis(50)),
            Leave::Rebalance => (None, Duration::from_secs(1)),
            Leave::Slow => {
                (Some(WatchError::Slow { through: self.position() }), Duration::from_secs(1))
            }
            Leave::CredentialExpiring => (Some(WatchError::CredentialEnded), Duration::ZERO),
        };
        self.phase = Phase::Over(error);
        let entropy = &*self.place.shared.entropy;
        Item::GoAway { leave, reconnect_after: spread(entropy, Duration::ZERO, most) }
    }

    fn start(&self) -> Item {
        let shared = &self.place.shared;
        Item::Start {
            watch_id: self.place.watcher.id.clone(),
            resumed: self.resumed,
            head: shared.cursor(self.began.head),
            heartbeat: self.subscribe.heartbeat,
            retention: RETENTION,
            audiences: self.subscribe.filter.audiences(),
            clients: self.subscribe.filter.clients(),
        }
    }

    /// The key set, if it is another than the last one shown and true by `position`.
    fn new_key_set(&mut self, position: Revision) -> Option<Item> {
        let known = self.place.shared.key_set.read().unwrap_or_else(PoisonError::into_inner);
        let new = known.as_ref()?;
        if new.version <= self.key_set || new.through > position {
            return None;
        }
        self.key_set = new.version;
        Some(Item::Ready(new.frame.clone()))
    }

    /// Where the stream is, and how fresh that is.
    fn mark(&mut self) -> Mark {
        let shared = &self.place.shared;
        let ring = shared.ring();
        // A proof speaks for its head: it may be stated once everything up to there is shown.
        if self.position >= ring.proof.head {
            self.as_of = self.as_of.max(ring.proof.as_of);
        }
        let now = shared.clock.now();
        let check = ring.check_at(self.position, now).filter(|_| self.subscribe.filter.is_open());
        drop(ring);
        self.told = self.position;
        Mark {
            through: shared.cursor(self.position),
            as_of: self.as_of,
            at: shared.clock.now(),
            check,
        }
    }

    /// The next batch after the position. `Wait` when there is nothing new to show; the position may
    /// have moved nevertheless.
    fn batch(&mut self) -> Result<Step, WatchError> {
        /// How much that is not shown is looked at before others have their turn.
        const ROUNDS: usize = 16;
        for _ in 0..ROUNDS {
            let after = self.place.shared.ring().after(self.position);
            let shown = match after {
                After::Nothing(head) => {
                    self.position = self.position.max(head);
                    return Ok(Step::Wait);
                }
                After::Frame(frame) => self.shown_of_frame(&frame),
                After::Behind(floor) => {
                    let Some(page) = self.read_log()? else {
                        // Without a log it is quicker to begin anew, with a snapshot.
                        self.phase = Phase::Leaving(Leave::Rebalance);
                        return Ok(Step::Again);
                    };
                    self.shown_of_page(&page, floor)
                }
            };
            if let Some(item) = shown {
                return Ok(Step::Show(item));
            }
        }
        Ok(Step::Again)
    }

    fn shown_of_frame(&mut self, frame: &Frame) -> Option<Item> {
        let shared = &self.place.shared;
        let max = self.subscribe.max_frame_bytes;
        // What a watcher catches up with was published before it came, and says nothing of the way.
        if let (Phase::Live, Some(recorder)) = (&self.phase, shared.recorder.get()) {
            recorder.propagated(frame.published.elapsed());
        }
        let new = frame.entries.partition_point(|entry| entry.revision <= self.position);
        if self.subscribe.filter.is_open() && new == 0 {
            let encoded = frame.encoded.get_or_init(|| {
                let through = shared.cursor(frame.through);
                shared.encoder.batch(&frame.entries, through, frame.as_of, frame.at)
            });
            if encoded.len() <= max {
                self.position = frame.through;
                self.told = frame.through;
                self.as_of = self.as_of.max(frame.as_of);
                return Some(Item::Ready(encoded.clone()));
            }
        }
        self.as_of = self.as_of.max(frame.as_of);
        self.show(&frame.entries[new..], frame.through)
    }

    /// Reads what the ring no longer holds.
    fn read_log(&self) -> Result<Option<Vec<Entry>>, WatchError> {
        let shared = &self.place.shared;
        shared.reread.fetch_add(1, Ordering::Relaxed);
        Ok(shared.source.events_after(self.position, PAGE)?)
    }

    /// What a page that was read shows. The log answers with what is left of it: what has expired
    /// since is skipped.
    fn shown_of_page(&mut self, page: &[Entry], floor: Revision) -> Option<Item> {
        // A page that is not full shows all there is, so whatever else was up to `floor` is swept.
        let through = match page.last() {
            Some(last) if page.len() == PAGE => last.revision,
            Some(last) => last.revision.max(floor),
            None => floor,
        };
        self.show(page, through)
    }

    /// As many of `entries` as fit into a frame; `through` is where all of them lead.
    fn show(&mut self, entries: &[Entry], through: Revision) -> Option<Item> {
        let now = self.place.shared.clock.now();
        let count = fitting(entries, self.subscribe.max_frame_bytes.saturating_sub(128));
        let taken = &entries[..count.min(entries.len())];
        self.position = match taken.last() {
            Some(last) if taken.len() < entries.len() => last.revision,
            Some(_) | None => through,
        };
        let filter = &self.subscribe.filter;
        let live = |entry: &&Entry| filter.shows(entry).is_some_and(|it| !is_over(it, now));
        let shown: Vec<Entry> = taken.iter().filter(live).cloned().collect();
        if shown.is_empty() {
            return None;
        }
        let mark = self.mark();
        Some(Item::Batch(Mark { check: None, ..mark }, shown))
    }

    fn must_leave(&mut self) -> Option<Leave> {
        let shared = &self.place.shared;
        if self.place.watcher.cut.load(Ordering::Acquire) {
            return Some(Leave::Slow);
        }
        if *shared.draining.borrow() {
            return Some(Leave::Drain);
        }
        if self.is_replaced() {
            return Some(Leave::Rebalance);
        }
        if Instant::now() >= self.credential_end() || self.has_lost_its_right() {
            return Some(Leave::CredentialExpiring);
        }
        (Instant::now() >= self.ends_at).then_some(Leave::Rebalance)
    }

    fn is_replaced(&self) -> bool {
        self.place.shared.replaced.load(Ordering::Acquire)
    }

    /// Whether its credential was taken back and it has seen what happened up to then. A revocation of
    /// everything takes the watchers' credentials too, and must reach them nevertheless.
    fn has_lost_its_right(&mut self) -> bool {
        let Some(revoked) = &self.subscribe.revoked else { return false };
        if self.revoked_by.is_none() && revoked() {
            self.revoked_by = Some((self.place.shared.ring().head(), Instant::now()));
        }
        let Some((until, since)) = self.revoked_by else { return false };
        if !matches!(self.phase, Phase::Live) {
            return true;
        }
        // Another replica may have revoked it, and be about to ask for its watchers.
        if self.place.shared.peers.is_some() && since.elapsed() < LINGER {
            return false;
        }
        // While a Revoke waits for its watchers, those whose credentials it took are among them.
        self.position >= until && !self.place.shared.registry.is_held()
    }

    fn credential_end(&self) -> Instant {
        /// Long beyond every stream's life.
        const FAR: Duration = Duration::from_secs(86_400);
        let left = self.subscribe.valid_until.map_or(FAR, |end| {
            end.before(CREDENTIAL_MARGIN).since(self.place.shared.clock.now()).min(FAR)
        });
        Instant::now() + left
    }
}
