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
//!
//! Integers in keys are big-endian, so that bytes sort as numbers do. Each value starts with the
//! version of its layout. `i`, `x` and `z` are index entries:
//! [`INDEX_KINDS`](crate::store::engine::INDEX_KINDS).

use std::time::Duration;

use crate::domain::caller::{Grant, Right};
use crate::domain::client::{Client, ClientType, Lifetimes, ReuseDetection};
use crate::domain::clock::Timestamp;
use crate::domain::event::{Cause, Event, Initiator, Reason, Revocation, Target};
use crate::domain::ids::{
    ClientId, Epoch, Epochs, Generation, KeyId, SessionId, SubjectId, TokenId,
};
use crate::domain::key::{
    Algorithm, KeyRecord, KeyState, MacKeyId, MacKeyRecord, MacKeyState, PublicKey,
};
use crate::domain::scope::Names;
use crate::domain::secret::{SecretBytes, SecretText};
use crate::domain::session::{Device, Revoked, Session};
use crate::domain::throttle::Attempts;
use crate::domain::user::User;
use crate::store::{Level, StoreError};

/// The version of the whole schema. An engine stores it when it is created and refuses another.
pub const SCHEMA_VERSION: u32 = 2;

/// Where the version of the key ring stands.
pub const RING_KEY: &[u8] = b"m/ring";

/// Keys by kind.
pub mod key {
    use super::*;

    fn join(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
        let mut key = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
        key.push(kind);
        for part in parts {
            key.extend_from_slice(part);
        }
        key
    }

    /// Of a session.
    pub fn session(id: SessionId) -> Vec<u8> {
        join(b's', &[id.as_bytes()])
    }

    /// Of all sessions of a subject.
    pub fn sessions_of(subject: &SubjectId) -> Vec<u8> {
        join(b'i', &[subject.as_str().as_bytes(), &[0]])
    }

    /// Of a session among those of its subject.
    pub fn session_of(session: &Session) -> Vec<u8> {
        let created = session.created_at.as_millis().to_be_bytes();
        join(b'i', &[session.subject.as_str().as_bytes(), &[0], &created, session.id.as_bytes()])
    }

    /// Of looking at a session at a moment.
    pub fn session_due(at: Timestamp, id: SessionId) -> Vec<u8> {
        join(b'x', &[&due(at), id.as_bytes()])
    }

    /// Of a user.
    pub fn user(subject: &SubjectId) -> Vec<u8> {
        join(b'u', &[subject.as_str().as_bytes()])
    }

    /// Of a name.
    pub fn username(name: &str) -> Vec<u8> {
        join(b'n', &[name.as_bytes()])
    }

    /// Of a client.
    pub fn client(id: &ClientId) -> Vec<u8> {
        join(b'c', &[id.as_str().as_bytes()])
    }

    /// Of an epoch.
    pub fn epoch(level: &Level) -> Vec<u8> {
        match level {
            Level::Everything => b"pg".to_vec(),
            Level::Client(id) => client_epoch(id),
            Level::Subject(id) => subject_epoch(id),
        }
    }

    /// Of a client's epoch.
    pub fn client_epoch(id: &ClientId) -> Vec<u8> {
        join(b'p', &[b"c", id.as_str().as_bytes()])
    }

    /// Of a subject's epoch.
    pub fn subject_epoch(id: &SubjectId) -> Vec<u8> {
        join(b'p', &[b"s", id.as_str().as_bytes()])
    }

    /// Of a revoked token.
    pub fn revoked_token(id: TokenId) -> Vec<u8> {
        join(b't', &[id.as_bytes()])
    }

    /// Of all sources that failed on an account.
    pub fn attempts_on(account: [u8; 8]) -> Vec<u8> {
        join(b'a', &[&account])
    }

    /// Of the failures of a source on an account.
    pub fn attempts(account: [u8; 8], source: [u8; 8]) -> Vec<u8> {
        join(b'a', &[&account, &source])
    }

    /// Of looking at failures at a moment.
    pub fn attempts_due(at: Timestamp, account: [u8; 8], source: [u8; 8]) -> Vec<u8> {
        join(b'z', &[&due(at), &account, &source])
    }

    /// Of a signing key.
    pub fn signing_key(id: &KeyId) -> Vec<u8> {
        join(b'k', &[id.as_str().as_bytes()])
    }

    /// Of a MAC key.
    pub fn mac_key(id: MacKeyId) -> Vec<u8> {
        join(b'h', &[&id.0.to_be_bytes()])
    }

    /// The first second by which a moment has passed, as it sorts.
    pub fn due(at: Timestamp) -> [u8; 8] {
        at.as_millis().div_ceil(1000).to_be_bytes()
    }

    /// What follows the kind and the due second in a key.
    pub fn after_due(key: &[u8]) -> Option<&[u8]> {
        key.get(9..)
    }
}

/// Writes a record.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn new(version: u8) -> Self {
        Self(vec![version])
    }

    fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    /// LEB128, so that small numbers are short.
    fn uint(&mut self, mut value: u64) -> &mut Self {
        loop {
            let low = (value & 0x7f) as u8;
            value >>= 7;
            if value == 0 {
                self.0.push(low);
                return self;
            }
            self.0.push(low | 0x80);
        }
    }

    fn time(&mut self, at: Timestamp) -> &mut Self {
        self.uint(at.as_millis())
    }

    fn span(&mut self, span: Duration) -> &mut Self {
        self.uint(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.uint(bytes.len() as u64).raw(bytes)
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    fn names(&mut self, names: &Names) -> &mut Self {
        self.uint(names.len() as u64);
        for name in names.iter() {
            self.text(name);
        }
        self
    }

    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) -> &mut Self {
        match value {
            None => self.u8(0),
            Some(value) => {
                self.u8(1);
                write(self, value);
                self
            }
        }
    }

    fn cause(&mut self, cause: Cause) -> &mut Self {
        self.u8(cause.reason as u8).u8(cause.initiator as u8)
    }

    fn epochs(&mut self, epochs: &Epochs) -> &mut Self {
        self.uint(epochs.global.0.into()).uint(epochs.client.0.into()).uint(epochs.subject.0.into())
    }

    fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

/// Reads a record. Every failure is the same: the bytes are not what was written.
struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

type Read<T> = Result<T, StoreError>;

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], version: u8, what: &'static str) -> Read<Self> {
        let mut reader = Self { rest: bytes, what };
        if reader.u8()? == version { Ok(reader) } else { Err(reader.corrupt()) }
    }

    fn corrupt(&self) -> StoreError {
        StoreError::Corrupt(format!("a {} cannot be read", self.what))
    }

    fn raw(&mut self, len: usize) -> Read<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(|| self.corrupt())?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        self.raw(N)?.try_into().map_err(|_| self.corrupt())
    }

    fn u8(&mut self) -> Read<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn uint(&mut self) -> Read<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let low = u64::from(byte & 0x7f);
            if shift == 63 && low > 1 {
                break;
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.corrupt())
    }

    fn u32(&mut self) -> Read<u32> {
        u32::try_from(self.uint()?).map_err(|_| self.corrupt())
    }

    fn time(&mut self) -> Read<Timestamp> {
        Ok(Timestamp::from_millis(self.uint()?))
    }

    fn span(&mut self) -> Read<Duration> {
        Ok(Duration::from_millis(self.uint()?))
    }

    fn bytes(&mut self) -> Read<&'a [u8]> {
        let len = usize::try_from(self.uint()?).map_err(|_| self.corrupt())?;
        self.raw(len)
    }

    fn text(&mut self) -> Read<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| self.corrupt())
    }

    fn id<T: std::str::FromStr>(&mut self) -> Read<T> {
        self.text()?.parse().map_err(|_| self.corrupt())
    }

    fn names(&mut self) -> Read<Names> {
        let len = self.uint()?;
        let mut names = Vec::new();
        for _ in 0..len {
            names.push(self.text()?);
        }
        Names::new(names).map_err(|_| self.corrupt())
    }

    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Read<T>) -> Read<Option<T>> {
        match self.u8()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(self.corrupt()),
        }
    }

    fn bool(&mut self) -> Read<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.corrupt()),
        }
    }

    fn cause(&mut self) -> Read<Cause> {
        let reason = Reason::from_number(self.u8()?.into()).ok_or_else(|| self.corrupt())?;
        let initiator = Initiator::from_number(self.u8()?.into()).ok_or_else(|| self.corrupt())?;
        Ok(Cause { reason, initiator })
    }

    fn epochs(&mut self) -> Read<Epochs> {
        Ok(Epochs {
            global: Epoch(self.u32()?),
            client: Epoch(self.u32()?),
            subject: Epoch(self.u32()?),
        })
    }

    fn end(self) -> Read<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.corrupt()) }
    }
}

const V1: u8 = 1;

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
/// [`StoreError::Corrupt`] for anything else.
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
/// [`StoreError::Corrupt`] for anything else.
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
/// [`StoreError::Corrupt`] for anything else.
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
/// [`StoreError::Corrupt`] for anything else.
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
/// [`StoreError::Corrupt`] for anything else.
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
/// [`StoreError::Corrupt`] for anything else.
pub fn read_mac_key(id: MacKeyId, bytes: &[u8]) -> Read<MacKeyRecord> {
    let mut r = Reader::new(bytes, V1, "MAC key")?;
    let state = if r.bool()? { MacKeyState::Active } else { MacKeyState::Previous };
    let record = MacKeyRecord { id, state, created_at: r.time()?, sealed: r.bytes()?.to_vec() };
    r.end()?;
    Ok(record)
}
