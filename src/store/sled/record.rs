//! The bytes of a record in sled: the value, then eight bytes of checksum over key and value. And
//! the engine's own record, which changes with every group.

use twox_hash::XxHash3_128;

use crate::domain::ids::{LogId, Revision};

/// Where the engine's own record stands.
pub(super) const META_KEY: &[u8] = b"!meta";

const CHECKSUM_BYTES: usize = 8;
const META_FORMAT: u8 = 1;
const META_BYTES: usize = 1 + 4 + 16 + 8 + 8 + 16;

/// Identifies a record: what its checksum and its share of the digest are made of. It guards against
/// a disk that errs, not against one who writes to it: such a one can compute it too.
pub(in crate::store) fn fingerprint(key: &[u8], value: &[u8]) -> u128 {
    #[expect(clippy::cast_possible_truncation, reason = "any 64 bits of the hash are a seed")]
    let seed = XxHash3_128::oneshot(key) as u64;
    XxHash3_128::oneshot_with_seed(seed, value)
}

/// A record as stored, and its fingerprint.
pub(super) fn seal(key: &[u8], value: &[u8]) -> (Vec<u8>, u128) {
    let print = fingerprint(key, value);
    let mut stored = Vec::with_capacity(value.len() + CHECKSUM_BYTES);
    stored.extend_from_slice(value);
    stored.extend_from_slice(&print.to_be_bytes()[..CHECKSUM_BYTES]);
    (stored, print)
}

/// The value of a stored record and its fingerprint; none when it does not match its checksum.
pub(super) fn unseal<'a>(key: &[u8], stored: &'a [u8]) -> Option<(&'a [u8], u128)> {
    let (value, checksum) = stored.split_at_checked(stored.len().checked_sub(CHECKSUM_BYTES)?)?;
    let print = fingerprint(key, value);
    (print.to_be_bytes()[..CHECKSUM_BYTES] == *checksum).then_some((value, print))
}

/// The engine's own record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Meta {
    /// The version of the records of the layers above.
    pub(super) schema: u32,
    /// Which log this is.
    pub(super) log_id: LogId,
    /// The newest revision.
    pub(super) head: Revision,
    /// How many groups were ever written, the creation included.
    pub(super) counter: u64,
    /// The sum of the fingerprints of all other records. A sum does not depend on their order, so
    /// each write moves it by what it removes and what it adds.
    pub(super) digest: u128,
}

impl Meta {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(META_BYTES);
        bytes.push(META_FORMAT);
        bytes.extend_from_slice(&self.schema.to_be_bytes());
        bytes.extend_from_slice(self.log_id.as_bytes());
        bytes.extend_from_slice(&self.head.0.to_be_bytes());
        bytes.extend_from_slice(&self.counter.to_be_bytes());
        bytes.extend_from_slice(&self.digest.to_be_bytes());
        bytes
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let [META_FORMAT] = take(&mut bytes)? else { return None };
        let meta = Self {
            schema: u32::from_be_bytes(take(&mut bytes)?),
            log_id: LogId::from_bytes(take(&mut bytes)?),
            head: Revision(u64::from_be_bytes(take(&mut bytes)?)),
            counter: u64::from_be_bytes(take(&mut bytes)?),
            digest: u128::from_be_bytes(take(&mut bytes)?),
        };
        bytes.is_empty().then_some(meta)
    }
}

/// The first `N` bytes, which `bytes` then no longer has.
pub(super) fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_covers_key_and_value() {
        let (stored, _) = seal(b"key", b"value");
        assert_eq!(unseal(b"key", &stored).unwrap().0, b"value");
        assert_eq!(unseal(b"kez", &stored), None);
        assert_eq!(unseal(b"key", b""), None);
        for bit in 0..stored.len() * 8 {
            let mut flipped = stored.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal(b"key", &flipped), None, "bit {bit}");
        }
    }

    #[test]
    fn fingerprints_stay_as_they_are_on_disk() {
        assert_eq!(fingerprint(b"", b""), 0xc8f7f0b314424d4a34f30dd222b676a2);
        assert_eq!(fingerprint(b"k", b"v"), 0xbd1ae2ca08845530ad56a59fe3682db7);
    }

    #[test]
    fn meta_reads_back_and_nothing_else_does() {
        let meta = Meta {
            schema: 7,
            log_id: LogId::from_bytes([9; 16]),
            head: Revision(11),
            counter: 13,
            digest: 17,
        };
        let bytes = meta.encode();
        assert_eq!(bytes.len(), META_BYTES);
        assert_eq!(Meta::decode(&bytes), Some(meta));
        assert_eq!(Meta::decode(&bytes[1..]), None);
        assert_eq!(Meta::decode(&[bytes.as_slice(), b"x"].concat()), None);
    }
}
