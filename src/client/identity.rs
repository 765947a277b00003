//! The calls of IdentityService and SessionService, with the deadlines and the retries that the
//! protos advise. It knows no clock and keeps no token.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};
use v1::identity_service_client::IdentityServiceClient;
use v1::session_service_client::SessionServiceClient;

use super::retry::{Failed, Retriable, Retries, RetrySettings};
use super::transport::Transport;
use super::watch::moment;
use crate::domain::clock::Timestamp;
use crate::domain::entropy::Entropy;
use crate::domain::secret::SecretText;
use crate::pb::v1;

mod error;

pub use super::retry::Failure;
pub use error::{
    AuthenticateError, IntrospectError, KeySetError, RefreshError, RevokeError, SessionsError,
};

/// The longest that a server waits for a cursor that Introspect names.
const CURSOR_WAIT: Duration = Duration::from_secs(2);

/// How long each call may take, all its tries together.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Authenticate.
    pub authenticate: Duration,
    /// Refresh.
    pub refresh: Duration,
    /// Revoke; the wait for watchers comes on top.
    pub revoke: Duration,
    /// Introspect; the wait for a cursor comes on top.
    pub introspect: Duration,
    /// GetKeySet.
    pub key_set: Duration,
    /// ListSessions and GetSession.
    pub sessions: Duration,
}

impl Default for Deadlines {
    /// What the protos suggest.
    fn default() -> Self {
        Self {
            authenticate: Duration::from_secs(2),
            refresh: Duration::from_secs(1),
            revoke: Duration::from_secs(1),
            introspect: Duration::from_millis(250),
            key_set: Duration::from_secs(1),
            sessions: Duration::from_secs(2),
        }
    }
}

impl Deadlines {
    /// This for every call.
    pub const fn all(within: Duration) -> Self {
        Self {
            authenticate: within,
            refresh: within,
            revoke: within,
            introspect: within,
            key_set: within,
            sessions: within,
        }
    }
}

/// Who the client is, and how it proves it.
#[derive(Clone, Debug)]
pub struct ClientCredential {
    id: String,
    secret: Option<SecretText>,
}

impl ClientCredential {
    /// A confidential client, by its secret.
    pub fn secret(id: impl Into<String>, secret: impl Into<String>) -> Self {
        Self { id: id.into(), secret: Some(SecretText::new(secret.into())) }
    }

    /// A confidential client, by the certificate of the connection, that its registration names.
    pub fn certificate(id: impl Into<String>) -> Self {
        Self { id: id.into(), secret: None }
    }

    /// A public client: its id is all there is.
    pub fn public(id: impl Into<String>) -> Self {
        Self { id: id.into(), secret: None }
    }

    fn to_wire(&self) -> v1::ClientAuthentication {
        let secret = self.secret.as_ref();
        v1::ClientAuthentication {
            client_id: self.id.clone(),
            client_secret: secret.map(|it| it.expose().to_owned()).unwrap_or_default(),
        }
    }
}

/// How the subject proves itself.
#[derive(Clone, Debug)]
pub enum Grant {
    /// The client speaks for itself.
    ClientCredentials,
    /// A user's name and password.
    Password {
        /// The name.
        username: String,
        /// The password.
        password: SecretText,
    },
}

/// A credential and what is wanted for it.
#[derive(Clone, Debug)]
pub struct Login {
    /// How the subject proves itself.
    pub grant: Grant,
    /// The scopes asked for; empty for all that the client has.
    pub scopes: Vec<String>,
    /// The audiences asked for; empty for all that the client may have.
    pub audiences: Vec<String>,
    /// The end user's device.
    pub device: Option<v1::Device>,
}

impl Login {
    /// The client for itself, with all that it may have.
    pub const fn client_credentials() -> Self {
        Self::by(Grant::ClientCredentials)
    }

    /// A user by a password, with all that the client may have.
    pub fn password(username: impl Into<String>, password: SecretText) -> Self {
        Self::by(Grant::Password { username: username.into(), password })
    }

    const fn by(grant: Grant) -> Self {
        Self { grant, scopes: Vec::new(), audiences: Vec::new(), device: None }
    }

    /// For these audiences alone.
    #[must_use]
    pub fn for_audiences<I: Into<String>>(mut self, them: impl IntoIterator<Item = I>) -> Self {
        self.audiences = them.into_iter().map(Into::into).collect();
        self
    }

    /// With these scopes alone.
    #[must_use]
    pub fn with_scopes<I: Into<String>>(mut self, them: impl IntoIterator<Item = I>) -> Self {
        self.scopes = them.into_iter().map(Into::into).collect();
        self
    }
}

/// A refresh token to exchange, and what is wanted for it.
#[derive(Clone, Debug)]
pub struct Renewal {
    /// The current refresh token of the session.
    pub refresh_token: SecretText,
    /// Fewer scopes for the access token; empty for all that the session holds.
    pub scopes: Vec<String>,
    /// Fewer audiences for the access token; empty for all that the session holds.
    pub audiences: Vec<String>,
    /// The end user's device as it is now.
    pub device: Option<v1::Device>,
}

impl From<SecretText> for Renewal {
    fn from(refresh_token: SecretText) -> Self {
        Self { refresh_token, scopes: Vec::new(), audiences: Vec::new(), device: None }
    }
}

/// What Authenticate and Refresh give.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// For services.
    pub access_token: SecretText,
    /// How long the access token lived when it was issued.
    pub expires_in: Duration,
    /// When the access token expires, by the server's clock.
    pub access_token_expires: Timestamp,
    /// For avouch alone; none with client credentials.
    pub refresh_token: Option<SecretText>,
    /// When the refresh token expires if it is not used.
    pub refresh_token_expires: Option<Timestamp>,
    /// When the session ends, however often it is refreshed.
    pub session_expires: Option<Timestamp>,
    /// The session's id; empty without one.
    pub session_id: String,
    /// The scopes that were granted.
    pub scopes: Vec<String>,
    /// The audiences that the access token is good for.
    pub audiences: Vec<String>,
    /// Who the tokens speak for.
    pub subject: String,
}

impl From<v1::TokenSet> for Tokens {
    fn from(set: v1::TokenSet) -> Self {
        let refresh = set.refresh_token;
        Self {
            access_token: SecretText::new(set.access_token),
            expires_in: Duration::from_secs(set.expires_in_seconds.into()),
            access_token_expires: set
                .access_token_expire_time
                .as_ref()
                .and_then(moment)
                .unwrap_or_default(),
            refresh_token: (!refresh.is_empty()).then(|| SecretText::new(refresh)),
            refresh_token_expires: set.refresh_token_expire_time.as_ref().and_then(moment),
            session_expires: set.session_expire_time.as_ref().and_then(moment),
            session_id: set.session_id,
            scopes: set.scopes,
            audiences: set.audiences,
            subject: set.subject,
        }
    }
}

/// What to take back.
#[derive(Clone, Debug)]
pub enum RevocationTarget {
    /// An access token: it alone. A refresh token: its whole session.
    Token(SecretText),
    /// One session, by its id.
    Session(String),
    /// Everything that was issued for a subject until now.
    Subject(String),
    /// Everything that was issued to a client until now.
    Client(String),
    /// Everything that was issued until now.
    Everything,
}

/// What to take back, why, and for whom.
#[derive(Clone, Debug)]
pub struct Revocation {
    /// What to take back.
    pub target: RevocationTarget,
    /// Why; the server has a default.
    pub reason: v1::RevocationReason,
    /// Who began it; the server has a default.
    pub initiator: v1::InitiatingEntity,
    /// How long to wait until every connected watcher has applied it.
    pub wait: Option<Duration>,
}

impl From<RevocationTarget> for Revocation {
    fn from(target: RevocationTarget) -> Self {
        Self {
            target,
            reason: v1::RevocationReason::Unspecified,
            initiator: v1::InitiatingEntity::Unspecified,
            wait: None,
        }
    }
}

/// A token to ask about.
#[derive(Clone, Debug)]
pub struct Question {
    /// The token, of either kind.
    pub token: SecretText,
    /// Answer from a state at least as new as this position, as Revoke returned it.
    pub at_least: Option<v1::Cursor>,
}

impl From<SecretText> for Question {
    fn from(token: SecretText) -> Self {
        Self { token, at_least: None }
    }
}

/// Calls avouch. Clones share the connections and the retry budget.
#[derive(Clone)]
pub struct Identity {
    transport: Transport,
    client: Option<ClientCredential>,
    deadlines: Deadlines,
    entropy: Arc<dyn Entropy>,
    retries: Arc<Retries>,
}

impl Identity {
    /// As this client. `entropy` spreads the retries.
    pub fn new(
        transport: impl Into<Transport>,
        client: ClientCredential,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        Self { client: Some(client), ..Self::unnamed(transport, entropy) }
    }

    /// As whoever the transport speaks for, by its certificate or by an access token that a
    /// [layer](super::authorization) adds: for Revoke, Introspect, GetKeySet and the sessions. To get
    /// tokens takes a client.
    pub fn unnamed(transport: impl Into<Transport>, entropy: Arc<dyn Entropy>) -> Self {
        let retries = Arc::new(Retries::new(RetrySettings::default(), Arc::clone(&entropy)));
        let (transport, deadlines) = (transport.into(), Deadlines::default());
        Self { transport, client: None, deadlines, entropy, retries }
    }

    /// With other deadlines.
    #[must_use]
    pub fn with_deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// With other retries, and a budget of its own.
    #[must_use]
    pub fn with_retries(mut self, settings: RetrySettings) -> Self {
        self.retries = Arc::new(Retries::new(settings, Arc::clone(&self.entropy)));
        self
    }

    /// For one call: the same, with this deadline, `identity.within(limit).refresh(…)`.
    #[must_use]
    pub fn within(&self, limit: Duration) -> Self {
        self.clone().with_deadlines(Deadlines::all(limit))
    }

    /// Exchanges a credential for tokens. Tried again when the server is unavailable or asks to come
    /// back: if an answer was lost, a session without a user expires by itself.
    pub async fn authenticate(&self, login: Login) -> Result<Tokens, AuthenticateError> {
        let grant = match login.grant {
            Grant::ClientCredentials => {
                v1::authenticate_request::Grant::ClientCredentials(v1::ClientCredentialsGrant {})
            }
            Grant::Password { username, password } => {
                let password = password.into_exposed();
                v1::authenticate_request::Grant::Password(v1::PasswordGrant { username, password })
            }
        };
        let request = v1::AuthenticateRequest {
            client: self.client(),
            grant: Some(grant),
            scopes: login.scopes,
            audiences: login.audiences,
            device: login.device,
        };
        let (within, kind) = (self.deadlines.authenticate, Retriable::ExhaustedToo);
        let answer = self.call(within, kind, request, async |mut client, request| {
            client.authenticate(request).await
        });
        Ok(answer.await?.tokens.unwrap_or_default().into())
    }

    /// Exchanges a refresh token, which is spent by it. Tried again when the server is unavailable:
    /// inside the retry window the same token gets the same successor.
    pub async fn refresh(&self, renewal: impl Into<Renewal>) -> Result<Tokens, RefreshError> {
        let renewal = renewal.into();
        let request = v1::RefreshRequest {
            client: self.client(),
            refresh_token: renewal.refresh_token.into_exposed(),
            scopes: renewal.scopes,
            audiences: renewal.audiences,
            device: renewal.device,
        };
        let (within, kind) = (self.deadlines.refresh, Retriable::Unavailable);
        let answer = self
            .call(within, kind, request, async |mut client, request| client.refresh(request).await);
        Ok(answer.await?.tokens.unwrap_or_default().into())
    }

    /// Takes something back. What is unknown or revoked already is no error.
    pub async fn revoke(
        &self,
        revocation: impl Into<Revocation>,
    ) -> Result<v1::RevokeResponse, RevokeError> {
        use v1::revoke_request::Target;
        let it = revocation.into();
        let request = v1::RevokeRequest {
            client: self.client(),
            target: Some(match it.target {
                RevocationTarget::Token(token) => Target::Token(token.into_exposed()),
                RevocationTarget::Session(id) => Target::SessionId(id),
                RevocationTarget::Subject(id) => Target::Subject(id),
                RevocationTarget::Client(id) => Target::ClientId(id),
                RevocationTarget::Everything => Target::Everything(true),
            }),
            token_type_hint: v1::TokenTypeHint::Unspecified.into(),
            reason: it.reason.into(),
            initiating_entity: it.initiator.into(),
            wait: it.wait.and_then(|wait| prost_types::Duration::try_from(wait).ok()),
        };
        let within = self.deadlines.revoke.saturating_add(it.wait.unwrap_or_default());
        let answer =
            self.call(within, Retriable::Unavailable, request, async |mut client, request| {
                client.revoke(request).await
            });
        Ok(answer.await?)
    }

    /// Whether a token is good now, and what it asserts: none if avouch does not vouch for it, or the
    /// caller may not see it.
    pub async fn introspect(
        &self,
        question: impl Into<Question>,
    ) -> Result<Option<v1::IntrospectResponse>, IntrospectError> {
        let question = question.into();
        let mut within = self.deadlines.introspect;
        if question.at_least.is_some() {
            within = within.saturating_add(CURSOR_WAIT);
        }
        let request = v1::IntrospectRequest {
            client: self.client(),
            token: question.token.into_exposed(),
            token_type_hint: v1::TokenTypeHint::Unspecified.into(),
            at_least: question.at_least,
        };
        let answer =
            self.call(within, Retriable::Unavailable, request, async |mut client, request| {
                client.introspect(request).await
            });
        let answer = answer.await?;
        Ok(answer.active.then_some(answer))
    }

    /// The public keys.
    pub async fn key_set(&self) -> Result<v1::GetKeySetResponse, KeySetError> {
        let (within, request) = (self.deadlines.key_set, v1::GetKeySetRequest {});
        let answer =
            self.call(within, Retriable::Unavailable, request, async |mut client, request| {
                client.get_key_set(request).await
            });
        Ok(answer.await?)
    }

    /// A page of the sessions of a subject. The access token of the transport says who asks.
    pub async fn list_sessions(
        &self,
        request: v1::ListSessionsRequest,
    ) -> Result<v1::ListSessionsResponse, SessionsError> {
        let answer = self
            .ask_sessions(request, async |mut client, request| client.list_sessions(request).await);
        Ok(answer.await?)
    }

    /// One session, by its id. The access token of the transport says who asks.
    pub async fn session(&self, id: &str) -> Result<v1::Session, SessionsError> {
        let request = v1::GetSessionRequest { session_id: id.to_owned() };
        let answer = self
            .ask_sessions(request, async |mut client, request| client.get_session(request).await);
        Ok(answer.await?.session.unwrap_or_default())
    }

    fn client(&self) -> Option<v1::ClientAuthentication> {
        self.client.as_ref().map(ClientCredential::to_wire)
    }

    async fn call<Q: Clone, A>(
        &self,
        within: Duration,
        retriable: Retriable,
        message: Q,
        rpc: impl AsyncFn(IdentityServiceClient<Transport>, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Failed> {
        let rpc = &rpc;
        let call = |left| {
            let client = IdentityServiceClient::new(self.transport.clone());
            let request = request(message.clone(), left);
            async move { rpc(client, request).await.map(Response::into_inner) }
        };
        self.retries.run(within, retriable, call).await
    }

    async fn ask_sessions<Q: Clone, A>(
        &self,
        message: Q,
        rpc: impl AsyncFn(SessionServiceClient<Transport>, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Failed> {
        let rpc = &rpc;
        let call = |left| {
            let client = SessionServiceClient::new(self.transport.clone());
            let request = request(message.clone(), left);
            async move { rpc(client, request).await.map(Response::into_inner) }
        };
        self.retries.run(self.deadlines.sessions, Retriable::Unavailable, call).await
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("client", &self.client)
            .field("deadlines", &self.deadlines)
            .finish_non_exhaustive()
    }
}

/// A request that tells the server how long the caller listens.
fn request<Q>(message: Q, left: Duration) -> Request<Q> {
    let mut request = Request::new(message);
    request.set_timeout(left);
    request
}
