//! Records on their way from one store to another.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use super::{damaged, restore, settings, store};
use crate::cli::offline::{OfflineError, Place};
use crate::crypto::OsEntropy;
use crate::domain::entropy::Entropy;
use crate::domain::ids::{Cursor, LogId};
use crate::store::Store as _;
use crate::store::backup::{Capture, CaptureError, Captured, Change, Point};
use crate::store::etcd::restore::EtcdRestore;
use crate::store::ledger::Ledger;
use crate::store::moving::{Mark, Source};
use crate::store::sled::SledEngine;
use crate::store::sled::restore::Restore as SledRestore;

/// How many pieces are read ahead.
const AHEAD: usize = 4;

pub(super) fn captured(error: CaptureError) -> OfflineError {
    match error {
        CaptureError::Store(error) => store(error),
        other => OfflineError::Other(other.to_string()),
    }
}

/// Where records go.
pub(super) enum Target {
    Sled(Box<SledRestore>),
    Etcd(Box<EtcdRestore>),
}

impl Target {
    /// Begins a move, where nothing is yet, or goes on with one that was cut off.
    pub(super) async fn begin_move(place: &Place, anew: bool) -> Result<Self, OfflineError> {
        match place {
            Place::Directory(path) => {
                let begun = SledRestore::begin_move(path, settings(), anew).map_err(restore)?;
                Ok(Self::Sled(Box::new(begun)))
            }
            Place::Etcd { url, access } => {
                let settings = crate::app::etcd::settings(url, access);
                let begun = EtcdRestore::begin_move(settings, new_log(), anew).await;
                Ok(Self::Etcd(Box::new(begun.map_err(restore)?)))
            }
        }
    }

    /// What moves into it. Gives what is there of it.
    pub(super) fn set_source(&mut self, source: Source) -> Result<Mark, OfflineError> {
        match self {
            Self::Sled(target) => target.set_source(source),
            Self::Etcd(target) => target.set_source(source),
        }
        .map_err(restore)
    }

    /// Whether it has to be given everything, whatever is there.
    pub(super) const fn wants_everything(&self) -> bool {
        matches!(self, Self::Etcd(_))
    }

    /// Begins, where nothing is yet.
    pub(super) async fn begin(place: &Place) -> Result<Self, OfflineError> {
        match place {
            Place::Directory(path) => {
                let begun = SledRestore::begin(path, settings()).map_err(restore)?;
                Ok(Self::Sled(Box::new(begun)))
            }
            Place::Etcd { url, access } => {
                let settings = crate::app::etcd::settings(url, access);
                let begun = EtcdRestore::begin(settings, new_log()).await;
                Ok(Self::Etcd(Box::new(begun.map_err(restore)?)))
            }
        }
    }

    async fn apply(&mut self, changes: Vec<Change>, place: Vec<u8>) -> Result<(), OfflineError> {
        match self {
            Self::Sled(target) => target.apply(&changes, place).map_err(restore),
            Self::Etcd(target) => target.apply(changes).await.map_err(restore),
        }
    }

    /// Leaves it as empty as it was, as far as that can be done; but for a move that can go on with what
    /// is there.
    pub(super) async fn give_up(self, error: &OfflineError) {
        let is_damaged = matches!(error, OfflineError::Damaged(_));
        match self {
            // It knows itself, and does that when it is dropped.
            Self::Sled(target) if is_damaged => target.abandon(),
            Self::Sled(_) => {}
            Self::Etcd(target) if !is_damaged && target.can_go_on() => {}
            Self::Etcd(target) => target.abandon().await,
        }
    }

    /// From now on it opens. Says where its log stands.
    async fn finish(self, point: &Point) -> Result<Cursor, OfflineError> {
        match self {
            Self::Sled(target) => {
                let mut restored = target.open(point, new_log()).map_err(restore)?;
                let engine = restored.take_engine();
                let engine = engine.ok_or_else(|| damaged("it did not open"))?;
                let ledger = Ledger::new(engine);
                let cursor = ledger.head();
                ledger.close().await;
                // While the directory is still locked.
                restored.finish().map_err(restore)?;
                Ok(cursor)
            }
            Self::Etcd(mut target) => match target.finish(point).await.map_err(restore) {
                Ok(cursor) => Ok(cursor),
                Err(error) => {
                    Self::Etcd(target).give_up(&error).await;
                    Err(error)
                }
            },
        }
    }
}

pub(super) fn new_log() -> LogId {
    let entropy: &dyn Entropy = &OsEntropy;
    LogId::from_bytes(entropy.bytes())
}

/// Takes everything from a capture to where it goes, which comes behind `records` others. Says what it was,
/// where its log stands now, and how many records it is.
pub(super) async fn transfer(
    capture: Box<dyn Capture>,
    mut to: Target,
    records: u64,
    told: &mut dyn FnMut(u64),
) -> Result<(Point, Cursor, u64), OfflineError> {
    match fill(capture, &mut to, records, told).await {
        Ok((point, records)) => Ok((point, to.finish(&point).await?, records)),
        Err(error) => {
            to.give_up(&error).await;
            Err(error)
        }
    }
}

async fn fill(
    capture: Box<dyn Capture>,
    to: &mut Target,
    mut records: u64,
    told: &mut dyn FnMut(u64),
) -> Result<(Point, u64), OfflineError> {
    let mut pieces = reading(capture);
    while let Some((piece, place)) = pieces.recv().await {
        match piece.map_err(captured)? {
            Captured::Changes(changes) => {
                records += changes.len() as u64;
                to.apply(changes, place).await?;
                told(records);
            }
            Captured::Point(point) => return Ok((point, records)),
        }
    }
    Err(OfflineError::Other("the old store was not read to its end".to_owned()))
}

/// What a capture gives, and where it is then.
type Piece = (Result<Captured, CaptureError>, Vec<u8>);

/// What a capture gives, from a thread that may wait for it.
fn reading(mut capture: Box<dyn Capture>) -> mpsc::Receiver<Piece> {
    let (to, pieces) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        loop {
            let piece = capture.next();
            let last = !matches!(piece, Ok(Captured::Changes(_)));
            if to.blocking_send((piece, capture.place())).is_err() || last {
                return;
            }
        }
    });
    pieces
}

/// A directory of this process alone, which goes with it.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn create(within: &Path) -> Result<Self, OfflineError> {
        let path = within.join(format!("avouch-{}", new_log()));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| OfflineError::Other(format!("{}: {error}", path.display())))?;
        Ok(Self(path))
    }

    /// Where a store in it is.
    pub(super) fn store(&self) -> PathBuf {
        self.0.join("store")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot be removed; it holds a copy of the store");
        }
    }
}

/// Opens a directory that goes with its scratch.
pub(super) fn open_scratch(path: &Path) -> Result<SledEngine, OfflineError> {
    SledEngine::open(path, &settings(), new_log()).map_err(super::open)
}
