//! The sidecar's own access token: renewed ahead of its end, and at once when the server does not take it
//! any more. Who revokes everything revokes the sidecars' tokens, too; were they kept to their end, the
//! verifiers would be blind until then.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::client::identity::{ClientCredential, Identity, Login};
use crate::client::token_source::{TokenError, TokenSource};
use crate::client::transport::Transport;
use crate::client::watch::Authorization;
use crate::domain::clock::Clock;
use crate::domain::entropy::Entropy;

/// How often it is looked whether the token is good and is taken.
const TICK: Duration = Duration::from_secs(1);
/// The longest time between two new tokens while none is taken.
const LONGEST_WAIT: u32 = 64;

/// A credential that is kept good. Clones share it.
#[derive(Clone)]
pub struct Credential {
    source: Arc<ArcSwap<TokenSource>>,
    make: Arc<dyn Fn() -> TokenSource + Send + Sync>,
}

impl Credential {
    /// For `client`, good for `audience`, which stands for the server.
    pub fn new(
        transport: Transport,
        client: ClientCredential,
        audience: &'static str,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let identity = Identity::new(transport, client, Arc::clone(&entropy));
        let make = move || {
            let login = Login::client_credentials().for_audiences([audience]);
            let (clock, entropy) = (Arc::clone(&clock), Arc::clone(&entropy));
            TokenSource::client_credentials(identity.clone(), login, clock, entropy)
        };
        Self { source: Arc::new(ArcSwap::from_pointee(make())), make: Arc::new(make) }
    }

    /// Waits until there is a token, or until it is known why there is none.
    ///
    /// # Errors
    /// When there is none yet.
    pub async fn first(&self) -> Result<(), TokenError> {
        self.source.load_full().token().await.map(drop)
    }

    /// Gives the value of `authorization` for a call.
    pub fn authorization(&self) -> Authorization {
        let source = Arc::clone(&self.source);
        Arc::new(move || source.load().authorization()())
    }

    /// Keeps it good, for ever. While `is_taken` says no, there is a new one again and again, after
    /// longer and longer waits.
    pub async fn keep(self, is_taken: impl Fn() -> bool) {
        let (mut ticks, mut wait) = (0, 1);
        loop {
            tokio::time::sleep(TICK).await;
            // Begins a renewal when it is time for one.
            drop(self.source.load().current());
            if is_taken() {
                (ticks, wait) = (0, 1);
                continue;
            }
            ticks += 1;
            if ticks < wait {
                continue;
            }
            (ticks, wait) = (0, (wait * 2).min(LONGEST_WAIT));
            let source = (self.make)();
            match source.token().await {
                Ok(_) => self.source.store(Arc::new(source)),
                Err(error) => tracing::warn!(%error, "the sidecar cannot log in"),
            }
        }
    }
}
