//! How a client proves who it is, before anything else is looked up (RFC 6749 section 2.3).

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use super::journal::Failure;
use crate::crypto::sha256;
use crate::domain::client::{Client, ClientType};
use crate::domain::ids::{ClientId, Revision};
use crate::domain::secret::{SecretBytes, SecretText};
use crate::feed::Feed;
use crate::store::{Store, StoreError};

/// What a client shows of itself.
#[derive(Debug)]
pub struct ClientProof<'a> {
    /// Who it says it is. None when the text is no client id.
    pub id: Option<ClientId>,
    /// Its secret, if it sent one.
    pub secret: Option<&'a SecretText>,
    /// The names in the certificate of its connection.
    pub certificate_names: &'a [Box<str>],
}

/// How old a registration from memory may be: what another replica changed is seen after this, unless
/// it ended tokens and is seen with its event.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// The registrations.
pub struct Clients {
    store: Arc<dyn Store>,
    feed: Arc<Feed>,
    known: RwLock<Known>,
}

#[derive(Default)]
struct Known {
    by_id: HashMap<ClientId, Remembered>,
    /// How often something was forgotten. What was read before and comes to be remembered after is
    /// not remembered.
    forgotten: u64,
}

/// A registration as it was read.
struct Remembered {
    at: Instant,
    /// The newest revocation of more than a token or a session before that.
    coarse: Revision,
    client: Arc<Client>,
}

/// Why a client was not accepted.
#[derive(Debug)]
pub enum ClientError {
    /// It did not prove who it is.
    Refused(Failure),
    /// The store did not answer.
    Store(StoreError),
}

impl From<StoreError> for ClientError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Clients {
    /// Reads registrations from `store`, and again when `feed` has heard of something that may be
    /// about a client as a whole: it may have been disabled elsewhere.
    pub fn new(store: Arc<dyn Store>, feed: Arc<Feed>) -> Self {
        Self { store, feed, known: RwLock::default() }
    }

    /// The client, if the proof is good. Reads the store itself, so that a client that was disabled
    /// a moment ago is refused: for whatever has no later look at the store.
    ///
    /// # Errors
    /// When the proof is not good; one error for every reason, and the same work.
    pub async fn authenticate(&self, proof: &ClientProof<'_>) -> Result<Client, ClientError> {
        let client = match &proof.id {
            Some(id) => self.store.find_client(id).await?,
            None => None,
        };
        check(client.as_ref(), proof).map_err(ClientError::Refused)?;
        client.ok_or(ClientError::Refused(Failure::UnknownClient))
    }

    /// As [`Clients::authenticate`], with a registration as [`Clients::recent`] gives it: for
    /// whatever gives out nothing, or looks at the store once more before it does.
    ///
    /// # Errors
    /// As for [`Clients::authenticate`].
    pub async fn authenticate_recent(
        &self,
        proof: &ClientProof<'_>,
    ) -> Result<Arc<Client>, ClientError> {
        let client = match &proof.id {
            Some(id) => self.recent(id).await?,
            None => None,
        };
        check(client.as_deref(), proof).map_err(ClientError::Refused)?;
        client.ok_or(ClientError::Refused(Failure::UnknownClient))
    }

    /// The registration, perhaps from memory: at most a second old.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn recent(&self, id: &ClientId) -> Result<Option<Arc<Client>>, StoreError> {
        // Both before the store is read. Time by a clock that nobody sets, and that never stands.
        let (at, coarse) = (Instant::now(), self.feed.coarse_head());
        let forgotten = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(remembered) = known.by_id.get(id)
                && remembered.at.elapsed() < FRESH_FOR
                && remembered.coarse == coarse
            {
                return Ok(Some(Arc::clone(&remembered.client)));
            }
            known.forgotten
        };
        let found = self.store.find_client(id).await?.map(Arc::new);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        match &found {
            // Names that nobody has are not remembered: there is no end of them.
            Some(client) if known.forgotten == forgotten => {
                let client = Arc::clone(client);
                known.by_id.insert(id.clone(), Remembered { at, coarse, client });
            }
            Some(_) | None => {
                known.by_id.remove(id);
            }
        }
        Ok(found)
    }

    /// Forgets what is in memory of a client that has changed.
    pub fn forget(&self, id: &ClientId) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.forgotten += 1;
        known.by_id.remove(id);
    }
}

/// Whether a client has proved who it is. The digest is made and compared whether or not there is
/// something to compare with.
fn check(client: Option<&Client>, proof: &ClientProof<'_>) -> Result<(), Failure> {
    let shown = SecretBytes::new(sha256(proof.secret.map_or(&b""[..], |s| s.expose().as_bytes())));
    let nothing = SecretBytes::new([0; 32]);
    let expected = client.and_then(|c| c.secret_digest.as_ref()).unwrap_or(&nothing);
    let secret_matches = shown == *expected;
    let Some(client) = client else { return Err(Failure::UnknownClient) };
    let certificate_matches =
        client.certificate_names.iter().any(|name| proof.certificate_names.contains(name));
    let proved = match (client.kind, proof.secret) {
        (ClientType::Public, None) => client.certificate_names.is_empty() || certificate_matches,
        (ClientType::Public, Some(_)) => false,
        (ClientType::Confidential, Some(_)) => client.secret_digest.is_some() && secret_matches,
        (ClientType::Confidential, None) => certificate_matches,
    };
    if !proved {
        return Err(Failure::WrongClientSecret);
    }
    if client.disabled {
        return Err(Failure::ClientDisabled);
    }
    Ok(())
}
