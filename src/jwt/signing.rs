//! Private keys: made, parsed, and signing tokens.

use std::fmt;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RsaKeyPair, RsaPublicKeyComponents,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::json::ClaimsOut;
use super::{EncodeError, KeyError, MAX_TOKEN_BYTES, MIN_RSA_BYTES, VerifyingKey};
use crate::crypto::sha256;
use crate::domain::claims::Claims;
use crate::domain::ids::KeyId;
use crate::domain::key::{Algorithm, PublicKey};
use crate::domain::secret::SecretText;

pub(super) enum Pair {
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

/// A private key, parsed once, with the header that its tokens share.
pub struct SigningKey {
    id: KeyId,
    algorithm: Algorithm,
    pub(super) pair: Pair,
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

    pub(super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
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
