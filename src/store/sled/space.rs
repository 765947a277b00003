//! How much room the database takes and how much is left. sled only appends: deleting needs room
//! too, so writes must stop while there is enough left to clean up.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What was seen last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Room {
    /// Bytes that the database takes.
    pub(super) used: u64,
    /// Bytes that are free for it.
    pub(super) free: u64,
    /// Whether that is too little to take writes.
    pub(super) low: bool,
}

/// Looks at the disk, but not too often.
pub(super) struct Space {
    dir: PathBuf,
    min_free: u64,
    free_part: u64,
    seen: Mutex<Option<(Instant, Room)>>,
}

impl Space {
    /// Room is low below `min_free` bytes plus one `free_part`-th of what the database takes.
    pub(super) fn new(dir: &Path, min_free: u64, free_part: u64) -> Self {
        Self { dir: dir.to_owned(), min_free, free_part: free_part.max(1), seen: Mutex::new(None) }
    }

    /// The room there was no longer ago than `age`. A disk that cannot be asked has none.
    pub(super) fn room(&self, age: Duration) -> Room {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, room)) = *seen
            && at.elapsed() < age
        {
            return room;
        }
        let room = self.look().unwrap_or(Room { low: true, ..Room::default() });
        *seen = Some((Instant::now(), room));
        room
    }

    fn look(&self) -> io::Result<Room> {
        let used = bytes_below(&self.dir)?;
        let disk = rustix::fs::statvfs(&self.dir)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let low = free < self.min_free.saturating_add(used / self.free_part);
        Ok(Room { used, free, low })
    }
}

fn bytes_below(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // sled renames and removes files while this looks; what has gone takes no room.
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes += bytes_below(&entry.path())?,
            Ok(meta) => bytes += meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}
