//! Authenticate: a credential for tokens.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::clients::{ClientError, ClientProof};
use super::journal::{Failure, Happening, Origin};
use super::traced::commit;
use super::{Excess, RefreshGrant, Service, Tokens, granted};
use crate::crypto::sha256;
use crate::domain::claims::Claims;
use crate::domain::client::{Client, ClientType};
use crate::domain::clock::Timestamp;
use crate::domain::ids::{Generation, SubjectId};
use crate::domain::scope::Names;
use crate::domain::secret::{SecretBytes, SecretText};
use crate::domain::session::{Device, Session};
use crate::domain::throttle::ThrottleDecision;
use crate::domain::user::User;
use crate::domain::username::NameError;
use crate::password::{HashError, PasswordHash, Verification};
use crate::precis::{self, PasswordError};
use crate::store::{Login, NewSession, Opened, StoreError};
use crate::trace;

/// How the subject proves itself.
#[derive(Debug)]
pub enum Grant {
    /// By name and password.
    Password {
        /// The name as it was typed.
        username: String,
        /// The password as it was typed.
        password: SecretText,
    },
    /// The client speaks for itself.
    ClientCredentials,
}

/// What is asked for.
#[derive(Debug)]
pub struct Request<'a> {
    /// The client that asks.
    pub client: ClientProof<'a>,
    /// How the subject proves itself.
    pub grant: Grant,
    /// The scopes; none means all that may be had.
    pub scope: Names,
    /// The audiences; none means all that may be had.
    pub audience: Names,
    /// The end user's device.
    pub device: Device,
}

/// Why there are no tokens.
#[derive(Debug)]
pub enum AuthenticateError {
    /// The client or the subject did not prove itself. One answer for every reason.
    Refused,
    /// The client may not use the password grant: it is not first-party.
    NotFirstParty,
    /// A public client cannot speak for itself.
    PublicClient,
    /// Scopes or audiences that the client may not have.
    Excess(Excess),
    /// The name is no user name (RFC 8265).
    Username(NameError),
    /// The password is no password (RFC 8265).
    Password(PasswordError),
    /// Too many attempts from this source on this account.
    Throttled(Duration),
    /// No room to hash.
    Busy(Duration),
    /// The store did not answer.
    Store(StoreError),
    /// Something that must not happen.
    Internal(&'static str),
}

impl From<StoreError> for AuthenticateError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Service {
    /// Exchanges a credential for tokens.
    ///
    /// # Errors
    /// See [`AuthenticateError`].
    pub async fn authenticate(
        &self,
        request: Request<'_>,
        origin: &Origin,
    ) -> Result<Tokens, AuthenticateError> {
        let now = self.now();
        let client = self.prove_client(&request.client, origin, now).await?;
        let scope = granted(&request.scope, &client.scope)
            .ok_or(AuthenticateError::Excess(Excess::Scope))?;
        let audience = granted(&request.audience, &client.audience)
            .ok_or(AuthenticateError::Excess(Excess::Audience))?;
        match request.grant {
            Grant::ClientCredentials => {
                self.authenticate_client(client, scope, audience, origin, now).await
            }
            Grant::Password { username, password } => {
                if !client.first_party {
                    return Err(AuthenticateError::NotFirstParty);
                }
                let attempt = Attempt { client, scope, audience, device: request.device, now };
                self.authenticate_user(attempt, &username, password, origin).await
            }
        }
    }

    /// The client, if the proof is good; if not, the journal says why.
    pub(super) async fn prove_client(
        &self,
        proof: &ClientProof<'_>,
        origin: &Origin,
        now: Timestamp,
    ) -> Result<Arc<Client>, AuthenticateError> {
        // From memory; before anything is given out, `is_still_good` asks the store.
        self.clients.authenticate_recent(proof).await.map_err(|error| match error {
            ClientError::Store(error) => AuthenticateError::Store(error),
            ClientError::Refused(failure) => {
                let happening = Happening::LoginFailed {
                    subject: None,
                    client: proof.id.clone(),
                    source: None,
                    failure,
                };
                self.journal.record(now, origin, happening);
                AuthenticateError::Refused
            }
        })
    }

    async fn authenticate_client(
        &self,
        client: Arc<Client>,
        scope: Names,
        audience: Names,
        origin: &Origin,
        now: Timestamp,
    ) -> Result<Tokens, AuthenticateError> {
        if client.kind == ClientType::Public {
            return Err(AuthenticateError::PublicClient);
        }
        let subject = SubjectId::from(&client.id);
        // The epochs are no newer than the registration: a client that is disabled in between gets a
        // token that is below its epoch already, or none.
        let (found, epochs) = self.store.find_client_and_epochs(&client.id).await?;
        if !is_still_good(&client, found.as_ref()) {
            return Err(AuthenticateError::Refused);
        }
        let issued_at = Timestamp::from_secs(now.as_secs());
        let claims = Claims {
            issuer: self.settings.issuer.clone(),
            subject: subject.clone(),
            audience,
            client: client.id.clone(),
            scope,
            token_id: self.entropy.token_id(),
            session: None,
            issued_at,
            not_before: issued_at,
            expires_at: issued_at.after(client.lifetimes.access),
            authenticated_at: None,
            methods: Names::default(),
            epochs,
        };
        let tokens = self.sign(claims, None).map_err(AuthenticateError::Internal)?;
        let happening = Happening::LoginSucceeded {
            subject,
            client: client.id.clone(),
            session: None,
            evicted: None,
        };
        self.journal.record(now, origin, happening);
        Ok(tokens)
    }

    async fn authenticate_user(
        &self,
        attempt: Attempt,
        username: &str,
        password: SecretText,
        origin: &Origin,
    ) -> Result<Tokens, AuthenticateError> {
        let Attempt { client, scope, audience, device, now } = attempt;
        let source = Source::of(&device, origin);
        let proof = self.prove_user(&client, username, password, &source, origin, now).await;
        let (user, epochs, account) = proof?;
        let session = Session {
            id: self.entropy.session_id(),
            subject: user.subject.clone(),
            client: client.id.clone(),
            scope: user.permitted(&scope),
            audience,
            epochs,
            nonce: SecretBytes::new(self.entropy.bytes()),
            generation: Generation(0),
            mac_key: self.keys.current().active_mac(),
            created_at: now,
            rotated_at: now,
            idle_expires_at: now.after(client.lifetimes.idle),
            expires_at: now.after(client.lifetimes.absolute),
            access_expires_at: Session::access_bound(&client.lifetimes, now),
            methods: Names::new(["pwd"]).unwrap_or_default(),
            device,
            revoked: None,
        };
        let new = NewSession {
            session: session.clone(),
            max_per_subject: self.settings.max_sessions_per_subject,
            looked_beyond: false,
            clear_attempts: Some((account, source.key)),
        };
        let mut opened = commit("open_session", self.store.open_session(new.clone(), now)).await?;
        if opened == Opened::LookBeyond {
            self.evict_beyond_limit(&user.subject, origin, now).await?;
            let new = NewSession { looked_beyond: true, ..new };
            opened = commit("open_session", self.store.open_session(new, now)).await?;
        }
        let evicted = match opened {
            Opened::Open { evicted } => evicted,
            Opened::LookBeyond => {
                return Err(AuthenticateError::Internal("who has looked is asked to look"));
            }
            Opened::Stale => {
                let happening = Happening::LoginFailed {
                    subject: Some(user.subject),
                    client: Some(client.id.clone()),
                    source: source.text,
                    failure: Failure::StaleCredential,
                };
                self.journal.record(now, origin, happening);
                return Err(AuthenticateError::Refused);
            }
        };
        let tokens = self
            .issue(&session, &client, session.scope.clone(), session.audience.clone(), now)
            .map_err(AuthenticateError::Internal)?;
        let happening = Happening::LoginSucceeded {
            subject: user.subject,
            client: client.id.clone(),
            session: Some(session.id),
            evicted,
        };
        self.journal.record(now, origin, happening);
        Ok(tokens)
    }

    /// Checks a name and a password. On success gives the user, the epochs that were read before the
    /// password was checked, and the account as the throttle knows it.
    pub(super) async fn prove_user(
        &self,
        client: &Client,
        username: &str,
        password: SecretText,
        source: &Source,
        origin: &Origin,
        now: Timestamp,
    ) -> Result<(User, crate::domain::ids::Epochs, [u8; 8]), AuthenticateError> {
        let username = precis::username(username).map_err(AuthenticateError::Username)?;
        // A storm is turned away here, before anything is read or written for it: only who has a place
        // in the queue asks the store.
        let place = match self.hasher.reserve(u64::from_be_bytes(source.key)) {
            Ok(place) => place,
            Err(error) => {
                self.throttled(client, source, "hash_queue", origin, now);
                return Err(hash_error(error));
            }
        };
        let account = account_key(username.as_str());
        let policy = self.settings.throttle;
        // Counted before the password is looked at, so that parallel guesses count too; and for
        // names that do not exist, so that the throttle does not tell which do.
        if let ThrottleDecision::Wait(delay) =
            commit("begin_attempt", self.store.begin_attempt(account, source.key, policy, now))
                .await?
        {
            self.throttled(client, source, "attempts", origin, now);
            return Err(AuthenticateError::Throttled(delay));
        }
        // A change of user or client from here on raises an epoch, which open_session sees.
        let Login { user, client: found, epochs } =
            self.store.find_login(username.as_str(), &client.id).await?;
        let stored = user.as_ref().and_then(|user| user.password_hash.as_ref()).and_then(|hash| {
            match PasswordHash::from_phc(hash.expose()) {
                Ok(hash) => Some(hash),
                Err(error) => {
                    tracing::error!(%error, "a stored password hash cannot be used");
                    None
                }
            }
        });
        let verification = match self.hasher.verify(place, password.clone(), stored.clone()).await {
            Ok(verification) => verification,
            Err(error) => {
                commit("undo_attempt", self.store.undo_attempt(account, source.key, now)).await?;
                return Err(hash_error(error));
            }
        };
        // The client proved itself before the epochs were read: disabled in between, it would open a
        // session above the epoch that ended its others.
        if !is_still_good(client, found.as_ref()) {
            let happening = Happening::LoginFailed {
                subject: user.map(|user| user.subject),
                client: Some(client.id.clone()),
                source: source.text.clone(),
                failure: Failure::StaleCredential,
            };
            self.journal.record(now, origin, happening);
            return Err(AuthenticateError::Refused);
        }
        let (user, stored) = match (verification, user, stored) {
            (Verification::Match, Some(user), Some(stored)) if !user.disabled => (user, stored),
            (verification, user, stored) => {
                let failure = match (&user, stored, verification) {
                    (None, _, _) => Failure::UnknownUser,
                    (Some(_), None, _) => Failure::NoPassword,
                    (Some(user), Some(_), Verification::Match) if user.disabled => {
                        Failure::UserDisabled
                    }
                    (Some(_), Some(_), _) => Failure::WrongPassword,
                };
                let happening = Happening::LoginFailed {
                    subject: user.map(|user| user.subject),
                    client: Some(client.id.clone()),
                    source: source.text.clone(),
                    failure,
                };
                self.journal.record(now, origin, happening);
                return Err(AuthenticateError::Refused);
            }
        };
        if self.hasher.needs_rehash(&stored) {
            self.rehash(&user, password, source, now).await?;
        }
        Ok((user, epochs, account))
    }

    /// Hashes the password anew under the parameters of now. When there is no room for it, the next
    /// login does it.
    async fn rehash(
        &self,
        user: &User,
        password: SecretText,
        source: &Source,
        now: Timestamp,
    ) -> Result<(), AuthenticateError> {
        let Some(from) = user.password_hash.clone() else { return Ok(()) };
        match self.hasher.hash(u64::from_be_bytes(source.key), password).await {
            Ok(to) => {
                commit(
                    "rehash_password",
                    self.store.rehash_password(user.subject.clone(), from, to.to_phc(), now),
                )
                .await?;
                Ok(())
            }
            Err(HashError::Busy { .. }) => Ok(()),
            Err(error) => Err(hash_error(error)),
        }
    }

    fn throttled(
        &self,
        client: &Client,
        source: &Source,
        what: &'static str,
        origin: &Origin,
        now: Timestamp,
    ) {
        let happening =
            Happening::Throttled { client: client.id.clone(), source: source.text.clone(), what };
        self.journal.record(now, origin, happening);
    }

    /// The access token of a session as it stands, and its refresh token.
    pub(super) fn issue(
        &self,
        session: &Session,
        client: &Client,
        scope: Names,
        audience: Names,
        now: Timestamp,
    ) -> Result<Tokens, &'static str> {
        let issued_at = Timestamp::from_secs(now.as_secs());
        let claims = Claims {
            issuer: self.settings.issuer.clone(),
            subject: session.subject.clone(),
            audience,
            client: session.client.clone(),
            scope,
            token_id: self.entropy.token_id(),
            session: Some(session.id),
            issued_at,
            not_before: issued_at,
            expires_at: Timestamp::from_secs(
                session
                    .access_expiry(&client.lifetimes, issued_at)
                    .min(session.access_expires_at)
                    .as_secs(),
            ),
            authenticated_at: Some(Timestamp::from_secs(session.created_at.as_secs())),
            methods: session.methods.clone(),
            epochs: session.epochs,
        };
        let token = self
            .keys
            .current()
            .mint_refresh(session.id, session.generation, &session.nonce, session.mac_key)
            .ok_or("the MAC key of a session is not in the ring")?;
        let refresh = RefreshGrant {
            token,
            expires_at: session.ends_at(),
            session_expires_at: session.expires_at,
        };
        self.sign(claims, Some(refresh))
    }

    fn sign(&self, claims: Claims, refresh: Option<RefreshGrant>) -> Result<Tokens, &'static str> {
        let _span = trace::child("sign");
        let access = self.keys.current().signing().encode(&claims).map_err(|error| {
            tracing::error!(%error, "an access token cannot be signed");
            "an access token cannot be signed"
        })?;
        // From `iat`, so that it is the lifetime that the client is registered with.
        let expires_in = claims.expires_at.since(claims.issued_at);
        Ok(Tokens { access, claims, refresh, expires_in })
    }
}

/// Whether what a client proved a moment ago is still so by what the store has of it.
fn is_still_good(proved: &Client, found: Option<&Client>) -> bool {
    found.is_some_and(|found| !found.disabled && found.secret_digest == proved.secret_digest)
}

struct Attempt {
    client: Arc<Client>,
    scope: Names,
    audience: Names,
    device: Device,
    now: Timestamp,
}

/// Where an attempt comes from: the end user's address if the client told it, the connection's if
/// not.
pub(super) struct Source {
    pub(super) key: [u8; 8],
    pub(super) text: Option<Box<str>>,
}

impl Source {
    pub(super) fn of(device: &Device, origin: &Origin) -> Self {
        let told: Option<IpAddr> = device.address.parse().ok();
        let network = match told.or(origin.peer) {
            None => [0; 8],
            Some(IpAddr::V4(v4)) => {
                let o = v4.octets();
                [4, 0, 0, 0, o[0], o[1], o[2], o[3]]
            }
            // One subscriber has at least a /64, so single addresses would count for nothing.
            Some(IpAddr::V6(v6)) => {
                let o = v6.octets();
                [o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7]]
            }
        };
        let text = told.or(origin.peer).map(|address| address.to_string().into());
        Self { key: first_eight(b"source|", &network), text }
    }
}

/// An account as the throttle knows it: no name is stored.
pub(super) fn account_key(username: &str) -> [u8; 8] {
    first_eight(b"account|", username.as_bytes())
}

fn first_eight(kind: &[u8], bytes: &[u8]) -> [u8; 8] {
    let digest = sha256(&[kind, bytes].concat());
    let mut key = [0; 8];
    key.copy_from_slice(&digest[..8]);
    key
}

pub(super) fn hash_error(error: HashError) -> AuthenticateError {
    match error {
        HashError::Busy { retry_after } => AuthenticateError::Busy(retry_after),
        HashError::Password(error) => AuthenticateError::Password(error),
        HashError::Stopped => {
            AuthenticateError::Store(StoreError::Unavailable("shutting down".to_owned()))
        }
        HashError::Internal => AuthenticateError::Internal("a password could not be hashed"),
    }
}
