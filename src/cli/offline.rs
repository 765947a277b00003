//! What is done without a server, as the command line asks for it. Who knows the store does it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use super::output;
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

/// A backup to restore.
#[derive(Debug)]
pub struct Restore {
    /// The file, or `-`.
    pub backup: PathBuf,
    /// Where to.
    pub directory: PathBuf,
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
    /// A data directory.
    Directory(PathBuf),
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
