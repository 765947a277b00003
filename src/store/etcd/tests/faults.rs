//! What etcd and the network may do.

use super::proxy::{Passing, Proxy};
use super::server::{LOG, try_open};
use super::*;

/// Settings that give up on a member soon.
fn hasty(settings: EtcdSettings) -> EtcdSettings {
    EtcdSettings {
        request_timeout: Duration::from_millis(700),
        deadline: Duration::from_secs(60),
        ..settings
    }
}

/// Adds one to a counter, without an event.
fn add(key: &'static [u8]) -> Decision {
    Box::new(move |txn| {
        let next = number(txn.get(key)?.as_deref()) + 1;
        txn.put(key.to_vec(), next.to_be_bytes().to_vec());
        Ok(Box::new(next))
    })
}

/// An engine behind a proxy, and another that is not.
struct Rig {
    etcd: Etcd,
    proxy: Proxy,
    engine: Arc<EtcdEngine>,
    direct: EtcdEngine,
}

impl Rig {
    async fn new() -> Self {
        let etcd = Etcd::start();
        let direct = open(&etcd.settings_at(etcd.port, "/rig/")).await;
        let proxy = Proxy::to(etcd.port).await;
        let engine = Arc::new(open(&hasty(etcd.settings_at(proxy.port, "/rig/"))).await);
        Self { etcd, proxy, engine, direct }
    }

    /// Makes a change of which etcd's answer is lost, and gives what the engine answers. `made` says
    /// what is under the key once it was made.
    async fn lose_answer_of(&self, change: Decision, key: &[u8], made: u64) -> (u64, Commit) {
        // So that nothing is missing when it is tried: the next that is sent is the change.
        _ = get(&*self.engine, key).await.unwrap();
        self.proxy.set(Passing::NoAnswers);
        let task = tokio::spawn({
            let engine = Arc::clone(&self.engine);
            async move { engine.commit(change).await }
        });
        while number(get(&self.direct, key).await.unwrap().as_deref()) != made {
            tokio::task::yield_now().await;
        }
        self.proxy.cut();
        let (answer, commit) = task.await.unwrap().unwrap();
        (*answer.downcast().unwrap(), commit)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_whose_answer_is_lost_is_made_once_and_answered_as_made() {
    let rig = Rig::new().await;
    rig.engine.commit(count(b"with event")).await.unwrap();
    rig.engine.commit(add(b"without")).await.unwrap();
    // It is found by its event.
    let (answer, commit) = rig.lose_answer_of(count(b"with event"), b"with event", 2).await;
    assert_eq!(answer, 2, "it counted once");
    let event = commit.event.unwrap();
    let logged = rig.direct.events_after(Revision(event.0 - 1), 9).unwrap();
    assert_eq!(logged, [LoggedEvent { revision: event, value: b"with event2".to_vec() }]);
    assert_eq!(rig.engine.events_after(Revision(event.0 - 1), 9).unwrap(), logged);
    // By the record that it changed.
    assert_eq!(rig.lose_answer_of(add(b"without"), b"without", 2).await.0, 2);
    // By the mark, for there was nothing.
    assert_eq!(rig.lose_answer_of(add(b"new"), b"new", 1).await.0, 1);
    for (key, expected) in [(&b"with event"[..], 2), (b"without", 2), (b"new", 1)] {
        assert_eq!(number(get(&rig.direct, key).await.unwrap().as_deref()), expected);
    }
}

/// As above, but somebody else changes the same record before the engine looks.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_found_behind_later_changes() {
    let rig = Rig::new().await;
    rig.engine.commit(add(b"k")).await.unwrap();
    _ = get(&*rig.engine, b"k").await.unwrap();
    rig.proxy.set(Passing::NoAnswers);
    let task = tokio::spawn({
        let engine = Arc::clone(&rig.engine);
        async move { engine.commit(add(b"k")).await }
    });
    while number(get(&rig.direct, b"k").await.unwrap().as_deref()) != 2 {
        tokio::task::yield_now().await;
    }
    for _ in 0..3 {
        rig.direct.commit(add(b"k")).await.unwrap();
    }
    rig.proxy.cut();
    let (answer, _) = task.await.unwrap().unwrap();
    assert_eq!(answer.downcast_ref::<u64>(), Some(&2), "it was the second");
    assert_eq!(number(get(&rig.direct, b"k").await.unwrap().as_deref()), 5);
}

/// What never reached etcd is tried again, and what comes late comes to nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_lost_on_its_way_is_made_by_the_next_try() {
    let rig = Rig::new().await;
    rig.engine.commit(add(b"k")).await.unwrap();
    rig.proxy.set(Passing::Nothing);
    let task = tokio::spawn({
        let engine = Arc::clone(&rig.engine);
        async move { engine.commit(add(b"k")).await }
    });
    // It gives up on the member once at least.
    let sent = rig.engine.calls();
    while rig.engine.calls() < sent + 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What was held back reaches etcd now, the first try among it.
    rig.proxy.set(Passing::Everything);
    let (answer, _) = task.await.unwrap().unwrap();
    assert_eq!(answer.downcast_ref::<u64>(), Some(&2));
    rig.engine.commit(add(b"k")).await.unwrap();
    assert_eq!(number(get(&rig.direct, b"k").await.unwrap().as_deref()), 3, "each is made once");
}

/// A request may lie in a queue for as long as it likes.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_before_the_fence_moved_comes_to_nothing_however_late_it_comes() {
    let etcd = Etcd::start();
    let engine = open(&etcd.settings()).await;
    let (core, deadline) = (&engine.core, engine.core.deadline());
    let send = |key: &'static [u8]| {
        let mut attempt = view::Attempt::new(Trust::Guesses);
        let (_, wanted) = attempt.decide(&put(key, b"1"), core.over());
        core.transaction(&attempt, &wanted, core.stamp(), false).unwrap()
    };
    let (in_time, witness) = send(b"in time");
    let floor = core.client.seen();
    assert!(core.client.txn_once(in_time, deadline).await.unwrap().succeeded);
    assert!(core.resolve(&witness, floor, deadline).await.unwrap().is_some());
    let (late, witness) = send(b"late");
    let floor = core.client.seen();
    assert_eq!(core.resolve(&witness, floor, deadline).await, Ok(None), "it was not made");
    assert!(!core.client.txn_once(late, deadline).await.unwrap().succeeded, "and never is");
    assert_eq!(get(&engine, b"late").await, Ok(None));
    let (next, _) = send(b"next");
    assert!(core.client.txn_once(next, deadline).await.unwrap().succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_etcd_nothing_is_answered_and_nothing_is_proved_until_it_is_back() {
    let mut etcd = Etcd::start();
    let settings = EtcdSettings {
        request_timeout: Duration::from_secs(1),
        deadline: Duration::from_secs(2),
        ..etcd.settings()
    };
    let engine = open(&settings).await;
    let (_, acked) = engine.commit(count(b"c")).await.unwrap();
    assert!(engine.prove_contact().await);
    etcd.kill();
    assert!(!engine.prove_contact().await);
    let outcome = engine.commit(count(b"c")).await.map(|_| ());
    assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
    let outcome = get(&engine, b"c").await;
    assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
    etcd.run();
    while !engine.prove_contact().await {}
    let mut counted = None;
    while counted.is_none() {
        counted = engine.commit(count(b"c")).await.ok();
    }
    let (answer, commit) = counted.unwrap();
    let events = engine.events_after(Revision(0), 9).unwrap();
    assert_eq!(
        events.first().map(|event| event.revision),
        acked.event,
        "what was acknowledged stays"
    );
    assert_eq!(events.last().map(|event| event.revision), commit.event);
    assert_eq!(answer.downcast_ref::<u64>(), Some(&u64::try_from(events.len()).unwrap()));
    assert_eq!(engine.status().failed, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_silent_proves_nothing_and_answers_no_change() {
    let etcd = Etcd::start();
    let direct = open(&etcd.settings_at(etcd.port, "/w/")).await;
    let settings = EtcdSettings {
        request_timeout: Duration::from_secs(1),
        deadline: Duration::from_secs(3),
        ..etcd.settings_at(etcd.port, "/w/")
    };
    let engine = open(&settings).await;
    engine.commit(count(b"c")).await.unwrap();
    // The watch is over, and nobody begins another.
    engine.tasks[0].abort();
    while !engine.tasks[0].is_finished() {
        tokio::task::yield_now().await;
    }
    assert!(engine.prove_contact().await, "nothing happened that it did not tell of");
    direct.commit(count(b"c")).await.unwrap();
    assert!(!engine.prove_contact().await, "something did");
    // Nor that which only sees what the other did: it would name an end of the log that is before it.
    let look = || decision(|txn| txn.get(b"c").map(|_| ()));
    for change in [count(b"c"), look()] {
        let outcome = engine.commit(change).await.map(|_| ());
        assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
    }
    assert!(engine.commit(add(b"k")).await.is_ok(), "what has no event needs no watch");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_compacted_under_a_watch_is_read_anew() {
    let rig = Rig::new().await;
    let ear = Arc::new(Ear::default());
    rig.engine.observe(Arc::clone(&ear) as Arc<dyn Observer>);
    let (_, first) = rig.engine.commit(count(b"c")).await.unwrap();
    let (_, second) = rig.engine.commit(count(b"c")).await.unwrap();
    rig.proxy.set(Passing::Nothing);
    let mut last = second;
    for _ in 0..5 {
        (_, last) = rig.direct.commit(count(b"c")).await.unwrap();
    }
    let swept = first.event.unwrap();
    let sweep = decision(move |txn| {
        txn.delete(crate::store::engine::event_key(swept));
        Ok(())
    });
    rig.direct.commit_freeing(sweep).await.unwrap();
    rig.direct.commit(put(b"k", b"1")).await.unwrap();
    compact(&rig.etcd, rig.direct.core.client.seen()).await;
    rig.proxy.cut();
    let heard = events_of(&rig.engine, &ear, last.head).await;
    let revisions: Vec<_> = heard.iter().map(|event| event.revision).collect();
    assert_eq!(revisions.len(), 7, "no hole and nothing twice");
    assert!(revisions.is_sorted_by(|one, next| one < next));
    assert_eq!(
        rig.engine.events_after(Revision(0), 99).unwrap(),
        rig.direct.events_after(Revision(0), 99).unwrap(),
        "what was swept meanwhile is gone here too"
    );
    let (_, commit) = rig.engine.commit(count(b"c")).await.unwrap();
    assert!(commit.event.unwrap() > last.head);
}

/// Lets etcd forget everything before a revision.
async fn compact(etcd: &Etcd, revision: i64) {
    let channel =
        tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{}", etcd.port));
    let mut client = tonic::client::Grpc::new(channel.unwrap().connect().await.unwrap());
    client.ready().await.unwrap();
    // As a range of one revision: the request of Compact has the revision as its first field, too.
    let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Compact");
    let codec =
        tonic_prost::ProstCodec::<pb::LeaseRevokeRequest, pb::LeaseRevokeResponse>::default();
    let request = tonic::Request::new(pb::LeaseRevokeRequest { id: revision });
    client.unary(request, path, codec).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_another_etcd_of_another_version_or_without_their_own_do_not_open() {
    let mut etcd = Etcd::start();
    let settings = etcd.settings_at(etcd.port, "/m/");
    let engine = open(&settings).await;
    engine.commit(count(b"c")).await.unwrap();
    let (keys, deadline) = (Keys::new("/m/"), Instant::now() + Duration::from_secs(30));
    let other = EtcdSettings { schema_version: settings.schema_version + 1, ..settings.clone() };
    let error = try_open(&other).await.err().unwrap();
    assert!(matches!(error, OpenError::Schema { .. }), "{error}");

    // As a snapshot that was restored into another cluster has it.
    let client = &engine.core.client;
    let moved = Meta { cluster_id: engine.meta.cluster_id ^ 1, ..engine.meta };
    let known = engine.core.meta_changed.load(Ordering::Relaxed);
    meta::write(client, &keys, &moved, known, deadline).await.unwrap().unwrap();
    let error = try_open(&settings).await.err().unwrap();
    assert!(matches!(error, OpenError::Replaced { .. }), "{error}");
    // The engine that runs does not go on either.
    let outcome = engine.commit(count(b"c")).await.map(|_| ());
    assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
    assert!(engine.failed().borrow().is_some());
    assert!(!engine.prove_contact().await);

    let new_log = LogId::from_bytes([9; 16]);
    let adopted = EtcdEngine::adopt(settings.clone(), new_log, entropy()).await.unwrap();
    assert_eq!((adopted.log_id(), adopted.head().log_id), (new_log, new_log));
    let error = try_open(&settings).await.err().unwrap();
    assert!(matches!(error, OpenError::Replaced { .. }), "{error}");
    adopted.commit(count(b"c")).await.unwrap();
    adopted.finish_adoption().await.unwrap();
    adopted.commit(count(b"c")).await.unwrap();
    let again = open(&settings).await;
    assert_eq!(again.log_id(), new_log);
    assert_eq!(again.events_after(Revision(0), 9).unwrap().len(), 3);

    // The records are there, and nothing says whose they are.
    let remove = pb::TxnRequest {
        success: vec![pb::RequestOp {
            request: Some(pb::request_op::Request::RequestDeleteRange(pb::DeleteRangeRequest {
                key: keys.meta().into(),
                range_end: bytes::Bytes::new(),
            })),
        }],
        ..pb::TxnRequest::default()
    };
    again.core.client.txn(remove, deadline).await.unwrap();
    let error = try_open(&settings).await.err().unwrap();
    assert!(matches!(error, OpenError::Replaced { .. }), "{error}");
    assert!(!again.prove_contact().await);

    // An etcd that has lost everything is at a lower revision, and in the place of the other.
    let running = open(&etcd.settings_at(etcd.port, "/n/")).await;
    running.commit(count(b"c")).await.unwrap();
    etcd.kill();
    etcd.wipe();
    etcd.run();
    let mut failed = running.failed();
    while failed.borrow().is_none() {
        assert!(!running.prove_contact().await);
    }
    assert!(failed.borrow_and_update().as_deref().unwrap().contains("revision"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_said_at_open() {
    let settings = EtcdSettings {
        request_timeout: Duration::from_millis(200),
        deadline: Duration::from_millis(400),
        ..EtcdSettings::new(vec!["http://127.0.0.1:1".to_owned()], "/p/".to_owned(), 1)
    };
    let error = EtcdEngine::open(settings, LOG, entropy()).await.err().unwrap();
    assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
}
