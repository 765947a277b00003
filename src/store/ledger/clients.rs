//! Clients.

use super::epochs::{epoch_keys, raise, read_epochs, with_epoch};
use super::{Decided, Outcome, codec, id_in_key, key};
use crate::domain::client::Client;
use crate::domain::clock::Timestamp;
use crate::domain::event::{Cause, Revocation};
use crate::domain::ids::{ClientId, Epoch, Epochs, SubjectId};
use crate::store::engine::{KeyRange, Order, Reads, Rests, Txn};
use crate::store::{ClientChange, Level};

pub(super) fn create(txn: &mut Txn<'_>, client: &Client) -> Decided<bool> {
    let taken = txn.get(&key::client(&client.id))?.is_some();
    if !taken {
        txn.put(key::client(&client.id), codec::write_client(client));
    }
    Ok(!taken)
}

pub(super) fn change(
    txn: &mut Txn<'_>,
    id: &ClientId,
    change: &ClientChange,
    cause: Option<Cause>,
    now: Timestamp,
) -> Decided<Option<(Client, Option<Revocation>)>> {
    let Some(known) = get_client(txn, id)? else { return Ok(None) };
    let client = match change {
        ClientChange::Registration(new) => Client {
            id: known.id.clone(),
            kind: known.kind,
            secret_digest: known.secret_digest.clone(),
            disabled: known.disabled,
            created_at: known.created_at,
            ..Client::clone(new)
        },
        ClientChange::Secret(digest) => {
            Client { secret_digest: Some(digest.clone()), ..known.clone() }
        }
        ClientChange::Disabled(disabled) => Client { disabled: *disabled, ..known.clone() },
    };
    let revocation = match cause {
        Some(cause) if client != known => Some(raise(txn, &Level::Client(id.clone()), cause, now)?),
        Some(_) | None => None,
    };
    txn.put(key::client(id), codec::write_client(&client));
    Ok(Some((client, revocation)))
}

pub(super) fn delete(
    txn: &mut Txn<'_>,
    id: &ClientId,
    cause: Cause,
    now: Timestamp,
) -> Decided<Outcome> {
    if txn.get(&key::client(id))?.is_none() {
        return Ok(None);
    }
    txn.delete(key::client(id));
    raise(txn, &Level::Client(id.clone()), cause, now).map(|revocation| Some(Ok(revocation)))
}

pub(super) fn client_in(reads: &dyn Reads, id: &ClientId) -> Decided<Option<Client>> {
    let found = reads.get(&key::client(id))?;
    found.map(|bytes| codec::read_client(id.clone(), &bytes)).transpose()
}

/// A client and the epochs of what it has for itself.
pub(super) fn with_epochs(reads: &dyn Reads, id: &ClientId) -> Decided<(Option<Client>, Epochs)> {
    // The epochs first: a change since then has raised one.
    let mut keys = epoch_keys(id, &SubjectId::from(id)).to_vec();
    keys.push(key::client(id));
    let mut found = reads.get_many(&keys, Rests::OnAll)?;
    let client = found.pop().flatten();
    let client = client.map(|bytes| codec::read_client(id.clone(), &bytes)).transpose()?;
    Ok((client, read_epochs(found)?))
}

pub(super) fn in_range(
    reads: &dyn Reads,
    range: &KeyRange,
    limit: usize,
) -> Decided<Vec<(Client, Epoch)>> {
    let found = reads.scan_many(range, Order::Ascending, limit, Rests::OnNothing)?;
    let clients: Vec<_> = found
        .iter()
        .map(|(at, bytes)| codec::read_client(id_in_key(at, 1)?, bytes))
        .collect::<Decided<_>>()?;
    let keys: Vec<_> = clients.iter().map(|client| key::client_epoch(&client.id)).collect();
    with_epoch(reads, clients, &keys)
}

fn get_client(txn: &Txn<'_>, id: &ClientId) -> Decided<Option<Client>> {
    txn.get(&key::client(id))?.map(|bytes| codec::read_client(id.clone(), &bytes)).transpose()
}
