//! A replica that is cut off from the store: what it says, what it does not, and who goes elsewhere.

use std::time::Duration;

use avouch::client::watch::{Lost, WatchEvent};
use avouch::pb::v1 as pb;
use avouch::pb::v1::revoke_request::Target;
use tonic::Code;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::rig::{Fleet, LOG, Replica, follow};
use crate::harness::{Server, http_get, reason};
use avouch::feed::WatchError;
use avouch::store::memory::SharedMemory;

const STREAM: &str = "avouch.v1.RevocationService";
const CALLS: &str = "avouch.v1.IdentityService";

/// What a server says of one of its services, as it changes.
struct Health(tonic::Streaming<tonic_health::pb::HealthCheckResponse>);

impl Health {
    async fn of(server: &Server, service: &str) -> Self {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut client = HealthClient::new(server.channel.clone());
        Self(client.watch(request).await.expect("it is known").into_inner())
    }

    async fn until(&mut self, status: ServingStatus) {
        let status = tonic_health::pb::health_check_response::ServingStatus::from(status);
        while self.0.message().await.expect("a message").expect("more").status() != status {}
    }
}

async fn introspect(
    server: &Server,
    client: &pb::ClientAuthentication,
    token: &str,
) -> Result<bool, tonic::Status> {
    let request = pb::IntrospectRequest {
        client: Some(client.clone()),
        token: token.to_owned(),
        ..Default::default()
    };
    Ok(server.identity().introspect(request).await?.into_inner().active)
}

#[tokio::test]
async fn a_replica_that_is_cut_off_vouches_for_nothing_until_it_is_back() {
    let fleet = Fleet::of(2).await;
    let [here, there] = &fleet.servers[..] else { panic!("two servers") };
    let app = here.first_party("app").await;
    let operator = here.powerful("operator").await;
    here.add_user("ada").await;
    let tokens = here.login(&app, "ada").await;
    let mut stream = Health::of(there, STREAM).await;
    let mut calls = Health::of(there, CALLS).await;
    stream.until(ServingStatus::Serving).await;
    calls.until(ServingStatus::Serving).await;
    // So that its registration is in memory there: it is not the store that refuses.
    assert!(introspect(there, &operator, &tokens.access_token).await.expect("an answer"));

    fleet.lines[1].cut();
    let target = Target::SessionId(tokens.session_id.clone());
    here.revoke(&operator, target).await.expect("it may");
    assert!(!introspect(here, &operator, &tokens.access_token).await.expect("an answer"));
    stream.until(ServingStatus::NotServing).await;
    // It would say that the token is good.
    let refused = there
        .service
        .introspect(
            &avouch::domain::caller::Caller::system(),
            &tokens.access_token,
            None,
            &avouch::service::journal::Origin::default(),
        )
        .await
        .expect_err("it cannot know");
    let refused = avouch::grpc::status::introspect(refused);
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "REPLICA_CUT_OFF"));
    let (status, _, _) = http_get(there.ops, "/readyz", "").await;
    assert_eq!(status, 200, "it may be over in a moment");
    calls.until(ServingStatus::NotServing).await;
    let (status, _, body) = http_get(there.ops, "/readyz", "").await;
    assert_eq!((status, body.trim()), (503, "waiting for: store"));
    let (status, _, _) = http_get(there.ops, "/livez", "").await;
    assert_eq!(status, 200, "to start it anew would not help");

    fleet.lines[1].heal();
    stream.until(ServingStatus::Serving).await;
    calls.until(ServingStatus::Serving).await;
    assert!(!introspect(there, &operator, &tokens.access_token).await.expect("an answer"));
    let (status, _, _) = http_get(there.ops, "/readyz", "").await;
    assert_eq!(status, 200);
}

#[tokio::test(start_paused = true)]
async fn what_is_proved_counts_from_when_its_proof_began_and_not_by_a_clock_that_stands() {
    let memory = SharedMemory::new(LOG);
    let (here, there) = (Replica::join(&memory, 1).await, Replica::join(&memory, 2).await);
    let tick = Duration::from_millis(250);
    tokio::time::sleep(tick).await;
    assert_eq!(here.feed.in_touch().await, Ok(()));
    // The clock of the replica never moves here.
    here.line.cut();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(here.feed.proved_ago().is_some_and(|ago| ago >= 3 * tick * 3));
    assert_eq!(here.feed.in_touch().await, Err(WatchError::CutOff));
    assert_eq!(there.feed.in_touch().await, Ok(()));
    // A replica that lags is in touch, but what it has is not all.
    there.line.hold_events();
    here.line.heal();
    here.revoke().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(here.feed.in_touch().await, Ok(()));
    assert_eq!(there.feed.in_touch().await, Err(WatchError::CutOff));
    there.line.release_events();
    tokio::time::sleep(tick).await;
    assert_eq!(there.feed.in_touch().await, Ok(()));
}

#[tokio::test]
async fn watchers_leave_a_replica_that_is_cut_off_and_miss_nothing() {
    let fleet = Fleet::of(2).await;
    let [here, there] = &fleet.servers[..] else { panic!("two servers") };
    let operator = here.powerful("operator").await;
    let token = here.own_token(&operator).await;
    let revoke = async |server: &Server, at: u8| {
        let target = Target::Subject(format!("client-{at}"));
        server.first_party(&format!("client-{at}")).await;
        let answer = server.revoke(&operator, target).await.expect("it may");
        answer.cursor.expect("a cursor").revision
    };
    let mut watch = follow(&[here, there], &token);
    while !matches!(watch.next().await, WatchEvent::Synced(_)) {}
    let first = revoke(here, 1).await;
    while watch.cursor().is_none_or(|cursor| cursor.revision.0 < first) {
        watch.next().await;
    }
    fleet.lines[0].cut();
    let meanwhile = revoke(there, 2).await;
    // The stream goes on, with heartbeats that say nothing new, and is left for it.
    let mut revisions = Vec::new();
    let mut left = None;
    while watch.cursor().is_none_or(|cursor| cursor.revision.0 < meanwhile) {
        match watch.next().await {
            WatchEvent::Disconnected { lost, .. } => left = Some(lost),
            WatchEvent::Batch(batch, _) => revisions.extend(batch.iter().map(|it| it.revision)),
            WatchEvent::Connected { resumed, .. } => assert!(resumed, "no snapshot is needed"),
            WatchEvent::Reset | WatchEvent::Refused(..) => panic!("it was the same log"),
            WatchEvent::Synced(_) | WatchEvent::Heartbeat(_) | WatchEvent::KeySet(_) => {}
        }
    }
    assert!(matches!(left, Some(Lost::Frozen)), "{left:?}");
    assert_eq!(revisions, [meanwhile]);
    // It stays where it is when the other is back, and comes back from where it is.
    fleet.lines[0].heal();
    let at = |watch: &avouch::client::watch::Watch| watch.cursor().map(|it| it.revision);
    let before = at(&watch);
    let last = revoke(here, 3).await;
    while watch.cursor().is_none_or(|cursor| cursor.revision.0 < last) {
        let event = watch.next().await;
        assert!(at(&watch) >= before, "never back");
        assert!(!matches!(event, WatchEvent::Disconnected { .. }), "{event:?}");
    }
}
