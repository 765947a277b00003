//! From a directory to a database that is locked, private, synced and known to be whole.

use std::any::Any;
use std::cell::Cell;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::fs::{Advice, FlockOperation, fadvise, flock};
use rustix::io::Errno;

use super::SledSettings;
use super::integrity;
use super::mark::{Mark, MarkFile};
use super::record::{META_KEY, Meta, seal, unseal};
use crate::domain::ids::{LogId, Revision};
use crate::store::OpenError;

/// The directory of sled's files, inside the data directory.
pub(super) const DATABASE: &str = "sled";
/// The file of the high-water mark, beside it.
pub(super) const MARK: &str = "avouch.hwm";

/// The file that says that a restore into the directory did not come to its end.
pub(super) const UNFINISHED_RESTORE: &str = "restore.unfinished";

/// Is there when the records go on elsewhere, and says where.
const MOVED: &str = "avouch.moved";

/// A second name for sled's newest snapshot, beside its directory.
pub(super) const SNAPSHOT: &str = "avouch.snapshot";
/// A second name for the one before that.
pub(super) const OLDER_SNAPSHOT: &str = "avouch.snapshot.older";

/// The directory of sled's files from a first start that was cut off.
const UNFINISHED: &str = "sled.unfinished";

/// How often to try for a lock that is held: a process that is ending, or a thread of sled that is
/// letting go of a database this process has closed, needs a moment.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(25);

/// How many times as much memory a page takes in sled's cache as sled counts for it, which is what
/// it takes in the log: of a million sessions, 66 MB were in the heap where sled counted 33 MB.
const CACHE_FACTOR: u64 = 2;
/// The smallest cache. sled panics at one of no room.
const MIN_CACHE_BYTES: u64 = 1 << 20;

/// How much the kernel is asked to read at a time: as much as it reads at once for one request where
/// it is left at its defaults.
const READ_AHEAD_BYTES: u64 = 128 << 10;

/// What an engine is made of.
pub(super) struct Opened {
    pub(super) db: sled::Db,
    /// An own handle on sled's file. Linux reports a failed writeback once per handle, and sled
    /// swallows what it sees.
    pub(super) data: File,
    pub(super) mark: MarkFile,
    pub(super) meta: Meta,
    /// Holds the lock of the directory.
    pub(super) lock: File,
}

/// Opens or creates the database in `path`.
pub(super) fn open(
    path: &Path,
    settings: &SledSettings,
    new_log_id: LogId,
) -> Result<Opened, OpenError> {
    create_private_dir(path).map_err(io_error(path))?;
    let lock = lock_dir(path)?;
    if path.join(UNFINISHED_RESTORE).try_exists().map_err(io_error(path))? {
        return Err(OpenError::Unfinished { path: path.display().to_string() });
    }
    let moved = path.join(MOVED);
    if moved.try_exists().map_err(io_error(&moved))? {
        let to = fs::read_to_string(&moved).map_err(io_error(&moved))?;
        let (place, to) = (path.display().to_string(), to.trim_end().to_owned());
        return Err(OpenError::Moved { place, to });
    }
    open_locked(path, settings, new_log_id, lock)
}

/// Opens the database in `path`, and says there that it goes `to` another place.
pub(super) fn open_to_move(
    path: &Path,
    settings: &SledSettings,
    new_log_id: LogId,
    to: &str,
) -> Result<Opened, OpenError> {
    let lock = lock_dir(path)?;
    if path.join(UNFINISHED_RESTORE).try_exists().map_err(io_error(path))? {
        return Err(OpenError::Unfinished { path: path.display().to_string() });
    }
    // Before it is read: from what was read on, nobody may write.
    let moved = path.join(MOVED);
    fs::write(&moved, format!("{to}\n"))
        .and_then(|()| File::open(&moved)?.sync_all())
        .and_then(|()| sync_dir(path))
        .map_err(io_error(&moved))?;
    open_locked(path, settings, new_log_id, lock)
}

/// Whether the database in `path` goes to another place.
pub(super) fn is_moved(path: &Path) -> bool {
    path.join(MOVED).try_exists().unwrap_or(false)
}

/// Takes back that the database in `path` goes to another place.
pub(super) fn give_back(path: &Path) -> Result<(), OpenError> {
    let _lock = lock_dir(path)?;
    let moved = path.join(MOVED);
    match fs::remove_file(&moved) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(&moved)(error)),
        Ok(()) | Err(_) => sync_dir(path).map_err(io_error(path)),
    }
}

/// Opens or creates the database in `path`, whose lock is held, whether or not a restore is
/// unfinished.
pub(super) fn open_locked(
    path: &Path,
    settings: &SledSettings,
    new_log_id: LogId,
    lock: File,
) -> Result<Opened, OpenError> {
    let done = AtomicBool::new(false);
    thread::scope(|threads| {
        // Without the thread it is only slower.
        _ = thread::Builder::new()
            .spawn_scoped(threads, || read_ahead(&path.join(DATABASE).join("db"), &done));
        let opened = open_and_check(path, settings, new_log_id, lock);
        done.store(true, Ordering::Relaxed);
        opened
    })
}

/// Asks the kernel for the whole file in its order, ahead of the check, which reads it in the order
/// of the keys: where the disk is asked for a page at a time, that takes several times as long. That
/// it does not work, or the file is not there yet, is no error.
fn read_ahead(data_path: &Path, done: &AtomicBool) {
    let Ok(data) = File::open(data_path) else { return };
    let length = data.metadata().map_or(0, |meta| meta.len());
    let mut offset = 0;
    while offset < length && !done.load(Ordering::Relaxed) {
        if fadvise(&data, offset, NonZeroU64::new(READ_AHEAD_BYTES), Advice::WillNeed).is_err() {
            return;
        }
        offset += READ_AHEAD_BYTES;
    }
}

fn open_and_check(
    path: &Path,
    settings: &SledSettings,
    new_log_id: LogId,
    lock: File,
) -> Result<Opened, OpenError> {
    let damaged = |what: String| OpenError::Damaged { path: path.display().to_string(), what };
    let (mark_path, sled_path) = (path.join(MARK), path.join(DATABASE));
    let data_path = sled_path.join("db");

    let has_data = data_path.try_exists().map_err(io_error(&data_path))?;
    let has_mark = mark_path.try_exists().map_err(io_error(&mark_path))?;
    // The mark is created first, so a database without one has lost it.
    let (mut mark_file, mark) = match (has_mark, has_data) {
        (false, true) => return Err(damaged(format!("its high-water mark, {MARK}, is missing"))),
        (false, false) => {
            let mark = Mark { log_id: new_log_id, counter: 0, digest: 0 };
            let file = MarkFile::create(&mark_path, mark).map_err(io_error(&mark_path))?;
            sync_dir(path).map_err(io_error(path))?;
            (file, mark)
        }
        (true, _) => {
            let (file, mark) = MarkFile::open(&mark_path).map_err(io_error(&mark_path))?;
            let unreadable = || damaged(format!("its high-water mark, {MARK}, cannot be read"));
            (file, mark.ok_or_else(unreadable)?)
        }
    };
    if mark.counter > 0 && !has_data {
        return Err(damaged(format!("its database, {DATABASE}/db, is missing")));
    }

    create_private_dir(&sled_path).map_err(io_error(&sled_path))?;
    remove_unfinished_snapshots(&sled_path).map_err(io_error(&sled_path))?;
    keep_snapshot(path, &sled_path).map_err(io_error(&sled_path))?;
    let db = match open_sled(path, &sled_path, settings) {
        Err(OpenError::Damaged { what, .. }) if mark.counter == 0 => {
            tracing::warn!(%what, "the first start was cut off; it begins anew");
            set_aside(path, &sled_path).map_err(io_error(path))?;
            open_sled(path, &sled_path, settings)?
        }
        Err(OpenError::Damaged { what, path: at }) => {
            if !take_older_snapshot(path, &sled_path).map_err(io_error(path))? {
                return Err(OpenError::Damaged { what, path: at });
            }
            // What is read by it is held against the mark and the digest like anything else.
            tracing::warn!(%what, "the last start was cut off; the snapshot before it is read");
            open_sled(path, &sled_path, settings)?
        }
        opened => opened?,
    };
    sync_files(path, &sled_path).map_err(io_error(&sled_path))?;
    let data = File::open(&data_path).map_err(io_error(&data_path))?;

    let meta = match read_meta(&db).map_err(damaged)? {
        Some(meta) if meta.schema != settings.schema_version => {
            return Err(OpenError::Schema {
                path: path.display().to_string(),
                found: meta.schema,
                expected: settings.schema_version,
            });
        }
        Some(meta) => meta,
        None if mark.counter > 0 => {
            return Err(damaged("it is empty, but commits were acknowledged".to_owned()));
        }
        None => create_meta(&db, &data, settings.schema_version, mark.log_id)
            .map_err(io_error(&data_path))?,
    };
    integrity::verify(&db, &meta, &mark).map_err(damaged)?;
    if meta.counter > mark.counter {
        let mark = Mark { log_id: meta.log_id, counter: meta.counter, digest: meta.digest };
        // sled may have read the newest groups from memory that no disk has yet.
        data.sync_data().and_then(|()| mark_file.write(mark)).map_err(io_error(&mark_path))?;
    }
    Ok(Opened { db, data, mark: mark_file, meta, lock })
}

pub(super) fn io_error(at: &Path) -> impl FnOnce(io::Error) -> OpenError + use<> {
    let path = at.display().to_string();
    move |source| OpenError::Io { path, source }
}

pub(super) fn create_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Our own lock, since sled takes its one too late: by then a second process would have removed the
/// snapshot that the first is writing.
pub(super) fn lock_dir(path: &Path) -> Result<File, OpenError> {
    let text = || path.display().to_string();
    let dir = File::open(path).map_err(|source| OpenError::Io { path: text(), source })?;
    for _ in 0..LOCK_TRIES {
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(dir),
            Err(Errno::WOULDBLOCK) => thread::park_timeout(LOCK_PAUSE),
            Err(errno) => return Err(OpenError::Io { path: text(), source: errno.into() }),
        }
    }
    Err(OpenError::InUse { path: text() })
}

/// A kill during recovery leaves a torn snapshot, which sled would read as a whole one, for ever.
pub(super) fn remove_unfinished_snapshots(dir: &Path) -> io::Result<()> {
    for file in files_of(dir)? {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(&file)?;
        }
    }
    Ok(())
}

/// As it opens, sled writes a new snapshot, removes the old one, and syncs neither name. A power cut
/// then may leave no snapshot at all, and without one sled reads nothing from a log whose first
/// segments it has used again. So the old one keeps a second name, in a directory that is synced
/// first, and gets its name back when there is no other. It keeps that name for one start more: the
/// new one may tell of a log that was cleared, and only a part of that may have reached the disk.
fn keep_snapshot(path: &Path, sled_path: &Path) -> io::Result<()> {
    let kept = path.join(SNAPSHOT);
    let is_snapshot = |file: &PathBuf| {
        file.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with("snap."))
    };
    // The names are numbers of one length.
    let newest = files_of(sled_path)?.into_iter().filter(is_snapshot).max();
    let has_kept = kept.try_exists()?;
    match newest {
        Some(newest) => {
            if has_kept && fs::metadata(&kept)?.ino() != fs::metadata(&newest)?.ino() {
                fs::rename(&kept, path.join(OLDER_SNAPSHOT))?;
            } else if has_kept {
                fs::remove_file(&kept)?;
            }
            link(&newest, &kept)?;
            sync_dir(path)
        }
        None if has_kept => {
            link(&kept, &sled_path.join("snap.0000000000000000"))?;
            sync_dir(sled_path)
        }
        None => Ok(()),
    }
}

/// Lets sled begin with the snapshot before the one that it could not read the log by. False when
/// there is none.
fn take_older_snapshot(path: &Path, sled_path: &Path) -> io::Result<bool> {
    let older = path.join(OLDER_SNAPSHOT);
    if !older.try_exists()? {
        return Ok(false);
    }
    for file in files_of(sled_path)? {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // Each has its second name.
        if name.starts_with("snap.") {
            fs::remove_file(&file)?;
        }
    }
    link(&older, &sled_path.join("snap.0000000000000000"))?;
    sync_dir(sled_path)?;
    Ok(true)
}

/// Makes room for a new database where nothing was ever acknowledged. Whatever there is stays to be
/// looked at.
fn set_aside(path: &Path, sled_path: &Path) -> io::Result<()> {
    let aside = path.join(UNFINISHED);
    let snapshots = [SNAPSHOT, OLDER_SNAPSHOT].map(|name| fs::remove_file(path.join(name)));
    for gone in [fs::remove_dir_all(&aside)].into_iter().chain(snapshots) {
        match gone {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    fs::rename(sled_path, aside)?;
    create_private_dir(sled_path)
}

/// Where a file cannot have two names it has a copy.
fn link(file: &Path, name: &Path) -> io::Result<()> {
    if fs::hard_link(file, name).is_err() {
        fs::copy(file, name)?;
        File::open(name)?.sync_all()?;
    }
    Ok(())
}

pub(super) fn open_sled(
    path: &Path,
    sled_path: &Path,
    settings: &SledSettings,
) -> Result<sled::Db, OpenError> {
    let text = path.display().to_string();
    for _ in 0..LOCK_TRIES {
        let config = sled::Config::new()
            .path(sled_path)
            .cache_capacity((settings.cache_bytes / CACHE_FACTOR).max(MIN_CACHE_BYTES))
            .flush_every_ms(None);
        match quietly(|| config.open()) {
            Ok(Ok(db)) => return Ok(db),
            Ok(Err(sled::Error::Io(error))) if is_lock_conflict(&error) => {
                thread::park_timeout(LOCK_PAUSE);
            }
            Ok(Err(sled::Error::Io(source))) if !is_content(&source) => {
                return Err(OpenError::Io { path: text, source });
            }
            Ok(Err(error)) => {
                return Err(OpenError::Damaged { path: text, what: error.to_string() });
            }
            Err(panic) => return Err(OpenError::Damaged { path: text, what: panic }),
        }
    }
    Err(OpenError::InUse { path: text })
}

/// sled gives a lock conflict no kind of its own, only this text.
fn is_lock_conflict(error: &io::Error) -> bool {
    error.to_string().starts_with("could not acquire lock")
}

/// Whether an I/O error is about what a file holds and not about reading it.
fn is_content(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData)
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Catches a panic and gives its text, without the report on stderr: on a damaged file a panic is
/// sled's usual answer, and the operator gets the text in an error that says what to do.
fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    QUIET.set(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(false);
    result.map_err(|panic| panic_text(&*panic))
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("it cannot be read").to_owned()
}

/// sled creates its files for everybody to read and syncs neither them nor their directory.
pub(super) fn sync_files(path: &Path, sled_path: &Path) -> io::Result<()> {
    fs::set_permissions(sled_path, Permissions::from_mode(0o700))?;
    for file in files_of(sled_path)? {
        fs::set_permissions(&file, Permissions::from_mode(0o600))?;
        File::open(&file)?.sync_all()?;
    }
    sync_dir(sled_path)?;
    sync_dir(path)?;
    sync_ancestors(path)
}

/// Whoever created the directory may have created those above it, too, and none of these names is on
/// the disk before the directory that holds it is synced. Another file system was there already.
fn sync_ancestors(path: &Path) -> io::Result<()> {
    let path = path.canonicalize()?;
    let device = path.metadata()?.dev();
    for ancestor in path.ancestors().skip(1) {
        if ancestor.metadata()?.dev() != device {
            break;
        }
        match sync_dir(ancestor) {
            // Who may not read it created nothing in it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            synced => synced?,
        }
    }
    Ok(())
}

fn files_of(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}

pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn read_meta(db: &sled::Db) -> Result<Option<Meta>, String> {
    let stored = catch_unwind(AssertUnwindSafe(|| db.get(META_KEY)))
        .map_err(|panic| panic_text(&*panic))?
        .map_err(|error| error.to_string())?;
    let Some(stored) = stored else { return Ok(None) };
    let meta = unseal(META_KEY, &stored).and_then(|(value, _)| Meta::decode(value));
    meta.map(Some).ok_or_else(|| "the engine's own record cannot be read".to_owned())
}

fn create_meta(db: &sled::Db, data: &File, schema: u32, log_id: LogId) -> io::Result<Meta> {
    let meta = Meta { schema, log_id, head: Revision(0), counter: 1, digest: 0 };
    db.insert(META_KEY, seal(META_KEY, &meta.encode()).0).map_err(io::Error::from)?;
    db.flush().map_err(io::Error::from)?;
    data.sync_data()?;
    Ok(meta)
}
