//! Access tokens as this process sees them: verified once, remembered, and held against what was
//! revoked each time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::crypto::sha256;
use crate::domain::claims::Claims;
use crate::domain::clock::Timestamp;
use crate::domain::event::MAX_ACCESS_LIFETIME;
use crate::domain::ids::KeyId;
use crate::domain::view::RevokedBy;
use crate::feed::Feed;
use crate::jwt::{self, MAX_TOKEN_BYTES, Rules, TokenError};
use crate::keys::KeyRing;

/// A token whose signature and claims were checked. Whether it is still good is asked each time.
#[derive(Debug)]
pub struct Verified {
    /// What it asserts.
    pub claims: Claims,
    /// The key that signed it.
    pub key: KeyId,
}

/// Why an access token is not good.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AccessError {
    /// It is none of ours, or not in its time.
    Invalid(TokenError),
    /// It was revoked.
    Revoked(RevokedBy),
}

/// How many verified tokens are remembered, at about 1 KiB each.
const REMEMBERED: usize = 16_384;

/// Verifies access tokens and remembers which it verified.
pub struct AccessTokens {
    rules: Rules,
    keys: Arc<KeyRing>,
    feed: Arc<Feed>,
    remembered: [Mutex<Remembered>; 16],
}

/// Two generations: when the young one is full, the old one is forgotten. Forgetting costs one
/// signature check; what is revoked is not kept here.
#[derive(Default)]
struct Remembered {
    young: HashMap<[u8; 16], Arc<Verified>>,
    old: HashMap<[u8; 16], Arc<Verified>>,
}

impl AccessTokens {
    /// Verifies tokens of `issuer` by `keys`, and asks `feed` what was revoked.
    pub fn new(issuer: Box<str>, keys: Arc<KeyRing>, feed: Arc<Feed>) -> Self {
        // One clock made the tokens and checks them, so there is nothing to be lenient about.
        let rules = Rules::new(issuer, MAX_ACCESS_LIFETIME).with_leeway(Duration::ZERO);
        Self { rules, keys, feed, remembered: Default::default() }
    }

    /// The token, if it is one of ours and good now.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self, token: &str, now: Timestamp) -> Result<Arc<Verified>, AccessError> {
        let verified = self.verified(token, now).map_err(AccessError::Invalid)?;
        match self.feed.check(&verified.claims, &verified.key) {
            None => Ok(verified),
            Some(by) => Err(AccessError::Revoked(by)),
        }
    }

    /// The token, if it is one of ours and in its time, revoked or not.
    ///
    /// # Errors
    /// When it is not.
    pub fn verified(&self, token: &str, now: Timestamp) -> Result<Arc<Verified>, TokenError> {
        // The cap comes before the digest: a long text costs no more than its length check.
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLarge);
        }
        let digest = sha256(token.as_bytes());
        let mut name = [0; 16];
        name.copy_from_slice(&digest[..16]);
        let shard = &self.remembered[usize::from(digest[16]) % self.remembered.len()];
        if let Some(known) = lock(shard).find(&name) {
            if now >= self.rules.refused_from(known.claims.expires_at) {
                return Err(TokenError::Expired);
            }
            return Ok(known);
        }
        let (claims, key) = jwt::verify_signed(token, &*self.keys.current(), &self.rules, now)?;
        let verified = Arc::new(Verified { claims, key });
        lock(shard).remember(name, Arc::clone(&verified), REMEMBERED / self.remembered.len());
        Ok(verified)
    }

    /// Forgets all that was verified: a key was taken out of the ring.
    pub fn forget(&self) {
        for shard in &self.remembered {
            *lock(shard) = Remembered::default();
        }
    }
}

fn lock(shard: &Mutex<Remembered>) -> std::sync::MutexGuard<'_, Remembered> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Remembered {
    fn find(&mut self, name: &[u8; 16]) -> Option<Arc<Verified>> {
        if let Some(known) = self.young.get(name) {
            return Some(Arc::clone(known));
        }
        let known = self.old.remove(name)?;
        self.young.insert(*name, Arc::clone(&known));
        Some(known)
    }

    fn remember(&mut self, name: [u8; 16], verified: Arc<Verified>, capacity: usize) {
        if self.young.len() >= capacity / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(name, verified);
    }
}
