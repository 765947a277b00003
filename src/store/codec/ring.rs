//! Signing keys and MAC keys.

use super::bytes::{Read, Reader, V1, Writer};
use crate::domain::clock::Timestamp;
use crate::domain::ids::KeyId;
use crate::domain::key::{
    Algorithm, KeyRecord, KeyState, MacKeyId, MacKeyRecord, MacKeyState, PublicKey,
};

/// A signing key, without its id, which is in its database key.
pub fn write_key(record: &KeyRecord) -> Vec<u8> {
    let mut out = Writer::new(V1);
    out.u8(match record.state {
        KeyState::Announced => 1,
        KeyState::Active => 2,
        KeyState::Retired => 3,
        KeyState::Revoked => 4,
    });
    match &record.public {
        PublicKey::P256 { x, y } => out.u8(1).text(x).text(y),
        PublicKey::Ed25519 { x } => out.u8(2).text(x),
        PublicKey::Rsa { n, e } => out.u8(3).text(n).text(e),
    };
    let time = |out: &mut Writer, at: Timestamp| {
        out.time(at);
    };
    out.time(record.created_at)
        .time(record.activate_at)
        .option(record.retired_at, time)
        .option(record.remove_at, time)
        .option(record.revoked_at, time)
        .bytes(&record.sealed_private)
        .take()
}

/// Reads what [`write_key`] wrote.
///
/// # Errors
/// [`StoreError::Corrupt`](crate::store::StoreError::Corrupt) for anything else.
pub fn read_key(id: KeyId, bytes: &[u8]) -> Read<KeyRecord> {
    let mut r = Reader::new(bytes, V1, "signing key")?;
    let state = match r.u8()? {
        1 => KeyState::Announced,
        2 => KeyState::Active,
        3 => KeyState::Retired,
        4 => KeyState::Revoked,
        _ => return Err(r.corrupt()),
    };
    let public = match r.u8()? {
        1 => PublicKey::P256 { x: r.text()?.into(), y: r.text()?.into() },
        2 => PublicKey::Ed25519 { x: r.text()?.into() },
        3 => PublicKey::Rsa { n: r.text()?.into(), e: r.text()?.into() },
        _ => return Err(r.corrupt()),
    };
    let algorithm: Algorithm = public.algorithm();
    let record = KeyRecord {
        id,
        algorithm,
        state,
        created_at: r.time()?,
        activate_at: r.time()?,
        retired_at: r.option(Reader::time)?,
        remove_at: r.option(Reader::time)?,
        revoked_at: r.option(Reader::time)?,
        public,
        sealed_private: r.bytes()?.to_vec(),
    };
    r.end()?;
    Ok(record)
}

/// A MAC key, without its number, which is in its database key.
pub fn write_mac_key(record: &MacKeyRecord) -> Vec<u8> {
    Writer::new(V1)
        .u8(matches!(record.state, MacKeyState::Active).into())
        .time(record.created_at)
        .bytes(&record.sealed)
        .take()
}

/// Reads what [`write_mac_key`] wrote.
///
/// # Errors
/// [`StoreError::Corrupt`](crate::store::StoreError::Corrupt) for anything else.
pub fn read_mac_key(id: MacKeyId, bytes: &[u8]) -> Read<MacKeyRecord> {
    let mut r = Reader::new(bytes, V1, "MAC key")?;
    let state = if r.bool()? { MacKeyState::Active } else { MacKeyState::Previous };
    let record = MacKeyRecord { id, state, created_at: r.time()?, sealed: r.bytes()?.to_vec() };
    r.end()?;
    Ok(record)
}
