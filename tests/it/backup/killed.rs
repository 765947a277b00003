//! A restore that is killed at one system call after the other: what it leaves is whole, or serves nobody,
//! and can be restored into again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};

use avouch::domain::ids::LogId;
use avouch::store::OpenError;
use avouch::store::codec::SCHEMA_VERSION;
use avouch::store::sled::{SledEngine, SledSettings};

use super::{Cast, KEY, Process, fill, records, said, save, text, verify_directory};
use crate::disk::{WITHOUT, variable};
use crate::harness::rounds;

/// The calls by which a restore changes the disk, and those by which it looks around before.
const CALLS: &str = "openat,mkdir,rename,renameat,unlink,unlinkat,rmdir,ftruncate,fallocate,pwrite64,pwritev,\
                     sync_file_range,fsync,fdatasync,flock";

/// The key that backups were sealed with, and a directory for them.
struct Case<'a> {
    key: &'a Path,
    new: &'a Path,
}

impl Case<'_> {
    /// `avouch restore` under strace, which kills it at the call with this number of each thread and
    /// writes the calls to `log`.
    fn restore(&self, file: &Path, log: &Path, kill_at: Option<usize>) -> Output {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-e", &format!("trace={CALLS}"), "-o", text(log)]);
        if let Some(call) = kill_at {
            command.args(["-e", &format!("inject={CALLS}:signal=SIGKILL:when={call}")]);
        }
        command.args([env!("CARGO_BIN_EXE_avouch"), "restore", text(file)]);
        command.args(["--key-file", text(self.key), "--data-dir", text(self.new)]);
        let output = command.env_clear().env("PATH", "/usr/bin:/bin").output();
        output.unwrap_or_else(|error| {
            panic!("strace, of Debian's package strace: {error}; {WITHOUT}=1 leaves this out")
        })
    }
}

/// How many calls the busiest thread made.
fn calls(log: &Path) -> usize {
    let log = std::fs::read_to_string(log).expect("its output");
    let mut of_threads = BTreeMap::<&str, usize>::new();
    for line in log.lines().filter(|line| line.contains('(')) {
        *of_threads.entry(line.split(' ').next().unwrap_or_default()).or_default() += 1;
    }
    of_threads.into_values().max().expect("calls")
}

/// What a kill left.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Left {
    Nothing,
    Unfinished,
    Whole,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_is_killed_anywhere_leaves_a_whole_store_or_none_that_serves() {
    if variable(WITHOUT).is_some_and(|value| !value.is_empty()) {
        return eprintln!("left out: {WITHOUT} is set");
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (old, new, key, log) = (at("old"), at("new"), at("key"), at("strace"));
    let (first, second) = (at("first"), at("second"));
    avouch::cli::files::write_private(&key, KEY).unwrap();
    fill(&old, 500).await;
    let cast = Cast::start(&old).await;
    save(&cast.server, &cast.token, &first).await;
    // Its session is not in the one before: nothing of a restore that was cut off may stay.
    cast.server.login(&cast.web, "ada").await;
    save(&cast.server, &cast.token, &second).await;
    cast.server.stop().await;
    let case = Case { key: &key, new: &new };
    let whole = [&first, &second].map(|file| {
        let output = case.restore(file, &log, None);
        assert!(output.status.success(), "{}", said(&output));
        let whole = records(&new);
        std::fs::remove_dir_all(&new).unwrap();
        whole
    });
    assert_ne!(whole[0], whole[1]);

    let last = calls(&log);
    assert!(last > 40, "{last} calls");
    // The last ones decide whether it serves: each of them. Of the rest a part.
    let step = rounds(last / 12, 1);
    let points = (1..last - 12).step_by(step).chain(last - 12..=last);
    let mut left = BTreeSet::new();
    for call in points {
        let killed = case.restore(&second, &log, Some(call));
        let what = format!("call {call} of {last}: {}", said(&killed));
        let settings = SledSettings { min_free_bytes: 0, ..SledSettings::new(SCHEMA_VERSION) };
        let kill_left = if new.join("restore.unfinished").exists() {
            let opened = SledEngine::open(&new, &settings, LogId::from_bytes([1; 16]));
            assert!(matches!(opened, Err(OpenError::Unfinished { .. })), "{what}");
            if !left.contains(&Left::Unfinished) {
                refuses_to_serve(&new).await;
            }
            Left::Unfinished
        } else if new.join("sled").exists() {
            Left::Whole
        } else {
            Left::Nothing
        };
        let names: Vec<_> = std::fs::read_dir(&new).into_iter().flatten().collect();
        let what = format!("{what} {kill_left:?} {names:?}");
        left.insert(kill_left);
        let again = case.restore(&first, &log, None);
        if kill_left == Left::Whole {
            assert_eq!(again.status.code(), Some(73), "{what}: {}", said(&again));
        } else {
            assert!(!killed.status.success(), "{what}");
            assert!(again.status.success(), "{what}: {}", said(&again));
        }
        let found = verify_directory(&new).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(found.problems.is_empty(), "{what}: {found:?}");
        let expected = &whole[usize::from(kill_left == Left::Whole)];
        assert_eq!(records(&new), *expected, "{what}");
        std::fs::remove_dir_all(&new).unwrap();
    }
    // Killed before, amid and after.
    assert_eq!(Vec::from_iter(left), [Left::Nothing, Left::Unfinished, Left::Whole]);
}

/// `avouch serve` ends, and says what to do.
async fn refuses_to_serve(directory: &Path) {
    let mut process = Process::start(directory, &[]);
    let end = process.outcome().await.expect_err("it does not serve");
    assert!(!end.status.success(), "{end:?}");
    assert!(
        end.stderr.contains("was cut off; run `avouch restore` into it again"),
        "{}",
        end.stderr
    );
}
