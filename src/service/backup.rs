//! A backup: the whole state as of one point, sealed, in pieces as they come. Others go on meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;

use super::admin::AdminError;
use super::journal::{Happening, Journal, Origin};
use super::{Service, describe};
use crate::crypto::stream::StreamSealer;
use crate::domain::caller::{Caller, Right};
use crate::domain::clock::Clock;
use crate::store::backup::{Capture, CaptureError, Captured, Change, ChunkWriter, End, write_end};
use crate::store::codec::SCHEMA_VERSION;

/// How many plain bytes make a chunk.
const CHUNK_BYTES: usize = 64 * 1024;

/// Why there is no backup.
#[derive(Debug)]
pub enum BackupError {
    /// The caller may not, or that it tries cannot be recorded.
    Admin(AdminError),
    /// The store cannot be captured, or not to the end.
    Capture(CaptureError),
    /// Something that must not happen.
    Internal(&'static str),
}

impl From<CaptureError> for BackupError {
    fn from(error: CaptureError) -> Self {
        Self::Capture(error)
    }
}

/// A piece of the file.
#[derive(Debug)]
pub struct Piece {
    /// Its bytes, sealed.
    pub bytes: Vec<u8>,
    /// How many records are in it and in those before it. One that changes meanwhile counts again.
    pub records: u64,
    /// The last piece has the end.
    pub end: Option<End>,
}

/// A backup that goes on.
pub struct Backup {
    capture: Box<dyn Capture>,
    sealer: StreamSealer,
    head: Option<Vec<u8>>,
    waiting: VecDeque<Change>,
    writer: ChunkWriter,
    records: u64,
    ended: bool,
    clock: Arc<dyn Clock>,
    journal: Arc<dyn Journal>,
    caller: Box<str>,
    origin: Origin,
}

impl Service {
    /// Begins a backup. Everything that was acknowledged before is in it.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub async fn begin_backup(
        &self,
        caller: &Caller,
        origin: &Origin,
    ) -> Result<Backup, BackupError> {
        let rights = [Right::Backup, Right::Admin];
        self.begin(&rights, caller, "create_backup", origin).await.map_err(BackupError::Admin)?;
        let capture = self.store.capture()?;
        let (sealer, head) = StreamSealer::new(&self.backup_key, SCHEMA_VERSION, &*self.entropy)
            .map_err(|_| BackupError::Internal("a backup cannot be sealed"))?;
        Ok(Backup {
            capture,
            sealer,
            head: Some(head),
            waiting: VecDeque::new(),
            writer: ChunkWriter::default(),
            records: 0,
            ended: false,
            clock: Arc::clone(&self.clock),
            journal: Arc::clone(&self.journal),
            caller: describe(caller),
            origin: origin.clone(),
        })
    }
}

impl Backup {
    /// The next piece; none after the one with the end. Blocks; not for a thread of requests.
    ///
    /// # Errors
    /// See [`BackupError`]. What was given until then is no backup.
    pub fn next_piece(&mut self) -> Result<Option<Piece>, BackupError> {
        if let Some(bytes) = self.head.take() {
            return Ok(Some(Piece { bytes, records: 0, end: None }));
        }
        if self.ended {
            return Ok(None);
        }
        loop {
            while let Some(change) = self.waiting.pop_front() {
                self.writer.push(&change);
                self.records += 1;
                if self.writer.len() >= CHUNK_BYTES {
                    return self.chunk().map(Some);
                }
            }
            match self.capture.next()? {
                Captured::Changes(changes) => self.waiting.extend(changes),
                // The point comes again when it is asked for again.
                Captured::Point(_) if !self.writer.is_empty() => return self.chunk().map(Some),
                Captured::Point(point) => {
                    let end = End { point, at: self.clock.now(), changes: self.records };
                    let bytes = self.seal(&write_end(&end), true)?;
                    self.ended = true;
                    let happening = Happening::Administered {
                        action: "backup_created",
                        caller: self.caller.clone(),
                        subject: None,
                        client: None,
                        key: None,
                        reason: None,
                    };
                    self.journal.record(end.at, &self.origin, happening);
                    return Ok(Some(Piece { bytes, records: self.records, end: Some(end) }));
                }
            }
        }
    }

    fn chunk(&mut self) -> Result<Piece, BackupError> {
        let plain = self.writer.take();
        let bytes = self.seal(&plain, false)?;
        Ok(Piece { bytes, records: self.records, end: None })
    }

    fn seal(&mut self, plain: &[u8], last: bool) -> Result<Vec<u8>, BackupError> {
        let sealed = self.sealer.seal(plain, last);
        sealed.map_err(|_| BackupError::Internal("a backup cannot be sealed"))
    }
}
