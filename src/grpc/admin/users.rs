//! Users, and a user's own password.

use super::{Answer, Call, next, outcome, page, required};
use crate::domain::secret::SecretText;
use crate::grpc::caller::{client_proof, client_secret};
use crate::grpc::convert::{self, Fields};
use crate::grpc::identity::{device, required_client};
use crate::grpc::status;
use crate::pb::v1 as pb;
use crate::service::Service;
use crate::service::admin::users::{NewUser, PasswordChange, UserUpdate};
use crate::service::journal::Origin;

pub(super) async fn create(
    call: Call<'_>,
    message: pb::CreateUserRequest,
) -> Answer<pb::CreateUserResponse> {
    let mut fields = Fields::default();
    fields.required("username", &message.username);
    let password = Some(message.password).filter(|password| !password.is_empty());
    let new = NewUser {
        username: message.username,
        display_name: fields.text("display_name", message.display_name, 256),
        password: password.map(SecretText::new),
        scope: fields.names("scopes", &message.scopes),
    };
    let new = fields.finish(Some(new))?;
    let user = call.service.create_user(&call.caller, new, &call.origin).await?;
    Ok(pb::CreateUserResponse { user: Some(call.user(&user).await?) })
}

pub(super) async fn get(
    call: Call<'_>,
    message: pb::GetUserRequest,
) -> Answer<pb::GetUserResponse> {
    let user = match (message.subject.as_str(), message.username.as_str()) {
        (text, "") => {
            let subject = required("subject", text)?;
            call.service.user(&call.caller, &subject, &call.origin).await
        }
        ("", name) => call.service.user_by_name(&call.caller, name, &call.origin).await,
        _ => return Err(status::field("username", "must not be set together with subject")),
    };
    Ok(pb::GetUserResponse { user: Some(call.user(&user?).await?) })
}

pub(super) async fn list(
    call: Call<'_>,
    message: pb::ListUsersRequest,
) -> Answer<pb::ListUsersResponse> {
    let (limit, after) = page(message.page_size, &message.page_token)?;
    let page = call.service.list_users(&call.caller, after.as_ref(), limit, &call.origin).await?;
    Ok(pb::ListUsersResponse {
        users: page.iter().map(|(user, epoch)| convert::admin::to_user(user, *epoch)).collect(),
        next_page_token: next(&page, limit, |(user, _)| user.subject.to_string()),
    })
}

pub(super) async fn update(
    call: Call<'_>,
    message: pb::UpdateUserRequest,
) -> Answer<pb::UpdateUserResponse> {
    let mut fields = Fields::default();
    let subject = fields.parse("subject", &message.subject);
    let update = UserUpdate {
        username: message.username,
        display_name: message.display_name.map(|name| fields.text("display_name", name, 256)),
        scope: message.scopes.map(|list| fields.names("scopes", &list.scopes)),
    };
    let subject = fields.finish(subject)?;
    let (user, entry) =
        call.service.update_user(&call.caller, subject, update, &call.origin).await?;
    let (cursor, revoked) = outcome(call.service, entry.as_ref());
    Ok(pb::UpdateUserResponse { user: Some(call.user(&user).await?), cursor, revoked })
}

pub(super) async fn set_password(
    call: Call<'_>,
    message: pb::SetUserPasswordRequest,
) -> Answer<pb::SetUserPasswordResponse> {
    let mut fields = Fields::default();
    let subject = fields.parse("subject", &message.subject);
    fields.required("password", &message.password);
    let subject = fields.finish(subject)?;
    let password = SecretText::new(message.password);
    let (_, entry) =
        call.service.set_password(&call.caller, subject, password, &call.origin).await?;
    let (cursor, revoked) = outcome(call.service, entry.as_ref());
    Ok(pb::SetUserPasswordResponse { cursor, revoked })
}

/// For whoever knows the present password, from a first-party client: no right is needed.
pub(super) async fn change_password(
    service: &Service,
    origin: Origin,
    message: pb::ChangePasswordRequest,
) -> Answer<pb::ChangePasswordResponse> {
    let client = required_client(message.client)?;
    let secret = client_secret(&client);
    let mut fields = Fields::default();
    fields.required("username", &message.username);
    fields.required("password", &message.password);
    fields.required("new_password", &message.new_password);
    let change = PasswordChange {
        client: client_proof(&client, secret.as_ref(), &origin),
        username: message.username,
        password: SecretText::new(message.password),
        new_password: SecretText::new(message.new_password),
        device: device(&mut fields, message.device),
    };
    let change = fields.finish(Some(change))?;
    let entry = service.change_password(change, &origin).await?;
    let (cursor, revoked) = outcome(service, entry.as_ref());
    Ok(pb::ChangePasswordResponse { cursor, revoked })
}

pub(super) async fn disable(
    call: Call<'_>,
    message: pb::DisableUserRequest,
) -> Answer<pb::DisableUserResponse> {
    let subject = required("subject", &message.subject)?;
    let (user, entry) =
        call.service.set_user_disabled(&call.caller, subject, true, &call.origin).await?;
    let (cursor, revoked) = outcome(call.service, entry.as_ref());
    Ok(pb::DisableUserResponse { user: Some(call.user(&user).await?), cursor, revoked })
}

pub(super) async fn enable(
    call: Call<'_>,
    message: pb::EnableUserRequest,
) -> Answer<pb::EnableUserResponse> {
    let subject = required("subject", &message.subject)?;
    let (user, _) =
        call.service.set_user_disabled(&call.caller, subject, false, &call.origin).await?;
    Ok(pb::EnableUserResponse { user: Some(call.user(&user).await?) })
}

pub(super) async fn delete(
    call: Call<'_>,
    message: pb::DeleteUserRequest,
) -> Answer<pb::DeleteUserResponse> {
    let subject = required("subject", &message.subject)?;
    let entry = call.service.delete_user(&call.caller, subject, &call.origin).await?;
    let (cursor, revoked) = outcome(call.service, entry.as_ref());
    Ok(pb::DeleteUserResponse { cursor, revoked })
}
