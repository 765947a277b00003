//! Signing keys.

use super::{Answer, Call, outcome, required};
use crate::domain::event::Reason;
use crate::domain::ids::KeyId;
use crate::grpc::convert::{Fields, token};
use crate::grpc::status;
use crate::pb::v1 as pb;

pub(super) async fn create(
    call: Call<'_>,
    message: pb::CreateKeyRequest,
) -> Answer<pb::CreateKeyResponse> {
    let mut fields = Fields::default();
    let algorithm = fields.parse_optional("algorithm", &message.algorithm);
    fields.finish(Some(()))?;
    let key = call.service.create_key(&call.caller, algorithm, &call.origin).await?;
    Ok(pb::CreateKeyResponse { key: Some(token::to_key(&key)) })
}

pub(super) async fn get(call: Call<'_>, message: pb::GetKeyRequest) -> Answer<pb::GetKeyResponse> {
    let id: KeyId = required("kid", &message.kid)?;
    let keys = call.service.list_keys(&call.caller, &call.origin).await?;
    let key = keys.iter().find(|key| key.id == id).ok_or_else(status::not_found)?;
    Ok(pb::GetKeyResponse { key: Some(token::to_key(key)) })
}

pub(super) async fn list(call: Call<'_>, _: pb::ListKeysRequest) -> Answer<pb::ListKeysResponse> {
    let keys = call.service.list_keys(&call.caller, &call.origin).await?;
    Ok(pb::ListKeysResponse { keys: keys.iter().map(token::to_key).collect() })
}

pub(super) async fn rotate(
    call: Call<'_>,
    _: pb::RotateKeyRequest,
) -> Answer<pb::RotateKeyResponse> {
    let key = call.service.rotate_key(&call.caller, &call.origin).await?;
    Ok(pb::RotateKeyResponse { key: Some(token::to_key(&key)) })
}

pub(super) async fn revoke(
    call: Call<'_>,
    message: pb::RevokeKeyRequest,
) -> Answer<pb::RevokeKeyResponse> {
    let mut fields = Fields::default();
    let id = fields.parse("kid", &message.kid);
    let reason = fields.number("reason", message.reason, Reason::from_number);
    let id = fields.finish(id)?;
    let reason = reason.unwrap_or(Reason::KeyCompromised);
    let (key, entry) = call.service.revoke_key(&call.caller, &id, reason, &call.origin).await?;
    let (cursor, revoked) = outcome(call.service, entry.as_ref());
    Ok(pb::RevokeKeyResponse { key: Some(token::to_key(&key)), cursor, revoked })
}
