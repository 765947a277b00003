//! Revoke: at every level, idempotent, and visible here when it returns (RFC 7009).

use std::time::Duration;

use super::journal::{Happening, Origin};
use super::{Service, describe};
use crate::domain::caller::{Caller, Identity, Resource, Right};
use crate::domain::clock::Timestamp;
use crate::domain::event::{Cause, Entry, Initiator, Reason, Target};
use crate::domain::ids::{ClientId, Cursor, SessionId, SubjectId};
use crate::domain::refresh_token::RefreshToken;
use crate::domain::secret::SecretText;
use crate::domain::session::Session;
use crate::feed::Acked;
use crate::store::{Level, Revoked, StoreError};

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
    /// Why.
    pub reason: Reason,
    /// Who began it; none means as the caller suggests.
    pub initiator: Option<Initiator>,
    /// How long to wait for the watchers.
    pub wait: Option<Duration>,
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
        let initiator = request.initiator.unwrap_or(match caller.identity {
            Identity::Subject { .. } => Initiator::User,
            Identity::Client(_) if !caller.has(Right::Revoke) => Initiator::User,
            Identity::System => Initiator::System,
            Identity::Client(_) | Identity::Certificate(_) | Identity::Anonymous => {
                Initiator::Admin
            }
        });
        let cause = Cause { reason: request.reason, initiator };
        let revoked = match request.what {
            What::Token(token) => self.revoke_any_token(caller, &token, cause, now).await,
            What::Session(id) => match self.store.find_session(id)? {
                None => Ok(Revoked::Unknown),
                Some(session) => self.revoke_found_session(caller, &session, cause, now).await,
            },
            What::Subject(id) => self.revoke_subject(caller, id, cause, now).await,
            What::Client(id) => self.revoke_client(caller, id, cause, now).await,
            What::Everything => {
                if caller.may(Right::Revoke, Resource::default()) {
                    Ok(Revoked::Now(self.store.raise_epoch(Level::Everything, cause, now).await?))
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
        let Revoked::Now(entry) = revoked else {
            return Ok(Outcome { cursor: head, entry: None, waited: None });
        };
        let cursor = Cursor { log_id: head.log_id, revision: entry.revision };
        self.journal.record(now, origin, Happening::Revoked { entry: entry.clone() });
        let waited = match request.wait {
            None => None,
            Some(wait) => Some(self.feed.expect_acks(entry.revision).wait(wait).await),
        };
        Ok(Outcome { cursor, entry: Some(entry), waited })
    }

    async fn revoke_any_token(
        &self,
        caller: &Caller,
        token: &SecretText,
        cause: Cause,
        now: Timestamp,
    ) -> Result<Revoked, RevokeError> {
        // The two kinds look nothing alike, so the hint is not needed to tell them apart.
        if let Ok(token) = token.expose().parse::<RefreshToken>() {
            let Some(session) = self.store.find_session(token.session())? else {
                return Ok(Revoked::Unknown);
            };
            // Whoever makes up a token with somebody's session id must not end that session.
            if !self.keys.current().check_refresh(&token, &session.nonce) {
                return Ok(Revoked::Unknown);
            }
            return self.revoke_found_session(caller, &session, cause, now).await;
        }
        let Ok(verified) = self.access.verified(token.expose(), now) else {
            return Ok(Revoked::Unknown);
        };
        let claims = &verified.claims;
        let resource = Resource {
            audience: Some(&claims.audience),
            client: Some(&claims.client),
            subject: Some(&claims.subject),
        };
        if !owns(caller, &claims.client, &claims.subject) && !caller.may(Right::Revoke, resource) {
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
        Ok(self.store.revoke_token(target, cause, now).await?)
    }

    async fn revoke_found_session(
        &self,
        caller: &Caller,
        session: &Session,
        cause: Cause,
        now: Timestamp,
    ) -> Result<Revoked, RevokeError> {
        let resource = Resource {
            audience: Some(&session.audience),
            client: Some(&session.client),
            subject: Some(&session.subject),
        };
        if !owns(caller, &session.client, &session.subject) && !caller.may(Right::Revoke, resource)
        {
            return Err(RevokeError::Denied);
        }
        Ok(self.store.revoke_session(session.id, cause, now).await?)
    }

    async fn revoke_subject(
        &self,
        caller: &Caller,
        id: SubjectId,
        cause: Cause,
        now: Timestamp,
    ) -> Result<Revoked, RevokeError> {
        let resource = Resource { subject: Some(&id), ..Resource::default() };
        if caller.subject() != Some(&id) && !caller.may(Right::Revoke, resource) {
            return Err(RevokeError::Denied);
        }
        let known = self.store.find_user(&id)?.is_some()
            || match id.as_str().parse() {
                Ok(client) => self.store.find_client(&client)?.is_some(),
                Err(_) => false,
            };
        if !known {
            return Ok(Revoked::Unknown);
        }
        Ok(Revoked::Now(self.store.raise_epoch(Level::Subject(id), cause, now).await?))
    }

    async fn revoke_client(
        &self,
        caller: &Caller,
        id: ClientId,
        cause: Cause,
        now: Timestamp,
    ) -> Result<Revoked, RevokeError> {
        let resource = Resource { client: Some(&id), ..Resource::default() };
        let itself = caller.identity == Identity::Client(id.clone());
        if !itself && !caller.may(Right::Revoke, resource) {
            return Err(RevokeError::Denied);
        }
        if self.store.find_client(&id)?.is_none() {
            return Ok(Revoked::Unknown);
        }
        Ok(Revoked::Now(self.store.raise_epoch(Level::Client(id), cause, now).await?))
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
