//! A directory with the newest backups, one file each, named by the moment that it shows.

use std::fs::{self, DirEntry, File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::cli::failure::Failure;
use crate::domain::clock::Timestamp;

/// Where a backup is written before it has its name. One left behind is written over.
const DRAFT: &str = "avouch.backup.new";
/// The file whose lock lets one command at a time write here. The directory itself would do, but NFS
/// locks only what is open for writing.
const LOCK: &str = ".avouch.backup.lock";
const PREFIX: &str = "avouch-";
const SUFFIX: &str = ".backup";
/// `20261121T140501.123Z`, with a digit for each 0.
const MOMENT: &[u8] = b"00000000T000000.000Z";

/// A directory that no other command writes backups to meanwhile.
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Opens it. It must be there.
    pub(super) fn open(path: PathBuf) -> Result<Self, Failure> {
        let name = path.join(LOCK);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&name)
            .map_err(|error| Failure::File(name.clone(), error))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(Errno::WOULDBLOCK) => {
                let path = path.display();
                Err(Failure::Other(format!("another command writes a backup to {path}")))
            }
            Err(errno) => Err(Failure::File(name, errno.into())),
        }
    }

    /// Where a backup is written until it is whole.
    pub(super) fn draft(&self) -> PathBuf {
        self.path.join(DRAFT)
    }

    /// The file of a backup that shows the moment `at`.
    pub(super) fn file(&self, at: Timestamp) -> PathBuf {
        let moment: String = at.to_string().chars().filter(|it| !matches!(it, '-' | ':')).collect();
        self.path.join(format!("{PREFIX}{moment}{SUFFIX}"))
    }

    /// Removes all backups but `made` and the newest others, `keep` in all. What it removed, oldest
    /// first. Nothing else in the directory is touched.
    pub(super) fn prune(&self, made: &Path, keep: NonZeroUsize) -> io::Result<Vec<PathBuf>> {
        let mut others = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            // Whatever the clock was when the others were made, this one stays.
            if is_backup(&entry)? && entry.path() != made {
                others.push(entry.path());
            }
        }
        // The names sort as the moments do.
        others.sort();
        others.truncate((others.len() + 1).saturating_sub(keep.get()));
        for path in &others {
            fs::remove_file(path)?;
        }
        Ok(others)
    }
}

fn is_backup(entry: &DirEntry) -> io::Result<bool> {
    let name = entry.file_name();
    let moment = name
        .to_str()
        .and_then(|name| name.strip_prefix(PREFIX))
        .and_then(|name| name.strip_suffix(SUFFIX))
        .map(|moment| moment.bytes().map(|byte| if byte.is_ascii_digit() { b'0' } else { byte }));
    Ok(moment.is_some_and(|moment| moment.eq(MOMENT.iter().copied()))
        && entry.file_type()?.is_file())
}
