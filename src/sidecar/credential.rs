//! The sidecar's own access token, kept fresh: it is asked for again when a fifth of its life is left,
//! and the old one serves until the new one is there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use crate::client::watch::Authorization;
use crate::domain::entropy::Entropy;
use crate::pb::v1::authenticate_request::Grant;
use crate::pb::v1::identity_service_client::IdentityServiceClient;
use crate::pb::v1::{AuthenticateRequest, ClientAuthentication, ClientCredentialsGrant};

/// How long one call may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// The shortest and the longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Who the sidecar is to the server.
#[derive(Clone)]
pub struct Login {
    /// The client and its secret.
    pub client: ClientAuthentication,
    /// The audience that stands for the server.
    pub audience: String,
}

type Current = Arc<Mutex<Option<MetadataValue<Ascii>>>>;

/// A credential that somebody keeps fresh.
pub struct Credential {
    current: Current,
    got: watch::Receiver<bool>,
}

impl Credential {
    /// Logs in over `channel`, again and again until it is dropped. `entropy` spreads retries.
    pub fn keep(channel: Channel, login: Login, entropy: Arc<dyn Entropy>) -> Self {
        let current = Current::default();
        let (tell, got) = watch::channel(false);
        tokio::spawn(keep(channel, login, entropy, Arc::clone(&current), tell));
        Self { current, got }
    }

    /// Waits until there is one.
    pub async fn ready(&mut self) {
        // An error says that nobody asks for one any more.
        let _got = self.got.wait_for(|got| *got).await;
    }

    /// Gives the value of `authorization` for a call.
    pub fn authorization(&self) -> Authorization {
        let current = Arc::clone(&self.current);
        Arc::new(move || current.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

async fn keep(
    channel: Channel,
    login: Login,
    entropy: Arc<dyn Entropy>,
    current: Current,
    tell: watch::Sender<bool>,
) {
    let mut failures = 0_u32;
    loop {
        let wait = match log_in(channel.clone(), &login).await {
            Ok((value, life)) => {
                failures = 0;
                *current.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
                tell.send_replace(true);
                life.mul_f64(0.8).max(BACKOFF.0)
            }
            Err(why) => {
                failures = failures.saturating_add(1);
                tracing::warn!(why, failures, "the sidecar could not log in");
                let longest = (BACKOFF.0 * 2_u32.saturating_pow(failures.min(8))).min(BACKOFF.1);
                let part = f64::from(u32::from_be_bytes(entropy.bytes())) / f64::from(u32::MAX);
                BACKOFF.0 + (longest - BACKOFF.0).mul_f64(part)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = tell.closed() => return,
        }
    }
}

async fn log_in(
    channel: Channel,
    login: &Login,
) -> Result<(MetadataValue<Ascii>, Duration), String> {
    let mut request = Request::new(AuthenticateRequest {
        client: Some(login.client.clone()),
        grant: Some(Grant::ClientCredentials(ClientCredentialsGrant {})),
        audiences: vec![login.audience.clone()],
        ..AuthenticateRequest::default()
    });
    request.set_timeout(DEADLINE);
    let mut client = IdentityServiceClient::new(channel);
    let answer = tokio::time::timeout(DEADLINE, client.authenticate(request)).await;
    let answer = answer.map_err(|_| "no answer in time".to_owned())?;
    let answer = answer.map_err(|status| format!("{:?}: {}", status.code(), status.message()))?;
    let tokens = answer.into_inner().tokens.unwrap_or_default();
    let value = MetadataValue::try_from(format!("Bearer {}", tokens.access_token));
    let mut value = value.map_err(|_| "the server gave no token".to_owned())?;
    value.set_sensitive(true);
    Ok((value, Duration::from_secs(tokens.expires_in_seconds.into())))
}
