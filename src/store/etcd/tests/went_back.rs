//! An etcd that was put back to an older state under its old id, and one that was not.

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

use super::proxy::{Passing, Proxy};
use super::server::{LOG, try_open};
use super::*;
use crate::store::etcd::moving::EtcdRecords;
use crate::store::etcd::raft::Mark;

/// Why it does not open.
async fn refused(settings: &EtcdSettings) -> String {
    // It may not have started yet.
    loop {
        match try_open(settings).await {
            Ok(_) => panic!("it opened"),
            Err(OpenError::Unreachable { .. }) => {}
            Err(OpenError::Replaced { what, .. }) => return what,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Opens it, counts so often, and ends.
async fn count_up(settings: &EtcdSettings, times: usize) {
    let engine = open(settings).await;
    for _ in 0..times {
        engine.commit(count(b"c")).await.unwrap();
    }
}

/// Adds revisions beside avouch.
async fn write_elsewhere(settings: &EtcdSettings, times: usize) {
    let client = Client::new(settings, 0);
    for _ in 0..times {
        let success = vec![request::put(b"/elsewhere".to_vec(), b"1".to_vec())];
        let txn = pb::TxnRequest { success, ..pb::TxnRequest::default() };
        client.txn(txn, Instant::now() + Duration::from_secs(30)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_restored_under_its_old_id_opens_only_once_it_is_adopted() {
    let mut etcd = Etcd::start();
    let settings = etcd.settings();
    count_up(&settings, 3).await;
    let files = tempfile::tempdir().unwrap();
    let snapshot = files.path().join("snapshot");
    etcd.snapshot(&snapshot);
    let cluster = {
        let engine = open(&settings).await;
        engine.commit(count(b"c")).await.unwrap();
        engine.core.client.cluster_id()
    };
    etcd.kill();
    etcd.restore(&snapshot, &[]);
    etcd.run();
    // Whoever only wants to move it away is not let to it either.
    let moved = loop {
        match EtcdRecords::look(settings.clone()).await {
            Err(OpenError::Unreachable { .. }) => {}
            Err(error) => break error.to_string(),
            Ok(_) => panic!("it was read"),
        }
    };
    assert!(moved.contains("a snapshot is restored"), "{moved}");
    // It is put down, so that no try, however many there are, is the one that gets in.
    assert!(refused(&settings).await.contains("a replica found that it went back"));
    assert!(EtcdRecords::give_back(settings.clone()).await.is_err());

    let new_log = LogId::from_bytes([9; 16]);
    let adopted = EtcdEngine::adopt(settings.clone(), new_log, entropy()).await.unwrap();
    assert_eq!(adopted.core.client.cluster_id(), cluster, "it has its old id");
    adopted.finish_adoption().await.unwrap();
    drop(adopted);
    count_up(&settings, 2).await;
    // From then on it is as good as any other: also if that is restored in its turn.
    etcd.kill();
    etcd.run();
    count_up(&settings, 1).await;
    etcd.snapshot(&files.path().join("second"));
    etcd.kill();
    etcd.restore(&files.path().join("second"), &[]);
    etcd.run();
    assert!(refused(&settings).await.contains("a snapshot is restored"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_write_after_a_restore_does_not_hide_it() {
    let mut etcd = Etcd::start();
    let settings = etcd.settings();
    count_up(&settings, 3).await;
    let files = tempfile::tempdir().unwrap();
    let snapshot = files.path().join("snapshot");
    etcd.snapshot(&snapshot);
    count_up(&settings, 3).await;
    etcd.kill();
    etcd.restore(&snapshot, &[]);
    etcd.run();
    // Index and revision are beyond what they were when it was ended.
    write_elsewhere(&settings, 100).await;
    assert!(refused(&settings).await.contains("a snapshot is restored"));
}

/// With `--bump-revision` nobody sees a revision go back.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_runs_notices_it_though_the_revision_is_higher_than_before() {
    let mut etcd = Etcd::start();
    let proxy = Proxy::to(etcd.port).await;
    let engine = open(&etcd.settings_at(proxy.port, "/r/")).await;
    engine.commit(count(b"c")).await.unwrap();
    let files = tempfile::tempdir().unwrap();
    let snapshot = files.path().join("snapshot");
    etcd.snapshot(&snapshot);
    engine.commit(count(b"c")).await.unwrap();
    let mut failed = engine.failed();
    proxy.set(Passing::Nothing);
    etcd.kill();
    etcd.restore(&snapshot, &[]);
    etcd.run();
    write_elsewhere(&etcd.settings(), 100).await;
    proxy.cut();
    let failed = failed.wait_for(Option::is_some);
    let why = tokio::time::timeout(Duration::from_secs(60), failed).await.unwrap().unwrap().clone();
    assert!(why.as_deref().unwrap().contains("a snapshot is restored"), "{why:?}");
    let outcome = engine.commit(count(b"c")).await.map(|_| ());
    assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
    assert!(!engine.prove_contact().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_only_goes_on_is_taken_for_what_it_is() {
    // It writes snapshots of its own, and forgets its log, all the time.
    let mut etcd = Etcd::start_with("http", &["--snapshot-count", "3"]);
    let settings = etcd.settings();
    for round in 0..4 {
        count_up(&settings, 4).await;
        write_elsewhere(&settings, round * 5).await;
        // Each start is an election.
        etcd.kill();
        etcd.run();
    }
    let engine = open(&settings).await;
    assert_eq!(number(get(&engine, b"c").await.unwrap().as_deref()), 16);
    assert!(engine.prove_contact().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_on_while_an_adoption_ends_takes_it_for_its_own_work() {
    let etcd = Etcd::start();
    let settings = etcd.settings();
    count_up(&settings, 1).await;
    let new_log = LogId::from_bytes([9; 16]);
    let adopted = EtcdEngine::adopt(settings.clone(), new_log, entropy()).await.unwrap();
    // As if it was written, and the answer not yet there.
    let meta = Meta { standing: Standing::Whole, ..adopted.meta };
    adopted.core.next_meta.set(meta.encode()).unwrap();
    let (core, deadline) = (&adopted.core, adopted.core.deadline());
    let known = core.meta_changed.load(Ordering::Relaxed);
    meta::write(&core.client, &core.keys, &meta, known, deadline).await.unwrap().unwrap();
    adopted.commit(count(b"c")).await.unwrap();
    assert!(adopted.prove_contact().await);
    // Another's work it does not take for its own.
    EtcdRecords::take(settings).await.unwrap();
    assert!(adopted.commit(count(b"c")).await.is_err());
    assert!(!adopted.prove_contact().await);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// As by a snapshot of the disks of all members.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_put_back_with_its_log_is_noticed_where_a_file_knows_better() {
    let mut etcd = Etcd::start();
    let files = tempfile::tempdir().unwrap();
    let seen_file = Some(files.path().join("of this replica").join(SEEN_FILE));
    let without = etcd.settings();
    let settings = EtcdSettings { seen_file, ..without.clone() };
    count_up(&settings, 2).await;
    etcd.kill();
    copy(&etcd.data(), &files.path().join("disk"));
    etcd.run();
    count_up(&settings, 9).await;
    // What it has seen is in the file once it opens the next time.
    count_up(&settings, 0).await;
    etcd.kill();
    etcd.wipe();
    copy(&files.path().join("disk"), &etcd.data());
    etcd.run();
    // The log of another store is none of its business.
    let other = EtcdSettings { prefix: "/other/".to_owned(), ..settings.clone() };
    let other_log = LogId::from_bytes([8; 16]);
    let seen = std::fs::read(settings.seen_file.as_ref().unwrap()).unwrap();
    while EtcdEngine::open(other.clone(), other_log, entropy()).await.is_err() {}
    std::fs::write(settings.seen_file.as_ref().unwrap(), seen).unwrap();
    assert!(refused(&settings).await.contains("was at revision"));
    // And tells the others.
    assert!(refused(&without).await.contains("a replica found that it went back"));
    assert_eq!(LogId::from_bytes([7; 16]), LOG);
}

#[derive(Clone, Copy, Debug)]
enum Entry {
    Write,
    Nothing,
    Election,
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    vec(prop_oneof![Just(Entry::Write), Just(Entry::Nothing), Just(Entry::Election)], 0..40)
}

/// Where a log stands after these.
fn at(mut log: Mark, entries: &[Entry]) -> Mark {
    for entry in entries {
        log.index += 1;
        match entry {
            Entry::Write => log.revision += 1,
            Entry::Nothing => {}
            Entry::Election => log.term += 1,
        }
    }
    log
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The index of a mark is from before its revision, that of a look from after.
    #[test]
    fn a_log_that_goes_on_comes_after_every_mark_of_it(
        entries in entries(), moments in proptest::array::uniform4(0..40_usize),
    ) {
        let empty = Mark { term: 2, index: 4, revision: 1 };
        let mut moments = moments.map(|moment| at(empty, &entries[..moment.min(entries.len())]));
        moments.sort_by_key(|moment| moment.index);
        let [asked, marked, read, looked] = moments;
        let mark = Mark { revision: marked.revision, ..asked };
        let look = Mark { revision: read.revision, ..looked };
        prop_assert_eq!(look.comes_after(&mark), Ok(()));
    }

    /// Whatever is written afterwards, and by however much the revision is raised.
    #[test]
    fn a_log_that_was_begun_anew_does_not_come_after_a_mark_that_went_back_with_it(
        before in vec(any::<bool>(), 1..40), after in vec(Just(Entry::Write), 0..99), bump in 0..9_i64,
    ) {
        let empty = Mark { term: 2, index: 4, revision: 1 };
        let entries: Vec<_> = before
            .iter()
            .map(|writes| if *writes { Entry::Write } else { Entry::Nothing })
            .chain([Entry::Write])
            .collect();
        let mark = at(empty, &entries);
        let restored = at(Mark { revision: mark.revision + bump, ..empty }, &after);
        prop_assert!(restored.comes_after(&mark).is_err());
        // Nor does one that was in no later term, though it has many entries.
        let later = Mark { term: 3, ..mark };
        let many = Mark { index: 1 << 40, ..restored };
        prop_assert!(many.comes_after(&later).is_err());
        prop_assert_eq!(many.comes_after(&mark), Ok(()), "which is all that is known then");
    }
}
