//! The key ring.

use super::{Decided, append, array_in_key, codec, id_in_key, key};
use crate::domain::clock::Timestamp;
use crate::domain::event::{Event, RETENTION, Revocation, Target};
use crate::domain::ids::KeyId;
use crate::domain::key::MacKeyId;
use crate::store::engine::{KeyRange, Order, Reads, Rests, Txn};
use crate::store::{RingChange, StoredRing};

pub(super) fn version(reads: &dyn Reads) -> Decided<u64> {
    reads.get(codec::RING_KEY)?.map_or(Ok(0), |bytes| codec::read_number(&bytes))
}

/// The ring, if nobody changes it meanwhile.
pub(super) fn stored(reads: &dyn Reads) -> Decided<StoredRing> {
    // Whether it changed meanwhile, the version says to whoever asks.
    let all = |kind: u8| {
        let range = KeyRange::prefix(&[kind]);
        reads.scan_many(&range, Order::Ascending, usize::MAX, Rests::OnNothing)
    };
    let version = version(reads)?;
    let keys = all(b'k')?
        .iter()
        .map(|(at, bytes)| codec::read_key(id_in_key(at, 1)?, bytes))
        .collect::<Decided<_>>()?;
    let mac_keys = all(b'h')?
        .iter()
        .map(|(at, bytes)| {
            let id = MacKeyId(u32::from_be_bytes(array_in_key(at)?));
            codec::read_mac_key(id, bytes)
        })
        .collect::<Decided<_>>()?;
    Ok(StoredRing { version, keys, mac_keys })
}

/// None when the ring has another version.
pub(super) fn change(
    txn: &mut Txn<'_>,
    version: u64,
    change: &RingChange,
    now: Timestamp,
) -> Decided<Option<Event>> {
    let known = txn.get(codec::RING_KEY)?.map_or(Ok(0), |bytes| codec::read_number(&bytes))?;
    if known != version {
        return Ok(None);
    }
    txn.put(codec::RING_KEY.to_vec(), codec::write_number(version + 1));
    for record in &change.put {
        txn.put(key::signing_key(&record.id), codec::write_key(record));
    }
    for id in &change.remove {
        txn.delete(key::signing_key(id));
    }
    for record in &change.put_mac {
        txn.put(key::mac_key(record.id), codec::write_mac_key(record));
    }
    for id in &change.remove_mac {
        txn.delete(key::mac_key(*id));
    }
    let event = match &change.revoked {
        None => Event::KeySetChanged { at: now },
        Some((id, cause)) => Event::Revocation(Revocation {
            target: Target::Key { id: KeyId::clone(id) },
            cause: *cause,
            at: now,
            expires_at: now.after(RETENTION),
        }),
    };
    append(txn, &event)?;
    Ok(Some(event))
}
