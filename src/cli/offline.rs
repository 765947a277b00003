//! What is done without a server, as the command line asks for it. Who knows the store does it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use super::output;
use crate::config::sections::Etcd;
use crate::config::store_url::StoreUrl;
use crate::domain::clock::Timestamp;
use crate::domain::ids::Cursor;
use crate::domain::secret::SecretText;

/// How often is told how far it is.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Why a store or a backup was not used. The text says what is wrong.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// It is damaged, cut off, or nothing of avouch's.
    #[error("{0}")]
    Damaged(String),
    /// The directory is not empty.
    #[error("{0}")]
    NotEmpty(String),
    /// Another version wrote it.
    #[error("{0}")]
    Version(String),
    /// The key is another one, or none.
    #[error("{0}")]
    Key(String),
    /// Something else.
    #[error("{0}")]
    Other(String),
}

impl OfflineError {
    /// The exit code, where there is one after sysexits.h.
    pub(super) const fn exit_code(&self) -> u8 {
        match self {
            Self::Damaged(_) => 65,
            Self::NotEmpty(_) => 73,
            Self::Version(_) => 76,
            Self::Key(_) => 77,
            Self::Other(_) => 1,
        }
    }
}

/// Where a store is.
#[derive(Clone, Debug)]
pub enum Place {
    /// In a directory.
    Directory(PathBuf),
    /// In an etcd.
    Etcd {
        /// Which, and where in it.
        url: StoreUrl,
        /// What it takes to get in.
        access: Box<Etcd>,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Etcd { url, .. } => url.fmt(f),
        }
    }
}

/// A backup to restore.
#[derive(Debug)]
pub struct Restore {
    /// The file, or `-`.
    pub backup: PathBuf,
    /// Where to.
    pub to: Place,
    /// A directory with room for all of it, for what is checked before it goes to an etcd.
    pub scratch: PathBuf,
    /// What its key file holds.
    pub key: SecretText,
    /// Whether to revoke everything that was issued before.
    pub revoke_everything: bool,
}

/// What was restored.
#[derive(Debug)]
pub struct Restored {
    /// Where the new log stands.
    pub cursor: Cursor,
    /// Where the old one stood.
    pub saved: Cursor,
    /// When.
    pub saved_at: Timestamp,
    /// How many records of each kind there are.
    pub records: BTreeMap<&'static str, u64>,
}

/// What to look at.
#[derive(Debug)]
pub enum Verify {
    /// A store that no server uses.
    Store {
        /// Where it is.
        place: Place,
        /// A directory with room for all of it, where what is in an etcd is looked at.
        scratch: PathBuf,
    },
    /// A backup.
    Backup {
        /// The file, or `-`.
        path: PathBuf,
        /// What its key file holds.
        key: SecretText,
    },
}

/// What was found. It is good when there are no problems.
#[derive(Debug)]
pub struct Verified {
    /// Where the log stands.
    pub cursor: Cursor,
    /// When a backup was made.
    pub at: Option<Timestamp>,
    /// How many records of each kind there are.
    pub records: BTreeMap<&'static str, u64>,
    /// What is wrong.
    pub problems: Vec<String>,
    /// How many more there are.
    pub more_problems: u64,
}

/// A store to move.
#[derive(Debug)]
pub struct Migrate {
    /// Where it is.
    pub from: Place,
    /// Where nothing is yet, or what a move of the same store has left.
    pub to: Place,
    /// Whether to remove what a move has left, and not to go on with it.
    pub anew: bool,
}

/// What was moved.
#[derive(Debug)]
pub struct Migrated {
    /// Where the new log stands.
    pub cursor: Cursor,
    /// Where the old one stood.
    pub was: Cursor,
    /// How many records there are.
    pub records: u64,
    /// How many of them were there already, of a move that was cut off.
    pub went_on_after: Option<u64>,
}

/// How far a move is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Moving {
    /// One was cut off, and so many records are there already.
    GoesOn(u64),
    /// So many were read.
    Read(u64),
}

/// Does it. `told` hears how many records were read so far.
pub trait Offline {
    /// Restores a backup. When it fails, the directory is as it was.
    fn restore(
        &self,
        job: Restore,
        told: &mut dyn FnMut(u64),
    ) -> impl Future<Output = Result<Restored, OfflineError>>;

    /// Looks at a directory or a backup, and changes nothing that it keeps.
    fn verify(
        &self,
        job: Verify,
        told: &mut dyn FnMut(u64),
    ) -> impl Future<Output = Result<Verified, OfflineError>>;

    /// Moves a store. From its beginning on no server opens it where it was. When it fails, no server
    /// opens what is where it goes, and when it is done again it goes on from there.
    fn migrate(
        &self,
        job: Migrate,
        told: &mut dyn FnMut(Moving),
    ) -> impl Future<Output = Result<Migrated, OfflineError>>;

    /// Lets servers open a store again that was to be moved, or was.
    fn stay(&self, place: Place) -> impl Future<Output = Result<(), OfflineError>>;

    /// Lets servers open an etcd that was restored or replaced, as it is: under another log, with
    /// everything revoked that was issued. Says where the log stands.
    fn adopt(&self, place: Place) -> impl Future<Output = Result<Cursor, OfflineError>>;
}

/// Tells on stderr how far something is, now and then.
pub(super) struct Progress {
    what: &'static str,
    next: Instant,
}

impl Progress {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, next: Instant::now() + TELL_EVERY }
    }

    pub(super) fn tell(&mut self, how_far: impl FnOnce() -> String) {
        let now = Instant::now();
        if now >= self.next {
            output::note(&format!("{}: {}", self.what, how_far()));
            self.next = now + TELL_EVERY;
        }
    }
}

/// A position in the log, as the other commands show it.
pub(super) fn cursor(cursor: &Cursor) -> Value {
    json!({ "log_id": cursor.log_id.to_string(), "revision": cursor.revision.0 })
}
