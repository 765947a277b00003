//! Access tokens as one process sees them: checked once, and remembered by their digest. Whether a
//! token was revoked is not known here; that is asked each time.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::crypto::sha256;
use crate::domain::claims::Claims;
use crate::domain::clock::Timestamp;
use crate::domain::ids::KeyId;
use crate::domain::view::Marks;
use crate::jwt::{self, KeyLookup, MAX_TOKEN_BYTES, Rules, TokenError};

/// How many parts the memory has, so that threads seldom meet at one lock.
const SHARDS: usize = 16;

/// A token whose signature and claims were checked.
#[derive(Debug)]
pub struct VerifiedToken {
    /// What it asserts.
    pub claims: Claims,
    /// The key that signed it.
    pub key: KeyId,
    /// By what a view of revocations knows it.
    pub marks: Marks,
    /// What the server last said of it: the moment in milliseconds, and in the last bit whether it was
    /// good. Zero for nothing.
    said: AtomicU64,
}

impl VerifiedToken {
    /// A token with these claims, signed by `key`.
    pub fn new(claims: Claims, key: KeyId) -> Self {
        let marks = Marks::of(&claims, &key);
        Self { claims, key, marks, said: AtomicU64::new(0) }
    }

    /// Notes what the server said of it.
    pub fn note(&self, active: bool, at: Timestamp) {
        self.said.store((at.as_millis() << 1) | u64::from(active), Ordering::Relaxed);
    }

    /// What the server said of it since `since`, if anything.
    pub fn noted(&self, since: Timestamp) -> Option<bool> {
        let said = self.said.load(Ordering::Relaxed);
        (said != 0 && said >> 1 >= since.as_millis()).then_some(said & 1 == 1)
    }
}

/// Verifies access tokens by rules, and remembers which it verified.
pub struct VerifiedTokens {
    rules: Rules,
    shard_capacity: usize,
    shards: [Mutex<Shard>; SHARDS],
}

/// Half a digest: SHA-256 is as good a hash as there is.
type Name = u128;

#[derive(Default)]
struct NameHasher(u64);

impl Hasher for NameHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = self.0.rotate_left(1) ^ u64::from_le_bytes(word);
        }
    }
}

type ByName = HashMap<Name, Arc<VerifiedToken>, BuildHasherDefault<NameHasher>>;

/// Two generations: when the young one is full, the old one is forgotten. Forgetting costs one
/// signature check; what is revoked is not kept here.
#[derive(Default)]
struct Shard {
    young: ByName,
    old: ByName,
}

impl Shard {
    fn find(&mut self, name: &Name) -> Option<Arc<VerifiedToken>> {
        if let Some(known) = self.young.get(name) {
            return Some(Arc::clone(known));
        }
        let known = self.old.remove(name)?;
        self.young.insert(*name, Arc::clone(&known));
        Some(known)
    }

    fn remember(&mut self, name: Name, verified: Arc<VerifiedToken>, capacity: usize) {
        if self.young.len() >= capacity / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(name, verified);
    }
}

impl VerifiedTokens {
    /// Verifies by `rules` and remembers about `capacity` tokens, at about 1 KiB each.
    pub fn new(rules: Rules, capacity: usize) -> Self {
        let shard_capacity = capacity.div_ceil(SHARDS).max(2);
        Self { rules, shard_capacity, shards: std::array::from_fn(|_| Mutex::default()) }
    }

    /// The token, if one of `keys` signed it, and it follows the rules and is in its time.
    ///
    /// # Errors
    /// When it is not. Nothing is remembered of it then.
    pub fn verify(
        &self,
        token: &str,
        keys: &(impl KeyLookup + ?Sized),
        now: Timestamp,
    ) -> Result<Arc<VerifiedToken>, TokenError> {
        // The cap comes before the digest: a long text costs no more than its length check.
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLarge);
        }
        let digest = sha256(token.as_bytes());
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        let name = Name::from_le_bytes(half);
        let shard = &self.shards[usize::from(digest[16]) % SHARDS];
        let known = lock(shard).find(&name);
        if let Some(known) = known {
            if now >= self.rules.refused_from(known.claims.expires_at) {
                return Err(TokenError::Expired);
            }
            return Ok(known);
        }
        let (claims, key) = jwt::verify_signed(token, keys, &self.rules, now)?;
        let verified = Arc::new(VerifiedToken::new(claims, key));
        lock(shard).remember(name, Arc::clone(&verified), self.shard_capacity);
        Ok(verified)
    }

    /// The moment from which a token is refused for its age.
    pub fn refused_from(&self, token: &VerifiedToken) -> Timestamp {
        self.rules.refused_from(token.claims.expires_at)
    }

    /// Forgets all: a key is no longer good.
    pub fn forget(&self) {
        for shard in &self.shards {
            let forgotten = std::mem::take(&mut *lock(shard));
            drop(forgotten);
        }
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
