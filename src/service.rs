//! What avouch does, one operation a file, each with its own errors. Knows no wire format and no
//! transport: a caller comes in as a [`Caller`](crate::domain::caller::Caller), an answer goes out in
//! the words of `domain`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::crypto::stream::StreamKey;
use crate::domain::client::Client;
use crate::domain::clock::{Clock, LEAD, Timestamp};
use crate::domain::entropy::Entropy;
use crate::domain::ids::{ClientId, Epoch, SubjectId};
use crate::domain::key::KeyState;
use crate::domain::scope::Names;
use crate::domain::throttle::ThrottlePolicy;
use crate::feed::Feed;
use crate::keys::KeyRing;
use crate::password::{Hasher, PasswordPolicy, PoolStats};
use crate::store::{Store, StoreError, StoredRing};

pub mod access;
pub mod admin;
pub mod authenticate;
pub mod backup;
pub mod clients;
pub mod introspect;
pub mod journal;
pub mod key_admin;
mod key_follow;
pub mod refresh;
pub mod revoke;
pub mod sessions;
pub mod sweep;
mod traced;

use access::AccessTokens;
use clients::{ClientError, ClientProof, Clients};
use journal::Journal;
use key_admin::{KeyKeeper, KeyPublisher};

/// What an operator decides about the service as a whole.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The `iss` of the tokens: an https URL, exactly as verifiers know it. Empty: made of the address
    /// of the public listener.
    pub issuer: Box<str>,
    /// The audience that stands for avouch itself: a token that is good for it may call avouch.
    pub own_audience: Box<str>,
    /// How failed logins are answered.
    pub throttle: ThrottlePolicy,
    /// The most live sessions that one subject may have.
    pub max_sessions_per_subject: u32,
}

/// From when on a replica whose clock is ahead lets the others know, in milliseconds.
const WORTH_TELLING_MILLIS: i64 = 500;

/// Everything that an operation needs.
pub struct Service {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    keys: Arc<KeyRing>,
    feed: Arc<Feed>,
    hasher: Arc<Hasher>,
    passwords: PasswordPolicy,
    journal: Arc<dyn Journal>,
    settings: Settings,
    keeper: KeyKeeper,
    backup_key: StreamKey,
    key_publisher: Arc<dyn KeyPublisher>,
    /// The version of the ring in `keys`. Held while another takes its place, so that of two
    /// changes the later one stays.
    ring_in_use: Mutex<RingInUse>,
    looked_for_keys: key_follow::Looked,
    /// The name under which this replica takes its turn to sweep.
    sweeper: [u8; 16],
    /// Whether it had its turn when it last asked.
    has_turn: watch::Sender<bool>,
    clients: Clients,
    access: AccessTokens,
}

/// The parts of a [`Service`].
pub struct Parts {
    /// Where state lives.
    pub store: Arc<dyn Store>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Where random bytes come from.
    pub entropy: Arc<dyn Entropy>,
    /// The keys that sign and verify.
    pub keys: Arc<KeyRing>,
    /// What was revoked.
    pub feed: Arc<Feed>,
    /// What hashes passwords.
    pub hasher: Arc<Hasher>,
    /// Which passwords may be set.
    pub passwords: PasswordPolicy,
    /// Who is told what happened.
    pub journal: Arc<dyn Journal>,
    /// What the operator decided.
    pub settings: Settings,
    /// What makes and opens keys.
    pub keeper: KeyKeeper,
    /// What seals backups.
    pub backup_key: StreamKey,
    /// Who is told when the published keys change.
    pub key_publisher: Arc<dyn KeyPublisher>,
    /// The ring that `keys` was opened from.
    pub ring: RingInUse,
}

impl Service {
    /// A service of these parts.
    pub fn new(parts: Parts) -> Self {
        let access = AccessTokens::new(
            parts.settings.issuer.clone(),
            Arc::clone(&parts.keys),
            Arc::clone(&parts.feed),
        );
        Self {
            looked_for_keys: key_follow::Looked::default(),
            sweeper: parts.entropy.bytes(),
            has_turn: watch::Sender::new(false),
            clients: Clients::new(Arc::clone(&parts.store), Arc::clone(&parts.feed)),
            access,
            store: parts.store,
            clock: parts.clock,
            entropy: parts.entropy,
            keys: parts.keys,
            feed: parts.feed,
            hasher: parts.hasher,
            passwords: parts.passwords,
            journal: parts.journal,
            settings: parts.settings,
            keeper: parts.keeper,
            backup_key: parts.backup_key,
            key_publisher: parts.key_publisher,
            ring_in_use: Mutex::new(parts.ring),
        }
    }

    /// The present moment. Each operation asks once.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Keeps the clock in step with those of the other replicas, by what they committed. When it is
    /// the one that is ahead, and none of the others need fear it, it lets them know.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn keep_time(&self) -> Result<(), StoreError> {
        let standing = self.feed.clock_standing().unwrap_or_default();
        if standing.ahead_millis > WORTH_TELLING_MILLIS && !standing.is_off() {
            self.store.note_time(self.now()).await?;
        }
        self.clock.heed(self.store.latest_time().await?);
        Ok(())
    }

    /// Whether the time here is further ahead of this machine's clock than that of the others can be:
    /// it was set forward, and back. What is issued here now is too early for them.
    pub fn time_is_ahead(&self) -> bool {
        self.clock.now() > self.clock.wall().after(LEAD)
    }

    /// What verifies access tokens here.
    pub fn access_tokens(&self) -> &AccessTokens {
        &self.access
    }

    /// The feed of revocations.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// The keys that sign and verify.
    pub fn keys(&self) -> &Arc<KeyRing> {
        &self.keys
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// What the operator decided.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// A client's registration, perhaps from memory: at most a second old.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn recent_client(&self, id: &ClientId) -> Result<Option<Arc<Client>>, StoreError> {
        self.clients.recent(id).await
    }

    /// The client, if the proof is good, with a registration that is at most a second old.
    ///
    /// # Errors
    /// When it is not, or the store does not answer.
    pub async fn client_by_proof(
        &self,
        proof: &ClientProof<'_>,
    ) -> Result<Arc<Client>, ClientError> {
        self.clients.authenticate_recent(proof).await
    }

    /// The epoch of a client.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn client_epoch(&self, id: &ClientId) -> Result<Epoch, StoreError> {
        Ok(self.store.epochs(id, &SubjectId::from(id)).await?.client)
    }

    /// The epoch of a subject.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn subject_epoch(&self, id: &SubjectId) -> Result<Epoch, StoreError> {
        self.store.subject_epoch(id).await
    }

    /// How the hashing threads are doing.
    pub fn hash_stats(&self) -> PoolStats {
        self.hasher.stats()
    }

    /// The state of each signing key of the ring in use here.
    pub fn key_states(&self) -> Vec<KeyState> {
        self.ring_in_use().states.clone()
    }

    fn ring_in_use(&self) -> MutexGuard<'_, RingInUse> {
        self.ring_in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is told what happened.
    pub fn journal(&self) -> &Arc<dyn Journal> {
        &self.journal
    }
}

/// Which state of the stored ring is in use.
#[derive(Clone, Debug, Default)]
pub struct RingInUse {
    version: u64,
    states: Vec<KeyState>,
}

impl From<&StoredRing> for RingInUse {
    fn from(stored: &StoredRing) -> Self {
        let states = stored.keys.iter().map(|key| key.state).collect();
        Self { version: stored.version, states }
    }
}

/// Tokens for a client, in the words of `domain`.
#[derive(Debug)]
pub struct Tokens {
    /// The access token.
    pub access: crate::domain::secret::SecretText,
    /// What it asserts.
    pub claims: crate::domain::claims::Claims,
    /// The refresh token and what it belongs to, if the grant opens a session.
    pub refresh: Option<RefreshGrant>,
    /// How long the access token lives from now.
    pub expires_in: Duration,
}

/// A refresh token and how long it lives.
#[derive(Debug)]
pub struct RefreshGrant {
    /// The refresh token.
    pub token: crate::domain::secret::SecretText,
    /// When it expires unless it is used.
    pub expires_at: Timestamp,
    /// When the session ends in any case.
    pub session_expires_at: Timestamp,
}

/// Why the scopes or audiences that were asked for are not given.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Excess {
    /// A scope that may not be had.
    Scope,
    /// An audience that may not be had.
    Audience,
}

/// Of what may be had, what was asked for; all of it when nothing was.
fn granted(asked: &Names, may_have: &Names) -> Option<Names> {
    if asked.is_empty() {
        Some(may_have.clone())
    } else if asked.is_subset(may_have) {
        Some(asked.clone())
    } else {
        None
    }
}

/// A caller in a few words, for the audit log.
pub fn describe(caller: &crate::domain::caller::Caller) -> Box<str> {
    use crate::domain::caller::Identity;
    match &caller.identity {
        Identity::Anonymous => "anonymous".into(),
        Identity::System => "system".into(),
        Identity::Certificate(names) => format!("certificate {}", names.join(" ")).into(),
        Identity::Client(client) => format!("client {client}").into(),
        Identity::Subject { subject, client, .. } => {
            format!("subject {subject} by client {client}").into()
        }
    }
}
