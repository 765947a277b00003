//! Signing keys and MAC keys: their records, their life, and the pure functions that decide when one
//! is announced, signs, rests and goes. Not how they are made, opened or published.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::domain::clock::Timestamp;
use crate::domain::ids::KeyId;

/// How a key signs (RFC 7518 section 3.1, RFC 8037). One key has exactly one.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Algorithm {
    /// Ed25519.
    EdDsa,
    /// ECDSA on P-256 with SHA-256.
    #[default]
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256, for verifiers that know nothing else.
    Rs256,
}

impl Algorithm {
    /// The name that the `alg` header has for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no algorithm that this program signs with.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("must be ES256, EdDSA or RS256")]
pub struct UnknownAlgorithm;

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(text: &str) -> Result<Self, UnknownAlgorithm> {
        [Self::EdDsa, Self::Es256, Self::Rs256]
            .into_iter()
            .find(|algorithm| algorithm.as_str() == text)
            .ok_or(UnknownAlgorithm)
    }
}

/// The public half of a key: the members of its JWK (RFC 7517), base64url without padding.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum PublicKey {
    /// `kty` OKP, `crv` Ed25519.
    Ed25519 {
        /// The public key, 32 bytes.
        x: Box<str>,
    },
    /// `kty` EC, `crv` P-256.
    P256 {
        /// The first coordinate, 32 bytes.
        x: Box<str>,
        /// The second coordinate, 32 bytes.
        y: Box<str>,
    },
    /// `kty` RSA.
    Rsa {
        /// The modulus, without leading zeros.
        n: Box<str>,
        /// The exponent, without leading zeros.
        e: Box<str>,
    },
}

impl PublicKey {
    /// The one algorithm that such a key is used with.
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Ed25519 { .. } => Algorithm::EdDsa,
            Self::P256 { .. } => Algorithm::Es256,
            Self::Rsa { .. } => Algorithm::Rs256,
        }
    }
}

/// Where a key is in its life.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum KeyState {
    /// Published so that verifiers know it in time: the reserve. It does not sign.
    Announced,
    /// Published, and the only one that signs.
    Active,
    /// Published until the last token it signed has expired. It does not sign.
    Retired,
    /// Taken back. Not published; nothing it signed is accepted. Kept to remember that.
    Revoked,
}

/// A signing key at rest.
#[derive(Clone, Eq, PartialEq)]
pub struct KeyRecord {
    /// Its name: the thumbprint of its public half (RFC 7638).
    pub id: KeyId,
    /// How it signs.
    pub algorithm: Algorithm,
    /// Where it is in its life.
    pub state: KeyState,
    /// When it was made, which is when it was first published.
    pub created_at: Timestamp,
    /// When it may start to sign; once it does, when it started.
    pub activate_at: Timestamp,
    /// When it stopped signing.
    pub retired_at: Option<Timestamp>,
    /// When the last token it signed has expired everywhere.
    pub remove_at: Option<Timestamp>,
    /// When it was taken back.
    pub revoked_at: Option<Timestamp>,
    /// The half that verifies.
    pub public: PublicKey,
    /// The half that signs, PKCS#8, sealed. Empty once the key is revoked.
    pub sealed_private: Vec<u8>,
}

impl fmt::Debug for KeyRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRecord")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .field("state", &self.state)
            .field("created_at", &self.created_at)
            .field("activate_at", &self.activate_at)
            .field("retired_at", &self.retired_at)
            .field("remove_at", &self.remove_at)
            .field("revoked_at", &self.revoked_at)
            .finish_non_exhaustive()
    }
}

/// The number of a MAC key; a refresh token carries it.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct MacKeyId(pub u32);

impl fmt::Display for MacKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether new refresh tokens are made with a MAC key.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum MacKeyState {
    /// New sessions use it.
    Active,
    /// Sessions that started under it still do.
    Previous,
}

/// A MAC key at rest.
#[derive(Clone, Eq, PartialEq)]
pub struct MacKeyRecord {
    /// Its number.
    pub id: MacKeyId,
    /// Whether new sessions use it.
    pub state: MacKeyState,
    /// When it was made.
    pub created_at: Timestamp,
    /// The 32 bytes, sealed.
    pub sealed: Vec<u8>,
}

impl fmt::Debug for MacKeyRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MacKeyRecord")
            .field("id", &self.id)
            .field("state", &self.state)
            .field("created_at", &self.created_at)
            .finish_non_exhaustive()
    }
}

/// How long new refresh tokens are made with one MAC key.
pub const MAC_ROTATE_EVERY: Duration = Duration::from_secs(90 * 86_400);

/// How long a MAC key is kept after the next one took its place: longer than any session lives, so
/// that the reuse of any ancestor is told from a token that never was.
pub const MAC_KEEP: Duration = Duration::from_secs(401 * 86_400);

/// What is due in the life of the MAC keys.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct MacPlan {
    /// Make a key with this number; it is the one to use from now on.
    pub start: Option<MacKeyId>,
    /// Forget these.
    pub remove: Vec<MacKeyId>,
}

impl MacPlan {
    /// Whether nothing is due.
    pub fn is_empty(&self) -> bool {
        self.start.is_none() && self.remove.is_empty()
    }
}

/// What is due now. Empty when nothing is; asking again after carrying it out gives nothing.
pub fn mac_plan_at(records: &[MacKeyRecord], now: Timestamp) -> MacPlan {
    let mut by_age: Vec<&MacKeyRecord> = records.iter().collect();
    by_age.sort_by_key(|record| record.id);
    // A key was in use until the one after it was made.
    let remove = by_age
        .windows(2)
        .filter(|pair| now >= pair[1].created_at.after(MAC_KEEP))
        .map(|pair| pair[0].id)
        .collect();
    let start = match by_age.last() {
        None => Some(MacKeyId(1)),
        Some(newest) if now >= newest.created_at.after(MAC_ROTATE_EVERY) => {
            newest.id.0.checked_add(1).map(MacKeyId)
        }
        Some(_) => None,
    };
    MacPlan { start, remove }
}

/// When signing keys change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RingPolicy {
    /// What new keys sign with.
    pub algorithm: Algorithm,
    /// How long a key is published before it signs, at least; one that waits for its turn as the reserve
    /// is published for longer. Longer than the slowest verifier takes to read the published keys again:
    /// istiod takes 20 minutes.
    pub announce_for: Duration,
    /// How long one key signs.
    pub rotate_every: Duration,
    /// How long a key stays published after it stopped signing: the longest life of an access token,
    /// plus skew.
    pub remove_after: Duration,
}

impl RingPolicy {
    /// The longest skew to reckon with: Envoy accepts a token that long after its expiry.
    pub const SKEW: Duration = Duration::from_secs(60);

    /// One hour ahead, every 30 days, for access tokens that live no longer than this.
    pub const fn new(algorithm: Algorithm, longest_access_lifetime: Duration) -> Self {
        Self {
            algorithm,
            announce_for: Duration::from_secs(3_600),
            rotate_every: Duration::from_secs(30 * 86_400),
            remove_after: longest_access_lifetime.saturating_add(Self::SKEW),
        }
    }
}

/// One step in the life of a ring. A plan is carried out whole, in one commit, or not at all.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KeyChange {
    /// The announced key signs from now on.
    Activate(KeyId),
    /// Make a key and publish it; it may sign from `activate_at` on.
    Announce {
        /// What it signs with.
        algorithm: Algorithm,
        /// When it may start.
        activate_at: Timestamp,
    },
    /// Nothing can concern the key any more: forget it.
    Remove(KeyId),
    /// The key stops signing and stays published until `remove_at`.
    Retire {
        /// Which key.
        id: KeyId,
        /// When the last token it signed has expired everywhere.
        remove_at: Timestamp,
    },
    /// The key and all it signed are no longer accepted; its private half is wiped.
    Revoke(KeyId),
    /// Make a key that signs at once, because no other can.
    Start {
        /// What it signs with.
        algorithm: Algorithm,
    },
}

/// What is due now. Empty when nothing is; asking again after carrying it out gives nothing. A ring that
/// it was carried out on has one key announced in reserve, so that whatever ends the active key, the next
/// one is among those that verifiers have read.
pub fn plan_at(records: &[KeyRecord], policy: &RingPolicy, now: Timestamp) -> Vec<KeyChange> {
    let mut plan = Vec::new();
    let in_state = |state| records.iter().filter(move |r: &&KeyRecord| r.state == state);
    let retire = |record: &KeyRecord| KeyChange::Retire {
        id: record.id.clone(),
        remove_at: now.after(policy.remove_after),
    };

    // Replicas commit plans one after the other, so there is never more than one active key. Should
    // there be, the youngest stays.
    let active = in_state(KeyState::Active).max_by_key(|r| (r.activate_at, &r.id));
    plan.extend(in_state(KeyState::Active).filter(|r| Some(*r) != active).map(retire));

    let mut gone = Vec::new();
    match active {
        None => plan.push(next_signer(records, None, policy.algorithm)),
        Some(active) => {
            let due = if active.algorithm == policy.algorithm {
                active.activate_at.after(policy.rotate_every)
            } else {
                Timestamp::default()
            };
            let next = reserves(records, policy.algorithm)
                .filter(|r| now >= r.activate_at && now >= due)
                .min_by_key(|r| (r.activate_at, &r.id));
            if let Some(next) = next {
                plan.push(retire(active));
                plan.push(KeyChange::Activate(next.id.clone()));
            }
            // Announced under an algorithm that is no longer wanted: it never signed, so nothing
            // depends on it.
            gone.extend(in_state(KeyState::Announced).filter(|r| r.algorithm != policy.algorithm));
        }
    }
    keep_reserve(&mut plan, records, policy, now);

    gone.extend(in_state(KeyState::Retired).filter(|r| {
        now >= r
            .remove_at
            .unwrap_or_else(|| r.retired_at.unwrap_or(r.activate_at).after(policy.remove_after))
    }));
    plan.extend(gone.into_iter().map(|r| KeyChange::Remove(r.id.clone())));
    plan
}

/// What taking back a key entails. Empty when there is no such key, or it is revoked already. If no key
/// would be left to sign, the next one signs at once, announced long enough or not. Another takes the
/// place of the one that was announced.
pub fn revoke_plan(
    records: &[KeyRecord],
    id: &KeyId,
    policy: &RingPolicy,
    now: Timestamp,
) -> Vec<KeyChange> {
    if !records.iter().any(|r| r.id == *id && r.state != KeyState::Revoked) {
        return Vec::new();
    }
    let mut plan = vec![KeyChange::Revoke(id.clone())];
    if !records.iter().any(|r| r.state == KeyState::Active && r.id != *id) {
        plan.push(next_signer(records, Some(id), policy.algorithm));
    }
    keep_reserve(&mut plan, records, policy, now);
    plan
}

/// What it takes that the announced key signs now; none if none is announced. If several are, the one
/// that verifiers have known for longest. Another is announced in its place.
pub fn rotate_plan(
    records: &[KeyRecord],
    policy: &RingPolicy,
    now: Timestamp,
) -> Option<Vec<KeyChange>> {
    let announced = records.iter().filter(|r| r.state == KeyState::Announced);
    let next = announced.min_by_key(|r| (r.created_at, &r.id))?;
    let active = records.iter().filter(|r| r.state == KeyState::Active);
    let retire = |record: &KeyRecord| KeyChange::Retire {
        id: record.id.clone(),
        remove_at: now.after(policy.remove_after),
    };
    let mut plan: Vec<KeyChange> = active.map(retire).collect();
    plan.push(KeyChange::Activate(next.id.clone()));
    keep_reserve(&mut plan, records, policy, now);
    Some(plan)
}

/// The keys of an algorithm that are announced.
fn reserves(records: &[KeyRecord], wanted: Algorithm) -> impl Iterator<Item = &KeyRecord> {
    records.iter().filter(move |r| r.state == KeyState::Announced && r.algorithm == wanted)
}

/// Has a key announced, unless one stays so when the plan is carried out.
fn keep_reserve(
    plan: &mut Vec<KeyChange>,
    records: &[KeyRecord],
    policy: &RingPolicy,
    now: Timestamp,
) {
    let spent = |id: &KeyId| {
        plan.iter().any(
            |change| matches!(change, KeyChange::Activate(it) | KeyChange::Revoke(it) if it == id),
        )
    };
    if reserves(records, policy.algorithm).all(|r| spent(&r.id)) {
        plan.push(KeyChange::Announce {
            algorithm: policy.algorithm,
            activate_at: now.after(policy.announce_for),
        });
    }
}

/// Who signs when nobody does: an announced key, rather of the wanted algorithm, rather an old one; or a new one.
fn next_signer(records: &[KeyRecord], except: Option<&KeyId>, wanted: Algorithm) -> KeyChange {
    records
        .iter()
        .filter(|r| r.state == KeyState::Announced && Some(&r.id) != except)
        .min_by_key(|r| (r.algorithm != wanted, r.activate_at, &r.id))
        .map_or(KeyChange::Start { algorithm: wanted }, |r| KeyChange::Activate(r.id.clone()))
}

/// The ring after a plan. `make` makes a key of an algorithm in a state, to sign from the given moment.
///
/// # Errors
/// When `make` fails; nothing has happened then.
pub fn apply_at<E>(
    records: &[KeyRecord],
    plan: &[KeyChange],
    now: Timestamp,
    mut make: impl FnMut(Algorithm, KeyState, Timestamp) -> Result<KeyRecord, E>,
) -> Result<Vec<KeyRecord>, E> {
    let mut ring = records.to_vec();
    for change in plan {
        match change {
            KeyChange::Announce { algorithm, activate_at } => {
                ring.push(make(*algorithm, KeyState::Announced, *activate_at)?);
            }
            KeyChange::Start { algorithm } => ring.push(make(*algorithm, KeyState::Active, now)?),
            KeyChange::Remove(id) => ring.retain(|r| r.id != *id),
            KeyChange::Activate(id) => {
                ring.iter_mut().filter(|r| r.id == *id).for_each(|record| {
                    record.state = KeyState::Active;
                    record.activate_at = now;
                });
            }
            KeyChange::Retire { id, remove_at } => {
                ring.iter_mut().filter(|r| r.id == *id).for_each(|record| {
                    record.state = KeyState::Retired;
                    record.retired_at = Some(now);
                    record.remove_at = Some(*remove_at);
                });
            }
            KeyChange::Revoke(id) => {
                ring.iter_mut().filter(|r| r.id == *id).for_each(|record| {
                    record.state = KeyState::Revoked;
                    record.revoked_at = Some(now);
                    record.sealed_private = Vec::new();
                });
            }
        }
    }
    Ok(ring)
}

#[cfg(test)]
mod tests;
