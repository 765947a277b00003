//! What an agent does before it has a set, when it has no room for one, when a neighbour takes nothing,
//! and when it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use avouch::agent::Unfit;
use avouch::app::agent::{AgentError, AgentOptions, build};
use avouch::domain::caller::{Grant, Right};
use avouch::domain::client::Client;
use avouch::domain::ids::Cursor;
use avouch::feed::subscription::{Item, Leave};
use avouch::feed::{FeedSettings, Subscribe};
use avouch::pb::v1;
use avouch::pb::v1::watch_revocations_response::Frame;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::rig::{LONG, Rig, Switch, agent};
use crate::harness::{client, http_get, reason};
use crate::support::serve::{endpoint, serve};
use crate::support::world::{World, subscribe};
use crate::verifier::{Scene, until};

async fn health(rig: &Rig, service: &str) -> ServingStatus {
    let channel = rig.endpoint().connect().await.expect("it listens");
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel).check(request).await.expect("an answer");
    answer.into_inner().status()
}

#[tokio::test]
async fn nothing_is_served_before_the_first_set_is_complete() {
    let world = World::new();
    let server = serve(world.feed(FeedSettings::default())).await;
    let switch = Switch::to(None).await;
    let rig = agent(switch.address, |_| {}).await;
    let refused =
        rig.client().await.watch_revocations(v1::WatchRevocationsRequest::default()).await;
    let refused = refused.expect_err("there is no set");
    assert_eq!((refused.code(), reason(&refused)), (Code::Unavailable, "NOT_READY".into()));
    for service in ["", "avouch.v1.RevocationService"] {
        assert_eq!(health(&rig, service).await, ServingStatus::NotServing);
    }
    let (code, _, text) = http_get(rig.ops, "/readyz", "").await;
    assert_eq!((code, text.as_str()), (503, "waiting for: revocations\n"));
    assert!(!rig.agent.status().synced);
    switch.turn(server);
    let rig = rig.synced().await;
    rig.watch(None).await.synced().await;
    let is_up = async {
        while health(&rig, "avouch.v1.RevocationService").await != ServingStatus::Serving {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, is_up).await.expect("it serves");
    assert_eq!(http_get(rig.ops, "/readyz", "").await.0, 200);
    let _neighbour = rig.watch(None).await;
    let (_, _, text) = http_get(rig.ops, "/metrics", "").await;
    for line in [
        "avouch_agent_view_synced 1",
        "avouch_agent_view_connected 1",
        "avouch_agent_neighbours ",
        "avouch_agent_view_age_seconds ",
        "avouch_agent_view_lag_seconds ",
        "avouch_agent_view_entries 0",
        "avouch_agent_snapshots_total 1",
    ] {
        assert!(text.contains(line), "{line} not in\n{text}");
    }
}

/// Half a set would make what is left out good again.
#[tokio::test]
async fn an_agent_without_room_for_the_set_stops_and_ends_its_streams() {
    let world = World::new();
    let address = serve(world.feed(FeedSettings::default())).await;
    world.revoke().await;
    let rig = agent(address, |options| options.max_entries = 2).await.synced().await;
    let mut neighbour = rig.watch(None).await;
    neighbour.synced().await;
    world.revoke().await;
    world.revoke().await;
    let gone = |frame: &Frame| matches!(frame, Frame::GoAway(_));
    neighbour.until(gone).await;
    assert_eq!(rig.ended().await, Err(Unfit::Full(2)));
    // One that has none in the first place serves nobody at all.
    let rig = agent(address, |options| options.max_entries = 2).await;
    assert_eq!(rig.ended().await, Err(Unfit::Full(2)));
}

/// What it does not see, its neighbours would not see either, and would not know.
#[tokio::test]
async fn credentials_that_may_not_watch_everything_are_no_good_for_an_agent() {
    let scene = Scene::new().await;
    let limits = [
        Grant { audience: Some("orders".into()), ..Grant::unlimited(Right::Watch) },
        // The filter that the server states has no field for this one.
        Grant { subject: Some("ann".parse().expect("an id")), ..Grant::unlimited(Right::Watch) },
    ];
    for (n, grant) in limits.into_iter().enumerate() {
        let client = Client { grants: vec![grant], ..client(&format!("limited-{n}")) };
        let client = scene.server.add_client(client).await;
        let rig = agent(scene.server.grpc, |options| options.client = Some(client)).await;
        let agent = Arc::clone(&rig.agent);
        assert_eq!(rig.ended().await, Err(Unfit::Limited), "{n}");
        // Where the server says so, nobody is served in the first place.
        assert_eq!(agent.status().snapshots, u64::from(n == 1), "{n}");
    }
}

/// With windows so small that the first frame fills them, and nobody who reads.
async fn stalled(rig: &Rig) -> impl Sized + use<> {
    let stream = UnixStream::connect(&rig.socket).await.expect("it listens");
    let (send, connection) =
        h2::client::Builder::new().initial_window_size(16).handshake(stream).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let mut send = send.ready().await.expect("a connection");
    let head = http::Request::post("http://agent/avouch.v1.RevocationService/WatchRevocations")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("a request");
    let (response, mut body) = send.send_request(head, false).expect("sent");
    body.send_data(bytes::Bytes::from_static(&[0; 5]), true).expect("sent");
    let response = timeout(LONG, response).await.expect("in time").expect("an answer");
    (send, connection, response)
}

#[tokio::test]
async fn a_neighbour_that_takes_nothing_holds_up_nobody_and_is_cut() {
    let world = World::new();
    let address = serve(world.feed(FeedSettings::default())).await;
    let rig = agent(address, |options| {
        options.feed.ring_entries = 64;
        options.feed.slow_after = Duration::from_secs(1);
    });
    let rig = rig.await.synced().await;
    let held = stalled(&rig).await;
    let mut neighbour = rig.watch(None).await;
    neighbour.synced().await;
    assert_eq!(rig.agent.status().neighbours, 2);
    for revision in 1..=300 {
        world.revoke().await;
        let revocations = neighbour.revocations(revision).await;
        assert_eq!(revocations.len(), 1);
    }
    assert!(rig.agent.status().ring_entries <= 64, "nothing is queued for the other");
    until("it is cut", || rig.agent.status().neighbours == 1).await;
    assert_eq!(rig.agent.status().cut, 1);
    drop(held);
}

/// What the ring has lost is nowhere else here, so the stream begins again with the whole set.
#[tokio::test]
async fn a_neighbour_that_falls_behind_the_ring_gets_the_whole_set() {
    let world = World::new();
    let address = serve(world.feed(FeedSettings::default())).await;
    let rig = agent(address, |options| options.feed.ring_entries = 4).await.synced().await;
    let feed = rig.agent.feed()().expect("a feed");
    let mut slow = feed.subscribe(subscribe()).await.expect("it begins");
    while !matches!(slow.next().await.expect("it goes on"), Some(Item::Synced(_))) {}
    let behind = slow.position();
    for _ in 0..20 {
        world.revoke().await;
    }
    rig.passed(20).await;
    let next = slow.next().await.expect("it ends well");
    assert!(matches!(next, Some(Item::GoAway { leave: Leave::Rebalance, .. })), "{next:?}");
    assert_eq!(slow.next().await, Ok(None));
    let again = |resume_after: Cursor| {
        feed.subscribe(Subscribe { resume_after: Some(resume_after), ..subscribe() })
    };
    let mut items = again(behind).await.expect("it begins");
    let first = items.next().await.expect("it goes on");
    assert!(matches!(first, Some(Item::Start { resumed: false, .. })), "{first:?}");
    let second = items.next().await.expect("it goes on");
    let Some(Item::Snapshot(chunk)) = second else { panic!("{second:?}") };
    assert_eq!(chunk.packed.iter().map(|packed| packed.keys.len()).sum::<usize>(), 20);
}

#[tokio::test]
async fn a_drain_says_go_away_and_begins_no_new_stream() {
    let world = World::new();
    let address = serve(world.feed(FeedSettings::default())).await;
    let rig = agent(address, |_| {}).await.synced().await;
    let mut neighbour = rig.watch(None).await;
    neighbour.synced().await;
    let feed = rig.agent.feed();
    let socket = rig.socket.clone();
    let stopped = tokio::spawn(rig.stop());
    let gone = |frame: &Frame| matches!(frame, Frame::GoAway(_));
    let (between, last) = neighbour.until(gone).await;
    assert!(matches!(between.last(), Some(Frame::Heartbeat(_))), "{between:?}");
    let Frame::GoAway(last) = last else { panic!("{last:?}") };
    assert_eq!(last.reason(), v1::GoAwayReason::Drain);
    assert_eq!(neighbour.next().await.expect_err("the end").code(), Code::Unavailable);
    drop(neighbour);
    let summary = stopped.await.expect("it ends").expect("it had room");
    assert_eq!(summary.aborted, 0);
    assert!(feed().is_err());
    assert!(!socket.exists(), "it takes its socket along");
}

#[tokio::test]
async fn an_agent_listens_where_only_this_machine_reaches_it() {
    let address = "0.0.0.0:0".parse().expect("an address");
    let server = endpoint("127.0.0.1:1".parse().expect("an address"));
    let refused = build(AgentOptions::new(address, server.clone())).await.err();
    assert!(matches!(refused, Some(AgentError::NotLocal(_))), "{refused:?}");
    let address = "127.0.0.1:0".parse().expect("an address");
    let bound = build(AgentOptions::new(address, server)).await.expect("it binds");
    assert!(bound.address.is_local());
    // Whoever may write to the socket may watch.
    let world = World::new();
    let rig = agent(serve(world.feed(FeedSettings::default())).await, |_| {}).await;
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(&rig.socket).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    drop(Arc::clone(&rig.agent));
}
