//! `verify-store`: whether a data directory or a backup is whole.

use std::path::PathBuf;

use serde_json::json;

use super::failure::Failure;
use super::offline::{self, Offline, OfflineError, Progress};
use super::output::Output;
use crate::config::read_secret_file;

/// Check a data directory, or a backup, without a server.
///
/// Of a directory: that it opens as for a server, that nothing acknowledged is missing, that every
/// record is as it was written, and that what points to another record finds it. No record changes;
/// the server must not run. Of a backup: that it is whole and comes to the point that it says.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  avouch verify-store --data-dir /var/lib/avouch\n  avouch verify-store --backup avouch.backup \\\n      --key-file /etc/avouch/encryption.key --json\n\nThe exit code is 0 when all is well, 65 when something is damaged, 76 when\nanother version wrote it, 77 when the key is another."
)]
pub(super) struct VerifyStore {
    /// The data directory.
    #[arg(long, value_name = "DIR", required_unless_present = "backup", conflicts_with = "backup")]
    data_dir: Option<PathBuf>,
    /// The backup; - for stdin.
    #[arg(long, value_name = "FILE", requires = "key_file")]
    backup: Option<PathBuf>,
    /// The key that the server sealed the backup with.
    #[arg(long, value_name = "FILE", conflicts_with = "data_dir")]
    key_file: Option<PathBuf>,
}

impl VerifyStore {
    pub(super) async fn run(self, store: &impl Offline, out: &mut Output) -> Result<(), Failure> {
        let job = match (self.data_dir, self.backup, self.key_file) {
            (Some(path), _, _) => offline::Verify::Directory(path),
            (None, Some(path), Some(key)) => {
                offline::Verify::Backup { path, key: read_secret_file(&key)? }
            }
            _ => return Err(Failure::Usage("name --data-dir, or --backup and --key-file".into())),
        };
        let mut progress = Progress::new("verify-store");
        let told = &mut |records| progress.tell(|| format!("{records} records"));
        let found = store.verify(job, told).await?;
        out.record(&json!({
            "cursor": offline::cursor(&found.cursor),
            "point_time": found.at.map(|at| at.to_string()),
            "problems": found.problems,
            "records": found.records,
        }))?;
        match found.problems.len() as u64 + found.more_problems {
            0 => Ok(()),
            count => Err(OfflineError::Damaged(format!("{count} problems were found")).into()),
        }
    }
}
