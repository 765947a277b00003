//! State changes of the store as parts of the call that asks for them, in its trace.

use crate::domain::event::Entry;
use crate::domain::session::RotationRefusal;
use crate::domain::throttle::ThrottleDecision;
use crate::store::{Changed, Opened, Revoked, RingChanged, Rotation, StoreError};
use crate::trace;

/// Waits for a state change: from being asked for until it is durable.
pub(super) async fn commit<T: Outcome>(
    verb: &'static str,
    change: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let mut span = trace::child("store commit");
    span.set("db.operation.name", verb);
    let result = change.await;
    match &result {
        Ok(done) => span.set("avouch.outcome", done.outcome()),
        Err(StoreError::Unavailable(_)) => span.fail("unavailable"),
        Err(StoreError::Corrupt(_)) => span.fail("corrupt"),
        Err(StoreError::Internal(_)) => span.fail("internal"),
    }
    result
}

/// What came of a state change, in one word that names nobody.
pub(super) trait Outcome {
    fn outcome(&self) -> &'static str;
}

impl Outcome for Opened {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Open { evicted: None } => "open",
            Self::Open { evicted: Some(_) } => "open, one evicted",
            Self::Stale => "stale",
            Self::LookBeyond => "too many, perhaps",
        }
    }
}

impl Outcome for Rotation {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Rotated(_) => "rotated",
            Self::Retried(_) => "retried",
            Self::Reused(..) => "reused",
            Self::Refused(RotationRefusal::Revoked, _) => "revoked",
            Self::Refused(RotationRefusal::Expired, _) => "expired",
            Self::Refused(RotationRefusal::Scope, _) => "scope",
            Self::Refused(RotationRefusal::Audience, _) => "audience",
            Self::Unknown => "unknown",
        }
    }
}

impl Outcome for Revoked {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Now(_) => "revoked",
            Self::Already => "already",
            Self::Unknown => "unknown",
        }
    }
}

impl<T> Outcome for Changed<T> {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Done(..) => "changed",
            Self::Unknown => "unknown",
            Self::NameTaken => "name taken",
            Self::Stale => "stale",
        }
    }
}

impl Outcome for RingChanged {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Done(_) => "changed",
            Self::Conflict => "conflict",
        }
    }
}

impl Outcome for ThrottleDecision {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Allow(_) => "allowed",
            Self::Wait(_) => "to wait",
        }
    }
}

/// An epoch that was raised.
impl Outcome for Entry {
    fn outcome(&self) -> &'static str {
        "raised"
    }
}

/// Something that was added, unless its name was taken.
impl Outcome for bool {
    fn outcome(&self) -> &'static str {
        if *self { "created" } else { "taken" }
    }
}

impl Outcome for () {
    fn outcome(&self) -> &'static str {
        "done"
    }
}
