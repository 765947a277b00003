//! User names in their one canonical spelling. How a spelling becomes canonical is [RFC 8265]'s
//! business and none of this module's.
//!
//! [RFC 8265]: https://www.rfc-editor.org/rfc/rfc8265

use std::fmt;

/// The longest user name, in bytes of its canonical spelling.
pub const MAX_USERNAME_BYTES: usize = 256;

/// Why a text is not a user name. It never carries the text.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("must not be empty")]
    Empty,
    /// The text is longer than a user name may be.
    #[error("is too long")]
    TooLong,
    /// The text has a character, or a mix of writing directions, that a user name must not have.
    #[error("has a character that is not allowed in a user name")]
    Character,
}

/// A user name in its canonical spelling, so that equal names are equal bytes: it serves as a
/// lookup key wherever a name is registered, logged in, locked or audited.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Username(Box<str>);

impl Username {
    /// Takes back a spelling that is canonical already: what the canonicalisation made, or what
    /// [`Username::as_str`] once gave. Text from outside does not come in here.
    ///
    /// # Errors
    /// When the text cannot be a canonical name, whatever it was made by.
    pub fn from_canonical(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > MAX_USERNAME_BYTES {
            return Err(NameError::TooLong);
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(NameError::Character);
        }
        Ok(Self(text.into()))
    }

    /// The canonical spelling.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Username {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_only_what_can_be_canonical() {
        assert_eq!(Username::from_canonical("alice").map(|n| n.to_string()), Ok("alice".into()));
        let longest = "a".repeat(MAX_USERNAME_BYTES);
        assert!(Username::from_canonical(&longest).is_ok());
        for (text, error) in [
            ("", NameError::Empty),
            (&*format!("{longest}a"), NameError::TooLong),
            ("a b", NameError::Character),
            ("a\0", NameError::Character),
            ("a\u{a0}", NameError::Character),
            ("a\n", NameError::Character),
        ] {
            assert_eq!(Username::from_canonical(text), Err(error), "{text:?}");
        }
    }
}
