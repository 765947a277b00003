//! Users and clients.

use super::bytes::{Read, Reader, V1, Writer};
use crate::domain::caller::{Grant, Right};
use crate::domain::client::{Client, ClientType, Lifetimes, ReuseDetection};
use crate::domain::ids::{ClientId, SubjectId};
use crate::domain::secret::{SecretBytes, SecretText};
use crate::domain::user::User;

/// A user, without the subject, which is in its key.
pub fn write_user(user: &User) -> Vec<u8> {
    Writer::new(V1)
        .text(&user.username)
        .text(&user.display_name)
        .option(user.password_hash.as_ref(), |out, hash| {
            out.text(hash.expose());
        })
        .option(user.password_changed_at, |out, at| {
            out.time(at);
        })
        .names(&user.scope)
        .u8(user.disabled.into())
        .time(user.created_at)
        .take()
}

/// Reads what [`write_user`] wrote.
///
/// # Errors
/// [`StoreError::Corrupt`](crate::store::StoreError::Corrupt) for anything else.
pub fn read_user(subject: SubjectId, bytes: &[u8]) -> Read<User> {
    let mut r = Reader::new(bytes, V1, "user")?;
    let user = User {
        subject,
        username: r.text()?.into(),
        display_name: r.text()?.into(),
        password_hash: r.option(|r| Ok(SecretText::new(r.text()?.to_owned())))?,
        password_changed_at: r.option(Reader::time)?,
        scope: r.names()?,
        disabled: r.bool()?,
        created_at: r.time()?,
    };
    r.end()?;
    Ok(user)
}

/// A client, without its id, which is in its key.
pub fn write_client(client: &Client) -> Vec<u8> {
    let mut out = Writer::new(V1);
    out.text(&client.display_name)
        .u8(matches!(client.kind, ClientType::Public).into())
        .option(client.secret_digest.as_ref(), |out, digest| {
            out.raw(digest.expose());
        })
        .u8(client.first_party.into())
        .names(&client.scope)
        .names(&client.audience)
        .uint(client.grants.len() as u64);
    for grant in &client.grants {
        out.u8(grant.right as u8)
            .option(grant.audience.as_deref(), |out, limit| {
                out.text(limit);
            })
            .option(grant.client.as_ref(), |out, limit| {
                out.text(limit.as_str());
            })
            .option(grant.subject.as_ref(), |out, limit| {
                out.text(limit.as_str());
            });
    }
    out.uint(client.certificate_names.len() as u64);
    for name in &client.certificate_names {
        out.text(name);
    }
    out.span(client.lifetimes.access)
        .span(client.lifetimes.idle)
        .span(client.lifetimes.absolute)
        .span(client.lifetimes.retry_window)
        .u8(matches!(client.reuse_detection, ReuseDetection::Report).into())
        .u8(client.disabled.into())
        .time(client.created_at)
        .take()
}

/// Reads what [`write_client`] wrote.
///
/// # Errors
/// [`StoreError::Corrupt`](crate::store::StoreError::Corrupt) for anything else.
pub fn read_client(id: ClientId, bytes: &[u8]) -> Read<Client> {
    let mut r = Reader::new(bytes, V1, "client")?;
    let display_name = r.text()?.into();
    let kind = if r.bool()? { ClientType::Public } else { ClientType::Confidential };
    let secret_digest = r.option(|r| Ok(SecretBytes::new(r.array()?)))?;
    let first_party = r.bool()?;
    let (scope, audience) = (r.names()?, r.names()?);
    let mut grants = Vec::new();
    for _ in 0..r.uint()? {
        grants.push(Grant {
            right: Right::from_number(r.u8()?.into()).ok_or_else(|| r.corrupt())?,
            audience: r.option(|r| Ok(r.text()?.into()))?,
            client: r.option(Reader::id)?,
            subject: r.option(Reader::id)?,
        });
    }
    let mut certificate_names = Vec::new();
    for _ in 0..r.uint()? {
        certificate_names.push(r.text()?.into());
    }
    let client = Client {
        id,
        display_name,
        kind,
        secret_digest,
        first_party,
        scope,
        audience,
        grants,
        certificate_names,
        lifetimes: Lifetimes {
            access: r.span()?,
            idle: r.span()?,
            absolute: r.span()?,
            retry_window: r.span()?,
        },
        reuse_detection: if r.bool()? { ReuseDetection::Report } else { ReuseDetection::Enforce },
        disabled: r.bool()?,
        created_at: r.time()?,
    };
    r.end()?;
    Ok(client)
}
