//! Clients: what one may ask for, and how long what it gets lives.

use std::time::Duration;

use crate::domain::caller::Grant;
use crate::domain::clock::Timestamp;
use crate::domain::event::MAX_ACCESS_LIFETIME;
use crate::domain::ids::ClientId;
use crate::domain::scope::Names;
use crate::domain::secret::SecretBytes;

/// Whether a client can keep a secret (RFC 6749 section 2.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClientType {
    /// It can: a service.
    Confidential,
    /// It cannot: an application on somebody's device.
    Public,
}

/// What happens when a spent refresh token is presented.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ReuseDetection {
    /// The session is revoked.
    #[default]
    Enforce,
    /// It is refused and counted; the session lives on.
    Report,
}

/// How long what a client gets lives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lifetimes {
    /// Of an access token.
    pub access: Duration,
    /// Of a session that is not refreshed.
    pub idle: Duration,
    /// Of a session in any case.
    pub absolute: Duration,
    /// How long after a rotation the spent token still gets the same successor.
    pub retry_window: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(86_400);
        Self {
            access: Duration::from_secs(300),
            idle: DAY.saturating_mul(7),
            absolute: DAY.saturating_mul(30),
            retry_window: Duration::from_secs(10),
        }
    }
}

/// Which lifetime is out of bounds.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LifetimeError {
    /// The access-token lifetime.
    #[error("must be 1 min to 1 h")]
    Access,
    /// The idle lifetime.
    #[error("must be at least the access token lifetime and at most the absolute lifetime")]
    Idle,
    /// The absolute lifetime.
    #[error("must be at most 400 days")]
    Absolute,
    /// The retry window.
    #[error("must be 0 to 300 s")]
    RetryWindow,
}

impl Lifetimes {
    /// Checks the bounds.
    ///
    /// # Errors
    /// The first lifetime that is out of its bounds.
    pub fn check(&self) -> Result<(), LifetimeError> {
        self.mistakes().next().map_or(Ok(()), Err)
    }

    /// Every lifetime that is out of its bounds.
    pub fn mistakes(&self) -> impl Iterator<Item = LifetimeError> + use<> {
        let access = self.access < Duration::from_secs(60) || self.access > MAX_ACCESS_LIFETIME;
        let absolute = self.absolute > Duration::from_secs(400 * 86_400);
        let idle = self.idle < self.access || self.idle > self.absolute;
        let retry_window = self.retry_window > Duration::from_secs(300);
        [
            access.then_some(LifetimeError::Access),
            absolute.then_some(LifetimeError::Absolute),
            idle.then_some(LifetimeError::Idle),
            retry_window.then_some(LifetimeError::RetryWindow),
        ]
        .into_iter()
        .flatten()
    }
}

/// A registered client.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Client {
    /// Its id.
    pub id: ClientId,
    /// The name to show.
    pub display_name: Box<str>,
    /// Whether it can keep a secret.
    pub kind: ClientType,
    /// SHA-256 of its secret, which has 256 random bits.
    pub secret_digest: Option<SecretBytes<32>>,
    /// Whether it may ask users for their passwords.
    pub first_party: bool,
    /// The scopes that it may be granted.
    pub scope: Names,
    /// The audiences that its tokens may be good for.
    pub audience: Names,
    /// What it may do with avouch itself.
    pub grants: Vec<Grant>,
    /// Certificate names (SPIFFE URI, DNS) by which it may authenticate.
    pub certificate_names: Vec<Box<str>>,
    /// How long what it gets lives.
    pub lifetimes: Lifetimes,
    /// What happens when a spent refresh token is presented.
    pub reuse_detection: ReuseDetection,
    /// Whether it may not authenticate.
    pub disabled: bool,
    /// When it was registered.
    pub created_at: Timestamp,
}
