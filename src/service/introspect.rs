//! Introspect: whether a token is good now, and what it asserts (RFC 7662, RFC 9068).

use std::sync::Arc;
use std::time::Duration;

use super::Service;
use super::access::AccessError;
use super::journal::{Happening, Origin, Verdict};
use super::revoke::owns;
use crate::domain::caller::{Caller, Identity, Resource, Right};
use crate::domain::clock::Timestamp;
use crate::domain::ids::Cursor;
use crate::domain::refresh_token::RefreshToken;
use crate::domain::session::{Session, SessionState};
use crate::feed::WatchError;
use crate::store::StoreError;
use crate::verified::VerifiedToken;

/// How long a call waits for a revision that this replica has not reached.
const WAIT_FOR_REVISION: Duration = Duration::from_secs(2);

/// What is known of the token.
#[derive(Debug)]
pub enum Answer {
    /// Nothing that the caller may know, or it is not good.
    Inactive,
    /// A good access token.
    Access(Arc<VerifiedToken>),
    /// A good refresh token, by its session.
    Refresh(Box<Session>),
}

/// Why there is no answer.
#[derive(Debug)]
pub enum IntrospectError {
    /// The caller is nobody known.
    Anonymous,
    /// This replica has not reached the revision that the call named, knows no such log, or is cut off
    /// from its store.
    Wait(WatchError),
    /// The store did not answer.
    Store(StoreError),
}

impl From<StoreError> for IntrospectError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Service {
    /// Says what a token is worth now, from a state at least as new as `at_least`.
    ///
    /// # Errors
    /// See [`IntrospectError`]. A bad token is no error.
    pub async fn introspect(
        &self,
        caller: &Caller,
        token: &str,
        at_least: Option<Cursor>,
        origin: &Origin,
    ) -> Result<Answer, IntrospectError> {
        if caller.identity == Identity::Anonymous {
            return Err(IntrospectError::Anonymous);
        }
        if let Some(cursor) = at_least {
            self.feed.wait_for(cursor, WAIT_FOR_REVISION).await.map_err(IntrospectError::Wait)?;
        }
        // A replica that is cut off from its store would call good what others took back meanwhile, and
        // a verifier that asks because its own stream is stale would believe it.
        self.feed.in_touch().await.map_err(IntrospectError::Wait)?;
        let now = self.now();
        let found = self.examine(token, now).await?;
        let (answer, verdict) = match found {
            Ok(answer) => {
                let (client, subject, audience) = match &answer {
                    Answer::Access(token) => {
                        (&token.claims.client, &token.claims.subject, &token.claims.audience)
                    }
                    Answer::Refresh(session) => {
                        (&session.client, &session.subject, &session.audience)
                    }
                    Answer::Inactive => return Ok(Answer::Inactive),
                };
                let resource = Resource {
                    audience: Some(audience),
                    client: Some(client),
                    subject: Some(subject),
                };
                if owns(caller, client, subject) || caller.may(Right::Introspect, resource) {
                    (answer, Verdict::Active)
                } else {
                    (Answer::Inactive, Verdict::NotForCaller)
                }
            }
            Err(verdict) => (Answer::Inactive, verdict),
        };
        self.journal.record(now, origin, Happening::Introspected { verdict });
        // The answer is the same for what is not good and what the caller may not see (RFC 7662
        // section 2.2), so whoever has no right learns of no token but its own good ones. The
        // auditor learns that somebody tried.
        if verdict != Verdict::Active && !caller.has(Right::Introspect) {
            let happening =
                Happening::Denied { caller: super::describe(caller), what: "introspect" };
            self.journal.record(now, origin, happening);
        }
        Ok(answer)
    }

    async fn examine(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<Result<Answer, Verdict>, StoreError> {
        if token.starts_with(crate::domain::refresh_token::PREFIX) {
            return self.examine_refresh(token, now).await;
        }
        Ok(match self.check_access(token, now).await {
            Ok(verified) => Ok(Answer::Access(verified)),
            Err(AccessError::Invalid(_)) => Err(Verdict::Inactive),
            Err(AccessError::Revoked(by)) => Err(Verdict::Revoked(by)),
        })
    }

    async fn examine_refresh(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<Result<Answer, Verdict>, StoreError> {
        let Ok(token) = token.parse::<RefreshToken>() else { return Ok(Err(Verdict::Inactive)) };
        let found = self.store.find_session_and_epochs(token.session()).await?;
        let Some((session, current)) = found else { return Ok(Err(Verdict::Inactive)) };
        let ring = self.ring_with(token.mac_key()).await;
        let genuine = ring.check_refresh(&token, &session.nonce);
        let good = genuine
            && token.generation() == session.generation
            && session.state_at(&current, now) == SessionState::Active;
        Ok(if good { Ok(Answer::Refresh(Box::new(session))) } else { Err(Verdict::Inactive) })
    }
}
