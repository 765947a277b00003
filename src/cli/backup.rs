//! `backup`: what the server streams becomes a file, whole or not at all.

mod directory;

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use self::directory::Directory;
use super::args::Global;
use super::connection::Connection;
use super::failure::Failure;
use super::offline::Progress;
use super::output::{self, Output};
use super::view;
use crate::crypto::stream::Sha256;
use crate::domain::clock::Timestamp;
use crate::pb::v1::{BackupPoint, CreateBackupRequest};

/// Save the whole state of a running server, sealed with its backup or encryption key.
///
/// The file shows one moment, and everything that was acknowledged before the command began is in it.
/// Writes go on meanwhile. The summary on stderr has the file's SHA-256.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  avouch backup avouch.backup --credentials avouch-data/admin-client.json\n  avouch backup - --credentials backup.json | ssh vault 'cat > avouch.backup'\n  avouch backup --directory /backups --keep 14 --credentials backup.json\n\n`avouch restore` reads it, `avouch verify-store --backup` checks it. Keep the\nkey elsewhere: it opens the file, and the encryption key is needed to serve."
)]
pub(super) struct Backup {
    /// The file to write, mode 0600; - for stdout.
    #[arg(required_unless_present = "directory", conflicts_with = "directory")]
    file: Option<PathBuf>,
    /// Write avouch-20261121T140501.123Z.backup into this directory, named by the moment that it shows.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Once it is there, remove the oldest of such files and keep this many. There must be room for one
    /// more.
    #[arg(long, value_name = "COUNT", requires = "directory")]
    keep: Option<NonZeroUsize>,
}

impl Backup {
    pub(super) async fn run(self, global: &Global, out: &mut Output) -> Result<(), Failure> {
        match (self.directory, self.file) {
            (Some(path), _) => in_directory(path, self.keep, global, out).await,
            (None, Some(file)) if file == Path::new("-") => to_stdout(global).await,
            (None, Some(file)) => to_file(&file, global, out).await,
            (None, None) => Err(Failure::Usage("name a file, or --directory".into())),
        }
    }
}

async fn to_stdout(global: &Global) -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        return Err(Failure::Usage("a backup is no text: name a file, or a pipe".into()));
    }
    let connection = Connection::authenticated(global).await?;
    let mut stdout = io::stdout().lock();
    let made = receive(&connection, &mut stdout, Failure::Output).await?;
    stdout.flush()?;
    // stdout is the backup.
    output::note(&made.summary.to_string());
    Ok(())
}

async fn to_file(file: &Path, global: &Global, out: &mut Output) -> Result<(), Failure> {
    let connection = Connection::authenticated(global).await?;
    let failed = |error| Failure::File(file.to_owned(), error);
    let mut draft = Draft::beside(file).map_err(failed)?;
    let made = receive(&connection, &mut draft.file, failed).await?;
    draft.keep(file).map_err(failed)?;
    out.record(&made.summary)
}

async fn in_directory(
    path: PathBuf,
    keep: Option<NonZeroUsize>,
    global: &Global,
    out: &mut Output,
) -> Result<(), Failure> {
    let connection = Connection::authenticated(global).await?;
    let directory = Directory::open(path)?;
    let failed = |error| Failure::File(directory.draft(), error);
    let mut draft = Draft::create(directory.draft()).map_err(failed)?;
    let Made { mut summary, at } = receive(&connection, &mut draft.file, failed).await?;
    let file = directory.file(at);
    draft.keep(&file).map_err(failed)?;
    let removed = keep.map_or_else(|| Ok(Vec::new()), |keep| directory.prune(&file, keep));
    let removed = removed.map_err(|error| {
        let file = file.display();
        Failure::Other(format!("{file} is made, and older ones cannot be removed: {error}"))
    })?;
    summary["file"] = json!(file);
    summary["removed"] = json!(removed);
    out.record(&summary)
}

/// A backup that is whole.
struct Made {
    /// What to show.
    summary: serde_json::Value,
    /// The moment that it shows.
    at: Timestamp,
}

/// Writes what the server streams.
async fn receive(
    connection: &Connection,
    to: &mut impl Write,
    failed: impl Fn(io::Error) -> Failure,
) -> Result<Made, Failure> {
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
    let Some(time) = &point.point_time else {
        return Err(Failure::Other("the server does not say what moment the backup shows".into()));
    };
    let at = Timestamp::from_millis(view::millis(time));
    let summary = json!({
        "bytes": bytes,
        "cursor": view::cursor(point.cursor.as_ref()),
        "point_time": at.to_string(),
        "records": records,
        "sha256": sha256.hex(),
    });
    Ok(Made { summary, at })
}

/// A file that has its name only once it is whole.
struct Draft {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl Draft {
    fn beside(target: &Path) -> io::Result<Self> {
        let mut name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        name.push(format!(".{}.new", std::process::id()));
        Self::create(target.with_file_name(name))
    }

    fn create(path: PathBuf) -> io::Result<Self> {
        // One that was left behind may have another mode.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
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
