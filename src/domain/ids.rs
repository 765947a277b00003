//! Identifiers: how they are parsed, shown and compared. Not where they are stored.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The longest subject, client or key identifier, in bytes.
pub const MAX_ID_BYTES: usize = 256;

/// Why a text is not an identifier. It never carries the text.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IdError {
    /// The text is empty.
    #[error("must not be empty")]
    Empty,
    /// The text is longer than the identifier may be.
    #[error("is too long")]
    TooLong,
    /// The text has a character that this identifier must not have.
    #[error("has a character that is not allowed")]
    Character,
    /// The text is not the encoding that this identifier has.
    #[error("is not well formed")]
    Malformed,
}

/// A text identifier must be safe to put in a header, a log line and a JWT: printable ASCII
/// without space, quotes, comma, semicolon and backslash.
fn check_text(text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > MAX_ID_BYTES {
        return Err(IdError::TooLong);
    }
    let allowed = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\'' | b',' | b';' | b'\\');
    if !text.bytes().all(allowed) {
        return Err(IdError::Character);
    }
    Ok(())
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(Box<str>);

        impl $name {
            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                check_text(text)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id! {
    /// Who a token speaks for, a user or a workload: the `sub` claim (RFC 9068 section 2.2).
    SubjectId
}
text_id! {
    /// The application or service that asks for tokens: `client_id` (RFC 6749 section 2.2).
    ClientId
}
text_id! {
    /// The name of a signing key: `kid` (RFC 7517 section 4.5).
    KeyId
}

impl From<&ClientId> for SubjectId {
    /// A workload that authenticates as itself is its own subject (RFC 9068 section 2.2).
    fn from(client: &ClientId) -> Self {
        Self(client.0.clone())
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name([u8; 16]);

        impl $name {
            /// The identifier made of these 16 random bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The 16 bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }

            /// The last 64 bits, all of them random: the key of this identifier in a revocation set.
            pub const fn key64(&self) -> u64 {
                let b = &self.0;
                u64::from_be_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]])
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                if text.is_empty() {
                    return Err(IdError::Empty);
                }
                let mut bytes = [0; 16];
                match URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
                    Ok(16) => Ok(Self(bytes)),
                    Ok(_) | Err(_) => Err(IdError::Malformed),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut text = [0; 22];
                let len = URL_SAFE_NO_PAD.encode_slice(self.0, &mut text).map_err(|_| fmt::Error)?;
                f.write_str(std::str::from_utf8(&text[..len]).map_err(|_| fmt::Error)?)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

random_id! {
    /// One login, one refresh-token family: the `sid` claim. 128 random bits, base64url, 22 characters.
    SessionId
}
random_id! {
    /// One access token: the `jti` claim. 128 random bits, base64url, 22 characters.
    TokenId
}
random_id! {
    /// One history of revisions. It changes when a store is created or restored.
    LogId
}

/// A position in one log: events get rising revisions in commit order.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A position in the log. Two cursors compare only when they name the same log.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Cursor {
    /// Which log.
    pub log_id: LogId,
    /// Where in it.
    pub revision: Revision,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.log_id, self.revision)
    }
}

impl FromStr for Cursor {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let (log, revision) = text.split_once(':').ok_or(IdError::Malformed)?;
        let canonical =
            !revision.starts_with('+') && (revision == "0" || !revision.starts_with('0'));
        if !canonical {
            return Err(IdError::Malformed);
        }
        Ok(Self {
            log_id: log.parse()?,
            revision: Revision(revision.parse().map_err(|_| IdError::Malformed)?),
        })
    }
}

/// How many times a session has rotated. The current refresh token carries it.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Generation(pub u32);

/// A counter at one of three levels. Raising it kills everything issued under a lower one.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Epoch(pub u32);

/// The three epochs that a token was issued under: the `epo` claim, `[global, client, subject]`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Epochs {
    /// Of everything.
    pub global: Epoch,
    /// Of the client.
    pub client: Epoch,
    /// Of the subject.
    pub subject: Epoch,
}

impl Epochs {
    /// A token is live only if each of its epochs is at least the current one. There are no
    /// precedence rules between the levels.
    pub fn covers(&self, current: &Self) -> bool {
        self.global >= current.global
            && self.client >= current.client
            && self.subject >= current.subject
    }
}
