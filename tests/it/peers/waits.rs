//! Revoke that waits, over the watchers of all replicas (design.md, section 6).

use std::time::Duration;

use avouch::feed::Acked;
use avouch::pb::v1::revoke_request::Target;
use avouch::store::memory::SharedMemory;
use tokio::time::Instant;

use super::rig::{Fleet, LOG, Replica, follow, keep_following, waiting};

const LONG: Duration = Duration::from_secs(20);

const fn acked(applied: u32, connected: u32, complete: bool) -> Acked {
    Acked { connected, applied, complete }
}

#[tokio::test(start_paused = true)]
async fn the_watchers_of_every_replica_count() {
    let memory = SharedMemory::new(LOG);
    let here = Replica::join(&memory, 1).await;
    let entry = here.revoke().await;
    let alone = here.feed.wait_for_acks(entry.revision, LONG).await;
    assert_eq!(alone, acked(0, 0, true));
    let (second, third) = (Replica::join(&memory, 2).await, Replica::join(&memory, 3).await);
    let entry = here.revoke().await;
    let began = Instant::now();
    assert_eq!(here.feed.wait_for_acks(entry.revision, LONG).await, acked(0, 0, true));
    let _watchers = [
        here.watcher(true).await,
        second.watcher(true).await,
        second.watcher(true).await,
        third.watcher(true).await,
    ];
    let entry = second.revoke().await;
    assert_eq!(second.feed.wait_for_acks(entry.revision, LONG).await, acked(4, 4, true));
    assert!(began.elapsed() < Duration::from_secs(2), "nobody waits for a deadline");
    // Who watches and does not say so is waited for, wherever it is, and not a moment longer.
    let silent = third.watcher(false).await;
    let entry = here.revoke().await;
    let began = Instant::now();
    assert_eq!(here.feed.wait_for_acks(entry.revision, LONG).await, acked(4, 5, false));
    assert_eq!(began.elapsed().as_secs(), LONG.as_secs());
    // Unless it goes.
    let entry = here.revoke().await;
    let waiting = tokio::spawn({
        let feed = std::sync::Arc::clone(&here.feed);
        async move { feed.wait_for_acks(entry.revision, LONG).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!waiting.is_finished());
    silent.leave().await;
    assert_eq!(waiting.await.expect("it returns"), acked(4, 4, true));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_does_not_answer_counts_until_its_lease_ends() {
    let memory = SharedMemory::new(LOG);
    let (here, other) = (Replica::join(&memory, 1).await, Replica::join(&memory, 2).await);
    let _watchers =
        [here.watcher(true).await, other.watcher(true).await, other.watcher(true).await];
    other.told(&here, 2).await;
    other.line.cut();
    let entry = here.revoke().await;
    // As many as it had are not known to have applied it.
    let wait = Duration::from_secs(2);
    assert_eq!(here.feed.wait_for_acks(entry.revision, wait).await, acked(1, 3, false));
    let began = Instant::now();
    assert_eq!(here.feed.wait_for_acks(entry.revision, LONG).await, acked(1, 1, true));
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    // Long before that it stopped to say that it knows everything.
    assert!(other.feed.proved_ago().is_some_and(|ago| ago > Duration::from_secs(5)));
    // Once back, it counts again.
    other.line.heal();
    while here.feed.replicas().expect("others").len() < 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let entry = here.revoke().await;
    assert_eq!(here.feed.wait_for_acks(entry.revision, LONG).await, acked(3, 3, true));
}

#[tokio::test(start_paused = true)]
async fn what_a_replica_answered_stays_when_it_dies_and_its_other_watchers_go_with_it() {
    let memory = SharedMemory::new(LOG);
    let (here, other) = (Replica::join(&memory, 1).await, Replica::join(&memory, 2).await);
    let third = Replica::join(&memory, 3).await;
    let _watchers =
        [other.watcher(true).await, other.watcher(false).await, third.watcher(false).await];
    third.told(&here, 1).await;
    let entry = here.revoke().await;
    let waiting = tokio::spawn({
        let feed = std::sync::Arc::clone(&here.feed);
        async move { feed.wait_for_acks(entry.revision, Duration::from_secs(25)).await }
    });
    // It says what it has shortly before the end, and is gone then.
    tokio::time::sleep(Duration::from_millis(24_600)).await;
    other.feed.leave().await;
    assert_eq!(waiting.await.expect("it returns"), acked(1, 2, false));
    let entry = here.revoke().await;
    assert_eq!(
        here.feed.wait_for_acks(entry.revision, Duration::from_secs(25)).await,
        acked(0, 1, false),
        "only the third is left"
    );
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_lags_answers_when_the_event_is_there() {
    let memory = SharedMemory::new(LOG);
    let (here, late) = (Replica::join(&memory, 1).await, Replica::join(&memory, 2).await);
    let _watcher = late.watcher(true).await;
    late.line.hold_events();
    let entry = here.revoke().await;
    let wait = Duration::from_secs(3);
    assert_eq!(here.feed.wait_for_acks(entry.revision, wait).await, acked(0, 1, false));
    let waiting = tokio::spawn({
        let feed = std::sync::Arc::clone(&here.feed);
        async move { feed.wait_for_acks(entry.revision, LONG).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Whoever comes in between has a set without the event, and is waited for as well.
    let _between = late.watcher(true).await;
    assert!(!waiting.is_finished());
    late.line.release_events();
    assert_eq!(waiting.await.expect("it returns"), acked(2, 2, true));
}

#[tokio::test(start_paused = true)]
async fn many_wait_at_once_while_replicas_come_and_go() {
    let memory = SharedMemory::new(LOG);
    let (here, other) = (Replica::join(&memory, 1).await, Replica::join(&memory, 2).await);
    let _watchers = [here.watcher(true).await, other.watcher(true).await];
    let silent = other.watcher(false).await;
    let mut waiting = Vec::new();
    for at in 0..10 {
        let from = if at % 2 == 0 { &here } else { &other };
        let entry = from.revoke().await;
        let feed = std::sync::Arc::clone(&from.feed);
        waiting.push(tokio::spawn(async move { feed.wait_for_acks(entry.revision, LONG).await }));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    // One that comes later has all of it, and is not asked for it.
    let joined = Replica::join(&memory, 3).await;
    let _late = joined.watcher(false).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    silent.leave().await;
    for waiting in waiting {
        assert_eq!(waiting.await.expect("it returns"), acked(2, 2, true));
    }
    // One that leaves properly counts no more, at once.
    joined.feed.leave().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(here.feed.replicas().expect("others").len(), 2, "nor does it come back");
    let entry = here.revoke().await;
    let began = Instant::now();
    assert_eq!(here.feed.wait_for_acks(entry.revision, LONG).await, acked(2, 2, true));
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_call_that_waits_counts_watchers_elsewhere_even_those_whose_own_tokens_it_took() {
    let fleet = Fleet::of(2).await;
    let [here, there] = &fleet.servers[..] else { panic!("two servers") };
    let operator = here.powerful("operator").await;
    let token = there.own_token(&operator).await;
    let _watchers = [
        keep_following(follow(&[here], &token)).await,
        keep_following(follow(&[there], &token)).await,
        keep_following(follow(&[there], &token)).await,
    ];
    let request = waiting(&operator, Target::Everything(true), 20);
    let answer = here.identity().revoke(request).await.expect("it may").into_inner();
    let result = answer.wait_result.expect("it waited");
    assert_eq!((result.watchers_applied, result.watchers_connected, result.complete), (3, 3, true));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_does_not_count_says_of_nothing_that_it_is_fresh() {
    let memory = SharedMemory::new(LOG);
    let (here, other) = (Replica::join(&memory, 1).await, Replica::join(&memory, 2).await);
    let _watcher = other.watcher(false).await;
    other.line.lose_board();
    // Its records are in reach, so it could say that it has all of them. Its watcher is not waited for.
    tokio::time::sleep(Duration::from_secs(11)).await;
    let entry = here.revoke().await;
    assert_eq!(here.feed.wait_for_acks(entry.revision, LONG).await, acked(0, 0, true));
    // Whoever relies for five seconds on what is fresh does not any more.
    assert!(other.feed.proved_ago().is_some_and(|ago| ago > Duration::from_secs(5)));
    // Who finds no room to say how many watch is registered nevertheless.
    here.line.refuse_notes();
    let _one_more = here.watcher(true).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(here.feed.in_touch().await, Ok(()));
    let entry = here.revoke().await;
    let alone = here.feed.wait_for_acks(entry.revision, Duration::from_secs(1)).await;
    assert_eq!(alone, acked(1, 1, false), "the others cannot be asked");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_hear_of_the_replicas_does_not_say_that_all_have_answered() {
    let memory = SharedMemory::new(LOG);
    let here = Replica::join(&memory, 1).await;
    here.line.hold_notes();
    let other = Replica::join(&memory, 2).await;
    let _watcher = other.watcher(false).await;
    let entry = here.revoke().await;
    let wait = Duration::from_secs(2);
    assert_eq!(here.feed.wait_for_acks(entry.revision, wait).await, acked(0, 0, false));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_the_store_hears_and_that_hears_nothing_counts_no_more_in_the_end() {
    let memory = SharedMemory::new(LOG);
    let (here, other) = (Replica::join(&memory, 1).await, Replica::join(&memory, 2).await);
    let _watcher = other.watcher(true).await;
    other.line.lose_answers();
    let entry = here.revoke().await;
    let wait = Duration::from_secs(25);
    assert_eq!(here.feed.wait_for_acks(entry.revision, wait).await, acked(0, 0, true));
    assert!(other.feed.proved_ago().is_some_and(|ago| ago > Duration::from_secs(5)));
}

#[tokio::test]
async fn a_server_that_stops_counts_no_more_at_once() {
    let mut fleet = Fleet::of(2).await;
    let stopped = fleet.servers.pop().expect("two servers");
    let here = &fleet.servers[0];
    let replicas = || here.service.feed().replicas().expect("there may be others").len();
    while replicas() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stopped.stop().await;
    // The news is on its way already.
    let began = Instant::now();
    while replicas() > 1 {
        assert!(began.elapsed() < Duration::from_secs(5), "the lease would end after ten");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
