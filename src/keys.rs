//! The live ring: records opened, tested and ready to sign, to verify and to be published. It knows
//! neither where the records rest nor who asks for a signature.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::json;
use zeroize::Zeroizing;

use crate::crypto::{HmacKey, SealError, Sealer, sha256};
use crate::domain::clock::Timestamp;
use crate::domain::entropy::Entropy;
use crate::domain::ids::{Generation, KeyId, SessionId};
use crate::domain::key::{
    Algorithm, KeyChange, KeyRecord, KeyState, MacKeyId, MacKeyRecord, MacKeyState, PublicKey,
    RingPolicy, apply_at, plan_at, revoke_plan, rotate_plan,
};
use crate::domain::refresh_token::{RefreshToken, tag_message};
use crate::domain::secret::{SecretBytes, SecretText};
use crate::jwt::{KeyError, KeyLookup, SigningKey, VerifyingKey};

/// Why records do not make a ring, or a key could not be made.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RingError {
    /// Two records have one name.
    #[error("two {0} have the same name")]
    Duplicate(KeyName),
    /// A new key could not be made.
    #[error("a key could not be made")]
    Generate(#[source] KeyError),
    /// The private half does not fit the record: the record was changed, or is damaged.
    #[error("{0} does not fit its record in the database")]
    Mismatch(KeyName, #[source] KeyError),
    /// There must be exactly one key that signs.
    #[error("the database holds {0} active signing keys where exactly one must be")]
    Signers(usize),
    /// There must be exactly one MAC key for new sessions.
    #[error("the database holds {0} active MAC keys where exactly one must be")]
    MacKeys(usize),
    /// A new key could not be sealed.
    #[error("a key could not be sealed")]
    Seal(#[source] SealError),
    /// The key-encryption key is not the one that sealed this key.
    #[error("{0} does not open: the key file does not match this database")]
    WrongKeyFile(KeyName, #[source] SealError),
}

/// Which key an error is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KeyName {
    /// A MAC key.
    Mac(MacKeyId),
    /// A signing key.
    Signing(KeyId),
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(id) => write!(f, "MAC key {id}"),
            Self::Signing(id) => write!(f, "signing key {id}"),
        }
    }
}

/// What a sealed private key is for. Binding name and algorithm keeps one record's blob out of another.
fn signing_purpose(id: &KeyId, algorithm: Algorithm) -> Vec<u8> {
    format!("avouch signing key v1|{algorithm}|{id}").into_bytes()
}

fn mac_purpose(id: MacKeyId) -> Vec<u8> {
    format!("avouch refresh mac key v1|{id}").into_bytes()
}

/// Makes a signing key, tested and sealed. An RSA key takes a good part of a second: keep it off the
/// threads that serve.
///
/// # Errors
/// When the library fails to make, test or seal it.
pub fn generate(
    algorithm: Algorithm,
    state: KeyState,
    activate_at: Timestamp,
    now: Timestamp,
    sealer: &Sealer,
    entropy: &dyn Entropy,
) -> Result<KeyRecord, RingError> {
    let (key, private) = SigningKey::generate(algorithm).map_err(RingError::Generate)?;
    let public = key.public().map_err(RingError::Generate)?;
    key.self_test(&public).map_err(RingError::Generate)?;
    let sealed_private = sealer
        .seal(&private, &signing_purpose(key.id(), algorithm), entropy)
        .map_err(RingError::Seal)?;
    Ok(KeyRecord {
        id: key.id().clone(),
        algorithm,
        state,
        created_at: now,
        activate_at,
        retired_at: None,
        remove_at: None,
        revoked_at: None,
        public,
        sealed_private,
    })
}

/// Makes a MAC key, sealed.
///
/// # Errors
/// When the library fails to seal it.
pub fn generate_mac(
    id: MacKeyId,
    now: Timestamp,
    sealer: &Sealer,
    entropy: &dyn Entropy,
) -> Result<MacKeyRecord, RingError> {
    let key = Zeroizing::new(entropy.bytes::<32>());
    let sealed = sealer.seal(&*key, &mac_purpose(id), entropy).map_err(RingError::Seal)?;
    Ok(MacKeyRecord { id, state: MacKeyState::Active, created_at: now, sealed })
}

/// The ring after what is due now; none if nothing is. To be committed only if the ring in the store is
/// still the one given, so that replicas never rotate twice.
///
/// # Errors
/// When a new key is due and cannot be made.
pub fn roll_at(
    records: &[KeyRecord],
    policy: &RingPolicy,
    now: Timestamp,
    sealer: &Sealer,
    entropy: &dyn Entropy,
) -> Result<Option<Vec<KeyRecord>>, RingError> {
    carry_out(records, &plan_at(records, policy, now), now, sealer, entropy)
}

/// The ring in which the announced key signs; none if none is announced.
///
/// # Errors
/// When the key to announce in its place cannot be made.
pub fn rotate_at(
    records: &[KeyRecord],
    policy: &RingPolicy,
    now: Timestamp,
    sealer: &Sealer,
    entropy: &dyn Entropy,
) -> Result<Option<Vec<KeyRecord>>, RingError> {
    let plan = rotate_plan(records, policy, now).unwrap_or_default();
    carry_out(records, &plan, now, sealer, entropy)
}

/// The ring after taking back a key; none if there is no such key or it is revoked already.
///
/// # Errors
/// When a new key is needed in its place and cannot be made.
pub fn revoke_at(
    records: &[KeyRecord],
    id: &KeyId,
    policy: &RingPolicy,
    now: Timestamp,
    sealer: &Sealer,
    entropy: &dyn Entropy,
) -> Result<Option<Vec<KeyRecord>>, RingError> {
    carry_out(records, &revoke_plan(records, id, policy, now), now, sealer, entropy)
}

/// None for an empty plan.
fn carry_out(
    records: &[KeyRecord],
    plan: &[KeyChange],
    now: Timestamp,
    sealer: &Sealer,
    entropy: &dyn Entropy,
) -> Result<Option<Vec<KeyRecord>>, RingError> {
    if plan.is_empty() {
        return Ok(None);
    }
    let make = |algorithm, state, at| generate(algorithm, state, at, now, sealer, entropy);
    apply_at(records, plan, now, make).map(Some)
}

/// The keys at one moment. It never changes; a new ring takes its place.
pub struct Ring {
    signing: Arc<SigningKey>,
    verifying: HashMap<Box<str>, VerifyingKey>,
    jwks: Bytes,
    etag: Box<str>,
    macs: HashMap<MacKeyId, HmacKey>,
    active_mac: MacKeyId,
}

impl Ring {
    /// Opens and tests every key that is in use. Each published key must come with its private half, so
    /// that someone who can write to the database but lacks the key file cannot have a key of their own
    /// published or accepted.
    ///
    /// # Errors
    /// When a key does not open, does not fit its record, or not exactly one of each kind is active.
    pub fn open(
        records: &[KeyRecord],
        macs: &[MacKeyRecord],
        sealer: &Sealer,
    ) -> Result<Self, RingError> {
        let mut published: Vec<&KeyRecord> =
            records.iter().filter(|r| r.state != KeyState::Revoked).collect();
        // The signer first, for clients that take the first key; then the same order on every replica.
        published.sort_by_key(|r| (r.state != KeyState::Active, r.created_at, &r.id));

        let mut signers = Vec::new();
        let mut verifying = HashMap::new();
        for record in &published {
            let key = open_signing(record, sealer)?;
            let name = || KeyName::Signing(record.id.clone());
            let verifier = VerifyingKey::new(record.id.clone(), &record.public)
                .map_err(|error| RingError::Mismatch(name(), error))?;
            if verifying.insert(record.id.as_str().into(), verifier).is_some() {
                return Err(RingError::Duplicate(name()));
            }
            if record.state == KeyState::Active {
                signers.push(key);
            }
        }
        let count = signers.len();
        let signing = match signers.pop() {
            Some(key) if count == 1 => Arc::new(key),
            Some(_) | None => return Err(RingError::Signers(count)),
        };

        let mut active = Vec::new();
        let mut opened = HashMap::new();
        for record in macs {
            if opened.insert(record.id, open_mac(record, sealer)?).is_some() {
                return Err(RingError::Duplicate(KeyName::Mac(record.id)));
            }
            if record.state == MacKeyState::Active {
                active.push(record.id);
            }
        }
        let [active_mac] = active[..] else {
            return Err(RingError::MacKeys(active.len()));
        };

        let jwks = Bytes::from(jwk_set(&published));
        let etag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(&sha256(&jwks)[..16])).into();
        Ok(Self { signing, verifying, jwks, etag, macs: opened, active_mac })
    }

    /// The one key that signs.
    pub const fn signing(&self) -> &Arc<SigningKey> {
        &self.signing
    }

    /// The published keys as a JWK Set (RFC 7517 section 5).
    pub const fn jwks_json(&self) -> &Bytes {
        &self.jwks
    }

    /// The entity tag of the JWK Set, in quotes (RFC 9110 section 8.8.3).
    pub const fn etag(&self) -> &str {
        &self.etag
    }

    /// The MAC key for the refresh tokens of new sessions.
    pub const fn active_mac(&self) -> MacKeyId {
        self.active_mac
    }

    /// Whether there is such a MAC key.
    pub fn has_mac(&self, mac_key: MacKeyId) -> bool {
        self.macs.contains_key(&mac_key)
    }

    /// The tag of a refresh token; none if there is no such MAC key.
    pub fn refresh_tag(
        &self,
        mac_key: MacKeyId,
        session: SessionId,
        generation: Generation,
        nonce: &SecretBytes<32>,
    ) -> Option<SecretBytes<32>> {
        let message = tag_message(session, generation, nonce);
        Some(self.macs.get(&mac_key)?.sign(message.expose()))
    }

    /// The refresh token of a session in a generation, always the same one; none if there is no such MAC
    /// key.
    pub fn mint_refresh(
        &self,
        session: SessionId,
        generation: Generation,
        nonce: &SecretBytes<32>,
        mac_key: MacKeyId,
    ) -> Option<SecretText> {
        let tag = self.refresh_tag(mac_key, session, generation, nonce)?;
        Some(RefreshToken::new(session, generation, mac_key, tag).to_text())
    }

    /// Whether avouch made this token for the session that has this nonce. The tags compare in constant
    /// time.
    pub fn check_refresh(&self, token: &RefreshToken, nonce: &SecretBytes<32>) -> bool {
        self.refresh_tag(token.mac_key(), token.session(), token.generation(), nonce)
            .is_some_and(|tag| tag == *token.tag())
    }
}

impl KeyLookup for Ring {
    fn find_key(&self, id: &str) -> Option<&VerifyingKey> {
        self.verifying.get(id)
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("signing", &self.signing)
            .field("published", &self.verifying.len())
            .field("active_mac", &self.active_mac)
            .finish_non_exhaustive()
    }
}

fn open_signing(record: &KeyRecord, sealer: &Sealer) -> Result<SigningKey, RingError> {
    let name = || KeyName::Signing(record.id.clone());
    let mismatch = |error| RingError::Mismatch(name(), error);
    let private = sealer
        .open(&record.sealed_private, &signing_purpose(&record.id, record.algorithm))
        .map_err(|error| RingError::WrongKeyFile(name(), error))?;
    let key = SigningKey::from_pkcs8(record.algorithm, &private).map_err(mismatch)?;
    let public = key.public().map_err(mismatch)?;
    if public != record.public || *key.id() != record.id {
        return Err(mismatch(KeyError::SelfTest));
    }
    key.self_test(&public).map_err(mismatch)?;
    Ok(key)
}

fn open_mac(record: &MacKeyRecord, sealer: &Sealer) -> Result<HmacKey, RingError> {
    let wrong = |error| RingError::WrongKeyFile(KeyName::Mac(record.id), error);
    let key = sealer.open(&record.sealed, &mac_purpose(record.id)).map_err(wrong)?;
    let key = <[u8; 32]>::try_from(key.as_slice()).map_err(|_| wrong(SealError::Format))?;
    Ok(HmacKey::new(&SecretBytes::new(key)))
}

/// A JWK Set with the members in alphabetical order: the same bytes on every replica.
fn jwk_set(records: &[&KeyRecord]) -> String {
    let jwk = |record: &&KeyRecord| {
        let (kid, alg) = (record.id.as_str(), record.algorithm.as_str());
        match &record.public {
            PublicKey::Ed25519 { x } => {
                json!({ "kty": "OKP", "crv": "Ed25519", "x": x, "kid": kid, "alg": alg, "use": "sig" })
            }
            PublicKey::P256 { x, y } => {
                json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": kid, "alg": alg, "use": "sig" })
            }
            PublicKey::Rsa { n, e } => {
                json!({ "kty": "RSA", "n": n, "e": e, "kid": kid, "alg": alg, "use": "sig" })
            }
        }
    };
    json!({ "keys": records.iter().map(jwk).collect::<Vec<_>>() }).to_string()
}

/// The ring in use, which a rotation replaces under those who read it.
#[derive(Debug)]
pub struct KeyRing(ArcSwap<Ring>);

impl KeyRing {
    /// Starts with this ring.
    pub fn new(ring: Ring) -> Self {
        Self(ArcSwap::from_pointee(ring))
    }

    /// The ring now. Take it once per request, so that all of the request sees the same keys.
    pub fn current(&self) -> Arc<Ring> {
        self.0.load_full()
    }

    /// Puts another ring in its place.
    pub fn replace(&self, ring: Ring) {
        self.0.store(Arc::new(ring));
    }
}

#[cfg(test)]
mod tests;
