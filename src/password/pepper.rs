//! Keys that a password is hashed with besides its salt (NIST SP 800-63B-4 section 3.1.1.2), kept
//! outside the store, so that the store alone checks no guess. Knows versions; must not know files.

use std::num::NonZeroU16;

use crate::domain::secret::SecretBytes;

/// Which key of a [`Pepper`] a hash was made with. It stands in the hash, as `keyid`.
pub type Version = NonZeroU16;

/// Why keys make no pepper.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PepperError {
    /// Two keys have one version.
    #[error("version {0} stands there twice")]
    Twice(Version),
    /// There is no key.
    #[error("holds no key")]
    Empty,
}

/// The keys by version. The one with the highest makes new hashes; the others only check old ones.
/// The default has none, and hashes are made with the salt alone.
#[derive(Clone, Debug, Default)]
pub struct Pepper(Vec<(Version, SecretBytes<32>)>);

impl Pepper {
    /// Of these keys.
    ///
    /// # Errors
    /// When there is none, or two of one version.
    pub fn new(mut keys: Vec<(Version, SecretBytes<32>)>) -> Result<Self, PepperError> {
        keys.sort_by_key(|(version, _)| *version);
        if let Some(pair) = keys.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(PepperError::Twice(pair[0].0));
        }
        if keys.is_empty() { Err(PepperError::Empty) } else { Ok(Self(keys)) }
    }

    /// What new hashes are made with.
    pub fn current(&self) -> Option<Version> {
        self.0.last().map(|(version, _)| *version)
    }

    /// The key of a version, if it is here.
    pub(crate) fn key(&self, wanted: Version) -> Option<&SecretBytes<32>> {
        self.0.iter().find(|(version, _)| *version == wanted).map(|(_, key)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(version: u16) -> (Version, SecretBytes<32>) {
        (Version::new(version).unwrap(), SecretBytes::new([version.to_be_bytes()[1]; 32]))
    }

    #[test]
    fn the_highest_version_is_current_wherever_it_stands() {
        let pepper = Pepper::new(vec![key(7), key(300), key(2)]).unwrap();
        assert_eq!(pepper.current(), Version::new(300));
        assert_eq!(pepper.key(key(2).0), Some(&key(2).1));
        assert_eq!(pepper.key(key(3).0), None);
        assert_eq!(Pepper::default().current(), None);
        assert_eq!(Pepper::new(Vec::new()).unwrap_err(), PepperError::Empty);
        let twice = Pepper::new(vec![key(7), key(2), key(7)]).unwrap_err();
        assert_eq!(twice, PepperError::Twice(key(7).0));
        assert!(!format!("{pepper:?}").contains("44, 44"), "no key is shown");
    }
}
