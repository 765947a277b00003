//! From a backup to a directory that opens like any other, with a log of its own. And what a backup
//! comes to without a directory.
//!
//! A file in the directory says that it is unfinished until everything is in it, synced, and has been
//! opened and checked once: a restore that is cut off leaves nothing that serves.
//!
//! A move leaves a mark with each batch, in the same write, and goes on from there when it was cut off. sled
//! may have lost the last batches, never one before another that it has; and before a move goes on, all that
//! is there is held against the mark.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::integrity::digest;
use super::mark::{Mark as HighWater, MarkFile};
use super::open::{
    DATABASE, MARK, OLDER_SNAPSHOT, SNAPSHOT, UNFINISHED_RESTORE as UNFINISHED, create_private_dir,
    io_error, lock_dir, open_locked, open_sled, remove_unfinished_snapshots, sync_dir, sync_files,
};
use super::reads::guarded;
use super::record::{META_KEY, Meta, fingerprint, seal, unseal};
use super::{SledEngine, SledSettings};
use crate::domain::ids::LogId;
use crate::store::OpenError;
use crate::store::backup::{Change, Point, RestoreError};
use crate::store::moving::{Mark, Source};

/// Where the mark of a move stands until everything was given. Then it is in the file that says that the
/// directory is unfinished.
const MOVING_KEY: &[u8] = b"!moving";

/// A directory that is being restored. Dropped before its end, it is as empty as before, unless it is of a
/// move, which can go on.
pub struct Restore {
    path: PathBuf,
    settings: SledSettings,
    created: bool,
    /// Whether what was written stays when this is dropped.
    stays: bool,
    /// What a move has written.
    mark: Option<Mark>,
    db: Option<sled::Db>,
    lock: Option<File>,
}

impl Restore {
    /// Begins, in a directory that is empty, not there yet, or left by a restore that was cut off.
    ///
    /// # Errors
    /// See [`RestoreError`].
    pub fn begin(path: &Path, settings: SledSettings) -> Result<Self, RestoreError> {
        Self::begin_with(path, settings, false)
    }

    /// Begins a move. What one left that was cut off stays, unless it is to begin anew. Next is
    /// [`Self::set_source`].
    ///
    /// # Errors
    /// See [`RestoreError`].
    pub fn begin_move(
        path: &Path,
        settings: SledSettings,
        anew: bool,
    ) -> Result<Self, RestoreError> {
        Self::begin_with(path, settings, !anew)
    }

    fn begin_with(
        path: &Path,
        settings: SledSettings,
        goes_on: bool,
    ) -> Result<Self, RestoreError> {
        let created = !path.try_exists().map_err(io_error(path))?;
        create_private_dir(path).map_err(io_error(path))?;
        let mut restore = Self {
            path: path.to_owned(),
            lock: Some(lock_dir(path)?),
            settings,
            created,
            // Nothing is removed before it is known to be a restore's.
            stays: true,
            mark: None,
            db: None,
        };
        let marker = path.join(UNFINISHED);
        if marker.try_exists().map_err(io_error(&marker))? {
            if goes_on && let Some((db, mark)) = restore.left() {
                (restore.db, restore.mark) = (Some(db), Some(mark));
                return Ok(restore);
            }
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
        restore.stays = false;
        File::create(&marker)
            .and_then(|file| file.sync_all())
            .and_then(|()| sync_dir(path))
            .map_err(io_error(&marker))?;
        let sled_path = path.join(DATABASE);
        create_private_dir(&sled_path).map_err(io_error(&sled_path))?;
        restore.db = Some(open_sled(path, &sled_path, &restore.settings)?);
        Ok(restore)
    }

    /// What a move left with which another can go on: what is there is what its mark says.
    fn left(&self) -> Option<(sled::Db, Mark)> {
        let unusable = |why: &str| {
            tracing::warn!(path = %self.path.display(), why, "a move that was cut off begins anew");
        };
        let sled_path = self.path.join(DATABASE);
        // Without it nothing was written, or it is on its way out.
        if !sled_path.join("db").try_exists().ok()? {
            return None;
        }
        remove_unfinished_snapshots(&sled_path).ok()?;
        let opened = open_sled(&self.path, &sled_path, &self.settings);
        let db = opened.inspect_err(|error| unusable(&error.to_string())).ok()?;
        let stored = guarded(|| db.get(MOVING_KEY)).ok()?;
        let marked = stored.as_ref().and_then(|stored| unseal(MOVING_KEY, stored));
        let (mark, own) = match marked {
            Some((mark, print)) => (Mark::decode(mark)?, print),
            // Of a restore, it says nothing.
            None => (Mark::decode(&fs::read(self.path.join(UNFINISHED)).ok()?)?, 0),
        };
        match digest(&db) {
            Ok(digest) if digest.wrapping_sub(own) == mark.progress.digest => Some((db, mark)),
            Ok(_) => {
                unusable("what is there is not what its mark says");
                None
            }
            Err(why) => {
                unusable(&why);
                None
            }
        }
    }

    /// What a move writes from now on comes from here. Gives what is there of it.
    ///
    /// # Errors
    /// When what is there is of something else. It stays.
    pub fn set_source(&mut self, source: Source) -> Result<Mark, RestoreError> {
        let mark = self.mark.take().unwrap_or_else(|| Mark::new(source));
        if let Some(what) = mark.refusal(&source) {
            return Err(RestoreError::OtherMove { path: self.path.display().to_string(), what });
        }
        self.stays = true;
        self.mark = Some(mark.clone());
        Ok(mark)
    }

    /// Removes what was written.
    pub fn abandon(mut self) {
        self.stays = false;
    }

    /// Writes changes, in their order; those of a move with the place behind them.
    ///
    /// # Errors
    /// When the disk refuses them.
    pub fn apply(&mut self, changes: &[Change], place: Vec<u8>) -> Result<(), RestoreError> {
        let mut batch = sled::Batch::default();
        let mut mark = self.mark.clone();
        for (key, value) in changes {
            let Some(value) = value else {
                batch.remove(key.as_slice());
                continue;
            };
            let (stored, print) = seal(key, value);
            batch.insert(key.as_slice(), stored);
            if let Some(mark) = &mut mark {
                mark.progress.records += 1;
                mark.progress.digest = mark.progress.digest.wrapping_add(print);
            }
        }
        if let Some(mark) = &mut mark {
            mark.place = place;
            batch.insert(MOVING_KEY, seal(MOVING_KEY, &mark.encode()).0);
        }
        self.db()?.apply_batch(batch).map_err(|error| self.io(io::Error::from(error)))?;
        self.mark = mark;
        Ok(())
    }

    /// Everything was given. Opens the store as a server would, which checks it, as the log `log_id`.
    /// It serves nobody before [`Restored::finish`].
    ///
    /// # Errors
    /// When what was given does not come to `point`, or the disk refuses.
    pub fn open(mut self, point: &Point, log_id: LogId) -> Result<Restored, RestoreError> {
        let opened = self.open_whole(point, log_id);
        // Nobody can go on with what is damaged.
        self.stays &= !matches!(opened, Err(RestoreError::Damaged(_)));
        Ok(Restored { engine: Some(opened?), restore: self })
    }

    fn open_whole(&mut self, point: &Point, log_id: LogId) -> Result<SledEngine, RestoreError> {
        let Point { head, counter, digest, .. } = *point;
        if let Some(mark) = &self.mark {
            if mark.progress.digest != digest {
                return Err(RestoreError::Damaged("it is not what the old store holds".to_owned()));
            }
            // From now on the mark is here.
            write_marker(&self.path, &mark.encode()).map_err(io_error(&self.path))?;
        }
        let meta = Meta { schema: self.settings.schema_version, log_id, head, counter, digest };
        let mut batch = sled::Batch::default();
        batch.remove(MOVING_KEY);
        batch.insert(META_KEY, seal(META_KEY, &meta.encode()).0);
        let db = self.db()?;
        db.apply_batch(batch)
            .and_then(|()| db.flush())
            .map_err(|error| self.io(io::Error::from(error)))?;
        self.db = None;
        sync_files(&self.path, &self.path.join(DATABASE)).map_err(|error| self.io(error))?;
        let mark = self.path.join(MARK);
        MarkFile::create(&mark, HighWater { log_id, counter, digest }).map_err(io_error(&mark))?;
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
        Ok(SledEngine::start(&self.path, &self.settings, opened)?)
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
        self.db = None;
        if self.stays {
            return;
        }
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
        let marker = self.restore.path.join(UNFINISHED);
        fs::remove_file(&marker)
            .and_then(|()| sync_dir(&self.restore.path))
            .map_err(io_error(&marker))?;
        self.restore.stays = true;
        Ok(())
    }
}

/// Writes the file that says that a directory is unfinished anew, with a mark.
fn write_marker(path: &Path, mark: &[u8]) -> io::Result<()> {
    let (marker, draft) = (path.join(UNFINISHED), path.join(UNFINISHED).with_extension("new"));
    fs::write(&draft, mark)?;
    File::open(&draft)?.sync_all()?;
    fs::rename(draft, marker)?;
    sync_dir(path)
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
    gone(fs::remove_file(path.join(UNFINISHED).with_extension("new")))?;
    sync_dir(path)?;
    if with_marker { gone(fs::remove_file(path.join(UNFINISHED))) } else { Ok(()) }
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
