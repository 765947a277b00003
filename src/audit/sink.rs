//! What lines are written to, and when they count as written.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use super::event::{AuditEvent, AuditName};
use crate::domain::clock::Timestamp;

/// An event on its way out.
pub(super) struct Line {
    pub(super) name: AuditName,
    pub(super) at: Timestamp,
    /// The JSON, with its line end.
    pub(super) text: String,
}

impl Line {
    pub(super) fn of(event: &AuditEvent) -> Self {
        Self { name: event.name, at: event.at, text: event.to_line() }
    }
}

/// Takes lines. What a flush gives back is what came of all that it was given since the last.
pub(super) trait Sink: Send + 'static {
    fn write_line(&mut self, line: &Line) -> io::Result<()>;
    fn flush(&mut self) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
}

/// A file, which is synced for those who must be sure.
pub(super) struct FileSink(pub(super) BufWriter<File>);

impl Sink for FileSink {
    fn write_line(&mut self, line: &Line) -> io::Result<()> {
        self.0.write_all(line.text.as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }

    fn sync(&mut self) -> io::Result<()> {
        match self.0.get_ref().sync_data() {
            // A pipe or a terminal, which has nothing to sync.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            synced => synced,
        }
    }
}

/// What has nothing to sync.
pub(super) struct Unsynced<W>(pub(super) W);

impl<W: Write + Send + 'static> Sink for Unsynced<W> {
    fn write_line(&mut self, line: &Line) -> io::Result<()> {
        self.0.write_all(line.text.as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}
