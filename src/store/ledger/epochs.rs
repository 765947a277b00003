//! Epochs: what was issued under a lower one is revoked.

use super::{append, codec, key};
use crate::domain::clock::Timestamp;
use crate::domain::event::{Cause, Event, RETENTION, Revocation, Target};
use crate::domain::ids::{ClientId, Epoch, Epochs, SubjectId};
use crate::store::engine::{Reads, Rests, Txn, Value};
use crate::store::{Level, StoreError};

use super::Decided;

pub(super) fn read_epoch(bytes: Option<Vec<u8>>) -> Decided<Epoch> {
    let number = bytes.map_or(Ok(0), |bytes| codec::read_number(&bytes))?;
    u32::try_from(number)
        .map(Epoch)
        .map_err(|_| StoreError::Corrupt("an epoch is out of range".to_owned()))
}

pub(super) fn epoch_keys(client: &ClientId, subject: &SubjectId) -> [Vec<u8>; 3] {
    [key::epoch(&Level::Everything), key::client_epoch(client), key::subject_epoch(subject)]
}

pub(super) fn read_epochs(found: Vec<Option<Value>>) -> Decided<Epochs> {
    let mut found = found.into_iter();
    let mut next = || read_epoch(found.next().flatten());
    Ok(Epochs { global: next()?, client: next()?, subject: next()? })
}

pub(super) fn current_epochs(
    reads: &dyn Reads,
    client: &ClientId,
    subject: &SubjectId,
) -> Decided<Epochs> {
    read_epochs(reads.get_many(&epoch_keys(client, subject), Rests::OnAll)?)
}

/// The epochs before this decision.
pub(super) fn get_epochs(txn: &Txn<'_>, client: &ClientId, subject: &SubjectId) -> Decided<Epochs> {
    read_epochs(txn.get_committed(&epoch_keys(client, subject), Rests::OnAll)?)
}

/// Each of these with the epoch under its key, all of them read at once.
pub(super) fn with_epoch<T>(
    reads: &dyn Reads,
    all: Vec<T>,
    keys: &[Vec<u8>],
) -> Decided<Vec<(T, Epoch)>> {
    let epochs = reads.get_many(keys, Rests::OnNothing)?;
    all.into_iter().zip(epochs).map(|(one, epoch)| Ok((one, read_epoch(epoch)?))).collect()
}

/// Raises an epoch in this commit.
pub(super) fn raise(
    txn: &mut Txn<'_>,
    level: &Level,
    cause: Cause,
    now: Timestamp,
) -> Decided<Revocation> {
    raise_by(txn, level, 1, cause, now)
}

pub(super) fn raise_by(
    txn: &mut Txn<'_>,
    level: &Level,
    steps: u32,
    cause: Cause,
    now: Timestamp,
) -> Decided<Revocation> {
    let at = key::epoch(level);
    let known = read_epoch(txn.get(&at)?)?;
    let epoch = Epoch(
        known.0.checked_add(steps).ok_or(StoreError::Internal("an epoch cannot rise further"))?,
    );
    txn.put(at, codec::write_number(epoch.0.into()));
    let target = match level {
        Level::Everything => Target::Everything { epoch },
        Level::Client(id) => Target::Client { id: id.clone(), epoch },
        Level::Subject(id) => Target::Subject { id: id.clone(), epoch },
    };
    let revocation = Revocation { target, cause, at: now, expires_at: now.after(RETENTION) };
    append(txn, &Event::Revocation(revocation.clone()))?;
    Ok(revocation)
}
