//! The revocation view: the live set of revocations, arranged so that one token is checked in a few
//! look-ups, however many entries there are.
//!
//! Tokens and sessions stand as 64-bit keys in buckets by expiry, and a bucket is dropped whole.
//! Never evict an entry to save memory: that would make a revoked token good again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use crate::domain::claims::Claims;
use crate::domain::clock::Timestamp;
use crate::domain::event::{Revocation, SKEW, Target};
use crate::domain::ids::{ClientId, Epoch, Epochs, KeyId, SubjectId};

/// The width of a token bucket in seconds. Part of the protocol: both ends of a stream count their
/// digests by bucket.
pub const TOKEN_BUCKET_SECS: u64 = 60;
/// The width of a session bucket in seconds. Wider, because a token's expiry does not tell which
/// bucket its session stands in, so each bucket that may hold it is asked.
pub const SESSION_BUCKET_SECS: u64 = 960;

/// Keys are random already.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

type KeySet = HashSet<u64, BuildHasherDefault<KeyHasher>>;

/// Buckets of keys by the second in which they end.
#[derive(Default)]
struct Buckets(BTreeMap<u64, Bucket>);

#[derive(Default)]
struct Bucket {
    keys: KeySet,
    xor: u64,
}

impl Buckets {
    fn insert(&mut self, end: u64, key: u64) {
        let bucket = self.0.entry(end).or_default();
        if bucket.keys.insert(key) {
            bucket.xor ^= key;
        }
    }

    fn after(&self, end: u64) -> Option<(u64, Vec<u64>)> {
        let (end, bucket) = self.0.range(end.checked_add(1)?..).next()?;
        Some((*end, bucket.keys.iter().copied().collect()))
    }

    fn expire(&mut self, now: Timestamp) {
        self.0 = self.0.split_off(&(now.as_secs() + 1));
    }
}

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

/// The live set of revocations.
#[derive(Default)]
pub struct View {
    tokens: Buckets,
    sessions: Buckets,
    subjects: HashMap<SubjectId, (Epoch, Timestamp)>,
    clients: HashMap<ClientId, (Epoch, Timestamp)>,
    keys: HashMap<KeyId, Timestamp>,
    everything: Epoch,
}

impl View {
    /// Adds a revocation. Doing it twice changes nothing, and so does any order.
    pub fn apply(&mut self, revocation: &Revocation) {
        let expires_at = revocation.expires_at;
        match &revocation.target {
            Target::Token { id, .. } => {
                self.insert_token(bucket_end(expires_at, TOKEN_BUCKET_SECS), id.key64());
            }
            Target::Session { id, .. } => {
                self.insert_session(bucket_end(expires_at, SESSION_BUCKET_SECS), id.key64());
            }
            Target::Subject { id, epoch } => raise(&mut self.subjects, id, *epoch, expires_at),
            Target::Client { id, epoch } => raise(&mut self.clients, id, *epoch, expires_at),
            Target::Everything { epoch } => self.everything = self.everything.max(*epoch),
            Target::Key { id } => {
                let known = self.keys.entry(id.clone()).or_insert(expires_at);
                *known = (*known).max(expires_at);
            }
        }
    }

    /// Adds a token by its key, in the bucket that ends at `end` seconds.
    pub fn insert_token(&mut self, end: u64, key: u64) {
        self.tokens.insert(end, key);
    }

    /// Adds a session by its key, in the bucket that ends at `end` seconds.
    pub fn insert_session(&mut self, end: u64, key: u64) {
        self.sessions.insert(end, key);
    }

    /// What revokes a token with these claims, signed by `key`, if anything does.
    pub fn check(&self, claims: &Claims, key: &KeyId) -> Option<RevokedBy> {
        if !self.keys.is_empty() && self.keys.contains_key(key) {
            return Some(RevokedBy::Key);
        }
        let current = self.epochs(&claims.client, &claims.subject);
        if claims.epochs.global < current.global {
            return Some(RevokedBy::Everything);
        }
        if claims.epochs.client < current.client {
            return Some(RevokedBy::Client);
        }
        if claims.epochs.subject < current.subject {
            return Some(RevokedBy::Subject);
        }
        if let Some(session) = &claims.session {
            // The event of a session lives at least until its last token has expired, so no bucket
            // that ends before this token does can hold it.
            let key = session.key64();
            let mut holding = self.sessions.0.range(claims.expires_at.as_secs()..);
            if holding.any(|(_, bucket)| bucket.keys.contains(&key)) {
                return Some(RevokedBy::Session);
            }
        }
        let end = bucket_end(claims.expires_at.after(SKEW), TOKEN_BUCKET_SECS);
        let revoked =
            self.tokens.0.get(&end).is_some_and(|b| b.keys.contains(&claims.token_id.key64()));
        revoked.then_some(RevokedBy::Token)
    }

    /// The epochs of now, as far as live events tell: zero where there is none, which no token that
    /// is still alive can be below.
    pub fn epochs(&self, client: &ClientId, subject: &SubjectId) -> Epochs {
        let epoch_of = |known: Option<&(Epoch, Timestamp)>| known.map_or(Epoch(0), |known| known.0);
        Epochs {
            global: self.everything,
            client: if self.clients.is_empty() {
                Epoch(0)
            } else {
                epoch_of(self.clients.get(client))
            },
            subject: if self.subjects.is_empty() {
                Epoch(0)
            } else {
                epoch_of(self.subjects.get(subject))
            },
        }
    }

    /// Drops what no token that is still alive can be concerned by.
    pub fn expire(&mut self, now: Timestamp) {
        self.tokens.expire(now);
        self.sessions.expire(now);
        self.subjects.retain(|_, (_, expires_at)| now < *expires_at);
        self.clients.retain(|_, (_, expires_at)| now < *expires_at);
        self.keys.retain(|_, expires_at| now < *expires_at);
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        let keys = |buckets: &Buckets| buckets.0.values().map(|b| b.keys.len()).sum::<usize>();
        keys(&self.tokens)
            + keys(&self.sessions)
            + self.subjects.len()
            + self.clients.len()
            + self.keys.len()
            + usize::from(self.everything > Epoch(0))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first bucket of tokens that ends later than `end` seconds: its end and its keys. A caller
    /// walks all buckets with it without holding a lock on the view between them.
    pub fn token_bucket_after(&self, end: u64) -> Option<(u64, Vec<u64>)> {
        self.tokens.after(end)
    }

    /// As [`View::token_bucket_after`], for sessions.
    pub fn session_bucket_after(&self, end: u64) -> Option<(u64, Vec<u64>)> {
        self.sessions.after(end)
    }

    /// A check of the tokens and sessions in buckets that end later than `after`.
    pub fn digest(&self, after: Timestamp) -> Digest {
        let mut digest = Digest::default();
        for buckets in [&self.tokens, &self.sessions] {
            for (_, bucket) in buckets.0.range(after.as_secs() + 1..) {
                digest.count += bucket.keys.len() as u64;
                digest.xor ^= bucket.xor;
            }
        }
        digest
    }
}

fn raise<K: Clone + Eq + std::hash::Hash>(
    epochs: &mut HashMap<K, (Epoch, Timestamp)>,
    id: &K,
    epoch: Epoch,
    expires_at: Timestamp,
) {
    let known = epochs.entry(id.clone()).or_insert((epoch, expires_at));
    known.0 = known.0.max(epoch);
    known.1 = known.1.max(expires_at);
}
