//! `AdminService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::caller::{Callers, client_proof, client_secret};
use super::convert::{Fields, admin as convert, revocation, token};
use super::identity::{device, required_client};
use super::status;
use crate::domain::caller::Caller;
use crate::domain::client::{Client, Lifetimes};
use crate::domain::event::{Entry, Reason};
use crate::domain::ids::{ClientId, Cursor, KeyId, SubjectId};
use crate::domain::secret::SecretText;
use crate::domain::user::User;
use crate::pb::v1 as pb;
use crate::service::Service;
use crate::service::admin::users::{NewUser, PasswordChange, UserUpdate};
use crate::service::journal::Origin;

/// Serves `AdminService`.
pub struct Admin {
    service: Arc<Service>,
    callers: Arc<Callers>,
    lifetimes: Lifetimes,
}

/// What every method starts from.
struct Call<T> {
    caller: Caller,
    origin: Origin,
    message: T,
}

type Answer<T> = Result<Response<T>, Status>;

impl Admin {
    /// Over this service. `lifetimes` stand for those that a registration does not set.
    pub const fn new(service: Arc<Service>, callers: Arc<Callers>, lifetimes: Lifetimes) -> Self {
        Self { service, callers, lifetimes }
    }

    fn call<T>(&self, request: Request<T>) -> Result<Call<T>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let origin = self.callers.origin(&extensions);
        let caller = self.callers.known(&metadata, &extensions)?.caller;
        // Before the fields are looked at, so that they tell nothing to whoever may not ask.
        self.service.may_administer(&caller, "administer", &origin).map_err(status::admin)?;
        Ok(Call { caller, origin, message })
    }

    fn user(&self, user: &User) -> Result<Option<pb::User>, Status> {
        let epoch = self.service.subject_epoch(&user.subject).map_err(status::store)?;
        Ok(Some(convert::to_user(user, epoch)))
    }

    fn client(&self, client: &Client) -> Result<Option<pb::Client>, Status> {
        let epoch = self.service.client_epoch(&client.id).map_err(status::store)?;
        Ok(Some(convert::to_client(client, epoch)))
    }

    /// Where the log stands after a change.
    fn cursor(&self, entry: Option<&Entry>) -> Option<pb::Cursor> {
        let head = self.service.store().head();
        let revision = entry.map_or(head.revision, |entry| entry.revision);
        Some(token::to_cursor(Cursor { revision, ..head }))
    }
}

fn revoked(entry: Option<&Entry>) -> Option<pb::Revocation> {
    entry.and_then(revocation::entry)
}

fn subject(text: &str) -> Result<SubjectId, Status> {
    let mut fields = Fields::default();
    let subject = fields.parse("subject", text);
    Ok(fields.finish(subject)?)
}

fn client_id(text: &str) -> Result<ClientId, Status> {
    let mut fields = Fields::default();
    let id = fields.parse("client_id", text);
    Ok(fields.finish(id)?)
}

fn key_id(text: &str) -> Result<KeyId, Status> {
    let mut fields = Fields::default();
    let id = fields.parse("kid", text);
    Ok(fields.finish(id)?)
}

/// The token of the page after `page`, which is full if there is one.
fn next<T>(page: &[T], limit: usize, id: impl Fn(&T) -> String) -> String {
    if page.len() < limit { String::new() } else { page.last().map(id).unwrap_or_default() }
}

#[tonic::async_trait]
impl pb::admin_service_server::AdminService for Admin {
    async fn create_user(
        &self,
        request: Request<pb::CreateUserRequest>,
    ) -> Answer<pb::CreateUserResponse> {
        let Call { caller, origin, message } = self.call(request)?;
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
        let user = self.service.create_user(&caller, new, &origin).await.map_err(status::admin)?;
        Ok(Response::new(pb::CreateUserResponse { user: self.user(&user)? }))
    }

    async fn get_user(&self, request: Request<pb::GetUserRequest>) -> Answer<pb::GetUserResponse> {
        let Call { caller, origin, message } = self.call(request)?;
        let user = match (message.subject.as_str(), message.username.as_str()) {
            (text, "") => self.service.user(&caller, &subject(text)?, &origin),
            ("", name) => self.service.user_by_name(&caller, name, &origin),
            _ => {
                let mut fields = Fields::default();
                fields.wrong("username", "must not be set together with subject");
                return Err(fields.finish::<()>(None).err().unwrap_or_default().into());
            }
        };
        let user = user.map_err(status::admin)?;
        Ok(Response::new(pb::GetUserResponse { user: self.user(&user)? }))
    }

    async fn list_users(
        &self,
        request: Request<pb::ListUsersRequest>,
    ) -> Answer<pb::ListUsersResponse> {
        let Call { caller, origin, message } = self.call(request)?;
        let mut fields = Fields::default();
        let limit = fields.page_size("page_size", message.page_size);
        let after = fields.parse_optional("page_token", &message.page_token);
        fields.finish(Some(()))?;
        let page = self
            .service
            .list_users(&caller, after.as_ref(), limit, &origin)
            .map_err(status::admin)?;
        let users = page.iter().map(|user| self.user(user));
        Ok(Response::new(pb::ListUsersResponse {
            users: users.filter_map(Result::transpose).collect::<Result<_, _>>()?,
            next_page_token: next(&page, limit, |user| user.subject.to_string()),
        }))
    }

    async fn update_user(
        &self,
        request: Request<pb::UpdateUserRequest>,
    ) -> Answer<pb::UpdateUserResponse> {
        let Call { caller, origin, message } = self.call(request)?;
        let mut fields = Fields::default();
        let subject = fields.parse("subject", &message.subject);
        let update = UserUpdate {
            username: message.username,
            display_name: message.display_name.map(|name| fields.text("display_name", name, 256)),
            scope: message.scopes.map(|list| fields.names("scopes", &list.scopes)),
        };
        let subject = fields.finish(subject)?;
        let (user, entry) = self
            .service
            .update_user(&caller, subject, update, &origin)
            .await
            .map_err(status::admin)?;
        Ok(Response::new(pb::UpdateUserResponse {
            user: self.user(&user)?,
            cursor: self.cursor(entry.as_ref()),
            revoked: revoked(entry.as_ref()),
        }))
    }

    async fn set_user_password(
        &self,
        request: Request<pb::SetUserPasswordRequest>,
    ) -> Answer<pb::SetUserPasswordResponse> {
        let Call { caller, origin, message } = self.call(request)?;
        let mut fields = Fields::default();
        let subject = fields.parse("subject", &message.subject);
        fields.required("password", &message.password);
        let subject = fields.finish(subject)?;
        let password = SecretText::new(message.password);
        let (_, entry) = self
            .service
            .set_password(&caller, subject, password, &origin)
            .await
            .map_err(status::admin)?;
        Ok(Response::new(pb::SetUserPasswordResponse {
            cursor: self.cursor(entry.as_ref()),
            revoked: revoked(entry.as_ref()),
        }))
    }

    async fn change_password(
        &self,
        request: Request<pb::ChangePasswordRequest>,
    ) -> Answer<pb::ChangePasswordResponse> {
        let origin = self.callers.origin(request.extensions());
        let message = request.into_inner();
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
        let entry = self.service.change_password(change, &origin).await.map_err(status::admin)?;
        Ok(Response::new(pb::ChangePasswordResponse {
            cursor: self.cursor(entry.as_ref()),
            revoked: revoked(entry.as_ref()),
        }))
    }

    async fn disable_user(
        &self,
        request: Request<pb::DisableUserRequest>,
    ) -> Answer<pb::DisableUserResponse> {
        let Call { caller, origin, message } = self.call(request)?;
        let subject = subject(&message.subject)?;
        let (user, entry) = self
            .service
            .set_user_disabled(&caller, subject, true, &origin)
            .await
            .map_err(status::admin)?;
        Ok(Response::new(pb::DisableUserResponse {
            user: self.user(&user)?,
            cursor: self.cursor(entry.as_ref()),
            revoked: revoked(entry.as_ref()),
        }))
    }

    async fn enable_user(
        &self,
        request: Request<pb::EnableUserRequest>,
    ) -> Answer<pb::EnableUserResponse> {
        let Call { caller, origin, message } = self.call(request)?;
        let subject = subject(&message.subject)?;
        let (user, _) = self
            .service
            .set_user_disabled(&caller, subject, false, &origin)
            .await
            .map_err(status::admin)?;
        Ok(Response::new(pb::EnableUserResponse { user: self.user(&user)? }))
    }

    async fn delete_user(
        &self,
        request: Request<pb::DeleteUserRequest>,
    ) -> Answer<pb::DeleteUserResponse> {
        let Call { caller, origin, message } = self.call(request)?;
        let subject = subject(&message.subject)?;
        let entry =
            self.service.delete_user(&caller, subject, &origin).await.map_err(status::admin)?;
        Ok(Response::new(pb::DeleteUserResponse {
            cursor: self.cursor(entry.as_ref()),
            revoked: revoked(entry.as_ref()),
        }))
    }

    async fn create_client(
        &self,
        request: Request<pb::CreateClientRequest>,
    ) -> Answer<pb::CreateClientResponse> {
        let Call { caller, origin, message } = self.call(request)?;
        let id = self.service.new_client_id().map_err(status::admin)?;
        let mut fields = Fields::default();
        let client = convert::client(
            &mut fields,
            message.client.unwrap_or_default(),
            Some(id),
            &self.lifetimes,
        );
        let client = fields.finish(client)?;
        let (client, secret) =
            self.service.create_client(&caller, client, &origin).await.map_err(status::admin)?;
        Ok(Response::new(pb::CreateClientResponse {
            client: self.client(&client)?,
            client_secret: secret.map(SecretText::into_exposed).unwrap_or_default(),
        }))
    }

    async fn get_client(
        &self,
        request: Request<pb::GetClientRequest>,
    ) -> Answer<pb::GetClientResponse> {
        let Call { caller, origin, message } = self.call(request)?;
        let id = client_id(&message.client_id)?;
        let client = self.service.client(&caller, &id, &origin).map_err(status::admin)?;
        Ok(Response::new(pb::GetClientResponse { client: self.client(&client)? }))
    }

    async fn list_clients(
        &self,
        request: Request<pb::ListClientsRequest>,
    ) -> Answer<pb::ListClientsResponse> {
        let Call { caller, origin, message } = self.call(request)?;
        let mut fields = Fields::default();
        let limit = fields.page_size("page_size", message.page_size);
        let after = fields.parse_optional("page_token", &message.page_token);
        fields.finish(Some(()))?;
        let page = self
            .service
            .list_clients(&caller, after.as_ref(), limit, &origin)
            .map_err(status::admin)?;
        let clients = page.iter().map(|client| self.client(client));
        Ok(Response::new(pb::ListClientsResponse {
            clients: clients.filter_map(Result::transpose).collect::<Result<_, _>>()?,
            next_page_token: next(&page, limit, |client| client.id.to_string()),
        }))
    }

    async fn update_client(
        &self,
        request: Request<pb::UpdateClientRequest>,
    ) -> Answer<pb::UpdateClientResponse> {
        let Call { caller, origin, message } = self.call(request)?;
        let mut fields = Fields::default();
        let message = message.client.unwrap_or_default();
        let client = convert::client(&mut fields, message, None, &self.lifetimes);
        let client = fields.finish(client)?;
        let client =
            self.service.update_client(&caller, client, &origin).await.map_err(status::admin)?;
        Ok(Response::new(pb::UpdateClientResponse { client: self.client(&client)? }))
    }

    async fn rotate_client_secret(
        &self,
        request: Request<pb::RotateClientSecretRequest>,
    ) -> Answer<pb::RotateClientSecretResponse> {
        let Call { caller, origin, message } = self.call(request)?;
        let id = client_id(&message.client_id)?;
        let (secret, entry) = self
            .service
            .rotate_client_secret(&caller, id, message.revoke_issued, &origin)
            .await
            .map_err(status::admin)?;
        Ok(Response::new(pb::RotateClientSecretResponse {
            client_secret: secret.into_exposed(),
            cursor: self.cursor(entry.as_ref()),
            revoked: revoked(entry.as_ref()),
        }))
    }

    async fn disable_client(
        &self,
        request: Request<pb::DisableClientRequest>,
    ) -> Answer<pb::DisableClientResponse> {
        let Call { caller, origin, message } = self.call(request)?;
        let id = client_id(&message.client_id)?;
        let (client, entry) = self
            .service
            .set_client_disabled(&caller, id, true, &origin)
            .await
            .map_err(status::admin)?;
        Ok(Response::new(pb::DisableClientResponse {
            client: self.client(&client)?,
            cursor: self.cursor(entry.as_ref()),
            revoked: revoked(entry.as_ref()),
        }))
    }

    async fn enable_client(
        &self,
        request: Request<pb::EnableClientRequest>,
    ) -> Answer<pb::EnableClientResponse> {
        let Call { caller, origin, message } = self.call(request)?;
        let id = client_id(&message.client_id)?;
        let (client, _) = self
            .service
            .set_client_disabled(&caller, id, false, &origin)
            .await
            .map_err(status::admin)?;
        Ok(Response::new(pb::EnableClientResponse { client: self.client(&client)? }))
    }

    async fn delete_client(
        &self,
        request: Request<pb::DeleteClientRequest>,
    ) -> Answer<pb::DeleteClientResponse> {
        let Call { caller, origin, message } = self.call(request)?;
        let id = client_id(&message.client_id)?;
        let entry =
            self.service.delete_client(&caller, id, &origin).await.map_err(status::admin)?;
        Ok(Response::new(pb::DeleteClientResponse {
            cursor: self.cursor(entry.as_ref()),
            revoked: revoked(entry.as_ref()),
        }))
    }

    async fn create_key(
        &self,
        request: Request<pb::CreateKeyRequest>,
    ) -> Answer<pb::CreateKeyResponse> {
        let Call { caller, origin, message } = self.call(request)?;
        let mut fields = Fields::default();
        let algorithm = fields.parse_optional("algorithm", &message.algorithm);
        fields.finish(Some(()))?;
        let key =
            self.service.create_key(&caller, algorithm, &origin).await.map_err(status::admin)?;
        Ok(Response::new(pb::CreateKeyResponse { key: Some(token::to_key(&key)) }))
    }

    async fn get_key(&self, request: Request<pb::GetKeyRequest>) -> Answer<pb::GetKeyResponse> {
        let Call { caller, origin, message } = self.call(request)?;
        let id = key_id(&message.kid)?;
        let keys = self.service.list_keys(&caller, &origin).map_err(status::admin)?;
        let key = keys.iter().find(|key| key.id == id).ok_or_else(status::not_found)?;
        Ok(Response::new(pb::GetKeyResponse { key: Some(token::to_key(key)) }))
    }

    async fn list_keys(
        &self,
        request: Request<pb::ListKeysRequest>,
    ) -> Answer<pb::ListKeysResponse> {
        let Call { caller, origin, message: _ } = self.call(request)?;
        let keys = self.service.list_keys(&caller, &origin).map_err(status::admin)?;
        Ok(Response::new(pb::ListKeysResponse { keys: keys.iter().map(token::to_key).collect() }))
    }

    async fn rotate_key(
        &self,
        request: Request<pb::RotateKeyRequest>,
    ) -> Answer<pb::RotateKeyResponse> {
        let Call { caller, origin, message: _ } = self.call(request)?;
        let key = self.service.rotate_key(&caller, &origin).await.map_err(status::admin)?;
        Ok(Response::new(pb::RotateKeyResponse { key: Some(token::to_key(&key)) }))
    }

    async fn revoke_key(
        &self,
        request: Request<pb::RevokeKeyRequest>,
    ) -> Answer<pb::RevokeKeyResponse> {
        let Call { caller, origin, message } = self.call(request)?;
        let mut fields = Fields::default();
        let id = fields.parse("kid", &message.kid);
        let reason = fields.number("reason", message.reason, Reason::from_number);
        let id = fields.finish(id)?;
        let reason = reason.unwrap_or(Reason::KeyCompromised);
        let (key, entry) =
            self.service.revoke_key(&caller, &id, reason, &origin).await.map_err(status::admin)?;
        Ok(Response::new(pb::RevokeKeyResponse {
            key: Some(token::to_key(&key)),
            cursor: self.cursor(entry.as_ref()),
            revoked: revoked(entry.as_ref()),
        }))
    }
}
