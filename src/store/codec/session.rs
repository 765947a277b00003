//! Sessions.

use super::bytes::{Read, Reader, V1, Writer};
use crate::domain::ids::{Generation, SessionId};
use crate::domain::key::MacKeyId;
use crate::domain::secret::SecretBytes;
use crate::domain::session::{Device, Revoked, Session};

/// A session, without its id, which is in its key.
pub fn write_session(session: &Session) -> Vec<u8> {
    let mut out = Writer::new(V1);
    // Times near each other are written as distances, which are short.
    let created = session.created_at;
    out.text(session.subject.as_str())
        .text(session.client.as_str())
        .names(&session.scope)
        .names(&session.audience)
        .epochs(&session.epochs)
        .raw(session.nonce.expose())
        .uint(session.generation.0.into())
        .uint(session.mac_key.0.into())
        .time(created)
        .span(session.rotated_at.since(created))
        .span(session.idle_expires_at.since(created))
        .span(session.expires_at.since(created))
        .span(session.access_expires_at.since(created))
        .names(&session.methods)
        .text(&session.device.id)
        .text(&session.device.name)
        .text(&session.device.user_agent)
        .text(&session.device.address)
        .option(session.revoked, |out, revoked| {
            out.time(revoked.at).cause(revoked.cause);
        })
        .take()
}

/// Reads what [`write_session`] wrote.
///
/// # Errors
/// [`StoreError::Corrupt`](crate::store::StoreError::Corrupt) for anything else.
pub fn read_session(id: SessionId, bytes: &[u8]) -> Read<Session> {
    let mut r = Reader::new(bytes, V1, "session")?;
    let (subject, client) = (r.id()?, r.id()?);
    let (scope, audience, epochs) = (r.names()?, r.names()?, r.epochs()?);
    let nonce = SecretBytes::new(r.array()?);
    let (generation, mac_key) = (Generation(r.u32()?), MacKeyId(r.u32()?));
    let created_at = r.time()?;
    let session = Session {
        id,
        subject,
        client,
        scope,
        audience,
        epochs,
        nonce,
        generation,
        mac_key,
        created_at,
        rotated_at: created_at.after(r.span()?),
        idle_expires_at: created_at.after(r.span()?),
        expires_at: created_at.after(r.span()?),
        access_expires_at: created_at.after(r.span()?),
        methods: r.names()?,
        device: Device {
            id: r.text()?.into(),
            name: r.text()?.into(),
            user_agent: r.text()?.into(),
            address: r.text()?.into(),
        },
        revoked: r.option(|r| Ok(Revoked { at: r.time()?, cause: r.cause()? }))?,
    };
    r.end()?;
    Ok(session)
}
