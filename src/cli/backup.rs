//! `backup`: what the server streams becomes a file, whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::Global;
use super::connection::Connection;
use super::failure::Failure;
use super::offline::Progress;
use super::output::{self, Output};
use super::view;
use crate::crypto::stream::Sha256;
use crate::pb::v1::{BackupPoint, CreateBackupRequest};

/// Save the whole state of a running server, sealed with its backup or encryption key.
///
/// The file shows one moment, and everything that was acknowledged before the command began is in it.
/// Writes go on meanwhile. The summary on stderr has the file's SHA-256.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  avouch backup avouch.backup --credentials avouch-data/admin-client.json\n  avouch backup - --credentials admin.json | ssh vault 'cat > avouch.backup'\n\n`avouch restore` reads it, `avouch verify-store --backup` checks it. Keep the\nkey elsewhere: it opens the file, and the encryption key is needed to serve."
)]
pub(super) struct Backup {
    /// The file to write, mode 0600; - for stdout.
    file: PathBuf,
}

impl Backup {
    pub(super) async fn run(self, global: &Global, out: &mut Output) -> Result<(), Failure> {
        let to_stdout = self.file == Path::new("-");
        if to_stdout && io::stdout().is_terminal() {
            return Err(Failure::Usage("a backup is no text: name a file, or a pipe".into()));
        }
        let connection = Connection::authenticated(global).await?;
        if to_stdout {
            let mut stdout = io::stdout().lock();
            let summary = receive(&connection, &mut stdout, Failure::Output).await?;
            stdout.flush()?;
            // stdout is the backup.
            output::note(&summary.to_string());
            return Ok(());
        }
        let failed = |error| Failure::File(self.file.clone(), error);
        let mut draft = Draft::create(&self.file).map_err(failed)?;
        let summary = receive(&connection, &mut draft.file, failed).await?;
        draft.keep(&self.file).map_err(failed)?;
        out.record(&summary)
    }
}

/// Writes what the server streams. What it shows, once it is whole.
async fn receive(
    connection: &Connection,
    to: &mut impl Write,
    failed: impl Fn(io::Error) -> Failure,
) -> Result<serde_json::Value, Failure> {
    let mut api = connection.admin();
    let mut request = connection.request(CreateBackupRequest {});
    // However long it takes.
    request.metadata_mut().remove("grpc-timeout");
    let mut pieces = api.create_backup(request).await?.into_inner();
    let (mut sha256, mut bytes, mut progress) = (Sha256::default(), 0_u64, Progress::new("backup"));
    let mut end: Option<(BackupPoint, u64)> = None;
    while let Some(piece) = pieces.message().await? {
        to.write_all(&piece.chunk).map_err(&failed)?;
        sha256.update(&piece.chunk);
        bytes += piece.chunk.len() as u64;
        progress.tell(|| format!("{} records, {} MiB", piece.record_count, bytes >> 20));
        end = piece.point.map(|point| (point, piece.record_count));
    }
    let Some((point, records)) = end else {
        return Err(Failure::Other("the server ended the backup before its end".into()));
    };
    Ok(json!({
        "bytes": bytes,
        "cursor": view::cursor(point.cursor.as_ref()),
        "point_time": view::time(point.point_time.as_ref()),
        "records": records,
        "sha256": sha256.hex(),
    }))
}

/// A file that has its name only once it is whole.
struct Draft {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl Draft {
    fn create(target: &Path) -> io::Result<Self> {
        let mut name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let path = target.with_file_name(name);
        let file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        Ok(Self { file, path, kept: false })
    }

    fn keep(mut self, target: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.path, target)?;
        self.kept = true;
        match target.parent() {
            Some(parent) if parent != Path::new("") => File::open(parent)?.sync_all(),
            Some(_) | None => File::open(".")?.sync_all(),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept {
            // The error to report is another one.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
