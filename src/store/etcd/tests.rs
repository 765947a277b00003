//! On a real etcd of one member.

use std::sync::{Arc, Mutex};

use tokio::task::JoinSet;

use self::server::{Etcd, open};
use super::*;
use crate::store::engine::Txn;
use crate::store::engine_suite::{Shape, count, decision, get, number, put, suite};

mod access;
mod faults;
mod proxy;
mod server;
mod silent;
mod units;
mod verbs;
mod went_back;

/// Random bytes: what is written by several engines must not be alike.
struct Random;

impl Entropy for Random {
    fn fill(&self, bytes: &mut [u8]) {
        aws_lc_rs::rand::fill(bytes).unwrap();
    }
}

fn entropy() -> Arc<dyn Entropy> {
    Arc::new(Random)
}

#[test]
fn does_what_an_engine_must() {
    let etcd = Etcd::start();
    let shape = Shape { counts: false, deciders: (16, 50), cases: 24 };
    suite(shape, async || open(&etcd.settings()).await);
}

/// Keeps what it is told.
#[derive(Default)]
struct Ear(Mutex<Vec<LoggedEvent>>);

impl Observer for Ear {
    fn durable(&self, events: &[LoggedEvent], head: Revision) {
        assert!(events.iter().all(|event| event.revision <= head));
        self.0.lock().unwrap().extend_from_slice(events);
    }
}

async fn events_of(engine: &EtcdEngine, ear: &Ear, through: Revision) -> Vec<LoggedEvent> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let through = i64::try_from(through.0).unwrap();
    assert!(engine.core.log.wait_for(through, deadline).await, "the watch is behind");
    ear.0.lock().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_engines_decide_one_after_another_and_tell_the_same() {
    const TASKS: u64 = 8;
    const EACH: u64 = 25;
    let etcd = Etcd::start();
    let settings = etcd.settings();
    let engines = [Arc::new(open(&settings).await), Arc::new(open(&settings).await)];
    let ears = [Arc::new(Ear::default()), Arc::new(Ear::default())];
    for (engine, ear) in engines.iter().zip(&ears) {
        engine.observe(Arc::clone(ear) as Arc<dyn Observer>);
    }
    let mut tasks = JoinSet::new();
    for engine in &engines {
        for _ in 0..TASKS {
            let engine = Arc::clone(engine);
            tasks.spawn(async move {
                let mut last = Revision(0);
                for _ in 0..EACH {
                    let (_, commit) = engine.commit(count(b"c")).await.unwrap();
                    let revision = commit.event.unwrap();
                    assert!(last < revision);
                    last = revision;
                }
                last
            });
        }
    }
    let last = tasks.join_all().await.into_iter().max().unwrap();
    for engine in &engines {
        assert_eq!(number(get(&**engine, b"c").await.unwrap().as_deref()), 2 * TASKS * EACH);
    }
    let heard = events_of(&engines[0], &ears[0], last).await;
    assert_eq!(heard, events_of(&engines[1], &ears[1], last).await);
    // In the order in which they were decided: each says what it counted to.
    let said: Vec<_> = heard.iter().map(|event| event.value.clone()).collect();
    let expected: Vec<_> = (1..=2 * TASKS * EACH).map(|n| format!("c{n}").into_bytes()).collect();
    assert_eq!(said, expected);
    assert!(engines.iter().any(|engine| engine.conflicts() > 0), "they did meet");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_engine_acknowledged_the_other_reads_at_once() {
    let etcd = Etcd::start();
    let settings = etcd.settings();
    let (one, other) = (open(&settings).await, open(&settings).await);
    for n in 1..=50_u64 {
        let (here, there) = if n % 2 == 0 { (&one, &other) } else { (&other, &one) };
        here.commit(put(b"k", &n.to_be_bytes())).await.unwrap();
        assert_eq!(number(get(there, b"k").await.unwrap().as_deref()), n);
        let key = format!("new{n}");
        assert_eq!(get(there, key.as_bytes()).await, Ok(None));
        here.commit(put(key.as_bytes(), b"1")).await.unwrap();
        assert_eq!(get(there, key.as_bytes()).await, Ok(Some(b"1".to_vec())));
        let present = decision(move |txn| {
            assert_eq!(number(txn.get(b"k")?.as_deref()), n);
            Ok(())
        });
        // It sees what is old, is compared, and sees what is new.
        let seen = there.commit(present).await.map(|_| ());
        assert_eq!(seen, Ok(()));
    }
}

/// Adds a record of a kind if there are fewer than `max`.
fn add_below(kind: &'static str, max: usize, name: String) -> Decision {
    Box::new(move |txn: &mut Txn<'_>| {
        let range = KeyRange::prefix(kind.as_bytes());
        let order = crate::store::engine::Order::Ascending;
        let rests = crate::store::engine::Rests::OnAdditions;
        let found = txn.scan_committed(&range, order, max + 1, rests)?.len();
        if found < max {
            txn.put(format!("{kind}{name}").into_bytes(), b"1".to_vec());
        }
        Ok(Box::new(found < max))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_a_decision_rests_on_has_nothing_added_behind_it() {
    let etcd = Etcd::start();
    let settings = etcd.settings();
    let engines = [Arc::new(open(&settings).await), Arc::new(open(&settings).await)];
    for kind in ["v/", "w/", "y/"] {
        let mut tasks = JoinSet::new();
        for task in 0..12_usize {
            let engine = Arc::clone(&engines[task % 2]);
            tasks.spawn(async move {
                let (answer, _) =
                    engine.commit(add_below(kind, 4, task.to_string())).await.unwrap();
                *answer.downcast::<bool>().unwrap()
            });
        }
        let added = tasks.join_all().await.into_iter().filter(|added| *added).count();
        assert_eq!(added, 4, "no more than were allowed");
        let range = KeyRange::prefix(kind.as_bytes());
        let order = crate::store::engine::Order::Ascending;
        let there =
            crate::store::engine_suite::scan(&*engines[0], &range, order, 99).await.unwrap();
        assert_eq!(there.len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_may_ask_for_more_than_a_transaction_compares() {
    let etcd = Etcd::start();
    let engine = open(&etcd.settings()).await;
    let keys: Vec<_> = (0..200_u8).map(|n| vec![b'k', n]).collect();
    for keys in keys.chunks(100) {
        let keys = keys.to_vec();
        let put_all = decision(move |txn| {
            keys.iter().for_each(|key| txn.put(key.clone(), key.clone()));
            txn.append(b"event".to_vec())
        });
        engine.commit(put_all).await.unwrap();
    }
    let rests = crate::store::engine::Rests::OnAll;
    let found = engine.read(&|reads| Ok(Box::new(reads.get_many(&keys, rests)?))).await.unwrap();
    let expected: Vec<_> = keys.iter().cloned().map(Some).collect();
    assert_eq!(*found.downcast::<Vec<Option<Vec<u8>>>>().unwrap(), expected);
    let all = KeyRange::prefix(b"");
    assert_eq!(engine.count(all).await, Ok(202), "the events, too, and nothing of the engine's");
    let too_many = decision(move |txn| {
        (0..200_u8).for_each(|n| txn.put(vec![b'l', n], vec![n]));
        Ok(())
    });
    let outcome = engine.commit(too_many).await.map(|_| ());
    assert!(matches!(outcome, Err(StoreError::Internal(_))), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_takes_one_call_where_it_was_made_before_and_two_where_it_was_not() {
    let etcd = Etcd::start();
    let settings = etcd.settings();
    let (one, other) = (open(&settings).await, open(&settings).await);
    let add = || {
        decision(|txn| {
            let next = number(txn.get(b"k")?.as_deref()) + 1;
            txn.put(b"k".to_vec(), next.to_be_bytes().to_vec());
            Ok(())
        })
    };
    one.commit(add()).await.unwrap();
    other.commit(add()).await.unwrap();
    let calls = async |engine: &EtcdEngine| {
        let before = engine.calls();
        engine.commit(add()).await.unwrap();
        engine.calls() - before
    };
    // It is tried on what is old, and read again by the very transaction that finds out.
    assert_eq!(calls(&one).await, 2);
    assert_eq!(calls(&one).await, 1);
    assert_eq!(calls(&one).await, 1);
    assert_eq!(calls(&other).await, 2);
    let before = one.calls();
    get(&one, b"k").await.unwrap();
    assert_eq!(one.calls() - before, 1, "a read is one call, whether it was known or not");
}
