//! Events.

use super::bytes::{Read, Reader, V1, Writer};
use crate::domain::event::{Event, Revocation, Target};
use crate::domain::ids::{Epoch, SessionId, TokenId};

/// An event, without its revision, which is in its key.
pub fn write_event(event: &Event) -> Vec<u8> {
    let mut out = Writer::new(V1);
    let revocation = match event {
        Event::KeySetChanged { at } => return out.u8(0).time(*at).take(),
        Event::Revocation(revocation) => revocation,
    };
    match &revocation.target {
        Target::Token { id, expires_at, client, subject, audience } => out
            .u8(1)
            .raw(id.as_bytes())
            .time(*expires_at)
            .text(client.as_str())
            .text(subject.as_str())
            .names(audience),
        Target::Session { id, client, subject, audience } => out
            .u8(2)
            .raw(id.as_bytes())
            .text(client.as_str())
            .text(subject.as_str())
            .names(audience),
        Target::Subject { id, epoch } => out.u8(3).text(id.as_str()).uint(epoch.0.into()),
        Target::Client { id, epoch } => out.u8(4).text(id.as_str()).uint(epoch.0.into()),
        Target::Everything { epoch } => out.u8(5).uint(epoch.0.into()),
        Target::Key { id } => out.u8(6).text(id.as_str()),
    }
    .cause(revocation.cause)
    .time(revocation.at)
    .time(revocation.expires_at)
    .take()
}

/// Reads what [`write_event`] wrote.
///
/// # Errors
/// [`StoreError::Corrupt`](crate::store::StoreError::Corrupt) for anything else.
pub fn read_event(bytes: &[u8]) -> Read<Event> {
    let mut r = Reader::new(bytes, V1, "event")?;
    let target = match r.u8()? {
        0 => {
            let at = r.time()?;
            r.end()?;
            return Ok(Event::KeySetChanged { at });
        }
        1 => Target::Token {
            id: TokenId::from_bytes(r.array()?),
            expires_at: r.time()?,
            client: r.id()?,
            subject: r.id()?,
            audience: r.names()?,
        },
        2 => Target::Session {
            id: SessionId::from_bytes(r.array()?),
            client: r.id()?,
            subject: r.id()?,
            audience: r.names()?,
        },
        3 => Target::Subject { id: r.id()?, epoch: Epoch(r.u32()?) },
        4 => Target::Client { id: r.id()?, epoch: Epoch(r.u32()?) },
        5 => Target::Everything { epoch: Epoch(r.u32()?) },
        6 => Target::Key { id: r.id()? },
        _ => return Err(r.corrupt()),
    };
    let revocation = Revocation { target, cause: r.cause()?, at: r.time()?, expires_at: r.time()? };
    r.end()?;
    Ok(Event::Revocation(revocation))
}
