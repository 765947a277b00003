//! The schema on one page: which keys there are, and how each record is written. Knows no engine
//! and decides nothing.
//!
//! | key | value | lives until |
//! |---|---|---|
//! | `s` session id | session | it is over |
//! | `i` subject 0 created session id | nothing | the session |
//! | `x` due second, session id | nothing: look at the session then | then |
//! | `u` subject | user | deleted |
//! | `n` username | subject | the user |
//! | `c` client id | client | deleted |
//! | `p` level, id | epoch | for ever |
//! | `e` revision | event | its expiry |
//! | `t` token id | nothing: this token is revoked | the event |
//! | `a` account, source | failed attempts | their expiry |
//! | `z` due second, account, source | nothing: look at the attempts then | then |
//! | `k` kid | signing key, sealed | removed |
//! | `h` MAC key id | MAC key, sealed | removed |
//! | `m/time` | latest moment committed | for ever |
//! | `m/ring` | version of the key ring | for ever |
//! | `m/sweep` | whose turn it is to sweep, until when | for ever |
//!
//! Integers in keys are big-endian, so that bytes sort as numbers do. Each value starts with the
//! version of its layout. `i`, `x` and `z` are index entries:
//! [`INDEX_KINDS`](crate::store::engine::INDEX_KINDS).

use self::bytes::{Read, Reader, V1, Writer};
use crate::domain::clock::Timestamp;
use crate::domain::throttle::Attempts;
use crate::store::StoreError;

mod account;
mod bytes;
mod event;
pub mod key;
mod ring;
mod session;

pub use account::{read_client, read_user, write_client, write_user};
pub use event::{read_event, write_event};
pub use ring::{read_key, read_mac_key, write_key, write_mac_key};
pub use session::{read_session, write_session};

/// The version of the whole schema. An engine stores it when it is created and refuses another.
pub const SCHEMA_VERSION: u32 = 2;

/// Where the version of the key ring stands.
pub const RING_KEY: &[u8] = b"m/ring";

/// Where it stands whose turn it is to sweep.
pub const SWEEP_KEY: &[u8] = b"m/sweep";

/// Whose turn it is, until when.
pub fn write_turn(who: [u8; 16], until: Timestamp) -> Vec<u8> {
    Writer::new(V1).raw(&who).time(until).take()
}

/// Reads what [`write_turn`] wrote.
///
/// # Errors
/// [`StoreError::Corrupt`] for anything else.
pub fn read_turn(bytes: &[u8]) -> Read<([u8; 16], Timestamp)> {
    let mut r = Reader::new(bytes, V1, "turn to sweep")?;
    let turn = (r.array()?, r.time()?);
    r.end()?;
    Ok(turn)
}

/// A number: an epoch, the version of the ring, a time in milliseconds.
pub fn write_number(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

/// Reads what [`write_number`] wrote.
///
/// # Errors
/// [`StoreError::Corrupt`] for anything else.
pub fn read_number(bytes: &[u8]) -> Read<u64> {
    bytes
        .try_into()
        .map(u64::from_be_bytes)
        .map_err(|_| StoreError::Corrupt("a number cannot be read".to_owned()))
}

/// Failed attempts.
pub fn write_attempts(attempts: &Attempts) -> Vec<u8> {
    Writer::new(V1)
        .uint(attempts.count.into())
        .time(attempts.blocked_until)
        .time(attempts.expires_at)
        .take()
}

/// Reads what [`write_attempts`] wrote.
///
/// # Errors
/// [`StoreError::Corrupt`] for anything else.
pub fn read_attempts(bytes: &[u8]) -> Read<Attempts> {
    let mut r = Reader::new(bytes, V1, "throttle record")?;
    let attempts = Attempts { count: r.u32()?, blocked_until: r.time()?, expires_at: r.time()? };
    r.end()?;
    Ok(attempts)
}
