//! Sessions: opened, rotated, revoked, found.

use std::collections::HashMap;

use super::epochs::{current_epochs, epoch_keys, get_epochs, read_epochs};
use super::{Decided, Outcome, append, array_in_key, codec, key};
use crate::domain::clock::Timestamp;
use crate::domain::event::{Cause, Event, Initiator, Reason, Revocation, SKEW, Target};
use crate::domain::ids::{Epochs, SessionId};
use crate::domain::session::{
    Device, Presented, Revoked as SessionRevoked, RotationDecision, RotationRules, Session,
    SessionState, decide_rotation,
};
use crate::domain::view::{SESSION_BUCKET_SECS, TOKEN_BUCKET_SECS, bucket_end};
use crate::store::engine::{KeyRange, Order, Reads, Rests, Txn, Value};
use crate::store::{NewSession, Opened, Revoked, Rotation, StoreError};

/// How many sessions of a subject a login looks at, at most a page more. Whoever logs in and out this
/// often within the life of a session may keep more than its limit; nobody makes the log wait.
const MAX_SESSIONS_LOOKED_AT: usize = 2_000;

pub(super) fn open(txn: &mut Txn<'_>, new: &NewSession, now: Timestamp) -> Decided<Opened> {
    let session = &new.session;
    let current = get_epochs(txn, &session.client, &session.subject)?;
    if current != session.epochs {
        return Ok(Opened::Stale);
    }
    let evicted = match room(txn, new, &current, now)? {
        Room::Enough => None,
        Room::Unknown => return Ok(Opened::LookBeyond),
        Room::InPlaceOf(oldest) => {
            let id = oldest.id;
            let cause = Cause { reason: Reason::SessionSuperseded, initiator: Initiator::Policy };
            end_session(txn, *oldest, cause, now)?;
            Some(id)
        }
    };
    put_session(txn, session);
    txn.put(key::session_of(session), Vec::new());
    txn.put(key::session_due(session.ends_at(), session.id), Vec::new());
    if let Some((account, source)) = new.clear_attempts {
        txn.delete(key::attempts(account, source));
    }
    Ok(Opened::Open { evicted })
}

pub(super) fn rotate(
    txn: &mut Txn<'_>,
    presented: &Presented,
    rules: &RotationRules,
    device: Option<&Device>,
    now: Timestamp,
) -> Decided<Rotation> {
    let Some(session) = get_session(txn, presented.session)? else {
        return Ok(Rotation::Unknown);
    };
    let current = get_epochs(txn, &session.client, &session.subject)?;
    Ok(match decide_rotation(&session, presented, rules, &current, now) {
        RotationDecision::Rotate(mut next) => {
            if let Some(device) = device {
                next.device.user_agent.clone_from(&device.user_agent);
                next.device.address.clone_from(&device.address);
            }
            put_session(txn, &next);
            Rotation::Rotated(next)
        }
        RotationDecision::Retry => Rotation::Retried(Box::new(session)),
        RotationDecision::Refuse(refusal) => Rotation::Refused(refusal, Box::new(session)),
        RotationDecision::Reuse(kind, None) => Rotation::Reused(kind, Box::new(session), None),
        RotationDecision::Reuse(kind, Some(ended)) => {
            if let Some(revoked) = ended.revoked {
                end_session(txn, session, revoked.cause, now)?;
            }
            Rotation::Reused(kind, ended, None)
        }
    })
}

pub(super) fn revoke(
    txn: &mut Txn<'_>,
    id: SessionId,
    cause: Cause,
    now: Timestamp,
) -> Decided<Outcome> {
    let Some(session) = get_session(txn, id)? else { return Ok(None) };
    let current = get_epochs(txn, &session.client, &session.subject)?;
    let over = match session.state_at(&current, now) {
        SessionState::Revoked => true,
        SessionState::Expired => now >= session.forgettable_at(),
        SessionState::Active => false,
    };
    if over {
        return Ok(Some(Err(Revoked::Already)));
    }
    end_session(txn, session, cause, now).map(|revocation| Some(Ok(revocation)))
}

pub(super) fn revoke_token(
    txn: &mut Txn<'_>,
    token: &Target,
    cause: Cause,
    now: Timestamp,
) -> Decided<Outcome> {
    let Target::Token { id, expires_at, .. } = token else {
        return Err(StoreError::Internal("revoke_token takes a token"));
    };
    let at = key::revoked_token(*id);
    let expires_at = expires_at.after(SKEW);
    if now >= expires_at || txn.get(&at)?.is_some() {
        return Ok(Some(Err(Revoked::Already)));
    }
    txn.put(at, Vec::new());
    let expires_at = Timestamp::from_secs(bucket_end(expires_at, TOKEN_BUCKET_SECS));
    let revocation = Revocation { target: token.clone(), cause, at: now, expires_at };
    append(txn, &Event::Revocation(revocation.clone()))?;
    Ok(Some(Ok(revocation)))
}

pub(super) fn session_in(reads: &dyn Reads, id: SessionId) -> Decided<Option<Session>> {
    reads.get(&key::session(id))?.map(|bytes| codec::read_session(id, &bytes)).transpose()
}

/// A session and the epochs that decide whether it lives.
pub(super) fn with_epochs(reads: &dyn Reads, id: SessionId) -> Decided<Option<(Session, Epochs)>> {
    let Some(session) = session_in(reads, id)? else { return Ok(None) };
    let epochs = current_epochs(reads, &session.client, &session.subject)?;
    Ok(Some((session, epochs)))
}

/// Those that a range of the index names, each with the epochs that decide whether it lives.
pub(super) fn in_index(
    reads: &dyn Reads,
    range: &KeyRange,
    limit: usize,
) -> Decided<Vec<(Session, Epochs)>> {
    let mut ids = Vec::new();
    for (at, _) in reads.scan(range, Order::Descending, limit)? {
        ids.push(SessionId::from_bytes(array_in_key(&at)?));
    }
    let keys: Vec<_> = ids.iter().map(|id| key::session(*id)).collect();
    let mut known = HashMap::new();
    let mut sessions = Vec::with_capacity(ids.len());
    // A session may go between the two reads.
    for (id, bytes) in ids.into_iter().zip(reads.get_many(&keys, Rests::OnAll)?) {
        let Some(bytes) = bytes else { continue };
        let session = codec::read_session(id, &bytes)?;
        let epochs = match known.get(&session.client) {
            Some(epochs) => *epochs,
            None => {
                let epochs = current_epochs(reads, &session.client, &session.subject)?;
                known.insert(session.client.clone(), epochs);
                epochs
            }
        };
        sessions.push((session, epochs));
    }
    Ok(sessions)
}

fn get_session(txn: &Txn<'_>, id: SessionId) -> Decided<Option<Session>> {
    txn.get(&key::session(id))?.map(|bytes| codec::read_session(id, &bytes)).transpose()
}

fn put_session(txn: &mut Txn<'_>, session: &Session) {
    txn.put(key::session(session.id), codec::write_session(session));
}

/// Revokes a session in this commit.
fn end_session(
    txn: &mut Txn<'_>,
    session: Session,
    cause: Cause,
    now: Timestamp,
) -> Decided<Revocation> {
    let revocation = Revocation {
        target: Target::Session {
            id: session.id,
            client: session.client.clone(),
            subject: session.subject.clone(),
            audience: session.audience.clone(),
        },
        cause,
        at: now,
        // The end of its bucket, so that both ends of a stream drop it at the same moment.
        expires_at: Timestamp::from_secs(bucket_end(session.forgettable_at(), SESSION_BUCKET_SECS)),
    };
    put_session(txn, &Session { revoked: Some(SessionRevoked { at: now, cause }), ..session });
    append(txn, &Event::Revocation(revocation.clone()))?;
    Ok(revocation)
}

/// Whether a subject may have one more session.
enum Room {
    /// It may.
    Enough,
    /// It may, once this one is over.
    InPlaceOf(Box<Session>),
    /// That is not to be said: there are, or may be, more live ones than the limit.
    Unknown,
}

/// Whether the subject of `new` may have one more session.
///
/// It rests on no session having been added. That one of those it looked at has ended meanwhile does
/// not matter: what is over does not come to life again, so there are no more than the limit in any case.
fn room(txn: &Txn<'_>, new: &NewSession, current: &Epochs, now: Timestamp) -> Decided<Room> {
    let max = usize::try_from(new.max_per_subject).unwrap_or(usize::MAX);
    let looked_beyond = new.looked_beyond;
    let new = &new.session;
    let mut range = KeyRange::prefix(&key::sessions_of(&new.subject));
    let page = max.saturating_mul(2);
    let mut live = Vec::new();
    let mut looked_at = 0_usize;
    // Sessions that are over stand in the index until they are swept, and may fill whole pages of it.
    loop {
        let found = txn.scan_committed(&range, Order::Descending, page, Rests::OnAdditions)?;
        if looked_at == 0 && found.len() < max {
            return Ok(Room::Enough);
        }
        if !looked_beyond && found.len() >= page {
            return Ok(Room::Unknown);
        }
        for session in look_at(txn, &found)? {
            // The subject's epoch is the same for each; the client's may not be.
            let current = if session.client == new.client {
                *current
            } else {
                let keys = epoch_keys(&session.client, &session.subject);
                read_epochs(txn.get_committed(&keys, Rests::OnNothing)?)?
            };
            if session.state_at(&current, now) == SessionState::Active {
                live.push(session.id);
            }
        }
        looked_at = looked_at.saturating_add(found.len());
        let exhausted = found.len() < page || looked_at >= MAX_SESSIONS_LOOKED_AT;
        if !looked_beyond && live.len() > max {
            return Ok(Room::Unknown);
        }
        if live.len() >= max || exhausted {
            let oldest = if live.len() >= max { live.pop() } else { None };
            // Once more, for it is going to be written.
            let oldest = oldest.map_or(Ok(None), |id| get_session(txn, id))?;
            return Ok(oldest.map_or(Room::Enough, |oldest| Room::InPlaceOf(Box::new(oldest))));
        }
        range.end = found.into_iter().next_back().map(|(at, _)| at);
    }
}

/// The sessions that these entries of an index name.
fn look_at(txn: &Txn<'_>, found: &[(Vec<u8>, Value)]) -> Decided<Vec<Session>> {
    let ids = found
        .iter()
        .map(|(at, _)| Ok(SessionId::from_bytes(array_in_key(at)?)))
        .collect::<Decided<Vec<_>>>()?;
    let keys: Vec<_> = ids.iter().map(|id| key::session(*id)).collect();
    let records = txn.get_committed(&keys, Rests::OnNothing)?;
    let sessions = ids.into_iter().zip(records);
    sessions.filter_map(|(id, bytes)| Some(codec::read_session(id, &bytes?))).collect()
}
