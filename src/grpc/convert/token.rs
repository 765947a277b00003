//! Credentials, devices, cursors, tokens, sessions.

use super::fields::{Fields, duration, time};
use crate::domain::clock::Timestamp;
use crate::domain::ids::{Cursor, Revision};
use crate::domain::key::{KeyRecord, KeyState, PublicKey};
use crate::domain::secret::SecretText;
use crate::domain::session::{Device, Session, SessionState};
use crate::pb::v1 as pb;
use crate::service::Tokens;
use crate::service::introspect::Answer;
use crate::verified::VerifiedToken;

/// The longest token that is looked at.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// A cursor from the wire.
pub fn cursor(fields: &mut Fields, name: &str, cursor: Option<pb::Cursor>) -> Option<Cursor> {
    let cursor = cursor?;
    let log_id = fields.parse(&format!("{name}.log_id"), &cursor.log_id)?;
    Some(Cursor { log_id, revision: Revision(cursor.revision) })
}

/// A cursor for the wire.
pub fn to_cursor(cursor: Cursor) -> pb::Cursor {
    pb::Cursor { log_id: cursor.log_id.to_string(), revision: cursor.revision.0 }
}

/// A device from the wire.
pub fn device(fields: &mut Fields, device: pb::Device) -> Device {
    if !device.end_user_address.is_empty()
        && device.end_user_address.parse::<std::net::IpAddr>().is_err()
    {
        fields.wrong("device.end_user_address", "must be an IP address without a port");
    }
    Device {
        id: fields.text("device.device_id", device.device_id, 256),
        name: fields.text("device.device_name", device.device_name, 256),
        user_agent: fields.text("device.user_agent", device.user_agent, 1024),
        address: device.end_user_address.into(),
    }
}

/// A token from the wire: there, and not too long. Whether it is one is for the service to say.
pub fn token(fields: &mut Fields, name: &str, token: String) -> SecretText {
    fields.required(name, &token);
    if token.len() > MAX_TOKEN_BYTES {
        fields.wrong(name, format!("must be at most {MAX_TOKEN_BYTES} bytes"));
    }
    SecretText::new(token)
}

/// Tokens for the wire.
pub fn to_token_set(tokens: Tokens) -> pb::TokenSet {
    let Tokens { access, claims, refresh, expires_in } = tokens;
    let (refresh_token, refresh_at, session_at) = match refresh {
        None => (String::new(), None, None),
        Some(refresh) => (
            refresh.token.into_exposed(),
            Some(time(refresh.expires_at)),
            Some(time(refresh.session_expires_at)),
        ),
    };
    pb::TokenSet {
        access_token: access.into_exposed(),
        token_type: "Bearer".to_owned(),
        access_token_expire_time: Some(time(claims.expires_at)),
        expires_in_seconds: u32::try_from(expires_in.as_secs()).unwrap_or(u32::MAX),
        refresh_token,
        refresh_token_expire_time: refresh_at,
        session_expire_time: session_at,
        session_id: claims.session.map(|id| id.to_string()).unwrap_or_default(),
        scopes: texts(claims.scope.iter()),
        audiences: texts(claims.audience.iter()),
        subject: claims.subject.to_string(),
    }
}

/// Texts for the wire.
pub fn texts<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    names.map(str::to_owned).collect()
}

/// What Introspect answers (RFC 7662 section 2.2): `active: false` and nothing else, or all of it.
pub fn to_introspection(answer: Answer) -> pb::IntrospectResponse {
    match answer {
        Answer::Inactive => pb::IntrospectResponse::default(),
        Answer::Access(token) => access_introspection(&token),
        Answer::Refresh(session) => refresh_introspection(&session),
    }
}

fn access_introspection(token: &VerifiedToken) -> pb::IntrospectResponse {
    let claims = &token.claims;
    pb::IntrospectResponse {
        active: true,
        token_type: "access_token".to_owned(),
        issuer: claims.issuer.to_string(),
        subject: claims.subject.to_string(),
        audiences: texts(claims.audience.iter()),
        client_id: claims.client.to_string(),
        scope: claims.scope.to_string(),
        expire_time: Some(time(claims.expires_at)),
        issue_time: Some(time(claims.issued_at)),
        not_before_time: Some(time(claims.not_before)),
        token_id: claims.token_id.to_string(),
        session_id: claims.session.map(|id| id.to_string()).unwrap_or_default(),
        authentication_time: claims.authenticated_at.map(time),
        authentication_methods: texts(claims.methods.iter()),
    }
}

fn refresh_introspection(session: &Session) -> pb::IntrospectResponse {
    pb::IntrospectResponse {
        active: true,
        token_type: "refresh_token".to_owned(),
        subject: session.subject.to_string(),
        audiences: texts(session.audience.iter()),
        client_id: session.client.to_string(),
        scope: session.scope.to_string(),
        expire_time: Some(time(session.ends_at())),
        issue_time: Some(time(session.rotated_at)),
        session_id: session.id.to_string(),
        authentication_time: Some(time(session.created_at)),
        authentication_methods: texts(session.methods.iter()),
        ..pb::IntrospectResponse::default()
    }
}

/// A session for the wire.
pub fn to_session(session: &Session, state: SessionState) -> pb::Session {
    let state = match state {
        SessionState::Active => pb::SessionState::Active,
        SessionState::Revoked => pb::SessionState::Revoked,
        SessionState::Expired => pb::SessionState::Expired,
    };
    pb::Session {
        session_id: session.id.to_string(),
        subject: session.subject.to_string(),
        client_id: session.client.to_string(),
        scopes: texts(session.scope.iter()),
        audiences: texts(session.audience.iter()),
        device: Some(pb::Device {
            device_id: session.device.id.to_string(),
            device_name: session.device.name.to_string(),
            user_agent: session.device.user_agent.to_string(),
            end_user_address: session.device.address.to_string(),
        }),
        create_time: Some(time(session.created_at)),
        refresh_time: Some(time(session.rotated_at)),
        idle_expire_time: Some(time(session.idle_expires_at)),
        expire_time: Some(time(session.expires_at)),
        generation: session.generation.0,
        state: state.into(),
        revocation_reason: session.revoked.map_or(0, |revoked| revoked.cause.reason as i32),
        revoke_time: session.revoked.map(|revoked| time(revoked.at)),
    }
}

/// The public half of a key for the wire.
pub fn to_jwk(record: &KeyRecord) -> pb::JsonWebKey {
    let state = match record.state {
        KeyState::Announced => pb::KeyState::Announced,
        KeyState::Active => pb::KeyState::Active,
        KeyState::Retired => pb::KeyState::Retired,
        KeyState::Revoked => pb::KeyState::Revoked,
    };
    let mut jwk = pb::JsonWebKey {
        kid: record.id.to_string(),
        alg: record.algorithm.as_str().to_owned(),
        state: state.into(),
        activate_time: Some(time(record.activate_at)),
        ..pb::JsonWebKey::default()
    };
    match &record.public {
        PublicKey::P256 { x, y } => {
            (jwk.kty, jwk.crv) = ("EC".to_owned(), "P-256".to_owned());
            (jwk.x, jwk.y) = (x.to_string(), y.to_string());
        }
        PublicKey::Ed25519 { x } => {
            (jwk.kty, jwk.crv) = ("OKP".to_owned(), "Ed25519".to_owned());
            jwk.x = x.to_string();
        }
        PublicKey::Rsa { n, e } => {
            jwk.kty = "RSA".to_owned();
            (jwk.n, jwk.e) = (n.to_string(), e.to_string());
        }
    }
    jwk
}

/// A key for the wire.
pub fn to_key(record: &KeyRecord) -> pb::Key {
    pb::Key {
        public_key: Some(to_jwk(record)),
        create_time: Some(time(record.created_at)),
        retire_time: record.retired_at.map(time),
        remove_time: record.remove_at.map(time),
        revoke_time: record.revoked_at.map(time),
    }
}

/// A moment that may not have come.
pub fn to_time(at: Option<Timestamp>) -> Option<prost_types::Timestamp> {
    at.map(time)
}

/// A duration for the wire.
pub fn to_duration(span: std::time::Duration) -> Option<prost_types::Duration> {
    Some(duration(span))
}
