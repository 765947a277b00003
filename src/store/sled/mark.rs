//! The high-water mark: how far the database had come when callers were last told so, in a file of
//! its own beside it. A database that has come less far has lost something.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::record::{fingerprint, take};
use crate::domain::ids::LogId;

const SLOT_BYTES: usize = 512;
const MAGIC: [u8; 8] = *b"avmark01";

/// How far a database has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Mark {
    /// Which log it keeps.
    pub(super) log_id: LogId,
    /// How many groups were written.
    pub(super) counter: u64,
    /// Its digest after the last of them.
    pub(super) digest: u128,
}

/// The file. It has two slots, written in turn, so that a torn write leaves the mark before it.
pub(super) struct MarkFile {
    file: File,
    second_is_next: bool,
}

impl MarkFile {
    /// Writes the file anew. The caller syncs the directory.
    pub(super) fn create(path: &Path, mark: Mark) -> io::Result<Self> {
        let draft = path.with_extension("new");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        // Both slots in full: a later write must not need a new block of the disk.
        let slot = encode(mark);
        file.write_all_at(&slot, 0)?;
        file.write_all_at(&slot, SLOT_BYTES as u64)?;
        file.sync_all()?;
        std::fs::rename(draft, path)?;
        Ok(Self { file, second_is_next: false })
    }

    /// Opens the file and reads the newest mark; none when neither slot can be read.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Option<Mark>)> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut slots = [0; 2 * SLOT_BYTES];
        let (first, second) = match file.read_exact_at(&mut slots, 0) {
            Ok(()) => (decode(&slots[..SLOT_BYTES]), decode(&slots[SLOT_BYTES..])),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => (None, None),
            Err(error) => return Err(error),
        };
        let counter = |mark: Option<Mark>| mark.map(|mark| mark.counter);
        let second_is_next = counter(first) >= counter(second);
        let newest = if second_is_next { first } else { second };
        Ok((Self { file, second_is_next }, newest))
    }

    /// Makes `mark` the newest, durably.
    pub(super) fn write(&mut self, mark: Mark) -> io::Result<()> {
        let offset = if self.second_is_next { SLOT_BYTES as u64 } else { 0 };
        self.file.write_all_at(&encode(mark), offset)?;
        self.file.sync_data()?;
        self.second_is_next = !self.second_is_next;
        Ok(())
    }
}

fn encode(mark: Mark) -> [u8; SLOT_BYTES] {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(mark.log_id.as_bytes());
    bytes.extend_from_slice(&mark.counter.to_be_bytes());
    bytes.extend_from_slice(&mark.digest.to_be_bytes());
    bytes.extend_from_slice(&fingerprint(&MAGIC, &bytes).to_be_bytes());
    let mut slot = [0; SLOT_BYTES];
    slot[..bytes.len()].copy_from_slice(&bytes);
    slot
}

fn decode(slot: &[u8]) -> Option<Mark> {
    let mut rest = slot;
    let magic = take::<8>(&mut rest)?;
    let mark = Mark {
        log_id: LogId::from_bytes(take(&mut rest)?),
        counter: u64::from_be_bytes(take(&mut rest)?),
        digest: u128::from_be_bytes(take(&mut rest)?),
    };
    let body = &slot[..slot.len() - rest.len()];
    let sealed = u128::from_be_bytes(take(&mut rest)?) == fingerprint(&MAGIC, body);
    (magic == MAGIC && sealed).then_some(mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(counter: u64) -> Mark {
        Mark { log_id: LogId::from_bytes([3; 16]), counter, digest: u128::from(counter) << 70 }
    }

    #[test]
    fn a_torn_write_leaves_the_mark_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mark");
        MarkFile::create(&path, mark(0)).unwrap();
        for counter in 1..=5 {
            let (mut file, found) = MarkFile::open(&path).unwrap();
            assert_eq!(found, Some(mark(counter - 1)));
            file.write(mark(counter)).unwrap();
        }
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole.len(), 2 * SLOT_BYTES);
        for (slot, left) in [(0, Some(mark(5))), (1, Some(mark(4)))] {
            let mut torn = whole.clone();
            torn[slot * SLOT_BYTES + 30] ^= 1;
            std::fs::write(&path, &torn).unwrap();
            assert_eq!(MarkFile::open(&path).unwrap().1, left);
        }
        std::fs::write(&path, &whole[..700]).unwrap();
        assert_eq!(MarkFile::open(&path).unwrap().1, None);
    }
}
