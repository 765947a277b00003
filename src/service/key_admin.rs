//! The life of the key ring: its first keys, the rotation that is due, the one that somebody asks
//! for, and the emergency.

use std::sync::Arc;

use super::admin::AdminError;
use super::journal::{Happening, Origin};
use super::traced::commit;
use super::{RingInUse, Service, describe};
use crate::crypto::Sealer;
use crate::domain::caller::Caller;
use crate::domain::clock::Timestamp;
use crate::domain::entropy::Entropy;
use crate::domain::event::{Cause, Entry, Initiator, Reason};
use crate::domain::ids::KeyId;
use crate::domain::key::{
    Algorithm, KeyRecord, KeyState, MacKeyId, MacKeyRecord, MacKeyState, RingPolicy, mac_plan_at,
};
use crate::keys::{self, Ring, RingError};
use crate::store::{RingChange, RingChanged, Store, StoreError, StoredRing};

/// What makes and opens keys.
#[derive(Clone)]
pub struct KeyKeeper {
    /// Where the ring lives.
    pub store: Arc<dyn Store>,
    /// What seals it.
    pub sealer: Arc<Sealer>,
    /// Where key material comes from.
    pub entropy: Arc<dyn Entropy>,
    /// When keys change.
    pub policy: RingPolicy,
}

/// Why the ring could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The records make no ring, or a key could not be made.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// There is no such key.
    #[error("there is no such key")]
    NotFound,
    /// No key is announced that could sign.
    #[error("no key is announced")]
    NothingAnnounced,
    /// Somebody else kept changing the ring.
    #[error("the key ring is being changed by somebody else")]
    Contended,
    /// A key was being made when the process stopped, or making it panicked.
    #[error("the key ring was not changed: the work was interrupted")]
    Interrupted,
}

/// What a change wants the ring to hold; none when it is to stay as it is.
type Planned = Result<Option<Vec<KeyRecord>>, KeeperError>;

/// Is told when the published keys change, so that watchers hear of it.
pub trait KeyPublisher: Send + Sync + 'static {
    /// These are the keys now, the revoked ones among them.
    fn publish(&self, keys: &[KeyRecord]);
}

/// How often a change is tried again after somebody else was first.
const TRIES: usize = 8;

impl KeyKeeper {
    /// The ring, with its first keys made if there are none.
    ///
    /// # Errors
    /// See [`KeeperError`].
    pub async fn open(&self, now: Timestamp) -> Result<(StoredRing, Ring), KeeperError> {
        for _ in 0..TRIES {
            let stored = self.store.ring().await?;
            if stored.mac_keys.is_empty() {
                let mac = keys::generate_mac(MacKeyId(1), now, &self.sealer, &*self.entropy)?;
                let first =
                    keys::roll_at(&stored.keys, &self.policy, now, &self.sealer, &*self.entropy)?;
                let change = RingChange {
                    put: first.unwrap_or_default(),
                    put_mac: vec![mac],
                    ..RingChange::default()
                };
                commit("change_ring", self.store.change_ring(stored.version, change, now)).await?;
                continue;
            }
            let ring = Ring::open(&stored.keys, &stored.mac_keys, &self.sealer)?;
            return Ok((stored, ring));
        }
        Err(KeeperError::Contended)
    }

    /// Changes the ring to what `plan` makes of it, and says what it holds then. No entry when `plan`
    /// wants nothing.
    async fn change(
        &self,
        now: Timestamp,
        revoked: Option<(KeyId, Cause)>,
        plan: impl Fn(&Self, &[KeyRecord]) -> Planned + Send + Sync + 'static,
    ) -> Result<(Vec<KeyRecord>, Option<Entry>), KeeperError> {
        let plan = Arc::new(plan);
        for _ in 0..TRIES {
            let stored = self.store.ring().await?;
            let (keeper, plan, known) = (self.clone(), Arc::clone(&plan), stored.keys.clone());
            // To make an RSA key takes a second of a core, and the threads of requests are few.
            let planned = tokio::task::spawn_blocking(move || plan(&keeper, &known)).await;
            let Some(wanted) = planned.map_err(|_| KeeperError::Interrupted)?? else {
                return Ok((stored.keys, None));
            };
            let remove = stored
                .keys
                .iter()
                .filter(|known| wanted.iter().all(|record| record.id != known.id))
                .map(|known| known.id.clone())
                .collect();
            let put =
                wanted.iter().filter(|record| !stored.keys.contains(record)).cloned().collect();
            let change = RingChange { put, remove, revoked: revoked.clone(), ..Default::default() };
            match commit("change_ring", self.store.change_ring(stored.version, change, now)).await?
            {
                RingChanged::Done(entry) => return Ok((wanted, Some(entry))),
                RingChanged::Conflict => {}
            }
        }
        Err(KeeperError::Contended)
    }

    /// Carries out what is due.
    ///
    /// # Errors
    /// See [`KeeperError`].
    pub async fn roll(&self, now: Timestamp) -> Result<Option<Entry>, KeeperError> {
        let rolled = self.change(now, None, move |keeper, records| {
            Ok(keys::roll_at(records, &keeper.policy, now, &keeper.sealer, &*keeper.entropy)?)
        });
        Ok(rolled.await?.1)
    }

    /// Carries out what is due for the MAC keys.
    ///
    /// # Errors
    /// See [`KeeperError`].
    pub async fn roll_mac_keys(&self, now: Timestamp) -> Result<Option<Entry>, KeeperError> {
        for _ in 0..TRIES {
            let stored = self.store.ring().await?;
            let plan = mac_plan_at(&stored.mac_keys, now);
            if plan.is_empty() {
                return Ok(None);
            }
            let mut put_mac = Vec::new();
            if let Some(id) = plan.start {
                let was_active = |record: &&MacKeyRecord| record.state == MacKeyState::Active;
                put_mac.extend(
                    stored.mac_keys.iter().filter(was_active).map(|record| MacKeyRecord {
                        state: MacKeyState::Previous,
                        ..record.clone()
                    }),
                );
                put_mac.push(keys::generate_mac(id, now, &self.sealer, &*self.entropy)?);
            }
            let change = RingChange { put_mac, remove_mac: plan.remove, ..RingChange::default() };
            match commit("change_ring", self.store.change_ring(stored.version, change, now)).await?
            {
                RingChanged::Done(entry) => return Ok(Some(entry)),
                RingChanged::Conflict => {}
            }
        }
        Err(KeeperError::Contended)
    }

    /// Announces the next key, unless one of the algorithm is announced. Returns the announced one as
    /// it stood then: who rotates at the same time may make it sign before the caller looks.
    ///
    /// # Errors
    /// See [`KeeperError`].
    pub async fn announce(
        &self,
        algorithm: Algorithm,
        now: Timestamp,
    ) -> Result<KeyRecord, KeeperError> {
        let announced = move |record: &KeyRecord| {
            record.state == KeyState::Announced && record.algorithm == algorithm
        };
        let (records, _) = self
            .change(now, None, move |keeper, records| {
                if records.iter().any(announced) {
                    return Ok(None);
                }
                let at = now.after(keeper.policy.announce_for);
                let state = KeyState::Announced;
                let (sealer, entropy) = (&keeper.sealer, &*keeper.entropy);
                let new = keys::generate(algorithm, state, at, now, sealer, entropy)?;
                Ok(Some(records.iter().cloned().chain([new]).collect()))
            })
            .await?;
        records.into_iter().find(announced).ok_or(KeeperError::NotFound)
    }

    /// Makes the announced key sign now, announces another, and returns the one that signs. With `from`
    /// only in place of that key: when another signs already, somebody else rotated, and that is the one.
    ///
    /// # Errors
    /// See [`KeeperError`].
    pub async fn rotate(
        &self,
        from: Option<&KeyId>,
        now: Timestamp,
    ) -> Result<KeyRecord, KeeperError> {
        let from = from.cloned();
        let (records, _) = self
            .change(now, None, move |keeper, records| {
                let signs = |record: &KeyRecord| record.state == KeyState::Active;
                let signing = records.iter().find(|record| signs(record)).map(|record| &record.id);
                if from.is_some() && signing != from.as_ref() {
                    return Ok(None);
                }
                let (sealer, entropy) = (&keeper.sealer, &*keeper.entropy);
                let rotated = keys::rotate_at(records, &keeper.policy, now, sealer, entropy)?;
                Ok(Some(rotated.ok_or(KeeperError::NothingAnnounced)?))
            })
            .await?;
        let active = |record: &KeyRecord| record.state == KeyState::Active;
        records.into_iter().find(active).ok_or(KeeperError::NotFound)
    }

    /// Takes a key back, and returns it.
    ///
    /// # Errors
    /// See [`KeeperError`].
    pub async fn revoke(
        &self,
        id: &KeyId,
        reason: Reason,
        now: Timestamp,
    ) -> Result<(KeyRecord, Option<Entry>), KeeperError> {
        let cause = Cause { reason, initiator: Initiator::Admin };
        let wanted = id.clone();
        let (records, entry) = self
            .change(now, Some((id.clone(), cause)), move |keeper, records| {
                if records.iter().all(|record| record.id != wanted) {
                    return Err(KeeperError::NotFound);
                }
                let (sealer, entropy) = (&keeper.sealer, &*keeper.entropy);
                Ok(keys::revoke_at(records, &wanted, &keeper.policy, now, sealer, entropy)?)
            })
            .await?;
        let revoked = records.into_iter().find(|record| record.id == *id);
        Ok((revoked.ok_or(KeeperError::NotFound)?, entry))
    }
}

impl Service {
    /// Carries out what is due in the life of the keys and follows what other replicas did.
    ///
    /// # Errors
    /// See [`KeeperError`].
    pub async fn roll_keys(&self) -> Result<(), KeeperError> {
        let now = self.now();
        self.keeper.roll(now).await?;
        self.keeper.roll_mac_keys(now).await?;
        self.follow_keys().await
    }

    /// Puts the stored ring in use and tells the watchers, unless a later one is in use: whoever
    /// read the ring before another changed it must not bring a revoked key back.
    pub(super) fn adopt(&self, stored: &StoredRing) -> Result<(), KeeperError> {
        let mut in_use = self.ring_in_use();
        if stored.version < in_use.version {
            return Ok(());
        }
        let ring = Ring::open(&stored.keys, &stored.mac_keys, &self.keeper.sealer)?;
        self.keys.replace(ring);
        self.access.forget();
        *in_use = RingInUse::from(stored);
        self.key_publisher.publish(&stored.keys);
        Ok(())
    }

    /// The keys with their states, newest first.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn list_keys(
        &self,
        caller: &Caller,
        origin: &Origin,
    ) -> Result<Vec<KeyRecord>, AdminError> {
        self.may_administer(caller, "list_keys", origin)?;
        let mut keys = self.store.ring().await?.keys;
        keys.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
        Ok(keys)
    }

    /// The published keys with their states: what GetKeySet shows.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn published_keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        let mut keys = self.store.ring().await?.keys;
        keys.retain(|record| record.state != KeyState::Revoked);
        Ok(keys)
    }

    /// Announces the next key and returns it.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn create_key(
        &self,
        caller: &Caller,
        algorithm: Option<Algorithm>,
        origin: &Origin,
    ) -> Result<KeyRecord, AdminError> {
        self.begin_change(caller, "create_key", origin).await?;
        let algorithm = algorithm.unwrap_or(self.keeper.policy.algorithm);
        let key = self.keeper.announce(algorithm, self.now()).await.map_err(keeper_error)?;
        self.after_key_change("key_announced", caller, &key.id, origin).await?;
        Ok(key)
    }

    /// Makes the announced key sign now and returns it.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn rotate_key(
        &self,
        caller: &Caller,
        origin: &Origin,
    ) -> Result<KeyRecord, AdminError> {
        // As it is known here when the call comes: of two at once one rotates.
        let from = self.keys.current().signing().id().clone();
        self.begin_change(caller, "rotate_key", origin).await?;
        let rotated = self.keeper.rotate(Some(&from), self.now()).await;
        let key = rotated.map_err(keeper_error)?;
        self.after_key_change("key_rotated", caller, &key.id, origin).await?;
        Ok(key)
    }

    /// Takes a key back and returns it, with the event if it was not revoked already.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn revoke_key(
        &self,
        caller: &Caller,
        id: &KeyId,
        reason: Reason,
        origin: &Origin,
    ) -> Result<(KeyRecord, Option<Entry>), AdminError> {
        self.begin_change(caller, "revoke_key", origin).await?;
        let now = self.now();
        let revoked = self.keeper.revoke(id, reason, now).await.map_err(keeper_error)?;
        let (key, entry) = revoked;
        self.after_key_change("key_revoked", caller, id, origin).await?;
        if let Some(entry) = &entry {
            self.journal.record(now, origin, Happening::Revoked { entry: entry.clone() });
        }
        Ok((key, entry))
    }

    async fn after_key_change(
        &self,
        action: &'static str,
        caller: &Caller,
        key: &KeyId,
        origin: &Origin,
    ) -> Result<(), AdminError> {
        let stored = self.store.ring().await?;
        self.adopt(&stored).map_err(keeper_error)?;
        let happening = Happening::Administered {
            action,
            caller: describe(caller),
            subject: None,
            client: None,
            key: Some(key.clone()),
            reason: None,
        };
        self.journal.record(self.now(), origin, happening);
        Ok(())
    }
}

fn keeper_error(error: KeeperError) -> AdminError {
    match error {
        KeeperError::Store(error) => AdminError::Store(error),
        KeeperError::NotFound => AdminError::NotFound,
        KeeperError::NothingAnnounced => AdminError::NothingAnnounced,
        KeeperError::Contended => {
            AdminError::Store(StoreError::Unavailable("the key ring is contended".to_owned()))
        }
        KeeperError::Interrupted => AdminError::Internal("the making of a key was interrupted"),
        KeeperError::Ring(error) => {
            tracing::error!(%error, "the key ring cannot be changed");
            AdminError::Internal("the key ring cannot be changed")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread::{self, ThreadId};

    use super::*;
    use crate::domain::entropy::SeededEntropy;
    use crate::domain::event::MAX_ACCESS_LIFETIME;
    use crate::domain::ids::LogId;
    use crate::domain::secret::SecretBytes;
    use crate::store::fault::{Fault, FaultEngine};
    use crate::store::ledger::Ledger;
    use crate::store::memory::MemoryEngine;

    /// Notes which threads draw from it. A key is sealed where it is made, and that takes a nonce.
    struct Noting(SeededEntropy, Mutex<Vec<ThreadId>>);

    impl Entropy for Noting {
        fn fill(&self, bytes: &mut [u8]) {
            self.1.lock().unwrap().push(thread::current().id());
            self.0.fill(bytes);
        }
    }

    fn keeper(store: Arc<dyn Store>, entropy: Arc<dyn Entropy>) -> KeyKeeper {
        KeyKeeper {
            store,
            sealer: Arc::new(Sealer::new(&SecretBytes::new([1; 32])).unwrap()),
            entropy,
            policy: RingPolicy::new(Algorithm::Es256, MAX_ACCESS_LIFETIME),
        }
    }

    #[tokio::test]
    async fn a_key_that_is_rotated_as_it_is_announced_is_answered_as_it_was_announced() {
        let now = Timestamp::from_secs(1_000_000);
        let engine = FaultEngine::new(MemoryEngine::new(LogId::from_bytes([1; 16])));
        let ledger = Arc::new(Ledger::new(engine));
        let keeper = keeper(Arc::clone(&ledger) as Arc<dyn Store>, Arc::new(SeededEntropy::new(1)));
        keeper.open(now).await.unwrap();
        // As it was before there were reserves: the next key is announced by who asks for it.
        let stored = ledger.ring().await.unwrap();
        let announced = |record: &&KeyRecord| record.state == KeyState::Announced;
        let remove = stored.keys.iter().filter(announced).map(|record| record.id.clone()).collect();
        let change = RingChange { remove, ..RingChange::default() };
        ledger.change_ring(stored.version, change, now).await.unwrap();
        let error = keeper.rotate(None, now).await.unwrap_err();
        assert!(matches!(error, KeeperError::NothingAnnounced), "{error}");
        ledger.engine().fail_next(Fault::HoldAnswer);
        let announcing = tokio::spawn({
            let keeper = keeper.clone();
            async move { keeper.announce(Algorithm::Es256, now).await }
        });
        let announced = |record: &KeyRecord| record.state == KeyState::Announced;
        while !ledger.ring().await.unwrap().keys.iter().any(announced) {
            tokio::task::yield_now().await;
        }
        let signing = keeper.rotate(None, now).await.unwrap();
        ledger.engine().release();
        let announced = announcing.await.unwrap().unwrap();
        assert_eq!((announced.id, announced.state), (signing.id.clone(), KeyState::Announced));
        let reserve = keeper.announce(Algorithm::Es256, now).await.unwrap();
        assert_ne!(reserve.id, signing.id, "the rotation announced another");
        assert_eq!(keeper.rotate(None, now).await.unwrap().id, reserve.id);
    }

    #[tokio::test]
    async fn keys_are_made_beside_the_threads_of_requests() {
        let now = Timestamp::from_secs(1_000_000);
        let entropy = Arc::new(Noting(SeededEntropy::new(1), Mutex::default()));
        let store = Ledger::new(MemoryEngine::new(LogId::from_bytes([1; 16])));
        let keeper = keeper(Arc::new(store), Arc::clone(&entropy) as Arc<dyn Entropy>);
        keeper.open(now).await.unwrap();
        entropy.1.lock().unwrap().clear();
        let announced = keeper.announce(Algorithm::Rs256, now).await.unwrap();
        keeper.revoke(&announced.id, Reason::KeyCompromised, now).await.unwrap();
        keeper.roll(now.after(10 * keeper.policy.rotate_every)).await.unwrap();
        let drew = entropy.1.lock().unwrap();
        assert!(drew.len() >= 2, "{} draws", drew.len());
        assert!(!drew.contains(&thread::current().id()), "requests wait for none of it");
    }
}
