//! Public keys, and what a token must be to be accepted.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RsaPublicKeyComponents,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::json::{ClaimsIn, Header, from_object};
use super::{KeyError, MAX_LEEWAY, MAX_TOKEN_BYTES, MIN_RSA_BYTES, TokenError};
use crate::domain::claims::Claims;
use crate::domain::clock::Timestamp;
use crate::domain::ids::KeyId;
use crate::domain::key::{Algorithm, PublicKey};

/// A public key, parsed once, with the one algorithm it is good for.
#[derive(Clone)]
pub struct VerifyingKey {
    id: KeyId,
    algorithm: Algorithm,
    pub(super) key: ParsedPublicKey,
}

impl VerifyingKey {
    /// The key called `id`. The kind of key decides the algorithm.
    ///
    /// # Errors
    /// When the members are not canonical base64url, are no key of their kind, or one too short.
    pub fn new(id: KeyId, public: &PublicKey) -> Result<Self, KeyError> {
        let decode = |text: &str, len: Option<usize>| {
            let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| KeyError::Malformed)?;
            if len.is_some_and(|len| len != bytes.len()) {
                return Err(KeyError::Malformed);
            }
            Ok(bytes)
        };
        let key = match public {
            // The length decides how the library reads the bytes, so it must be the one we mean.
            PublicKey::Ed25519 { x } => ParsedPublicKey::new(&ED25519, decode(x, Some(32))?),
            PublicKey::P256 { x, y } => {
                let point = [&[4], &*decode(x, Some(32))?, &*decode(y, Some(32))?].concat();
                ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            }
            PublicKey::Rsa { n, e } => {
                let (n, e) = (decode(n, None)?, decode(e, None)?);
                if n.len() < MIN_RSA_BYTES || n[0] == 0 {
                    return Err(KeyError::TooShort);
                }
                RsaPublicKeyComponents { n, e }.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
            }
        };
        Ok(Self { id, algorithm: public.algorithm(), key: key.map_err(|_| KeyError::Malformed)? })
    }

    /// Its name: the `kid` header.
    pub const fn id(&self) -> &KeyId {
        &self.id
    }

    /// The one algorithm it is good for.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyingKey")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// Where a verifier finds keys. A name from a token is a map key and nothing else: never a path, a query
/// or an address.
pub trait KeyLookup {
    /// The key of that name, if tokens it signed are accepted.
    fn find_key(&self, id: &str) -> Option<&VerifyingKey>;
}

impl<S: std::hash::BuildHasher> KeyLookup for HashMap<Box<str>, VerifyingKey, S> {
    fn find_key(&self, id: &str) -> Option<&VerifyingKey> {
        self.get(id)
    }
}

/// What a verifier demands of every token, besides its signature.
#[derive(Clone, Debug)]
pub struct Rules {
    issuer: Box<str>,
    leeway: Duration,
    early: Duration,
    max_lifetime: Duration,
}

impl Rules {
    /// Tokens of this issuer that live no longer than this, with [`MAX_LEEWAY`] for clocks.
    pub fn new(issuer: impl Into<Box<str>>, max_lifetime: Duration) -> Self {
        Self { issuer: issuer.into(), leeway: MAX_LEEWAY, early: MAX_LEEWAY, max_lifetime }
    }

    /// The same with less leeway; more than [`MAX_LEEWAY`] is cut to it.
    #[must_use]
    pub fn with_leeway(mut self, leeway: Duration) -> Self {
        self.leeway = leeway.min(MAX_LEEWAY);
        self.early = self.leeway;
        self
    }

    /// The same for tokens that are this much too early by the clock here: another replica, whose
    /// clock is ahead, issued them a moment ago.
    #[must_use]
    pub const fn with_early(mut self, early: Duration) -> Self {
        self.early = early;
        self
    }

    /// The moment from which a token that expires at `expires_at` is refused.
    pub fn refused_from(&self, expires_at: Timestamp) -> Timestamp {
        expires_at.after(self.leeway)
    }
}

/// The claims of a token that is an access token of ours, signed by a key in use and good at `now`.
///
/// It checks neither the audience, which is the caller's to know, nor revocation.
///
/// # Errors
/// The first reason found. Nothing of the payload is read before the signature has been verified.
pub fn verify(
    token: &str,
    keys: &(impl KeyLookup + ?Sized),
    rules: &Rules,
    now: Timestamp,
) -> Result<Claims, TokenError> {
    verify_signed(token, keys, rules, now).map(|(claims, _)| claims)
}

/// As [`verify`], with the name of the key that signed it, which may be revoked later.
///
/// # Errors
/// As for [`verify`].
pub fn verify_signed(
    token: &str,
    keys: &(impl KeyLookup + ?Sized),
    rules: &Rules,
    now: Timestamp,
) -> Result<(Claims, KeyId), TokenError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::TooLarge);
    }
    let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Segments)?;
    let (header, payload) = message.split_once('.').ok_or(TokenError::Segments)?;
    if payload.contains('.') {
        return Err(TokenError::Segments);
    }

    let header = decode(header)?;
    let header: Header<'_> = from_object(&header).ok_or(TokenError::Header)?;
    let key = keys.find_key(&header.kid).ok_or(TokenError::UnknownKey)?;
    if header.alg != key.algorithm.as_str() {
        return Err(TokenError::Algorithm);
    }
    // Media types compare without case (RFC 9068 section 4, RFC 7515 section 4.1.9).
    let typ = &header.typ;
    if !typ.eq_ignore_ascii_case("at+jwt") && !typ.eq_ignore_ascii_case("application/at+jwt") {
        return Err(TokenError::Type);
    }
    let signature = decode(signature)?;
    key.key.verify_sig(message.as_bytes(), &signature).map_err(|_| TokenError::Signature)?;

    let payload = decode(payload)?;
    let claims: ClaimsIn<'_> = from_object(&payload).ok_or(TokenError::Claims)?;
    if *claims.iss != *rules.issuer {
        return Err(TokenError::Issuer);
    }
    let claims = claims.into_claims().ok_or(TokenError::Claims)?;
    check_times(&claims, rules, now)?;
    Ok((claims, key.id.clone()))
}

/// That a token was issued too long ago needs no check of its own: then its expiry has passed, or lies
/// further from its issue than the rules allow.
fn check_times(claims: &Claims, rules: &Rules, now: Timestamp) -> Result<(), TokenError> {
    // RFC 7519 section 4.1.4: refused on the expiry, not only after it.
    if now >= rules.refused_from(claims.expires_at) {
        return Err(TokenError::Expired);
    }
    let latest = now.after(rules.early);
    if claims.not_before > latest {
        return Err(TokenError::NotYetValid);
    }
    if claims.issued_at > latest {
        return Err(TokenError::IssuedInFuture);
    }
    if claims.expires_at > claims.issued_at.after(rules.max_lifetime) {
        return Err(TokenError::Lifetime);
    }
    Ok(())
}

fn decode(segment: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD.decode(segment).map_err(|_| TokenError::Encoding)
}
