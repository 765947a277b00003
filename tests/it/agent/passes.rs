//! What an agent passes on: the same revocations, cursors, keys and digests, and who has applied them.

use std::sync::Arc;
use std::time::Duration;

use avouch::domain::ids::Revision;
use avouch::domain::view::RevokedBy;
use avouch::feed::FeedSettings;
use avouch::pb::v1;
use avouch::pb::v1::revoke_request::Target;
use avouch::pb::v1::watch_revocations_response::Frame;
use avouch::verifier::{Refusal, Verifier, VerifierSettings};
use tokio::time::Instant;

use super::rig::{Frames, LONG, Rig, agent, revisions};
use crate::harness::reason;
use crate::sidecar::rig::Sidecar;
use crate::support::serve::{channel, serve};
use crate::support::world::World;
use crate::verifier::{Scene, until};

async fn direct(address: std::net::SocketAddr, resume_after: Option<v1::Cursor>) -> Frames {
    let client =
        v1::revocation_service_client::RevocationServiceClient::new(channel(address).await);
    Frames::open(client, resume_after).await
}

/// An agent of a real server, with the credentials of a client.
pub(super) async fn agent_of(scene: &Scene, stream: std::net::SocketAddr) -> Rig {
    let operator = scene.operator.clone();
    agent(stream, |options| options.client = Some(operator)).await.synced().await
}

/// A verifier that knows the agent alone.
pub(super) async fn verifier_at(scene: &Scene, rig: &Rig) -> Verifier {
    let settings = scene.settings(scene.server.grpc);
    verifier_with(scene, rig, settings).await
}

async fn verifier_with(scene: &Scene, rig: &Rig, mut settings: VerifierSettings) -> Verifier {
    settings.watch.endpoints = vec![rig.endpoint()];
    settings.watch.authorization = None;
    scene.verifier(settings).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_revoke_has_waited_for_is_refused_by_every_verifier_of_the_node() {
    let scene = Scene::new().await;
    let rig = agent_of(&scene, scene.server.grpc).await;
    let verifiers = [verifier_at(&scene, &rig).await, verifier_at(&scene, &rig).await];
    let mut times = Vec::new();
    for _ in 0..20 {
        let ada = scene.login("ada").await;
        for verifier in &verifiers {
            verifier.verify(&ada.access_token).await.expect("good");
        }
        let request = v1::RevokeRequest {
            client: Some(scene.operator.clone()),
            target: Some(Target::SessionId(ada.session_id)),
            wait: Some(prost_types::Duration { seconds: 20, nanos: 0 }),
            ..Default::default()
        };
        let began = Instant::now();
        let answer = scene.server.identity().revoke(request).await.expect("revoked").into_inner();
        times.push(began.elapsed());
        let waited = answer.wait_result.expect("a result");
        assert!(waited.complete, "{waited:?}");
        assert_eq!(waited.watchers_connected, 1, "the server sees the node, not the pods");
        // At once: that is what was waited for.
        for verifier in &verifiers {
            let refused = verifier.verify(&ada.access_token).await.expect_err("revoked");
            assert_eq!(refused, Refusal::Revoked(RevokedBy::Session));
        }
    }
    times.sort();
    let status = rig.agent.status();
    assert_eq!((status.neighbours, status.snapshots), (2, 1), "{status:?}");
    assert_eq!(scene.server.service.feed().stats().watchers, 1);
    println!(
        "Revoke{{wait}} through an agent to 2 verifiers and back: median {:?}, worst {:?}; commit to agent {:?}",
        times[times.len() / 2],
        times[times.len() - 1],
        status.lag
    );
}

#[tokio::test]
async fn the_server_is_told_only_once_every_neighbour_has_applied_it() {
    let scene = Scene::new().await;
    let rig = agent_of(&scene, scene.server.grpc).await;
    let mut neighbour = rig.watch(None).await;
    neighbour.synced().await;
    let identity = scene.server.identity();
    let revoke = |session: String, wait: Duration| {
        let mut identity = identity.clone();
        let request = v1::RevokeRequest {
            client: Some(scene.operator.clone()),
            target: Some(Target::SessionId(session)),
            wait: prost_types::Duration::try_from(wait).ok(),
            ..Default::default()
        };
        async move { identity.revoke(request).await.expect("revoked").into_inner() }
    };
    // It reads everything and says nothing of it: so has the agent nothing to say.
    let ada = scene.login("ada").await;
    let answer = revoke(ada.session_id, Duration::from_millis(300)).await;
    let waited = answer.wait_result.expect("a result");
    assert_eq!((waited.watchers_applied, waited.complete), (0, false), "{waited:?}");
    let ben = scene.login("ben").await;
    let waiting = tokio::spawn(revoke(ben.session_id, LONG));
    loop {
        let (_, asked) = neighbour.until(|frame| matches!(frame, Frame::AckRequest(_))).await;
        let Frame::AckRequest(asked) = asked else { panic!("{asked:?}") };
        neighbour.acknowledge(asked.through.clone().expect("a cursor")).await;
        if asked.through.expect("a cursor").revision
            > answer.cursor.as_ref().expect("a cursor").revision
        {
            break;
        }
    }
    let waited = waiting.await.expect("it ends").wait_result.expect("a result");
    assert_eq!((waited.watchers_applied, waited.complete), (1, true), "{waited:?}");
}

#[tokio::test]
async fn a_stream_through_an_agent_is_the_stream_of_the_server() {
    let world = World::new();
    let feed = world.feed(FeedSettings::default());
    let keys = vec![v1::JsonWebKey { kid: "k1".to_owned(), ..Default::default() }];
    feed.set_key_set(Revision(0), avouch::grpc::frame::key_set(feed.head(), keys));
    world.revoke().await;
    world.raise("ann").await;
    let address = serve(Arc::clone(&feed)).await;
    let rig = agent(address, |_| {}).await.synced().await;
    let (mut here, mut there) = (rig.watch(None).await, direct(address, None).await);
    let ((mut first, synced), (mut second, expected)) = (here.synced().await, there.synced().await);
    assert_eq!(synced.through, expected.through);
    assert_eq!(here.start.head, there.start.head);
    assert!(matches!(first[0], Frame::KeySet(_)), "{first:?}");
    let sort = |frames: &mut Vec<Frame>| frames.sort_by_key(|frame| format!("{frame:?}"));
    sort(&mut first);
    sort(&mut second);
    assert_eq!(first, second, "the keys and the snapshot");
    for n in 0..5 {
        if n % 2 == 0 {
            world.revoke().await;
        } else {
            world.raise("ben").await;
        }
    }
    assert_eq!(here.revocations(7).await, there.revocations(7).await);
    // The same digest, made of another set; a heartbeat that has none is between two looks.
    let digest = async |frames: &mut Frames| {
        loop {
            let heartbeat = frames.heartbeat().await;
            if let Some(digest) = heartbeat.digest {
                return (heartbeat.through, digest.live_count, digest.xor_of_keys);
            }
        }
    };
    let (mine, theirs) = (digest(&mut here).await, digest(&mut there).await);
    assert_eq!(mine, theirs);
    assert_eq!(mine.1, 4);
    // New keys, at their place in the log.
    let keys = vec![v1::JsonWebKey { kid: "k2".to_owned(), ..Default::default() }];
    feed.set_key_set(feed.head().revision, avouch::grpc::frame::key_set(feed.head(), keys));
    let is_keys = |frame: &Frame| matches!(frame, Frame::KeySet(_));
    assert_eq!(here.until(is_keys).await.1, there.until(is_keys).await.1);
}

#[tokio::test]
async fn a_cursor_of_the_server_is_good_at_the_agent_and_the_other_way_round() {
    let world = World::new();
    let feed = world.feed(FeedSettings::default());
    let address = serve(feed).await;
    world.revoke().await;
    let rig = agent(address, |_| {}).await.synced().await;
    // From the server to the agent: first with nothing missed, then with two.
    let (_, synced) = direct(address, None).await.synced().await;
    let mut here = rig.watch(synced.through.clone()).await;
    assert!(here.start.resumed);
    assert_eq!(here.synced().await.0, []);
    world.revoke().await;
    let missed = world.raise("ann").await;
    rig.passed(missed.revision.0).await;
    let mut here = rig.watch(synced.through).await;
    let (between, synced) = here.synced().await;
    assert!(here.start.resumed);
    assert_eq!(revisions(&between), [2, 3]);
    assert_eq!(synced.through.as_ref().expect("a cursor").revision, 3);
    // From the agent to the server.
    world.revoke().await;
    let mut there = direct(address, synced.through).await;
    let (between, _) = there.synced().await;
    assert!(there.start.resumed);
    assert_eq!(revisions(&between), [4]);
    // What is older than the agent begins with the whole set, which is no error and no reset.
    let old = v1::Cursor { revision: 0, ..there.start.head.clone().expect("a cursor") };
    let mut here = rig.watch(Some(old)).await;
    let (between, synced) = here.synced().await;
    assert!(!here.start.resumed);
    assert!(matches!(between[0], Frame::Snapshot(_)), "{between:?}");
    assert!(synced.through.expect("a cursor").revision >= 3);
}

#[tokio::test]
async fn a_sidecar_follows_an_agent_and_asks_the_server_alone() {
    let scene = Scene::new().await;
    let rig = agent_of(&scene, scene.server.grpc).await;
    let agent = format!("unix://{}", rig.socket.display());
    let flags = [("sidecar.agent", agent.as_str())];
    let sidecar = Sidecar::beside(&scene.server, crate::sidecar::rig::RULES, &flags).await;
    assert_eq!(scene.server.service.feed().stats().watchers, 1, "the node, and no pod");
    assert_eq!(rig.agent.status().neighbours, 1);
    let ada = scene.login("ada").await;
    assert!(sidecar.check_token("GET", "/orders", &ada.access_token).await.passes());
    scene.revoke(&sidecar.verifier, Target::SessionId(ada.session_id)).await;
    assert!(!sidecar.check_token("GET", "/orders", &ada.access_token).await.passes());
    sidecar.stop().await;
}

#[tokio::test]
async fn a_cursor_ahead_of_the_agent_is_unavailable_and_says_why() {
    let world = World::new();
    let address = serve(world.feed(FeedSettings::default())).await;
    let rig = agent(address, |options| options.feed.behind_wait = Duration::from_millis(50)).await;
    let rig = rig.synced().await;
    let head = direct(address, None).await.start.head.expect("a cursor");
    let ahead = v1::Cursor { revision: head.revision + 1, ..head };
    let request =
        v1::WatchRevocationsRequest { resume_after: Some(ahead.clone()), ..Default::default() };
    let refused = rig.client().await.watch_revocations(request).await.expect_err("ahead");
    assert_eq!(
        (refused.code(), reason(&refused)),
        (tonic::Code::Unavailable, "REPLICA_BEHIND".into())
    );
    world.revoke().await;
    rig.passed(ahead.revision).await;
    assert!(rig.watch(Some(ahead)).await.start.resumed);
}

#[tokio::test]
async fn a_filter_shows_everything_and_says_so_and_there_is_no_list() {
    let world = World::new();
    let address = serve(world.feed(FeedSettings::default())).await;
    world.revoke_of("shop", "api").await;
    let rig = agent(address, |_| {}).await.synced().await;
    let mut client = rig.client().await;
    let filter = v1::RevocationFilter { audiences: vec!["mail".into()], ..Default::default() };
    let request = v1::WatchRevocationsRequest { filter: Some(filter), ..Default::default() };
    let mut frames = client.watch_revocations(request).await.expect("it begins").into_inner();
    let first = frames.message().await.expect("a frame").and_then(|it| it.frame);
    let Some(Frame::Start(start)) = first else { panic!("{first:?}") };
    assert_eq!(start.effective_filter, Some(v1::RevocationFilter::default()));
    let second = frames.message().await.expect("a frame").and_then(|it| it.frame);
    let Some(Frame::Snapshot(chunk)) = second else { panic!("{second:?}") };
    assert_eq!(chunk.packed.len(), 1);
    let listed = client.list_revocations(v1::ListRevocationsRequest::default()).await;
    let refused = listed.expect_err("no log");
    assert_eq!((refused.code(), reason(&refused)), (tonic::Code::Unimplemented, "NO_LOG".into()));
}

#[tokio::test]
async fn as_of_stands_still_while_the_server_is_silent_and_nothing_is_missed_after() {
    let scene = Scene::new().await;
    let switch = super::rig::Switch::to(scene.server.grpc).await;
    let rig = agent_of(&scene, switch.address).await;
    let verifier = verifier_with(&scene, &rig, scene.impatient(scene.server.grpc)).await;
    let (ada, ben) = (scene.login("ada").await, scene.login("ben").await);
    verifier.verify(&ada.access_token).await.expect("good");
    let mut neighbour = rig.watch(None).await;
    neighbour.synced().await;

    switch.turn(None);
    until("the agent has noticed", || !rig.agent.status().connected).await;
    let (first, mut last) = (neighbour.heartbeat().await, neighbour.heartbeat().await);
    // The verifier goes stale by its own limit, although the agent goes on to send heartbeats.
    let closed = avouch::verifier::Policy::Closed;
    let limit = Duration::from_millis(1500);
    scene.revoke_now(Target::SessionId(ada.session_id.clone())).await;
    crate::verifier::until_stale(&verifier, &ada.access_token).await;
    assert_eq!(
        verifier.verify_with(&ben.access_token, closed, limit).await.expect_err("stale"),
        Refusal::Stale
    );
    assert!(verifier.status().connected, "the agent is there");
    for _ in 0..3 {
        last = neighbour.heartbeat().await;
    }
    assert_eq!(last.as_of_time, first.as_of_time, "nothing new is known");
    let millis = |at: &Option<prost_types::Timestamp>| {
        at.as_ref().map(|at| at.seconds * 1000 + i64::from(at.nanos) / 1_000_000)
    };
    assert!(millis(&last.send_time) > millis(&first.send_time), "and it says how old that is");

    switch.turn(scene.server.grpc);
    until("the verifier has what it missed", || {
        matches!(
            verifier.check(&ada.access_token),
            avouch::verifier::Verdict::Refused(Refusal::Revoked(RevokedBy::Session))
        )
    })
    .await;
    until("and is fresh", || {
        matches!(verifier.check(&ben.access_token), avouch::verifier::Verdict::Good(_))
    })
    .await;
    assert_eq!(rig.agent.status().snapshots, 1, "it went on where it was");
}
