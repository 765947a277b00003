//! The calls that are measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use avouch::pb::v1 as pb;
use avouch::pb::v1::authenticate_request::Grant;
use avouch::pb::v1::identity_service_client::IdentityServiceClient;
use avouch::pb::v1::revoke_request::Target;
use prost::Message as _;
use tokio::sync::Mutex;
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

use crate::server::{CLIENT, PASSWORD, SECRET};

/// A client of the service on a connection.
pub(crate) type Identity = IdentityServiceClient<Channel>;

/// The credentials of the client that calls.
pub(crate) fn credentials() -> Option<pb::ClientAuthentication> {
    Some(pb::ClientAuthentication { client_id: CLIENT.into(), client_secret: SECRET.into() })
}

/// What Introspect is asked.
pub(crate) fn introspection(token: &str) -> pb::IntrospectRequest {
    pb::IntrospectRequest { client: credentials(), token: token.to_owned(), ..Default::default() }
}

/// Asks about a token that must be good.
pub(crate) async fn introspect(mut client: Identity, token: &str) -> Result<(), Status> {
    let answer = client.introspect(introspection(token)).await?.into_inner();
    if answer.active { Ok(()) } else { Err(Status::aborted("a good token is not active")) }
}

/// What Refresh is asked.
pub(crate) fn renewal(refresh_token: String) -> pb::RefreshRequest {
    pb::RefreshRequest { client: credentials(), refresh_token, ..Default::default() }
}

/// Exchanges a refresh token for its successor.
pub(crate) async fn refresh(mut client: Identity, token: String) -> Result<String, Status> {
    let answer = client.refresh(renewal(token)).await?.into_inner();
    Ok(answer.tokens.unwrap_or_default().refresh_token)
}

/// Logs in as a client.
pub(crate) async fn by_secret(mut client: Identity) -> Result<(), Status> {
    let grant = Some(Grant::ClientCredentials(pb::ClientCredentialsGrant {}));
    let request = pb::AuthenticateRequest { client: credentials(), grant, ..Default::default() };
    client.authenticate(request).await.map(drop)
}

/// Logs in as a user, from an address of its own. False when the server had no room to hash and the
/// wait that it asked for is over: that is no login.
pub(crate) async fn by_password(mut client: Identity, user: usize) -> Result<bool, Status> {
    let grant = pb::PasswordGrant { username: format!("user{user}"), password: PASSWORD.into() };
    let device =
        pb::Device { end_user_address: format!("192.0.2.{}", user % 250), ..Default::default() };
    let request = pb::AuthenticateRequest {
        client: credentials(),
        grant: Some(Grant::Password(grant)),
        device: Some(device),
        ..Default::default()
    };
    match client.authenticate(request).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == tonic::Code::ResourceExhausted => {
            let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
            tokio::time::sleep(retry.unwrap_or(Duration::from_millis(100))).await;
            Ok(false)
        }
        Err(status) => Err(status),
    }
}

/// Revokes a session.
pub(crate) async fn revoke(
    mut client: Identity,
    session: String,
) -> Result<pb::RevokeResponse, Status> {
    let target = Some(Target::SessionId(session));
    let request = pb::RevokeRequest { client: credentials(), target, ..Default::default() };
    let answer = client.revoke(request).await?.into_inner();
    match answer.revoked {
        Some(_) => Ok(answer),
        None => Err(Status::aborted("there was nothing to revoke")),
    }
}

/// The sizes of one Introspect and its answer.
pub(crate) async fn introspect_sizes(
    mut client: Identity,
    token: &str,
) -> Result<(usize, usize), Status> {
    let request = introspection(token);
    let size = request.encoded_len();
    Ok((size, client.introspect(request).await?.get_ref().encoded_len()))
}

/// The sizes of one Refresh and its answer.
pub(crate) async fn refresh_sizes(
    mut client: Identity,
    token: String,
) -> Result<(usize, usize), Status> {
    let request = renewal(token);
    let size = request.encoded_len();
    Ok((size, client.refresh(request).await?.get_ref().encoded_len()))
}

/// Things that are used once each, by whoever comes next.
pub(crate) struct Supply<T>(Vec<T>, AtomicUsize);

impl<T: Clone> Supply<T> {
    /// These things.
    pub(crate) fn new(things: Vec<T>) -> Arc<Self> {
        Arc::new(Self(things, AtomicUsize::new(0)))
    }

    /// The next one, while there is one.
    pub(crate) fn next(&self) -> Option<T> {
        self.0.get(self.1.fetch_add(1, Ordering::Relaxed)).cloned()
    }

    /// The next one, and after the last the first again.
    pub(crate) fn around(&self) -> T {
        self.0[self.1.fetch_add(1, Ordering::Relaxed) % self.0.len()].clone()
    }
}

/// The refresh tokens of one worker, refreshed in turn.
pub(crate) type Wheel = Mutex<(usize, Vec<String>)>;

/// Refreshes the next token on the wheel.
pub(crate) async fn turn(client: Identity, wheel: &Wheel) -> Result<(), Status> {
    let mut wheel = wheel.lock().await;
    let (next, tokens) = &mut *wheel;
    let at = *next % tokens.len();
    *next += 1;
    tokens[at] = refresh(client, std::mem::take(&mut tokens[at])).await?;
    Ok(())
}
