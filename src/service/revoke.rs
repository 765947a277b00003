//! Revoke: at every level, idempotent, and visible here when it returns (RFC 7009).

use std::time::Duration;

use super::journal::{Happening, Origin};
use super::traced::commit;
use super::{Service, describe};
use crate::domain::caller::{Caller, Identity, Resource, Right};
use crate::domain::clock::Timestamp;
use crate::domain::event::{Cause, Entry, Initiator, Reason, Target};
use crate::domain::ids::{ClientId, Cursor, SessionId, SubjectId};
use crate::domain::refresh_token::RefreshToken;
use crate::domain::secret::SecretText;
use crate::domain::session::Session;
use crate::feed::Acked;
use crate::jwt::TokenError;
use crate::store::{Level, Revoked, StoreError};
use crate::trace;

/// What to take back.
#[derive(Debug)]
pub enum What {
    /// A token of either kind.
    Token(SecretText),
    /// A session.
    Session(SessionId),
    /// Everything of a subject.
    Subject(SubjectId),
    /// Everything of a client.
    Client(ClientId),
    /// Everything.
    Everything,
}

/// What to take back, why, and how long to wait for the watchers.
#[derive(Debug)]
pub struct Request {
    /// What.
    pub what: What,
    /// Why, and who began it, as far as the caller says.
    pub stated: Stated,
    /// How long to wait for the watchers.
    pub wait: Option<Duration>,
}

/// Why, and who began it, as far as the caller says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stated {
    /// Why.
    pub reason: Option<Reason>,
    /// Who began it.
    pub initiator: Option<Initiator>,
}

impl Stated {
    /// The cause that is recorded. Whoever takes back its own logs out; whoever needs a right for it
    /// acts as an administrator.
    fn cause(self, caller: &Caller, own: bool) -> Cause {
        let initiator = self.initiator.unwrap_or(match caller.identity {
            Identity::System => Initiator::System,
            _ if own => Initiator::User,
            _ => Initiator::Admin,
        });
        let reason = self.reason.unwrap_or(match initiator {
            Initiator::User => Reason::Logout,
            Initiator::Policy => Reason::PolicyViolation,
            Initiator::Admin | Initiator::System => Reason::AdminAction,
        });
        Cause { reason, initiator }
    }
}

/// What was taken back.
#[derive(Debug)]
pub struct Outcome {
    /// Where the event stands; where the log stood, if there was nothing to revoke.
    pub cursor: Cursor,
    /// The event, if there was something to revoke.
    pub entry: Option<Entry>,
    /// What came of the wait.
    pub waited: Option<Acked>,
}

/// Why nothing was taken back.
#[derive(Debug)]
pub enum RevokeError {
    /// The caller is nobody known.
    Anonymous,
    /// The caller may not revoke that.
    Denied,
    /// The store did not answer.
    Store(StoreError),
}

impl From<StoreError> for RevokeError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Service {
    /// Takes back what the request names, if the caller may.
    ///
    /// # Errors
    /// See [`RevokeError`].
    pub async fn revoke(
        &self,
        caller: &Caller,
        request: Request,
        origin: &Origin,
    ) -> Result<Outcome, RevokeError> {
        let now = self.now();
        if caller.identity == Identity::Anonymous {
            return Err(RevokeError::Anonymous);
        }
        let stated = request.stated;
        // Before anything is revoked: the watchers may be among those who lose their credentials.
        let _hold = request.wait.map(|_| self.feed.hold());
        let revoked = match request.what {
            What::Token(token) => self.revoke_any_token(caller, &token, stated, now).await,
            What::Session(id) => match self.store.recall_session(id).await? {
                None => Ok(Revoked::Unknown),
                Some(session) => self.revoke_found_session(caller, &session, stated, now).await,
            },
            What::Subject(id) => self.revoke_subject(caller, id, stated, now).await,
            What::Client(id) => self.revoke_client(caller, id, stated, now).await,
            What::Everything => {
                if caller.may(Right::Revoke, Resource::default()) {
                    let cause = stated.cause(caller, false);
                    Ok(Revoked::Now(
                        commit(
                            "raise_epoch",
                            self.store.raise_epoch(Level::Everything, cause, now),
                        )
                        .await?,
                    ))
                } else {
                    Err(RevokeError::Denied)
                }
            }
        };
        let revoked = revoked.inspect_err(|error| {
            if matches!(error, RevokeError::Denied) {
                let happening = Happening::Denied { caller: describe(caller), what: "revoke" };
                self.journal.record(now, origin, happening);
            }
        })?;
        let head = self.store.head();
        let entry = match revoked {
            Revoked::Now(entry) => Some(entry),
            Revoked::Already | Revoked::Unknown => None,
        };
        // Who repeats a call because the answer was lost wants to know the same of the watchers. The
        // event of then is not later than the head.
        let revision = entry.as_ref().map_or(head.revision, |entry| entry.revision);
        let cursor = Cursor { log_id: head.log_id, revision };
        if let Some(entry) = &entry {
            self.journal.record(now, origin, Happening::Revoked { entry: entry.clone() });
        }
        let waited = match request.wait {
            None => None,
            Some(wait) => {
                let mut span = trace::child("feed wait");
                let acked = self.feed.wait_for_acks(revision, wait).await;
                span.set("avouch.outcome", if acked.complete { "applied" } else { "not by all" });
                Some(acked)
            }
        };
        Ok(Outcome { cursor, entry, waited })
    }

    async fn revoke_any_token(
        &self,
        caller: &Caller,
        token: &SecretText,
        stated: Stated,
        now: Timestamp,
    ) -> Result<Revoked, RevokeError> {
        // The two kinds look nothing alike, so the hint is not needed to tell them apart.
        if let Ok(token) = token.expose().parse::<RefreshToken>() {
            let Some(session) = self.store.recall_session(token.session()).await? else {
                return Ok(Revoked::Unknown);
            };
            // Whoever makes up a token with somebody's session id must not end that session.
            let ring = self.ring_with(token.mac_key()).await;
            if !ring.check_refresh(&token, &session.nonce) {
                if !ring.has_mac(token.mac_key()) {
                    self.has_looked().await?;
                }
                return Ok(Revoked::Unknown);
            }
            return self.revoke_found_session(caller, &session, stated, now).await;
        }
        let verified = match self.revocable_access(token.expose(), now).await {
            Ok(verified) => verified,
            Err(TokenError::UnknownKey) => {
                self.has_looked().await?;
                return Ok(Revoked::Unknown);
            }
            Err(_) => return Ok(Revoked::Unknown),
        };
        let claims = &verified.claims;
        let resource = Resource {
            audience: Some(&claims.audience),
            client: Some(&claims.client),
            subject: Some(&claims.subject),
        };
        let own = owns(caller, &claims.client, &claims.subject);
        if !own && !caller.may(Right::Revoke, resource) {
            return Err(RevokeError::Denied);
        }
        if self.feed.revoked_by(&verified.marks).is_some() {
            return Ok(Revoked::Already);
        }
        let target = Target::Token {
            id: claims.token_id,
            expires_at: claims.expires_at,
            client: claims.client.clone(),
            subject: claims.subject.clone(),
            audience: claims.audience.clone(),
        };
        Ok(commit("revoke_token", self.store.revoke_token(target, stated.cause(caller, own), now))
            .await?)
    }

    async fn revoke_found_session(
        &self,
        caller: &Caller,
        session: &Session,
        stated: Stated,
        now: Timestamp,
    ) -> Result<Revoked, RevokeError> {
        let resource = Resource {
            audience: Some(&session.audience),
            client: Some(&session.client),
            subject: Some(&session.subject),
        };
        let own = owns(caller, &session.client, &session.subject);
        if !own && !caller.may(Right::Revoke, resource) {
            return Err(RevokeError::Denied);
        }
        Ok(commit(
            "revoke_session",
            self.store.revoke_session(session.id, stated.cause(caller, own), now),
        )
        .await?)
    }

    async fn revoke_subject(
        &self,
        caller: &Caller,
        id: SubjectId,
        stated: Stated,
        now: Timestamp,
    ) -> Result<Revoked, RevokeError> {
        let resource = Resource { subject: Some(&id), ..Resource::default() };
        let own = caller.subject() == Some(&id);
        if !own && !caller.may(Right::Revoke, resource) {
            return Err(RevokeError::Denied);
        }
        let cause = stated.cause(caller, own);
        let known = self.store.find_user(&id).await?.is_some()
            || match id.as_str().parse() {
                Ok(client) => self.store.find_client(&client).await?.is_some(),
                Err(_) => false,
            };
        if !known {
            return Ok(Revoked::Unknown);
        }
        Ok(Revoked::Now(
            commit("raise_epoch", self.store.raise_epoch(Level::Subject(id), cause, now)).await?,
        ))
    }

    async fn revoke_client(
        &self,
        caller: &Caller,
        id: ClientId,
        stated: Stated,
        now: Timestamp,
    ) -> Result<Revoked, RevokeError> {
        let resource = Resource { client: Some(&id), ..Resource::default() };
        let own = caller.identity == Identity::Client(id.clone());
        if !own && !caller.may(Right::Revoke, resource) {
            return Err(RevokeError::Denied);
        }
        let cause = stated.cause(caller, own);
        if self.store.find_client(&id).await?.is_none() {
            return Ok(Revoked::Unknown);
        }
        Ok(Revoked::Now(
            commit("raise_epoch", self.store.raise_epoch(Level::Client(id), cause, now)).await?,
        ))
    }
}

/// Whether what belongs to `client` and `subject` is the caller's own: a client's what was issued to
/// it, a subject's what speaks for it.
pub(super) fn owns(caller: &Caller, client: &ClientId, subject: &SubjectId) -> bool {
    match &caller.identity {
        Identity::Client(own) => own == client,
        Identity::Subject { subject: own, .. } => own == subject,
        Identity::Certificate(_) | Identity::Anonymous | Identity::System => false,
    }
}
