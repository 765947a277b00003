//! What only the engine on disk must do: survive, notice, refuse.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::store::engine_suite::{Shape, count, decision, put, suite};

mod child;
mod crash;
mod damage;
mod packs;

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
    suite(Shape::HERE, async || {
        let n = made.fetch_add(1, Ordering::Relaxed);
        open(&outer.path().join(n.to_string())).unwrap()
    });
}

#[tokio::test]
async fn reopening_keeps_everything() {
    let (_outer, path) = fresh();
    let engine = open(&path).unwrap();
    engine.commit(put(TIME_KEY, &77_u64.to_be_bytes())).await.unwrap();
    for _ in 0..10 {
        engine.commit(count(b"c")).await.unwrap();
    }
    let events = engine.events_after(Revision(0), 99).unwrap();
    let records = engine.scan(&KeyRange::prefix(b""), Order::Ascending, 99).unwrap();
    assert_eq!((events.len(), records.len()), (10, 12));
    engine.close().await;
    drop(engine);

    let other_log = LogId::from_bytes([8; 16]);
    let engine = SledEngine::open(&path, &SledSettings::new(1), other_log).unwrap();
    assert_eq!(engine.head(), Cursor { log_id: LOG, revision: Revision(10) });
    assert_eq!(engine.time_floor(), Timestamp::from_millis(77));
    assert_eq!(engine.events_after(Revision(0), 99).unwrap(), events);
    assert_eq!(engine.scan(&KeyRange::prefix(b""), Order::Ascending, 99).unwrap(), records);
    let (_, commit) = engine.commit(count(b"c")).await.unwrap();
    assert_eq!(commit.event, Some(Revision(11)));
}

#[test]
fn files_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;

    let (_outer, path) = fresh();
    drop(open(&path).unwrap());
    drop(open(&path).unwrap());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&path.join("sled"))), (0o700, 0o700));
    assert_eq!(mode(&path.join("avouch.hwm")), 0o600);
    for file in std::fs::read_dir(path.join("sled")).unwrap() {
        let file = file.unwrap().path();
        assert!(file.is_dir() || mode(&file) == 0o600, "{}", file.display());
    }
}

#[tokio::test]
async fn low_space_stops_writes_but_not_freeing() {
    let (_outer, path) = fresh();
    drop(open(&path).unwrap());
    let settings = SledSettings { min_free_bytes: u64::MAX, ..SledSettings::new(1) };
    let engine = SledEngine::open(&path, &settings, LOG).unwrap();
    let refused = engine.commit(put(b"a", b"1")).await.map(|_| ());
    assert_eq!(refused, Err(StoreError::Unavailable("space is low on its disk".to_owned())));
    engine.commit(decision(|_| Ok(()))).await.unwrap();
    engine.commit_freeing(put(b"a", b"2")).await.unwrap();
    assert!(engine.prove_contact().await);
    let status = engine.status();
    assert!(status.low_space && status.failed.is_none() && status.disk_bytes > 0);
}

/// Holds whoever tells it something until the sender is dropped.
struct Hangs(Mutex<std::sync::mpsc::Receiver<()>>);

impl Observer for Hangs {
    fn durable(&self, _: &[LoggedEvent], _: Revision) {
        _ = self.0.lock().unwrap().recv();
    }
}

#[tokio::test]
async fn a_step_that_hangs_fails_the_engine_for_good() {
    let (_outer, path) = fresh();
    let deadline = Duration::from_millis(100);
    let settings = SledSettings { flush_deadline: deadline, ..SledSettings::new(1) };
    let engine = SledEngine::open(&path, &settings, LOG).unwrap();
    let mut failed = engine.failed();
    let (release, hang) = std::sync::mpsc::channel();
    engine.observe(Arc::new(Hangs(Mutex::new(hang))));
    let begun = Instant::now();
    let (first, second) = tokio::join!(engine.commit(count(b"c")), engine.commit(count(b"c")));
    assert!(begun.elapsed() < Duration::from_secs(1));
    for outcome in [first, second] {
        assert!(matches!(outcome, Err(StoreError::Unavailable(why)) if why.contains("100ms")));
    }
    assert!(failed.wait_for(Option::is_some).await.is_ok());
    assert!(!engine.prove_contact().await);
    drop(release);
    assert!(matches!(engine.commit(count(b"c")).await, Err(StoreError::Unavailable(_))));
    assert!(engine.status().failed.is_some());
    engine.close().await;
}

/// Both the watchdog and the step that it waits for say that the engine has failed. A caller who heard
/// the first and asked for the reason was once caught between the two, and both with it, for good.
/// Each caller has a thread that nobody joins, so that this fails and does not hang in its turn.
#[test]
fn a_failure_that_is_said_again_and_again_holds_no_caller_up() {
    const CALLERS: usize = 32;
    let (_outer, path) = fresh();
    let settings = SledSettings { flush_deadline: Duration::from_mins(1), ..SledSettings::new(1) };
    let engine = Arc::new(SledEngine::open(&path, &settings, LOG).unwrap());
    let (release, hang) = std::sync::mpsc::channel();
    engine.observe(Arc::new(Hangs(Mutex::new(hang))));
    let (answered, answers) = std::sync::mpsc::channel();
    for _ in 0..CALLERS {
        let (engine, answered) = (Arc::clone(&engine), answered.clone());
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            answered.send(runtime.block_on(engine.commit(count(b"c")))).unwrap();
        });
    }
    assert!(answers.recv_timeout(Duration::from_millis(100)).is_err(), "all of them wait");
    for number in 0..4 {
        let health = Arc::clone(&engine.shared.health);
        thread::spawn(move || (0..100_000).for_each(|_| health.fail(format!("by {number}"))));
    }
    for _ in 0..CALLERS {
        let answer = answers.recv_timeout(Duration::from_secs(20)).expect("nobody is held up");
        assert!(matches!(answer, Err(StoreError::Unavailable(why)) if why.contains("by ")));
    }
    drop(release);
}

#[tokio::test]
async fn what_was_synced_too_late_is_not_acknowledged() {
    let (_outer, path) = fresh();
    let settings = SledSettings { flush_deadline: Duration::ZERO, ..SledSettings::new(1) };
    let engine = SledEngine::open(&path, &settings, LOG).unwrap();
    assert!(matches!(engine.commit(put(b"a", b"1")).await, Err(StoreError::Unavailable(_))));
    assert!(engine.status().failed.is_some());
}

#[tokio::test]
async fn a_full_queue_refuses() {
    let (_outer, path) = fresh();
    let settings = SledSettings { queue: 4, ..SledSettings::new(1) };
    let engine = SledEngine::open(&path, &settings, LOG).unwrap();
    let (release, hang) = std::sync::mpsc::channel();
    engine.observe(Arc::new(Hangs(Mutex::new(hang))));
    let commits: Vec<_> = (0..64).map(|_| engine.commit(count(b"c"))).collect();
    let release = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(release);
    };
    let (outcomes, ()) = tokio::join!(futures_util::future::join_all(commits), release);
    let done = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert!((4..64).contains(&done), "{done}");
    let events = engine.events_after(Revision(0), 99).unwrap();
    assert_eq!(events.len(), done, "what was refused for want of room was not run");
}

#[tokio::test]
async fn a_damaged_record_is_an_error_and_not_a_value() {
    let (_outer, path) = fresh();
    let engine = open(&path).unwrap();
    engine.commit(put(b"a", b"1")).await.unwrap();
    engine.shared.db.insert(b"a", b"something else").unwrap();
    assert!(matches!(engine.get(b"a"), Err(StoreError::Corrupt(_))));
    let all = KeyRange::prefix(b"");
    assert!(matches!(engine.scan(&all, Order::Descending, 9), Err(StoreError::Corrupt(_))));
    assert!(matches!(engine.commit(count(b"a")).await, Err(StoreError::Corrupt(_))));
    engine.commit(put(b"b", b"2")).await.unwrap();
    // A pack of index entries: one that is damaged, one that nothing of ours has written.
    for stored in [b"something else".to_vec(), record::seal(b"i", b"no pack").0] {
        engine.shared.db.insert(b"i", stored).unwrap();
        assert!(matches!(engine.get(b"i/a"), Err(StoreError::Corrupt(_))));
        for order in [Order::Ascending, Order::Descending] {
            let found = engine.scan(&KeyRange::prefix(b"i/a"), order, 9);
            assert!(matches!(found, Err(StoreError::Corrupt(_))));
        }
    }
    // Without what it replaces, a write cannot keep the digest right.
    assert!(matches!(engine.commit(put(b"a", b"2")).await, Err(StoreError::Unavailable(_))));
    assert!(engine.status().failed.is_some());
    drop(engine);

    let (_outer, path) = fresh();
    let engine = open(&path).unwrap();
    engine.shared.db.insert(b"i", record::seal(b"i", b"no pack").0).unwrap();
    assert!(matches!(engine.commit(put(b"i/a", b"")).await, Err(StoreError::Unavailable(_))));
    assert!(engine.status().failed.is_some_and(|why| why.contains("pack of index entries")));
}
