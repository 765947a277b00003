//! `migrate` and `adopt`: a store moves to another engine, and an etcd is taken as it is.

use serde_json::json;

use super::failure::Failure;
use super::offline::{self, Moving, Offline, Progress};
use super::output::{self, Output};
use super::place::Access;
use crate::config::store_url::StoreUrl;

/// Move everything from one store to another: from a data directory to an etcd, or back.
///
/// Stop every server first. Tokens and sessions stay good, with the same encryption key. The new log has
/// a name of its own, so watchers start anew with all that is revoked. From the beginning of the move no
/// server opens the old store, so that no two go on from one state; --stay undoes that. When it is cut
/// off, or fails, do it again: it goes on from where it was, and nothing opens what it has left until that
/// is complete. It does not when the old store is another one or was opened since: see --anew.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  avouch migrate --from /var/lib/avouch --etcd-ca-file ca.pem \\\n      --to etcds://etcd-0:2379,etcd-1:2379,etcd-2:2379/avouch\n  avouch migrate --from etcd://127.0.0.1:2379/avouch --to /var/lib/avouch\n  avouch migrate --stay /var/lib/avouch\n\nThe exit code is 65 when the old store is damaged, 73 when there is something\nelse where it goes, 76 when another version wrote it."
)]
pub(super) struct Migrate {
    /// Where it is: a data directory, or the URL of an etcd.
    #[arg(long, value_name = "DIR|URL", requires = "to", required_unless_present = "stay")]
    from: Option<String>,
    /// Where it goes, and nothing is yet.
    #[arg(long, value_name = "DIR|URL", requires = "from")]
    to: Option<String>,
    /// Remove what a move has left there that was cut off, and do not go on with it.
    #[arg(long, requires = "from")]
    anew: bool,
    /// Let servers open this store again that was to be moved, or was. What happened in the other one
    /// since is not in it: a revoked token may be good again.
    #[arg(long, value_name = "DIR|URL", conflicts_with_all = ["from", "to"])]
    stay: Option<String>,
    #[command(flatten)]
    access: Access,
}

impl Migrate {
    pub(super) async fn run(self, store: &impl Offline, out: &mut Output) -> Result<(), Failure> {
        if let Some(stay) = &self.stay {
            store.stay(self.access.place(stay)?).await?;
            return out.record(&json!({ "opens_again": stay }));
        }
        let (Some(from), Some(to)) = (&self.from, &self.to) else {
            return Err(Failure::Usage("name --from and --to".into()));
        };
        let (from, to) = (self.access.place(from)?, self.access.place(to)?);
        let job = offline::Migrate { from, to, anew: self.anew };
        let mut progress = Progress::new("migrate");
        let told = &mut |how_far| match how_far {
            Moving::GoesOn(records) => output::note(&format!(
                "migrate: goes on with a move that was cut off, after {records} records"
            )),
            Moving::Read(records) => progress.tell(|| format!("{records} records")),
        };
        let moved = store.migrate(job, told).await?;
        out.record(&json!({
            "cursor": offline::cursor(&moved.cursor),
            "records": moved.records,
            "went_on_after": moved.went_on_after,
            "was": offline::cursor(&moved.was),
        }))
    }
}

/// Let servers open an etcd that was restored from a snapshot or replaced, as it is.
///
/// avouch refuses such an etcd: what was acknowledged after the snapshot is missing, and a lost
/// revocation would make a revoked token good again. This gives it a log of another name and revokes
/// everything that was issued: everybody logs in again. Clients, users and keys are those of the
/// snapshot. A backup of avouch that is newer is better.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  avouch adopt --etcd-ca-file ca.pem \\\n      --store etcds://etcd-0:2379,etcd-1:2379,etcd-2:2379/avouch"
)]
pub(super) struct Adopt {
    /// The etcd.
    #[arg(long, value_name = "URL")]
    store: StoreUrl,
    #[command(flatten)]
    access: Access,
}

impl Adopt {
    pub(super) async fn run(self, store: &impl Offline, out: &mut Output) -> Result<(), Failure> {
        let cursor = store.adopt(self.access.to(self.store)?).await?;
        out.record(&json!({ "cursor": offline::cursor(&cursor), "revoked_everything": true }))
    }
}
