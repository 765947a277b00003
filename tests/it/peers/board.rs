//! What notes of replicas must do, on every store that has a board.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use avouch::crypto::OsEntropy;
use avouch::domain::ids::LogId;
use avouch::store::board::{Board, Change, Lease};
use avouch::store::engine::Engine as _;
use avouch::store::etcd::EtcdEngine;
use avouch::store::memory::SharedMemory;
use tokio::sync::mpsc::UnboundedReceiver;

use super::rig::LOG;
use crate::harness::etcd_settings;
use crate::support::etcd::{Etcd, fresh_prefix};

/// What somebody who follows knows.
struct Follower(UnboundedReceiver<Change>, BTreeMap<String, Vec<u8>>);

impl Follower {
    fn of(board: &dyn Board) -> Self {
        Self(board.follow(), BTreeMap::new())
    }

    /// Waits until these are the notes, and no others.
    async fn until(&mut self, notes: &[(&str, &str)]) {
        let bytes = |(name, value): &(&str, &str)| ((*name).to_owned(), value.as_bytes().to_vec());
        let wanted: BTreeMap<_, _> = notes.iter().map(bytes).collect();
        let waiting = async {
            let mut heard = false;
            while !heard || self.1 != wanted {
                match self.0.recv().await.expect("it goes on") {
                    Change::All(all) => self.1 = all.into_iter().collect(),
                    Change::Put(name, value) => _ = self.1.insert(name, value),
                    Change::Gone(name) => _ = self.1.remove(&name),
                }
                heard = true;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), waiting).await;
        waited.unwrap_or_else(|_| panic!("wanted {notes:?}, have {:?}", self.1));
    }
}

async fn suite(first: Arc<dyn Board>, second: Arc<dyn Board>) {
    const LONG: Duration = Duration::from_secs(60);
    let put = async |board: &Arc<dyn Board>, name: &str, value: &str, lease: Lease| {
        board.put(name, value.as_bytes().to_vec(), lease).await.expect("an answer")
    };
    let mut early = Follower::of(&*second);
    let (one, two) =
        (first.lease(LONG).await.expect("a lease"), second.lease(LONG).await.expect("a lease"));
    assert_ne!(one, two);
    assert!(put(&first, "a/1", "x", one).await);
    assert!(put(&second, "b", "y", two).await);
    // Anybody may put a note under anybody's lease, and in the place of another.
    assert!(put(&second, "a/2", "z", one).await);
    assert!(put(&first, "b", "w", two).await);
    early.until(&[("a/1", "x"), ("a/2", "z"), ("b", "w")]).await;
    let mut late = Follower::of(&*first);
    late.until(&[("a/1", "x"), ("a/2", "z"), ("b", "w")]).await;
    first.take_down("a/1").await.expect("an answer");
    early.until(&[("a/2", "z"), ("b", "w")]).await;
    assert!(put(&first, "a/1", "again", two).await);
    first.take_down("a/").await.expect("an answer");
    late.until(&[("b", "w")]).await;
    // A lease takes its notes with it, and then takes no more.
    assert!(put(&first, "c", "v", one).await);
    late.until(&[("b", "w"), ("c", "v")]).await;
    first.end(one).await.expect("an answer");
    late.until(&[("b", "w")]).await;
    assert!(!first.keep(one).await.expect("an answer"));
    assert!(!put(&first, "d", "u", one).await);
    first.end(one).await.expect("to end it twice is no harm");
    // One that is kept stays, one that is not ends by itself. etcd gives none of less than two seconds.
    let (kept, left) = (
        first.lease(Duration::from_secs(2)).await.expect("a lease"),
        first.lease(Duration::from_secs(2)).await.expect("a lease"),
    );
    assert!(put(&first, "kept", "k", kept).await && put(&first, "left", "l", left).await);
    early.until(&[("b", "w"), ("kept", "k"), ("left", "l")]).await;
    let keeping = tokio::spawn({
        let first = Arc::clone(&first);
        async move {
            loop {
                assert!(first.keep(kept).await.expect("an answer"));
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
    });
    early.until(&[("b", "w"), ("kept", "k")]).await;
    assert!(!keeping.is_finished());
    keeping.abort();
    early.until(&[("b", "w")]).await;
}

#[tokio::test]
async fn notes_in_a_shared_memory_do_what_notes_must() {
    let memory = SharedMemory::new(LOG);
    let board = || memory.replica().board().expect("a board");
    suite(board(), board()).await;
}

#[tokio::test]
async fn notes_in_etcd_do_what_notes_must() {
    let prefix = fresh_prefix();
    let open = async || {
        let settings = etcd_settings(Etcd::shared(), &prefix);
        let log = LogId::from_bytes([3; 16]);
        EtcdEngine::open(settings, log, Arc::new(OsEntropy)).await.expect("it opens")
    };
    let (first, second) = (open().await, open().await);
    let board = |engine: &EtcdEngine| engine.board().expect("a board");
    suite(board(&first), board(&second)).await;
    // Whoever has another prefix sees none of it.
    let settings = etcd_settings(Etcd::shared(), &fresh_prefix());
    let log = LogId::from_bytes([4; 16]);
    let other = EtcdEngine::open(settings, log, Arc::new(OsEntropy)).await.expect("it opens");
    Follower::of(&*board(&other)).until(&[]).await;
}
