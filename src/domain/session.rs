//! Sessions: one login, one family of refresh tokens, one record, whatever the number of rotations;
//! and the pure decision what a presented refresh token is worth.

use std::time::Duration;

use crate::domain::client::{Lifetimes, ReuseDetection};
use crate::domain::clock::Timestamp;
use crate::domain::event::{Cause, Initiator, Reason, SKEW};
use crate::domain::ids::{ClientId, Epochs, Generation, SessionId, SubjectId};
use crate::domain::key::MacKeyId;
use crate::domain::scope::Names;
use crate::domain::secret::SecretBytes;

/// What the client says of the end user's device.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Device {
    /// An id that the application gave to it.
    pub id: Box<str>,
    /// A name that a person recognises.
    pub name: Box<str>,
    /// The User-Agent of the end user's request.
    pub user_agent: Box<str>,
    /// The end user's address.
    pub address: Box<str>,
}

/// That a session was taken back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Revoked {
    /// When.
    pub at: Timestamp,
    /// Why, and who began it.
    pub cause: Cause,
}

/// One login.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Who it speaks for.
    pub subject: SubjectId,
    /// The client that it belongs to.
    pub client: ClientId,
    /// The scopes that it holds. Refresh may narrow a token, never this.
    pub scope: Names,
    /// The audiences that it holds.
    pub audience: Names,
    /// The epochs at login.
    pub epochs: Epochs,
    /// Binds its refresh tokens to this record: without it, the keys alone mint none.
    pub nonce: SecretBytes<32>,
    /// The generation of the current refresh token.
    pub generation: Generation,
    /// The MAC key of the current refresh token, fixed at the rotation so that a retry gets the
    /// same bytes.
    pub mac_key: MacKeyId,
    /// When the user proved themselves.
    pub created_at: Timestamp,
    /// When the current generation began.
    pub rotated_at: Timestamp,
    /// When it ends unless it is refreshed.
    pub idle_expires_at: Timestamp,
    /// When it ends in any case.
    pub expires_at: Timestamp,
    /// No access token of it expires later than this.
    pub access_expires_at: Timestamp,
    /// How the user proved themselves (RFC 8176).
    pub methods: Names,
    /// The device, as last told.
    pub device: Device,
    /// Whether and why it was taken back.
    pub revoked: Option<Revoked>,
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SessionState {
    /// It can be refreshed.
    Active,
    /// It, its subject, its client or everything was revoked.
    Revoked,
    /// It reached its idle or its absolute limit.
    Expired,
}

impl Session {
    /// When the session ends as things stand.
    pub fn ends_at(&self) -> Timestamp {
        self.idle_expires_at.min(self.expires_at)
    }

    /// Where it stands, given the epochs of now.
    pub fn state_at(&self, current: &Epochs, now: Timestamp) -> SessionState {
        if self.revoked.is_some() || !self.epochs.covers(current) {
            SessionState::Revoked
        } else if now >= self.ends_at() {
            SessionState::Expired
        } else {
            SessionState::Active
        }
    }

    /// When the last access token of the session has expired everywhere, so that the event that
    /// revokes it may be forgotten.
    pub fn forgettable_at(&self) -> Timestamp {
        self.access_expires_at.after(SKEW)
    }

    /// When an access token issued now expires: never after the session.
    pub fn access_expiry(&self, lifetimes: &Lifetimes, now: Timestamp) -> Timestamp {
        now.after(lifetimes.access).min(self.expires_at)
    }

    /// The latest that an access token of the generation that begins now can expire. A retry at the
    /// end of the window issues one more.
    pub fn access_bound(lifetimes: &Lifetimes, now: Timestamp) -> Timestamp {
        now.after(lifetimes.access).after(lifetimes.retry_window)
    }
}

/// A refresh token that is known to be genuine: its tag matches the session's nonce.
#[derive(Clone, Debug)]
pub struct Presented {
    /// The session that it names.
    pub session: SessionId,
    /// The generation that it is.
    pub generation: Generation,
    /// The client that presents it, authenticated.
    pub client: ClientId,
    /// The scopes asked for; none means all.
    pub scope: Option<Names>,
    /// The audiences asked for; none means all.
    pub audience: Option<Names>,
    /// The audiences that the client may have by now.
    pub permitted_audience: Names,
}

/// What the registration of the session's client says about rotation.
#[derive(Clone, Copy, Debug)]
pub struct RotationRules {
    /// How long things live.
    pub lifetimes: Lifetimes,
    /// What reuse does.
    pub reuse_detection: ReuseDetection,
    /// The MAC key for the successor.
    pub mac_key: MacKeyId,
}

/// How a spent token came back, as far as it can be told; for counters and the audit log.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ReuseKind {
    /// The parent of the current token, seconds after the rotation: most likely two requests of one
    /// client, with a retry window that is too short.
    Concurrent,
    /// The parent of the current token, later: most likely an answer that was lost.
    LateRetry,
    /// An older token: most likely a theft.
    Replay,
    /// A genuine token from a client that it was not issued to.
    OtherClient,
}

impl ReuseKind {
    /// The name in metrics and in the audit log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Concurrent => "concurrent",
            Self::LateRetry => "late_retry",
            Self::Replay => "replay",
            Self::OtherClient => "other_client",
        }
    }
}

/// Why a genuine token gets nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RotationRefusal {
    /// The session, its subject, its client or everything was revoked.
    Revoked,
    /// The session reached its idle or its absolute limit.
    Expired,
    /// It asks for a scope that the session does not hold. The token is not spent.
    Scope,
    /// It asks for an audience that the session does not hold, or the client may have none of those
    /// by now. The token is not spent.
    Audience,
}

/// What a genuine refresh token is worth.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RotationDecision {
    /// It is current: this is the session one generation on.
    Rotate(Box<Session>),
    /// It is the parent, the answer was lost: the same successor again, and nothing to write.
    Retry,
    /// It is spent. Under `enforce`, this is the session as revoked; under `report`, none.
    Reuse(ReuseKind, Option<Box<Session>>),
    /// It gets nothing, and nothing changes.
    Refuse(RotationRefusal),
}

/// Within this time after a rotation, a second use of the parent counts as concurrent.
const CONCURRENT_WITHIN: Duration = Duration::from_secs(10);

/// Decides what a genuine refresh token is worth (RFC 9700 section 4.14.2; invariants 1 and 2).
///
/// The order matters: what is dead already stays dead without a second event; reuse is found before
/// the request's scopes are looked at, so that a bad scope is no way around it.
pub fn decide_rotation(
    session: &Session,
    presented: &Presented,
    rules: &RotationRules,
    current: &Epochs,
    now: Timestamp,
) -> RotationDecision {
    match session.state_at(current, now) {
        SessionState::Active => {}
        SessionState::Revoked => return RotationDecision::Refuse(RotationRefusal::Revoked),
        SessionState::Expired => return RotationDecision::Refuse(RotationRefusal::Expired),
    }
    let since_rotation = now.since(session.rotated_at);
    let is_current = presented.generation == session.generation;
    let is_parent = presented.generation.0.checked_add(1) == Some(session.generation.0);
    let reuse = if presented.client != session.client {
        Some(ReuseKind::OtherClient)
    } else if is_current || (is_parent && since_rotation < rules.lifetimes.retry_window) {
        None
    } else if is_parent && since_rotation < CONCURRENT_WITHIN {
        Some(ReuseKind::Concurrent)
    } else if is_parent {
        Some(ReuseKind::LateRetry)
    } else {
        Some(ReuseKind::Replay)
    };
    if let Some(kind) = reuse {
        let cause = Cause { reason: Reason::RefreshTokenReused, initiator: Initiator::System };
        let revoked = match rules.reuse_detection {
            ReuseDetection::Enforce => Some(Box::new(Session {
                revoked: Some(Revoked { at: now, cause }),
                ..session.clone()
            })),
            ReuseDetection::Report => None,
        };
        return RotationDecision::Reuse(kind, revoked);
    }
    if presented.scope.as_ref().is_some_and(|asked| !asked.is_subset(&session.scope)) {
        return RotationDecision::Refuse(RotationRefusal::Scope);
    }
    if presented.audience.as_ref().is_some_and(|asked| !asked.is_subset(&session.audience)) {
        return RotationDecision::Refuse(RotationRefusal::Audience);
    }
    if !presented
        .audience
        .as_ref()
        .unwrap_or(&session.audience)
        .intersects(&presented.permitted_audience)
    {
        return RotationDecision::Refuse(RotationRefusal::Audience);
    }
    if is_parent {
        return RotationDecision::Retry;
    }
    let Some(next) = session.generation.0.checked_add(1) else {
        return RotationDecision::Refuse(RotationRefusal::Expired);
    };
    RotationDecision::Rotate(Box::new(Session {
        generation: Generation(next),
        mac_key: rules.mac_key,
        rotated_at: now,
        idle_expires_at: now.after(rules.lifetimes.idle),
        access_expires_at: session
            .access_expires_at
            .max(Session::access_bound(&rules.lifetimes, now))
            .min(session.expires_at),
        ..session.clone()
    }))
}
