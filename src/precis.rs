//! One spelling for names and passwords, whatever keyboard they were typed on (RFC 8264, RFC
//! 8265). Knows Unicode; must not know accounts, hashes or where the text came from.
//!
//! **User names** follow the profile UsernameCaseMapped: full and half width forms are mapped, upper
//! case becomes lower case without a locale, the result is NFC and obeys the bidi rule. Compatibility
//! characters (the ligature `ﬁ`, the Kelvin sign) are refused, not folded. The characters that a
//! name may have are those of Unicode 6.3, where IANA froze the PRECIS tables; newer ones are refused.
//!
//! **Passwords** are mapped as the profile OpaqueString maps them: every kind of space becomes U+0020,
//! the result is NFC, as NIST SP 800-63B-4 section 3.1.1.2 asks. Nothing is trimmed, truncated or
//! case-mapped. We refuse less than the profile does, because its tables of 2013 know neither most
//! emoji nor the joiners and variation selectors that keyboards put between them: only control
//! characters and code points that Unicode has not assigned, whose NFC might still change. A password
//! that the profile accepts gives the same bytes here.

use precis_profiles::UsernameCaseMapped;
use precis_profiles::precis_core::profile::PrecisFastInvocation as _;
use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::is_public_assigned;

use crate::domain::secret::SecretText;
use crate::domain::username::{MAX_USERNAME_BYTES, NameError, Username};

/// The longest password that is ever hashed, in code points. A policy may only be stricter.
pub const MAX_PASSWORD_CODE_POINTS: usize = 1024;

/// The rules for names scan the text more than once per character, so longer texts are refused unseen.
/// No spelling of a name is more than three times as long as its canonical one.
const MAX_SPELLED_USERNAME_BYTES: usize = 3 * MAX_USERNAME_BYTES;

/// NFC makes of at most three code points one, and a code point has at most four bytes.
const MAX_SPELLED_PASSWORD_BYTES: usize = 3 * 4 * MAX_PASSWORD_CODE_POINTS;

/// Why a text cannot be a password at all, whatever the policy. It never carries the text.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PasswordError {
    /// The text is empty.
    #[error("must not be empty")]
    Empty,
    /// The text is longer than [`MAX_PASSWORD_CODE_POINTS`].
    #[error("is too long")]
    TooLong,
    /// The text has a control character or one that Unicode has not assigned.
    #[error("has a control character or an unassigned one")]
    Character,
}

/// The user name that this text spells.
///
/// # Errors
/// When the text spells no user name by RFC 8265 section 3.3.
pub fn username(text: &str) -> Result<Username, NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > MAX_SPELLED_USERNAME_BYTES {
        return Err(NameError::TooLong);
    }
    let name = UsernameCaseMapped::enforce(text).map_err(|_| NameError::Character)?;
    // The profile checks characters before it maps their case, and case is mapped by newer tables than
    // the check has: Cherokee letters got a lower case after Unicode 6.3, for one. A name whose canonical
    // spelling is not itself canonical would be lost, so it is refused (RFC 8264 section 7).
    let again = UsernameCaseMapped::enforce(&*name).map_err(|_| NameError::Character)?;
    if again != name {
        return Err(NameError::Character);
    }
    Username::from_canonical(&name)
}

/// The password that this text spells: the characters whose UTF-8 is hashed.
///
/// # Errors
/// When the text is empty, too long or has a character that no password may have.
pub fn password(text: &SecretText) -> Result<SecretText, PasswordError> {
    let text = text.expose();
    if text.is_empty() {
        return Err(PasswordError::Empty);
    }
    if text.len() > MAX_SPELLED_PASSWORD_BYTES {
        return Err(PasswordError::TooLong);
    }
    if text.chars().any(|c| c.is_control() || !is_public_assigned(c)) {
        return Err(PasswordError::Character);
    }
    // Room for the longest NFC there is (Unicode Annex 15, section 9), so that growing leaves no copy.
    let mut canonical = String::with_capacity(3 * text.len());
    canonical.extend(text.chars().map(plain_space).nfc());
    let canonical = SecretText::new(canonical);
    if canonical.expose().chars().count() > MAX_PASSWORD_CODE_POINTS {
        return Err(PasswordError::TooLong);
    }
    Ok(canonical)
}

/// Maps every character of the general category Zs to the space that each keyboard has.
const fn plain_space(c: char) -> char {
    match c {
        '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}' => {
            ' '
        }
        other => other,
    }
}

#[cfg(test)]
mod tests;
