//! Keys by kind.

use crate::domain::clock::Timestamp;
use crate::domain::ids::{ClientId, KeyId, SessionId, SubjectId, TokenId};
use crate::domain::key::MacKeyId;
use crate::domain::session::Session;
use crate::store::Level;

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

/// Of looking at all sessions.
pub const SESSIONS_DUE: &[u8] = b"x";

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
