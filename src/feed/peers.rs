//! The other replicas of one store: who is there, what their clocks show, and whether their watchers
//! have applied an event.
//!
//! Each replica registers under a lease that it keeps. Who waits for all watchers puts up a question;
//! every replica answers it once its own watchers have acknowledged. What stands on the board decides
//! nothing about tokens.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

use super::Shared;
use super::registry::Acked;
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::entropy::Entropy;
use crate::domain::ids::Revision;
use crate::store::StoreError;
use crate::store::board::{Board, Change, Lease};

mod clocks;
mod note;

pub use clocks::ClockStanding;
use clocks::Offsets;
pub use note::Registration;
use note::{About, Answer, Question};

/// How long a replica that keeps its lease no more counts as there. Longer than verifiers rely on what
/// they were told: whoever follows a replica that counts no more knows that it is stale.
pub(super) const LEASE: Duration = Duration::from_secs(10);
/// How often the lease is kept.
const KEEP_EVERY: Duration = Duration::from_secs(2);
/// How long after its lease was kept a replica may call what it knows fresh: with the 5 s that
/// verifiers rely on that by default it is less than the lease.
const FRESH_FOR: Duration = Duration::from_millis(4_500);
/// At most this long the registration stays as it is, so that others can compare clocks.
const WRITE_EVERY: Duration = Duration::from_secs(10);
/// How far a clock moves on its own for others to be told at once.
const JUMP: Duration = Duration::from_secs(1);
/// How long registering may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is on the board.
#[derive(Default)]
struct Notes {
    replicas: BTreeMap<String, Registration>,
    questions: HashSet<String>,
    answers: HashMap<String, HashMap<String, Answer>>,
    offsets: Offsets,
    /// The questions of this replica.
    own: HashSet<String>,
}

/// How this replica is registered.
#[derive(Clone, Copy, Default)]
struct Standing {
    /// It has left, and registers no more.
    left: bool,
    lease: Option<Lease>,
    kept_at: Option<Instant>,
    /// When the registration was written, by both clocks.
    written_at: Option<(Instant, Timestamp)>,
    watchers: u32,
}

impl Standing {
    /// Whether the registration says what it should: how many watch, and what the clock shows.
    fn is_stale(&self, watchers: u32, wall: Timestamp) -> bool {
        let Some((at, written)) = self.written_at else { return true };
        let (passed, shown) = (at.elapsed(), wall.since(written));
        // Behind by as much when it was set back: then nothing is shown to have passed.
        let jumped = passed.abs_diff(shown) > JUMP || written.since(wall) > JUMP;
        self.watchers != watchers || passed >= WRITE_EVERY || jumped
    }
}

/// The replicas that share one store with this one.
pub(super) struct Peers {
    board: Arc<dyn Board>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    id: String,
    started_at: Timestamp,
    notes: Mutex<Notes>,
    /// Rises with every change on the board.
    changed: watch::Sender<u64>,
    standing: Mutex<Standing>,
}

/// What is left to do once there is a feed.
pub(super) struct Joined {
    pub(super) peers: Arc<Peers>,
    asked: Vec<(String, Question)>,
    changes: mpsc::UnboundedReceiver<Change>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peers {
    /// Registers this replica. Returns once everybody who asks from now on finds it, so what is read
    /// of the log after this has every event that anybody waited for without it.
    pub(super) async fn join(
        board: Arc<dyn Board>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Joined, StoreError> {
        let peers = Arc::new(Self {
            id: format!("{:016x}", u64::from_be_bytes(entropy.bytes())),
            started_at: clock.wall(),
            board,
            clock,
            entropy,
            notes: Mutex::default(),
            changed: watch::Sender::new(0),
            standing: Mutex::default(),
        });
        let mut changes = peers.board.follow();
        let mut asked = Vec::new();
        let registered = timeout(PATIENCE, async {
            peers.keep(0).await?;
            while !lock(&peers.notes).replicas.contains_key(&peers.id) {
                let change = changes.recv().await;
                asked.extend(peers.take(change.ok_or(StoreError::Internal("the board ended"))?));
            }
            Ok::<(), StoreError>(())
        });
        match registered.await {
            Ok(registered) => registered?,
            Err(_) => {
                return Err(StoreError::Unavailable("registering took too long".to_owned()));
            }
        }
        Ok(Joined { peers, asked, changes })
    }

    /// Whether everybody who asks finds this replica, and will for as long as its watchers rely on
    /// what they are told now.
    pub(super) fn is_registered(&self) -> bool {
        lock(&self.standing).kept_at.is_some_and(|at| at.elapsed() < FRESH_FOR)
    }

    /// The replicas that are there, this one among them.
    pub(super) fn replicas(&self) -> BTreeMap<String, Registration> {
        lock(&self.notes).replicas.clone()
    }

    /// How the clock of this replica stands to those of the others.
    pub(super) fn clock_standing(&self) -> ClockStanding {
        lock(&self.notes).offsets.standing()
    }

    /// Registers, or keeps the registration and what it says as it should be.
    async fn keep(&self, watchers: u32) -> Result<(), StoreError> {
        let known = *lock(&self.standing);
        if known.left {
            return Ok(());
        }
        // Before the store is asked: it counts from when it hears, which is later.
        let now = Instant::now();
        // A store that hears and is not heard would keep a replica for ever that nobody can wait for.
        let heard = known.kept_at.is_some_and(|at| at.elapsed() < LEASE);
        let kept = match known.lease.filter(|_| heard) {
            Some(lease) if self.board.keep(lease).await? => lease,
            Some(_) | None => {
                let lease = self.board.lease(LEASE).await?;
                self.write(watchers, lease, None).await?;
                lease
            }
        };
        {
            let mut standing = lock(&self.standing);
            if standing.left {
                return Ok(());
            }
            standing.lease = Some(kept);
            standing.kept_at = Some(now);
        }
        // It is registered, whatever comes of saying more: a store without space keeps leases, and
        // takes no notes.
        if known.lease == Some(kept) && known.is_stale(watchers, self.clock.wall()) {
            self.write(watchers, kept, Some(now)).await?;
        }
        Ok(())
    }

    async fn write(
        &self,
        watchers: u32,
        lease: Lease,
        kept_at: Option<Instant>,
    ) -> Result<(), StoreError> {
        let registration = Registration {
            watchers,
            started_at: self.started_at,
            clock: self.clock.wall(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let name = About::Replica(self.id.clone()).name();
        let lease = self.board.put(&name, registration.write(), lease).await?.then_some(lease);
        let written_at = lease.map(|_| (Instant::now(), registration.clock));
        {
            let mut standing = lock(&self.standing);
            if !standing.left {
                *standing = Standing { left: false, lease, kept_at, written_at, watchers };
            }
        }
        if lease.is_none() {
            return Err(StoreError::Unavailable("the lease has ended".to_owned()));
        }
        Ok(())
    }

    /// Says that this replica is gone.
    pub(super) async fn leave(&self) {
        let gone = Standing { left: true, ..Standing::default() };
        let standing = std::mem::replace(&mut *lock(&self.standing), gone);
        if let Some(lease) = standing.lease {
            // If it cannot be said, the lease ends by itself.
            let _said = timeout(KEEP_EVERY, self.board.end(lease)).await;
        }
    }

    /// Takes a change in. Gives the questions of others that are new.
    fn take(&self, change: Change) -> Vec<(String, Question)> {
        let mut new = Vec::new();
        let mut notes = lock(&self.notes);
        match change {
            Change::All(all) => {
                let asked = std::mem::take(&mut notes.questions);
                notes.replicas.clear();
                notes.answers.clear();
                for (name, value) in all {
                    new.extend(notes.put(&name, &value));
                }
                new.retain(|(id, _)| !asked.contains(id));
                let Notes { replicas, offsets, .. } = &mut *notes;
                offsets.keep_only(|id| replicas.contains_key(id));
            }
            Change::Put(name, value) => {
                if let Some(About::Replica(id)) = About::read(&name)
                    && let Some(registration) = Registration::read(&value)
                    && id != self.id
                {
                    notes.offsets.heard(&id, registration.clock, self.clock.wall());
                }
                new.extend(notes.put(&name, &value));
            }
            Change::Gone(name) => notes.gone(&name),
        }
        new.retain(|(id, _)| !notes.own.contains(id));
        drop(notes);
        self.changed.send_modify(|version| *version = version.wrapping_add(1));
        new
    }

    /// Waits until the watchers of all other replicas have applied everything up to `through`.
    pub(super) async fn wait(&self, through: Revision, limit: Duration) -> Acked {
        let question = format!("{:016x}", u64::from_be_bytes(self.entropy.bytes()));
        lock(&self.notes).own.insert(question.clone());
        let acked = self.wait_for_answers(&question, through, limit).await;
        lock(&self.notes).own.remove(&question);
        let (board, name) = (Arc::clone(&self.board), About::Question(question).name());
        // Nobody waits for the cleaning up; what is left comes down with the lease.
        tokio::spawn(async move {
            let _cleaned = timeout(KEEP_EVERY, board.take_down(&name)).await;
        });
        acked
    }

    async fn wait_for_answers(&self, question: &str, through: Revision, limit: Duration) -> Acked {
        let deadline = Instant::now() + limit;
        let mut changes = self.changed.subscribe();
        let asked = timeout_at(deadline, self.ask(question, through, limit, &mut changes)).await;
        let expected = match asked {
            Ok(Ok(expected)) => expected,
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot ask the other replicas for their watchers");
                return Acked { complete: false, ..self.tally(question, &self.others()) };
            }
            Err(_) => return Acked { complete: false, ..self.tally(question, &self.others()) },
        };
        loop {
            changes.borrow_and_update();
            let acked = self.tally(question, &expected);
            if acked.complete
                || !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(())))
            {
                return acked;
            }
        }
    }

    /// Puts the question up, and gives the replicas that were there before it.
    async fn ask(
        &self,
        question: &str,
        through: Revision,
        limit: Duration,
        changes: &mut watch::Receiver<u64>,
    ) -> Result<Vec<String>, StoreError> {
        let lease = lock(&self.standing).lease;
        let lease = lease.ok_or_else(|| StoreError::Unavailable("not registered".to_owned()))?;
        let value = Question { through, limit, lease }.write();
        if !self.board.put(&About::Question(question.to_owned()).name(), value, lease).await? {
            return Err(StoreError::Unavailable("the lease has ended".to_owned()));
        }
        // Once it is seen here, so is everybody who registered before. Whoever registers later reads
        // the log after that, and finds the event in it.
        let seen = changes.wait_for(|_| lock(&self.notes).questions.contains(question)).await;
        seen.map_err(|_| StoreError::Internal("the board ended"))?;
        Ok(self.others())
    }

    fn others(&self) -> Vec<String> {
        lock(&self.notes).replicas.keys().filter(|id| **id != self.id).cloned().collect()
    }

    /// What is answered by now.
    fn tally(&self, question: &str, expected: &[String]) -> Acked {
        let notes = lock(&self.notes);
        let answers = notes.answers.get(question);
        let mut acked = Acked { complete: true, ..Acked::default() };
        for replica in expected {
            let answer = answers.and_then(|answers| answers.get(replica));
            let (applied, connected) = match (answer, notes.replicas.get(replica)) {
                (Some(answer), Some(_)) => (answer.applied, answer.of),
                // Gone, and its watchers with it; what they had applied they have applied.
                (Some(answer), None) => (answer.applied, answer.applied),
                (None, Some(registered)) => {
                    acked.complete = false;
                    (0, registered.watchers)
                }
                (None, None) => (0, 0),
            };
            acked.applied = acked.applied.saturating_add(applied);
            acked.connected = acked.connected.saturating_add(connected);
        }
        acked.complete &= acked.applied == acked.connected;
        acked
    }

    async fn answer(&self, id: &str, question: Question, answer: Answer) {
        let about = About::Answer { question: id.to_owned(), replica: self.id.clone() };
        let name = about.name();
        let said = timeout(KEEP_EVERY, self.board.put(&name, answer.write(), question.lease));
        match said.await {
            // Whoever asked waits no more if its lease has ended.
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot say what the watchers have applied"),
            Err(_) => tracing::warn!("cannot say in time what the watchers have applied"),
        }
    }
}

impl Notes {
    fn put(&mut self, name: &str, value: &[u8]) -> Option<(String, Question)> {
        match About::read(name)? {
            About::Replica(id) => {
                self.replicas.insert(id, Registration::read(value)?);
                None
            }
            About::Question(id) => {
                let question = Question::read(value)?;
                self.questions.insert(id.clone()).then_some((id, question))
            }
            About::Answer { question, replica } => {
                let answer = Answer::read(value)?;
                self.answers.entry(question).or_default().insert(replica, answer);
                None
            }
        }
    }

    fn gone(&mut self, name: &str) {
        match About::read(name) {
            Some(About::Replica(id)) => {
                self.replicas.remove(&id);
                self.offsets.keep_only(|known| known != id);
            }
            Some(About::Question(id)) => {
                self.questions.remove(&id);
                self.answers.remove(&id);
            }
            // It comes down with its question.
            Some(About::Answer { .. }) | None => {}
        }
    }
}

/// What the clocks of the replicas that are there showed when they last said so, which was not long
/// before now. For who is not one of them yet.
///
/// # Errors
/// When they cannot be read.
pub async fn clocks_of(board: &dyn Board) -> Result<Vec<Timestamp>, StoreError> {
    let mut changes = board.follow();
    match timeout(PATIENCE, changes.recv()).await {
        Ok(Some(Change::All(notes))) => Ok(notes
            .into_iter()
            .filter(|(name, _)| matches!(About::read(name), Some(About::Replica(_))))
            .filter_map(|(_, value)| Some(Registration::read(&value)?.clock))
            .collect()),
        Ok(_) | Err(_) => Err(StoreError::Unavailable("the replicas cannot be listed".to_owned())),
    }
}

/// Keeps the registration, and answers what others ask.
pub(super) fn spawn(shared: &Arc<Shared>, joined: Joined) -> [AbortHandle; 2] {
    let keeping = keep_registered(Arc::clone(shared), Arc::clone(&joined.peers));
    [
        tokio::spawn(keeping).abort_handle(),
        tokio::spawn(follow(Arc::clone(shared), joined)).abort_handle(),
    ]
}

async fn keep_registered(shared: Arc<Shared>, peers: Arc<Peers>) {
    let mut ticks = interval(KEEP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let watchers = u32::try_from(shared.registry.len()).unwrap_or(u32::MAX);
        match timeout(KEEP_EVERY, peers.keep(watchers)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot keep the registration"),
            Err(_) => tracing::warn!("cannot keep the registration in time"),
        }
    }
}

async fn follow(shared: Arc<Shared>, joined: Joined) {
    let Joined { peers, mut asked, mut changes } = joined;
    let mut answering = JoinSet::new();
    loop {
        for (id, question) in asked {
            answering.spawn(answer(Arc::clone(&shared), Arc::clone(&peers), id, question));
        }
        let Some(change) = changes.recv().await else { return };
        while answering.try_join_next().is_some() {}
        asked = peers.take(change);
    }
}

/// Answers as soon as all watchers of this replica have applied what is asked for; with what there is
/// shortly before the time is over, and at last when it is.
async fn answer(shared: Arc<Shared>, peers: Arc<Peers>, id: String, question: Question) {
    let deadline = Instant::now() + question.limit;
    let early = deadline - (question.limit / 4).min(Duration::from_millis(500));
    // First until the event is here: whoever attaches before that has it neither in its snapshot nor
    // among those who are asked.
    let mut head = shared.head.subscribe();
    let is_here = |head: &Revision| *head >= question.through;
    let late = timeout_at(early, head.wait_for(is_here)).await.is_err();
    if late {
        let of = u32::try_from(shared.registry.len()).unwrap_or(u32::MAX);
        peers.answer(&id, question, Answer { applied: 0, of }).await;
        if timeout_at(deadline, head.wait_for(is_here)).await.is_err() {
            return;
        }
    }
    let mut waiter = shared.registry.expect(question.through);
    shared.wake();
    for until in [early, deadline] {
        let acked = waiter.wait_until(until).await;
        let said = Answer { applied: acked.applied, of: acked.connected };
        peers.answer(&id, question, said).await;
        if acked.complete {
            return;
        }
    }
}
