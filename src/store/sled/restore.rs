//! From a backup to a directory that opens like any other, with a log of its own. And what a backup
//! comes to without a directory.
//!
//! A file in the directory says that it is unfinished until everything is in it, synced, and has been
//! opened and checked once: a restore that is cut off leaves nothing that serves.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::mark::{Mark, MarkFile};
use super::open::{
    DATABASE, MARK, OLDER_SNAPSHOT, SNAPSHOT, UNFINISHED_RESTORE, create_private_dir, io_error,
    lock_dir, open_locked, open_sled, sync_dir, sync_files,
};
use super::record::{META_KEY, Meta, fingerprint, seal};
use super::{SledEngine, SledSettings};
use crate::domain::ids::LogId;
use crate::store::OpenError;
use crate::store::backup::{Change, Point, RestoreError};

/// A directory that is being restored. Dropped before its end, it is as empty as before.
pub struct Restore {
    path: PathBuf,
    settings: SledSettings,
    created: bool,
    finished: bool,
    db: Option<sled::Db>,
    lock: Option<File>,
}

impl Restore {
    /// Begins, in a directory that is empty, not there yet, or left by a restore that was cut off.
    ///
    /// # Errors
    /// See [`RestoreError`].
    pub fn begin(path: &Path, settings: SledSettings) -> Result<Self, RestoreError> {
        let created = !path.try_exists().map_err(io_error(path))?;
        create_private_dir(path).map_err(io_error(path))?;
        let lock = lock_dir(path)?;
        let marker = path.join(UNFINISHED_RESTORE);
        if marker.try_exists().map_err(io_error(&marker))? {
            // It was empty when that restore began. What a server left since that refused to start, its
            // log of who did what or a key of its own, is no store, and stays.
            remove_ours(path, false).map_err(io_error(path))?;
        } else {
            let mut names = fs::read_dir(path)
                .and_then(|entries| {
                    entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()
                })
                .map_err(io_error(path))?;
            // What a new file system has by itself.
            names.retain(|name| name != "lost+found");
            if !names.is_empty() {
                return Err(RestoreError::NotEmpty { path: path.display().to_string() });
            }
        }
        let mut restore = Self {
            path: path.to_owned(),
            settings,
            created,
            finished: false,
            db: None,
            lock: Some(lock),
        };
        File::create(&marker)
            .and_then(|file| file.sync_all())
            .and_then(|()| sync_dir(path))
            .map_err(io_error(&marker))?;
        let sled_path = path.join(DATABASE);
        create_private_dir(&sled_path).map_err(io_error(&sled_path))?;
        restore.db = Some(open_sled(path, &sled_path, &restore.settings)?);
        Ok(restore)
    }

    /// Writes changes, in their order.
    ///
    /// # Errors
    /// When the disk refuses them.
    pub fn apply(&mut self, changes: &[Change]) -> Result<(), RestoreError> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key.as_slice(), seal(key, value).0),
                None => batch.remove(key.as_slice()),
            }
        }
        self.db()?.apply_batch(batch).map_err(|error| self.io(io::Error::from(error)))
    }

    /// Everything was given. Opens the store as a server would, which checks it, as the log `log_id`.
    /// It serves nobody before [`Restored::finish`].
    ///
    /// # Errors
    /// When what was given does not come to `point`, or the disk refuses.
    pub fn open(mut self, point: &Point, log_id: LogId) -> Result<Restored, RestoreError> {
        let Point { head, counter, digest, .. } = *point;
        let meta = Meta { schema: self.settings.schema_version, log_id, head, counter, digest };
        let db = self.db()?;
        db.insert(META_KEY, seal(META_KEY, &meta.encode()).0)
            .and_then(|_| db.flush())
            .map_err(|error| self.io(io::Error::from(error)))?;
        self.db = None;
        sync_files(&self.path, &self.path.join(DATABASE)).map_err(|error| self.io(error))?;
        let mark = self.path.join(MARK);
        MarkFile::create(&mark, Mark { log_id, counter, digest }).map_err(io_error(&mark))?;
        sync_dir(&self.path).map_err(|error| self.io(error))?;
        let lock = match self.lock.take() {
            Some(lock) => lock,
            None => lock_dir(&self.path)?,
        };
        let opened =
            open_locked(&self.path, &self.settings, log_id, lock).map_err(|error| match error {
                OpenError::Damaged { what, .. } => RestoreError::Damaged(what),
                other => RestoreError::Open(other),
            })?;
        let engine = SledEngine::start(&self.path, &self.settings, opened)?;
        Ok(Restored { engine: Some(engine), restore: self })
    }

    fn db(&self) -> Result<&sled::Db, RestoreError> {
        self.db.as_ref().ok_or_else(|| self.io(io::Error::other("it is closed")))
    }

    fn io(&self, error: io::Error) -> RestoreError {
        io_error(&self.path)(error).into()
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.db = None;
        // What cannot be removed says by its marker that it is unfinished.
        if remove_ours(&self.path, true).is_ok() && self.created {
            _ = fs::remove_dir(&self.path);
        }
    }
}

/// A restored store that serves nobody yet.
pub struct Restored {
    engine: Option<SledEngine>,
    restore: Restore,
}

impl Restored {
    /// The engine, for what is to be done before anybody is served.
    pub fn take_engine(&mut self) -> Option<SledEngine> {
        self.engine.take()
    }

    /// From now on the directory serves.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(mut self) -> Result<(), RestoreError> {
        let marker = self.restore.path.join(UNFINISHED_RESTORE);
        fs::remove_file(&marker)
            .and_then(|()| sync_dir(&self.restore.path))
            .map_err(io_error(&marker))?;
        self.restore.finished = true;
        Ok(())
    }
}

/// Removes what a restore makes, the marker last.
fn remove_ours(path: &Path, with_marker: bool) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    };
    gone(fs::remove_dir_all(path.join(DATABASE)))?;
    for name in [MARK, SNAPSHOT, OLDER_SNAPSHOT] {
        gone(fs::remove_file(path.join(name)))?;
    }
    gone(fs::remove_file(path.join(MARK).with_extension("new")))?;
    sync_dir(path)?;
    if with_marker { gone(fs::remove_file(path.join(UNFINISHED_RESTORE))) } else { Ok(()) }
}

/// Whether changes come to what a backup says, without a directory. It holds 32 bytes for each
/// record.
#[derive(Default)]
pub struct Tally {
    prints: HashMap<u128, u128>,
}

impl Tally {
    /// Adds changes, in their order.
    pub fn apply(&mut self, changes: &[Change]) {
        for (key, value) in changes {
            let at = fingerprint(key, &[]);
            match value {
                Some(value) => self.prints.insert(at, fingerprint(key, value)),
                None => self.prints.remove(&at),
            };
        }
    }

    /// How many records there are.
    pub fn records(&self) -> usize {
        self.prints.len()
    }

    /// Whether they are those of the point.
    pub fn comes_to(&self, point: &Point) -> bool {
        let sum = self.prints.values().fold(0_u128, |sum, print| sum.wrapping_add(*print));
        sum == point.digest
    }
}
