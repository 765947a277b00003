//! The token that a sidecar or a node agent shows to its server.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::client::identity::{ClientCredential, Identity, Login};
use crate::client::token_source::TokenSource;
use crate::client::transport::Transport;
use crate::domain::clock::Clock;
use crate::domain::entropy::Entropy;
use crate::pb::v1;

/// The audience that stands for the server, unless it is configured otherwise there.
const SERVER_AUDIENCE: &str = "avouch";
/// How long the start waits for the first token; then it goes on, and is not ready.
const FIRST_LOGIN: Duration = Duration::from_secs(2);

/// A source of tokens for `client` over `transport`, kept fresh by a task in `keeping`. Waits a moment for
/// the first one; without it the first try to follow would be refused.
pub(super) async fn own_token(
    client: v1::ClientAuthentication,
    transport: Transport,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    keeping: &mut JoinSet<()>,
) -> TokenSource {
    let identity = Identity::new(transport, credential(client), Arc::clone(&entropy));
    let login = Login::client_credentials().for_audiences([SERVER_AUDIENCE]);
    let tokens = TokenSource::client_credentials(identity, login, clock, entropy);
    match tokio::time::timeout(FIRST_LOGIN, tokens.token()).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "cannot log in"),
        Err(_) => tracing::warn!("the server does not answer"),
    }
    let kept = tokens.clone();
    keeping.spawn(async move {
        let error = kept.keep_fresh().await;
        tracing::error!(%error, "there is no token any more");
    });
    tokens
}

/// How a client shows who it is.
fn credential(client: v1::ClientAuthentication) -> ClientCredential {
    if client.client_secret.is_empty() {
        ClientCredential::certificate(client.client_id)
    } else {
        ClientCredential::secret(client.client_id, client.client_secret)
    }
}
