//! What a replica keeps beside etcd, in a file: how far etcd was when it was last asked. It does not go back
//! when etcd does, so a replica that has one notices what nothing in etcd shows: see `raft.rs`.
//!
//! The file is worth something only where it is: it is no harm when it is lost, or cannot be read.

use std::io;
use std::path::Path;

use super::raft::{Known, Mark};
use crate::domain::ids::LogId;

/// As it stands in the file.
#[derive(serde::Deserialize, serde::Serialize)]
struct Seen {
    /// Of which log this is. Another, as after an adoption, is none of its business.
    log_id: String,
    revision: i64,
    raft_term: u64,
    raft_index: u64,
    /// The revision by which the term and the index were so.
    raft_revision: i64,
}

/// What the file says of the log; none where it says nothing.
pub(super) fn read(path: &Path, log_id: LogId) -> Option<Known> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "how far etcd was cannot be read");
            return None;
        }
    };
    let seen: Seen = match serde_json::from_slice(&text) {
        Ok(seen) => seen,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "how far etcd was cannot be read");
            return None;
        }
    };
    let mark = Mark { term: seen.raft_term, index: seen.raft_index, revision: seen.raft_revision };
    (seen.log_id == log_id.to_string()).then_some(Known { mark, revision: seen.revision })
}

/// Puts it into the file. Whoever reads it has the old or the new.
pub(super) fn write(path: &Path, log_id: LogId, known: &Known) -> io::Result<()> {
    let seen = Seen {
        log_id: log_id.to_string(),
        revision: known.revision,
        raft_term: known.mark.term,
        raft_index: known.mark.index,
        raft_revision: known.mark.revision,
    };
    let text = serde_json::to_vec(&seen).map_err(io::Error::other)?;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let draft = path.with_extension(format!("{}.new", std::process::id()));
    std::fs::write(&draft, text)?;
    // Not synced: what a power cut leaves is what was seen some seconds earlier, or nothing.
    std::fs::rename(draft, path)
}
