//! A stored hash and its text, the PHC string format. Knows how it is written; must not run it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use zeroize::Zeroizing;

use crate::domain::secret::SecretText;
use crate::password::params::HashParams;
use crate::password::pepper::Version;

/// The salt of a new hash, in bytes.
pub(crate) const SALT_BYTES: usize = 16;
/// The output of a new hash, in bytes.
pub(crate) const OUTPUT_BYTES: usize = 32;

const PREFIX: &str = "$argon2id$v=19$";
/// RFC 9106 section 3.1 allows less and far more; nobody writes either.
const STORED_SALT_BYTES: std::ops::RangeInclusive<usize> = 8..=64;
const STORED_OUTPUT_BYTES: std::ops::RangeInclusive<usize> = 16..=64;
/// Above any text of what these ranges allow.
const MAX_TEXT_BYTES: usize = 256;

/// A stored hash is not one that we run. It never carries the text.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PhcError {
    /// The text is not `$argon2id$v=19$m=…,t=…,p=…$salt$hash` in its one canonical form.
    #[error("is not an argon2id hash in PHC form")]
    Malformed,
    /// The settings, the salt or the output are outside what we are ready to run.
    #[error("is an argon2id hash with settings that are out of range")]
    OutOfRange,
}

/// An Argon2id hash of a password, checked to be one that may be run. Neither `Debug` nor anything but
/// [`PasswordHash::to_phc`] shows it: it can be guessed against offline.
#[derive(Clone)]
pub struct PasswordHash {
    pub(crate) params: HashParams,
    /// The key of the pepper that it was made with; none when it was made with the salt alone.
    pub(crate) key: Option<Version>,
    pub(crate) salt: Box<[u8]>,
    pub(crate) output: Zeroizing<Vec<u8>>,
}

impl PasswordHash {
    /// Reads a stored hash. A hash from another system is fine when it is Argon2id version 19.
    ///
    /// # Errors
    /// When the text is not such a hash, or is one that would cost more than a login may. A caller on
    /// the path of a login reports the corrupt record and goes on as if the user were unknown.
    pub fn from_phc(text: &str) -> Result<Self, PhcError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(PhcError::Malformed);
        }
        let rest = text.strip_prefix(PREFIX).ok_or(PhcError::Malformed)?;
        let mut fields = rest.split('$');
        let (Some(params), Some(salt), Some(output), None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err(PhcError::Malformed);
        };

        let mut params = params.split(',');
        let mut number = |name: &str| {
            let text = params.next()?.strip_prefix(name)?.strip_prefix('=')?;
            let canonical = text.starts_with(|c: char| matches!(c, '1'..='9'));
            // Only digits can follow here: a sign or a space fails to parse.
            canonical.then(|| text.parse::<u64>().ok()).flatten()
        };
        let (Some(memory), Some(iterations), Some(lanes)) = (number("m"), number("t"), number("p"))
        else {
            return Err(PhcError::Malformed);
        };
        let key = match params.next() {
            None => None,
            Some(text) => {
                let text = text.strip_prefix("keyid=").ok_or(PhcError::Malformed)?;
                Some(read_key_id(text).ok_or(PhcError::Malformed)?)
            }
        };
        if params.next().is_some() {
            return Err(PhcError::Malformed);
        }
        let small = |n: u64| u32::try_from(n).map_err(|_| PhcError::OutOfRange);
        let params = HashParams::stored(small(memory)?, small(iterations)?, small(lanes)?)
            .map_err(|_| PhcError::OutOfRange)?;

        let decode = |text| STANDARD_NO_PAD.decode(text).map_err(|_| PhcError::Malformed);
        let (salt, output) = (decode(salt)?, Zeroizing::new(decode(output)?));
        if !STORED_SALT_BYTES.contains(&salt.len()) || !STORED_OUTPUT_BYTES.contains(&output.len())
        {
            return Err(PhcError::OutOfRange);
        }
        Ok(Self { params, key, salt: salt.into(), output })
    }

    /// The text to store, `$argon2id$v=19$m=19456,t=2,p=1$salt$hash`, with `,keyid=…` after the
    /// settings if there is a pepper.
    pub fn to_phc(&self) -> SecretText {
        let encode = |bytes: &[u8]| STANDARD_NO_PAD.encode(bytes);
        let key = self
            .key
            .map_or_else(String::new, |key| format!(",keyid={}", encode(&key.get().to_be_bytes())));
        let output = Zeroizing::new(encode(&self.output));
        SecretText::new(format!("{PREFIX}{}{key}${}${}", self.params, encode(&self.salt), *output))
    }

    /// The settings it was made with.
    pub const fn params(&self) -> &HashParams {
        &self.params
    }

    /// Whether a hash made now with the `current` settings and the current key of the pepper would
    /// be better than this one.
    pub fn needs_rehash(&self, current: &HashParams, key: Option<Version>) -> bool {
        self.params.is_below(current)
            || self.key != key
            || self.salt.len() < SALT_BYTES
            || self.output.len() < OUTPUT_BYTES
    }
}

/// The version of a pepper in two bytes, big-endian.
fn read_key_id(text: &str) -> Option<Version> {
    let bytes = STANDARD_NO_PAD.decode(text).ok()?;
    Version::new(u16::from_be_bytes(bytes.try_into().ok()?))
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "$argon2id$v=19$m=19456,t=2,p=1$AAECAwQFBgcICQoLDA0ODw\
                        $AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

    fn parse(text: &str) -> Result<PasswordHash, PhcError> {
        PasswordHash::from_phc(text)
    }

    #[test]
    fn reads_what_it_writes() {
        let hash = parse(GOOD).unwrap();
        assert_eq!(hash.to_phc().expose(), GOOD);
        assert_eq!(hash.params(), &HashParams::default());
        assert_eq!(*hash.salt, *Vec::from_iter(0..16));
        assert_eq!(*hash.output, Vec::from_iter(0..32));
        assert!(!hash.needs_rehash(&HashParams::default(), None));
        assert_eq!(format!("{hash:?}"), "<redacted>");
    }

    #[test]
    fn names_the_key_of_the_pepper() {
        for (version, key_id) in [(1, "AAE"), (258, "AQI"), (u16::MAX, "//8")] {
            let text = GOOD.replace("p=1", &format!("p=1,keyid={key_id}"));
            let hash = parse(&text).unwrap();
            assert_eq!(hash.key, Version::new(version));
            assert_eq!(hash.to_phc().expose(), text);
            let current = HashParams::default();
            assert!(!hash.needs_rehash(&current, Version::new(version)));
            assert!(hash.needs_rehash(&current, Version::new(2)));
            assert!(parse(GOOD).unwrap().needs_rehash(&current, Version::new(version)));
        }
    }

    #[test]
    fn refuses_every_other_form() {
        for text in [
            "",
            "$",
            "plain text",
            "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234",
            &GOOD[1..],
            &GOOD.replace("argon2id", "argon2i"),
            &GOOD.replace("argon2id", "argon2d"),
            &GOOD.replace("argon2id", "ARGON2ID"),
            &GOOD.replace("v=19", "v=16"),
            &GOOD.replace("v=19$", ""),
            &GOOD.replace("t=2,p=1", "p=1,t=2"),
            &GOOD.replace(",p=1", ""),
            &GOOD.replace("p=1", "p=1,keyid=AAAA"),
            &GOOD.replace("p=1", "p=1,keyid=AAA"),
            &GOOD.replace("p=1", "p=1,keyid=AAF"),
            &GOOD.replace("p=1", "p=1,keyid="),
            &GOOD.replace("p=1", "p=1,keyid=AAE,data=AAE"),
            &GOOD.replace("p=1", "keyid=AAE,p=1"),
            &GOOD.replace("t=2", "t=+2"),
            &GOOD.replace("t=2", "t=02"),
            &GOOD.replace("t=2", "t=0"),
            &GOOD.replace("t=2", "t=-2"),
            &GOOD.replace("t=2", "t=2 "),
            &GOOD.replace("t=2", "t=99999999999999999999999"),
            &GOOD.replace("AAEC", "AA*C"),
            &GOOD.replace("DA0ODw", "DA0ODx"),
            &format!("{GOOD}="),
            &format!("{GOOD}\n"),
            &format!("{GOOD}$"),
            &GOOD.repeat(1000),
        ] {
            assert_eq!(parse(text).unwrap_err(), PhcError::Malformed, "{text}");
        }
    }

    #[test]
    fn refuses_to_run_what_costs_too_much_or_protects_nothing() {
        for text in [
            &GOOD.replace("m=19456", "m=4194304"),
            &GOOD.replace("m=19456", "m=4294967295"),
            &GOOD.replace("m=19456", "m=4294986752"),
            &GOOD.replace("m=19456", "m=7"),
            &GOOD.replace("t=2", "t=4000000000"),
            &GOOD.replace("p=1", "p=16777215"),
            &GOOD.replace("AAECAwQFBgcICQoLDA0ODw$", "AAECAwQFBg$"),
            &GOOD.replace("AAECAwQFBgcICQoLDA0ODw$", "$"),
            &GOOD.replace("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8", "AAECAwQFBgcICQoLDA0O"),
            &GOOD.replace("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8", ""),
        ] {
            assert_eq!(parse(text).unwrap_err(), PhcError::OutOfRange, "{text}");
        }
    }

    #[test]
    fn asks_for_a_new_hash_when_the_stored_one_is_less() {
        let current = HashParams::default();
        assert!(parse(&GOOD.replace("t=2", "t=1")).unwrap().needs_rehash(&current, None));
        assert!(!parse(&GOOD.replace("t=2", "t=3")).unwrap().needs_rehash(&current, None));
        let short_salt = GOOD.replace("AAECAwQFBgcICQoLDA0ODw$", "AAECAwQFBgcICQoL$");
        assert!(parse(&short_salt).unwrap().needs_rehash(&current, None));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in any::<String>(), cut in 0..GOOD.len(), byte in "[ -~]") {
            let _ = parse(&text);
            let _ = parse(&format!("{PREFIX}{text}"));
            let mut near = GOOD.to_owned();
            near.replace_range(cut..=cut, &byte);
            if let Ok(hash) = parse(&near) {
                prop_assert_eq!(hash.to_phc().into_exposed(), near);
            }
        }
    }
}
