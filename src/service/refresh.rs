//! Refresh: a refresh token for its successor (RFC 6749 section 6, RFC 9700 section 4.14.2).

use super::clients::{ClientError, ClientProof};
use super::journal::{Failure, Happening, Origin};
use super::traced::commit;
use super::{Excess, Service, Tokens};
use crate::domain::client::{Client, ReuseDetection};
use crate::domain::clock::Timestamp;
use crate::domain::event::{Cause, Entry, Event, Initiator, Reason, Revocation, Target};
use crate::domain::refresh_token::RefreshToken;
use crate::domain::scope::Names;
use crate::domain::secret::SecretText;
use crate::domain::session::{Device, Presented, RotationRefusal, RotationRules, Session};
use crate::store::{Rotation, StoreError};

/// What is asked for.
#[derive(Debug)]
pub struct Request<'a> {
    /// The client that asks.
    pub client: ClientProof<'a>,
    /// The refresh token.
    pub token: SecretText,
    /// Fewer scopes; none means all that the session holds.
    pub scope: Names,
    /// Fewer audiences; none means all that the session holds.
    pub audience: Names,
    /// The end user's device, if the client told of it.
    pub device: Option<Device>,
}

/// Why there are no tokens.
#[derive(Debug)]
pub enum RefreshError {
    /// The client did not prove itself, or the token is worth nothing. One answer for every reason.
    Refused,
    /// Scopes or audiences that the session does not hold, or the client may no longer have.
    Excess(Excess),
    /// The store did not answer.
    Store(StoreError),
    /// Something that must not happen.
    Internal(&'static str),
}

impl From<StoreError> for RefreshError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Service {
    /// Exchanges a refresh token for its successor and a new access token.
    ///
    /// # Errors
    /// See [`RefreshError`].
    pub async fn refresh(
        &self,
        request: Request<'_>,
        origin: &Origin,
    ) -> Result<Tokens, RefreshError> {
        let now = self.now();
        let fail = |session: Option<&Session>, failure, revoked| {
            let happening = Happening::RefreshFailed {
                subject: session.map(|session| session.subject.clone()),
                client: request.client.id.clone(),
                session: session.map(|session| session.id),
                failure,
                revoked,
            };
            self.journal.record(now, origin, happening);
            RefreshError::Refused
        };
        // From memory: whoever disables or removes a client ends its sessions in the same commit, and
        // the rotation sees that.
        let client = match self.clients.authenticate_recent(&request.client).await {
            Ok(client) => client,
            Err(ClientError::Store(error)) => return Err(error.into()),
            Err(ClientError::Refused(failure)) => return Err(fail(None, failure, false)),
        };
        let Ok(token) = request.token.expose().parse::<RefreshToken>() else {
            return Err(fail(None, Failure::NotARefreshToken, false));
        };
        // Whether the token is genuine is decided here, off the committer: the nonce never changes.
        let Some(known) = self.store.recall_session(token.session()).await? else {
            return Err(fail(None, Failure::UnknownSession, false));
        };
        let ring = self.ring_with(token.mac_key()).await;
        if !ring.check_refresh(&token, &known.nonce) {
            return Err(fail(Some(&known), Failure::ForgedToken, false));
        }
        let some = |names: &Names| (!names.is_empty()).then(|| names.clone());
        let presented = Presented {
            session: token.session(),
            generation: token.generation(),
            client: client.id.clone(),
            scope: some(&request.scope),
            audience: some(&request.audience),
            permitted_audience: client.audience.clone(),
        };
        let rules = RotationRules {
            lifetimes: client.lifetimes,
            reuse_detection: self.reuse_detection(&known, &client).await?,
            mac_key: ring.active_mac(),
        };
        let rotation =
            commit("rotate", self.store.rotate(presented, rules, request.device.clone(), now))
                .await?;
        let (session, retry) = match rotation {
            Rotation::Rotated(session) => (session, false),
            Rotation::Retried(session) => (session, true),
            Rotation::Unknown => return Err(fail(None, Failure::UnknownSession, false)),
            Rotation::Refused(refusal, session) => {
                return Err(match refusal {
                    RotationRefusal::Revoked => {
                        fail(Some(&session), Failure::SessionRevoked, false)
                    }
                    RotationRefusal::Expired => {
                        fail(Some(&session), Failure::SessionExpired, false)
                    }
                    RotationRefusal::Scope => RefreshError::Excess(Excess::Scope),
                    RotationRefusal::Audience => RefreshError::Excess(Excess::Audience),
                });
            }
            Rotation::Reused(kind, session, revision) => {
                if let Some(revision) = revision {
                    let entry = reuse_entry(&session, revision, now);
                    self.journal.record(now, origin, Happening::Revoked { entry });
                }
                return Err(fail(Some(&session), Failure::Reused(kind), revision.is_some()));
            }
        };
        // The successor may be that of another replica, under a key that is new here.
        self.ring_with(session.mac_key).await;
        let tokens = self.renew(&session, &client, &request, now)?;
        let happening = Happening::Refreshed {
            subject: session.subject.clone(),
            client: client.id.clone(),
            session: session.id,
            retry,
        };
        self.journal.record(now, origin, happening);
        Ok(tokens)
    }

    /// What reuse does to a session: its own client says, not whoever presents its token.
    async fn reuse_detection(
        &self,
        session: &Session,
        presenter: &Client,
    ) -> Result<ReuseDetection, StoreError> {
        if session.client == presenter.id {
            return Ok(presenter.reuse_detection);
        }
        let owner = self.store.find_client(&session.client).await?;
        Ok(owner.map_or(ReuseDetection::Enforce, |owner| owner.reuse_detection))
    }

    /// The tokens of a session that has rotated, within what was asked for and what the client's
    /// registration allows by now.
    fn renew(
        &self,
        session: &Session,
        client: &Client,
        request: &Request<'_>,
        now: Timestamp,
    ) -> Result<Tokens, RefreshError> {
        let narrowed = |asked: &Names, held: &Names, allowed: &Names| {
            let wanted = if asked.is_empty() { held } else { asked };
            wanted.intersection(allowed)
        };
        let scope = narrowed(&request.scope, &session.scope, &client.scope);
        let audience = narrowed(&request.audience, &session.audience, &client.audience);
        self.issue(session, client, scope, audience, now).map_err(RefreshError::Internal)
    }
}

/// The event that the store wrote for a reuse, for the journal.
fn reuse_entry(session: &Session, revision: crate::domain::ids::Revision, now: Timestamp) -> Entry {
    let cause = Cause { reason: Reason::RefreshTokenReused, initiator: Initiator::System };
    let target = Target::Session {
        id: session.id,
        client: session.client.clone(),
        subject: session.subject.clone(),
        audience: session.audience.clone(),
    };
    let revocation = Revocation { target, cause, at: now, expires_at: session.forgettable_at() };
    Entry { revision, event: Event::Revocation(revocation) }
}
