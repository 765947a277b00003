//! What every engine must do, sentence by sentence of `engine.rs`. Each engine's tests run it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Runtime;

use super::StoreError;
use super::engine::{
    Answer, Commit, Decision, Engine, KeyRange, LoggedEvent, Observer, Order, Rests, Txn, Value,
    event_key, is_index_key,
};
use crate::domain::ids::Revision;

/// How much of it an engine is put to, and how exactly.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Whether the first event has the revision 1, and each one more than the one before. Otherwise
    /// they only rise.
    pub(super) counts: bool,
    /// How many decide at once, each how often.
    pub(super) deciders: (u64, u64),
    /// How many random cases are tried.
    pub(super) cases: u32,
}

impl Shape {
    /// Of an engine in this process.
    pub(super) const HERE: Self = Self { counts: true, deciders: (64, 200), cases: 48 };

    /// What the revisions of a log are, in order.
    fn check(self, revisions: &[Revision]) {
        assert!(revisions.is_sorted_by(|one, next| one < next), "{revisions:?}");
        if self.counts {
            let expected: Vec<_> = (1..=revisions.len() as u64).map(Revision).collect();
            assert_eq!(revisions, expected);
        }
    }
}

/// Runs every test of an engine. `make` gives an empty one.
pub(super) fn suite<E: Engine>(shape: Shape, make: impl AsyncFn() -> E) {
    let runtime = Runtime::new().unwrap();
    let make = async || {
        let engine: Arc<dyn Engine> = Arc::new(make().await);
        engine
    };
    runtime.block_on(async {
        starts_empty(make().await).await;
        commits_whole_or_not_at_all(shape, make().await).await;
        reads_what_was_written(make().await).await;
        rests_on_what_it_says(make().await).await;
        refuses_what_it_must_not_keep(make().await).await;
        numbers_events_in_order(shape, make().await).await;
        tells_the_observer_first(make().await).await;
        decides_one_after_another(shape, make().await).await;
        proves_contact_until_closed(make().await).await;
        counts_a_range(make().await).await;
    });
    scans_like_a_sorted_map(shape, &runtime, &make);
}

/// A decision that answers nothing.
pub(super) fn decision(
    decide: impl Fn(&mut Txn<'_>) -> Result<(), StoreError> + Send + 'static,
) -> Decision {
    Box::new(move |txn| decide(txn).map(|()| Box::new(()) as Answer))
}

/// A decision that writes one record.
pub(super) fn put(key: &[u8], value: &[u8]) -> Decision {
    let (key, value) = (key.to_vec(), value.to_vec());
    decision(move |txn| {
        txn.put(key.clone(), value.clone());
        Ok(())
    })
}

/// A decision that adds one to a counter, appends its name and new value as an event, and answers
/// the new value.
pub(super) fn count(key: &[u8]) -> Decision {
    let key = key.to_vec();
    Box::new(move |txn| {
        let next = number(txn.get(&key)?.as_deref()) + 1;
        txn.put(key.clone(), next.to_be_bytes().to_vec());
        txn.append([key.as_slice(), next.to_string().as_bytes()].concat())?;
        Ok(Box::new(next))
    })
}

/// What [`count`] keeps.
pub(super) fn number(bytes: Option<&[u8]>) -> u64 {
    bytes.map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()))
}

/// What a query finds under a key.
pub(super) async fn get(engine: &dyn Engine, key: &[u8]) -> Result<Option<Value>, StoreError> {
    let found = engine.read(&|reads| Ok(Box::new(reads.get(key)?))).await?;
    Ok(*found.downcast().unwrap())
}

/// What a query finds in a range.
pub(super) async fn scan(
    engine: &dyn Engine,
    range: &KeyRange,
    order: Order,
    limit: usize,
) -> Result<Vec<(Vec<u8>, Value)>, StoreError> {
    let found = engine.read(&|reads| Ok(Box::new(reads.scan(range, order, limit)?))).await?;
    Ok(*found.downcast().unwrap())
}

fn all() -> KeyRange {
    KeyRange::prefix(b"")
}

async fn starts_empty(engine: Arc<dyn Engine>) {
    assert_eq!(scan(&*engine, &all(), Order::Ascending, 9).await, Ok(vec![]));
    assert_eq!(get(&*engine, b"none").await, Ok(None));
    assert_eq!(engine.head().revision, Revision(0));
    assert_eq!(engine.head().log_id, engine.log_id());
    assert_eq!(engine.events_after(Revision(0), 9), Ok(vec![]));
    assert_eq!(engine.time_floor().as_millis(), 0);
    let (_, commit) = engine.commit(decision(|_| Ok(()))).await.unwrap();
    assert_eq!(commit, Commit { event: None, head: Revision(0) });
}

async fn commits_whole_or_not_at_all(shape: Shape, engine: Arc<dyn Engine>) {
    let write_all = |end: fn(&mut Txn<'_>) -> Result<(), StoreError>| {
        decision(move |txn| {
            txn.put(b"a".to_vec(), b"1".to_vec());
            txn.put(b"b".to_vec(), b"2".to_vec());
            txn.append(b"event".to_vec())?;
            end(txn)
        })
    };
    let refused = StoreError::Unavailable("refused".to_owned());
    let outcome = engine
        .commit(write_all(|_| Err(StoreError::Unavailable("refused".to_owned()))))
        .await
        .map(|_| ());
    assert_eq!(outcome, Err(refused));
    let outcome = engine.commit(write_all(|txn| txn.append(b"second".to_vec()))).await;
    assert!(matches!(outcome, Err(StoreError::Internal(_))));
    let outcome = engine.commit(write_all(|_| panic!("a decision with a bug"))).await;
    assert!(matches!(outcome, Err(StoreError::Internal(_))));
    assert_eq!(scan(&*engine, &all(), Order::Ascending, 9).await, Ok(vec![]));
    assert_eq!(engine.head().revision, Revision(0));

    let (_, commit) = engine.commit(write_all(|_| Ok(()))).await.unwrap();
    let revision = commit.event.unwrap();
    assert_eq!(commit.head, revision);
    shape.check(&[revision]);
    let stored = scan(&*engine, &all(), Order::Ascending, 9).await.unwrap();
    let record = |key: &[u8], value: &[u8]| (key.to_vec(), value.to_vec());
    let event = (event_key(revision), b"event".to_vec());
    assert_eq!(stored, [record(b"a", b"1"), record(b"b", b"2"), event]);
}

async fn reads_what_was_written(engine: Arc<dyn Engine>) {
    engine.commit(put(b"kept", b"")).await.unwrap();
    engine.commit(put(b"gone", b"old")).await.unwrap();
    let seen = decision(|txn| {
        assert_eq!(txn.get(b"kept")?, Some(vec![]));
        txn.put(b"kept".to_vec(), b"new".to_vec());
        assert_eq!(txn.get(b"kept")?, Some(b"new".to_vec()));
        txn.delete(b"gone".to_vec());
        assert_eq!(txn.get(b"gone")?, None);
        txn.delete(b"never there".to_vec());
        Ok(())
    });
    engine.commit_freeing(seen).await.unwrap();
    assert_eq!(get(&*engine, b"kept").await, Ok(Some(b"new".to_vec())));
    assert_eq!(get(&*engine, b"gone").await, Ok(None));
}

async fn refuses_what_it_must_not_keep(engine: Arc<dyn Engine>) {
    let long = vec![b'x'; 4090];
    let refused = [(&b"!meta"[..], &b"v"[..]), (b"", b"v"), (b"too long", &long), (b"index", b"v")];
    for (key, value) in refused {
        let outcome = engine.commit(put(key, value)).await;
        assert!(matches!(outcome, Err(StoreError::Internal(_))));
    }
    engine.commit(put(b"k", &long)).await.unwrap();
    assert_eq!(get(&*engine, b"k").await, Ok(Some(long)));
    assert_eq!(get(&*engine, b"!meta").await, Ok(None));
    assert_eq!(scan(&*engine, &all(), Order::Descending, 9).await.unwrap().len(), 1);
}

async fn numbers_events_in_order(shape: Shape, engine: Arc<dyn Engine>) {
    let mut revisions = Vec::new();
    for n in 1..=20_u64 {
        engine.commit(put(b"no event", &n.to_be_bytes())).await.unwrap();
        let (answer, commit) = engine.commit(count(b"c")).await.unwrap();
        assert_eq!(answer.downcast_ref::<u64>(), Some(&n));
        assert_eq!(commit.event, Some(commit.head));
        revisions.push(commit.head);
    }
    shape.check(&revisions);
    let event =
        |n: usize| LoggedEvent { revision: revisions[n - 1], value: format!("c{n}").into() };
    assert_eq!(engine.events_after(Revision(0), 99), Ok((1..=20).map(event).collect()));
    assert_eq!(engine.events_after(revisions[6], 2), Ok(vec![event(8), event(9)]));
    assert_eq!(engine.events_after(revisions[19], 9), Ok(vec![]));
    assert_eq!(engine.events_after(Revision(u64::MAX), 9), Ok(vec![]));

    let old: Vec<_> = revisions[..18].to_vec();
    let expire = decision(move |txn| {
        for revision in &old {
            txn.delete(event_key(*revision));
        }
        Ok(())
    });
    let (_, commit) = engine.commit_freeing(expire).await.unwrap();
    assert_eq!(commit, Commit { event: None, head: revisions[19] });
    assert_eq!(engine.events_after(Revision(0), 9), Ok(vec![event(19), event(20)]));
}

/// Whatever a decision says that it rests on, it reads what was acknowledged before.
async fn rests_on_what_it_says(engine: Arc<dyn Engine>) {
    for key in [b"r/a", b"r/b", b"r/c"] {
        engine.commit(put(key, b"old")).await.unwrap();
    }
    engine.commit(put(b"r/b", b"new")).await.unwrap();
    for rests in [Rests::OnAll, Rests::OnAdditions, Rests::OnNothing] {
        let look = decision(move |txn| {
            let keys = [b"r/b".to_vec(), b"r/none".to_vec()];
            assert_eq!(txn.get_committed(&keys, rests)?, [Some(b"new".to_vec()), None]);
            let range = KeyRange::prefix(b"r/");
            let found = txn.scan_committed(&range, Order::Descending, 2, rests)?;
            assert_eq!(
                found,
                [(b"r/c".to_vec(), b"old".to_vec()), (b"r/b".to_vec(), b"new".to_vec())]
            );
            assert!(txn.peek(b"r/a")?.is_some());
            txn.put(b"r/seen".to_vec(), b"1".to_vec());
            assert_eq!(txn.peek(b"r/seen")?, Some(b"1".to_vec()));
            Ok(())
        });
        engine.commit(look).await.unwrap();
        engine
            .commit(decision(|txn| {
                txn.delete(b"r/seen".to_vec());
                Ok(())
            }))
            .await
            .unwrap();
    }
    let recalled = engine.recall(&|reads| Ok(Box::new(reads.get(b"r/b")?))).await.unwrap();
    assert!(recalled.downcast_ref::<Option<Value>>().unwrap().is_some());
}

/// Keeps what it is told.
struct Ear {
    heard: Mutex<Vec<LoggedEvent>>,
    head: AtomicU64,
}

impl Observer for Ear {
    fn durable(&self, events: &[LoggedEvent], head: Revision) {
        self.heard.lock().unwrap().extend_from_slice(events);
        self.head.store(head.0, Ordering::SeqCst);
    }
}

async fn tells_the_observer_first(engine: Arc<dyn Engine>) {
    let (_, before) = engine.commit(count(b"before")).await.unwrap();
    let ear = Arc::new(Ear { heard: Mutex::default(), head: AtomicU64::new(0) });
    engine.observe(Arc::clone(&ear) as Arc<dyn Observer>);
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let (engine, ear) = (Arc::clone(&engine), Arc::clone(&ear));
            tokio::spawn(async move {
                for _ in 0..20 {
                    let (_, commit) = engine.commit(count(b"c")).await.unwrap();
                    let revision = commit.event.unwrap();
                    assert!(ear.head.load(Ordering::SeqCst) >= revision.0);
                    let heard = ear.heard.lock().unwrap();
                    assert!(heard.iter().any(|event| event.revision == revision));
                    drop(heard);
                    assert!(engine.head().revision >= revision);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let heard = std::mem::take(&mut *ear.heard.lock().unwrap());
    assert_eq!(heard, engine.events_after(before.head, usize::MAX).unwrap());
    assert_eq!(heard.len(), 320);
}

async fn decides_one_after_another(shape: Shape, engine: Arc<dyn Engine>) {
    let (all, each) = shape.deciders;
    let tasks: Vec<_> = (0..all)
        .map(|task| {
            let engine = Arc::clone(&engine);
            tokio::spawn(async move {
                let mut heads = Vec::new();
                for n in 1..=each {
                    let both = move |txn: &mut Txn<'_>| {
                        let own = task.to_be_bytes();
                        let shared = number(txn.get(b"n/all")?.as_deref()) + 1;
                        let before = number(txn.get(&own)?.as_deref());
                        assert_eq!(before + 1, n);
                        txn.put(b"n/all".to_vec(), shared.to_be_bytes().to_vec());
                        txn.put(own.to_vec(), n.to_be_bytes().to_vec());
                        if n % 2 == 0 {
                            txn.append(shared.to_be_bytes().to_vec())?;
                        }
                        if n % 50 == 0 {
                            let found = txn.scan_committed(
                                &KeyRange::prefix(b"n/"),
                                Order::Ascending,
                                9,
                                Rests::OnAll,
                            )?;
                            assert_eq!(number(Some(&found[0].1)), shared - 1);
                        }
                        Ok(())
                    };
                    let (_, commit) = engine.commit(decision(both)).await.unwrap();
                    assert!(commit.event.is_none_or(|event| event == commit.head));
                    heads.push(commit.head);
                    let failing = decision(|txn| {
                        txn.put(b"n/all".to_vec(), vec![]);
                        Err(StoreError::Internal("a decision that changes its mind"))
                    });
                    if n % 40 == 0 {
                        assert!(engine.commit(failing).await.is_err());
                    }
                }
                assert!(heads.is_sorted());
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(number(get(&*engine, b"n/all").await.unwrap().as_deref()), all * each);
    for task in 0..all {
        assert_eq!(number(get(&*engine, &task.to_be_bytes()).await.unwrap().as_deref()), each);
    }
    let events = engine.events_after(Revision(0), usize::MAX).unwrap();
    let revisions: Vec<_> = events.iter().map(|event| event.revision).collect();
    assert_eq!(revisions.len() as u64, all * each / 2);
    shape.check(&revisions);
    assert!(events.is_sorted_by_key(|event| number(Some(&event.value))));
}

/// More than one page, of index entries, which an engine may keep many to a record.
async fn counts_a_range(engine: Arc<dyn Engine>) {
    let range = || KeyRange::prefix(b"x/");
    assert_eq!(engine.count(range()).await.unwrap(), 0);
    let some = |n: u32| {
        decision(move |txn| {
            for m in 0..100_u32 {
                txn.put(format!("x/{:06}", n * 100 + m).into_bytes(), Vec::new());
            }
            Ok(())
        })
    };
    for n in 0..50 {
        engine.commit(some(n)).await.unwrap();
    }
    engine.commit(put(b"w", b"before")).await.unwrap();
    engine.commit(put(b"y", b"behind")).await.unwrap();
    assert_eq!(engine.count(range()).await.unwrap(), 5_000);
    let gone = decision(|txn| {
        txn.delete(b"x/000000".to_vec());
        txn.delete(b"x/004999".to_vec());
        Ok(())
    });
    engine.commit(gone).await.unwrap();
    assert_eq!(engine.count(range()).await.unwrap(), 4_998);
}

async fn proves_contact_until_closed(engine: Arc<dyn Engine>) {
    assert!(engine.prove_contact().await);
    engine.commit(put(b"a", b"1")).await.unwrap();
    assert!(engine.prove_contact().await);
    let status = engine.status();
    assert_eq!((status.failed, status.low_space, status.queued), (None, false, 0));
    assert_eq!((status.commits, status.groups), (1, 1));
    engine.close().await;
    engine.close().await;
    let outcome = engine.commit(put(b"a", b"2")).await.map(|_| ());
    assert_eq!(outcome, Err(StoreError::Unavailable("it is closed".to_owned())));
    assert!(!engine.prove_contact().await);
    assert_eq!(get(&*engine, b"a").await, Ok(Some(b"1".to_vec())));
}

/// Puts and deletes at random, then scans at random, from outside and from within a decision.
fn scans_like_a_sorted_map(
    shape: Shape,
    runtime: &Runtime,
    make: &impl AsyncFn() -> Arc<dyn Engine>,
) {
    use proptest::collection::vec;
    use proptest::prelude::*;

    let engine = runtime.block_on(make());
    let model = Mutex::new(BTreeMap::<Vec<u8>, Vec<u8>>::new());
    // Of several kinds, some of them index entries, some long enough to fill a pack of them.
    let key = || {
        let kind = prop_oneof![Just(b'a'), Just(b'i'), Just(b'j'), Just(b'x'), Just(255)];
        let rest = vec(prop_oneof![Just(b'a'), Just(b'b'), Just(255)], 0..4);
        (kind, rest, any::<bool>()).prop_map(|(kind, rest, long)| {
            let tail = if long { [7; 150].as_slice() } else { &[] };
            [&[kind], rest.as_slice(), tail].concat()
        })
    };
    let write = (key(), any::<Option<u8>>());
    let scan = (key(), proptest::option::of(key()), any::<bool>(), 0..6_usize);
    let mut runner = TestRunner::new(Config {
        cases: shape.cases,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&(vec(write, 0..24), vec(scan, 1..12)), |(writes, scans)| {
            let mut model = model.lock().unwrap();
            let value_of = |key: &[u8], value: Option<u8>| {
                value.map(|value| if is_index_key(key) { vec![] } else { vec![value] })
            };
            let writes: Vec<_> = writes
                .into_iter()
                .map(|(key, value)| (key.clone(), value_of(&key, value)))
                .collect();
            for (key, value) in &writes {
                match value {
                    Some(value) => model.insert(key.clone(), value.clone()),
                    None => model.remove(key),
                };
            }
            let batch = decision(move |txn| {
                for (key, value) in writes.clone() {
                    match value {
                        Some(value) => txn.put(key, value),
                        None => txn.delete(key),
                    }
                }
                Ok(())
            });
            let (engine, scans_within) = (Arc::clone(&engine), scans.clone());
            let look = move |txn: &mut Txn<'_>| {
                let mut found = Vec::new();
                for scan in &scans_within {
                    let (range, order) = range_of(scan);
                    found.push(txn.scan_committed(&range, order, scan.3, Rests::OnAll)?);
                }
                Ok(Box::new(found) as Answer)
            };
            let writer = Arc::clone(&engine);
            // Together, so that the second may land in the group of the first.
            let within = runtime.block_on(async move {
                let written = writer.commit(batch);
                let looked = writer.commit(Box::new(look));
                let (written, looked) = tokio::join!(biased; written, looked);
                written.unwrap();
                looked.unwrap().0
            });
            type Found = Vec<Vec<(Vec<u8>, Vec<u8>)>>;
            let within = within.downcast::<Found>().unwrap();
            for (scan, within) in scans.iter().zip(*within) {
                let (range, order) = range_of(scan);
                prop_assert_eq!(
                    runtime.block_on(get(&*engine, &scan.0)).unwrap(),
                    model.get(&scan.0).cloned()
                );
                let inside = |key: &[u8]| {
                    *key >= *range.start && range.end.as_ref().is_none_or(|end| *key < **end)
                };
                let mut expected: Vec<_> =
                    model.clone().into_iter().filter(|(key, _)| inside(key)).collect();
                if order == Order::Descending {
                    expected.reverse();
                }
                expected.truncate(scan.3);
                prop_assert_eq!(
                    &runtime
                        .block_on(super::engine_suite::scan(&*engine, &range, order, scan.3))
                        .unwrap(),
                    &expected
                );
                prop_assert_eq!(within, expected);
            }
            Ok(())
        })
        .unwrap();
}

fn range_of(scan: &(Vec<u8>, Option<Vec<u8>>, bool, usize)) -> (KeyRange, Order) {
    let range = KeyRange { start: scan.0.clone(), end: scan.1.clone() };
    (range, if scan.2 { Order::Descending } else { Order::Ascending })
}
