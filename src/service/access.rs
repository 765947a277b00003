//! Access tokens as the server sees them: verified once, remembered, and held against what was revoked
//! each time.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::clock::{LEAD, Timestamp};
use crate::domain::event::MAX_ACCESS_LIFETIME;
use crate::domain::view::RevokedBy;
use crate::feed::Feed;
use crate::jwt::{self, Rules, TokenError};
use crate::keys::KeyRing;
use crate::verified::{VerifiedToken, VerifiedTokens};

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
    tokens: VerifiedTokens,
    /// What some verifier may take a token by, now or later, whatever its clock and that of the issuer.
    anywhere: Rules,
    keys: Arc<KeyRing>,
    feed: Arc<Feed>,
}

impl AccessTokens {
    /// Verifies tokens of `issuer` by `keys`, and asks `feed` what was revoked.
    pub fn new(issuer: Box<str>, keys: Arc<KeyRing>, feed: Arc<Feed>) -> Self {
        // One clock made the tokens and checks them, so there is nothing to be lenient about; but for
        // the clocks of other replicas, which keep up with each other as far as that.
        let early = if feed.replicas().is_some() { LEAD } else { Duration::ZERO };
        let rules = Rules::new(issuer, MAX_ACCESS_LIFETIME);
        let anywhere = rules.clone().with_early(MAX_ACCESS_LIFETIME);
        let rules = rules.with_leeway(Duration::ZERO).with_early(early);
        Self { tokens: VerifiedTokens::new(rules, REMEMBERED), anywhere, keys, feed }
    }

    /// The token, if it is one of ours and good now.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self, token: &str, now: Timestamp) -> Result<Arc<VerifiedToken>, AccessError> {
        let verified = self.verified(token, now).map_err(AccessError::Invalid)?;
        match self.feed.revoked_by(&verified.marks) {
            None => Ok(verified),
            Some(by) => Err(AccessError::Revoked(by)),
        }
    }

    /// The token, if it is one of ours and in its time, revoked or not.
    ///
    /// # Errors
    /// When it is not.
    pub fn verified(&self, token: &str, now: Timestamp) -> Result<Arc<VerifiedToken>, TokenError> {
        self.tokens.verify(token, &*self.keys.current(), now)
    }

    /// The token, if it is one of ours and somebody may take it for good, now or later: its time may
    /// not have come by the clock here, or just be over. Revoked or not.
    ///
    /// # Errors
    /// When it is not.
    pub fn revocable(&self, token: &str, now: Timestamp) -> Result<Arc<VerifiedToken>, TokenError> {
        match self.verified(token, now) {
            Err(TokenError::Expired | TokenError::NotYetValid | TokenError::IssuedInFuture) => {
                let (keys, now) = (self.keys.current(), now.before(LEAD));
                let (claims, key) = jwt::verify_signed(token, &*keys, &self.anywhere, now)?;
                Ok(Arc::new(VerifiedToken::new(claims, key)))
            }
            known => known,
        }
    }

    /// Forgets all that was verified: a key was taken out of the ring.
    pub fn forget(&self) {
        self.tokens.forget();
    }
}
