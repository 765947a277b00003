//! `verify-store`: whether a store or a backup is whole.

use std::path::PathBuf;

use serde_json::json;

use super::failure::Failure;
use super::offline::{self, Offline, OfflineError, Place, Progress};
use super::output::Output;
use super::place::Access;
use crate::config::read_secret_file;
use crate::config::store_url::StoreUrl;

/// Check a data directory, what is in an etcd, or a backup, without a server.
///
/// Of a directory: that it opens as for a server, that nothing acknowledged is missing, that every
/// record is as it was written, and that what points to another record finds it. No record changes;
/// the server must not run. Of an etcd: that what points to another record finds it, as of one
/// revision; servers may run. Of a backup: that it is whole and comes to the point that it says.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  avouch verify-store --data-dir /var/lib/avouch\n  avouch verify-store --store etcd://127.0.0.1:2379/avouch\n  avouch verify-store --backup avouch.backup \\\n      --key-file /etc/avouch/encryption.key --json\n\nThe exit code is 0 when all is well, 65 when something is damaged, 76 when\nanother version wrote it, 77 when the key is another."
)]
pub(super) struct VerifyStore {
    /// The data directory.
    #[arg(long, value_name = "DIR", required_unless_present_any = ["backup", "store"], conflicts_with_all = ["backup", "store"])]
    data_dir: Option<PathBuf>,
    /// The etcd.
    #[arg(long, value_name = "URL", conflicts_with = "backup")]
    store: Option<StoreUrl>,
    /// The backup; - for stdin.
    #[arg(long, value_name = "FILE", requires = "key_file")]
    backup: Option<PathBuf>,
    /// The key that the server sealed the backup with.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data_dir", "store"])]
    key_file: Option<PathBuf>,
    /// A directory with room for all of it, where what is in an etcd is looked at. Not set: the
    /// system's directory for temporary files.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["data_dir", "backup"])]
    scratch_dir: Option<PathBuf>,
    #[command(flatten)]
    access: Access,
}

impl VerifyStore {
    pub(super) async fn run(self, store: &impl Offline, out: &mut Output) -> Result<(), Failure> {
        let place = match (self.data_dir, self.store) {
            (Some(path), _) => Some(Place::Directory(path)),
            (None, Some(url)) => Some(self.access.to(url)?),
            (None, None) => None,
        };
        let scratch = self.scratch_dir.unwrap_or_else(std::env::temp_dir);
        let job = match (place, self.backup, self.key_file) {
            (Some(place), _, _) => offline::Verify::Store { place, scratch },
            (None, Some(path), Some(key)) => {
                offline::Verify::Backup { path, key: read_secret_file(&key)? }
            }
            (None, ..) => {
                let text = "name --data-dir, --store, or --backup and --key-file";
                return Err(Failure::Usage(text.into()));
            }
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
