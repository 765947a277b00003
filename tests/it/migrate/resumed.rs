//! Moves that are cut off, killed, refused and gone on with: what comes of them is what comes of one that
//! was not.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::task::Poll;

use avouch::app::etcd::settings;
use avouch::cli::offline::Moving;
use avouch::store::backup::Captured;
use avouch::store::etcd::moving::EtcdRecords;

use super::*;
use crate::backup::{records, sessions};
use crate::disk::{WITHOUT, variable};
use crate::harness::rounds;

/// How many sessions there are, which is several pages of etcd, and how many of them are revoked.
const SESSIONS: usize = 12_000;
const REVOKED: usize = 200;

/// All records of a store. Those of events are without the revisions that they have there.
async fn all(place: &Place) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let all = match place {
        Place::Directory(path) => records(path),
        Place::Etcd { url, access } => {
            let records = EtcdRecords::look(settings(url, access)).await.expect("it is there");
            let mut capture = records.capture().expect("it is read");
            let read = tokio::task::spawn_blocking(move || {
                let mut all = BTreeMap::new();
                while let Captured::Changes(changes) = capture.next().expect("it is read") {
                    for (key, value) in changes {
                        assert!(all.insert(key, value.expect("a record")).is_none(), "once");
                    }
                }
                all
            });
            read.await.expect("it is read")
        }
    };
    let mut numbers = BTreeMap::<Vec<u8>, u32>::new();
    let mut without_revisions = BTreeMap::new();
    for (key, value) in all {
        if key.first() == Some(&b'e') {
            *numbers.entry(value).or_default() += 1;
        } else {
            without_revisions.insert(key, value);
        }
    }
    for (event, number) in numbers {
        let key = [b"e".as_slice(), &event].concat();
        without_revisions.insert(key, number.to_be_bytes().to_vec());
    }
    without_revisions
}

/// Moves until so many records were read, and is cut off. Says after how many it went on.
async fn cut_off(from: &Place, to: &Place, after: u64) -> Option<u64> {
    let mut went_on = None;
    let job = Migrate { from: from.clone(), to: to.clone(), anew: false };
    let mut hear = |how_far| match how_far {
        Moving::GoesOn(records) => went_on = Some(records),
        // There and then, with all that is on its way.
        Moving::Read(records) if records >= after => resume_unwind(Box::new("cut off")),
        Moving::Read(_) => {}
    };
    let mut moving = Box::pin(Files.migrate(job, &mut hear));
    poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| moving.as_mut().poll(context)));
        polled.map_or(Poll::Ready(()), |polled| {
            polled.map(|moved| panic!("it came to its end: {moved:?}"))
        })
    })
    .await;
    drop(moving);
    went_on
}

/// A directory and an etcd with the same sessions.
async fn two_places(home: &Path, sessions: usize) -> [Place; 2] {
    let old = home.join("old");
    sessions::fill(&old, sessions, REVOKED, NOW).await;
    let (old, etcd) = (directory(&old), in_etcd(&fresh_prefix()));
    migrate(&old, &etcd).await.expect("it moves");
    [old, etcd]
}

fn fresh(like: &Place, home: &Path) -> Place {
    match like {
        Place::Directory(_) => in_etcd(&fresh_prefix()),
        Place::Etcd { .. } => directory(&home.join(fresh_prefix())),
    }
}

fn prefix_of(place: &Place) -> String {
    place.to_string().rsplit('/').next().expect("a prefix").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_cut_off_goes_on_and_ends_as_one_that_was_not() {
    let home = tempfile::tempdir().expect("a directory");
    let [old, etcd] = two_places(home.path(), SESSIONS).await;
    for from in [&old, &etcd] {
        let whole = fresh(from, home.path());
        let uncut = migrate(from, &whole).await.expect("it moves");
        assert_eq!(uncut.went_on_after, None);
        let expected = all(&whole).await;
        assert!(expected.len() > SESSIONS, "{} records", expected.len());
        let to = fresh(from, home.path());
        assert_eq!(cut_off(from, &to, uncut.records / 3).await, None);
        let error = refusal(&to).await;
        assert!(matches!(error, OpenError::Unfinished { .. }), "{error}");
        // It is cut off once more, before it has come further, and later.
        let first = cut_off(from, &to, 1).await.expect("it goes on");
        assert!(first > 0 && first <= uncut.records, "{first} of {}", uncut.records);
        let second = cut_off(from, &to, uncut.records * 2 / 3).await.expect("it goes on");
        assert!(second >= first, "{second} after {first}");
        let moved = migrate(from, &to).await.expect("it goes on to its end");
        let third = moved.went_on_after.expect("it went on");
        assert!(third > second && third <= moved.records, "{third} after {second}");
        assert_eq!((moved.records, moved.was), (uncut.records, uncut.was));
        assert_eq!(all(&to).await, expected);
        if let Place::Etcd { .. } = &to {
            assert_eq!(get(&format!("/{}/!moving", prefix_of(&to))).await, None, "no mark is left");
        }
        server_on(&to).await.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_does_not_go_on_with_what_is_of_another_store_or_another_state() {
    let home = tempfile::tempdir().expect("a directory");
    let [old, etcd] = two_places(home.path(), SESSIONS).await;
    for from in [&old, &etcd] {
        let to = fresh(from, home.path());
        cut_off(from, &to, 1_000).await;
        let refused = async |from: &Place, what: &str| {
            let error = migrate(from, &to).await.expect_err("it is of something else");
            assert!(matches!(error, OfflineError::NotEmpty(_)), "{error}");
            assert!(error.to_string().contains(what), "{error}");
            assert!(error.to_string().contains("--anew"), "{error}");
        };
        // Another store, which goes on as if nothing had been.
        let other = match from {
            Place::Directory(_) => directory(&home.path().join(fresh_prefix())),
            Place::Etcd { .. } => in_etcd(&fresh_prefix()),
        };
        server_on(&other).await.stop().await;
        refused(&other, "a move of another store").await;
        server_on(&other).await.stop().await;
        // The same one, whose mark is still good: and it goes on.
        assert!(cut_off(from, &to, 1_500).await.is_some(), "nothing was lost");
        // The same one, on which a server was meanwhile.
        Files.stay(from.clone()).await.expect("it opens again");
        let server = server_on(from).await;
        Cast::on(&server).await;
        server.stop().await;
        refused(from, "this store, which was opened or has changed since").await;
        server_on(from).await.stop().await;
        let job = Migrate { from: from.clone(), to: to.clone(), anew: true };
        let moved = Files.migrate(job, &mut |_| {}).await.expect("it begins anew");
        assert_eq!(moved.went_on_after, None);
        let whole = fresh(from, home.path());
        migrate(from, &whole).await.expect("it moves");
        assert_eq!(all(&to).await, all(&whole).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_is_not_what_its_mark_says_is_filled_anew() {
    let home = tempfile::tempdir().expect("a directory");
    let [_, etcd] = two_places(home.path(), SESSIONS).await;
    let path = home.path().join("new");
    let to = directory(&path);
    cut_off(&etcd, &to, 2_000).await;
    // As if a record had not reached the disk, or another had.
    let db = loop {
        match sled::open(path.join("sled")) {
            Ok(db) => break db,
            // A thread of the one before has not let go of it yet.
            Err(sled::Error::Io(_)) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    let first = db.scan_prefix(b"s").keys().next().expect("a record").expect("it is read");
    db.remove(first).expect("removed");
    db.flush().expect("written");
    drop(db);
    let moved = migrate(&etcd, &to).await.expect("it moves");
    assert_eq!(moved.went_on_after, None, "it begins anew");
    let whole = directory(&home.path().join("whole"));
    migrate(&etcd, &whole).await.expect("it moves");
    assert_eq!(all(&to).await, all(&whole).await);
}

/// The calls by which a move changes the disk and those by which it speaks to etcd.
const CALLS: &str = "mkdir,rename,unlink,ftruncate,fallocate,pwrite64,pwritev,sync_file_range,fsync,\
                     fdatasync,sendto,writev";

/// `avouch migrate` under strace, which kills it at the call with this number of each thread and writes
/// the calls to `log`.
fn run(from: &Place, to: &Place, log: &Path, kill_at: Option<usize>) -> Output {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", &format!("trace={CALLS}"), "-o"]).arg(log);
    if let Some(call) = kill_at {
        command.args(["-e", &format!("inject={CALLS}:signal=SIGKILL:when={call}")]);
    }
    command.args([env!("CARGO_BIN_EXE_avouch"), "--json", "migrate"]);
    command.args(["--from", &from.to_string(), "--to", &to.to_string()]);
    let output = command.env_clear().env("PATH", "/usr/bin:/bin").output();
    output.unwrap_or_else(|error| {
        panic!("strace, of Debian's package strace: {error}; {WITHOUT}=1 leaves this out")
    })
}

fn said(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{} {out} {err}", output.status)
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_killed_anywhere_goes_on_from_there() {
    if variable(WITHOUT).is_some_and(|value| !value.is_empty()) {
        return eprintln!("left out: {WITHOUT} is set");
    }
    let home = tempfile::tempdir().expect("a directory");
    let log: PathBuf = home.path().join("strace");
    for from in two_places(home.path(), SESSIONS / 3).await {
        let whole = fresh(&from, home.path());
        let output = run(&from, &whole, &log, None);
        assert!(output.status.success(), "{}", said(&output));
        let (expected, last) = (all(&whole).await, calls(&log));
        assert!(last > 16, "{last} calls");
        let points = rounds(6, 200);
        let mut went_on = Vec::new();
        for point in 1..=points {
            let to = fresh(&from, home.path());
            let call = (last * point / (points + 1)).max(1);
            let what = format!("{from} to {to}, call {call} of {last}");
            // Killed, gone on with, killed again, unless it has come to its end.
            let mut killed = 0;
            let end = loop {
                let kill_at = (killed < 2).then_some(call);
                let output = run(&from, &to, &log, kill_at);
                // Or it was killed when there was nothing more to do but to end.
                if output.status.success() || (killed > 0 && output.status.code() == Some(73)) {
                    break output;
                }
                assert!(kill_at.is_some(), "{what}: {}", said(&output));
                killed += 1;
            };
            let said = said(&end);
            assert_eq!(all(&to).await, expected, "{what}: {said}");
            let end: Value = serde_json::from_slice(&end.stdout).unwrap_or_default();
            if let Some(records) = end["went_on_after"].as_u64() {
                assert!(said.contains(&format!("after {records} records")), "{what}: {said}");
                went_on.push(records);
            }
            assert!(killed > 0 || point > points / 2, "{what}: it was killed");
        }
        // Some are killed before anything is there.
        assert!(went_on.len() >= points / 4, "of {last} calls: {went_on:?}");
        // Into a directory there are few points between nothing and all of it, as pages are large.
        if let Place::Directory(_) = &from {
            went_on.sort_unstable();
            assert!(went_on.first() < went_on.last(), "at one point and another: {went_on:?}");
        }
    }
}
