//! Who is logged in, where and since when.

use super::Service;
use super::journal::{Happening, Origin};
use super::traced::commit;
use crate::domain::caller::{Caller, Identity, Resource, Right};
use crate::domain::clock::Timestamp;
use crate::domain::event::{Cause, Initiator, Reason};
use crate::domain::ids::{SessionId, SubjectId};
use crate::domain::session::{Session, SessionState};
use crate::store::{Revoked, StoreError};

/// How many sessions of a subject a login looks at. Whoever logs in and out this often within the
/// life of a session may keep more than the limit.
const MAX_SESSIONS_LOOKED_AT: usize = 2_000;
/// How many of them it reads at a time.
const SESSIONS_AT_A_TIME: usize = 128;

/// Why no session is shown.
#[derive(Debug)]
pub enum SessionsError {
    /// The caller is nobody known.
    Anonymous,
    /// The caller may not see that.
    Denied,
    /// Whose sessions? The caller is no subject and named none.
    NoSubject,
    /// There is no such session.
    NotFound,
    /// The store did not answer.
    Store(StoreError),
}

impl From<StoreError> for SessionsError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// A page of sessions and where they stand.
#[derive(Debug)]
pub struct Page {
    /// The sessions, newest first.
    pub sessions: Vec<(Session, SessionState)>,
    /// The session after which the next page begins; none when there is none.
    pub next: Option<SessionId>,
}

impl Service {
    /// Lists sessions of a subject, the caller's own if none is named.
    ///
    /// # Errors
    /// See [`SessionsError`].
    pub async fn list_sessions(
        &self,
        caller: &Caller,
        subject: Option<SubjectId>,
        after: Option<SessionId>,
        limit: usize,
        include_ended: bool,
        origin: &Origin,
    ) -> Result<Page, SessionsError> {
        let now = self.now();
        if caller.identity == Identity::Anonymous {
            return Err(SessionsError::Anonymous);
        }
        let subject =
            subject.or_else(|| caller.subject().cloned()).ok_or(SessionsError::NoSubject)?;
        self.may_see(caller, &subject, None, origin, now)?;
        let mut after = match after {
            None => None,
            Some(id) => self.store.recall_session(id).await?,
        };
        let mut page = Page { sessions: Vec::new(), next: None };
        // Ended sessions may fill whole pages of the store, so it is read until the page is full.
        loop {
            let found = self.store.sessions_of(&subject, after.as_ref(), limit).await?;
            let exhausted = found.len() < limit;
            for (session, epochs) in found {
                let state = session.state_at(&epochs, now);
                after = Some(session.clone());
                if include_ended || state == SessionState::Active {
                    page.sessions.push((session, state));
                    if page.sessions.len() == limit {
                        page.next = after.map(|last| last.id);
                        return Ok(page);
                    }
                }
            }
            if exhausted {
                return Ok(page);
            }
        }
    }

    /// One session.
    ///
    /// # Errors
    /// See [`SessionsError`].
    pub async fn session(
        &self,
        caller: &Caller,
        id: SessionId,
        origin: &Origin,
    ) -> Result<(Session, SessionState), SessionsError> {
        let now = self.now();
        if caller.identity == Identity::Anonymous {
            return Err(SessionsError::Anonymous);
        }
        let Some((session, epochs)) = self.store.find_session_and_epochs(id).await? else {
            // Whoever may see no session but its own cannot tell a foreign one from none.
            return Err(if caller.has(Right::Sessions) {
                SessionsError::NotFound
            } else {
                SessionsError::Denied
            });
        };
        self.may_see(caller, &session.subject, Some(&session), origin, now)?;
        let state = session.state_at(&epochs, now);
        Ok((session, state))
    }

    /// Revokes the oldest live sessions of a subject that are beyond the limit, which was lowered
    /// since they were opened: each in a commit of its own, with its event. The one that has to go
    /// for the next goes when that is opened.
    pub(super) async fn evict_beyond_limit(
        &self,
        subject: &SubjectId,
        origin: &Origin,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let limit = usize::try_from(self.settings.max_sessions_per_subject).unwrap_or(usize::MAX);
        let (mut after, mut looked_at, mut live) = (None, 0, 0);
        let mut beyond = Vec::new();
        if limit >= MAX_SESSIONS_LOOKED_AT {
            return Ok(());
        }
        while looked_at < MAX_SESSIONS_LOOKED_AT {
            let found = self.store.sessions_of(subject, after.as_ref(), SESSIONS_AT_A_TIME).await?;
            looked_at += found.len();
            let exhausted = found.len() < SESSIONS_AT_A_TIME;
            after = found.last().map(|(session, _)| session.clone());
            for (session, epochs) in found {
                if session.state_at(&epochs, now) == SessionState::Active {
                    live += 1;
                    if live > limit {
                        beyond.push(session.id);
                    }
                }
            }
            if exhausted {
                break;
            }
        }
        let cause = Cause { reason: Reason::SessionSuperseded, initiator: Initiator::Policy };
        for id in beyond.into_iter().rev() {
            if let Revoked::Now(entry) =
                commit("revoke_session", self.store.revoke_session(id, cause, now)).await?
            {
                self.journal.record(now, origin, Happening::Revoked { entry });
            }
        }
        Ok(())
    }

    fn may_see(
        &self,
        caller: &Caller,
        subject: &SubjectId,
        session: Option<&Session>,
        origin: &Origin,
        now: Timestamp,
    ) -> Result<(), SessionsError> {
        let resource = Resource {
            subject: Some(subject),
            client: session.map(|session| &session.client),
            audience: session.map(|session| &session.audience),
        };
        if caller.subject() == Some(subject) || caller.may(Right::Sessions, resource) {
            return Ok(());
        }
        let happening = Happening::Denied { caller: super::describe(caller), what: "sessions" };
        self.journal.record(now, origin, happening);
        Err(SessionsError::Denied)
    }
}
