//! What the API's messages look like: JSON with the names of the protos, times in RFC 3339, values
//! of enumerations as words. No secret but where the function's name says so.

use prost_types::Timestamp as ProtoTime;
use serde_json::{Value, json};

use super::args::word;
use crate::domain::clock::Timestamp;
use crate::pb::v1::revocation::Target;
use crate::pb::v1::{
    Client, ClientType, Cursor, Grant, InitiatingEntity, IntrospectResponse, Key, KeyState,
    ReuseDetection, Revocation, RevocationReason, Right, Session, SessionState, TokenSet, User,
    WaitResult,
};

/// Milliseconds since the Unix epoch.
pub(super) fn millis(time: &ProtoTime) -> u64 {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(u64::try_from(time.nanos).unwrap_or(0) / 1_000_000)
}

pub(super) fn time(time: Option<&ProtoTime>) -> Value {
    time.map_or(Value::Null, |time| Timestamp::from_millis(millis(time)).to_string().into())
}

fn seconds(duration: Option<&prost_types::Duration>) -> Value {
    duration.map_or(Value::Null, |duration| format!("{}s", duration.seconds).into())
}

/// Text, or nothing when it is empty.
fn text(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { text.into() }
}

macro_rules! words {
    ($($name:ident: $kind:ty, $prefix:literal;)+) => {$(
        pub(super) fn $name(number: i32) -> Value {
            match <$kind>::try_from(number) {
                Ok(_) if number == 0 => Value::Null,
                Ok(value) => word(value.as_str_name(), $prefix).into(),
                Err(_) => number.into(),
            }
        }
    )+};
}

words! {
    reason: RevocationReason, "REVOCATION_REASON_";
    initiator: InitiatingEntity, "INITIATING_ENTITY_";
    client_type: ClientType, "CLIENT_TYPE_";
    reuse_detection: ReuseDetection, "REUSE_DETECTION_";
    right: Right, "RIGHT_";
    session_state: SessionState, "SESSION_STATE_";
    key_state: KeyState, "KEY_STATE_";
}

/// Tokens without the tokens.
pub(super) fn tokens(set: &TokenSet) -> Value {
    json!({
        "subject": text(&set.subject),
        "session_id": text(&set.session_id),
        "scopes": set.scopes,
        "audiences": set.audiences,
        "access_token_expire_time": time(set.access_token_expire_time.as_ref()),
        "refresh_token_expire_time": time(set.refresh_token_expire_time.as_ref()),
        "session_expire_time": time(set.session_expire_time.as_ref()),
    })
}

/// Tokens with the tokens, for a private file and for whoever asked for them.
pub(super) fn tokens_with_secrets(set: &TokenSet) -> Value {
    let mut value = tokens(set);
    value["token_type"] = text(&set.token_type);
    value["access_token"] = text(&set.access_token);
    value["refresh_token"] = text(&set.refresh_token);
    value["expires_in_seconds"] = set.expires_in_seconds.into();
    value
}

pub(super) fn introspection(answer: &IntrospectResponse) -> Value {
    if !answer.active {
        return json!({ "active": false });
    }
    json!({
        "active": true,
        "token_type": text(&answer.token_type),
        "issuer": text(&answer.issuer),
        "subject": text(&answer.subject),
        "audiences": answer.audiences,
        "client_id": text(&answer.client_id),
        "scope": text(&answer.scope),
        "expire_time": time(answer.expire_time.as_ref()),
        "issue_time": time(answer.issue_time.as_ref()),
        "not_before_time": time(answer.not_before_time.as_ref()),
        "token_id": text(&answer.token_id),
        "session_id": text(&answer.session_id),
        "authentication_time": time(answer.authentication_time.as_ref()),
        "authentication_methods": answer.authentication_methods,
    })
}

pub(super) fn cursor(cursor: Option<&Cursor>) -> Value {
    cursor.map_or(
        Value::Null,
        |cursor| json!({ "log_id": cursor.log_id, "revision": cursor.revision }),
    )
}

/// One revocation, its target laid flat.
pub(super) fn revocation(event: &Revocation) -> Value {
    let mut value = json!({
        "revision": event.revision,
        "reason": reason(event.reason),
        "initiating_entity": initiator(event.initiating_entity),
        "event_time": time(event.event_time.as_ref()),
        "expire_time": time(event.expire_time.as_ref()),
        "cutoff_time": time(event.cutoff_time.as_ref()),
    });
    let (level, fields): (&str, Vec<(&str, Value)>) = match &event.target {
        Some(Target::Token(target)) => (
            "token",
            vec![
                ("token_id", text(&target.token_id)),
                ("client_id", text(&target.client_id)),
                ("audiences", json!(target.audiences)),
            ],
        ),
        Some(Target::Session(target)) => (
            "session",
            vec![
                ("session_id", text(&target.session_id)),
                ("subject", text(&target.subject)),
                ("client_id", text(&target.client_id)),
                ("audiences", json!(target.audiences)),
            ],
        ),
        Some(Target::Subject(target)) => {
            ("subject", vec![("subject", text(&target.subject)), ("epoch", target.epoch.into())])
        }
        Some(Target::Client(target)) => {
            ("client", vec![("client_id", text(&target.client_id)), ("epoch", target.epoch.into())])
        }
        Some(Target::Everything(target)) => ("everything", vec![("epoch", target.epoch.into())]),
        Some(Target::Key(target)) => ("key", vec![("kid", text(&target.kid))]),
        None => ("unknown", Vec::new()),
    };
    value["level"] = level.into();
    for (name, field) in fields {
        value[name] = field;
    }
    value
}

/// What was revoked by a change, if anything.
pub(super) fn change(position: Option<&Cursor>, revoked: Option<&Revocation>) -> Value {
    json!({ "revoked": revoked.map(revocation), "cursor": cursor(position) })
}

pub(super) fn wait_result(result: &WaitResult) -> Value {
    json!({
        "watchers_connected": result.watchers_connected,
        "watchers_applied": result.watchers_applied,
        "complete": result.complete,
    })
}

pub(super) fn session(session: &Session) -> Value {
    let device = session.device.as_ref().map(|device| {
        json!({
            "device_id": text(&device.device_id),
            "device_name": text(&device.device_name),
            "user_agent": text(&device.user_agent),
            "end_user_address": text(&device.end_user_address),
        })
    });
    json!({
        "session_id": session.session_id,
        "subject": session.subject,
        "client_id": session.client_id,
        "state": session_state(session.state),
        "scopes": session.scopes,
        "audiences": session.audiences,
        "device": device,
        "create_time": time(session.create_time.as_ref()),
        "refresh_time": time(session.refresh_time.as_ref()),
        "idle_expire_time": time(session.idle_expire_time.as_ref()),
        "expire_time": time(session.expire_time.as_ref()),
        "generation": session.generation,
        "revocation_reason": reason(session.revocation_reason),
        "revoke_time": time(session.revoke_time.as_ref()),
    })
}

pub(super) fn user(user: &User) -> Value {
    json!({
        "subject": user.subject,
        "username": user.username,
        "display_name": text(&user.display_name),
        "scopes": user.scopes,
        "disabled": user.disabled,
        "has_password": user.has_password,
        "create_time": time(user.create_time.as_ref()),
        "password_change_time": time(user.password_change_time.as_ref()),
        "epoch": user.epoch,
    })
}

fn grant(grant: &Grant) -> Value {
    json!({
        "right": right(grant.right),
        "audience": text(&grant.audience),
        "client_id": text(&grant.client_id),
        "subject": text(&grant.subject),
    })
}

pub(super) fn client(client: &Client) -> Value {
    json!({
        "client_id": client.client_id,
        "display_name": text(&client.display_name),
        "type": client_type(client.r#type),
        "first_party": client.first_party,
        "scopes": client.scopes,
        "audiences": client.audiences,
        "grants": client.grants.iter().map(grant).collect::<Vec<_>>(),
        "certificate_names": client.certificate_names,
        "access_token_lifetime": seconds(client.access_token_lifetime.as_ref()),
        "session_idle_lifetime": seconds(client.session_idle_lifetime.as_ref()),
        "session_absolute_lifetime": seconds(client.session_absolute_lifetime.as_ref()),
        "retry_window": seconds(client.retry_window.as_ref()),
        "reuse_detection": reuse_detection(client.reuse_detection),
        "disabled": client.disabled,
        "create_time": time(client.create_time.as_ref()),
        "epoch": client.epoch,
    })
}

pub(super) fn key(key: &Key) -> Value {
    let public = key.public_key.clone().unwrap_or_default();
    json!({
        "kid": public.kid,
        "alg": public.alg,
        "state": key_state(public.state),
        "create_time": time(key.create_time.as_ref()),
        "activate_time": time(public.activate_time.as_ref()),
        "retire_time": time(key.retire_time.as_ref()),
        "remove_time": time(key.remove_time.as_ref()),
        "revoke_time": time(key.revoke_time.as_ref()),
    })
}
