//! `restore`: a backup becomes a store.

use std::path::PathBuf;

use serde_json::json;

use super::failure::Failure;
use super::offline::{self, Offline, Place, Progress};
use super::output::Output;
use super::place::Access;
use crate::config::read_secret_file;
use crate::config::store_url::StoreUrl;

/// Make a data directory, or the records in an etcd, of a backup, with a log of its own: every watcher
/// starts anew.
///
/// What happened after the backup is gone. What was revoked since then is good again. A refresh token
/// that was rotated since then is current again, for whoever kept it; its successor, which the client
/// holds, counts as reuse and ends the session. So use --revoke-everything, unless you know that
/// nothing happened since: everybody logs in again.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  avouch restore avouch.backup --data-dir /var/lib/avouch \\\n      --key-file /etc/avouch/encryption.key --revoke-everything\n  avouch restore avouch.backup --key-file encryption.key --revoke-everything \\\n      --store etcds://etcd-0:2379,etcd-1:2379,etcd-2:2379/avouch \\\n      --etcd-ca-file ca.pem\n\nIt does not matter which engine the backup is of. The exit code is 65 when the\nbackup is damaged or cut off, 73 when there is something where it goes, 76 when\nanother version wrote the backup, 77 when the key is another. Nothing has\nchanged then; in an etcd, what a restore that was cut off has left opens for no\nserver, and the next restore removes it."
)]
pub(super) struct Restore {
    /// The backup; - for stdin.
    file: PathBuf,
    /// The directory, empty or not there yet.
    #[arg(long, value_name = "DIR", required_unless_present = "store", conflicts_with = "store")]
    data_dir: Option<PathBuf>,
    /// The etcd, with nothing under the prefix.
    #[arg(long, value_name = "URL")]
    store: Option<StoreUrl>,
    /// The key that the server sealed it with [keys.backup_key_file, or keys.encryption_key_file].
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Revoke every token and session that was issued before, in the same step.
    #[arg(long)]
    revoke_everything: bool,
    /// A directory with room for all of it, where it is checked before it goes to an etcd. Not set: the
    /// system's directory for temporary files.
    #[arg(long, value_name = "DIR", conflicts_with = "data_dir")]
    scratch_dir: Option<PathBuf>,
    #[command(flatten)]
    access: Access,
}

impl Restore {
    pub(super) async fn run(self, store: &impl Offline, out: &mut Output) -> Result<(), Failure> {
        let to = match (self.data_dir, self.store) {
            (Some(path), _) => Place::Directory(path),
            (None, Some(url)) => self.access.to(url)?,
            (None, None) => return Err(Failure::Usage("name --data-dir or --store".into())),
        };
        let job = offline::Restore {
            backup: self.file,
            to,
            scratch: self.scratch_dir.unwrap_or_else(std::env::temp_dir),
            key: read_secret_file(&self.key_file)?,
            revoke_everything: self.revoke_everything,
        };
        let mut progress = Progress::new("restore");
        let told = &mut |records| progress.tell(|| format!("{records} records"));
        let restored = store.restore(job, told).await?;
        out.record(&json!({
            "backup_cursor": offline::cursor(&restored.saved),
            "backup_time": restored.saved_at.to_string(),
            "cursor": offline::cursor(&restored.cursor),
            "records": restored.records,
            "revoked_everything": self.revoke_everything,
        }))
    }
}
