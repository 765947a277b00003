//! `AdminService`: which room answers which RPC, and what all of them share.

use std::str::FromStr;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::caller::Callers;
use super::convert::{Fields, admin as convert, revocation, token};
use super::status;
use crate::domain::caller::Caller;
use crate::domain::client::{Client, Lifetimes};
use crate::domain::event::Entry;
use crate::domain::ids::Cursor;
use crate::domain::user::User;
use crate::listen::peer::PeerInfo;
use crate::pb::v1 as pb;
use crate::service::Service;
use crate::service::journal::Origin;

mod backup;
mod clients;
mod keys;
mod users;

/// Serves `AdminService`.
pub struct Admin {
    service: Arc<Service>,
    callers: Arc<Callers>,
    lifetimes: Lifetimes,
}

/// A call of somebody who may administer.
struct Call<'a> {
    service: &'a Service,
    lifetimes: &'a Lifetimes,
    caller: Caller,
    origin: Origin,
}

type Answer<T> = Result<T, Status>;

impl Admin {
    /// Over this service. `lifetimes` stand for those that a registration does not set.
    pub const fn new(service: Arc<Service>, callers: Arc<Callers>, lifetimes: Lifetimes) -> Self {
        Self { service, callers, lifetimes }
    }

    async fn call<T>(&self, request: Request<T>) -> Answer<(Call<'_>, T)> {
        let (metadata, extensions, message) = request.into_parts();
        let origin = self.callers.origin(&extensions);
        let caller = self.callers.known(&metadata, &extensions).await?.caller;
        // Before the fields are looked at, so that they tell nothing to whoever may not ask.
        self.service.may_administer(&caller, "administer", &origin)?;
        let (service, lifetimes) = (&*self.service, &self.lifetimes);
        Ok((Call { service, lifetimes, caller, origin }, message))
    }
}

impl Call<'_> {
    async fn user(&self, user: &User) -> Answer<pb::User> {
        let epoch = self.service.subject_epoch(&user.subject).await.map_err(status::store)?;
        Ok(convert::to_user(user, epoch))
    }

    async fn client(&self, client: &Client) -> Answer<pb::Client> {
        let epoch = self.service.client_epoch(&client.id).await.map_err(status::store)?;
        Ok(convert::to_client(client, epoch))
    }
}

/// Where the log stands after a change, and what the change revoked.
fn outcome(
    service: &Service,
    entry: Option<&Entry>,
) -> (Option<pb::Cursor>, Option<pb::Revocation>) {
    let head = service.store().head();
    let revision = entry.map_or(head.revision, |entry| entry.revision);
    let cursor = token::to_cursor(Cursor { revision, ..head });
    (Some(cursor), entry.and_then(revocation::entry))
}

/// The one field that a request is about.
fn required<T>(field: &str, text: &str) -> Answer<T>
where
    T: FromStr<Err: ToString>,
{
    let mut fields = Fields::default();
    let value = fields.parse(field, text);
    Ok(fields.finish(value)?)
}

/// How many to list, and after which.
fn page<T>(size: i32, token: &str) -> Answer<(usize, Option<T>)>
where
    T: FromStr<Err: ToString>,
{
    let mut fields = Fields::default();
    let limit = fields.page_size("page_size", size);
    let after = fields.parse_optional("page_token", token);
    Ok(fields.finish(Some((limit, after)))?)
}

/// The token of the page after `page`, which is full if there is one.
fn next<T>(page: &[T], limit: usize, id: impl Fn(&T) -> String) -> String {
    if page.len() < limit { String::new() } else { page.last().map(id).unwrap_or_default() }
}

/// The RPCs: those of whoever may administer, each with the function that answers it, and in braces
/// those that are for others.
macro_rules! rpcs {
    (
        $($rpc:ident ($request:ident) -> $response:ident = $answer:path;)*
        { $($others:tt)* }
    ) => {
        #[tonic::async_trait]
        impl pb::admin_service_server::AdminService for Admin {
            $(
                async fn $rpc(
                    &self,
                    request: Request<pb::$request>,
                ) -> Answer<Response<pb::$response>> {
                    let (call, message) = self.call(request).await?;
                    Ok(Response::new($answer(call, message).await?))
                }
            )*
            $($others)*
        }
    };
}

rpcs! {
    create_user(CreateUserRequest) -> CreateUserResponse = users::create;
    get_user(GetUserRequest) -> GetUserResponse = users::get;
    list_users(ListUsersRequest) -> ListUsersResponse = users::list;
    update_user(UpdateUserRequest) -> UpdateUserResponse = users::update;
    set_user_password(SetUserPasswordRequest) -> SetUserPasswordResponse = users::set_password;
    disable_user(DisableUserRequest) -> DisableUserResponse = users::disable;
    enable_user(EnableUserRequest) -> EnableUserResponse = users::enable;
    delete_user(DeleteUserRequest) -> DeleteUserResponse = users::delete;
    create_client(CreateClientRequest) -> CreateClientResponse = clients::create;
    get_client(GetClientRequest) -> GetClientResponse = clients::get;
    list_clients(ListClientsRequest) -> ListClientsResponse = clients::list;
    update_client(UpdateClientRequest) -> UpdateClientResponse = clients::update;
    rotate_client_secret(RotateClientSecretRequest) -> RotateClientSecretResponse
        = clients::rotate_secret;
    disable_client(DisableClientRequest) -> DisableClientResponse = clients::disable;
    enable_client(EnableClientRequest) -> EnableClientResponse = clients::enable;
    delete_client(DeleteClientRequest) -> DeleteClientResponse = clients::delete;
    create_key(CreateKeyRequest) -> CreateKeyResponse = keys::create;
    get_key(GetKeyRequest) -> GetKeyResponse = keys::get;
    list_keys(ListKeysRequest) -> ListKeysResponse = keys::list;
    rotate_key(RotateKeyRequest) -> RotateKeyResponse = keys::rotate;
    revoke_key(RevokeKeyRequest) -> RevokeKeyResponse = keys::revoke;
    {
        type CreateBackupStream = backup::Pieces;

        async fn create_backup(
            &self,
            request: Request<pb::CreateBackupRequest>,
        ) -> Answer<Response<Self::CreateBackupStream>> {
            let peer = request.extensions().get::<Arc<PeerInfo>>().cloned();
            let (metadata, extensions, pb::CreateBackupRequest {}) = request.into_parts();
            let origin = self.callers.origin(&extensions);
            let caller = self.callers.known(&metadata, &extensions).await?.caller;
            let pieces = backup::create(&self.service, &caller, &origin, peer.as_ref());
            Ok(Response::new(pieces.await?))
        }

        async fn change_password(
            &self,
            request: Request<pb::ChangePasswordRequest>,
        ) -> Answer<Response<pb::ChangePasswordResponse>> {
            let origin = self.callers.origin(request.extensions());
            let answer = users::change_password(&self.service, origin, request.into_inner());
            Ok(Response::new(answer.await?))
        }
    }
}
