//! The refresh token: its text, its parts, and the bytes its tag is computed over. Not the keys.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::domain::ids::{Generation, SessionId};
use crate::domain::key::MacKeyId;
use crate::domain::secret::{SecretBytes, SecretText};

/// What every refresh token starts with, so that secret scanners know one when they see it.
pub const PREFIX: &str = "avr1_";
/// The length of every refresh token in bytes.
pub const TEXT_LEN: usize = PREFIX.len() + BODY_LEN.div_ceil(3) * 4 - 1;

const BODY_LEN: usize = 16 + 4 + 4 + 32;
const CONTEXT: &[u8; 17] = b"avouch refresh v1";

/// The length of the message that a tag is computed over.
pub const TAG_MESSAGE_LEN: usize = CONTEXT.len() + 16 + 4 + 32;

/// Why a text is not a refresh token. It never carries the text.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("is not a refresh token")]
pub struct NotARefreshToken;

/// A refresh token taken apart. That it parses says nothing about who made it: only its tag does.
#[derive(Clone, Eq, PartialEq)]
pub struct RefreshToken {
    session: SessionId,
    generation: Generation,
    mac_key: MacKeyId,
    tag: SecretBytes<32>,
}

impl RefreshToken {
    /// The token of these parts.
    pub const fn new(
        session: SessionId,
        generation: Generation,
        mac_key: MacKeyId,
        tag: SecretBytes<32>,
    ) -> Self {
        Self { session, generation, mac_key, tag }
    }

    /// The session it claims to belong to.
    pub const fn session(&self) -> SessionId {
        self.session
    }

    /// The generation it claims to be.
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// Which key its tag claims to be made with.
    pub const fn mac_key(&self) -> MacKeyId {
        self.mac_key
    }

    /// The tag over session, generation and the session's nonce.
    pub const fn tag(&self) -> &SecretBytes<32> {
        &self.tag
    }

    /// The token as the client gets it.
    pub fn to_text(&self) -> SecretText {
        let mut body = Zeroizing::new([0; BODY_LEN]);
        body[..16].copy_from_slice(self.session.as_bytes());
        body[16..20].copy_from_slice(&self.generation.0.to_be_bytes());
        body[20..24].copy_from_slice(&self.mac_key.0.to_be_bytes());
        body[24..].copy_from_slice(self.tag.expose());
        // The full length up front: a string that grows leaves copies of the secret behind.
        let mut text = String::with_capacity(TEXT_LEN);
        text.push_str(PREFIX);
        URL_SAFE_NO_PAD.encode_string(*body, &mut text);
        SecretText::new(text)
    }
}

impl FromStr for RefreshToken {
    type Err = NotARefreshToken;

    /// Takes the one canonical spelling and no other: RFC 4648 section 5 without padding, and with
    /// zeros in the unused bits.
    fn from_str(text: &str) -> Result<Self, NotARefreshToken> {
        if text.len() != TEXT_LEN {
            return Err(NotARefreshToken);
        }
        let encoded = text.strip_prefix(PREFIX).ok_or(NotARefreshToken)?;
        let mut body = Zeroizing::new([0; BODY_LEN]);
        match URL_SAFE_NO_PAD.decode_slice(encoded, body.as_mut_slice()) {
            Ok(BODY_LEN) => {}
            Ok(_) | Err(_) => return Err(NotARefreshToken),
        }
        let (session, rest) = body.split_first_chunk().ok_or(NotARefreshToken)?;
        let (generation, rest) = rest.split_first_chunk().ok_or(NotARefreshToken)?;
        let (mac_key, tag) = rest.split_first_chunk().ok_or(NotARefreshToken)?;
        Ok(Self {
            session: SessionId::from_bytes(*session),
            generation: Generation(u32::from_be_bytes(*generation)),
            mac_key: MacKeyId(u32::from_be_bytes(*mac_key)),
            tag: SecretBytes::new(tag.try_into().map_err(|_| NotARefreshToken)?),
        })
    }
}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RefreshToken")
            .field("session", &self.session)
            .field("generation", &self.generation)
            .field("mac_key", &self.mac_key)
            .finish_non_exhaustive()
    }
}

/// The bytes that the tag of a refresh token is computed over. Each part has a fixed length, so two
/// different tokens never share a message.
pub fn tag_message(
    session: SessionId,
    generation: Generation,
    nonce: &SecretBytes<32>,
) -> SecretBytes<TAG_MESSAGE_LEN> {
    let mut message = [0; TAG_MESSAGE_LEN];
    message[..17].copy_from_slice(CONTEXT);
    message[17..33].copy_from_slice(session.as_bytes());
    message[33..37].copy_from_slice(&generation.0.to_be_bytes());
    message[37..].copy_from_slice(nonce.expose());
    SecretBytes::new(message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(session: [u8; 16], generation: u32, mac_key: u32, tag: [u8; 32]) -> RefreshToken {
        RefreshToken::new(
            SessionId::from_bytes(session),
            Generation(generation),
            MacKeyId(mac_key),
            SecretBytes::new(tag),
        )
    }

    #[test]
    fn the_layout_never_changes() {
        let text = token([1; 16], 2, 3, [4; 32]).to_text();
        assert_eq!(
            text.expose(),
            "avr1_AQEBAQEBAQEBAQEBAQEBAQAAAAIAAAADBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ"
        );
        assert_eq!(text.expose().len(), TEXT_LEN);
        let message =
            tag_message(SessionId::from_bytes([1; 16]), Generation(2), &SecretBytes::new([5; 32]));
        let parts: &[&[u8]] = &[b"avouch refresh v1", &[1; 16], &[0, 0, 0, 2], &[5; 32]];
        assert_eq!(message.expose().as_slice(), parts.concat());
    }

    #[test]
    fn takes_one_spelling_only() {
        let text = token([0xfb; 16], 7, 1, [0xfe; 32]).to_text().into_exposed();
        let body = &text[PREFIX.len()..];
        assert!(text.parse::<RefreshToken>().is_ok());
        for other in [
            String::new(),
            PREFIX.to_owned(),
            body.to_owned(),
            format!("AVR1_{body}"),
            format!("avr2_{body}"),
            format!("{text}="),
            format!(" {text}"),
            format!("{text}\n"),
            text[..text.len() - 1].to_owned(),
            format!("{text}A"),
            text.replace('-', "+"),
            text.replace('_', "/"),
            format!("{}é", &text[..text.len() - 2]),
            text.repeat(100_000),
        ] {
            assert_eq!(other.parse::<RefreshToken>(), Err(NotARefreshToken));
        }
    }

    #[test]
    fn unused_bits_must_be_zero() {
        let text = token([1; 16], 2, 3, [4; 32]).to_text().into_exposed();
        let stem = &text[..TEXT_LEN - 1];
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let good =
            alphabet.chars().filter(|c| format!("{stem}{c}").parse::<RefreshToken>().is_ok());
        assert_eq!(good.count(), 16);
    }

    #[test]
    fn debug_hides_the_tag() {
        let shown = format!("{:?}", token([1; 16], 2, 3, [4; 32]));
        assert!(shown.contains("Generation(2)") && !shown.contains("tag"), "{shown}");
    }

    proptest! {
        #[test]
        fn comes_back_from_its_text(
            session: [u8; 16], generation: u32, mac_key: u32, tag: [u8; 32],
        ) {
            let token = token(session, generation, mac_key, tag);
            prop_assert_eq!(token.to_text().expose().parse::<RefreshToken>(), Ok(token));
        }

        #[test]
        fn never_panics_and_parses_only_what_it_would_write(text in "(avr1_)?[A-Za-z0-9_-]{70,80}|\\PC*") {
            if let Ok(token) = text.parse::<RefreshToken>() {
                prop_assert_eq!(token.to_text().into_exposed(), text);
            }
        }
    }
}
