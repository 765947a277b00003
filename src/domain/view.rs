//! The revocation view: the live set of revocations, arranged so that one token is checked in a few
//! look-ups, however many entries there are, and without waiting for whoever adds more.
//!
//! Tokens and sessions stand as 64-bit marks in buckets by expiry, and a bucket is dropped whole.
//! Never evict an entry to save memory: that would make a revoked token good again. A view with a limit
//! says instead that it cannot tell.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use crate::domain::claims::Claims;
use crate::domain::clock::Timestamp;
use crate::domain::event::{Revocation, SKEW, Target};
use crate::domain::ids::{ClientId, Epoch, Epochs, KeyId, SessionId, SubjectId, TokenId};

mod table;

use table::{EpochMap, Inserted, MarkSet, Raised};

/// The width of a token bucket in seconds. Part of the protocol: both ends of a stream count their
/// digests by bucket.
pub const TOKEN_BUCKET_SECS: u64 = 60;
/// The width of a session bucket in seconds. Wider, because a token's expiry does not tell which
/// bucket its session stands in, so each bucket that may hold it is asked.
pub const SESSION_BUCKET_SECS: u64 = 960;

/// The end, in seconds since the Unix epoch, of the bucket of `width` that `expires_at` falls in.
pub const fn bucket_end(expires_at: Timestamp, width: u64) -> u64 {
    (expires_at.as_millis().div_ceil(1000)).div_ceil(width).saturating_mul(width)
}

/// A check of the sets of tokens and sessions.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Digest {
    /// How many entries.
    pub count: u64,
    /// The exclusive or of their keys.
    pub xor: u64,
}

/// Which level a token is revoked at.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum RevokedBy {
    /// Its key.
    Key,
    /// Everything.
    Everything,
    /// Its client.
    Client,
    /// Its subject.
    Subject,
    /// Its session.
    Session,
    /// The token itself.
    Token,
}

impl RevokedBy {
    /// The name in metrics and in the audit log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Everything => "everything",
            Self::Client => "client",
            Self::Subject => "subject",
            Self::Session => "session",
            Self::Token => "token",
        }
    }
}

/// What is known of one token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// Nothing revokes it.
    Clear,
    /// Something does.
    Revoked(RevokedBy),
    /// The view left something out that might: only the server can tell.
    Unsure,
}

/// What a view needs of a token to look it up: made once for each token, good for every view of this
/// process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Marks {
    token: u64,
    /// The end of the bucket that its revocation stands in.
    token_bucket: u64,
    session: Option<u64>,
    /// When the token expires, in seconds.
    expires: u64,
    subject: u64,
    client: u64,
    key: u64,
    epochs: Epochs,
}

impl Marks {
    /// Of a token with these claims, signed by `key`.
    pub fn of(claims: &Claims, key: &KeyId) -> Self {
        Self {
            token: claims.token_id.key64(),
            token_bucket: bucket_end(claims.expires_at.after(SKEW), TOKEN_BUCKET_SECS),
            session: claims.session.map(|session| session.key64()),
            expires: claims.expires_at.as_secs(),
            subject: mark_of(claims.subject.as_str()),
            client: mark_of(claims.client.as_str()),
            key: mark_of(key.as_str()),
            epochs: claims.epochs,
        }
    }
}

impl Marks {
    /// Every mark that a revocation of this token may have, but for everything.
    pub fn each(&self) -> impl Iterator<Item = u64> {
        [self.subject, self.client, self.key, self.token].into_iter().chain(self.session)
    }
}

/// What one revocation concerns, by mark.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Changed {
    /// Tokens that have this mark. Others may have it too; ask the view.
    Mark(u64),
    /// Any token.
    Everything,
}

impl Changed {
    /// By one token.
    pub const fn token(id: TokenId) -> Self {
        Self::Mark(id.key64())
    }

    /// By the name of a subject, a client or a key.
    pub fn name(name: &str) -> Self {
        Self::Mark(mark_of(name))
    }

    /// By one session.
    pub const fn session(id: SessionId) -> Self {
        Self::Mark(id.key64())
    }
}

/// The mark of a text. Under a secret of this process, so that nobody can look for two names with one
/// mark: with a million names, the chance that any other shares a mark with one is below 1e-13.
fn mark_of(text: &str) -> u64 {
    static SECRET: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    SECRET.hash_one(text).max(1)
}

/// A set of marks that end together.
#[derive(Clone)]
struct Bucket {
    end: u64,
    marks: Arc<MarkSet>,
    /// Whether some were left out.
    partial: bool,
}

/// Buckets, the earliest first.
#[derive(Clone, Default)]
struct Buckets(Vec<Bucket>);

impl Buckets {
    /// The first bucket that ends at `end` or later.
    fn position(&self, end: u64) -> usize {
        self.0.partition_point(|bucket| bucket.end < end)
    }

    fn find(&self, end: u64) -> Option<&Bucket> {
        self.0.get(self.position(end)).filter(|bucket| bucket.end == end)
    }

    fn find_mut(&mut self, end: u64) -> &mut Bucket {
        let at = self.position(end);
        if self.0.get(at).is_none_or(|bucket| bucket.end != end) {
            let marks = Arc::new(MarkSet::new());
            self.0.insert(at, Bucket { end, marks, partial: false });
        }
        &mut self.0[at]
    }

    fn after(&self, end: u64) -> Option<(u64, Vec<u64>)> {
        let bucket = self.0.get(self.position(end.checked_add(1)?))?;
        Some((bucket.end, bucket.marks.marks().collect()))
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|bucket| bucket.marks.count()).sum()
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(|bucket| size_of::<Bucket>() + bucket.marks.bytes()).sum()
    }
}

/// The tables of one moment. Most changes go into a table; one that needs another table, or drops some,
/// puts another index in its place.
#[derive(Clone)]
struct Index {
    tokens: Buckets,
    sessions: Buckets,
    subjects: Arc<EpochMap>,
    clients: Arc<EpochMap>,
    /// The second in which the last subject or client that was left out expires; zero for none.
    left_out_until: u64,
    /// Marks of keys, and when the last token of each has expired. There are never many.
    keys: Arc<[(u64, Timestamp)]>,
}

impl Index {
    fn count(&self) -> u64 {
        self.tokens.count()
            + self.sessions.count()
            + self.subjects.count()
            + self.clients.count()
            + self.keys.len() as u64
    }
}

/// Which of the two kinds of bucket.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    Token,
    Session,
}

impl Index {
    const fn buckets(&self, kind: Kind) -> &Buckets {
        match kind {
            Kind::Token => &self.tokens,
            Kind::Session => &self.sessions,
        }
    }

    const fn buckets_mut(&mut self, kind: Kind) -> &mut Buckets {
        match kind {
            Kind::Token => &mut self.tokens,
            Kind::Session => &mut self.sessions,
        }
    }
}

/// Which of the two kinds of epoch that have a name.
#[derive(Clone, Copy)]
enum Named {
    Subject,
    Client,
}

/// The live set of revocations. Any number of threads may check while one adds.
pub struct View {
    index: ArcSwap<Index>,
    everything: AtomicU32,
    limit: u64,
    /// Held by whoever changes something, never by who checks.
    writing: Mutex<()>,
}

impl Default for View {
    fn default() -> Self {
        Self::with_limit(u64::MAX)
    }
}

impl View {
    /// An empty view that holds at most so many entries. What comes over the limit is left out, and
    /// every token that it might concern is [`Standing::Unsure`] until it has expired.
    pub fn with_limit(limit: u64) -> Self {
        let index = Index {
            tokens: Buckets::default(),
            sessions: Buckets::default(),
            subjects: Arc::new(EpochMap::new()),
            clients: Arc::new(EpochMap::new()),
            left_out_until: 0,
            keys: Arc::default(),
        };
        Self {
            index: ArcSwap::from_pointee(index),
            everything: AtomicU32::new(0),
            limit,
            writing: Mutex::default(),
        }
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a revocation. Doing it twice changes nothing, and so does any order.
    pub fn apply(&self, revocation: &Revocation) {
        let expires_at = revocation.expires_at;
        match &revocation.target {
            Target::Token { id, .. } => {
                self.insert_token(bucket_end(expires_at, TOKEN_BUCKET_SECS), id.key64());
            }
            Target::Session { id, .. } => {
                self.insert_session(bucket_end(expires_at, SESSION_BUCKET_SECS), id.key64());
            }
            Target::Subject { id, epoch } => {
                self.raise(Named::Subject, mark_of(id.as_str()), *epoch, expires_at);
            }
            Target::Client { id, epoch } => {
                self.raise(Named::Client, mark_of(id.as_str()), *epoch, expires_at);
            }
            Target::Everything { epoch } => {
                self.everything.fetch_max(epoch.0, Ordering::AcqRel);
            }
            Target::Key { id } => self.revoke_key(mark_of(id.as_str()), expires_at),
        }
    }

    /// Adds a token by its key, in the bucket that ends at `end` seconds.
    pub fn insert_token(&self, end: u64, key: u64) {
        self.insert(Kind::Token, end, key);
    }

    /// Adds a session by its key, in the bucket that ends at `end` seconds.
    pub fn insert_session(&self, end: u64, key: u64) {
        self.insert(Kind::Session, end, key);
    }

    fn insert(&self, kind: Kind, end: u64, mark: u64) {
        let _writing = self.writing();
        let index = self.index.load();
        let known = index.buckets(kind).find(end).map(|bucket| &bucket.marks);
        if known.is_some_and(|marks| marks.contains(mark)) {
            return;
        }
        let full = self.is_full(&index);
        if !full && known.is_some_and(|marks| marks.insert(mark) != Inserted::NoRoom) {
            return;
        }
        let mut next = Index::clone(&index);
        let bucket = next.buckets_mut(kind).find_mut(end);
        if full {
            bucket.partial = true;
        } else {
            let grown = bucket.marks.grown();
            grown.insert(mark);
            bucket.marks = Arc::new(grown);
        }
        self.index.store(Arc::new(next));
    }

    fn raise(&self, named: Named, mark: u64, epoch: Epoch, expires_at: Timestamp) {
        let _writing = self.writing();
        let index = self.index.load();
        let map = match named {
            Named::Subject => &index.subjects,
            Named::Client => &index.clients,
        };
        // Rounded up, and held at the last second that there is room for.
        let expires = u32::try_from(expires_at.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
        let raised = Raised { epoch: epoch.0, expires };
        let full = map.epoch(mark).is_none() && self.is_full(&index);
        if !full && map.raise(mark, raised) != Inserted::NoRoom {
            return;
        }
        let mut next = Index::clone(&index);
        if full {
            next.left_out_until = next.left_out_until.max(u64::from(expires));
        } else {
            let grown = map.grown();
            grown.raise(mark, raised);
            match named {
                Named::Subject => next.subjects = Arc::new(grown),
                Named::Client => next.clients = Arc::new(grown),
            }
        }
        self.index.store(Arc::new(next));
    }

    fn revoke_key(&self, mark: u64, expires_at: Timestamp) {
        let _writing = self.writing();
        let index = self.index.load();
        let mut keys = index.keys.to_vec();
        match keys.iter_mut().find(|(known, _)| *known == mark) {
            Some((_, known)) => *known = expires_at.max(*known),
            None => keys.push((mark, expires_at)),
        }
        self.index.store(Arc::new(Index { keys: keys.into(), ..Index::clone(&index) }));
    }

    /// Whether there is no room for one more entry.
    fn is_full(&self, index: &Index) -> bool {
        self.limit != u64::MAX && index.count() >= self.limit
    }

    /// What revokes a token with these marks, if anything does. For views without a limit, which are
    /// never unsure.
    pub fn revoked_by(&self, marks: &Marks) -> Option<RevokedBy> {
        match self.standing(marks) {
            Standing::Revoked(by) => Some(by),
            Standing::Clear | Standing::Unsure => None,
        }
    }

    /// What is known of a token.
    pub fn standing(&self, marks: &Marks) -> Standing {
        let index = self.index.load();
        let revoked = Standing::Revoked;
        if index.keys.iter().any(|(key, _)| *key == marks.key) {
            return revoked(RevokedBy::Key);
        }
        if marks.epochs.global.0 < self.everything.load(Ordering::Acquire) {
            return revoked(RevokedBy::Everything);
        }
        let raised = |map: &EpochMap, mark: u64, epoch: Epoch| {
            map.epoch(mark).is_some_and(|current| epoch.0 < current)
        };
        if raised(&index.clients, marks.client, marks.epochs.client) {
            return revoked(RevokedBy::Client);
        }
        if raised(&index.subjects, marks.subject, marks.epochs.subject) {
            return revoked(RevokedBy::Subject);
        }
        let mut unsure = index.left_out_until > 0;
        if let Some(session) = marks.session {
            // The event of a session lives at least until its last token has expired, so no bucket
            // that ends before this token does can hold it.
            for bucket in &index.sessions.0[index.sessions.position(marks.expires)..] {
                if bucket.marks.contains(session) {
                    return revoked(RevokedBy::Session);
                }
                unsure |= bucket.partial;
            }
        }
        if let Some(bucket) = index.tokens.find(marks.token_bucket) {
            if bucket.marks.contains(marks.token) {
                return revoked(RevokedBy::Token);
            }
            unsure |= bucket.partial;
        }
        if unsure { Standing::Unsure } else { Standing::Clear }
    }

    /// Whether something was left out because of the limit, so that the digest is another one.
    pub fn is_partial(&self) -> bool {
        let index = self.index.load();
        let partial = |buckets: &Buckets| buckets.0.iter().any(|bucket| bucket.partial);
        index.left_out_until > 0 || partial(&index.tokens) || partial(&index.sessions)
    }

    /// The epochs of now, as far as live events tell: zero where there is none, which no token that
    /// is still alive can be below.
    pub fn epochs(&self, client: &ClientId, subject: &SubjectId) -> Epochs {
        let index = self.index.load();
        let epoch_of = |map: &EpochMap, id: &str| Epoch(map.epoch(mark_of(id)).unwrap_or_default());
        Epochs {
            global: Epoch(self.everything.load(Ordering::Acquire)),
            client: epoch_of(&index.clients, client.as_str()),
            subject: epoch_of(&index.subjects, subject.as_str()),
        }
    }

    /// Drops what no token that is still alive can be concerned by.
    pub fn expire(&self, now: Timestamp) {
        let _writing = self.writing();
        let index = self.index.load();
        let now_secs = now.as_secs();
        let is_over = |buckets: &Buckets| buckets.0.first().is_some_and(|it| it.end <= now_secs);
        let is_due = |map: &EpochMap| map.first_expiry().is_some_and(|at| at <= now_secs);
        let keys_over = index.keys.iter().any(|(_, expires_at)| now >= *expires_at);
        let left_out = index.left_out_until > 0 && index.left_out_until <= now_secs;
        let (tokens, sessions) = (is_over(&index.tokens), is_over(&index.sessions));
        let (subjects, clients) = (is_due(&index.subjects), is_due(&index.clients));
        if !(tokens || sessions || subjects || clients || keys_over || left_out) {
            return;
        }
        let mut next = Index::clone(&index);
        next.tokens.0.retain(|bucket| now_secs < bucket.end);
        next.sessions.0.retain(|bucket| now_secs < bucket.end);
        if subjects {
            next.subjects = Arc::new(next.subjects.without_expired(now_secs));
        }
        if clients {
            next.clients = Arc::new(next.clients.without_expired(now_secs));
        }
        if left_out {
            next.left_out_until = 0;
        }
        next.keys = index.keys.iter().filter(|(_, at)| now < *at).copied().collect();
        self.index.store(Arc::new(next));
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        let everything = u64::from(self.everything.load(Ordering::Acquire) > 0);
        usize::try_from(self.index.load().count() + everything).unwrap_or(usize::MAX)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the tables take, in bytes.
    pub fn bytes(&self) -> usize {
        let index = self.index.load();
        size_of::<Self>()
            + index.tokens.bytes()
            + index.sessions.bytes()
            + index.subjects.bytes()
            + index.clients.bytes()
            + index.keys.len() * 16
    }

    /// The first bucket of tokens that ends later than `end` seconds: its end and its keys. A caller
    /// walks all buckets with it.
    pub fn token_bucket_after(&self, end: u64) -> Option<(u64, Vec<u64>)> {
        self.index.load().tokens.after(end)
    }

    /// As [`View::token_bucket_after`], for sessions.
    pub fn session_bucket_after(&self, end: u64) -> Option<(u64, Vec<u64>)> {
        self.index.load().sessions.after(end)
    }

    /// A check of the tokens and sessions in buckets that end later than `after`. It counts what was
    /// left out as missing.
    pub fn digest(&self, after: Timestamp) -> Digest {
        let _writing = self.writing();
        let index = self.index.load();
        let mut digest = Digest::default();
        for buckets in [&index.tokens, &index.sessions] {
            for bucket in &buckets.0[buckets.position(after.as_secs() + 1)..] {
                digest.count += bucket.marks.count();
                digest.xor ^= bucket.marks.xor();
            }
        }
        digest
    }
}

#[cfg(test)]
mod tests;
