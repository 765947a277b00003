//! What can be wrong with a key, with making a token, and with a token.

use super::MAX_TOKEN_BYTES;

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
