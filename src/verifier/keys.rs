//! The public keys as the server publishes them.

use std::collections::HashMap;

use crate::domain::ids::KeyId;
use crate::domain::key::PublicKey;
use crate::jwt::{KeyLookup, VerifyingKey};
use crate::pb::v1;

/// The keys of one moment, by name.
pub(super) type Keys = HashMap<Box<str>, VerifyingKey>;

/// The keys that can be used. One of a kind that this version does not know, that names another
/// algorithm than its own, or that is damaged is left out: its tokens are refused then.
pub(super) fn read_keys(keys: &[v1::JsonWebKey]) -> Keys {
    keys.iter().filter_map(read_key).map(|key| (key.id().as_str().into(), key)).collect()
}

fn read_key(jwk: &v1::JsonWebKey) -> Option<VerifyingKey> {
    if jwk.state() == v1::KeyState::Revoked {
        return None;
    }
    let public = match (&*jwk.kty, &*jwk.crv) {
        ("EC", "P-256") => PublicKey::P256 { x: jwk.x.as_str().into(), y: jwk.y.as_str().into() },
        ("OKP", "Ed25519") => PublicKey::Ed25519 { x: jwk.x.as_str().into() },
        ("RSA", "") => PublicKey::Rsa { n: jwk.n.as_str().into(), e: jwk.e.as_str().into() },
        _ => return None,
    };
    let id: KeyId = jwk.kid.parse().ok()?;
    let key = VerifyingKey::new(id, &public).ok()?;
    (key.algorithm().as_str() == jwk.alg).then_some(key)
}

/// Whether every key of `old` is in `new`.
pub(super) fn keeps_all(old: &Keys, new: &Keys) -> bool {
    old.keys().all(|id| new.find_key(id).is_some())
}
