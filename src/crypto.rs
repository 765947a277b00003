//! The cryptographic leaves: random bytes, SHA-256, HMAC-SHA256 and sealing under a key from a
//! file. It knows bytes and keys, not what they stand for.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{digest, hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use crate::domain::entropy::Entropy;
use crate::domain::secret::SecretBytes;

/// The first byte of every sealed blob; another format gets another number.
const SEAL_VERSION: u8 = 1;
/// What sealing adds to the length of the plain bytes.
pub const SEAL_OVERHEAD: usize = 1 + NONCE_LEN + 16;

/// Random bytes from the operating system, by way of the library's own generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        if rand::fill(bytes).is_err() {
            // A caller cannot do anything sensible here, and a panic could be caught while the
            // buffer still holds its zeros. So the process ends rather than mint a guessable secret.
            eprintln!("avouch: the system's random number generator failed; stopping at once");
            std::process::abort();
        }
    }
}

/// The SHA-256 digest of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// A key for HMAC-SHA256 with the key schedule done once.
#[derive(Clone)]
pub struct HmacKey(hmac::Key);

impl HmacKey {
    /// Prepares the key.
    pub fn new(key: &SecretBytes<32>) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key.expose()))
    }

    /// The tag of `message`.
    pub fn sign(&self, message: &[u8]) -> SecretBytes<32> {
        let mut out = [0; 32];
        out.copy_from_slice(hmac::sign(&self.0, message).as_ref());
        SecretBytes::new(out)
    }

    /// Whether `tag` is the tag of `message`, in constant time.
    pub fn verify(&self, message: &[u8], tag: &SecretBytes<32>) -> bool {
        self.sign(message) == *tag
    }
}

impl fmt::Debug for HmacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HmacKey").finish_non_exhaustive()
    }
}

/// Why the content of a key file is not a key. It never carries the content.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyFileError {
    /// Neither 32 bytes, nor 64 hexadecimal digits, nor base64 of 32 bytes.
    #[error("the key file must hold 32 random bytes, raw, as 64 hexadecimal digits or as base64")]
    Malformed,
    /// The key is a pattern, a text or a sample, not random bytes.
    #[error("the key in the key file is not random; make one with `openssl rand -hex 32`")]
    NotRandom,
}

/// Why a blob could not be sealed or opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SealError {
    /// The blob is shorter than any sealed blob, or of a version this program does not know.
    #[error("the sealed bytes are not in a format this version knows")]
    Format,
    /// Another key sealed it, for another purpose, or it was changed.
    #[error("the sealed bytes do not open under this key")]
    Key,
    /// The library refused to seal.
    #[error("sealing failed")]
    Sealing,
}

/// Seals small blobs with AES-256-GCM under a key-encryption key, each bound to what it is for.
///
/// A sealed blob is a version byte, a random 96-bit nonce, the ciphertext and the 128-bit tag. Random
/// nonces are safe for some four thousand million blobs under one key; a ring seals a few a month.
pub struct Sealer(LessSafeKey);

impl Sealer {
    /// A sealer under this key.
    ///
    /// # Errors
    /// When the library refuses the key; it takes any 32 bytes.
    pub fn new(key: &SecretBytes<32>) -> Result<Self, SealError> {
        let key = UnboundKey::new(&AES_256_GCM, key.expose()).map_err(|_| SealError::Sealing)?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// A sealer under the key that a file holds: 32 raw bytes, 64 hexadecimal digits, or base64 in
    /// either alphabet, the texts with or without white space around them.
    ///
    /// # Errors
    /// When it is none of these, or plainly not random.
    pub fn from_file_contents(contents: &[u8]) -> Result<Self, KeyFileError> {
        let key = parse_key(contents)?;
        Self::new(&key).map_err(|_| KeyFileError::Malformed)
    }

    /// Seals `plain`. What `purpose` says must be said again to open it.
    ///
    /// # Errors
    /// When the library fails; it has no reason to for a small blob.
    pub fn seal(
        &self,
        plain: &[u8],
        purpose: &[u8],
        entropy: &dyn Entropy,
    ) -> Result<Vec<u8>, SealError> {
        let nonce: [u8; NONCE_LEN] = entropy.bytes();
        let mut sealed = Vec::with_capacity(plain.len() + SEAL_OVERHEAD);
        sealed.push(SEAL_VERSION);
        sealed.extend_from_slice(&nonce);
        let mut body = Zeroizing::new(plain.to_vec());
        let tag = self
            .0
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(purpose),
                &mut body,
            )
            .map_err(|_| SealError::Sealing)?;
        sealed.extend_from_slice(&body);
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// Opens what [`Sealer::seal`] made for the same purpose.
    ///
    /// # Errors
    /// When the format is unknown, or the key, the purpose or the bytes are not the same.
    pub fn open(&self, sealed: &[u8], purpose: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (&version, rest) = sealed.split_first().ok_or(SealError::Format)?;
        let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Format)?;
        if version != SEAL_VERSION || sealed.len() < SEAL_OVERHEAD {
            return Err(SealError::Format);
        }
        let mut plain = Zeroizing::new(body.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let len = self
            .0
            .open_in_place(nonce, Aad::from(purpose), &mut plain)
            .map_err(|_| SealError::Key)?
            .len();
        plain.truncate(len);
        Ok(plain)
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").finish_non_exhaustive()
    }
}

/// A key in a text: 64 hexadecimal digits, or base64 in either alphabet.
///
/// # Errors
/// When it is not such a text, or when the key is a pattern or a sample.
pub fn key_from_text(text: &str) -> Result<SecretBytes<32>, KeyFileError> {
    // 32 characters are a key of half the length at best, never 32 raw bytes.
    if text.len() == 32 { Err(KeyFileError::Malformed) } else { parse_key(text.as_bytes()) }
}

fn parse_key(contents: &[u8]) -> Result<SecretBytes<32>, KeyFileError> {
    let text = contents.trim_ascii();
    let bytes = if contents.len() == 32 {
        // Sixteen bytes in hexadecimal are 32 bytes too; half a key must not pass for a whole one.
        if contents.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) {
            return Err(KeyFileError::NotRandom);
        }
        Zeroizing::new(contents.to_vec())
    } else if text.len() == 64 {
        Zeroizing::new(decode_hex(text).ok_or(KeyFileError::Malformed)?)
    } else if text.len() == 43 || text.len() == 44 {
        let engines = [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD];
        let decoded = engines.iter().find_map(|engine| engine.decode(text).ok());
        Zeroizing::new(decoded.ok_or(KeyFileError::Malformed)?)
    } else {
        return Err(KeyFileError::Malformed);
    };
    let key = <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| KeyFileError::Malformed)?;
    let key = Zeroizing::new(key);
    // Zeros, a repeated word, counting up: what samples are made of. Random bytes get here once in
    // far more than 2^64 tries.
    let mut seen = [false; 256];
    key.iter().for_each(|&b| seen[usize::from(b)] = true);
    let counting = key.windows(2).all(|pair| pair[1].wrapping_sub(pair[0]) == 1);
    if seen.iter().filter(|&&s| s).count() < 12 || counting {
        return Err(KeyFileError::NotRandom);
    }
    Ok(SecretBytes::new(*key))
}

fn decode_hex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    text.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::entropy::SeededEntropy;

    const KEY_HEX: &str = "8f0e2c4b6d19a7f35e81c2d4960b7a3ff1e2d3c4b5a6978812345678abcdef90";

    fn sealer() -> Sealer {
        Sealer::from_file_contents(KEY_HEX.as_bytes()).unwrap()
    }

    #[test]
    fn the_system_gives_different_bytes_each_time() {
        let (mut a, mut b) = ([0; 32], [0; 32]);
        OsEntropy.fill(&mut a);
        OsEntropy.fill(&mut b);
        assert_ne!(a, b);
    }

    #[test]
    fn known_answers() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(
            hex(&sha256(b"abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        // RFC 4231 test case 2 pads the key "Jefe" with zeros, as HMAC itself does.
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let key = HmacKey::new(&SecretBytes::new(key));
        let tag = key.sign(b"what do ya want for nothing?");
        assert_eq!(
            hex(tag.expose()),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert!(key.verify(b"what do ya want for nothing?", &tag));
        assert!(!key.verify(b"what do ya want for nothing!", &tag));
    }

    #[test]
    fn seals_and_opens_only_for_the_same_purpose_and_key() {
        let entropy = SeededEntropy::new(1);
        let sealed = sealer().seal(b"private", b"key a", &entropy).unwrap();
        assert_eq!(sealed.len(), 7 + SEAL_OVERHEAD);
        assert_eq!(sealer().open(&sealed, b"key a").unwrap().as_slice(), b"private");
        assert_eq!(sealer().open(&sealed, b"key b").unwrap_err(), SealError::Key);
        let other = Sealer::from_file_contents(KEY_HEX.replace('8', "9").as_bytes()).unwrap();
        assert_eq!(other.open(&sealed, b"key a").unwrap_err(), SealError::Key);
        assert_ne!(sealer().seal(b"private", b"key a", &entropy).unwrap(), sealed);
    }

    #[test]
    fn any_changed_or_missing_byte_is_noticed() {
        let sealed = sealer().seal(b"private", b"key a", &SeededEntropy::new(1)).unwrap();
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 0x10;
            assert!(sealer().open(&changed, b"key a").is_err());
            assert!(sealer().open(&sealed[..at], b"key a").is_err());
        }
    }

    #[test]
    fn key_files_in_every_form_are_the_same_key() {
        let raw = decode_hex(KEY_HEX.as_bytes()).unwrap();
        let sealed = sealer().seal(b"x", b"", &SeededEntropy::new(1)).unwrap();
        let mut forms = vec![raw.clone(), KEY_HEX.to_uppercase().into_bytes()];
        forms.push(format!("  {KEY_HEX}\r\n").into_bytes());
        for engine in [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD] {
            forms.push(format!("{}\n", engine.encode(&raw)).into_bytes());
        }
        for form in forms {
            let opened = Sealer::from_file_contents(&form).unwrap().open(&sealed, b"");
            assert_eq!(opened.unwrap().as_slice(), b"x");
        }
    }

    #[test]
    fn key_files_that_are_no_key_are_refused() {
        for (contents, error) in [
            (b"".to_vec(), KeyFileError::Malformed),
            (vec![7; 31], KeyFileError::Malformed),
            (vec![7; 33], KeyFileError::Malformed),
            (vec![0; 32], KeyFileError::NotRandom),
            (vec![b'0'; 64], KeyFileError::NotRandom),
            (vec![b'g'; 64], KeyFileError::Malformed),
            (KEY_HEX.as_bytes()[..32].to_vec(), KeyFileError::NotRandom),
            ((0..32).collect(), KeyFileError::NotRandom),
            (vec![b'A'; 43], KeyFileError::NotRandom),
            (vec![b'!'; 43], KeyFileError::Malformed),
        ] {
            assert_eq!(Sealer::from_file_contents(&contents).unwrap_err(), error);
        }
    }

    #[test]
    fn nothing_shows_a_key() {
        assert_eq!(format!("{:?}", sealer()), "Sealer { .. }");
        let key = HmacKey::new(&SecretBytes::new([7; 32]));
        assert_eq!(format!("{key:?}"), "HmacKey { .. }");
    }
}
