//! Access tokens as JWS compact (RFC 7515, RFC 9068): encoded, signed and verified. It knows keys and
//! claims, not sessions, revocations or the store.
//!
//! The pairs and public keys stay parsed: `jsonwebtoken::encode` parses the private key on every call,
//! which costs more than the signature. `jsonwebtoken` is the second opinion: before a key goes into
//! use, it must accept what that key signed, given only the public half.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair,
    Ed25519KeyPair, KeyPair as _, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256,
    RsaKeyPair, RsaPublicKeyComponents,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::crypto::sha256;
use crate::domain::claims::Claims;
use crate::domain::clock::Timestamp;
use crate::domain::ids::{Epoch, Epochs, KeyId, SessionId, TokenId};
use crate::domain::key::{Algorithm, PublicKey};
use crate::domain::scope::Names;
use crate::domain::secret::SecretText;

/// The longest access token in bytes; checked before anything else is.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// The most that clocks may differ between who signs and who verifies.
pub const MAX_LEEWAY: Duration = Duration::from_secs(5);
/// The shortest RSA modulus in bytes: 3072 bits are as strong as a 128-bit key (ASVS 11.2.3).
const MIN_RSA_BYTES: usize = 3072 / 8;

/// Why a key cannot be used. It never carries key material.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyError {
    /// The library could not make a key.
    #[error("key generation failed")]
    Generation,
    /// The bytes are not a key of the algorithm.
    #[error("the bytes are not a key of this algorithm")]
    Malformed,
    /// What the key signed does not verify with its public half.
    #[error("the key failed its self-test")]
    SelfTest,
    /// RSA with a modulus below 3072 bits.
    #[error("the key is too short")]
    TooShort,
}

/// Why a token could not be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EncodeError {
    /// The library failed to sign.
    #[error("signing failed")]
    Signing,
    /// The claims make a token that no verifier would accept.
    #[error("the token would be longer than {MAX_TOKEN_BYTES} bytes")]
    TooLarge,
}

/// Why a token is not accepted. For the audit log alone: the caller hears one answer for all.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
pub enum TokenError {
    /// `alg` is not the one algorithm of the key.
    #[error("the algorithm is not that of the key")]
    Algorithm,
    /// A claim is missing, stands twice, is unknown, or has the wrong form.
    #[error("the claims are not those of an access token")]
    Claims,
    /// A segment is not canonical base64url.
    #[error("a segment is not canonical base64url")]
    Encoding,
    /// `exp` has passed.
    #[error("expired")]
    Expired,
    /// The header has something missing, twice, unknown, or of the wrong form.
    #[error("the header is not that of an access token")]
    Header,
    /// `iat` lies in the future.
    #[error("issued in the future")]
    IssuedInFuture,
    /// `iss` is someone else.
    #[error("from another issuer")]
    Issuer,
    /// `exp` lies further after `iat` than any access token lives.
    #[error("lives longer than any access token may")]
    Lifetime,
    /// `nbf` lies in the future.
    #[error("not valid yet")]
    NotYetValid,
    /// There are not exactly three segments.
    #[error("does not have three segments")]
    Segments,
    /// The signature is not that of the key.
    #[error("the signature does not verify")]
    Signature,
    /// Longer than [`MAX_TOKEN_BYTES`].
    #[error("too long")]
    TooLarge,
    /// `typ` is not that of an access token.
    #[error("not of the type of access tokens")]
    Type,
    /// No such key is in use.
    #[error("signed with an unknown key")]
    UnknownKey,
}

enum Pair {
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

/// A private key, parsed once, with the header that its tokens share.
pub struct SigningKey {
    id: KeyId,
    algorithm: Algorithm,
    pair: Pair,
    /// The encoded header and the dot after it.
    prefix: Box<str>,
}

impl SigningKey {
    /// Makes a new key pair. Its name is the thumbprint of its public half (RFC 7638). The second value
    /// is the private half, PKCS#8, to be sealed.
    ///
    /// # Errors
    /// When the library fails.
    pub fn generate(algorithm: Algorithm) -> Result<(Self, Zeroizing<Vec<u8>>), KeyError> {
        let fail = |_| KeyError::Generation;
        let (pair, pkcs8) = match algorithm {
            Algorithm::EdDsa => {
                let pair = Ed25519KeyPair::generate().map_err(fail)?;
                let der = pair.to_pkcs8v1().map_err(fail)?;
                (Pair::Ed(pair), der.as_ref().to_vec())
            }
            Algorithm::Es256 => {
                let pair =
                    EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(fail)?;
                let der = pair.to_pkcs8v1().map_err(fail)?;
                (Pair::Ec(pair), der.as_ref().to_vec())
            }
            Algorithm::Rs256 => {
                let pair = RsaKeyPair::generate(KeySize::Rsa3072).map_err(fail)?;
                let der = pair.as_der().map_err(fail)?.as_ref().to_vec();
                (Pair::Rsa(pair), der)
            }
        };
        let pkcs8 = Zeroizing::new(pkcs8);
        let key = Self::of_pair(algorithm, pair)?;
        Ok((key, pkcs8))
    }

    /// Parses a private key.
    ///
    /// # Errors
    /// When the bytes are not a key of this algorithm, or one too short.
    pub fn from_pkcs8(algorithm: Algorithm, pkcs8: &[u8]) -> Result<Self, KeyError> {
        let fail = |_| KeyError::Malformed;
        let pair = match algorithm {
            Algorithm::EdDsa => Pair::Ed(Ed25519KeyPair::from_pkcs8(pkcs8).map_err(fail)?),
            Algorithm::Es256 => Pair::Ec(
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).map_err(fail)?,
            ),
            Algorithm::Rs256 => Pair::Rsa(RsaKeyPair::from_pkcs8(pkcs8).map_err(fail)?),
        };
        Self::of_pair(algorithm, pair)
    }

    fn of_pair(algorithm: Algorithm, pair: Pair) -> Result<Self, KeyError> {
        if let Pair::Rsa(rsa) = &pair
            && rsa.public_modulus_len() < MIN_RSA_BYTES
        {
            return Err(KeyError::TooShort);
        }
        let id = thumbprint(&public_half(&pair)?)?;
        // Neither value has a character that JSON would escape.
        let header = format!(r#"{{"alg":"{algorithm}","kid":"{id}","typ":"at+jwt"}}"#);
        let prefix = format!("{}.", URL_SAFE_NO_PAD.encode(header)).into();
        Ok(Self { id, algorithm, pair, prefix })
    }

    /// Its name: the `kid` header.
    pub const fn id(&self) -> &KeyId {
        &self.id
    }

    /// How it signs.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The half to publish.
    ///
    /// # Errors
    /// When the library's encoding of the key is not what it documents.
    pub fn public(&self) -> Result<PublicKey, KeyError> {
        public_half(&self.pair)
    }

    /// The signed token of these claims. Times are cut to whole seconds.
    ///
    /// # Errors
    /// When the token would be too long, or the library fails.
    pub fn encode(&self, claims: &Claims) -> Result<SecretText, EncodeError> {
        let mut payload = Vec::with_capacity(640);
        serde_json::to_writer(&mut payload, &ClaimsOut::from(claims))
            .map_err(|_| EncodeError::Signing)?;
        // The full length up front: a string that grows leaves copies of the token behind.
        let signature_len = match &self.pair {
            Pair::Ec(_) | Pair::Ed(_) => 64,
            Pair::Rsa(rsa) => rsa.public_modulus_len(),
        };
        let encoded_len = |bytes: usize| (bytes * 4).div_ceil(3);
        let len = self.prefix.len() + encoded_len(payload.len()) + 1 + encoded_len(signature_len);
        if len > MAX_TOKEN_BYTES {
            return Err(EncodeError::TooLarge);
        }
        let mut token = Zeroizing::new(String::with_capacity(len));
        token.push_str(&self.prefix);
        URL_SAFE_NO_PAD.encode_string(payload, &mut token);
        let signature = self.sign(token.as_bytes()).ok_or(EncodeError::Signing)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(SecretText::new(std::mem::take(&mut token)))
    }

    fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        match &self.pair {
            Pair::Ec(pair) => {
                Some(pair.sign(&SystemRandom::new(), message).ok()?.as_ref().to_vec())
            }
            Pair::Ed(pair) => Some(pair.try_sign(message).ok()?.as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).ok()?;
                Some(signature)
            }
        }
    }

    /// Signs a probe and has it checked twice, here and by `jsonwebtoken`, with nothing but the public
    /// half that will be published.
    ///
    /// # Errors
    /// When either check fails: the public half belongs to another key, or the key is damaged.
    pub fn self_test(&self, public: &PublicKey) -> Result<(), KeyError> {
        const PROBE: &[u8] = b"avouch key self-test";
        let signature = self.sign(PROBE).ok_or(KeyError::SelfTest)?;
        let own = VerifyingKey::new(self.id.clone(), public)?;
        own.key.verify_sig(PROBE, &signature).map_err(|_| KeyError::SelfTest)?;

        // With two backends compiled in, the library panics on first use unless one was chosen.
        // An error says that one has been.
        let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
        let (key, algorithm) = match public {
            PublicKey::Ed25519 { x } => {
                (jsonwebtoken::DecodingKey::from_ed_components(x), jsonwebtoken::Algorithm::EdDSA)
            }
            PublicKey::P256 { x, y } => (
                jsonwebtoken::DecodingKey::from_ec_components(x, y),
                jsonwebtoken::Algorithm::ES256,
            ),
            PublicKey::Rsa { n, e } => (
                jsonwebtoken::DecodingKey::from_rsa_components(n, e),
                jsonwebtoken::Algorithm::RS256,
            ),
        };
        let key = key.map_err(|_| KeyError::SelfTest)?;
        let signature = URL_SAFE_NO_PAD.encode(signature);
        match jsonwebtoken::crypto::verify(&signature, PROBE, &key, algorithm) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(KeyError::SelfTest),
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

fn public_half(pair: &Pair) -> Result<PublicKey, KeyError> {
    let encode = |bytes: &[u8]| -> Box<str> { URL_SAFE_NO_PAD.encode(bytes).into() };
    match pair {
        Pair::Ec(pair) => match pair.public_key().as_ref() {
            // SEC 1 section 2.3.3: 4 says that both coordinates follow.
            [4, point @ ..] if point.len() == 64 => {
                let (x, y) = point.split_at(32);
                Ok(PublicKey::P256 { x: encode(x), y: encode(y) })
            }
            _ => Err(KeyError::Malformed),
        },
        Pair::Ed(pair) => Ok(PublicKey::Ed25519 { x: encode(pair.public_key().as_ref()) }),
        Pair::Rsa(pair) => {
            let parts = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
            Ok(PublicKey::Rsa { n: encode(&parts.n), e: encode(&parts.e) })
        }
    }
}

/// The name of a key: base64url of the SHA-256 of its required members in this very spelling (RFC 7638).
///
/// # Errors
/// Never for members that are base64url.
pub fn thumbprint(public: &PublicKey) -> Result<KeyId, KeyError> {
    let canonical = match public {
        PublicKey::Ed25519 { x } => format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#),
        PublicKey::P256 { x, y } => format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#),
        PublicKey::Rsa { n, e } => format!(r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#),
    };
    let digest = sha256(canonical.as_bytes());
    URL_SAFE_NO_PAD.encode(digest).parse().map_err(|_| KeyError::Malformed)
}

/// A public key, parsed once, with the one algorithm it is good for.
#[derive(Clone)]
pub struct VerifyingKey {
    id: KeyId,
    algorithm: Algorithm,
    key: ParsedPublicKey,
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
    max_lifetime: Duration,
}

impl Rules {
    /// Tokens of this issuer that live no longer than this, with [`MAX_LEEWAY`] for clocks.
    pub fn new(issuer: impl Into<Box<str>>, max_lifetime: Duration) -> Self {
        Self { issuer: issuer.into(), leeway: MAX_LEEWAY, max_lifetime }
    }

    /// The same with less leeway; more than [`MAX_LEEWAY`] is cut to it.
    #[must_use]
    pub fn with_leeway(mut self, leeway: Duration) -> Self {
        self.leeway = leeway.min(MAX_LEEWAY);
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
    let latest = now.after(rules.leeway);
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

/// Reads a JSON object. serde would read a struct from an array too.
fn from_object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    if json.first() != Some(&b'{') {
        return None;
    }
    serde_json::from_slice(json).ok()
}

/// The header. Only avouch signs these tokens, so a member that avouch does not write (`crit`, `jwk`,
/// `jku`, `x5u`, `x5c`, `zip`, `enc`, `b64` or any other) means that something is wrong.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow)]
    kid: Cow<'a, str>,
    #[serde(borrow)]
    typ: Cow<'a, str>,
}

/// The claims as written.
#[derive(Serialize)]
struct ClaimsOut<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: AudienceOut<'a>,
    exp: u64,
    iat: u64,
    nbf: u64,
    jti: Shown<TokenId>,
    client_id: &'a str,
    #[serde(skip_serializing_if = "is_none")]
    scope: Shown<&'a Names>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sid: Option<Shown<SessionId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_time: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    amr: Vec<&'a str>,
    epo: [u32; 3],
}

/// Written as it is shown, without a text of its own.
struct Shown<T>(T);

impl<T: fmt::Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

fn is_none(names: &Shown<&Names>) -> bool {
    names.0.is_empty()
}

#[derive(Serialize)]
#[serde(untagged)]
enum AudienceOut<'a> {
    One(&'a str),
    Many(Vec<&'a str>),
}

impl<'a> From<&'a Claims> for ClaimsOut<'a> {
    fn from(claims: &'a Claims) -> Self {
        let mut audience: Vec<&str> = claims.audience.iter().collect();
        Self {
            iss: &claims.issuer,
            sub: claims.subject.as_str(),
            aud: match (audience.len(), audience.pop()) {
                (1, Some(only)) => AudienceOut::One(only),
                _ => AudienceOut::Many(claims.audience.iter().collect()),
            },
            exp: claims.expires_at.as_secs(),
            iat: claims.issued_at.as_secs(),
            nbf: claims.not_before.as_secs(),
            jti: Shown(claims.token_id),
            client_id: claims.client.as_str(),
            scope: Shown(&claims.scope),
            sid: claims.session.map(Shown),
            auth_time: claims.authenticated_at.map(Timestamp::as_secs),
            amr: claims.methods.iter().collect(),
            epo: [claims.epochs.global.0, claims.epochs.client.0, claims.epochs.subject.0],
        }
    }
}

/// The claims as read. The struct is closed: a claim that this version does not know may narrow what the
/// token is good for (`cnf`, `act`), so it must not be passed over. Duplicates are errors, and so is
/// null where a claim may be absent.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClaimsIn<'a> {
    #[serde(borrow)]
    iss: Cow<'a, str>,
    #[serde(borrow)]
    sub: Cow<'a, str>,
    #[serde(borrow)]
    aud: AudienceIn<'a>,
    exp: u64,
    iat: u64,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<u64>,
    #[serde(borrow)]
    jti: Cow<'a, str>,
    #[serde(borrow)]
    client_id: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "present")]
    scope: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    sid: Option<Text<'a>>,
    #[serde(default, deserialize_with = "present")]
    auth_time: Option<u64>,
    #[serde(borrow, default, deserialize_with = "present")]
    amr: Option<Vec<Text<'a>>>,
    epo: [u32; 3],
}

/// A text, borrowed unless it has escapes. Within an option or a list serde borrows no bare `Cow`.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl AsRef<str> for Text<'_> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// One text or a list of them (RFC 7519 section 4.1.3).
struct AudienceIn<'a>(Vec<Text<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for AudienceIn<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(AudienceVisitor(PhantomData))
    }
}

struct AudienceVisitor<'a>(PhantomData<&'a ()>);

impl<'de: 'a, 'a> Visitor<'de> for AudienceVisitor<'a> {
    type Value = AudienceIn<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an audience or a list of audiences")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(AudienceIn(vec![Text(text.into())]))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(AudienceIn(vec![Text(text.to_owned().into())]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut names = Vec::new();
        while let Some(name) = list.next_element()? {
            names.push(name);
        }
        Ok(AudienceIn(names))
    }
}

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

impl ClaimsIn<'_> {
    fn into_claims(self) -> Option<Claims> {
        let audience = Names::new(self.aud.0).ok().filter(|names| !names.is_empty())?;
        let [global, client, subject] = self.epo.map(Epoch);
        Some(Claims {
            issuer: self.iss.into(),
            subject: self.sub.parse().ok()?,
            audience,
            client: self.client_id.parse().ok()?,
            scope: self.scope.as_ref().map_or("", Text::as_ref).parse().ok()?,
            token_id: self.jti.parse().ok()?,
            session: self.sid.map(|sid| sid.as_ref().parse()).transpose().ok()?,
            issued_at: Timestamp::from_secs(self.iat),
            not_before: Timestamp::from_secs(self.nbf.unwrap_or(self.iat)),
            expires_at: Timestamp::from_secs(self.exp),
            authenticated_at: self.auth_time.map(Timestamp::from_secs),
            methods: Names::new(self.amr.unwrap_or_default()).ok()?,
            epochs: Epochs { global, client, subject },
        })
    }
}

#[cfg(test)]
mod tests;
