//! Scopes and audiences: sets of names, kept sorted and without repeats (RFC 6749 section 3.3).

use std::fmt;
use std::str::FromStr;

/// The most names one set may hold.
pub const MAX_NAMES: usize = 64;
/// The longest single name, in bytes.
pub const MAX_NAME_BYTES: usize = 256;

/// Why a text is not a set of names. It never carries the text.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ScopeError {
    /// A name is empty or has a character outside RFC 6749's `scope-token`.
    #[error("has a name that is not a scope-token of RFC 6749 section 3.3")]
    Malformed,
    /// The same name stands twice.
    #[error("names the same value twice")]
    Duplicate,
    /// There are too many names or one is too long.
    #[error("is too long")]
    TooLong,
}

/// A sorted set of `scope-token`s. It serves for scopes and for audiences.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Names(Box<[Box<str>]>);

impl Names {
    /// The set of these names, in any order.
    ///
    /// # Errors
    /// When a name is not a `scope-token`, stands twice, or there are too many.
    pub fn new<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Result<Self, ScopeError> {
        let names = names.into_iter();
        let mut set: Vec<Box<str>> = Vec::with_capacity(names.size_hint().0.min(MAX_NAMES));
        for name in names {
            let name = name.as_ref();
            if name.len() > MAX_NAME_BYTES || set.len() == MAX_NAMES {
                return Err(ScopeError::TooLong);
            }
            let token_char = |b: u8| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
            if name.is_empty() || !name.bytes().all(token_char) {
                return Err(ScopeError::Malformed);
            }
            set.push(name.into());
        }
        set.sort_unstable();
        if set.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(ScopeError::Duplicate);
        }
        Ok(Self(set.into()))
    }

    /// The names in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether `name` is one of them.
    pub fn contains(&self, name: &str) -> bool {
        self.0.binary_search_by(|own| own.as_ref().cmp(name)).is_ok()
    }

    /// Whether each of these names is in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.iter().all(|name| other.contains(name))
    }

    /// Whether the two sets share a name.
    pub fn intersects(&self, other: &Self) -> bool {
        self.iter().any(|name| other.contains(name))
    }

    /// The names that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(self.0.iter().filter(|name| other.contains(name)).cloned().collect())
    }
}

impl FromStr for Names {
    type Err = ScopeError;

    /// Space-delimited, as `scope` is on the wire. One space between names, none at the ends.
    fn from_str(text: &str) -> Result<Self, ScopeError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        Self::new(text.split(' '))
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(" ")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}
