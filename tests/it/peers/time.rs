//! Replicas whose clocks differ (design.md, invariant 6).

use std::sync::Arc;
use std::time::Duration;

use avouch::app::{BuildError, StoreOptions};
use avouch::domain::clock::{Clock as _, LEAD, ManualClock};
use avouch::pb::v1 as pb;
use avouch::pb::v1::revoke_request::Target;
use avouch::service::access::AccessError;
use avouch::store::Store as _;
use avouch::store::memory::SharedMemory;

use super::rig::{Fleet, LOG, Replica};
use crate::harness::{NOW, Server, assert_refused, http_get, options};

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Waits until every server has heard of the clocks of the others as they are now.
async fn clocks_are_known(fleet: &Fleet, ahead_millis: impl Fn(usize, i64) -> bool) {
    for (at, server) in fleet.servers.iter().enumerate() {
        loop {
            let standing = server.service.feed().clock_standing().expect("there are others");
            if standing.others + 1 == fleet.servers.len() && ahead_millis(at, standing.ahead_millis)
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn a_retry_window_is_measured_alike_by_clocks_that_differ() {
    let fleet = Fleet::of(2).await;
    let [ahead, behind] = &fleet.servers[..] else { panic!("two servers") };
    ahead.clock.advance(secs(5));
    clocks_are_known(&fleet, |at, millis| if at == 0 { millis == 5000 } else { millis == -5000 })
        .await;
    let app = ahead.first_party("app").await;
    ahead.add_user("ada").await;
    let tokens = ahead.login(&app, "ada").await;
    // As they do each second.
    let keep = async || {
        ahead.service.keep_time().await.expect("it is kept");
        behind.service.keep_time().await.expect("it is kept");
    };
    for server in &fleet.servers {
        server.clock.advance(secs(30));
    }
    keep().await;
    assert_eq!(behind.service.now(), ahead.service.now(), "it keeps up with who is ahead");
    // By its own clock alone this rotation would be five seconds earlier.
    let next = behind.refresh(&app, &tokens.refresh_token).await.expect("it rotates");
    for server in &fleet.servers {
        server.clock.advance(secs(6));
    }
    keep().await;
    let again = ahead.refresh(&app, &tokens.refresh_token).await.expect("inside the window");
    assert_eq!(again.refresh_token, next.refresh_token);
    // Nor is the window longer for who asks the one that is behind.
    for server in &fleet.servers {
        server.clock.advance(secs(5));
    }
    keep().await;
    let late = behind.refresh(&app, &tokens.refresh_token).await;
    assert_refused(&late.expect_err("eleven seconds later"), "a late retry");
}

#[tokio::test]
async fn a_token_is_good_at_a_replica_whose_clock_is_behind() {
    let fleet = Fleet::of(2).await;
    let [ahead, behind] = &fleet.servers[..] else { panic!("two servers") };
    let operator = ahead.powerful("operator").await;
    // The time there before it hears of the time here.
    let now = behind.clock.now();
    for (difference, good) in [(LEAD, true), (LEAD + secs(1), false)] {
        ahead.clock.set(now.after(difference));
        let token = ahead.own_token(&operator).await;
        assert_eq!(behind.service.access_tokens().check(&token, now).is_ok(), good);
    }
}

#[tokio::test]
async fn a_token_can_be_revoked_before_its_time_and_when_it_is_just_over() {
    let fleet = Fleet::of(2).await;
    let [one, other] = &fleet.servers[..] else { panic!("two servers") };
    let operator = one.powerful("operator").await;
    let now = other.clock.now();
    let revoke = async |token: &str| {
        let request = pb::RevokeRequest {
            client: Some(operator.clone()),
            target: Some(Target::Token(token.to_owned())),
            ..Default::default()
        };
        other.identity().revoke(request).await.expect("it is done").into_inner()
    };
    let (early, whole) = (now.after(LEAD + secs(20)), secs(300));
    one.clock.set(early);
    let token = one.own_token(&operator).await;
    assert!(revoke(&token).await.revoked.is_some(), "it will be good");
    assert!(matches!(
        other.service.access_tokens().check(&token, early),
        Err(AccessError::Revoked(_))
    ));
    // Over here, and for who is behind or lenient not yet.
    one.clock.set(now.after(whole));
    let tokens = [one.own_token(&operator).await, one.own_token(&operator).await];
    for (token, after, known) in [(&tokens[0], LEAD, true), (&tokens[1], LEAD + secs(6), false)] {
        other.clock.set(now.after(2 * whole + after));
        assert_eq!(revoke(token).await.revoked.is_some(), known);
    }
}

#[tokio::test]
async fn a_clock_that_is_far_ahead_does_not_take_the_others_along() {
    let fleet = Fleet::of(2).await;
    let [rogue, sound] = &fleet.servers[..] else { panic!("two servers") };
    let before = sound.service.now();
    rogue.clock.advance(secs(3600));
    rogue.first_party("app").await;
    sound.service.keep_time().await.expect("it is kept");
    assert_eq!(sound.service.now(), before.after(LEAD));
    sound.clock.advance(secs(7));
    sound.service.keep_time().await.expect("it is kept");
    assert_eq!(sound.service.now(), before.after(LEAD + secs(7)), "time goes on");
}

#[tokio::test]
async fn who_is_far_from_those_that_run_does_not_start() {
    let memory = SharedMemory::new(LOG);
    let start = async |clock: ManualClock| {
        let options = options(StoreOptions::Shared(memory.replica()));
        Server::try_with(options, Arc::new(clock)).await
    };
    let first = start(ManualClock::new(NOW)).await.expect("it is the first");
    for clock in [NOW.after(secs(100)), NOW.before(secs(100))] {
        match start(ManualClock::new(clock)).await {
            Err(error @ BuildError::Clock { .. }) => {
                assert!(error.to_string().contains("set it right"), "{error}");
            }
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("it started"),
        }
    }
    let near = start(ManualClock::new(NOW.after(secs(40)))).await.expect("as far as may be told");
    drop((first, near));
}

#[tokio::test]
async fn who_starts_alone_is_never_earlier_than_what_was_committed() {
    let memory = SharedMemory::new(LOG);
    let replica = Replica::at(&memory, 1, ManualClock::new(NOW.after(secs(3600)))).await;
    replica.revoke().await;
    replica.feed.leave().await;
    let floor = replica.store.time_floor();
    assert!(floor > NOW.after(secs(3600)));
    let options = options(StoreOptions::Shared(memory.replica()));
    let alone = Server::with(options, Arc::new(ManualClock::new(NOW))).await;
    assert_eq!(alone.service.now(), floor);
}

#[tokio::test]
async fn the_one_of_three_whose_clock_is_off_is_out_of_service_until_it_is_set() {
    let fleet = Fleet::of(3).await;
    let wrong = &fleet.servers[2];
    clocks_are_known(&fleet, |_, millis| millis == 0).await;
    let ready = async |server: &Server| http_get(server.ops, "/readyz", "").await;
    wrong.clock.advance(secs(120));
    loop {
        let (status, _, body) = ready(wrong).await;
        if status == 503 {
            assert_eq!(body.trim(), "waiting for: a clock that agrees with the other replicas");
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for server in &fleet.servers[..2] {
        assert_eq!(ready(server).await.0, 200);
    }
    // Set right, its time stands where it was, and what it issues is too early for the others.
    wrong.clock.set(fleet.servers[0].clock.now());
    clocks_are_known(&fleet, |_, millis| millis == 0).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(ready(wrong).await.0, 503);
    fleet.servers.iter().for_each(|server| server.clock.advance(secs(110)));
    while ready(wrong).await.0 != 200 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
