//! Sweeping by one of the replicas at a time.

use std::sync::Arc;
use std::time::Duration;

use avouch::domain::clock::{Clock as _, ManualClock};
use avouch::domain::ids::Revision;
use avouch::service::sweep::Turn;
use avouch::store::Store as _;
use avouch::store::memory::SharedMemory;

use super::rig::{Fleet, LOG, Replica};
use crate::harness::NOW;

const EVERY: Duration = Duration::from_secs(60);
const FIRST: [u8; 16] = [1; 16];
const SECOND: [u8; 16] = [2; 16];

#[tokio::test]
async fn a_turn_is_kept_by_who_has_it_and_taken_once_it_is_over() {
    let memory = SharedMemory::new(LOG);
    let replica = Replica::join(&memory, 1).await;
    let take = async |who, at: u64| {
        let now = NOW.after(Duration::from_secs(at));
        replica.store.take_sweep_turn(who, EVERY, now).await.expect("an answer")
    };
    assert!(take(FIRST, 0).await);
    assert!(!take(SECOND, 0).await);
    assert!(take(FIRST, 30).await, "who has it takes it again");
    assert!(!take(SECOND, 89).await);
    // It died.
    assert!(take(SECOND, 90).await);
    assert!(!take(FIRST, 91).await);
    // A turn that lasts longer than any is of a clock that was far ahead, and binds nobody.
    assert!(take(FIRST, 1_000_000).await);
    assert!(take(SECOND, 150).await);
}

#[tokio::test]
async fn of_several_that_ask_at_once_one_sweeps() {
    let fleet = Fleet::of(3).await;
    let mut swept = 0;
    for server in &fleet.servers {
        server.clock.advance(EVERY);
    }
    let asked = fleet.servers.iter().map(|server| {
        let service = Arc::clone(&server.service);
        tokio::spawn(async move { service.sweep_in_turn(EVERY).await.expect("an answer") })
    });
    for asked in asked.collect::<Vec<_>>() {
        swept += usize::from(matches!(asked.await.expect("an answer"), Turn::Swept(_)));
    }
    // Each server asked when it started as well, and one of them has had the turn since.
    assert!(swept <= 1, "{swept}");
    for server in &fleet.servers {
        server.clock.advance(Duration::from_secs(7200));
    }
    let first = fleet.servers[2].service.sweep_in_turn(EVERY).await.expect("an answer");
    assert!(matches!(first, Turn::Swept(_)), "the one that had it is taken for dead");
    for server in &fleet.servers[..2] {
        let other = server.service.sweep_in_turn(EVERY).await.expect("an answer");
        assert_eq!(other, Turn::Another);
    }
}

#[tokio::test]
async fn to_sweep_twice_at_once_removes_what_is_over_and_nothing_else() {
    let memory = SharedMemory::new(LOG);
    let replicas = [Replica::join(&memory, 1).await, Replica::join(&memory, 2).await];
    for at in 0..600 {
        replicas[at % 2].revoke().await;
    }
    let later = NOW.after(Duration::from_secs(3600));
    for replica in &replicas {
        replica.clock.set(later);
    }
    let mut kept = Vec::new();
    for _ in 0..5 {
        kept.push(replicas[0].revoke().await.revision);
    }
    let sweeps = (0..8).map(|at| {
        let store = Arc::clone(&replicas[at % 2].store);
        tokio::spawn(async move {
            let mut removed = 0;
            loop {
                let swept = store.sweep(7, later).await.expect("it sweeps");
                removed += swept.events;
                if !swept.more {
                    return removed;
                }
                tokio::task::yield_now().await;
            }
        })
    });
    let mut removed = 0;
    for sweep in sweeps.collect::<Vec<_>>() {
        removed += sweep.await.expect("it ends");
    }
    assert_eq!(removed, 600, "each is removed once");
    for replica in &replicas {
        let left = replica.store.events_after(Revision(0), 1000).expect("the log");
        assert_eq!(left.iter().map(|entry| entry.revision).collect::<Vec<_>>(), kept);
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_knows_how_its_clock_stands_to_the_others() {
    let memory = SharedMemory::new(LOG);
    let ahead = || ManualClock::new(NOW.after(Duration::from_secs(100)));
    let first = Replica::join(&memory, 1).await;
    assert_eq!(first.feed.clock_standing().map(|it| (it.others, it.is_off())), Some((0, false)));
    let wrong = Replica::at(&memory, 2, ahead()).await;
    // Each hears the other within ten seconds; of two nobody knows which is wrong.
    tokio::time::sleep(Duration::from_secs(13)).await;
    let standing = |replica: &Replica| replica.feed.clock_standing().expect("others");
    assert!(standing(&first).is_off() && !standing(&first).outvoted);
    assert!(standing(&wrong).is_off() && !standing(&wrong).outvoted);
    let third = Replica::join(&memory, 3).await;
    tokio::time::sleep(Duration::from_secs(13)).await;
    assert!(standing(&wrong).outvoted);
    assert_eq!(standing(&wrong).ahead_millis / 1000, 100);
    assert!(!standing(&third).outvoted && !standing(&first).outvoted);
    // Set right, it is in agreement again.
    wrong.clock.set(first.clock.now());
    tokio::time::sleep(Duration::from_secs(13)).await;
    assert!([&first, &wrong, &third].iter().all(|replica| !standing(replica).is_off()));
}

#[tokio::test]
async fn a_replica_whose_clock_is_far_off_sweeps_nothing() {
    let fleet = Fleet::of(2).await;
    let [here, there] = &fleet.servers[..] else { panic!("two servers") };
    there.clock.advance(Duration::from_secs(40));
    while !there.service.feed().clock_standing().is_some_and(|standing| standing.is_off()) {
        // Its clock is told with its watchers, at the latest after ten seconds.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(there.service.sweep_in_turn(EVERY).await.expect("an answer"), Turn::ClockOff);
    there.clock.set(here.clock.now());
    while there.service.feed().clock_standing().is_some_and(|standing| standing.is_off()) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_ne!(there.service.sweep_in_turn(EVERY).await.expect("an answer"), Turn::ClockOff);
}
