//! Users.

use super::epochs::{epoch_keys, raise, read_epoch, read_epochs, with_epoch};
use super::{Decided, Outcome, codec, id_in_key, key};
use crate::domain::clock::Timestamp;
use crate::domain::event::{Cause, Revocation};
use crate::domain::ids::{ClientId, Epoch, SubjectId};
use crate::domain::secret::SecretText;
use crate::domain::user::User;
use crate::store::engine::{KeyRange, Order, Reads, Rests, Txn};
use crate::store::{Changed, Level, Login, UserChange};

pub(super) fn create(txn: &mut Txn<'_>, user: &User) -> Decided<bool> {
    let taken = txn.get(&key::username(&user.username))?.is_some()
        || txn.get(&key::user(&user.subject))?.is_some();
    if !taken {
        txn.put(key::username(&user.username), user.subject.as_str().as_bytes().to_vec());
        txn.put(key::user(&user.subject), codec::write_user(user));
    }
    Ok(!taken)
}

/// What a change did, or why it did nothing.
type ChangedUser = Result<(User, Option<Revocation>), Changed<User>>;

pub(super) fn change(
    txn: &mut Txn<'_>,
    subject: &SubjectId,
    change: &UserChange,
    cause: Option<Cause>,
    now: Timestamp,
) -> Decided<ChangedUser> {
    let Some(known) = get_user(txn, subject)? else {
        return Ok(Err(Changed::Unknown));
    };
    if let Some(epoch) = change.if_epoch
        && read_epoch(txn.get(&key::subject_epoch(subject))?)? != epoch
    {
        return Ok(Err(Changed::Stale));
    }
    let mut user = known.clone();
    if let Some(name) = &change.username
        && *name != known.username
    {
        if txn.get(&key::username(name))?.is_some() {
            return Ok(Err(Changed::NameTaken));
        }
        txn.delete(key::username(&known.username));
        txn.put(key::username(name), subject.as_str().as_bytes().to_vec());
        user.username.clone_from(name);
    }
    if let Some(name) = &change.display_name {
        user.display_name.clone_from(name);
    }
    if let Some(scope) = &change.scope {
        user.scope.clone_from(scope);
    }
    if let Some(hash) = &change.password_hash {
        user.password_hash = Some(hash.clone());
        user.password_changed_at = Some(now);
    }
    if let Some(disabled) = change.disabled {
        user.disabled = disabled;
    }
    let ends_tokens = change.password_hash.is_some()
        || user.scope != known.scope
        || user.disabled != known.disabled;
    txn.put(key::user(subject), codec::write_user(&user));
    let revocation = match cause {
        Some(cause) if ends_tokens => {
            Some(raise(txn, &Level::Subject(subject.clone()), cause, now)?)
        }
        Some(_) | None => None,
    };
    Ok(Ok((user, revocation)))
}

pub(super) fn rehash(
    txn: &mut Txn<'_>,
    subject: &SubjectId,
    from: &SecretText,
    to: &SecretText,
) -> Decided<()> {
    let Some(mut user) = get_user(txn, subject)? else { return Ok(()) };
    let unchanged = user.password_hash.as_ref().is_some_and(|hash| hash.expose() == from.expose());
    if unchanged {
        user.password_hash = Some(to.clone());
        txn.put(key::user(subject), codec::write_user(&user));
    }
    Ok(())
}

pub(super) fn delete(
    txn: &mut Txn<'_>,
    subject: &SubjectId,
    cause: Cause,
    now: Timestamp,
) -> Decided<Outcome> {
    let Some(user) = get_user(txn, subject)? else { return Ok(None) };
    txn.delete(key::user(subject));
    txn.delete(key::username(&user.username));
    raise(txn, &Level::Subject(subject.clone()), cause, now).map(|revocation| Some(Ok(revocation)))
}

pub(super) fn user_in(reads: &dyn Reads, subject: &SubjectId) -> Decided<Option<User>> {
    let found = reads.get(&key::user(subject))?;
    found.map(|bytes| codec::read_user(subject.clone(), &bytes)).transpose()
}

pub(super) fn by_name(reads: &dyn Reads, username: &str) -> Decided<Option<User>> {
    match reads.get(&key::username(username))? {
        None => Ok(None),
        Some(subject) => user_in(reads, &id_in_key(&subject, 0)?),
    }
}

/// A name that nobody has is looked up as far as one that somebody has, so that the way to the store
/// and back does not tell them apart.
pub(super) fn login(reads: &dyn Reads, username: &str, client: &ClientId) -> Decided<Login> {
    let known = reads.get(&key::username(username))?;
    let subject = match &known {
        Some(subject) => id_in_key(subject, 0)?,
        None => SubjectId::from(client),
    };
    // The epochs first: a change since then has raised one.
    let mut keys = epoch_keys(client, &subject).to_vec();
    keys.extend([key::client(client), key::user(&subject)]);
    let mut epochs = reads.get_many(&keys, Rests::OnAll)?;
    let mut found = epochs.split_off(3).into_iter();
    let (of_client, of_user) = (found.next().flatten(), found.next().flatten());
    let client = of_client.map(|bytes| codec::read_client(client.clone(), &bytes)).transpose()?;
    let user = of_user.filter(|_| known.is_some());
    let user = user.map(|bytes| codec::read_user(subject, &bytes)).transpose()?;
    Ok(Login { user, client, epochs: read_epochs(epochs)? })
}

pub(super) fn in_range(
    reads: &dyn Reads,
    range: &KeyRange,
    limit: usize,
) -> Decided<Vec<(User, Epoch)>> {
    let found = reads.scan_many(range, Order::Ascending, limit, Rests::OnNothing)?;
    let users: Vec<_> = found
        .iter()
        .map(|(at, bytes)| codec::read_user(id_in_key(at, 1)?, bytes))
        .collect::<Decided<_>>()?;
    let keys: Vec<_> = users.iter().map(|user| key::subject_epoch(&user.subject)).collect();
    with_epoch(reads, users, &keys)
}

fn get_user(txn: &Txn<'_>, subject: &SubjectId) -> Decided<Option<User>> {
    txn.get(&key::user(subject))?.map(|bytes| codec::read_user(subject.clone(), &bytes)).transpose()
}
