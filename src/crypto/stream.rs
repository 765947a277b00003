//! A long stream of bytes, sealed with AES-256-GCM chunk by chunk, so that it can be written and read
//! without holding it. A chunk that is changed, missing, repeated or moved is noticed, and so is an
//! end that comes too early or too late.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `avouchbk` |
//! | 1 | the format, 1 |
//! | 4 | a number of the caller's: the schema of what is inside |
//! | 32 | salt: each stream has a key of its own |
//! | 16 | tells the right key from another before anything is opened |
//! | 1, 4, n | each chunk: 0, or 1 for the last; its length; ciphertext and tag |
//!
//! The key of the stream and the check come from the given key by HKDF-SHA256 (RFC 5869). The nonce is
//! the number of the chunk; the header and whether it is the last are authenticated with each chunk.

use std::fmt;
use std::io::{self, Read};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::digest;
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use zeroize::Zeroizing;

use super::{KeyFileError, SealError, parse_key, sha256};
use crate::domain::entropy::Entropy;

const MAGIC: [u8; 8] = *b"avouchbk";
const FORMAT: u8 = 1;
const SALT_BYTES: usize = 32;
const CHECK_BYTES: usize = 16;
const HEADER_BYTES: usize = 8 + 1 + 4 + SALT_BYTES + CHECK_BYTES;
const TAG_BYTES: usize = 16;
const FRAME_BYTES: usize = 5;

/// The most plain bytes in one chunk.
pub const MAX_CHUNK_BYTES: usize = 128 * 1024;

/// The key that a file holds, for streams.
#[derive(Clone)]
pub struct StreamKey(Zeroizing<[u8; 32]>);

impl fmt::Debug for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamKey").finish_non_exhaustive()
    }
}

impl StreamKey {
    /// The key in a file, in the forms of [`Sealer::from_file_contents`](super::Sealer::from_file_contents).
    ///
    /// # Errors
    /// When it is no key, or plainly not random.
    pub fn from_file_contents(contents: &[u8]) -> Result<Self, KeyFileError> {
        Ok(Self(Zeroizing::new(*parse_key(contents)?.expose())))
    }

    /// The key of the stream with this salt, and what tells it from another.
    fn derive(&self, salt: &[u8]) -> Result<(LessSafeKey, [u8; CHECK_BYTES]), SealError> {
        let prk = Salt::new(HKDF_SHA256, salt).extract(&self.0[..]);
        let key = expand(&prk, b"avouch backup v1 key")?;
        let mut check = [0; CHECK_BYTES];
        check.copy_from_slice(&expand(&prk, b"avouch backup v1 check")?[..CHECK_BYTES]);
        let key = UnboundKey::new(&AES_256_GCM, &key[..]).map_err(|_| SealError::Sealing)?;
        Ok((LessSafeKey::new(key), check))
    }
}

fn expand(prk: &Prk, purpose: &[u8]) -> Result<Zeroizing<[u8; 32]>, SealError> {
    let mut out = Zeroizing::new([0; 32]);
    prk.expand(&[purpose], HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut out[..]))
        .map_err(|_| SealError::Sealing)?;
    Ok(out)
}

fn nonce(chunk: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&chunk.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn aad(header: &[u8; 32], last: u8) -> [u8; 33] {
    let mut aad = [last; 33];
    aad[..32].copy_from_slice(header);
    aad
}

/// Seals a stream.
pub struct StreamSealer {
    key: LessSafeKey,
    header: [u8; 32],
    chunk: u64,
}

impl StreamSealer {
    /// Begins a stream of things of this schema. The bytes are its head.
    ///
    /// # Errors
    /// When the library refuses.
    pub fn new(
        key: &StreamKey,
        schema: u32,
        entropy: &dyn Entropy,
    ) -> Result<(Self, Vec<u8>), SealError> {
        let salt: [u8; SALT_BYTES] = entropy.bytes();
        let (key, check) = key.derive(&salt)?;
        let head = [&MAGIC[..], &[FORMAT], &schema.to_be_bytes(), &salt, &check].concat();
        Ok((Self { key, header: sha256(&head), chunk: 0 }, head))
    }

    /// The next chunk; nothing may come after the last.
    ///
    /// # Errors
    /// When it is too long, or the library refuses.
    pub fn seal(&mut self, plain: &[u8], last: bool) -> Result<Vec<u8>, SealError> {
        if plain.len() > MAX_CHUNK_BYTES {
            return Err(SealError::Sealing);
        }
        let last = u8::from(last);
        let len = u32::try_from(plain.len() + TAG_BYTES).map_err(|_| SealError::Sealing)?;
        let mut out = Vec::with_capacity(FRAME_BYTES + plain.len() + TAG_BYTES);
        out.push(last);
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(plain);
        let aad = Aad::from(aad(&self.header, last));
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(self.chunk), aad, &mut out[FRAME_BYTES..])
            .map_err(|_| SealError::Sealing)?;
        out.extend_from_slice(tag.as_ref());
        self.chunk += 1;
        Ok(out)
    }
}

/// Why a sealed stream is not read.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It begins with something else.
    #[error("it is no backup of avouch")]
    Magic,
    /// Another version of this program wrote it.
    #[error("it has format {0}, this avouch reads format {FORMAT}")]
    Format(u8),
    /// What is inside has another schema.
    #[error("it has schema version {found}, this avouch reads version {expected}")]
    Schema {
        /// What it has.
        found: u32,
        /// What is read.
        expected: u32,
    },
    /// Another key sealed it.
    #[error("it was sealed with another key, or its first bytes are damaged")]
    Key,
    /// It ends before its end.
    #[error("it is cut off after {0} chunks")]
    Truncated(u64),
    /// A chunk is not what was sealed there.
    #[error("it is damaged in chunk {0}")]
    Damaged(u64),
    /// There is more than was sealed.
    #[error("something follows its end")]
    Trailing,
}

/// Opens what [`StreamSealer`] sealed.
pub struct StreamOpener<R> {
    source: R,
    key: LessSafeKey,
    header: [u8; 32],
    chunk: u64,
    ended: bool,
}

impl<R: Read> StreamOpener<R> {
    /// Reads the head.
    ///
    /// # Errors
    /// When it is not of such a stream, of another schema, or sealed with another key.
    pub fn new(mut source: R, key: &StreamKey, schema: u32) -> Result<Self, StreamError> {
        let mut head = [0; HEADER_BYTES];
        let read = read_up_to(&mut source, &mut head)?;
        if read < MAGIC.len() || head[..8] != MAGIC {
            return Err(StreamError::Magic);
        }
        if read < HEADER_BYTES {
            return Err(StreamError::Truncated(0));
        }
        if head[8] != FORMAT {
            return Err(StreamError::Format(head[8]));
        }
        let found = u32::from_be_bytes([head[9], head[10], head[11], head[12]]);
        if found != schema {
            return Err(StreamError::Schema { found, expected: schema });
        }
        let (key, check) = key.derive(&head[13..13 + SALT_BYTES]).map_err(|_| StreamError::Key)?;
        // No secret is compared: whoever has the file has the check.
        if check != head[13 + SALT_BYTES..] {
            return Err(StreamError::Key);
        }
        Ok(Self { source, key, header: sha256(&head), chunk: 0, ended: false })
    }

    /// The next chunk; none after the last.
    ///
    /// # Errors
    /// When it is not what was sealed, or the stream ends before its last chunk or goes on after it.
    pub fn next_chunk(&mut self) -> Result<Option<Zeroizing<Vec<u8>>>, StreamError> {
        if self.ended {
            let more = read_up_to(&mut self.source, &mut [0; 1])?;
            return if more == 0 { Ok(None) } else { Err(StreamError::Trailing) };
        }
        let chunk = self.chunk;
        let mut frame = [0; FRAME_BYTES];
        if read_up_to(&mut self.source, &mut frame)? < FRAME_BYTES {
            return Err(StreamError::Truncated(chunk));
        }
        let len = u32::from_be_bytes([frame[1], frame[2], frame[3], frame[4]]);
        let len = usize::try_from(len).map_err(|_| StreamError::Damaged(chunk))?;
        if frame[0] > 1 || !(TAG_BYTES..=MAX_CHUNK_BYTES + TAG_BYTES).contains(&len) {
            return Err(StreamError::Damaged(chunk));
        }
        let mut sealed = Zeroizing::new(vec![0; len]);
        if read_up_to(&mut self.source, &mut sealed)? < len {
            return Err(StreamError::Truncated(chunk));
        }
        let aad = Aad::from(aad(&self.header, frame[0]));
        let plain = self.key.open_in_place(nonce(chunk), aad, &mut sealed);
        let plain = plain.map_err(|_| StreamError::Damaged(chunk))?.len();
        sealed.truncate(plain);
        self.chunk += 1;
        self.ended = frame[0] == 1;
        Ok(Some(sealed))
    }
}

/// Fills `bytes` as far as the source goes.
fn read_up_to(source: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match source.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// SHA-256 of bytes as they come.
pub struct Sha256(digest::Context);

impl Default for Sha256 {
    fn default() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }
}

impl Sha256 {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest in hexadecimal.
    pub fn hex(self) -> String {
        self.0.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::entropy::SeededEntropy;

    const KEY: &[u8] = b"8f0e2c4b6d19a7f35e81c2d4960b7a3ff1e2d3c4b5a6978812345678abcdef90";

    fn key() -> StreamKey {
        StreamKey::from_file_contents(KEY).unwrap()
    }

    /// A stream of these chunks: its head and each chunk.
    fn sealed(plain: &[&[u8]]) -> Vec<Vec<u8>> {
        let (mut sealer, head) = StreamSealer::new(&key(), 7, &SeededEntropy::new(1)).unwrap();
        let last = plain.len() - 1;
        let chunks = plain.iter().enumerate();
        let chunks = chunks.map(|(n, plain)| sealer.seal(plain, n == last).unwrap());
        std::iter::once(head).chain(chunks.collect::<Vec<_>>()).collect()
    }

    fn open(bytes: &[u8], key: &StreamKey, schema: u32) -> Result<Vec<Vec<u8>>, StreamError> {
        let mut opener = StreamOpener::new(bytes, key, schema)?;
        let mut chunks = Vec::new();
        while let Some(chunk) = opener.next_chunk()? {
            chunks.push(chunk.to_vec());
        }
        Ok(chunks)
    }

    #[test]
    fn opens_what_was_sealed_and_nothing_else() {
        let parts = sealed(&[b"one", b"", b"three", b"end"]);
        let whole = parts.concat();
        assert_eq!(open(&whole, &key(), 7).unwrap(), [&b"one"[..], b"", b"three", b"end"]);
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert!(open(&changed, &key(), 7).is_err(), "byte {at}");
            assert!(open(&whole[..at], &key(), 7).is_err(), "cut at {at}");
        }
        assert!(matches!(
            open(&[&whole[..], b"x"].concat(), &key(), 7),
            Err(StreamError::Trailing)
        ));
        let without = |left: &[usize]| left.iter().map(|n| parts[*n].clone()).collect::<Vec<_>>();
        for other in
            [&[0, 2, 1, 3, 4][..], &[0, 1, 3, 4], &[0, 1, 1, 2, 3, 4], &[0, 1, 2, 3], &[0, 4]]
        {
            assert!(open(&without(other).concat(), &key(), 7).is_err(), "{other:?}");
        }
    }

    /// Whoever cuts a stream off must not make another chunk the last.
    #[test]
    fn no_other_chunk_becomes_the_last() {
        let mut parts = sealed(&[b"one", b"two", b"end"]);
        parts.pop();
        parts[2][0] = 1;
        assert!(matches!(open(&parts.concat(), &key(), 7), Err(StreamError::Damaged(1))));
    }

    #[test]
    fn says_what_is_wrong() {
        let whole = sealed(&[b"one", b"end"]).concat();
        let text = String::from_utf8(KEY.to_vec()).unwrap().replace('8', "9");
        let other = StreamKey::from_file_contents(text.as_bytes()).unwrap();
        assert!(matches!(open(&whole, &other, 7), Err(StreamError::Key)));
        let schema = open(&whole, &key(), 8);
        assert!(matches!(schema, Err(StreamError::Schema { found: 7, expected: 8 })));
        assert!(matches!(open(b"", &key(), 7), Err(StreamError::Magic)));
        assert!(matches!(open(&whole[..20], &key(), 7), Err(StreamError::Truncated(0))));
        let mut newer = whole;
        newer[8] = 2;
        assert!(matches!(open(&newer, &key(), 7), Err(StreamError::Format(2))));
        assert_eq!(format!("{:?}", key()), "StreamKey { .. }");
    }
}
