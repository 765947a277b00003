//! Which passwords are good enough (NIST SP 800-63B-4 section 3.1.1.2). Length and a list of what
//! everybody tries first; no rules about digits and signs, which make passwords worse. Asked when a
//! password is set, never when it is checked.

use std::collections::HashSet;
use std::fmt;

use unicode_normalization::UnicodeNormalization as _;
use zeroize::Zeroizing;

use crate::domain::secret::SecretText;
use crate::domain::username::Username;
use crate::precis::{self, MAX_PASSWORD_CODE_POINTS};

/// The shortest password that a policy may allow, in code points.
pub const MIN_MIN_CODE_POINTS: usize = 8;
/// The length that every policy must allow, in code points.
pub const MIN_MAX_CODE_POINTS: usize = 64;

/// Long passwords that many people have thought of, in lower case.
const COMMON: &str = include_str!("common.txt");
/// Short words that are common passwords. What is long enough is made of them: repeated, or with one of
/// the endings below.
const WORDS: &str = include_str!("words.txt");
const ENDINGS: [&str; 24] = [
    "",
    "!",
    "1",
    "12",
    "123",
    "1234",
    "12345",
    "123456",
    "1234567",
    "12345678",
    "123456789",
    "1234567890",
    "0123456789",
    "123!",
    "1234!",
    "12345!",
    "987654321",
    "9876543210",
    "2023",
    "2024",
    "2025",
    "2026",
    "123123",
    "123456!",
];
/// What people count through, so any part of it is as easy to guess. In lower case.
const SEQUENCES: [&str; 7] = [
    "01234567890123456789012345678901234567890123456789",
    "98765432109876543210987654321098765432109876543210",
    "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz",
    "zyxwvutsrqponmlkjihgfedcbazyxwvutsrqponmlkjihgfedcba",
    "qwertyuiopasdfghjklzxcvbnm",
    "qwertzuiopasdfghjklyxcvbnm",
    "azertyuiopqsdfghjklmwxcvbn",
];
const SERVICE_NAME: &str = "avouch";

/// Why a password is not good enough. It never carries the password.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PolicyError {
    /// It is shorter than the policy asks.
    #[error("must have at least {min} characters")]
    TooShort {
        /// What the policy asks.
        min: usize,
    },
    /// It is longer than the policy allows.
    #[error("must have at most {max} characters")]
    TooLong {
        /// What the policy allows.
        max: usize,
    },
    /// It has a control character or one that Unicode has not assigned.
    #[error("has a character that no password may have")]
    Character,
    /// It is one that everybody tries first, or an operator has listed it.
    #[error("is one of the passwords that are tried first")]
    Common,
    /// It repeats a few characters, or counts through the alphabet, the digits or the keyboard.
    #[error("is a pattern that is easy to guess")]
    Pattern,
    /// It is the user's name or the name of the service.
    #[error("is the name of the user or of the service")]
    Name,
}

/// The policy makes no sense.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PolicySettingsError {
    /// It would allow passwords that are too short.
    #[error("the shortest password must have at least 8 characters")]
    MinTooLow,
    /// It would forbid passwords that must be allowed, or none would be left.
    #[error("the longest password must have at least 64 characters, and more than the shortest")]
    MaxTooLow,
    /// It would allow passwords that are never hashed.
    #[error("the longest password may have at most 1024 characters")]
    MaxTooHigh,
}

/// What a new password must be.
#[derive(Clone)]
pub struct PasswordPolicy {
    min_code_points: usize,
    max_code_points: usize,
    /// Folded, see [`fold`].
    blocked: HashSet<Box<str>>,
    /// Names of this service and of what it stands for, folded.
    names: Vec<Box<str>>,
}

impl Default for PasswordPolicy {
    /// 15 to 256 code points, and the built-in list.
    fn default() -> Self {
        Self::built_in(15, 256)
    }
}

impl PasswordPolicy {
    /// A policy with the built-in list. The lengths are in code points after NFC.
    ///
    /// # Errors
    /// When the shortest is below [`MIN_MIN_CODE_POINTS`], or the longest not between
    /// [`MIN_MAX_CODE_POINTS`] and [`MAX_PASSWORD_CODE_POINTS`] or not above the shortest.
    pub fn new(
        min_code_points: usize,
        max_code_points: usize,
    ) -> Result<Self, PolicySettingsError> {
        if min_code_points < MIN_MIN_CODE_POINTS {
            return Err(PolicySettingsError::MinTooLow);
        }
        if max_code_points > MAX_PASSWORD_CODE_POINTS {
            return Err(PolicySettingsError::MaxTooHigh);
        }
        if max_code_points < MIN_MAX_CODE_POINTS || max_code_points <= min_code_points {
            return Err(PolicySettingsError::MaxTooLow);
        }
        Ok(Self::built_in(min_code_points, max_code_points))
    }

    fn built_in(min_code_points: usize, max_code_points: usize) -> Self {
        let words = || WORDS.lines().chain([SERVICE_NAME]);
        let ended = words().flat_map(|word| ENDINGS.map(|ending| format!("{word}{ending}").into()));
        let blocked = COMMON.lines().map(Box::from).chain(ended).collect();
        let names = vec![SERVICE_NAME.into()];
        Self { min_code_points, max_code_points, blocked, names }
    }

    /// Also blocks these passwords, from a list of leaked ones for instance. Each is compared whole,
    /// whatever its case and normal form.
    #[must_use]
    pub fn blocking<S: AsRef<str>>(mut self, passwords: impl IntoIterator<Item = S>) -> Self {
        self.blocked.extend(passwords.into_iter().filter_map(entry));
        self
    }

    /// Also refuses these names as passwords: of the company, of the product.
    #[must_use]
    pub fn naming<S: AsRef<str>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.names.extend(names.into_iter().filter_map(entry));
        self
    }

    /// Whether this may become the password of this user.
    ///
    /// # Errors
    /// When it may not, with the reason to tell the user.
    pub fn check(&self, text: &SecretText, user: Option<&Username>) -> Result<(), PolicyError> {
        let password = precis::password(text).map_err(|error| match error {
            precis::PasswordError::Empty => PolicyError::TooShort { min: self.min_code_points },
            precis::PasswordError::TooLong => PolicyError::TooLong { max: self.max_code_points },
            precis::PasswordError::Character => PolicyError::Character,
        })?;
        let length = password.expose().chars().count();
        if length < self.min_code_points {
            return Err(PolicyError::TooShort { min: self.min_code_points });
        }
        if length > self.max_code_points {
            return Err(PolicyError::TooLong { max: self.max_code_points });
        }

        let folded = fold(password.expose());
        if self.blocked.contains(folded.as_str()) {
            return Err(PolicyError::Common);
        }
        let unit = unit(&folded);
        let user = user.map(|name| fold(name.as_str()));
        // Also what stands before the @ of an address.
        let local = user.as_ref().and_then(|name| name.split('@').next());
        let user = user.as_ref().map(|name| name.as_str());
        let mut names = self.names.iter().map(AsRef::as_ref).chain(user).chain(local);
        if names.any(|name| name == folded.as_str() || name == unit) {
            return Err(PolicyError::Name);
        }
        if unit.chars().count() <= 3 || SEQUENCES.iter().any(|all| all.contains(folded.as_str())) {
            return Err(PolicyError::Pattern);
        }
        if self.blocked.contains(unit) {
            return Err(PolicyError::Common);
        }
        Ok(())
    }
}

impl fmt::Debug for PasswordPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordPolicy")
            .field("min_code_points", &self.min_code_points)
            .field("max_code_points", &self.max_code_points)
            .field("blocked", &self.blocked.len())
            .finish_non_exhaustive()
    }
}

/// The form in which passwords are compared with lists: lower case, and NFC after that, for mapping case
/// can undo it.
fn fold(text: &str) -> Zeroizing<String> {
    // Room for what lower case and NFC can make of it, so that growing leaves no copy behind.
    let mut folded = Zeroizing::new(String::with_capacity(9 * text.len()));
    folded.extend(text.nfc().flat_map(char::to_lowercase).nfc());
    folded
}

/// A line of somebody's list, as it is compared. An empty line is none.
fn entry<S: AsRef<str>>(text: S) -> Option<Box<str>> {
    let folded = fold(text.as_ref());
    (!folded.is_empty()).then(|| folded.as_str().into())
}

/// The shortest start of a text that gives the whole when it is repeated, the last time perhaps in
/// part: `abc` for `abcabcab`. A text that repeats nothing is its own unit.
fn unit(text: &str) -> &str {
    text.char_indices()
        .skip(1)
        .map(|(at, _)| at)
        .find(|&at| at <= text.len() / 2 && text.starts_with(&text[at..]))
        .map_or(text, |at| &text[..at])
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    fn check(text: &str) -> Result<(), PolicyError> {
        static POLICY: LazyLock<PasswordPolicy> = LazyLock::new(PasswordPolicy::default);
        let user = Username::from_canonical("marianne.fischer@example.com").unwrap();
        POLICY.check(&SecretText::new(text.into()), Some(&user))
    }

    #[test]
    fn counts_code_points() {
        for c in ["a", "é", "語", "🤔"] {
            // The last letters keep it from being a pattern.
            assert_eq!(check(&format!("{}xyz", c.repeat(12))), Ok(()), "{c}");
            let error = PolicyError::TooShort { min: 15 };
            assert_eq!(check(&format!("{}xyz", c.repeat(11))), Err(error), "{c}");
            assert_eq!(check(&format!("{}xyz", c.repeat(253))), Ok(()), "{c}");
            let error = PolicyError::TooLong { max: 256 };
            assert_eq!(check(&format!("{}xyz", c.repeat(254))), Err(error), "{c}");
        }
        let error = PolicyError::TooShort { min: 15 };
        assert_eq!(
            check(&format!("{}xyz", "e\u{301}".repeat(11))),
            Err(error),
            "counted after NFC"
        );
        assert_eq!(check(""), Err(error));
        assert_eq!(check(&"ab c".repeat(4096)), Err(PolicyError::TooLong { max: 256 }));
        assert_eq!(check("a\0 long enough password"), Err(PolicyError::Character));
    }

    #[test]
    fn asks_for_no_kinds_of_characters() {
        for text in
            ["lowercaseletters", "only words and spaces", "8402 5519 3067 22", "ÄÖÜ ÄÖÜ äöü und so"]
        {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_tried_first() {
        for text in [
            "correcthorsebatterystaple",
            "CorrectHorseBatteryStaple",
            "passwordpassword",
            "PASSWORDPASSWORDPASSWORD",
            "letmeinletmeinletmein",
            "letmeinletmeinletme",
            "Administrator12",
            "Password123456789",
            "Contraseña123456",
            "Contrasen\u{303}a123456",
            "ЙЦУКЕНГШЩЗФЫВАПРОЛД",
        ] {
            assert_eq!(check(text), Err(PolicyError::Common), "{text}");
        }
        // Compared whole: what merely has a common one inside is fine.
        assert_eq!(check("correcthorsebatterystaple, mine"), Ok(()));
    }

    #[test]
    fn refuses_patterns() {
        for text in [
            "aaaaaaaaaaaaaaaa",
            "abababababababab",
            "xyzxyzxyzxyzxyzxyz",
            "🤔🤔🤔🤔🤔🤔🤔🤔🤔🤔🤔🤔🤔🤔🤔🤔",
            "345678901234567",
            "ghijklmnopqrstuvw",
            "WERTYUIOPASDFGHJ",
        ] {
            assert_eq!(check(text), Err(PolicyError::Pattern), "{text}");
        }
    }

    #[test]
    fn refuses_names() {
        for text in [
            "marianne.fischer",
            "Marianne.Fischer",
            "Marianne.Fischer@Example.com",
            "marianne.fischermarianne.fischer",
            "avouchavouchavouch",
            "AVOUCHavouchAVO",
        ] {
            assert_eq!(check(text), Err(PolicyError::Name), "{text}");
        }
        let policy = PasswordPolicy::default().naming(["Example Widgets", ""]);
        let check = |text: &str| policy.check(&SecretText::new(text.into()), None);
        assert_eq!(check("example widgets"), Err(PolicyError::Name));
        assert_eq!(check("marianne.fischer"), Ok(()), "of nobody in particular");
    }

    #[test]
    fn takes_lists_of_others() {
        let policy = PasswordPolicy::default().blocking(["Tre\u{301}s Secret Indeed", ""]);
        let check = |text: &str| policy.check(&SecretText::new(text.into()), None);
        assert_eq!(check("trés secret indeed"), Err(PolicyError::Common));
        assert_eq!(check("TRE\u{301}S SECRET INDEED"), Err(PolicyError::Common));
        assert_eq!(check("trés secret indeed!"), Ok(()));
        assert!(!format!("{policy:?}").contains("secret"));
    }

    #[test]
    fn refuses_policies_that_make_no_sense() {
        for (min, max, error) in [
            (7, 256, PolicySettingsError::MinTooLow),
            (15, 63, PolicySettingsError::MaxTooLow),
            (100, 100, PolicySettingsError::MaxTooLow),
            (15, 1025, PolicySettingsError::MaxTooHigh),
        ] {
            assert_eq!(PasswordPolicy::new(min, max).unwrap_err(), error);
        }
        let policy = PasswordPolicy::new(8, 1024).unwrap();
        let check = |text: &str| policy.check(&SecretText::new(text.into()), None);
        assert_eq!(check("vgbthn17"), Ok(()));
        assert_eq!(check("password"), Err(PolicyError::Common));
        assert_eq!(check("Welcome1"), Err(PolicyError::Common));
        assert_eq!(check(&format!("{}x", "a b c".repeat(204))), Ok(()));
    }

    #[test]
    fn its_lists_are_folded() {
        for text in COMMON.lines().chain(WORDS.lines()) {
            assert_eq!(fold(text).as_str(), text);
        }
        for text in COMMON.lines() {
            assert!(text.chars().count() >= 14, "{text} is too short to be of use");
        }
    }

    #[test]
    fn finds_what_is_repeated() {
        for (text, expected) in [
            ("", ""),
            ("a", "a"),
            ("aa", "a"),
            ("ab", "ab"),
            ("abcabcab", "abc"),
            ("abca", "abca"),
            ("éé", "é"),
            ("éaéaé", "éa"),
        ] {
            assert_eq!(unit(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in any::<String>(), times in 1..20_usize) {
            let _ = check(&text);
            let _ = check(&text.repeat(times));
        }
    }
}
