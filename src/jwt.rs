//! Access tokens as JWS compact (RFC 7515, RFC 9068): encoded, signed and verified. It knows keys and
//! claims, not sessions, revocations or the store.
//!
//! The pairs and public keys stay parsed: `jsonwebtoken::encode` parses the private key on every call,
//! which costs more than the signature. `jsonwebtoken` is the second opinion: before a key goes into
//! use, it must accept what that key signed, given only the public half.

use std::time::Duration;

mod error;
mod json;
mod signing;
mod verifying;

pub use error::{EncodeError, KeyError, TokenError};
pub use signing::{SigningKey, thumbprint};
pub use verifying::{KeyLookup, Rules, VerifyingKey, verify, verify_signed};

/// The longest access token in bytes; checked before anything else is.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// The most that clocks may differ between who signs and who verifies.
pub const MAX_LEEWAY: Duration = Duration::from_secs(5);
/// The shortest RSA modulus in bytes: 3072 bits are as strong as a 128-bit key (ASVS 11.2.3).
const MIN_RSA_BYTES: usize = 3072 / 8;

#[cfg(test)]
mod tests;
