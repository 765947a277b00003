//! The sidecar's own access token, kept fresh: it is asked for again when a fifth of its life is left, or
//! when nobody takes it any more, and the old one serves until the new one is there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
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

/// How often it is looked whether the token is still taken, and the longest time between two new ones
/// while it is not.
const LOOKS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

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
    renew: Arc<Notify>,
}

impl Credential {
    /// Logs in over `channel`, again and again until it is dropped. `entropy` spreads retries.
    pub fn keep(channel: Channel, login: Login, entropy: Arc<dyn Entropy>) -> Self {
        let current = Current::default();
        let (tell, got) = watch::channel(false);
        let renew = Arc::new(Notify::new());
        let keeper = Keeper {
            channel,
            login,
            entropy,
            current: Arc::clone(&current),
            renew: Arc::clone(&renew),
            tell,
        };
        tokio::spawn(keeper.run());
        Self { current, got, renew }
    }

    /// Gets a new token ahead of time whenever `is_taken` says no, seldomer and seldomer while it goes on
    /// to say so. A server that revoked this token, too, refuses it until then: whoever revokes
    /// everything would blind its verifiers for the rest of their tokens' lives.
    pub fn renew_unless(&self, is_taken: impl Fn() -> bool + Send + 'static) -> JoinHandle<()> {
        let renew = Arc::clone(&self.renew);
        tokio::spawn(async move {
            let mut wait = LOOKS.0;
            loop {
                tokio::time::sleep(wait).await;
                if is_taken() {
                    wait = LOOKS.0;
                } else {
                    renew.notify_one();
                    wait = (wait * 2).min(LOOKS.1);
                }
            }
        })
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

struct Keeper {
    channel: Channel,
    login: Login,
    entropy: Arc<dyn Entropy>,
    current: Current,
    renew: Arc<Notify>,
    tell: watch::Sender<bool>,
}

impl Keeper {
    async fn run(self) {
        let mut failures = 0_u32;
        loop {
            let wait = match log_in(self.channel.clone(), &self.login).await {
                Ok((value, life)) => {
                    failures = 0;
                    *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
                    self.tell.send_replace(true);
                    life.mul_f64(0.8).max(BACKOFF.0)
                }
                Err(why) => {
                    failures = failures.saturating_add(1);
                    tracing::warn!(why, failures, "could not log in");
                    self.backoff(failures)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // A failure has a wait of its own already.
                () = self.renew.notified(), if failures == 0 => {}
                () = self.tell.closed() => return,
            }
        }
    }

    fn backoff(&self, failures: u32) -> Duration {
        let longest = (BACKOFF.0 * 2_u32.saturating_pow(failures.min(8))).min(BACKOFF.1);
        let part = f64::from(u32::from_be_bytes(self.entropy.bytes())) / f64::from(u32::MAX);
        BACKOFF.0 + (longest - BACKOFF.0).mul_f64(part)
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
