//! `restore`: a backup becomes a data directory.

use std::path::PathBuf;

use serde_json::json;

use super::failure::Failure;
use super::offline::{self, Offline, Progress};
use super::output::Output;
use crate::config::read_secret_file;

/// Make a data directory of a backup, with a log of its own: every watcher starts anew.
///
/// What happened after the backup is gone. What was revoked since then is good again. A refresh token
/// that was rotated since then is current again, for whoever kept it; its successor, which the client
/// holds, counts as reuse and ends the session. So use --revoke-everything, unless you know that
/// nothing happened since: everybody logs in again.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  avouch restore avouch.backup --data-dir /var/lib/avouch \\\n      --key-file /etc/avouch/encryption.key --revoke-everything\n\nThe exit code is 65 when the backup is damaged or cut off, 73 when the\ndirectory is not empty, 76 when another version wrote the backup, 77 when the\nkey is another. The directory is then as it was."
)]
pub(super) struct Restore {
    /// The backup; - for stdin.
    file: PathBuf,
    /// The directory, empty or not there yet.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The key that the server sealed it with [keys.backup_key_file, or keys.encryption_key_file].
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Revoke every token and session that was issued before, in the same step.
    #[arg(long)]
    revoke_everything: bool,
}

impl Restore {
    pub(super) async fn run(self, store: &impl Offline, out: &mut Output) -> Result<(), Failure> {
        let job = offline::Restore {
            backup: self.file,
            directory: self.data_dir,
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
