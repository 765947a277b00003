//! Removing what is over.

use std::time::Duration;

use super::{Decided, array_in_key, codec, key};
use crate::domain::clock::Timestamp;
use crate::domain::event::{Event, Revocation, Target};
use crate::domain::ids::SessionId;
use crate::store::engine::{KeyRange, Order, Rests, Txn};

/// Whether it is the turn of `who` to sweep, which it then has for as long as it `lasts`.
pub(super) fn take_turn(
    txn: &mut Txn<'_>,
    who: [u8; 16],
    lasts: Duration,
    now: Timestamp,
) -> Decided<bool> {
    if let Some(bytes) = txn.get(codec::SWEEP_KEY)? {
        let (whose, until) = codec::read_turn(&bytes)?;
        // One that lasts longer than any was taken by a clock that was far ahead.
        if whose != who && now < until && until <= now.after(2 * lasts) {
            return Ok(false);
        }
    }
    txn.put(codec::SWEEP_KEY.to_vec(), codec::write_turn(who, now.after(lasts)));
    Ok(true)
}

/// The range of due keys of `kind` that are due at `now`.
fn due_by(kind: u8, now: Timestamp) -> KeyRange {
    let mut end = vec![kind];
    end.extend_from_slice(&(now.as_secs().saturating_add(1)).to_be_bytes());
    KeyRange { start: vec![kind], end: Some(end) }
}

/// It rests on the sessions that it looks at, and not on what is due: to sweep an entry that another
/// has swept already changes nothing.
pub(super) fn sessions(txn: &mut Txn<'_>, limit: usize, now: Timestamp) -> Decided<u32> {
    let due = txn.scan_committed(&due_by(b'x', now), Order::Ascending, limit, Rests::OnNothing)?;
    let mut keys = Vec::with_capacity(due.len());
    for (at, _) in &due {
        keys.push(key::session(SessionId::from_bytes(array_in_key(at)?)));
    }
    let records = txn.get_committed(&keys, Rests::OnAll)?;
    let mut removed = 0;
    for ((at, _), bytes) in due.into_iter().zip(records) {
        let id = SessionId::from_bytes(array_in_key(&at)?);
        txn.delete(at);
        removed += 1;
        let Some(bytes) = bytes else { continue };
        let session = codec::read_session(id, &bytes)?;
        // A revoked one stays until its absolute end, so that reuse of its tokens is still told
        // apart from tokens that never were.
        let over = if session.revoked.is_some() { session.expires_at } else { session.ends_at() };
        let over = over.max(session.forgettable_at());
        if now < over {
            txn.put(key::session_due(over, id), Vec::new());
        } else {
            txn.delete(key::session(id));
            txn.delete(key::session_of(&session));
        }
    }
    Ok(removed)
}

/// Looks at the `limit` oldest events, and removes up to `at_once` of them.
pub(super) fn events(
    txn: &mut Txn<'_>,
    limit: usize,
    at_once: usize,
    now: Timestamp,
) -> Decided<u32> {
    let log = KeyRange::prefix(b"e");
    let mut removed = 0;
    // An event never changes, and once it has expired it stays so.
    for (at, bytes) in txn.scan_committed(&log, Order::Ascending, limit, Rests::OnNothing)? {
        let event = codec::read_event(&bytes)?;
        if now < event.expires_at() {
            continue;
        }
        if usize::try_from(removed).is_ok_and(|removed| removed >= at_once) {
            break;
        }
        if let Event::Revocation(Revocation { target: Target::Token { id, .. }, .. }) = &event {
            txn.delete(key::revoked_token(*id));
        }
        txn.delete(at);
        removed += 1;
    }
    Ok(removed)
}

pub(super) fn attempts(txn: &mut Txn<'_>, limit: usize, now: Timestamp) -> Decided<u32> {
    let due = txn.scan_committed(&due_by(b'z', now), Order::Ascending, limit, Rests::OnNothing)?;
    let mut sources = Vec::with_capacity(due.len());
    for (at, _) in &due {
        let both: [u8; 16] = array_in_key(at)?;
        let (mut account, mut source) = ([0; 8], [0; 8]);
        account.copy_from_slice(&both[..8]);
        source.copy_from_slice(&both[8..]);
        sources.push((account, source));
    }
    let keys: Vec<_> =
        sources.iter().map(|(account, source)| key::attempts(*account, *source)).collect();
    let records = txn.get_committed(&keys, Rests::OnAll)?;
    let mut removed = 0;
    for (((at, _), (account, source)), bytes) in due.into_iter().zip(sources).zip(records) {
        txn.delete(at);
        removed += 1;
        let Some(bytes) = bytes else { continue };
        let known = codec::read_attempts(&bytes)?;
        if now < known.expires_at {
            txn.put(key::attempts_due(known.expires_at, account, source), Vec::new());
        } else {
            txn.delete(key::attempts(account, source));
        }
    }
    Ok(removed)
}
