//! The life of the key ring: its first keys, the rotation that is due, the one that somebody asks
//! for, and the emergency.

use std::sync::Arc;

use super::admin::AdminError;
use super::journal::{Happening, Origin};
use super::{Service, describe};
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
}

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
            let stored = self.store.ring()?;
            if stored.mac_keys.is_empty() {
                let mac = keys::generate_mac(MacKeyId(1), now, &self.sealer, &*self.entropy)?;
                let first =
                    keys::roll_at(&stored.keys, &self.policy, now, &self.sealer, &*self.entropy)?;
                let change = RingChange {
                    put: first.unwrap_or_default(),
                    put_mac: vec![mac],
                    ..RingChange::default()
                };
                self.store.change_ring(stored.version, change, now).await?;
                continue;
            }
            let ring = Ring::open(&stored.keys, &stored.mac_keys, &self.sealer)?;
            return Ok((stored, ring));
        }
        Err(KeeperError::Contended)
    }

    /// Changes the ring to what `plan` makes of it. None when `plan` wants nothing.
    async fn change(
        &self,
        now: Timestamp,
        revoked: Option<(KeyId, Cause)>,
        plan: impl Fn(&[KeyRecord]) -> Result<Option<Vec<KeyRecord>>, KeeperError>,
    ) -> Result<Option<Entry>, KeeperError> {
        for _ in 0..TRIES {
            let stored = self.store.ring()?;
            let Some(wanted) = plan(&stored.keys)? else { return Ok(None) };
            let remove = stored
                .keys
                .iter()
                .filter(|known| wanted.iter().all(|record| record.id != known.id))
                .map(|known| known.id.clone())
                .collect();
            let put = wanted.into_iter().filter(|record| !stored.keys.contains(record)).collect();
            let change = RingChange { put, remove, revoked: revoked.clone(), ..Default::default() };
            match self.store.change_ring(stored.version, change, now).await? {
                RingChanged::Done(entry) => return Ok(Some(entry)),
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
        self.change(now, None, |records| {
            Ok(keys::roll_at(records, &self.policy, now, &self.sealer, &*self.entropy)?)
        })
        .await
    }

    /// Carries out what is due for the MAC keys.
    ///
    /// # Errors
    /// See [`KeeperError`].
    pub async fn roll_mac_keys(&self, now: Timestamp) -> Result<Option<Entry>, KeeperError> {
        for _ in 0..TRIES {
            let stored = self.store.ring()?;
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
            match self.store.change_ring(stored.version, change, now).await? {
                RingChanged::Done(entry) => return Ok(Some(entry)),
                RingChanged::Conflict => {}
            }
        }
        Err(KeeperError::Contended)
    }

    /// Announces the next key, unless one of the algorithm is announced.
    ///
    /// # Errors
    /// See [`KeeperError`].
    pub async fn announce(
        &self,
        algorithm: Algorithm,
        now: Timestamp,
    ) -> Result<Option<Entry>, KeeperError> {
        self.change(now, None, |records| {
            let announced = |record: &KeyRecord| {
                record.state == KeyState::Announced && record.algorithm == algorithm
            };
            if records.iter().any(announced) {
                return Ok(None);
            }
            let at = now.after(self.policy.announce_for);
            let state = KeyState::Announced;
            let new = keys::generate(algorithm, state, at, now, &self.sealer, &*self.entropy)?;
            Ok(Some(records.iter().cloned().chain([new]).collect()))
        })
        .await
    }

    /// Makes the announced key sign now.
    ///
    /// # Errors
    /// See [`KeeperError`].
    pub async fn rotate(&self, now: Timestamp) -> Result<Option<Entry>, KeeperError> {
        self.change(now, None, |records| {
            let next = records
                .iter()
                .filter(|record| record.state == KeyState::Announced)
                .min_by_key(|record| record.created_at)
                .ok_or(KeeperError::NothingAnnounced)?;
            let rotated = records
                .iter()
                .map(|record| {
                    let mut record = record.clone();
                    if record.id == next.id {
                        record.state = KeyState::Active;
                        record.activate_at = now;
                    } else if record.state == KeyState::Active {
                        record.state = KeyState::Retired;
                        record.retired_at = Some(now);
                        record.remove_at = Some(now.after(self.policy.remove_after));
                    }
                    record
                })
                .collect();
            Ok(Some(rotated))
        })
        .await
    }

    /// Takes a key back.
    ///
    /// # Errors
    /// See [`KeeperError`].
    pub async fn revoke(
        &self,
        id: &KeyId,
        reason: Reason,
        now: Timestamp,
    ) -> Result<Option<Entry>, KeeperError> {
        let cause = Cause { reason, initiator: Initiator::Admin };
        self.change(now, Some((id.clone(), cause)), |records| {
            if records.iter().all(|record| record.id != *id) {
                return Err(KeeperError::NotFound);
            }
            Ok(keys::revoke_at(records, id, &self.policy, now, &self.sealer, &*self.entropy)?)
        })
        .await
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
        let stored = self.store.ring()?;
        let known = *self.ring_version();
        if stored.version != known {
            self.adopt(&stored)?;
        }
        Ok(())
    }

    /// Puts the stored ring in use and tells the watchers, unless a later one is in use: whoever
    /// read the ring before another changed it must not bring a revoked key back.
    fn adopt(&self, stored: &StoredRing) -> Result<(), KeeperError> {
        let mut version = self.ring_version();
        if stored.version < *version {
            return Ok(());
        }
        let ring = Ring::open(&stored.keys, &stored.mac_keys, &self.keeper.sealer)?;
        self.keys.replace(ring);
        self.access.forget();
        *version = stored.version;
        self.key_publisher.publish(&stored.keys);
        Ok(())
    }

    /// The keys with their states, newest first.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn list_keys(
        &self,
        caller: &Caller,
        origin: &Origin,
    ) -> Result<Vec<KeyRecord>, AdminError> {
        self.may_administer(caller, "list_keys", origin)?;
        let mut keys = self.store.ring()?.keys;
        keys.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
        Ok(keys)
    }

    /// The published keys with their states: what GetKeySet shows.
    ///
    /// # Errors
    /// When the store does not answer.
    pub fn published_keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        let mut keys = self.store.ring()?.keys;
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
        self.may_administer(caller, "create_key", origin)?;
        let algorithm = algorithm.unwrap_or(self.keeper.policy.algorithm);
        self.keeper.announce(algorithm, self.now()).await.map_err(keeper_error)?;
        self.after_key_change("key_announced", caller, origin, |record| {
            record.state == KeyState::Announced && record.algorithm == algorithm
        })
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
        self.may_administer(caller, "rotate_key", origin)?;
        self.keeper.rotate(self.now()).await.map_err(keeper_error)?;
        self.after_key_change("key_rotated", caller, origin, |record| {
            record.state == KeyState::Active
        })
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
        self.may_administer(caller, "revoke_key", origin)?;
        let now = self.now();
        let entry = self.keeper.revoke(id, reason, now).await.map_err(keeper_error)?;
        let record =
            self.after_key_change("key_revoked", caller, origin, |record| record.id == *id)?;
        if let Some(entry) = &entry {
            self.journal.record(now, origin, Happening::Revoked { entry: entry.clone() });
        }
        Ok((record, entry))
    }

    fn after_key_change(
        &self,
        action: &'static str,
        caller: &Caller,
        origin: &Origin,
        wanted: impl Fn(&KeyRecord) -> bool,
    ) -> Result<KeyRecord, AdminError> {
        let stored = self.store.ring()?;
        self.adopt(&stored).map_err(keeper_error)?;
        let record = stored
            .keys
            .into_iter()
            .find(wanted)
            .ok_or(AdminError::Internal("the key is gone that was just changed"))?;
        let happening = Happening::Administered {
            action,
            caller: describe(caller),
            subject: None,
            client: None,
            key: Some(record.id.clone()),
            reason: None,
        };
        self.journal.record(self.now(), origin, happening);
        Ok(record)
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
        KeeperError::Ring(error) => {
            tracing::error!(%error, "the key ring cannot be changed");
            AdminError::Internal("the key ring cannot be changed")
        }
    }
}
