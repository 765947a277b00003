//! Revocations of the wire as entries of the log, so that they leave as they came.

use crate::client::watch::moment;
use crate::domain::event::{Cause, Entry, Event, Initiator, Reason, Revocation, Target};
use crate::domain::ids::{ClientId, Cursor, Epoch, Revision, SubjectId};
use crate::domain::scope::Names;
use crate::pb::v1;

/// A position.
pub(super) fn cursor(cursor: &v1::Cursor) -> Option<Cursor> {
    Some(Cursor { log_id: cursor.log_id.parse().ok()?, revision: Revision(cursor.revision) })
}

/// Entries; none if one of them cannot be understood. Leaving it out would make a revoked token good
/// again.
pub(super) fn entries(revocations: &[v1::Revocation]) -> Option<Vec<Entry>> {
    revocations.iter().map(entry).collect()
}

fn entry(revocation: &v1::Revocation) -> Option<Entry> {
    use v1::revocation::Target as Wire;
    let target = match revocation.target.as_ref()? {
        Wire::Token(token) => {
            let client: ClientId = token.client_id.parse().ok()?;
            Target::Token {
                id: token.token_id.parse().ok()?,
                expires_at: token.token_expire_time.as_ref().and_then(moment)?,
                // The wire does not name it, and nothing here asks for it.
                subject: SubjectId::from(&client),
                client,
                audience: Names::new(&token.audiences).ok()?,
            }
        }
        Wire::Session(session) => Target::Session {
            id: session.session_id.parse().ok()?,
            client: session.client_id.parse().ok()?,
            subject: session.subject.parse().ok()?,
            audience: Names::new(&session.audiences).ok()?,
        },
        Wire::Subject(subject) => {
            Target::Subject { id: subject.subject.parse().ok()?, epoch: Epoch(subject.epoch) }
        }
        Wire::Client(client) => {
            Target::Client { id: client.client_id.parse().ok()?, epoch: Epoch(client.epoch) }
        }
        Wire::Everything(everything) => Target::Everything { epoch: Epoch(everything.epoch) },
        Wire::Key(key) => Target::Key { id: key.kid.parse().ok()? },
    };
    let cause = Cause {
        // A reason that a newer server knows must not hold up what is revoked for it.
        reason: Reason::from_number(revocation.reason).unwrap_or(Reason::AdminAction),
        initiator: Initiator::from_number(revocation.initiating_entity)
            .unwrap_or(Initiator::System),
    };
    let at = revocation.event_time.as_ref().and_then(moment).unwrap_or_default();
    let expires_at = revocation.expire_time.as_ref().and_then(moment)?;
    let revocation_of = Revocation { target, cause, at, expires_at };
    Some(Entry { revision: Revision(revocation.revision), event: Event::Revocation(revocation_of) })
}
