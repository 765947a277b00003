//! What is done to stores while no server runs: a backup becomes one, one is looked at or moved.

mod transfer;

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use self::transfer::{Scratch, Target, captured, new_log, open_scratch, transfer};
use crate::app::etcd;
use crate::cli::offline::{
    Migrate, Migrated, Moving, Offline, OfflineError, Place, Restore, Restored, Verified, Verify,
};
use crate::crypto::OsEntropy;
use crate::crypto::stream::{StreamError, StreamKey, StreamOpener};
use crate::domain::clock::{Clock as _, SystemClock};
use crate::domain::ids::Cursor;
use crate::domain::secret::SecretText;
use crate::store::backup::{Capture, Change, Chunk, End, Point, RestoreError, read_chunk};
use crate::store::check::check;
use crate::store::codec::SCHEMA_VERSION;
use crate::store::engine::Engine;
use crate::store::etcd::EtcdEngine;
use crate::store::etcd::moving::EtcdRecords;
use crate::store::ledger::Ledger;
use crate::store::moving::{Mark, Source};
use crate::store::sled::restore::{Restore as Restoring, Tally};
use crate::store::sled::{SledEngine, SledSettings};
use crate::store::{OpenError, Store as _, StoreError};

/// Does it with the engines that there are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files;

fn damaged(what: impl ToString) -> OfflineError {
    OfflineError::Damaged(what.to_string())
}

fn stream(path: &Path, error: StreamError) -> OfflineError {
    let text = format!("{}: {error}", path.display());
    match error {
        StreamError::Io(_) => OfflineError::Other(text),
        StreamError::Key => OfflineError::Key(text),
        StreamError::Format(_) | StreamError::Schema { .. } => {
            OfflineError::Version(format!("{text}; use the avouch version that wrote it"))
        }
        StreamError::Magic
        | StreamError::Truncated(_)
        | StreamError::Damaged(_)
        | StreamError::Trailing => OfflineError::Damaged(text),
    }
}

fn open(error: OpenError) -> OfflineError {
    let text = error.to_string();
    match error {
        OpenError::Damaged { .. } | OpenError::Unfinished { .. } | OpenError::Replaced { .. } => {
            OfflineError::Damaged(text)
        }
        OpenError::Schema { .. } => OfflineError::Version(text),
        OpenError::InUse { .. }
        | OpenError::Io { .. }
        | OpenError::Moved { .. }
        | OpenError::Unreachable { .. } => OfflineError::Other(text),
    }
}

fn restore(error: RestoreError) -> OfflineError {
    let text = error.to_string();
    match error {
        RestoreError::NotEmpty { .. } | RestoreError::OtherMove { .. } => {
            OfflineError::NotEmpty(text)
        }
        RestoreError::Damaged(_) => OfflineError::Damaged(text),
        RestoreError::Open(error) => open(error),
    }
}

fn store(error: StoreError) -> OfflineError {
    match error {
        StoreError::Corrupt(_) => damaged(error),
        StoreError::Unavailable(_) | StoreError::Internal(_) => {
            OfflineError::Other(error.to_string())
        }
    }
}

/// A backup file that is read from its beginning to its end.
struct Reader<'a> {
    path: &'a Path,
    opener: StreamOpener<Box<dyn Read>>,
    changes: u64,
}

impl<'a> Reader<'a> {
    /// `-` is stdin.
    fn open(path: &'a Path, key: &SecretText) -> Result<Self, OfflineError> {
        let key = StreamKey::from_file_contents(key.expose().as_bytes())
            .map_err(|error| OfflineError::Key(error.to_string()))?;
        let source: Box<dyn Read> = if path == Path::new("-") {
            Box::new(io::stdin().lock())
        } else {
            let file = File::open(path).map_err(|error| stream(path, error.into()))?;
            Box::new(BufReader::with_capacity(1 << 20, file))
        };
        let opener =
            StreamOpener::new(source, &key, SCHEMA_VERSION).map_err(|error| stream(path, error))?;
        Ok(Self { path, opener, changes: 0 })
    }

    /// Gives all changes to `apply`, and what they are to come to.
    fn read(
        mut self,
        told: &mut dyn FnMut(u64),
        mut apply: impl FnMut(&[Change]) -> Result<(), OfflineError>,
    ) -> Result<End, OfflineError> {
        let mut end = None;
        while let Some(chunk) =
            self.opener.next_chunk().map_err(|error| stream(self.path, error))?
        {
            match read_chunk(&chunk) {
                Some(Chunk::Changes(changes)) if end.is_none() => {
                    self.changes += changes.len() as u64;
                    apply(&changes)?;
                    told(self.changes);
                }
                Some(Chunk::End(at)) if end.is_none() => end = Some(at),
                Some(_) | None => return Err(self.nonsense()),
            }
        }
        end.filter(|end| end.changes == self.changes).ok_or_else(|| self.nonsense())
    }

    fn nonsense(&self) -> OfflineError {
        damaged(format!("{}: it does not hold what a backup holds", self.path.display()))
    }
}

fn settings() -> SledSettings {
    // Nobody waits, and a slow disk is no failure here.
    SledSettings {
        flush_deadline: std::time::Duration::from_secs(600),
        min_free_bytes: 0,
        free_part: u64::MAX,
        ..SledSettings::new(SCHEMA_VERSION)
    }
}

/// Makes a directory of a backup.
async fn restore_directory(
    (backup, key): (&Path, &SecretText),
    directory: &Path,
    revoke_everything: bool,
    told: &mut dyn FnMut(u64),
) -> Result<Restored, OfflineError> {
    let reader = Reader::open(backup, key)?;
    let mut restoring = Restoring::begin(directory, settings()).map_err(restore)?;
    let apply = |changes: &[Change]| restoring.apply(changes, Vec::new()).map_err(restore);
    let end = reader.read(told, apply)?;
    let mut restored = restoring.open(&end.point, new_log()).map_err(restore)?;
    let engine = restored.take_engine();
    let engine = engine.ok_or_else(|| OfflineError::Other("it did not open".to_owned()))?;
    let ledger = Ledger::new(engine);
    let findings = check(ledger.engine(), end.point.head).map_err(store)?;
    if let Some(problem) = findings.problems.first() {
        return Err(damaged(format!("the backup makes no sense: {problem}")));
    }
    if revoke_everything {
        revoke_all(&ledger).await?;
    }
    let cursor = ledger.head();
    ledger.close().await;
    // While the directory is still locked.
    restored.finish().map_err(restore)?;
    Ok(Restored {
        cursor,
        saved: Cursor { log_id: end.point.log_id, revision: end.point.head },
        saved_at: end.at,
        records: findings.records,
    })
}

async fn revoke_all<E: Engine>(ledger: &Ledger<E>) -> Result<(), OfflineError> {
    let now = SystemClock::starting_at(ledger.time_floor()).now();
    ledger.revoke_after_restore(now).await.map(drop).map_err(store)
}

async fn verify_directory(path: &Path) -> Result<Verified, OfflineError> {
    is_there(path)?;
    let engine = Arc::new(SledEngine::open(path, &settings(), new_log()).map_err(open)?);
    let cursor = engine.head();
    let findings = check(&*engine, cursor.revision).map_err(store)?;
    engine.close().await;
    Ok(Verified {
        cursor,
        at: None,
        records: findings.records,
        problems: findings.problems,
        more_problems: findings.more_problems,
    })
}

/// A store that was taken from whoever uses it.
enum Taken {
    Sled { engine: SledEngine, source: Source, was_moved: bool },
    Etcd(EtcdRecords),
}

impl Taken {
    async fn take(from: &Place, to: &Place) -> Result<Self, OfflineError> {
        match from {
            Place::Directory(path) => {
                is_there(path)?;
                let was_moved = SledEngine::is_moved(path);
                let to = to.to_string();
                let (engine, source) =
                    SledEngine::open_to_move(path, &settings(), new_log(), &to).map_err(open)?;
                Ok(Self::Sled { engine, source, was_moved })
            }
            Place::Etcd { url, access } => {
                let records = EtcdRecords::take(etcd::settings(url, access)).await;
                Ok(Self::Etcd(records.map_err(open)?))
            }
        }
    }

    fn source(&self) -> Source {
        match self {
            Self::Sled { source, .. } => *source,
            Self::Etcd(records) => records.source(),
        }
    }

    /// Begins to read what comes behind a mark.
    fn capture(&self, mark: &Mark) -> Result<Box<dyn Capture>, OfflineError> {
        match self {
            Self::Sled { engine, .. } => engine.capture_from(&mark.place),
            Self::Etcd(records) => records.capture_from(mark),
        }
        .map_err(captured)
    }

    fn was_moved(&self) -> bool {
        match self {
            Self::Sled { was_moved, .. } => *was_moved,
            Self::Etcd(records) => records.was_moved(),
        }
    }

    async fn close(self) {
        if let Self::Sled { engine, .. } = self {
            engine.close().await;
        }
    }
}

/// Whether a directory holds a store: or else it would be created.
fn is_there(path: &Path) -> Result<(), OfflineError> {
    if path.join("avouch.hwm").try_exists().unwrap_or(false) {
        return Ok(());
    }
    Err(OfflineError::Other(format!("{} holds no store of avouch", path.display())))
}

impl Offline for Files {
    async fn restore(
        &self,
        job: Restore,
        told: &mut dyn FnMut(u64),
    ) -> Result<Restored, OfflineError> {
        let backup = (job.backup.as_path(), &job.key);
        let revoke = job.revoke_everything;
        let url = match &job.to {
            Place::Directory(path) => return restore_directory(backup, path, revoke, told).await,
            Place::Etcd { .. } => &job.to,
        };
        // Begun first, so that a prefix that is not empty is told before the backup is read.
        let target = Target::begin(url).await?;
        let made = async {
            let scratch = Scratch::create(&job.scratch)?;
            let restored = restore_directory(backup, &scratch.store(), revoke, told).await?;
            let engine = open_scratch(&scratch.store())?;
            let capture = engine.capture().map_err(captured)?;
            Ok((scratch, restored, engine, capture))
        };
        let (_scratch, restored, engine, capture) = match made.await {
            Ok(made) => made,
            Err(error) => {
                target.give_up(&error).await;
                return Err(error);
            }
        };
        let (_, cursor, _) = transfer(capture, target, 0, told).await?;
        engine.close().await;
        Ok(Restored { cursor, ..restored })
    }

    async fn verify(
        &self,
        job: Verify,
        told: &mut dyn FnMut(u64),
    ) -> Result<Verified, OfflineError> {
        match job {
            Verify::Store { place: Place::Directory(path), .. } => verify_directory(&path).await,
            Verify::Store { place: Place::Etcd { url, access }, scratch } => {
                let records =
                    EtcdRecords::look(etcd::settings(&url, &access)).await.map_err(open)?;
                let scratch = Scratch::create(&scratch)?;
                let target = Target::begin(&Place::Directory(scratch.store())).await?;
                let capture = records.capture().map_err(captured)?;
                let (Point { log_id, head, .. }, ..) = transfer(capture, target, 0, told).await?;
                let verified = verify_directory(&scratch.store()).await?;
                Ok(Verified { cursor: Cursor { log_id, revision: head }, ..verified })
            }
            Verify::Backup { path, key } => {
                let mut tally = Tally::default();
                let end = Reader::open(&path, &key)?.read(told, |changes| {
                    tally.apply(changes);
                    Ok(())
                })?;
                if !tally.comes_to(&end.point) {
                    let text = "its records do not come to what it says";
                    return Err(damaged(format!("{}: {text}", path.display())));
                }
                Ok(Verified {
                    cursor: Cursor { log_id: end.point.log_id, revision: end.point.head },
                    at: Some(end.at),
                    records: [("records", tally.records() as u64)].into(),
                    problems: Vec::new(),
                    more_problems: 0,
                })
            }
        }
    }

    async fn migrate(
        &self,
        job: Migrate,
        told: &mut dyn FnMut(Moving),
    ) -> Result<Migrated, OfflineError> {
        let Migrate { from, to, anew } = job;
        // First, so that where there is something already the old store goes on as if nothing had been.
        let mut target = Target::begin_move(&to, anew).await?;
        let taken = match Taken::take(&from, &to).await {
            Ok(taken) => taken,
            Err(error) => {
                target.give_up(&error).await;
                return Err(error);
            }
        };
        let mark = match target.set_source(taken.source()) {
            Ok(mark) => mark,
            Err(error) => {
                let was_moved = taken.was_moved();
                taken.close().await;
                // What is not going to move goes on, too.
                if !was_moved {
                    self.stay(from).await?;
                }
                return Err(error);
            }
        };
        let there = mark.progress.records;
        if there > 0 {
            told(Moving::GoesOn(there));
        }
        let (begins, records) =
            if target.wants_everything() { (Mark::new(mark.source), 0) } else { (mark, there) };
        let capture = match taken.capture(&begins) {
            Ok(capture) => capture,
            Err(error) => {
                target.give_up(&error).await;
                return Err(error);
            }
        };
        let told = &mut |records| told(Moving::Read(records));
        let (point, cursor, records) = transfer(capture, target, records, told).await?;
        taken.close().await;
        let was = Cursor { log_id: point.log_id, revision: point.head };
        Ok(Migrated { cursor, was, records, went_on_after: (there > 0).then_some(there) })
    }

    async fn stay(&self, place: Place) -> Result<(), OfflineError> {
        match place {
            Place::Directory(path) => SledEngine::give_back(&path).map_err(open),
            Place::Etcd { url, access } => {
                EtcdRecords::give_back(etcd::settings(&url, &access)).await.map_err(open)
            }
        }
    }

    async fn adopt(&self, place: Place) -> Result<Cursor, OfflineError> {
        let Place::Etcd { url, access } = place else {
            return Err(OfflineError::Other("only what is in an etcd can be adopted".to_owned()));
        };
        let settings = etcd::settings(&url, &access);
        let engine = EtcdEngine::adopt(settings, new_log(), Arc::new(OsEntropy)).await;
        let ledger = Ledger::new(engine.map_err(open)?);
        revoke_all(&ledger).await?;
        ledger.engine().finish_adoption().await.map_err(store)?;
        let cursor = ledger.head();
        ledger.close().await;
        Ok(cursor)
    }
}
