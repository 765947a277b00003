//! `IdentityService`.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::caller::{Callers, client_proof, client_secret};
use super::convert::{Fields, Invalid, revocation, token};
use super::status;
use crate::domain::event::{Initiator, Reason};
use crate::domain::secret::SecretText;
use crate::domain::session::Device;
use crate::listen::deadline::MoreTime;
use crate::pb::v1::{self as pb, authenticate_request, revoke_request};
use crate::service::{Service, authenticate, refresh, revoke};

/// The longest that Revoke waits for the watchers.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// The longest name or password that is looked at, in bytes. What a password may be is counted in
/// code points, of up to four bytes each.
const MAX_NAME_BYTES: usize = 1024;
const MAX_PASSWORD_BYTES: usize = 4096;

/// Serves `IdentityService`.
pub struct Identity {
    service: Arc<Service>,
    callers: Arc<Callers>,
}

impl Identity {
    /// Over this service.
    pub const fn new(service: Arc<Service>, callers: Arc<Callers>) -> Self {
        Self { service, callers }
    }
}

#[tonic::async_trait]
impl pb::identity_service_server::IdentityService for Identity {
    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        let origin = self.callers.origin(request.extensions());
        let message = request.into_inner();
        let client = required_client(message.client)?;
        let secret = client_secret(&client);
        let proof = client_proof(&client, secret.as_ref(), &origin);
        let mut fields = Fields::default();
        let request = authenticate::Request {
            client: proof,
            scope: fields.names("scopes", &message.scopes),
            audience: fields.names("audiences", &message.audiences),
            device: token::device(&mut fields, message.device.unwrap_or_default()),
            grant: match message.grant {
                Some(authenticate_request::Grant::Password(grant)) => password(&mut fields, grant),
                Some(authenticate_request::Grant::ClientCredentials(_)) => {
                    authenticate::Grant::ClientCredentials
                }
                None => {
                    fields.wrong("grant", "must be set");
                    authenticate::Grant::ClientCredentials
                }
            },
        };
        let request = fields.finish(Some(request))?;
        let tokens =
            self.service.authenticate(request, &origin).await.map_err(status::authenticate)?;
        Ok(Response::new(pb::AuthenticateResponse { tokens: Some(token::to_token_set(tokens)) }))
    }

    async fn refresh(
        &self,
        request: Request<pb::RefreshRequest>,
    ) -> Result<Response<pb::RefreshResponse>, Status> {
        let origin = self.callers.origin(request.extensions());
        let message = request.into_inner();
        let client = required_client(message.client)?;
        let secret = client_secret(&client);
        let mut fields = Fields::default();
        let request = refresh::Request {
            client: client_proof(&client, secret.as_ref(), &origin),
            token: token::token(&mut fields, "refresh_token", message.refresh_token),
            scope: fields.names("scopes", &message.scopes),
            audience: fields.names("audiences", &message.audiences),
            device: message.device.map(|device| token::device(&mut fields, device)),
        };
        let request = fields.finish(Some(request))?;
        let tokens = self.service.refresh(request, &origin).await.map_err(status::refresh)?;
        Ok(Response::new(pb::RefreshResponse { tokens: Some(token::to_token_set(tokens)) }))
    }

    async fn revoke(
        &self,
        request: Request<pb::RevokeRequest>,
    ) -> Result<Response<pb::RevokeResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let origin = self.callers.origin(&extensions);
        let caller =
            self.callers.known_or_client(message.client.as_ref(), &metadata, &extensions).await?;
        let mut fields = Fields::default();
        let request = revocation_request(&mut fields, message);
        let request = fields.finish(request)?;
        // The wait is the caller's wish, and no part of what the server grants a call.
        if let (Some(more), Some(wait)) = (extensions.get::<MoreTime>(), request.wait) {
            more.allow(wait);
        }
        let outcome =
            self.service.revoke(&caller, request, &origin).await.map_err(status::revoke)?;
        Ok(Response::new(pb::RevokeResponse {
            cursor: Some(token::to_cursor(outcome.cursor)),
            revoked: outcome.entry.as_ref().and_then(revocation::entry),
            wait_result: outcome.waited.map(|count| pb::WaitResult {
                watchers_connected: count.connected,
                watchers_applied: count.applied,
                complete: count.complete,
            }),
        }))
    }

    async fn introspect(
        &self,
        request: Request<pb::IntrospectRequest>,
    ) -> Result<Response<pb::IntrospectResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let origin = self.callers.origin(&extensions);
        let caller =
            self.callers.known_or_client(message.client.as_ref(), &metadata, &extensions).await?;
        let mut fields = Fields::default();
        fields.required("token", &message.token);
        let at_least = token::cursor(&mut fields, "at_least", message.at_least);
        fields.finish(Some(()))?;
        // A token that is too long is a bad token, and no bad token is an error.
        let asked = SecretText::new(message.token);
        let answer = self
            .service
            .introspect(&caller, asked.expose(), at_least, &origin)
            .await
            .map_err(status::introspect)?;
        Ok(Response::new(token::to_introspection(answer)))
    }

    async fn get_key_set(
        &self,
        _request: Request<pb::GetKeySetRequest>,
    ) -> Result<Response<pb::GetKeySetResponse>, Status> {
        let ring = self.service.keys().current();
        let keys = self.service.published_keys().await.map_err(status::store)?;
        Ok(Response::new(pb::GetKeySetResponse {
            keys: keys.iter().map(token::to_jwk).collect(),
            jwks_json: String::from_utf8_lossy(ring.jwks_json()).into_owned(),
        }))
    }
}

/// The client of a call that must name one.
pub(super) fn required_client(
    client: Option<pb::ClientAuthentication>,
) -> Result<pb::ClientAuthentication, Invalid> {
    client
        .filter(|client| !client.client_id.is_empty())
        .ok_or_else(|| Invalid::one("client.client_id", "must be set"))
}

fn password(fields: &mut Fields, grant: pb::PasswordGrant) -> authenticate::Grant {
    fields.required("password.username", &grant.username);
    fields.required("password.password", &grant.password);
    if grant.username.len() > MAX_NAME_BYTES {
        fields.wrong("password.username", "is too long");
    }
    if grant.password.len() > MAX_PASSWORD_BYTES {
        fields.wrong("password.password", "is too long");
    }
    authenticate::Grant::Password {
        username: grant.username,
        password: SecretText::new(grant.password),
    }
}

fn revocation_request(fields: &mut Fields, message: pb::RevokeRequest) -> Option<revoke::Request> {
    let what = match message.target {
        Some(revoke_request::Target::Token(text)) => {
            Some(revoke::What::Token(token::token(fields, "token", text)))
        }
        Some(revoke_request::Target::SessionId(id)) => {
            fields.parse("session_id", &id).map(revoke::What::Session)
        }
        Some(revoke_request::Target::Subject(id)) => {
            fields.parse("subject", &id).map(revoke::What::Subject)
        }
        Some(revoke_request::Target::ClientId(id)) => {
            fields.parse("client_id", &id).map(revoke::What::Client)
        }
        Some(revoke_request::Target::Everything(true)) => Some(revoke::What::Everything),
        Some(revoke_request::Target::Everything(false)) => {
            fields.wrong("everything", "must be true or not set");
            None
        }
        None => {
            fields.wrong("target", "must be set");
            None
        }
    };
    let reason = fields.number("reason", message.reason, Reason::from_number);
    let initiator =
        fields.number("initiating_entity", message.initiating_entity, Initiator::from_number);
    let wait = fields.duration("wait", message.wait, MAX_WAIT);
    let stated = revoke::Stated { reason, initiator };
    Some(revoke::Request { what: what?, stated, wait })
}

/// The device of a message, or an empty one.
pub(super) fn device(fields: &mut Fields, device: Option<pb::Device>) -> Device {
    token::device(fields, device.unwrap_or_default())
}
