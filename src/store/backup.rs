//! What a backup holds: records as they lie in the engine, and the point that they make up. How they
//! stand in a chunk. Knows no file and no key.
//!
//! A chunk is a byte that says its kind, then changes, or the point. A later change of a record takes
//! the place of an earlier one.

use super::StoreError;
use super::engine::Value;
use crate::domain::clock::Timestamp;
use crate::domain::ids::{LogId, Revision};

/// A record and what it is, or that it is no more.
pub type Change = (Vec<u8>, Option<Value>);

const CHANGES: u8 = 1;
const POINT: u8 = 2;

/// The moment that a backup shows: between two groups of commits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Point {
    /// The log that was saved.
    pub log_id: LogId,
    /// Its newest revision.
    pub head: Revision,
    /// How many groups were ever written.
    pub counter: u64,
    /// What the fingerprints of all records come to.
    pub digest: u128,
}

/// The end of a backup.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct End {
    /// What it shows.
    pub point: Point,
    /// When it was reached.
    pub at: Timestamp,
    /// How many changes come before.
    pub changes: u64,
}

/// What a capture gives next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Captured {
    /// More records.
    Changes(Vec<Change>),
    /// Everything was given: this is the state at this point.
    Point(Point),
}

/// Why the state cannot be captured.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CaptureError {
    /// One at a time.
    #[error("another backup is being made")]
    Busy,
    /// More was written meanwhile than may wait for the reader.
    #[error("the backup was read more slowly than the store was written to")]
    TooSlow,
    /// The engine keeps what was written since for as long as it is told to, and that was over.
    #[error(
        "etcd has compacted the moment of the backup before all of it was read: let it keep its history longer (--auto-compaction-retention), or read faster"
    )]
    Compacted,
    /// This engine cannot.
    #[error("this store cannot be backed up")]
    Unsupported,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is something where it goes.
    #[error(
        "{path} is not empty; restore into an empty directory, or under a prefix of etcd that has nothing"
    )]
    NotEmpty {
        /// The directory, or the members and the prefix.
        path: String,
    },
    /// What was given is not what the backup says it should come to.
    #[error("the backup is damaged: {0}")]
    Damaged(String),
    /// What a move left that was cut off is of something else.
    #[error(
        "{path} holds what a move of {what} left when it was cut off; give --anew to remove that and begin anew"
    )]
    OtherMove {
        /// The directory, or the members and the prefix.
        path: String,
        /// What it was of.
        what: &'static str,
    },
    /// What is there cannot be used.
    #[error(transparent)]
    Open(#[from] super::OpenError),
}

/// Reads the whole state as of one point while others write. It never makes them wait: what they
/// change behind it is given once more.
pub trait Capture: Send {
    /// The next records, and after the last of them the point. Blocks; not for a thread of requests.
    ///
    /// # Errors
    /// See [`CaptureError`]. It is over then.
    fn next(&mut self) -> Result<Captured, CaptureError>;

    /// From where another capture, of the same records in the same state, would give what this one has
    /// not given yet.
    fn place(&self) -> Vec<u8>;
}

/// What a chunk holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Chunk {
    /// Changes.
    Changes(Vec<Change>),
    /// The end.
    End(End),
}

/// A chunk of changes in the making.
#[derive(Debug)]
pub struct ChunkWriter(Vec<u8>);

impl Default for ChunkWriter {
    fn default() -> Self {
        Self(vec![CHANGES])
    }
}

impl ChunkWriter {
    /// Adds a change.
    pub fn push(&mut self, (key, value): &Change) {
        self.bytes(key);
        match value {
            None => self.0.push(0),
            Some(value) => {
                self.0.push(1);
                self.bytes(value);
            }
        }
    }

    /// How many bytes it has.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was added.
    pub const fn is_empty(&self) -> bool {
        self.0.len() == 1
    }

    /// The chunk.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self).0
    }

    fn bytes(&mut self, bytes: &[u8]) {
        // A record has at most 4 KiB.
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&len.to_be_bytes());
        self.0.extend_from_slice(bytes);
    }
}

/// The chunk that ends a backup.
pub fn write_end(end: &End) -> Vec<u8> {
    let Point { log_id, head, counter, digest } = &end.point;
    let mut out = vec![POINT];
    out.extend_from_slice(log_id.as_bytes());
    out.extend_from_slice(&head.0.to_be_bytes());
    out.extend_from_slice(&counter.to_be_bytes());
    out.extend_from_slice(&digest.to_be_bytes());
    out.extend_from_slice(&end.at.as_millis().to_be_bytes());
    out.extend_from_slice(&end.changes.to_be_bytes());
    out
}

/// Reads a chunk; none when it is not one.
pub fn read_chunk(chunk: &[u8]) -> Option<Chunk> {
    let (kind, mut rest) = chunk.split_first()?;
    match *kind {
        CHANGES => {
            let mut changes = Vec::new();
            while !rest.is_empty() {
                let key = bytes(&mut rest)?;
                let [present] = array(&mut rest)?;
                let value = match present {
                    0 => None,
                    1 => Some(bytes(&mut rest)?),
                    _ => return None,
                };
                changes.push((key, value));
            }
            Some(Chunk::Changes(changes))
        }
        POINT => {
            let point = Point {
                log_id: LogId::from_bytes(array(&mut rest)?),
                head: Revision(u64::from_be_bytes(array(&mut rest)?)),
                counter: u64::from_be_bytes(array(&mut rest)?),
                digest: u128::from_be_bytes(array(&mut rest)?),
            };
            let at = Timestamp::from_millis(u64::from_be_bytes(array(&mut rest)?));
            let changes = u64::from_be_bytes(array(&mut rest)?);
            rest.is_empty().then_some(Chunk::End(End { point, at, changes }))
        }
        _ => None,
    }
}

fn array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, others) = rest.split_first_chunk::<N>()?;
    *rest = others;
    Some(*first)
}

fn bytes(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let len = usize::try_from(u32::from_be_bytes(array(rest)?)).ok()?;
    let (first, others) = rest.split_at_checked(len)?;
    *rest = others;
    Some(first.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_read_back_and_no_part_of_them_does() {
        let changes = vec![
            (b"key".to_vec(), Some(b"value".to_vec())),
            (b"x".to_vec(), Some(Vec::new())),
            (b"gone".to_vec(), None),
        ];
        let mut writer = ChunkWriter::default();
        assert!(writer.is_empty());
        changes.iter().for_each(|change| writer.push(change));
        let point =
            Point { log_id: LogId::from_bytes([3; 16]), head: Revision(5), counter: 7, digest: 11 };
        let end = End { point, at: Timestamp::from_millis(13), changes: 3 };
        let (changed, ended) = (writer.take(), write_end(&end));
        assert!(writer.is_empty());
        assert_eq!(read_chunk(&changed), Some(Chunk::Changes(changes)));
        assert_eq!(read_chunk(&ended), Some(Chunk::End(end)));
        assert_eq!(read_chunk(&ended[..ended.len() - 1]), None);
        assert_eq!(read_chunk(&changed[..changed.len() - 1]), None);
        assert_eq!(read_chunk(b""), None);
        assert_eq!(read_chunk(b"\x03"), None);
    }
}
