//! The store: every state change of avouch as one atomic, durable step.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::client::Client;
use crate::domain::clock::Timestamp;
use crate::domain::event::{Cause, Entry, Target};
use crate::domain::ids::{ClientId, Cursor, Epoch, Epochs, KeyId, Revision, SessionId, SubjectId};
use crate::domain::key::{KeyRecord, MacKeyId, MacKeyRecord};
use crate::domain::scope::Names;
use crate::domain::secret::{SecretBytes, SecretText};
use crate::domain::session::{
    Device, Presented, ReuseKind, RotationRefusal, RotationRules, Session,
};
use crate::domain::throttle::{ThrottleDecision, ThrottlePolicy};
use crate::domain::user::User;
use crate::store::backup::{Capture, CaptureError};
use crate::store::board::Board;
use crate::store::engine::EngineStatus;

pub mod backup;
pub mod board;
pub mod check;
pub mod codec;
pub mod engine;
pub mod etcd;
pub mod fault;
mod group;
pub mod ledger;
pub mod memory;
pub mod moving;
pub mod sled;

#[cfg(test)]
mod engine_suite;

/// Why the store did not do what it was asked.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum StoreError {
    /// The store cannot commit now: failed, closed, out of space or overloaded.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// A record does not match its checksum or cannot be read.
    #[error("the store holds a damaged record: {0}")]
    Corrupt(String),
    /// A rule of this program is broken.
    #[error("internal error in the store: {0}")]
    Internal(&'static str),
}

/// Why a store did not open. The text tells an operator what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "{path} is in use by another avouch process; stop that one first, or give this one another --data-dir"
    )]
    InUse {
        /// The directory.
        path: String,
    },
    /// It was written by a version of avouch that this one does not understand.
    #[error(
        "{path} has schema version {found}, this avouch reads version {expected}; {}",
        other_schema(*found, *expected)
    )]
    Schema {
        /// The directory.
        path: String,
        /// What it has.
        found: u32,
        /// What is read.
        expected: u32,
    },
    /// A restore or a move into it did not come to its end.
    #[error(
        "a restore or a move into {path} was cut off; run `avouch restore` into it again, or `avouch migrate`"
    )]
    Unfinished {
        /// The directory.
        path: String,
    },
    /// It lost something that was acknowledged, or holds something that was never written.
    #[error(
        "{path} is damaged: {what}; avouch does not start on it, because a lost revocation would make a revoked token good again. Restore a backup into an empty directory"
    )]
    Damaged {
        /// The directory or the file.
        path: String,
        /// What does not match.
        what: String,
    },
    /// Nobody answers there, or nobody lets us in.
    #[error("cannot use {place}: {what}")]
    Unreachable {
        /// The members and the prefix.
        place: String,
        /// What went wrong.
        what: String,
    },
    /// It is not what it was when something in it was acknowledged.
    #[error(
        "{place} was restored or replaced: {what}; avouch does not start on it, because a lost revocation would make a revoked token good again. Restore a backup of avouch into it, or adopt it as it is, which revokes everything that was issued"
    )]
    Replaced {
        /// The members and the prefix.
        place: String,
        /// What does not match.
        what: String,
    },
    /// It goes on elsewhere.
    #[error(
        "{place} was moved to {to}, or is on its way there; use that one, or `avouch migrate --stay` to use this one, which knows nothing of what happened in the other"
    )]
    Moved {
        /// The directory, or the members and the prefix.
        place: String,
        /// Where it is now.
        to: String,
    },
    /// The operating system refused.
    #[error("cannot open {path}: {source}")]
    Io {
        /// The directory or the file.
        path: String,
        /// What it said.
        source: std::io::Error,
    },
}

/// What to do about a directory of another schema version.
const fn other_schema(found: u32, expected: u32) -> &'static str {
    if found > expected {
        "a newer avouch wrote it, which this one cannot replace: start that version"
    } else {
        "an older avouch wrote it, and this one converts nothing: start that version, or begin with an empty directory"
    }
}

/// A session to open, complete but for what the store decides.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// The session. Its epochs are those that were read before the credential was checked.
    pub session: Session,
    /// The most live sessions that one subject may have.
    pub max_per_subject: u32,
    /// Whether the caller has just looked for live sessions beyond the limit, and revoked them.
    pub looked_beyond: bool,
    /// The account and the source whose failed attempts to forget, now that one succeeded.
    pub clear_attempts: Option<([u8; 8], [u8; 8])>,
}

/// What came of opening a session.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Opened {
    /// It is open. If the subject had too many, the oldest was revoked for it.
    Open {
        /// The session that had to go.
        evicted: Option<SessionId>,
    },
    /// The subject, the client or everything was revoked since the epochs were read: the credential
    /// may be good no longer.
    Stale,
    /// The subject has more live sessions than the limit, which was lowered, or so many that are over
    /// that this cannot be told. Those beyond have to go first, each with an event of its own.
    LookBeyond,
}

/// What a login by password asks the store for.
#[derive(Clone, Debug)]
pub struct Login {
    /// The user of that name.
    pub user: Option<User>,
    /// The client that asks.
    pub client: Option<Client>,
    /// Those of the client and the user; nobody's where there is no such user. No newer than the others:
    /// what has changed since they were read has raised one.
    pub epochs: Epochs,
}

/// What came of presenting a refresh token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Rotation {
    /// The session moved one generation on.
    Rotated(Box<Session>),
    /// The session stands as it stood: the same successor is to be given again.
    Retried(Box<Session>),
    /// The token was spent. The cursor is that of the session's revocation; none when the client
    /// only reports reuse.
    Reused(ReuseKind, Box<Session>, Option<Revision>),
    /// It gets nothing, and nothing changed.
    Refused(RotationRefusal, Box<Session>),
    /// There is no such session.
    Unknown,
}

/// What came of revoking.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Revoked {
    /// It is revoked by this call.
    Now(Entry),
    /// There was nothing left to revoke.
    Already,
    /// There is no such thing.
    Unknown,
}

impl Revoked {
    /// The event, if this call made one.
    pub fn entry(&self) -> Option<&Entry> {
        match self {
            Self::Now(entry) => Some(entry),
            Self::Already | Self::Unknown => None,
        }
    }
}

/// Whose epoch to raise.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Level {
    /// Everything's.
    Everything,
    /// A client's.
    Client(ClientId),
    /// A subject's.
    Subject(SubjectId),
}

/// What to change of a user. What is none stays.
#[derive(Clone, Debug, Default)]
pub struct UserChange {
    /// The canonical name.
    pub username: Option<Box<str>>,
    /// The name to show.
    pub display_name: Option<Box<str>>,
    /// The scopes.
    pub scope: Option<Names>,
    /// The password's hash.
    pub password_hash: Option<SecretText>,
    /// Whether the user may not log in.
    pub disabled: Option<bool>,
    /// Only while the subject's epoch is this: what let the caller change it was proved then, and a
    /// change of the password, a disabled account or a revocation since has undone that.
    pub if_epoch: Option<Epoch>,
}

/// What to change of a client.
#[derive(Clone, Debug)]
pub enum ClientChange {
    /// All of the registration but type, secret, `disabled` and `created_at`.
    Registration(Box<Client>),
    /// The digest of its secret.
    Secret(SecretBytes<32>),
    /// Whether it may not authenticate.
    Disabled(bool),
}

/// What came of changing a user or a client.
#[derive(Clone, Debug)]
pub enum Changed<T> {
    /// It is changed, and this is the event, if the change ended tokens.
    Done(T, Option<Entry>),
    /// There is no such thing.
    Unknown,
    /// The name is another's.
    NameTaken,
    /// The epoch is no longer what the change was to be made under.
    Stale,
}

/// A change of the key ring.
#[derive(Clone, Debug, Default)]
pub struct RingChange {
    /// Signing keys to write.
    pub put: Vec<KeyRecord>,
    /// Signing keys to remove.
    pub remove: Vec<KeyId>,
    /// MAC keys to write.
    pub put_mac: Vec<MacKeyRecord>,
    /// MAC keys to remove.
    pub remove_mac: Vec<MacKeyId>,
    /// The key that is revoked, and why: the event says so. Without it the event says that the set
    /// changed.
    pub revoked: Option<(KeyId, Cause)>,
}

/// The key ring as it is stored.
#[derive(Clone, Debug, Default)]
pub struct StoredRing {
    /// Rises with each change.
    pub version: u64,
    /// The signing keys.
    pub keys: Vec<KeyRecord>,
    /// The MAC keys.
    pub mac_keys: Vec<MacKeyRecord>,
}

/// What came of changing the ring.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RingChanged {
    /// It is changed.
    Done(Entry),
    /// Somebody else changed it since it was read. Read it again.
    Conflict,
}

/// How much a sweep removed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Swept {
    /// Sessions that are over.
    pub sessions: u32,
    /// Events that nobody needs any more.
    pub events: u32,
    /// Throttle records that are over.
    pub attempts: u32,
    /// Whether there may be more to remove.
    pub more: bool,
}

/// Every state change of avouch, each one atomic and durable, each decided by a pure function.
///
/// For every method that changes something:
///
/// * *Atomic.* It happens whole or not at all, and as if alone: of two concurrent calls one sees
///   what the other did.
/// * *Durable.* When it returns Ok, the change survives the death of the process at any moment, and
///   a power cut as far as the disk honours a flush. So does whatever the answer was based on.
/// * *No silent kill.* A change that ends a token appends its one event in the same commit, and the
///   observer has seen the event before the method returns.
/// * An error means that the outcome is unknown if it is [`StoreError::Unavailable`], and that
///   nothing happened if it is another.
///
/// A method that only reads may show a change that is about to become durable, but no event that is
/// not durable yet.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Opens a session. Under `Stale` and `LookBeyond` nothing is written. When the subject has
    /// `max_per_subject` live sessions already, the oldest is revoked in the same commit, for the
    /// reason SESSION_SUPERSEDED.
    async fn open_session(&self, new: NewSession, now: Timestamp) -> Result<Opened, StoreError>;

    /// Presents a genuine refresh token. Of any number of concurrent calls with one token, one sees
    /// `Rotated`; the others see `Retried` with the same session while the retry window is open.
    /// Under `Reused` the session is dead and its event in the log, in the same commit. Under
    /// `Retried` and `Refused` nothing is written.
    async fn rotate(
        &self,
        presented: Presented,
        rules: RotationRules,
        device: Option<Device>,
        now: Timestamp,
    ) -> Result<Rotation, StoreError>;

    /// Revokes a session. `Already` when it was, or when it and its access tokens are over.
    async fn revoke_session(
        &self,
        id: SessionId,
        cause: Cause,
        now: Timestamp,
    ) -> Result<Revoked, StoreError>;

    /// Revokes one access token, given as [`Target::Token`]. `Already` when it was, or when it has
    /// expired for every verifier.
    async fn revoke_token(
        &self,
        token: Target,
        cause: Cause,
        now: Timestamp,
    ) -> Result<Revoked, StoreError>;

    /// Raises an epoch: everything that was issued under a lower one is revoked. One write, one
    /// event, whatever the number of sessions.
    async fn raise_epoch(
        &self,
        level: Level,
        cause: Cause,
        now: Timestamp,
    ) -> Result<Entry, StoreError>;

    /// The epochs of now.
    async fn epochs(&self, client: &ClientId, subject: &SubjectId) -> Result<Epochs, StoreError>;

    /// What a login by password asks for, by canonical name. It takes the same whether or not there is
    /// such a user.
    async fn find_login(&self, username: &str, client: &ClientId) -> Result<Login, StoreError>;

    /// A client, and the epochs of what it has for itself. Those are no newer than the client.
    async fn find_client_and_epochs(
        &self,
        id: &ClientId,
    ) -> Result<(Option<Client>, Epochs), StoreError>;

    /// The epoch of a subject.
    async fn subject_epoch(&self, subject: &SubjectId) -> Result<Epoch, StoreError>;

    /// A session.
    async fn find_session(&self, id: SessionId) -> Result<Option<Session>, StoreError>;

    /// A session and the epochs that decide whether it lives.
    async fn find_session_and_epochs(
        &self,
        id: SessionId,
    ) -> Result<Option<(Session, Epochs)>, StoreError>;

    /// A session, perhaps as it was some time ago: for what never changes of one, which is whose it
    /// is, its audience, its nonce and its absolute end.
    async fn recall_session(&self, id: SessionId) -> Result<Option<Session>, StoreError>;

    /// Up to `limit` sessions of a subject, newest first, after the one given, each with the epochs
    /// that decide whether it lives.
    async fn sessions_of(
        &self,
        subject: &SubjectId,
        after: Option<&Session>,
        limit: usize,
    ) -> Result<Vec<(Session, Epochs)>, StoreError>;

    /// Adds a user. False, and nothing written, when the name or the subject is taken.
    async fn create_user(&self, user: User, now: Timestamp) -> Result<bool, StoreError>;

    /// Changes a user. With a cause the subject's epoch is raised in the same commit, unless the
    /// change changes nothing.
    async fn change_user(
        &self,
        subject: SubjectId,
        change: UserChange,
        revoke: Option<Cause>,
        now: Timestamp,
    ) -> Result<Changed<User>, StoreError>;

    /// Replaces the hash of a password by another of the same password, unless it is not `from` any
    /// more. Ends no token.
    async fn rehash_password(
        &self,
        subject: SubjectId,
        from: SecretText,
        to: SecretText,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Removes a user and raises the subject's epoch in the same commit.
    async fn delete_user(
        &self,
        subject: SubjectId,
        cause: Cause,
        now: Timestamp,
    ) -> Result<Revoked, StoreError>;

    /// A user by subject.
    async fn find_user(&self, subject: &SubjectId) -> Result<Option<User>, StoreError>;

    /// A user by canonical name.
    async fn find_user_by_name(&self, username: &str) -> Result<Option<User>, StoreError>;

    /// Up to `limit` users in the order of their subjects, after the one given, each with the epoch of
    /// the subject.
    async fn users(
        &self,
        after: Option<&SubjectId>,
        limit: usize,
    ) -> Result<Vec<(User, Epoch)>, StoreError>;

    /// Adds a client. False, and nothing written, when the id is taken.
    async fn create_client(&self, client: Client, now: Timestamp) -> Result<bool, StoreError>;

    /// Changes a client. With a cause the client's epoch is raised in the same commit, unless the
    /// change changes nothing.
    async fn change_client(
        &self,
        id: ClientId,
        change: ClientChange,
        revoke: Option<Cause>,
        now: Timestamp,
    ) -> Result<Changed<Client>, StoreError>;

    /// Removes a client and raises its epoch in the same commit.
    async fn delete_client(
        &self,
        id: ClientId,
        cause: Cause,
        now: Timestamp,
    ) -> Result<Revoked, StoreError>;

    /// A client.
    async fn find_client(&self, id: &ClientId) -> Result<Option<Client>, StoreError>;

    /// Up to `limit` clients in the order of their ids, after the one given, each with its epoch.
    async fn clients(
        &self,
        after: Option<&ClientId>,
        limit: usize,
    ) -> Result<Vec<(Client, Epoch)>, StoreError>;

    /// The key ring.
    async fn ring(&self) -> Result<StoredRing, StoreError>;

    /// Changes the key ring, if it still has the version that was read.
    async fn change_ring(
        &self,
        version: u64,
        change: RingChange,
        now: Timestamp,
    ) -> Result<RingChanged, StoreError>;

    /// Counts an attempt to log in before it is made, or says how long to wait. Atomic, so that
    /// parallel guesses cannot exceed the limit.
    async fn begin_attempt(
        &self,
        account: [u8; 8],
        source: [u8; 8],
        policy: ThrottlePolicy,
        now: Timestamp,
    ) -> Result<ThrottleDecision, StoreError>;

    /// Takes back an attempt that was counted and then not made, because there was no room to hash.
    async fn undo_attempt(
        &self,
        account: [u8; 8],
        source: [u8; 8],
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Forgets the failed attempts of one source, or of every source, on an account.
    async fn clear_attempts(
        &self,
        account: [u8; 8],
        source: Option<[u8; 8]>,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Up to `limit` durable events after a revision, in order, the expired ones too.
    fn events_after(&self, after: Revision, limit: usize) -> Result<Vec<Entry>, StoreError>;

    /// The newest durable position.
    fn head(&self) -> Cursor;

    /// Removes up to `limit` of each kind of record that is over. Allowed when space is low; holds
    /// the store only for that many.
    async fn sweep(&self, limit: usize, now: Timestamp) -> Result<Swept, StoreError>;

    /// How many sessions are stored, about: those that live, and those that are over, revoked or below
    /// an epoch until they are swept at their end. Takes as long as reading an index of all of them.
    async fn count_sessions(&self) -> Result<u64, StoreError>;

    /// Begins to read the whole state as of one point, while others go on. Everything that was
    /// acknowledged before this was called is in it, and no change is half in it.
    ///
    /// # Errors
    /// [`CaptureError::Busy`] while another goes on, [`CaptureError::Unsupported`] where the engine
    /// cannot do it.
    fn capture(&self) -> Result<Box<dyn Capture>, CaptureError>;

    /// Sets who is told of durable events, in order, before any caller gets its answer.
    fn observe(&self, observer: Arc<dyn EntryObserver>);

    /// The floor of the clock: no commit was ever made later than this; with other replicas, none that
    /// was not noted by any.
    fn time_floor(&self) -> Timestamp;

    /// The latest moment that was committed by anybody, as it is now.
    async fn latest_time(&self) -> Result<Timestamp, StoreError>;

    /// Commits that it is `now`, and nothing else.
    async fn note_time(&self, now: Timestamp) -> Result<(), StoreError>;

    /// Whether `who` may sweep now: of those who share a store, one has its turn, which `lasts` that
    /// long and is taken again by who has it. When that one is gone, another takes it once it is over.
    /// It saves work and no more: to sweep out of turn does no harm. Always, for who is alone.
    async fn take_sweep_turn(
        &self,
        who: [u8; 16],
        lasts: Duration,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        _ = (who, lasts, now);
        Ok(true)
    }

    /// Where the replicas that share the store leave notes; none when there can be only one.
    fn board(&self) -> Option<Arc<dyn Board>> {
        None
    }

    /// How the engine is doing.
    fn status(&self) -> EngineStatus;

    /// Whether something could be made durable just now.
    async fn prove_contact(&self) -> bool;

    /// Makes durable what is not, and stops.
    async fn close(&self);
}

/// Is told of every durable event before the caller that made it gets its answer.
pub trait EntryObserver: Send + Sync + 'static {
    /// These events are durable, and so is everything up to `head`. It must be quick and must not
    /// call the store.
    fn durable(&self, entries: &[Entry], head: Revision);
}
