//! The verbs of [`Store`], written once over [`Txn`] and carried by any [`Engine`].
//!
//! Each verb is a decision: it reads records, asks a pure function of `domain`, and writes what that
//! said. Whatever ends a token appends its event before the decision is over.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;

use super::backup::{Capture, CaptureError};
use super::codec::{self, key};
use super::engine::{
    Answer, Commit, Decision, Engine, EngineStatus, KeyRange, LoggedEvent, Observer, Order, Reads,
    Rests, TIME_KEY, Txn, Value,
};
use super::{
    Changed, ClientChange, EntryObserver, Level, NewSession, Opened, Revoked, RingChange,
    RingChanged, Rotation, Store, StoreError, StoredRing, Swept, UserChange,
};
use crate::domain::client::Client;
use crate::domain::clock::Timestamp;
use crate::domain::event::{
    Cause, Entry, Event, Initiator, RETENTION, Reason, Revocation, SKEW, Target,
};
use crate::domain::ids::{ClientId, Cursor, Epoch, Epochs, KeyId, Revision, SessionId, SubjectId};
use crate::domain::key::MacKeyId;
use crate::domain::secret::SecretText;
use crate::domain::session::{
    Device, Presented, Revoked as SessionRevoked, RotationDecision, RotationRules, Session,
    SessionState, decide_rotation,
};
use crate::domain::throttle::{Attempts, ThrottleDecision, ThrottlePolicy, decide_attempt};
use crate::domain::user::User;
use crate::domain::view::{SESSION_BUCKET_SECS, TOKEN_BUCKET_SECS, bucket_end};

/// How coarsely the latest moment is kept, in milliseconds: it is written at most this often, and
/// the clock starts this much later than what was written.
const TIME_GRAIN_MILLIS: u64 = 1000;

/// The verbs over one engine.
pub struct Ledger<E> {
    engine: E,
}

/// How many sessions of a subject a login looks at, at most a page more. Whoever logs in and out this
/// often within the life of a session may keep more than its limit; nobody makes the log wait.
const MAX_SESSIONS_LOOKED_AT: usize = 2_000;

/// How far a restore raises the epoch of everything: further than it rises between a backup and its
/// restore, or tokens that were issued under a higher one would live on. It can be done 4,000 times.
const RESTORE_STEPS: u32 = 1 << 20;

/// How many sources are forgotten when the failures on an account are.
const MAX_SOURCES_CLEARED: usize = 10_000;

type Decided<T> = Result<T, StoreError>;

impl<E: Engine> Ledger<E> {
    /// The verbs over `engine`.
    pub const fn new(engine: E) -> Self {
        Self { engine }
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

/// The entry that a commit made of `revocation`.
fn entry(revocation: Revocation, commit: Commit) -> Decided<Entry> {
    let revision = commit.event.ok_or(StoreError::Internal("a revocation got no revision"))?;
    Ok(Entry { revision, event: Event::Revocation(revocation) })
}

fn revoked(decided: Option<Result<Revocation, Revoked>>, commit: Commit) -> Decided<Revoked> {
    match decided {
        None => Ok(Revoked::Unknown),
        Some(Err(outcome)) => Ok(outcome),
        Some(Ok(revocation)) => Ok(Revoked::Now(entry(revocation, commit)?)),
    }
}

fn append(txn: &mut Txn<'_>, event: &Event) -> Decided<()> {
    txn.append(codec::write_event(event))
}

fn read_epoch(bytes: Option<Vec<u8>>) -> Decided<Epoch> {
    let number = bytes.map_or(Ok(0), |bytes| codec::read_number(&bytes))?;
    u32::try_from(number)
        .map(Epoch)
        .map_err(|_| StoreError::Corrupt("an epoch is out of range".to_owned()))
}

fn epoch_keys(client: &ClientId, subject: &SubjectId) -> [Vec<u8>; 3] {
    [key::epoch(&Level::Everything), key::client_epoch(client), key::subject_epoch(subject)]
}

fn read_epochs(found: Vec<Option<Value>>) -> Decided<Epochs> {
    let mut found = found.into_iter();
    let mut next = || read_epoch(found.next().flatten());
    Ok(Epochs { global: next()?, client: next()?, subject: next()? })
}

fn current_epochs(reads: &dyn Reads, client: &ClientId, subject: &SubjectId) -> Decided<Epochs> {
    read_epochs(reads.get_many(&epoch_keys(client, subject), Rests::OnAll)?)
}

/// The epochs before this decision.
fn get_epochs(txn: &Txn<'_>, client: &ClientId, subject: &SubjectId) -> Decided<Epochs> {
    read_epochs(txn.get_committed(&epoch_keys(client, subject), Rests::OnAll)?)
}

fn session_in(reads: &dyn Reads, id: SessionId) -> Decided<Option<Session>> {
    reads.get(&key::session(id))?.map(|bytes| codec::read_session(id, &bytes)).transpose()
}

fn user_in(reads: &dyn Reads, subject: &SubjectId) -> Decided<Option<User>> {
    let found = reads.get(&key::user(subject))?;
    found.map(|bytes| codec::read_user(subject.clone(), &bytes)).transpose()
}

fn get_session(txn: &Txn<'_>, id: SessionId) -> Decided<Option<Session>> {
    txn.get(&key::session(id))?.map(|bytes| codec::read_session(id, &bytes)).transpose()
}

fn put_session(txn: &mut Txn<'_>, session: &Session) {
    txn.put(key::session(session.id), codec::write_session(session));
}

/// Revokes a session in this commit.
fn end_session(
    txn: &mut Txn<'_>,
    session: Session,
    cause: Cause,
    now: Timestamp,
) -> Decided<Revocation> {
    let revocation = Revocation {
        target: Target::Session {
            id: session.id,
            client: session.client.clone(),
            subject: session.subject.clone(),
            audience: session.audience.clone(),
        },
        cause,
        at: now,
        // The end of its bucket, so that both ends of a stream drop it at the same moment.
        expires_at: Timestamp::from_secs(bucket_end(session.forgettable_at(), SESSION_BUCKET_SECS)),
    };
    put_session(txn, &Session { revoked: Some(SessionRevoked { at: now, cause }), ..session });
    append(txn, &Event::Revocation(revocation.clone()))?;
    Ok(revocation)
}

/// Raises an epoch in this commit.
fn raise(txn: &mut Txn<'_>, level: &Level, cause: Cause, now: Timestamp) -> Decided<Revocation> {
    raise_by(txn, level, 1, cause, now)
}

fn raise_by(
    txn: &mut Txn<'_>,
    level: &Level,
    steps: u32,
    cause: Cause,
    now: Timestamp,
) -> Decided<Revocation> {
    let at = key::epoch(level);
    let known = read_epoch(txn.get(&at)?)?;
    let epoch = Epoch(
        known.0.checked_add(steps).ok_or(StoreError::Internal("an epoch cannot rise further"))?,
    );
    txn.put(at, codec::write_number(epoch.0.into()));
    let target = match level {
        Level::Everything => Target::Everything { epoch },
        Level::Client(id) => Target::Client { id: id.clone(), epoch },
        Level::Subject(id) => Target::Subject { id: id.clone(), epoch },
    };
    let revocation = Revocation { target, cause, at: now, expires_at: now.after(RETENTION) };
    append(txn, &Event::Revocation(revocation.clone()))?;
    Ok(revocation)
}

fn get_user(txn: &Txn<'_>, subject: &SubjectId) -> Decided<Option<User>> {
    txn.get(&key::user(subject))?.map(|bytes| codec::read_user(subject.clone(), &bytes)).transpose()
}

fn get_client(txn: &Txn<'_>, id: &ClientId) -> Decided<Option<Client>> {
    txn.get(&key::client(id))?.map(|bytes| codec::read_client(id.clone(), &bytes)).transpose()
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

/// The range of due keys of `kind` that are due at `now`.
fn due_by(kind: u8, now: Timestamp) -> KeyRange {
    let mut end = vec![kind];
    end.extend_from_slice(&(now.as_secs().saturating_add(1)).to_be_bytes());
    KeyRange { start: vec![kind], end: Some(end) }
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

struct Decoding(Arc<dyn EntryObserver>);

impl Observer for Decoding {
    fn durable(&self, events: &[LoggedEvent], head: Revision) {
        let mut entries = Vec::with_capacity(events.len());
        for logged in events {
            match codec::read_event(&logged.value) {
                Ok(event) => entries.push(Entry { revision: logged.revision, event }),
                // It was written by this process a moment ago; `events_after` finds the damage.
                Err(error) => {
                    tracing::error!(%error, "an event that was just committed cannot be read")
                }
            }
        }
        self.0.durable(&entries, head);
    }
}

#[async_trait]
impl<E: Engine> Store for Ledger<E> {
    async fn open_session(&self, new: NewSession, now: Timestamp) -> Decided<Opened> {
        let (opened, _) = self
            .decide(now, move |txn| {
                let session = &new.session;
                let current = get_epochs(txn, &session.client, &session.subject)?;
                if current != session.epochs {
                    return Ok(Opened::Stale);
                }
                let evicted = oldest_beyond(txn, session, new.max_per_subject, &current, now)?;
                let evicted = match evicted {
                    None => None,
                    Some(oldest) => {
                        let id = oldest.id;
                        let cause = Cause {
                            reason: Reason::SessionSuperseded,
                            initiator: Initiator::Policy,
                        };
                        end_session(txn, oldest, cause, now)?;
                        Some(id)
                    }
                };
                put_session(txn, session);
                txn.put(key::session_of(session), Vec::new());
                txn.put(key::session_due(session.ends_at(), session.id), Vec::new());
                if let Some((account, source)) = new.clear_attempts {
                    txn.delete(key::attempts(account, source));
                }
                Ok(Opened::Open { evicted })
            })
            .await?;
        Ok(opened)
    }

    async fn rotate(
        &self,
        presented: Presented,
        rules: RotationRules,
        device: Option<Device>,
        now: Timestamp,
    ) -> Decided<Rotation> {
        let (mut rotation, commit) = self
            .decide(now, move |txn| {
                let Some(session) = get_session(txn, presented.session)? else {
                    return Ok(Rotation::Unknown);
                };
                let current = get_epochs(txn, &session.client, &session.subject)?;
                Ok(match decide_rotation(&session, &presented, &rules, &current, now) {
                    RotationDecision::Rotate(mut next) => {
                        if let Some(device) = &device {
                            next.device.user_agent.clone_from(&device.user_agent);
                            next.device.address.clone_from(&device.address);
                        }
                        put_session(txn, &next);
                        Rotation::Rotated(next)
                    }
                    RotationDecision::Retry => Rotation::Retried(Box::new(session)),
                    RotationDecision::Refuse(refusal) => {
                        Rotation::Refused(refusal, Box::new(session))
                    }
                    RotationDecision::Reuse(kind, None) => {
                        Rotation::Reused(kind, Box::new(session), None)
                    }
                    RotationDecision::Reuse(kind, Some(ended)) => {
                        if let Some(revoked) = ended.revoked {
                            end_session(txn, session, revoked.cause, now)?;
                        }
                        Rotation::Reused(kind, ended, None)
                    }
                })
            })
            .await?;
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
        let (decided, commit) = self
            .decide(now, move |txn| {
                let Some(session) = get_session(txn, id)? else { return Ok(None) };
                let current = get_epochs(txn, &session.client, &session.subject)?;
                let over = match session.state_at(&current, now) {
                    SessionState::Revoked => true,
                    SessionState::Expired => now >= session.forgettable_at(),
                    SessionState::Active => false,
                };
                if over {
                    return Ok(Some(Err(Revoked::Already)));
                }
                end_session(txn, session, cause, now).map(|revocation| Some(Ok(revocation)))
            })
            .await?;
        revoked(decided, commit)
    }

    async fn revoke_token(&self, token: Target, cause: Cause, now: Timestamp) -> Decided<Revoked> {
        let Target::Token { id, expires_at, .. } = token else {
            return Err(StoreError::Internal("revoke_token takes a token"));
        };
        let (decided, commit) = self
            .decide(now, move |txn| {
                let at = key::revoked_token(id);
                let expires_at = expires_at.after(SKEW);
                if now >= expires_at || txn.get(&at)?.is_some() {
                    return Ok(Some(Err(Revoked::Already)));
                }
                txn.put(at, Vec::new());
                let expires_at = Timestamp::from_secs(bucket_end(expires_at, TOKEN_BUCKET_SECS));
                let revocation = Revocation { target: token.clone(), cause, at: now, expires_at };
                append(txn, &Event::Revocation(revocation.clone()))?;
                Ok(Some(Ok(revocation)))
            })
            .await?;
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

    async fn subject_epoch(&self, subject: &SubjectId) -> Decided<Epoch> {
        self.ask(|reads| read_epoch(reads.get(&key::subject_epoch(subject))?)).await
    }

    async fn find_session(&self, id: SessionId) -> Decided<Option<Session>> {
        self.ask(|reads| session_in(reads, id)).await
    }

    async fn find_session_and_epochs(&self, id: SessionId) -> Decided<Option<(Session, Epochs)>> {
        self.ask(|reads| {
            let Some(session) = session_in(reads, id)? else { return Ok(None) };
            let epochs = current_epochs(reads, &session.client, &session.subject)?;
            Ok(Some((session, epochs)))
        })
        .await
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
        self.ask(|reads| {
            let mut ids = Vec::new();
            for (at, _) in reads.scan(&range, Order::Descending, limit)? {
                ids.push(SessionId::from_bytes(array_in_key(&at)?));
            }
            let keys: Vec<_> = ids.iter().map(|id| key::session(*id)).collect();
            let mut known = HashMap::new();
            let mut sessions = Vec::with_capacity(ids.len());
            // A session may go between the two reads.
            for (id, bytes) in ids.into_iter().zip(reads.get_many(&keys, Rests::OnAll)?) {
                let Some(bytes) = bytes else { continue };
                let session = codec::read_session(id, &bytes)?;
                let epochs = match known.get(&session.client) {
                    Some(epochs) => *epochs,
                    None => {
                        let epochs = current_epochs(reads, &session.client, &session.subject)?;
                        known.insert(session.client.clone(), epochs);
                        epochs
                    }
                };
                sessions.push((session, epochs));
            }
            Ok(sessions)
        })
        .await
    }

    async fn create_user(&self, user: User, now: Timestamp) -> Decided<bool> {
        let (created, _) = self
            .decide(now, move |txn| {
                let taken = txn.get(&key::username(&user.username))?.is_some()
                    || txn.get(&key::user(&user.subject))?.is_some();
                if !taken {
                    txn.put(
                        key::username(&user.username),
                        user.subject.as_str().as_bytes().to_vec(),
                    );
                    txn.put(key::user(&user.subject), codec::write_user(&user));
                }
                Ok(!taken)
            })
            .await?;
        Ok(created)
    }

    async fn change_user(
        &self,
        subject: SubjectId,
        change: UserChange,
        cause: Option<Cause>,
        now: Timestamp,
    ) -> Decided<Changed<User>> {
        let (changed, commit) = self
            .decide(now, move |txn| {
                let Some(known) = get_user(txn, &subject)? else {
                    return Ok(Err(Changed::Unknown));
                };
                if let Some(epoch) = change.if_epoch
                    && read_epoch(txn.get(&key::subject_epoch(&subject))?)? != epoch
                {
                    return Ok(Err(Changed::Stale));
                }
                let mut user = known.clone();
                if let Some(name) = &change.username
                    && *name != known.username
                {
                    if txn.get(&key::username(name))?.is_some() {
                        return Ok(Err(Changed::NameTaken));
                    }
                    txn.delete(key::username(&known.username));
                    txn.put(key::username(name), subject.as_str().as_bytes().to_vec());
                    user.username.clone_from(name);
                }
                if let Some(name) = &change.display_name {
                    user.display_name.clone_from(name);
                }
                if let Some(scope) = &change.scope {
                    user.scope.clone_from(scope);
                }
                if let Some(hash) = &change.password_hash {
                    user.password_hash = Some(hash.clone());
                    user.password_changed_at = Some(now);
                }
                if let Some(disabled) = change.disabled {
                    user.disabled = disabled;
                }
                let ends_tokens = change.password_hash.is_some()
                    || user.scope != known.scope
                    || user.disabled != known.disabled;
                txn.put(key::user(&subject), codec::write_user(&user));
                let revocation = match cause {
                    Some(cause) if ends_tokens => {
                        Some(raise(txn, &Level::Subject(subject.clone()), cause, now)?)
                    }
                    Some(_) | None => None,
                };
                Ok(Ok((user, revocation)))
            })
            .await?;
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
        self.decide(now, move |txn| {
            let Some(mut user) = get_user(txn, &subject)? else { return Ok(()) };
            let unchanged =
                user.password_hash.as_ref().is_some_and(|hash| hash.expose() == from.expose());
            if unchanged {
                user.password_hash = Some(to.clone());
                txn.put(key::user(&subject), codec::write_user(&user));
            }
            Ok(())
        })
        .await?;
        Ok(())
    }

    async fn delete_user(
        &self,
        subject: SubjectId,
        cause: Cause,
        now: Timestamp,
    ) -> Decided<Revoked> {
        let (decided, commit) = self
            .decide(now, move |txn| {
                let Some(user) = get_user(txn, &subject)? else { return Ok(None) };
                txn.delete(key::user(&subject));
                txn.delete(key::username(&user.username));
                raise(txn, &Level::Subject(subject.clone()), cause, now)
                    .map(|revocation| Some(Ok(revocation)))
            })
            .await?;
        revoked(decided, commit)
    }

    async fn find_user(&self, subject: &SubjectId) -> Decided<Option<User>> {
        self.ask(|reads| user_in(reads, subject)).await
    }

    async fn find_user_by_name(&self, username: &str) -> Decided<Option<User>> {
        self.ask(|reads| match reads.get(&key::username(username))? {
            None => Ok(None),
            Some(subject) => user_in(reads, &id_in_key(&subject, 0)?),
        })
        .await
    }

    async fn users(&self, after: Option<&SubjectId>, limit: usize) -> Decided<Vec<User>> {
        let range = page(b'u', after.map(SubjectId::as_str));
        self.ask(|reads| {
            let found = reads.scan(&range, Order::Ascending, limit)?;
            found.iter().map(|(at, bytes)| codec::read_user(id_in_key(at, 1)?, bytes)).collect()
        })
        .await
    }

    async fn create_client(&self, client: Client, now: Timestamp) -> Decided<bool> {
        let (created, _) = self
            .decide(now, move |txn| {
                let taken = txn.get(&key::client(&client.id))?.is_some();
                if !taken {
                    txn.put(key::client(&client.id), codec::write_client(&client));
                }
                Ok(!taken)
            })
            .await?;
        Ok(created)
    }

    async fn change_client(
        &self,
        id: ClientId,
        change: ClientChange,
        cause: Option<Cause>,
        now: Timestamp,
    ) -> Decided<Changed<Client>> {
        let (changed, commit) = self
            .decide(now, move |txn| {
                let Some(known) = get_client(txn, &id)? else { return Ok(None) };
                let client = match &change {
                    ClientChange::Registration(new) => Client {
                        id: known.id.clone(),
                        kind: known.kind,
                        secret_digest: known.secret_digest.clone(),
                        disabled: known.disabled,
                        created_at: known.created_at,
                        ..Client::clone(new)
                    },
                    ClientChange::Secret(digest) => {
                        Client { secret_digest: Some(digest.clone()), ..known.clone() }
                    }
                    ClientChange::Disabled(disabled) => {
                        Client { disabled: *disabled, ..known.clone() }
                    }
                };
                let revocation = match cause {
                    Some(cause) if client != known => {
                        Some(raise(txn, &Level::Client(id.clone()), cause, now)?)
                    }
                    Some(_) | None => None,
                };
                txn.put(key::client(&id), codec::write_client(&client));
                Ok(Some((client, revocation)))
            })
            .await?;
        Ok(match changed {
            None => Changed::Unknown,
            Some((client, revocation)) => Changed::Done(
                client,
                revocation.map(|revocation| entry(revocation, commit)).transpose()?,
            ),
        })
    }

    async fn delete_client(&self, id: ClientId, cause: Cause, now: Timestamp) -> Decided<Revoked> {
        let (decided, commit) = self
            .decide(now, move |txn| {
                if txn.get(&key::client(&id))?.is_none() {
                    return Ok(None);
                }
                txn.delete(key::client(&id));
                raise(txn, &Level::Client(id.clone()), cause, now)
                    .map(|revocation| Some(Ok(revocation)))
            })
            .await?;
        revoked(decided, commit)
    }

    async fn find_client(&self, id: &ClientId) -> Decided<Option<Client>> {
        self.ask(|reads| {
            reads
                .get(&key::client(id))?
                .map(|bytes| codec::read_client(id.clone(), &bytes))
                .transpose()
        })
        .await
    }

    async fn clients(&self, after: Option<&ClientId>, limit: usize) -> Decided<Vec<Client>> {
        let range = page(b'c', after.map(ClientId::as_str));
        self.ask(|reads| {
            let found = reads.scan(&range, Order::Ascending, limit)?;
            found.iter().map(|(at, bytes)| codec::read_client(id_in_key(at, 1)?, bytes)).collect()
        })
        .await
    }

    async fn ring(&self) -> Decided<StoredRing> {
        self.ask(|reads| {
            let all =
                |kind: u8| reads.scan(&KeyRange::prefix(&[kind]), Order::Ascending, usize::MAX);
            // The version first: if the ring changes meanwhile, a change by this version conflicts.
            let version =
                reads.get(codec::RING_KEY)?.map_or(Ok(0), |bytes| codec::read_number(&bytes))?;
            let keys = all(b'k')?
                .iter()
                .map(|(at, bytes)| codec::read_key(id_in_key(at, 1)?, bytes))
                .collect::<Decided<_>>()?;
            let mac_keys = all(b'h')?
                .iter()
                .map(|(at, bytes)| {
                    let id = MacKeyId(u32::from_be_bytes(array_in_key(at)?));
                    codec::read_mac_key(id, bytes)
                })
                .collect::<Decided<_>>()?;
            Ok(StoredRing { version, keys, mac_keys })
        })
        .await
    }

    async fn change_ring(
        &self,
        version: u64,
        change: RingChange,
        now: Timestamp,
    ) -> Decided<RingChanged> {
        let (event, commit) = self
            .decide(now, move |txn| {
                let known =
                    txn.get(codec::RING_KEY)?.map_or(Ok(0), |bytes| codec::read_number(&bytes))?;
                if known != version {
                    return Ok(None);
                }
                txn.put(codec::RING_KEY.to_vec(), codec::write_number(version + 1));
                for record in &change.put {
                    txn.put(key::signing_key(&record.id), codec::write_key(record));
                }
                for id in &change.remove {
                    txn.delete(key::signing_key(id));
                }
                for record in &change.put_mac {
                    txn.put(key::mac_key(record.id), codec::write_mac_key(record));
                }
                for id in &change.remove_mac {
                    txn.delete(key::mac_key(*id));
                }
                let event = match &change.revoked {
                    None => Event::KeySetChanged { at: now },
                    Some((id, cause)) => Event::Revocation(Revocation {
                        target: Target::Key { id: KeyId::clone(id) },
                        cause: *cause,
                        at: now,
                        expires_at: now.after(RETENTION),
                    }),
                };
                append(txn, &event)?;
                Ok(Some(event))
            })
            .await?;
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
        let (decided, _) = self
            .decide(now, move |txn| {
                let at = key::attempts(account, source);
                let known: Option<Attempts> =
                    txn.get(&at)?.map(|bytes| codec::read_attempts(&bytes)).transpose()?;
                let decided = decide_attempt(known, &policy, now);
                if let ThrottleDecision::Allow(attempts) = decided {
                    txn.put(at, codec::write_attempts(&attempts));
                    if known.is_none() {
                        let due = key::attempts_due(attempts.expires_at, account, source);
                        txn.put(due, Vec::new());
                    }
                }
                Ok(decided)
            })
            .await?;
        Ok(decided)
    }

    async fn undo_attempt(&self, account: [u8; 8], source: [u8; 8], now: Timestamp) -> Decided<()> {
        self.decide(now, move |txn| {
            let at = key::attempts(account, source);
            if let Some(bytes) = txn.get(&at)? {
                let known = codec::read_attempts(&bytes)?;
                let undone =
                    Attempts { count: known.count.saturating_sub(1), blocked_until: now, ..known };
                txn.put(at, codec::write_attempts(&undone));
            }
            Ok(())
        })
        .await?;
        Ok(())
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
            let forget = move |txn: &mut Txn<'_>| {
                let range = KeyRange::prefix(&key::attempts_on(account));
                let found =
                    txn.scan_committed(&range, Order::Ascending, limit, Rests::OnNothing)?;
                let count = found.len();
                found.into_iter().for_each(|(at, _)| txn.delete(at));
                Ok(count)
            };
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

    async fn sweep(&self, limit: usize, now: Timestamp) -> Decided<Swept> {
        let at_once = limit.min(self.engine.sweeps_at_once());
        let mut swept = Swept::default();
        loop {
            let sweep = decision(now, move |txn| {
                Ok(Swept {
                    sessions: sweep_sessions(txn, at_once, now)?,
                    events: sweep_events(txn, limit, at_once, now)?,
                    attempts: sweep_attempts(txn, at_once, now)?,
                    more: false,
                })
            });
            let (answer, _) = self.engine.commit_freeing(sweep).await?;
            let now_swept: Swept = unbox(answer)?;
            swept.sessions += now_swept.sessions;
            swept.events += now_swept.events;
            swept.attempts += now_swept.attempts;
            let reaches =
                |limit: usize, count: u32| usize::try_from(count).is_ok_and(|count| count >= limit);
            let any_reaches = |limit: usize, swept: &Swept| {
                [swept.sessions, swept.events, swept.attempts]
                    .into_iter()
                    .any(|count| reaches(limit, count))
            };
            swept.more = any_reaches(at_once, &now_swept);
            if !swept.more || any_reaches(limit, &swept) {
                return Ok(swept);
            }
        }
    }

    fn capture(&self) -> Result<Box<dyn Capture>, CaptureError> {
        self.engine.capture()
    }

    fn observe(&self, observer: Arc<dyn EntryObserver>) {
        self.engine.observe(Arc::new(Decoding(observer)));
    }

    fn time_floor(&self) -> Timestamp {
        let floor = self.engine.time_floor();
        if floor == Timestamp::default() {
            return floor;
        }
        Timestamp::from_millis(floor.as_millis().saturating_add(TIME_GRAIN_MILLIS))
    }

    fn status(&self) -> EngineStatus {
        self.engine.status()
    }

    async fn prove_contact(&self) -> bool {
        self.engine.prove_contact().await
    }

    async fn close(&self) {
        self.engine.close().await;
        // The observer mostly holds the store: without this, neither would ever be dropped, and the
        // directory would stay locked for as long as the process lives.
        self.engine.observe(Arc::new(Nobody));
    }
}

/// The oldest live session of the subject of `new`, if it has `max` live ones already.
///
/// It rests on no session having been added. That one of those it looked at has ended meanwhile does
/// not matter: what is over does not come to life again, so there is no more than `max` in any case.
fn oldest_beyond(
    txn: &Txn<'_>,
    new: &Session,
    max: u32,
    current: &Epochs,
    now: Timestamp,
) -> Decided<Option<Session>> {
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    let mut range = KeyRange::prefix(&key::sessions_of(&new.subject));
    let page = max.saturating_mul(2);
    let mut live = Vec::new();
    let mut looked_at = 0_usize;
    // Sessions that are over stand in the index until they are swept, and may fill whole pages of it.
    loop {
        let found = txn.scan_committed(&range, Order::Descending, page, Rests::OnAdditions)?;
        if looked_at == 0 && found.len() < max {
            return Ok(None);
        }
        for session in look_at(txn, &found)? {
            // The subject's epoch is the same for each; the client's may not be.
            let current = if session.client == new.client {
                *current
            } else {
                let keys = epoch_keys(&session.client, &session.subject);
                read_epochs(txn.get_committed(&keys, Rests::OnNothing)?)?
            };
            if session.state_at(&current, now) == SessionState::Active {
                live.push(session.id);
            }
        }
        looked_at = looked_at.saturating_add(found.len());
        let exhausted = found.len() < page || looked_at >= MAX_SESSIONS_LOOKED_AT;
        if live.len() >= max || exhausted {
            let oldest = if live.len() >= max { live.pop() } else { None };
            // Once more, for it is going to be written.
            return oldest.map_or(Ok(None), |id| get_session(txn, id));
        }
        range.end = found.into_iter().next_back().map(|(at, _)| at);
    }
}

/// The sessions that these entries of an index name.
fn look_at(txn: &Txn<'_>, found: &[(Vec<u8>, Value)]) -> Decided<Vec<Session>> {
    let ids = found
        .iter()
        .map(|(at, _)| Ok(SessionId::from_bytes(array_in_key(at)?)))
        .collect::<Decided<Vec<_>>>()?;
    let keys: Vec<_> = ids.iter().map(|id| key::session(*id)).collect();
    let records = txn.get_committed(&keys, Rests::OnNothing)?;
    let sessions = ids.into_iter().zip(records);
    sessions.filter_map(|(id, bytes)| Some(codec::read_session(id, &bytes?))).collect()
}

/// It rests on the sessions that it looks at, and not on what is due: to sweep an entry that another
/// has swept already changes nothing.
fn sweep_sessions(txn: &mut Txn<'_>, limit: usize, now: Timestamp) -> Decided<u32> {
    let due = txn.scan_committed(&due_by(b'x', now), Order::Ascending, limit, Rests::OnNothing)?;
    let mut keys = Vec::with_capacity(due.len());
    for (at, _) in &due {
        keys.push(key::session(SessionId::from_bytes(array_in_key(at)?)));
    }
    let sessions = txn.get_committed(&keys, Rests::OnAll)?;
    let mut removed = 0;
    for ((at, _), bytes) in due.into_iter().zip(sessions) {
        let id = SessionId::from_bytes(array_in_key(&at)?);
        txn.delete(at);
        removed += 1;
        let Some(bytes) = bytes else { continue };
        let session = codec::read_session(id, &bytes)?;
        // A revoked one stays until its absolute end, so that reuse of its tokens is still told
        // apart from tokens that never were.
        let over = if session.revoked.is_some() { session.expires_at } else { session.ends_at() };
        let over = over.max(session.forgettable_at());
        if now < over {
            txn.put(key::session_due(over, id), Vec::new());
        } else {
            txn.delete(key::session(id));
            txn.delete(key::session_of(&session));
        }
    }
    Ok(removed)
}

/// Looks at the `limit` oldest events, and removes up to `at_once` of them.
fn sweep_events(txn: &mut Txn<'_>, limit: usize, at_once: usize, now: Timestamp) -> Decided<u32> {
    let log = KeyRange::prefix(b"e");
    let mut removed = 0;
    // An event never changes, and once it has expired it stays so.
    for (at, bytes) in txn.scan_committed(&log, Order::Ascending, limit, Rests::OnNothing)? {
        let event = codec::read_event(&bytes)?;
        if now < event.expires_at() {
            continue;
        }
        if usize::try_from(removed).is_ok_and(|removed| removed >= at_once) {
            break;
        }
        if let Event::Revocation(Revocation { target: Target::Token { id, .. }, .. }) = &event {
            txn.delete(key::revoked_token(*id));
        }
        txn.delete(at);
        removed += 1;
    }
    Ok(removed)
}

fn sweep_attempts(txn: &mut Txn<'_>, limit: usize, now: Timestamp) -> Decided<u32> {
    let due = txn.scan_committed(&due_by(b'z', now), Order::Ascending, limit, Rests::OnNothing)?;
    let mut sources = Vec::with_capacity(due.len());
    for (at, _) in &due {
        let both: [u8; 16] = array_in_key(at)?;
        let (mut account, mut source) = ([0; 8], [0; 8]);
        account.copy_from_slice(&both[..8]);
        source.copy_from_slice(&both[8..]);
        sources.push((account, source));
    }
    let keys: Vec<_> =
        sources.iter().map(|(account, source)| key::attempts(*account, *source)).collect();
    let records = txn.get_committed(&keys, Rests::OnAll)?;
    let mut removed = 0;
    for (((at, _), (account, source)), bytes) in due.into_iter().zip(sources).zip(records) {
        txn.delete(at);
        removed += 1;
        let Some(bytes) = bytes else { continue };
        let attempts = codec::read_attempts(&bytes)?;
        if now < attempts.expires_at {
            txn.put(key::attempts_due(attempts.expires_at, account, source), Vec::new());
        } else {
            txn.delete(key::attempts(account, source));
        }
    }
    Ok(removed)
}
