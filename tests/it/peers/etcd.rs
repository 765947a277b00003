//! The same with a real etcd, and ways to it that break.

use std::sync::Arc;
use std::time::Duration;

use avouch::client::watch::{Lost, WatchEvent};
use avouch::domain::clock::ManualClock;
use avouch::pb::v1::revoke_request::Target;
use tonic::Code;

use super::rig::{follow, keep_following, waiting};
use crate::harness::{NOW, Server, etcd_at, options, reason};
use crate::support::etcd::{Etcd, fresh_prefix};
use crate::support::proxy::Proxy;

async fn server(url: &str) -> Server {
    let mut options = options(etcd_at(url));
    options.request_timeout = Duration::from_secs(40);
    Server::with(options, Arc::new(ManualClock::new(NOW))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_waits_counts_the_watchers_of_all_replicas_on_etcd() {
    let url = Etcd::shared().url(&fresh_prefix());
    let servers = [server(&url).await, server(&url).await, server(&url).await];
    let operator = servers[0].powerful("operator").await;
    let token = servers[0].own_token(&operator).await;
    let mut watchers = Vec::new();
    for (at, server) in servers.iter().enumerate() {
        for _ in 0..=at {
            watchers.push(keep_following(follow(&[server], &token)).await);
        }
    }
    // Their own tokens are among what this takes.
    let request = waiting(&operator, Target::Everything(true), 20);
    let answer = servers[1].identity().revoke(request).await.expect("it may").into_inner();
    let result = answer.wait_result.expect("it waited");
    let counts = (result.watchers_applied, result.watchers_connected, result.complete);
    assert_eq!(counts, (6, 6, true));
    for watcher in watchers {
        watcher.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_leave_a_replica_that_lost_its_etcd_and_those_that_stay_are_not_waited_for_long() {
    let (etcd, prefix) = (Etcd::shared(), fresh_prefix());
    let way = Proxy::to(etcd.address(0)).await;
    let cut = server(&format!("etcd://{}/{prefix}", way.address)).await;
    let other = server(&etcd.url(&prefix)).await;
    let operator = other.powerful("operator").await;
    let token = other.own_token(&operator).await;
    let _stays = keep_following(follow(&[&cut], &token)).await;
    let mut moves = follow(&[&cut, &other], &token);
    while !matches!(moves.next().await, WatchEvent::Synced(_)) {}
    // The others know of both: it says so within two seconds.
    let feed = other.service.feed();
    while feed.replicas().expect("there may be others").values().all(|it| it.watchers != 2) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    way.mute(true);
    let revoke = async |subject: &str, seconds: i64| {
        other.first_party(subject).await;
        let request = waiting(&operator, Target::Subject(subject.to_owned()), seconds);
        let answer = other.identity().revoke(request).await.expect("it may").into_inner();
        let result = answer.wait_result.expect("it waited");
        let counts = (result.watchers_applied, result.watchers_connected, result.complete);
        (answer.cursor.expect("a cursor").revision, counts)
    };
    // Nobody can say that the two have applied it.
    let (revision, counts) = revoke("one", 1).await;
    assert_eq!(counts, (0, 2, false));
    let mut left = Vec::new();
    while moves.cursor().is_none_or(|cursor| cursor.revision.0 < revision) {
        if let WatchEvent::Disconnected { lost, .. } = moves.next().await {
            left.push(lost);
        }
    }
    assert!(left.iter().any(|lost| matches!(lost, Lost::Frozen)), "{left:?}");
    let _moved = keep_following(moves).await;
    // The one that stays counts until the lease of its replica ends.
    let (_, counts) = revoke("two", 25).await;
    assert_eq!(counts, (1, 1, true));
    let nobody = avouch::domain::caller::Caller::system();
    let asked = cut.service.introspect(&nobody, &token, None, &Default::default()).await;
    let refused = avouch::grpc::status::introspect(asked.expect_err("it cannot know"));
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "REPLICA_CUT_OFF"));
    way.mute(false);
    // It is back, and so is the watcher that stays, which may have been between two tries.
    let one_each = || {
        let replicas = feed.replicas().expect("there may be others");
        replicas.len() == 2 && replicas.values().all(|it| it.watchers == 1)
    };
    while !one_each() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (_, counts) = revoke("three", 25).await;
    assert_eq!(counts, (2, 2, true));
}
