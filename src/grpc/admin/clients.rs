//! Clients.

use super::{Answer, Call, next, outcome, page, required};
use crate::domain::secret::SecretText;
use crate::grpc::convert::{self, Fields};
use crate::pb::v1 as pb;

pub(super) async fn create(
    call: Call<'_>,
    message: pb::CreateClientRequest,
) -> Answer<pb::CreateClientResponse> {
    let id = call.service.new_client_id()?;
    let mut fields = Fields::default();
    let message = message.client.unwrap_or_default();
    let client = convert::admin::client(&mut fields, message, Some(id), call.lifetimes);
    let client = fields.finish(client)?;
    let (client, secret) = call.service.create_client(&call.caller, client, &call.origin).await?;
    Ok(pb::CreateClientResponse {
        client: Some(call.client(&client).await?),
        client_secret: secret.map(SecretText::into_exposed).unwrap_or_default(),
    })
}

pub(super) async fn get(
    call: Call<'_>,
    message: pb::GetClientRequest,
) -> Answer<pb::GetClientResponse> {
    let id = required("client_id", &message.client_id)?;
    let client = call.service.client(&call.caller, &id, &call.origin).await?;
    Ok(pb::GetClientResponse { client: Some(call.client(&client).await?) })
}

pub(super) async fn list(
    call: Call<'_>,
    message: pb::ListClientsRequest,
) -> Answer<pb::ListClientsResponse> {
    let (limit, after) = page(message.page_size, &message.page_token)?;
    let page = call.service.list_clients(&call.caller, after.as_ref(), limit, &call.origin).await?;
    Ok(pb::ListClientsResponse {
        clients: page
            .iter()
            .map(|(client, epoch)| convert::admin::to_client(client, *epoch))
            .collect(),
        next_page_token: next(&page, limit, |(client, _)| client.id.to_string()),
    })
}

pub(super) async fn update(
    call: Call<'_>,
    message: pb::UpdateClientRequest,
) -> Answer<pb::UpdateClientResponse> {
    let mut fields = Fields::default();
    let message = message.client.unwrap_or_default();
    let client = convert::admin::client(&mut fields, message, None, call.lifetimes);
    let client = fields.finish(client)?;
    let client = call.service.update_client(&call.caller, client, &call.origin).await?;
    Ok(pb::UpdateClientResponse { client: Some(call.client(&client).await?) })
}

pub(super) async fn rotate_secret(
    call: Call<'_>,
    message: pb::RotateClientSecretRequest,
) -> Answer<pb::RotateClientSecretResponse> {
    let id = required("client_id", &message.client_id)?;
    let revoke = message.revoke_issued;
    let (secret, entry) =
        call.service.rotate_client_secret(&call.caller, id, revoke, &call.origin).await?;
    let (cursor, revoked) = outcome(call.service, entry.as_ref());
    let client_secret = secret.into_exposed();
    Ok(pb::RotateClientSecretResponse { client_secret, cursor, revoked })
}

pub(super) async fn disable(
    call: Call<'_>,
    message: pb::DisableClientRequest,
) -> Answer<pb::DisableClientResponse> {
    let id = required("client_id", &message.client_id)?;
    let (client, entry) =
        call.service.set_client_disabled(&call.caller, id, true, &call.origin).await?;
    let (cursor, revoked) = outcome(call.service, entry.as_ref());
    Ok(pb::DisableClientResponse { client: Some(call.client(&client).await?), cursor, revoked })
}

pub(super) async fn enable(
    call: Call<'_>,
    message: pb::EnableClientRequest,
) -> Answer<pb::EnableClientResponse> {
    let id = required("client_id", &message.client_id)?;
    let (client, _) =
        call.service.set_client_disabled(&call.caller, id, false, &call.origin).await?;
    Ok(pb::EnableClientResponse { client: Some(call.client(&client).await?) })
}

pub(super) async fn delete(
    call: Call<'_>,
    message: pb::DeleteClientRequest,
) -> Answer<pb::DeleteClientResponse> {
    let id = required("client_id", &message.client_id)?;
    let entry = call.service.delete_client(&call.caller, id, &call.origin).await?;
    let (cursor, revoked) = outcome(call.service, entry.as_ref());
    Ok(pb::DeleteClientResponse { cursor, revoked })
}
