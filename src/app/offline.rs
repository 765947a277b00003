//! What is done to files while no server runs: a backup becomes a data directory, and a directory or a
//! backup is looked at.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use crate::cli::offline::{Offline, OfflineError, Restore, Restored, Verified, Verify};
use crate::crypto::OsEntropy;
use crate::crypto::stream::{StreamError, StreamKey, StreamOpener};
use crate::domain::clock::{Clock as _, SystemClock};
use crate::domain::entropy::Entropy;
use crate::domain::ids::{Cursor, LogId};
use crate::domain::secret::SecretText;
use crate::store::backup::{Change, Chunk, End, read_chunk};
use crate::store::check::check;
use crate::store::codec::SCHEMA_VERSION;
use crate::store::engine::Engine as _;
use crate::store::ledger::Ledger;
use crate::store::sled::restore::{Restore as Restoring, RestoreError, Tally};
use crate::store::sled::{SledEngine, SledSettings};
use crate::store::{OpenError, Store as _, StoreError};

/// Does it with sled.
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
        OpenError::InUse { .. } | OpenError::Io { .. } | OpenError::Unreachable { .. } => {
            OfflineError::Other(text)
        }
    }
}

fn restore(error: RestoreError) -> OfflineError {
    let text = error.to_string();
    match error {
        RestoreError::NotEmpty { .. } => OfflineError::NotEmpty(text),
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

impl Offline for Files {
    async fn restore(
        &self,
        job: Restore,
        told: &mut dyn FnMut(u64),
    ) -> Result<Restored, OfflineError> {
        let reader = Reader::open(&job.backup, &job.key)?;
        let mut restoring = Restoring::begin(&job.directory, settings()).map_err(restore)?;
        let apply = |changes: &[Change]| restoring.apply(changes).map_err(restore);
        let end = reader.read(told, apply)?;
        let entropy: &dyn Entropy = &OsEntropy;
        let log_id = LogId::from_bytes(entropy.bytes());
        let mut restored = restoring.open(&end.point, log_id).map_err(restore)?;
        let engine = restored.take_engine();
        let engine = engine.ok_or_else(|| OfflineError::Other("it did not open".to_owned()))?;
        let ledger = Ledger::new(engine);
        let findings = check(ledger.engine(), end.point.head).map_err(store)?;
        if let Some(problem) = findings.problems.first() {
            return Err(damaged(format!("the backup makes no sense: {problem}")));
        }
        if job.revoke_everything {
            let now = SystemClock::starting_at(ledger.time_floor()).now();
            ledger.revoke_after_restore(now).await.map_err(store)?;
        }
        let cursor = ledger.head();
        ledger.close().await;
        // While the directory is still locked.
        restored.finish().map_err(restore)?;
        let Cursor { log_id: was, revision } =
            Cursor { log_id: end.point.log_id, revision: end.point.head };
        Ok(Restored {
            cursor,
            saved: Cursor { log_id: was, revision },
            saved_at: end.at,
            records: findings.records,
        })
    }

    async fn verify(
        &self,
        job: Verify,
        told: &mut dyn FnMut(u64),
    ) -> Result<Verified, OfflineError> {
        match job {
            Verify::Directory(path) => {
                // Or else it would be created.
                if !path.join("avouch.hwm").try_exists().unwrap_or(false) {
                    let text = format!("{} holds no store of avouch", path.display());
                    return Err(OfflineError::Other(text));
                }
                let entropy: &dyn Entropy = &OsEntropy;
                let engine =
                    SledEngine::open(&path, &settings(), LogId::from_bytes(entropy.bytes()))
                        .map_err(open)?;
                let engine = Arc::new(engine);
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
}
