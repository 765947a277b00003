//! The usual way to a verifier: as a client of avouch, over all its replicas.

use std::sync::Arc;
use std::time::Duration;

use super::{Verifier, VerifierSettings};
use crate::client::balance::{BalanceSettings, Replicas, SystemResolver, Target};
use crate::client::identity::{ClientCredential, Identity, Login};
use crate::client::token_source::{TokenError, TokenSource};
use crate::crypto::OsEntropy;
use crate::domain::clock::SystemClock;

/// How long the first token may take.
const FIRST_TOKEN: Duration = Duration::from_secs(10);

/// Why there is no verifier.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The client did not get a token of its own.
    #[error("there is no token to watch with: {0}")]
    Token(#[from] TokenError),
    /// The server did not answer.
    #[error("the server did not answer in time")]
    Timeout,
}

impl Verifier {
    /// Follows the avouch at `target` as the client `own`, which needs the rights `watch` and, for the
    /// policy `introspect`, `introspect`; `server_audience` is the audience that stands for avouch itself,
    /// `avouch` unless its configuration says otherwise.
    ///
    /// Looks the name of `target` up again and again, gets tokens of its own and renews them ahead of
    /// their end, and completes the `watch` of `settings` with all that. Must be called in a tokio
    /// runtime.
    ///
    /// # Errors
    /// When there is no first token. Later on, whatever is lost is tried again.
    pub async fn connect(
        target: Target,
        own: ClientCredential,
        server_audience: &str,
        mut settings: VerifierSettings,
    ) -> Result<Self, ConnectError> {
        let (entropy, clock) = (Arc::new(OsEntropy), Arc::new(SystemClock::default()));
        let every = BalanceSettings::default();
        let replicas = Replicas::start(target, Arc::new(SystemResolver), every, entropy.clone());
        let identity = Identity::new(replicas.clone(), own, entropy.clone());
        let login = Login::client_credentials().for_audiences([server_audience]);
        let source = TokenSource::client_credentials(
            identity.clone(),
            login,
            clock.clone(),
            entropy.clone(),
        );
        let first = tokio::time::timeout(FIRST_TOKEN, source.token()).await;
        first.map_err(|_| ConnectError::Timeout)??;
        settings.watch.replicas = Some(replicas.endpoints());
        settings.watch.authorization = Some(source.authorization());
        settings.watch.refused = Some(source.refused());
        let verifier = Self::start(settings, clock, entropy, Some(Arc::new(identity)));
        verifier.keep(tokio::spawn(async move { source.keep_fresh().await }).abort_handle());
        Ok(verifier)
    }
}
