//! What only the engine on disk must do: survive, notice, refuse.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::store::engine_suite::{number, put, suite};

mod measure;

const LOG: LogId = LogId::from_bytes([7; 16]);

fn open(path: &Path) -> Result<SledEngine, OpenError> {
    SledEngine::open(path, &SledSettings::new(1), LOG)
}

/// A directory that does not exist yet, in one that goes away.
fn fresh() -> (TempDir, PathBuf) {
    let outer = tempfile::tempdir().unwrap();
    let path = outer.path().join("data");
    (outer, path)
}

#[test]
fn does_what_an_engine_must() {
    let outer = tempfile::tempdir().unwrap();
    let made = AtomicU64::new(0);
    suite(|| {
        let n = made.fetch_add(1, Ordering::Relaxed);
        Arc::new(open(&outer.path().join(n.to_string())).unwrap())
    });
}
