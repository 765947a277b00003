//! What other replicas did to the key ring: taken over when its event comes, and before a token is
//! called bad for a key that is not known here.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Service;
use super::access::AccessError;
use super::key_admin::KeeperError;
use crate::domain::clock::Timestamp;
use crate::domain::key::MacKeyId;
use crate::jwt::TokenError;
use crate::keys::Ring;
use crate::store::StoreError;
use crate::verified::VerifiedToken;

/// How often the ring is read because of a key that is not known here. Anybody can name such keys.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// When the ring was last read for a key that was not known here, and whether it could be.
#[derive(Default)]
pub(super) struct Looked(Mutex<Option<(Instant, bool)>>);

impl Service {
    /// Puts the stored ring in use, if it is another one.
    ///
    /// # Errors
    /// See [`KeeperError`].
    pub async fn follow_keys(&self) -> Result<(), KeeperError> {
        let stored = self.store.ring().await?;
        let known = self.ring_in_use().version;
        if stored.version != known { self.adopt(&stored) } else { Ok(()) }
    }

    /// Reads the ring for a key that is not known here. Many who ask at once wait for one reading.
    async fn look_for_keys(&self) {
        // Who is alone knows every key that there is.
        if self.store.board().is_none() {
            return;
        }
        let mut looked = self.looked_for_keys.0.lock().await;
        if looked.is_some_and(|(at, _)| at.elapsed() < LOOK_AT_MOST_EVERY) {
            return;
        }
        let followed = self.follow_keys().await;
        *looked = Some((Instant::now(), followed.is_ok()));
        if let Err(error) = followed {
            tracing::warn!(%error, "cannot look for a key that is not known here");
        }
    }

    /// Whether a key that is still not known was looked for in vain. Who must not take a good token
    /// for a forged one asks this before saying so.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the ring could not be read.
    pub(super) async fn has_looked(&self) -> Result<(), StoreError> {
        match *self.looked_for_keys.0.lock().await {
            Some((_, false)) => {
                Err(StoreError::Unavailable("the signing keys cannot be read".to_owned()))
            }
            Some((_, true)) | None => Ok(()),
        }
    }

    /// The ring in use, which has this MAC key if there is one of that name anywhere.
    pub(super) async fn ring_with(&self, mac_key: MacKeyId) -> Arc<Ring> {
        let ring = self.keys.current();
        if ring.has_mac(mac_key) {
            return ring;
        }
        self.look_for_keys().await;
        self.keys.current()
    }

    /// The access token, if it is one of ours and good now, whichever replica signed it.
    ///
    /// # Errors
    /// When it is not.
    pub async fn check_access(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<Arc<VerifiedToken>, AccessError> {
        match self.access.check(token, now) {
            Err(AccessError::Invalid(TokenError::UnknownKey)) => {
                self.look_for_keys().await;
                self.access.check(token, now)
            }
            known => known,
        }
    }

    /// The access token, if it is one of ours that can be revoked, or was, whichever replica signed it.
    ///
    /// # Errors
    /// When it is not.
    pub(super) async fn revocable_access(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<Arc<VerifiedToken>, TokenError> {
        match self.access.revocable(token, now) {
            Err(TokenError::UnknownKey) => {
                self.look_for_keys().await;
                self.access.revocable(token, now)
            }
            known => known,
        }
    }
}
