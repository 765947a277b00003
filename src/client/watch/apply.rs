//! What a frame means for the view. None for anything that cannot be understood: leaving out a
//! revocation would make a revoked token good again.

use crate::domain::clock::Timestamp;
use crate::domain::event::{Cause, Initiator, Reason, Revocation, Target};
use crate::domain::ids::{Cursor, Epoch, Revision, SessionId, TokenId};
use crate::domain::view::{Changed, SESSION_BUCKET_SECS, TOKEN_BUCKET_SECS, View, bucket_end};
use crate::pb::v1;

/// A position.
pub(super) fn read_cursor(cursor: &v1::Cursor) -> Option<Cursor> {
    Some(Cursor { log_id: cursor.log_id.parse().ok()?, revision: Revision(cursor.revision) })
}

/// A position, as it is sent.
pub(super) fn write_cursor(cursor: Cursor) -> v1::Cursor {
    v1::Cursor { log_id: cursor.log_id.to_string(), revision: cursor.revision.0 }
}

/// A moment.
pub(crate) fn moment(at: &prost_types::Timestamp) -> Option<Timestamp> {
    let millis = u64::try_from(at.seconds).ok()?.checked_mul(1000)?;
    Some(Timestamp::from_millis(millis.checked_add(u64::try_from(at.nanos).ok()? / 1_000_000)?))
}

/// Whose standing a revocation may have changed; everybody's where that cannot be told.
pub(crate) fn changed(revocation: &v1::Revocation) -> Changed {
    use v1::revocation::Target as Wire;
    let changed = match &revocation.target {
        Some(Wire::Token(token)) => token.token_id.parse().map(Changed::token).ok(),
        Some(Wire::Session(session)) => session.session_id.parse().map(Changed::session).ok(),
        Some(Wire::Subject(subject)) => Some(Changed::name(&subject.subject)),
        Some(Wire::Client(client)) => Some(Changed::name(&client.client_id)),
        Some(Wire::Key(key)) => Some(Changed::name(&key.kid)),
        Some(Wire::Everything(_)) | None => None,
    };
    changed.unwrap_or(Changed::Everything)
}

/// Adds a part of a live set.
pub(super) fn apply_chunk(view: &View, chunk: &v1::SnapshotChunk) -> Option<()> {
    for packed in &chunk.packed {
        for &key in &packed.keys {
            match packed.kind() {
                v1::PackedKind::Token => view.insert_token(packed.expire_time_seconds, key),
                v1::PackedKind::Session => view.insert_session(packed.expire_time_seconds, key),
                v1::PackedKind::Unspecified => return None,
            }
        }
    }
    chunk.revocations.iter().try_for_each(|revocation| apply_revocation(view, revocation))
}

/// Adds a revocation.
pub(super) fn apply_revocation(view: &View, revocation: &v1::Revocation) -> Option<()> {
    use v1::revocation::Target as Wire;
    let expires_at = revocation.expire_time.as_ref().and_then(moment)?;
    let target = match revocation.target.as_ref()? {
        Wire::Token(token) => {
            let id: TokenId = token.token_id.parse().ok()?;
            view.insert_token(bucket_end(expires_at, TOKEN_BUCKET_SECS), id.key64());
            return Some(());
        }
        Wire::Session(session) => {
            let id: SessionId = session.session_id.parse().ok()?;
            view.insert_session(bucket_end(expires_at, SESSION_BUCKET_SECS), id.key64());
            return Some(());
        }
        Wire::Subject(subject) => {
            Target::Subject { id: subject.subject.parse().ok()?, epoch: Epoch(subject.epoch) }
        }
        Wire::Client(client) => {
            Target::Client { id: client.client_id.parse().ok()?, epoch: Epoch(client.epoch) }
        }
        Wire::Everything(everything) => Target::Everything { epoch: Epoch(everything.epoch) },
        Wire::Key(key) => Target::Key { id: key.kid.parse().ok()? },
    };
    // The view asks neither why nor when.
    let cause = Cause { reason: Reason::AdminAction, initiator: Initiator::System };
    view.apply(&Revocation { target, cause, at: Timestamp::default(), expires_at });
    Some(())
}
