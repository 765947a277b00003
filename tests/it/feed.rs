//! The feed without a wire: what a watcher is shown, whatever happens meanwhile.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use avouch::domain::caller::{Caller, Grant, Identity, Right};
use avouch::domain::clock::{Clock as _, Timestamp};
use avouch::domain::event::{Event, Target};
use avouch::domain::ids::{Cursor, LogId, Revision};
use avouch::feed::filter::Filter;
use avouch::feed::subscription::{Item, Leave};
use avouch::feed::{FeedSettings, Subscribe, WatchError};
use avouch::pb::v1::watch_revocations_response::Frame;
use avouch::store::Store as _;

use crate::support::world::{
    LOG, START, World, decode, next, revisions_until, revoke, small_ring, subscribe, until_synced,
};

const fn at(revision: u64) -> Cursor {
    Cursor { log_id: LOG, revision: Revision(revision) }
}

fn keys_in(frames: &[Frame]) -> HashSet<u64> {
    let mut keys = HashSet::new();
    for frame in frames {
        if let Frame::Snapshot(chunk) = frame {
            keys.extend(chunk.packed.iter().flat_map(|packed| packed.keys.iter().copied()));
        }
    }
    keys
}

fn key_of(event: &Event) -> u64 {
    match event {
        Event::Revocation(it) => match &it.target {
            Target::Token { id, .. } => id.key64(),
            other => panic!("not a token: {other:?}"),
        },
        Event::KeySetChanged { .. } => panic!("not a revocation"),
    }
}

/// Row a: consul#7128.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_is_lost_between_the_snapshot_and_the_tail() {
    const WRITERS: u64 = 4;
    const EACH: u64 = 150;
    let world = Arc::new(World::new());
    let feed = world.feed(small_ring(64));
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                let mut keys = Vec::new();
                for _ in 0..EACH {
                    keys.push(key_of(&world.revoke().await.event));
                    tokio::task::yield_now().await;
                }
                keys
            })
        })
        .collect();
    let watchers: Vec<_> = (0..20)
        .map(|_| {
            let feed = Arc::clone(&feed);
            tokio::spawn(async move {
                let mut watch = feed.subscribe(subscribe()).await.unwrap();
                let (before, synced) = until_synced(&mut watch).await;
                let mut seen = keys_in(&before);
                let mut through = synced.through.unwrap().revision;
                while through < WRITERS * EACH {
                    if let Frame::Batch(batch) = next(&mut watch).await {
                        for it in &batch.revocations {
                            assert!(it.revision > through, "went back in time");
                            through = it.revision;
                            seen.insert(key(it));
                        }
                        through = batch.through.unwrap().revision;
                    }
                }
                seen
            })
        })
        .collect();
    let mut all = HashSet::new();
    for writer in writers {
        all.extend(writer.await.unwrap());
    }
    for watcher in watchers {
        assert_eq!(watcher.await.unwrap(), all);
    }
}

fn key(revocation: &avouch::pb::v1::Revocation) -> u64 {
    use avouch::pb::v1::revocation::Target;
    match revocation.target.as_ref().unwrap() {
        Target::Token(token) => {
            token.token_id.parse::<avouch::domain::ids::TokenId>().unwrap().key64()
        }
        other => panic!("not a token: {other:?}"),
    }
}

/// Row a, at the start of the process: events before it are loaded, and later ones heard.
#[tokio::test]
async fn a_new_feed_knows_what_was_revoked_before_it_and_after() {
    let world = World::new();
    let before = world.revoke().await;
    let feed = world.feed(FeedSettings::default());
    let after = world.revoke().await;
    let mut watch = feed.subscribe(subscribe()).await.unwrap();
    let (frames, synced) = until_synced(&mut watch).await;
    assert_eq!(keys_in(&frames), [key_of(&before.event), key_of(&after.event)].into());
    assert_eq!(synced.through.unwrap().revision, 2);
    assert_eq!(feed.stats().live, 2);
}

/// Row a': consul#9772: framing is each stream's own.
#[tokio::test]
async fn each_stream_has_one_start_and_one_synced_of_its_own() {
    let world = World::new();
    let feed = world.feed(FeedSettings::default());
    world.revoke().await;
    world.raise("ann").await;
    for _ in 0..2 {
        let mut watch = feed.subscribe(subscribe()).await.unwrap();
        let (before, _) = until_synced(&mut watch).await;
        let [Frame::Start(start), Frame::Snapshot(chunk)] = before.as_slice() else {
            panic!("{before:?}")
        };
        assert!(!start.resumed);
        assert_eq!((chunk.revocations.len(), chunk.packed.len()), (1, 1));
    }
}

/// Row f, nats.go#2137; and 2.3.4: no queue, no loss.
#[tokio::test]
async fn a_watcher_behind_the_ring_reads_the_store_without_a_hole_or_a_repeat() {
    let world = World::new();
    let feed = world.feed(small_ring(8));
    let mut watch = feed.subscribe(subscribe()).await.unwrap();
    until_synced(&mut watch).await;
    for _ in 0..1000 {
        world.revoke().await;
    }
    assert!(feed.stats().ring_entries <= 8);
    let seen = revisions_until(&mut watch, Revision(1000)).await;
    assert_eq!(seen, (1..=1000).collect::<Vec<_>>());
    assert!(feed.stats().reread > 0);
    world.revoke().await;
    assert_eq!(revisions_until(&mut watch, Revision(1001)).await, [1001]);
}

/// Behind the ring, what has expired vanishes.
#[tokio::test]
async fn what_has_expired_is_not_read_again() {
    let world = World::new();
    let feed = world.feed(small_ring(1));
    world.revoke().await;
    world.clock.advance(Duration::from_secs(600));
    world.revoke().await;
    world.revoke().await;
    let resume = Subscribe { resume_after: Some(at(0)), ..subscribe() };
    let mut watch = feed.subscribe(resume).await.unwrap();
    assert!(matches!(next(&mut watch).await, Frame::Start(start) if start.resumed));
    assert_eq!(revisions_until(&mut watch, Revision(3)).await, [2, 3]);
}

/// A log that was swept beyond the cursor.
#[tokio::test]
async fn a_cursor_older_than_the_log_resumes_in_band() {
    let world = World::new();
    for _ in 0..5 {
        world.revoke().await;
    }
    world.clock.advance(Duration::from_secs(7200));
    world.store.sweep(100, world.clock.now()).await.unwrap();
    let feed = world.feed(FeedSettings::default());
    let resume = Subscribe { resume_after: Some(at(2)), ..subscribe() };
    let mut watch = feed.subscribe(resume).await.unwrap();
    let (before, synced) = until_synced(&mut watch).await;
    assert!(matches!(before.as_slice(), [Frame::Start(start)] if start.resumed));
    assert_eq!(synced.through.unwrap().revision, 5);
}

/// Row h, istio#41494: nothing survives a change of log by accident.
#[tokio::test]
async fn a_cursor_of_another_log_gets_a_reset_and_the_whole_set() {
    let world = World::new();
    let feed = world.feed(FeedSettings::default());
    world.revoke().await;
    let other = Cursor { log_id: LogId::from_bytes([9; 16]), revision: Revision(77) };
    let resume = Subscribe { resume_after: Some(other), ..subscribe() };
    let mut watch = feed.subscribe(resume).await.unwrap();
    let (before, _) = until_synced(&mut watch).await;
    let [Frame::Start(start), Frame::Reset(_), Frame::Snapshot(_)] = before.as_slice() else {
        panic!("{before:?}")
    };
    assert!(!start.resumed);
}

/// Row i: k8s#59848.
#[tokio::test(start_paused = true)]
async fn a_cursor_ahead_of_this_replica_waits_and_then_fails() {
    let world = World::new();
    let feed = world.feed(FeedSettings::default());
    let ahead = Subscribe { resume_after: Some(at(1)), ..subscribe() };
    let refused = feed.subscribe(ahead.clone()).await.map(|_| ()).unwrap_err();
    assert_eq!(refused, WatchError::Behind { head: at(0) });
    assert_eq!(feed.stats().watchers, 0, "its place is free again");
    let (watch, _) = tokio::join!(feed.subscribe(ahead), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.revoke().await
    });
    let (before, _) = until_synced(&mut watch.unwrap()).await;
    assert!(matches!(before.as_slice(), [Frame::Start(start)] if start.resumed));
}

/// Rows b and d: whatever interleaves, nothing acknowledged before `as_of` is after `through`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_of_never_overtakes_an_event() {
    let world = Arc::new(World::new());
    let settings = FeedSettings {
        prove_every: Duration::from_millis(1),
        ring_entries: 16,
        ..FeedSettings::default()
    };
    let feed = world.feed(settings);
    // What each Revoke was acknowledged at: with its own tick, so that no two moments are equal.
    let acked = Arc::new(std::sync::Mutex::new(Vec::<(Timestamp, u64)>::new()));
    let done = Arc::new(AtomicBool::new(false));
    let marks = {
        let (feed, done) = (Arc::clone(&feed), Arc::clone(&done));
        let quick = Subscribe { heartbeat: Duration::from_millis(1), ..subscribe() };
        let mut watch = feed.subscribe(quick).await.unwrap();
        tokio::spawn(async move {
            let mut marks = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let (through, as_of) = match next(&mut watch).await {
                    Frame::Synced(it) => (it.through, it.as_of_time),
                    Frame::Batch(it) => (it.through, it.as_of_time),
                    Frame::Heartbeat(it) => (it.through, it.as_of_time),
                    _ => continue,
                };
                if let Some(as_of) = as_of {
                    let millis = as_of.seconds * 1000 + i64::from(as_of.nanos / 1_000_000);
                    marks.push((through.unwrap().revision, u64::try_from(millis).unwrap()));
                    if marks.len() % 40 == 0 {
                        // Far enough behind to read the store.
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                }
            }
            marks
        })
    };
    for _ in 0..2000 {
        let entry = world.revoke().await;
        acked.lock().unwrap().push((world.clock.now(), entry.revision.0));
        world.clock.advance(Duration::from_millis(1));
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    done.store(true, Ordering::Relaxed);
    let marks = marks.await.unwrap();
    assert!(marks.iter().any(|(_, as_of)| *as_of > START.as_millis()), "it moves");
    let acked = acked.lock().unwrap();
    for (through, as_of) in marks {
        let covered = acked.partition_point(|(at, _)| at.as_millis() < as_of);
        if let Some((_, revision)) = acked[..covered].last() {
            assert!(*revision <= through, "as_of {as_of} at {through} overtakes {revision}");
        }
    }
}

/// Row d: a replica that is cut off from its store keeps talking, and does not pretend.
#[tokio::test(start_paused = true)]
async fn as_of_stands_still_while_contact_cannot_be_proved() {
    let world = World::new();
    let feed = world.feed(FeedSettings::default());
    let mut watch = feed.subscribe(subscribe()).await.unwrap();
    until_synced(&mut watch).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(feed.as_of(), START);
    world.store.engine().freeze();
    world.clock.advance(Duration::from_secs(10));
    for _ in 0..3 {
        let Frame::Heartbeat(beat) = next(&mut watch).await else { panic!("not a heartbeat") };
        assert_eq!(beat.as_of_time.unwrap().seconds, 1_800_000_000);
        assert_eq!(beat.send_time.unwrap().seconds, 1_800_000_010);
    }
    world.store.engine().thaw();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(feed.as_of(), world.clock.now());
}

/// Row b': SpiceDB#3362, etcd#17507.
#[tokio::test(start_paused = true)]
async fn a_filtered_watcher_makes_progress_on_events_it_is_not_shown() {
    let world = World::new();
    let feed = world.feed(FeedSettings::default());
    let filter = Filter::new(vec!["mail".into()], Vec::new());
    let mut watch = feed.subscribe(Subscribe { filter, ..subscribe() }).await.unwrap();
    until_synced(&mut watch).await;
    world.revoke_of("shop", "api").await;
    let Frame::Heartbeat(beat) = next(&mut watch).await else { panic!("not a heartbeat") };
    assert_eq!(beat.through.unwrap().revision, 1);
    assert!(beat.digest.is_none(), "a filtered set has no digest");
    world.revoke_of("shop", "mail").await;
    world.raise("bob").await;
    assert_eq!(revisions_until(&mut watch, Revision(3)).await, [2, 3]);
}

/// A filter hides nothing that it should show, in the snapshot as in the stream.
#[tokio::test]
async fn a_filter_shows_at_least_what_was_asked_for() {
    let world = World::new();
    let feed = world.feed(FeedSettings::default());
    let shown = world.revoke_of("shop", "api").await;
    world.revoke_of("desk", "api").await;
    world.raise("ann").await;
    let filter = Filter::new(Vec::new(), vec!["shop".parse().unwrap()]);
    let mut watch = feed.subscribe(Subscribe { filter, ..subscribe() }).await.unwrap();
    let (before, _) = until_synced(&mut watch).await;
    assert_eq!(keys_in(&before), [key_of(&shown.event)].into());
    let full = before.iter().filter_map(|frame| match frame {
        Frame::Snapshot(chunk) => Some(chunk.revocations.len()),
        _ => None,
    });
    assert_eq!(full.sum::<usize>(), 1, "the subject passes");
}

#[tokio::test]
async fn a_limited_right_narrows_what_is_shown() {
    let world = World::new();
    let feed = world.feed(FeedSettings::default());
    let grant = Grant { audience: Some("mail".into()), ..Grant::unlimited(Right::Watch) };
    let caller = Caller { identity: Identity::Anonymous, grants: vec![grant] };
    let filter = Filter::default().narrowed_to(&caller);
    let mut watch = feed.subscribe(Subscribe { filter, ..subscribe() }).await.unwrap();
    let Frame::Start(start) = next(&mut watch).await else { panic!("not a start") };
    assert_eq!(start.effective_filter.unwrap().audiences, ["mail"]);
    world.revoke_of("shop", "api").await;
    world.revoke_of("shop", "mail").await;
    assert_eq!(revisions_until(&mut watch, Revision(2)).await, [2]);
}

/// Row j: SpiceDB#1272.
#[tokio::test]
async fn revisions_and_cursors_strictly_rise() {
    let world = World::new();
    let feed = world.feed(small_ring(32));
    let tight = Subscribe { max_frame_bytes: 1024, ..subscribe() };
    let mut watch = feed.subscribe(tight).await.unwrap();
    until_synced(&mut watch).await;
    for round in 0..10 {
        for _ in 0..round * 7 {
            world.revoke().await;
        }
        let head = feed.head().revision;
        let mut last = 0;
        while last < head.0 && round > 0 {
            let item = watch.next().await.unwrap().unwrap();
            assert!(avouch::grpc::frame::item(item.clone()).len() <= 1024);
            let Frame::Batch(batch) = decode(item) else { continue };
            for it in &batch.revocations {
                assert!(it.revision > last);
                last = it.revision;
            }
            assert!(batch.through.unwrap().revision >= last);
        }
    }
}

/// Row m, as far as it is the feed's: what the store committed is in the view before the caller of
/// Revoke has its answer (invariant 7).
#[tokio::test]
async fn the_view_has_a_revocation_before_revoke_returns() {
    let world = World::new();
    let feed = world.feed(FeedSettings::default());
    for count in 1..=100 {
        let entry = world.revoke().await;
        assert_eq!(feed.head(), at(entry.revision.0));
        assert_eq!(feed.stats().live, count);
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_cursor_ends_with_the_event() {
    let world = World::new();
    let feed = world.feed(FeedSettings::default());
    let second = Duration::from_secs(1);
    let (waited, _) = tokio::join!(feed.wait_for(at(1), second), world.revoke());
    assert_eq!(waited, Ok(()));
    assert_eq!(feed.wait_for(at(2), second).await, Err(WatchError::Behind { head: at(1) }));
    let other = Cursor { log_id: LogId::from_bytes([1; 16]), revision: Revision(0) };
    assert_eq!(feed.wait_for(other, second).await, Err(WatchError::OtherLog));
}

#[tokio::test]
async fn a_drain_ends_every_stream_with_a_go_away_and_begins_none() {
    let world = World::new();
    let feed = world.feed(FeedSettings::default());
    let mut watch = feed.subscribe(subscribe()).await.unwrap();
    until_synced(&mut watch).await;
    feed.drain();
    assert!(matches!(watch.next().await, Ok(Some(Item::Heartbeat(_)))), "the last position first");
    let gone = watch.next().await;
    assert!(matches!(gone, Ok(Some(Item::GoAway { leave: Leave::Drain, .. }))), "{gone:?}");
    assert_eq!(watch.next().await, Err(WatchError::Draining));
    assert_eq!(watch.next().await, Ok(None));
    let refused = feed.subscribe(subscribe()).await.map(|_| ());
    assert_eq!(refused, Err(WatchError::Draining));
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_after_its_life_and_before_its_credential() {
    let world = World::new();
    let feed = world.feed(FeedSettings::default());
    let began = tokio::time::Instant::now();
    let mut old = feed.subscribe(subscribe()).await.unwrap();
    while !matches!(
        old.next().await.unwrap().unwrap(),
        Item::GoAway { leave: Leave::Rebalance, .. }
    ) {}
    let lived = began.elapsed();
    assert!((480..=721).contains(&lived.as_secs()), "{lived:?}");
    assert_eq!(old.next().await, Ok(None), "no error");

    let valid_until = Some(world.clock.now());
    let mut ending = feed.subscribe(Subscribe { valid_until, ..subscribe() }).await.unwrap();
    let gone = ending.next().await.unwrap().unwrap();
    assert!(matches!(gone, Item::GoAway { leave: Leave::CredentialExpiring, .. }));
    assert_eq!(ending.next().await, Err(WatchError::CredentialEnded));

    let taken_back = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&taken_back);
    let revoked: avouch::feed::Revoked = Arc::new(move || flag.load(Ordering::Relaxed));
    let with = Subscribe { revoked: Some(revoked), ..subscribe() };
    let mut watch = feed.subscribe(with).await.unwrap();
    until_synced(&mut watch).await;
    taken_back.store(true, Ordering::Relaxed);
    let last = world.revoke().await;
    // What took its credential may concern all that it protects: it is shown that, and no more.
    let Ok(Some(Item::Ready(batch))) = watch.next().await else { panic!("not a batch") };
    let Frame::Batch(batch) = decode(Item::Ready(batch)) else { panic!("not a batch") };
    assert_eq!(batch.through.map(|it| it.revision), Some(last.revision.0));
    world.revoke().await;
    assert!(matches!(watch.next().await, Ok(Some(Item::Heartbeat(_)))));
    assert!(matches!(watch.next().await, Ok(Some(Item::GoAway { .. }))));
}

#[tokio::test(start_paused = true)]
async fn acks_count_who_is_connected_and_has_applied() {
    let world = World::new();
    let feed = world.feed(FeedSettings::default());
    let mut one = feed.subscribe(subscribe()).await.unwrap();
    let hidden = Filter::new(vec!["mail".into()], Vec::new());
    let mut two = feed.subscribe(Subscribe { filter: hidden, ..subscribe() }).await.unwrap();
    let three = feed.subscribe(subscribe()).await.unwrap();
    let Frame::Start(start_one) = next(&mut one).await else { panic!("not a start") };
    let Frame::Start(start_two) = next(&mut two).await else { panic!("not a start") };
    until_synced(&mut one).await;
    until_synced(&mut two).await;
    let entry = world.revoke().await;
    let late = feed.subscribe(subscribe()).await.unwrap();
    let waiter = feed.expect_acks(entry.revision);
    assert_eq!((waiter.now().connected, waiter.now().applied), (3, 0), "the late one has it");

    let me = "client sidecar";
    feed.ack(&start_one.watch_id, me, at(1));
    assert_eq!(waiter.now().applied, 0, "nobody applies what was not sent");
    assert_eq!(revisions_until(&mut one, entry.revision).await, [1]);
    let Frame::AckRequest(ask) = next(&mut one).await else { panic!("not asked") };
    assert_eq!(ask.through.unwrap().revision, 1);
    feed.ack(&start_one.watch_id, "client other", at(1));
    assert_eq!(waiter.now().applied, 0, "nobody speaks for another");
    feed.ack(&start_one.watch_id, me, at(1));
    assert_eq!(waiter.now().applied, 1);

    // Its filter hides the event: it is told the position before it is asked.
    let Frame::Batch(told) = next(&mut two).await else { panic!("not told") };
    assert!(told.revocations.is_empty());
    assert!(matches!(next(&mut two).await, Frame::AckRequest(_)));
    let wait = tokio::spawn(waiter.wait(Duration::from_secs(5)));
    feed.ack(&start_two.watch_id, me, at(1));
    drop(three);
    let acked = wait.await.unwrap();
    assert_eq!((acked.connected, acked.applied, acked.complete), (2, 2, true));
    drop(late);

    let second = world.revoke().await;
    let acked = feed.wait_for_acks(second.revision, Duration::from_millis(100)).await;
    assert_eq!((acked.connected, acked.applied, acked.complete), (2, 0, false));
}

#[tokio::test]
async fn a_watcher_behind_the_ring_is_asked_once_it_has_caught_up() {
    let world = World::new();
    let feed = world.feed(small_ring(2));
    let mut watch = feed.subscribe(subscribe()).await.unwrap();
    until_synced(&mut watch).await;
    let first = world.revoke().await;
    let _waiter = feed.expect_acks(first.revision);
    for _ in 0..20 {
        world.revoke().await;
    }
    assert_eq!(revisions_until(&mut watch, Revision(21)).await.len(), 21);
    let Frame::AckRequest(ask) = next(&mut watch).await else { panic!("not asked") };
    assert_eq!(ask.through.unwrap().revision, 1);
}

#[tokio::test]
async fn the_key_set_comes_first_and_never_before_the_event_that_changed_it() {
    let world = World::new();
    let feed = world.feed(FeedSettings::default());
    let frame = |revision| avouch::grpc::frame::key_set(at(revision), Vec::new());
    feed.set_key_set(Revision(0), frame(0));
    let mut watch = feed.subscribe(subscribe()).await.unwrap();
    let (before, _) = until_synced(&mut watch).await;
    assert!(matches!(before.as_slice(), [Frame::Start(_), Frame::KeySet(_)]), "{before:?}");
    feed.set_key_set(Revision(1), frame(1));
    let entry = world.revoke().await;
    assert_eq!(revisions_until(&mut watch, entry.revision).await, [1]);
    let Frame::KeySet(keys) = next(&mut watch).await else { panic!("no key set") };
    assert_eq!(keys.through.unwrap().revision, 1);
    feed.set_key_set(Revision(0), frame(0));
    world.revoke().await;
    assert!(matches!(next(&mut watch).await, Frame::Batch(_)), "an older set is not shown");
}

/// Security row 85.
#[tokio::test]
async fn watchers_are_capped_in_all_and_per_caller() {
    let world = World::new();
    let settings =
        FeedSettings { max_watchers: 3, max_watchers_per_caller: 2, ..FeedSettings::default() };
    let feed = world.feed(settings);
    let of = |owner: &str| Subscribe { owner: owner.to_owned(), ..subscribe() };
    let first = feed.subscribe(of("a")).await.unwrap();
    let _second = feed.subscribe(of("a")).await.unwrap();
    let third = feed.subscribe(of("a")).await.map(|_| ());
    assert_eq!(third, Err(WatchError::Busy { per_caller: true, limit: 2 }));
    let _other = feed.subscribe(of("b")).await.unwrap();
    let fourth = feed.subscribe(of("c")).await.map(|_| ());
    assert_eq!(fourth, Err(WatchError::Busy { per_caller: false, limit: 3 }));
    drop(first);
    assert_eq!(feed.watchers().len(), 2);
    assert!(feed.subscribe(of("a")).await.is_ok(), "a place that is left is free");
}

/// Row e, and security row 85.
#[tokio::test(start_paused = true)]
async fn a_stream_that_takes_nothing_for_long_is_cut_and_told_where_to_resume() {
    let world = World::new();
    let feed = world.feed(FeedSettings::default());
    let closed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&closed);
    let close: avouch::feed::Close = Arc::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let stalled = Subscribe { close: Some(close), ..subscribe() };
    let mut watch = feed.subscribe(stalled).await.unwrap();
    until_synced(&mut watch).await;
    world.revoke().await;
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(closed.load(Ordering::Relaxed), 0);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(closed.load(Ordering::Relaxed), 1);
    assert_eq!(feed.stats().cut, 1);
    watch.next().await.unwrap();
    let gone = watch.next().await;
    assert!(matches!(gone, Ok(Some(Item::GoAway { leave: Leave::Slow, .. }))), "{gone:?}");
    assert_eq!(watch.next().await, Err(WatchError::Slow { through: at(0) }));
}

/// Both ends agree on the set, and say so.
#[tokio::test(start_paused = true)]
async fn the_digest_is_that_of_the_set_at_the_position() {
    let world = World::new();
    let feed = world.feed(FeedSettings::default());
    let first = key_of(&world.revoke().await.event);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut watch = feed.subscribe(subscribe()).await.unwrap();
    let (_, synced) = until_synced(&mut watch).await;
    let digest = synced.digest.unwrap();
    assert_eq!((digest.live_count, digest.xor_of_keys), (1, first));
    let second = key_of(&world.revoke().await.event);
    revisions_until(&mut watch, Revision(2)).await;
    let Frame::Heartbeat(beat) = next(&mut watch).await else { panic!("not a heartbeat") };
    let digest = beat.digest.unwrap();
    assert_eq!((digest.live_count, digest.xor_of_keys), (2, first ^ second));
}

/// Shared frames are encoded once, whoever looks.
#[tokio::test]
async fn watchers_of_everything_share_the_bytes_of_a_batch() {
    let world = World::new();
    let feed = world.feed(FeedSettings::default());
    let mut one = feed.subscribe(subscribe()).await.unwrap();
    let mut two = feed.subscribe(subscribe()).await.unwrap();
    until_synced(&mut one).await;
    until_synced(&mut two).await;
    let now = world.clock.now();
    revoke(&*world.store, world.entropy.token_id(), "shop", "api", now).await;
    let (Item::Ready(a), Item::Ready(b)) =
        (one.next().await.unwrap().unwrap(), two.next().await.unwrap().unwrap())
    else {
        panic!("not shared")
    };
    assert_eq!(a.as_ptr(), b.as_ptr());
}
