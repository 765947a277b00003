//! Failed attempts to log in.

use super::{Decided, codec, key};
use crate::domain::clock::Timestamp;
use crate::domain::throttle::{Attempts, ThrottleDecision, ThrottlePolicy, decide_attempt};
use crate::store::engine::{KeyRange, Order, Rests, Txn};

pub(super) fn begin(
    txn: &mut Txn<'_>,
    account: [u8; 8],
    source: [u8; 8],
    policy: &ThrottlePolicy,
    now: Timestamp,
) -> Decided<ThrottleDecision> {
    let at = key::attempts(account, source);
    let known: Option<Attempts> =
        txn.get(&at)?.map(|bytes| codec::read_attempts(&bytes)).transpose()?;
    let decided = decide_attempt(known, policy, now);
    if let ThrottleDecision::Allow(attempts) = decided {
        txn.put(at, codec::write_attempts(&attempts));
        if known.is_none() {
            let due = key::attempts_due(attempts.expires_at, account, source);
            txn.put(due, Vec::new());
        }
    }
    Ok(decided)
}

pub(super) fn undo(
    txn: &mut Txn<'_>,
    account: [u8; 8],
    source: [u8; 8],
    now: Timestamp,
) -> Decided<()> {
    let at = key::attempts(account, source);
    if let Some(bytes) = txn.get(&at)? {
        let known = codec::read_attempts(&bytes)?;
        let undone = Attempts { count: known.count.saturating_sub(1), blocked_until: now, ..known };
        txn.put(at, codec::write_attempts(&undone));
    }
    Ok(())
}

/// Forgets up to `limit` sources that failed on an account, and says how many it were.
pub(super) fn clear(txn: &mut Txn<'_>, account: [u8; 8], limit: usize) -> Decided<usize> {
    let range = KeyRange::prefix(&key::attempts_on(account));
    let found = txn.scan_committed(&range, Order::Ascending, limit, Rests::OnNothing)?;
    let count = found.len();
    found.into_iter().for_each(|(at, _)| txn.delete(at));
    Ok(count)
}
