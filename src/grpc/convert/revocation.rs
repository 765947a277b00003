//! Revocations and cursors on the wire.

use super::timestamp;
use crate::domain::event::{Entry, Event, Initiator, Reason, Revocation, Target};
use crate::domain::ids::{Cursor, IdError, Revision};
use crate::domain::scope::Names;
use crate::pb::v1;

/// A position.
pub fn cursor(cursor: Cursor) -> v1::Cursor {
    v1::Cursor { log_id: cursor.log_id.to_string(), revision: cursor.revision.0 }
}

/// A position that came from outside.
///
/// # Errors
/// When `log_id` is not the id of a log.
pub fn read_cursor(cursor: &v1::Cursor) -> Result<Cursor, IdError> {
    Ok(Cursor { log_id: cursor.log_id.parse()?, revision: Revision(cursor.revision) })
}

/// The revocation of an entry; none when it is about something else.
pub fn entry(entry: &Entry) -> Option<v1::Revocation> {
    match &entry.event {
        Event::Revocation(it) => Some(revocation(entry.revision, it)),
        Event::KeySetChanged { .. } => None,
    }
}

/// A revocation at its place.
pub fn revocation(revision: Revision, revocation: &Revocation) -> v1::Revocation {
    use v1::revocation::Target as Wire;
    let names = |names: &Names| names.iter().map(str::to_owned).collect();
    let (target, cutoff) = match &revocation.target {
        Target::Token { id, expires_at, client, subject: _, audience } => (
            Wire::Token(v1::TokenTarget {
                token_id: id.to_string(),
                token_expire_time: Some(timestamp(*expires_at)),
                client_id: client.to_string(),
                audiences: names(audience),
            }),
            false,
        ),
        Target::Session { id, client, subject, audience } => (
            Wire::Session(v1::SessionTarget {
                session_id: id.to_string(),
                client_id: client.to_string(),
                subject: subject.to_string(),
                audiences: names(audience),
            }),
            false,
        ),
        Target::Subject { id, epoch } => {
            let target = v1::SubjectTarget { subject: id.to_string(), epoch: epoch.0 };
            (Wire::Subject(target), true)
        }
        Target::Client { id, epoch } => {
            let target = v1::ClientTarget { client_id: id.to_string(), epoch: epoch.0 };
            (Wire::Client(target), true)
        }
        Target::Everything { epoch } => {
            (Wire::Everything(v1::EverythingTarget { epoch: epoch.0 }), true)
        }
        Target::Key { id } => (Wire::Key(v1::KeyTarget { kid: id.to_string() }), true),
    };
    v1::Revocation {
        revision: revision.0,
        target: Some(target),
        cutoff_time: cutoff.then(|| timestamp(revocation.at)),
        expire_time: Some(timestamp(revocation.expires_at)),
        event_time: Some(timestamp(revocation.at)),
        reason: reason(revocation.cause.reason) as i32,
        initiating_entity: initiator(revocation.cause.initiator) as i32,
    }
}

/// Why.
pub const fn reason(reason: Reason) -> v1::RevocationReason {
    use v1::RevocationReason as Wire;
    match reason {
        Reason::Logout => Wire::Logout,
        Reason::AdminAction => Wire::AdminAction,
        Reason::CredentialChanged => Wire::CredentialChanged,
        Reason::CredentialCompromised => Wire::CredentialCompromised,
        Reason::AccountDisabled => Wire::AccountDisabled,
        Reason::AccountDeleted => Wire::AccountDeleted,
        Reason::RefreshTokenReused => Wire::RefreshTokenReused,
        Reason::PolicyViolation => Wire::PolicyViolation,
        Reason::RiskDetected => Wire::RiskDetected,
        Reason::DeviceNonCompliant => Wire::DeviceNonCompliant,
        Reason::SessionSuperseded => Wire::SessionSuperseded,
        Reason::ClientDisabled => Wire::ClientDisabled,
        Reason::KeyCompromised => Wire::KeyCompromised,
        Reason::ClaimsChanged => Wire::ClaimsChanged,
        Reason::ExternalSignal => Wire::ExternalSignal,
    }
}

/// Who.
pub const fn initiator(initiator: Initiator) -> v1::InitiatingEntity {
    use v1::InitiatingEntity as Wire;
    match initiator {
        Initiator::Admin => Wire::Admin,
        Initiator::User => Wire::User,
        Initiator::Policy => Wire::Policy,
        Initiator::System => Wire::System,
    }
}
