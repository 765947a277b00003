//! The verbs of [`Store`], written once over [`Txn`] and carried by any [`Engine`].
//!
//! Each verb is a decision: it reads records, asks a pure function of `domain`, and writes what that
//! said. Whatever ends a token appends its event before the decision is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use self::epochs::{current_epochs, raise, raise_by, read_epoch};
use self::sessions::session_in;
use self::users::user_in;
use super::backup::{Capture, CaptureError};
use super::board::Board;
use super::codec::{self, key};
use super::engine::{
    Answer, Commit, Decision, Engine, EngineStatus, KeyRange, LoggedEvent, Observer, Reads,
    TIME_KEY, Txn, Value,
};
use super::{
    Changed, ClientChange, EntryObserver, Level, Login, NewSession, Opened, Revoked, RingChange,
    RingChanged, Rotation, Store, StoreError, StoredRing, Swept, UserChange,
};
use crate::domain::client::Client;
use crate::domain::clock::Timestamp;
use crate::domain::event::{Cause, Entry, Event, Initiator, Reason, Revocation, Target};
use crate::domain::ids::{ClientId, Cursor, Epoch, Epochs, Revision, SessionId, SubjectId};
use crate::domain::secret::SecretText;
use crate::domain::session::{Device, Presented, RotationRules, Session};
use crate::domain::throttle::{ThrottleDecision, ThrottlePolicy};
use crate::domain::user::User;

mod attempts;
mod clients;
mod epochs;
mod ring;
mod sessions;
mod sweep;
mod users;

/// How coarsely the latest moment is kept, in milliseconds: it is written at most this often, and
/// the clock starts this much later than what was written.
const TIME_GRAIN_MILLIS: u64 = 1000;

/// The verbs over one engine.
pub struct Ledger<E> {
    engine: E,
    /// An event came that this program cannot read, so nobody here knows what it revokes.
    unreadable: Arc<AtomicBool>,
}

/// How far a restore raises the epoch of everything: further than it rises between a backup and its
/// restore, or tokens that were issued under a higher one would live on. It can be done 4,000 times.
const RESTORE_STEPS: u32 = 1 << 20;

/// How many sources are forgotten when the failures on an account are.
const MAX_SOURCES_CLEARED: usize = 10_000;

/// How often the ring is read until it is the same at the end as at the beginning.
const MAX_READS_OF_THE_RING: usize = 16;

type Decided<T> = Result<T, StoreError>;

impl<E: Engine> Ledger<E> {
    /// The verbs over `engine`.
    pub fn new(engine: E) -> Self {
        Self { engine, unreadable: Arc::default() }
    }

    /// The engine beneath.
    pub const fn engine(&self) -> &E {
        &self.engine
    }

    /// Revokes everything that was issued before this store was restored: raises the epoch of
    /// everything past all that it may have had since the backup.
    ///
    /// # Errors
    /// As for the verbs of [`Store`].
    pub async fn revoke_after_restore(&self, now: Timestamp) -> Decided<Entry> {
        let cause = Cause { reason: Reason::AdminAction, initiator: Initiator::Admin };
        let (revocation, commit) = self
            .decide(now, move |txn| raise_by(txn, &Level::Everything, RESTORE_STEPS, cause, now))
            .await?;
        entry(revocation, commit)
    }

    async fn ask<T: Send + 'static>(
        &self,
        query: impl Fn(&dyn Reads) -> Decided<T> + Send + Sync,
    ) -> Decided<T> {
        unbox(self.engine.read(&|reads| Ok(Box::new(query(reads)?))).await?)
    }

    async fn decide<T: Send + 'static>(
        &self,
        now: Timestamp,
        verb: impl Fn(&mut Txn<'_>) -> Decided<T> + Send + 'static,
    ) -> Decided<(T, Commit)> {
        let (answer, commit) = self.engine.commit(decision(now, verb)).await?;
        Ok((unbox(answer)?, commit))
    }
}

impl<E: Engine> Ledger<E> {
    /// Sweeps up to `limit` records, `at_once` in one decision.
    async fn sweep_kind(
        &self,
        limit: usize,
        at_once: usize,
        now: Timestamp,
        verb: impl Fn(&mut Txn<'_>) -> Decided<u32> + Clone + Send + 'static,
    ) -> Decided<u32> {
        let reaches =
            |count: u32, limit: usize| usize::try_from(count).is_ok_and(|count| count >= limit);
        let mut swept = 0_u32;
        loop {
            let (answer, _) = self.engine.commit_freeing(decision(now, verb.clone())).await?;
            let some: u32 = unbox(answer)?;
            swept = swept.saturating_add(some);
            if !reaches(some, at_once) || reaches(swept, limit) {
                return Ok(swept);
            }
        }
    }
}

fn decision<T: Send + 'static>(
    now: Timestamp,
    verb: impl Fn(&mut Txn<'_>) -> Decided<T> + Send + 'static,
) -> Decision {
    Box::new(move |txn| {
        let answer = verb(txn)?;
        // Nearly every decision finds it written by another, a moment ago.
        if is_due(txn.peek(TIME_KEY)?, now)? && is_due(txn.get(TIME_KEY)?, now)? {
            txn.put(TIME_KEY.to_vec(), codec::write_number(now.as_millis()));
        }
        Ok(Box::new(answer))
    })
}

/// Whether the latest moment is to be written again.
fn is_due(latest: Option<Value>, now: Timestamp) -> Decided<bool> {
    let known = latest.map_or(Ok(0), |bytes| codec::read_number(&bytes))?;
    Ok(now.as_millis() >= known.saturating_add(TIME_GRAIN_MILLIS))
}

fn unbox<T: 'static>(answer: Answer) -> Decided<T> {
    answer
        .downcast::<T>()
        .map(|answer| *answer)
        .map_err(|_| StoreError::Internal("a decision answered with another type"))
}

/// What a verb that revokes came to: a revocation, or why there is none; nothing when there is no such
/// thing.
type Outcome = Option<Result<Revocation, Revoked>>;

/// The entry that a commit made of `revocation`.
fn entry(revocation: Revocation, commit: Commit) -> Decided<Entry> {
    let revision = commit.event.ok_or(StoreError::Internal("a revocation got no revision"))?;
    Ok(Entry { revision, event: Event::Revocation(revocation) })
}

fn revoked(decided: Outcome, commit: Commit) -> Decided<Revoked> {
    match decided {
        None => Ok(Revoked::Unknown),
        Some(Err(outcome)) => Ok(outcome),
        Some(Ok(revocation)) => Ok(Revoked::Now(entry(revocation, commit)?)),
    }
}

fn append(txn: &mut Txn<'_>, event: &Event) -> Decided<()> {
    txn.append(codec::write_event(event))
}

/// The id at the end of a key, after `skip` bytes.
fn id_in_key<T: std::str::FromStr>(at: &[u8], skip: usize) -> Decided<T> {
    at.get(skip..)
        .and_then(|bytes| std::str::from_utf8(bytes).ok())
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| StoreError::Corrupt("an id in a key cannot be read".to_owned()))
}

fn array_in_key<const N: usize>(at: &[u8]) -> Decided<[u8; N]> {
    at.len()
        .checked_sub(N)
        .and_then(|start| at[start..].try_into().ok())
        .ok_or_else(|| StoreError::Corrupt("an id in a key cannot be read".to_owned()))
}

/// The range of keys of `kind` after `after`.
fn page(kind: u8, after: Option<&str>) -> KeyRange {
    let mut range = KeyRange::prefix(&[kind]);
    if let Some(after) = after {
        range.start.extend_from_slice(after.as_bytes());
        range.start.push(0);
    }
    range
}

/// Whom a store tells that is closed.
struct Nobody;

impl Observer for Nobody {
    fn durable(&self, _events: &[LoggedEvent], _head: Revision) {}
}

struct Decoding {
    observer: Arc<dyn EntryObserver>,
    unreadable: Arc<AtomicBool>,
}

impl Observer for Decoding {
    fn durable(&self, events: &[LoggedEvent], head: Revision) {
        let mut entries = Vec::with_capacity(events.len());
        for logged in events {
            match codec::read_event(&logged.value) {
                Ok(event) => entries.push(Entry { revision: logged.revision, event }),
                // Written by another replica that knows more, or damaged. To go on as if it had not
                // come would be a hole.
                Err(error) => {
                    self.unreadable.store(true, Ordering::Release);
                    tracing::error!(%error, "an event cannot be read: this server vouches for nothing");
                }
            }
        }
        self.observer.durable(&entries, head);
    }
}

#[async_trait]
impl<E: Engine> Store for Ledger<E> {
    async fn open_session(&self, new: NewSession, now: Timestamp) -> Decided<Opened> {
        let verb = move |txn: &mut Txn<'_>| sessions::open(txn, &new, now);
        Ok(self.decide(now, verb).await?.0)
    }

    async fn rotate(
        &self,
        presented: Presented,
        rules: RotationRules,
        device: Option<Device>,
        now: Timestamp,
    ) -> Decided<Rotation> {
        let verb = move |txn: &mut Txn<'_>| {
            sessions::rotate(txn, &presented, &rules, device.as_ref(), now)
        };
        let (mut rotation, commit) = self.decide(now, verb).await?;
        if let Rotation::Reused(_, _, revision) = &mut rotation {
            *revision = commit.event;
        }
        Ok(rotation)
    }

    async fn revoke_session(
        &self,
        id: SessionId,
        cause: Cause,
        now: Timestamp,
    ) -> Decided<Revoked> {
        let verb = move |txn: &mut Txn<'_>| sessions::revoke(txn, id, cause, now);
        let (decided, commit) = self.decide(now, verb).await?;
        revoked(decided, commit)
    }

    async fn revoke_token(&self, token: Target, cause: Cause, now: Timestamp) -> Decided<Revoked> {
        let verb = move |txn: &mut Txn<'_>| sessions::revoke_token(txn, &token, cause, now);
        let (decided, commit) = self.decide(now, verb).await?;
        revoked(decided, commit)
    }

    async fn raise_epoch(&self, level: Level, cause: Cause, now: Timestamp) -> Decided<Entry> {
        let (revocation, commit) =
            self.decide(now, move |txn| raise(txn, &level, cause, now)).await?;
        entry(revocation, commit)
    }

    async fn epochs(&self, client: &ClientId, subject: &SubjectId) -> Decided<Epochs> {
        self.ask(|reads| current_epochs(reads, client, subject)).await
    }

    async fn find_login(&self, username: &str, client: &ClientId) -> Decided<Login> {
        self.ask(|reads| users::login(reads, username, client)).await
    }

    async fn find_client_and_epochs(&self, id: &ClientId) -> Decided<(Option<Client>, Epochs)> {
        self.ask(|reads| clients::with_epochs(reads, id)).await
    }

    async fn subject_epoch(&self, subject: &SubjectId) -> Decided<Epoch> {
        self.ask(|reads| read_epoch(reads.get(&key::subject_epoch(subject))?)).await
    }

    async fn find_session(&self, id: SessionId) -> Decided<Option<Session>> {
        self.ask(|reads| session_in(reads, id)).await
    }

    async fn find_session_and_epochs(&self, id: SessionId) -> Decided<Option<(Session, Epochs)>> {
        self.ask(|reads| sessions::with_epochs(reads, id)).await
    }

    async fn recall_session(&self, id: SessionId) -> Decided<Option<Session>> {
        let query = |reads: &dyn Reads| Ok(Box::new(session_in(reads, id)?) as Answer);
        unbox(self.engine.recall(&query).await?)
    }

    async fn sessions_of(
        &self,
        subject: &SubjectId,
        after: Option<&Session>,
        limit: usize,
    ) -> Decided<Vec<(Session, Epochs)>> {
        let mut range = KeyRange::prefix(&key::sessions_of(subject));
        if let Some(after) = after {
            range.end = Some(key::session_of(after));
        }
        self.ask(|reads| sessions::in_index(reads, &range, limit)).await
    }

    async fn create_user(&self, user: User, now: Timestamp) -> Decided<bool> {
        let verb = move |txn: &mut Txn<'_>| users::create(txn, &user);
        Ok(self.decide(now, verb).await?.0)
    }

    async fn change_user(
        &self,
        subject: SubjectId,
        change: UserChange,
        cause: Option<Cause>,
        now: Timestamp,
    ) -> Decided<Changed<User>> {
        let verb = move |txn: &mut Txn<'_>| users::change(txn, &subject, &change, cause, now);
        let (changed, commit) = self.decide(now, verb).await?;
        Ok(match changed {
            Err(refused) => refused,
            Ok((user, revocation)) => Changed::Done(
                user,
                revocation.map(|revocation| entry(revocation, commit)).transpose()?,
            ),
        })
    }

    async fn rehash_password(
        &self,
        subject: SubjectId,
        from: SecretText,
        to: SecretText,
        now: Timestamp,
    ) -> Decided<()> {
        let verb = move |txn: &mut Txn<'_>| users::rehash(txn, &subject, &from, &to);
        self.decide(now, verb).await.map(|((), _)| ())
    }

    async fn delete_user(
        &self,
        subject: SubjectId,
        cause: Cause,
        now: Timestamp,
    ) -> Decided<Revoked> {
        let verb = move |txn: &mut Txn<'_>| users::delete(txn, &subject, cause, now);
        let (decided, commit) = self.decide(now, verb).await?;
        revoked(decided, commit)
    }

    async fn find_user(&self, subject: &SubjectId) -> Decided<Option<User>> {
        self.ask(|reads| user_in(reads, subject)).await
    }

    async fn find_user_by_name(&self, username: &str) -> Decided<Option<User>> {
        self.ask(|reads| users::by_name(reads, username)).await
    }

    async fn users(&self, after: Option<&SubjectId>, limit: usize) -> Decided<Vec<(User, Epoch)>> {
        let range = page(b'u', after.map(SubjectId::as_str));
        self.ask(|reads| users::in_range(reads, &range, limit)).await
    }

    async fn create_client(&self, client: Client, now: Timestamp) -> Decided<bool> {
        let verb = move |txn: &mut Txn<'_>| clients::create(txn, &client);
        Ok(self.decide(now, verb).await?.0)
    }

    async fn change_client(
        &self,
        id: ClientId,
        change: ClientChange,
        cause: Option<Cause>,
        now: Timestamp,
    ) -> Decided<Changed<Client>> {
        let verb = move |txn: &mut Txn<'_>| clients::change(txn, &id, &change, cause, now);
        let (changed, commit) = self.decide(now, verb).await?;
        Ok(match changed {
            None => Changed::Unknown,
            Some((client, revocation)) => Changed::Done(
                client,
                revocation.map(|revocation| entry(revocation, commit)).transpose()?,
            ),
        })
    }

    async fn delete_client(&self, id: ClientId, cause: Cause, now: Timestamp) -> Decided<Revoked> {
        let verb = move |txn: &mut Txn<'_>| clients::delete(txn, &id, cause, now);
        let (decided, commit) = self.decide(now, verb).await?;
        revoked(decided, commit)
    }

    async fn find_client(&self, id: &ClientId) -> Decided<Option<Client>> {
        self.ask(|reads| clients::client_in(reads, id)).await
    }

    async fn clients(
        &self,
        after: Option<&ClientId>,
        limit: usize,
    ) -> Decided<Vec<(Client, Epoch)>> {
        let range = page(b'c', after.map(ClientId::as_str));
        self.ask(|reads| clients::in_range(reads, &range, limit)).await
    }

    async fn ring(&self) -> Decided<StoredRing> {
        // It is several records, and a query may see each at a moment of its own, in any order. Each
        // change raises the version, so if that is the same before and after, they are of one ring.
        let mut before = self.ask(ring::version).await?;
        for _ in 0..MAX_READS_OF_THE_RING {
            let stored = self.ask(ring::stored).await?;
            let after = self.ask(ring::version).await?;
            if before == after {
                return Ok(stored);
            }
            before = after;
        }
        Err(StoreError::Unavailable("the key ring is being changed by others".to_owned()))
    }

    async fn change_ring(
        &self,
        version: u64,
        change: RingChange,
        now: Timestamp,
    ) -> Decided<RingChanged> {
        let verb = move |txn: &mut Txn<'_>| ring::change(txn, version, &change, now);
        let (event, commit) = self.decide(now, verb).await?;
        match (event, commit.event) {
            (Some(event), Some(revision)) => Ok(RingChanged::Done(Entry { revision, event })),
            (Some(_), None) => Err(StoreError::Internal("a key event got no revision")),
            (None, _) => Ok(RingChanged::Conflict),
        }
    }

    async fn begin_attempt(
        &self,
        account: [u8; 8],
        source: [u8; 8],
        policy: ThrottlePolicy,
        now: Timestamp,
    ) -> Decided<ThrottleDecision> {
        let verb = move |txn: &mut Txn<'_>| attempts::begin(txn, account, source, &policy, now);
        Ok(self.decide(now, verb).await?.0)
    }

    async fn undo_attempt(&self, account: [u8; 8], source: [u8; 8], now: Timestamp) -> Decided<()> {
        let verb = move |txn: &mut Txn<'_>| attempts::undo(txn, account, source, now);
        self.decide(now, verb).await.map(|((), _)| ())
    }

    async fn clear_attempts(
        &self,
        account: [u8; 8],
        source: Option<[u8; 8]>,
        now: Timestamp,
    ) -> Decided<()> {
        if let Some(source) = source {
            let forget = move |txn: &mut Txn<'_>| {
                txn.delete(key::attempts(account, source));
                Ok(())
            };
            return self.decide(now, forget).await.map(|((), _)| ());
        }
        let mut left = MAX_SOURCES_CLEARED;
        loop {
            let limit = left.min(self.engine.sweeps_at_once());
            let forget = move |txn: &mut Txn<'_>| attempts::clear(txn, account, limit);
            let (count, _) = self.decide(now, forget).await?;
            left -= count;
            if count < limit || left == 0 {
                return Ok(());
            }
        }
    }

    fn events_after(&self, after: Revision, limit: usize) -> Decided<Vec<Entry>> {
        self.engine
            .events_after(after, limit)?
            .into_iter()
            .map(|logged| {
                Ok(Entry { revision: logged.revision, event: codec::read_event(&logged.value)? })
            })
            .collect()
    }

    fn head(&self) -> Cursor {
        self.engine.head()
    }

    async fn count_sessions(&self) -> Decided<u64> {
        // Each session has one entry that says when to look at it.
        self.engine.count(KeyRange::prefix(key::SESSIONS_DUE)).await
    }

    /// A decision for each kind, and as many as it takes.
    async fn sweep(&self, limit: usize, now: Timestamp) -> Decided<Swept> {
        let at_once = limit.min(self.engine.sweeps_at_once());
        let sessions =
            self.sweep_kind(limit, at_once, now, move |txn| sweep::sessions(txn, at_once, now));
        let sessions = sessions.await?;
        let events = self
            .sweep_kind(limit, at_once, now, move |txn| sweep::events(txn, limit, at_once, now));
        let events = events.await?;
        let attempts =
            self.sweep_kind(limit, at_once, now, move |txn| sweep::attempts(txn, at_once, now));
        let attempts = attempts.await?;
        let full = |count: u32| usize::try_from(count).is_ok_and(|count| count >= limit);
        let more = full(sessions) || full(events) || full(attempts);
        Ok(Swept { sessions, events, attempts, more })
    }

    fn capture(&self) -> Result<Box<dyn Capture>, CaptureError> {
        self.engine.capture()
    }

    fn observe(&self, observer: Arc<dyn EntryObserver>) {
        let unreadable = Arc::clone(&self.unreadable);
        self.engine.observe(Arc::new(Decoding { observer, unreadable }));
    }

    fn time_floor(&self) -> Timestamp {
        let floor = self.engine.time_floor();
        // Ahead of the other replicas it would not be one of them: they do not take what comes from
        // later than now. They keep the time meanwhile.
        if floor == Timestamp::default() || self.engine.is_shared() {
            return floor;
        }
        Timestamp::from_millis(floor.as_millis().saturating_add(TIME_GRAIN_MILLIS))
    }

    async fn latest_time(&self) -> Decided<Timestamp> {
        let known = self.ask(|reads| reads.get(TIME_KEY)).await?;
        Ok(Timestamp::from_millis(known.map_or(Ok(0), |bytes| codec::read_number(&bytes))?))
    }

    async fn note_time(&self, now: Timestamp) -> Decided<()> {
        self.decide(now, |_| Ok(())).await?;
        Ok(())
    }

    async fn take_sweep_turn(
        &self,
        who: [u8; 16],
        lasts: Duration,
        now: Timestamp,
    ) -> Decided<bool> {
        if self.engine.board().is_none() {
            return Ok(true);
        }
        Ok(self.decide(now, move |txn| sweep::take_turn(txn, who, lasts, now)).await?.0)
    }

    fn board(&self) -> Option<Arc<dyn Board>> {
        self.engine.board()
    }

    fn status(&self) -> EngineStatus {
        self.engine.status()
    }

    async fn prove_contact(&self) -> bool {
        let proved = self.engine.prove_contact().await;
        // Read after: what was told meanwhile counts.
        proved && !self.unreadable.load(Ordering::Acquire)
    }

    async fn close(&self) {
        self.engine.close().await;
        // The observer mostly holds the store: without this, neither would ever be dropped, and the
        // directory would stay locked for as long as the process lives.
        self.engine.observe(Arc::new(Nobody));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::LogId;
    use crate::store::engine::Answer;
    use crate::store::memory::MemoryEngine;

    struct Quiet;

    impl EntryObserver for Quiet {
        fn durable(&self, _: &[Entry], _: Revision) {}
    }

    /// A replica of a newer version may write what this one does not know.
    #[tokio::test]
    async fn who_cannot_read_an_event_vouches_for_nothing() {
        let ledger = Ledger::new(MemoryEngine::new(LogId::from_bytes([3; 16])));
        ledger.observe(Arc::new(Quiet));
        assert!(ledger.prove_contact().await);
        let unknown: Decision = Box::new(|txn| {
            txn.append(vec![0xff; 8])?;
            Ok(Box::new(()) as Answer)
        });
        ledger.engine().commit(unknown).await.unwrap();
        assert!(!ledger.prove_contact().await);
    }
}
