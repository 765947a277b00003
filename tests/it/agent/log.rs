//! What becomes of the neighbours when the server's set is another one, or the agent is.

use std::sync::Arc;
use std::time::Duration;

use avouch::client::watch::{Lost, WatchEvent};
use avouch::domain::clock::Timestamp;
use avouch::domain::event::Entry;
use avouch::domain::ids::{Cursor, LogId, Revision};
use avouch::domain::view::{TOKEN_BUCKET_SECS, View, bucket_end};
use avouch::feed::subscription::Item;
use avouch::feed::{Feed, FeedSettings, Known, Proof, Source};
use avouch::grpc::frame::BatchEncoder;
use avouch::pb::v1;
use avouch::pb::v1::watch_revocations_response::Frame;
use avouch::store::StoreError;

use super::rig::{LONG, Switch, agent, agent_at, event_where, is_synced};
use crate::support::serve::serve;
use crate::support::world::{START, World, subscribe};

const fn is_lost(event: &WatchEvent) -> bool {
    matches!(event, WatchEvent::Disconnected { .. })
}

const fn is_connected(event: &WatchEvent) -> bool {
    matches!(event, WatchEvent::Connected { .. })
}

#[tokio::test]
async fn another_log_upstream_is_another_log_for_the_neighbours() {
    let world = World::new();
    let first = serve(world.feed(FeedSettings::default())).await;
    for _ in 0..3 {
        world.revoke().await;
    }
    let restored = World::of(LogId::from_bytes([9; 16]));
    restored.raise("ann").await;
    let second = serve(restored.feed(FeedSettings::default())).await;
    let switch = Switch::to(first).await;
    let rig = agent(switch.address, |_| {}).await.synced().await;
    let mut neighbour = rig.watch(None).await;
    let (_, known) = neighbour.synced().await;
    let mut watch = rig.follow();
    event_where(&mut watch, is_synced).await;

    switch.turn(second);
    // What it says before it goes away claims nothing that the old log did not prove.
    let gone = |frame: &Frame| matches!(frame, Frame::GoAway(_));
    let (between, last) = neighbour.until(gone).await;
    for frame in between {
        let Frame::Heartbeat(heartbeat) = frame else { panic!("{frame:?}") };
        assert_eq!(heartbeat.through, known.through);
        assert_eq!(heartbeat.as_of_time, known.as_of_time);
    }
    let Frame::GoAway(last) = last else { panic!("{last:?}") };
    assert_eq!(last.reason(), v1::GoAwayReason::Rebalance);
    // Whoever comes back with the old cursor is told.
    let mut back = rig.watch(known.through).await;
    assert!(!back.start.resumed);
    assert_eq!(
        back.next().await.expect("a frame"),
        Frame::Reset(v1::Reset { reason: v1::ResetReason::LogChanged as i32 })
    );
    let (between, synced) = back.synced().await;
    assert!(matches!(between[..], [Frame::Snapshot(_)]), "{between:?}");
    assert_eq!(synced.through.expect("a cursor").log_id, LogId::from_bytes([9; 16]).to_string());

    let view = watch.view();
    let lost = event_where(&mut watch, is_lost).await;
    let WatchEvent::Disconnected { lost: Lost::GoAway(_), .. } = lost else { panic!("{lost:?}") };
    event_where(&mut watch, |event| matches!(event, WatchEvent::Reset)).await;
    assert_eq!(view.load().len(), 3, "the old set is in force until the new one is complete");
    event_where(&mut watch, is_synced).await;
    assert_eq!(view.load().len(), 1);
    assert_eq!(watch.cursor().expect("a cursor").revision, Revision(1));
    restored.revoke().await;
    event_where(&mut watch, |event| matches!(event, WatchEvent::Batch(..))).await;
    assert_eq!(view.load().len(), 2);
}

/// Two servers say that their log is the same, and it is not: only the digest can tell.
#[tokio::test]
async fn a_set_that_was_not_the_servers_is_replaced_at_the_neighbours_too() {
    let (world, other) = (World::new(), World::new());
    let first = serve(world.feed(FeedSettings::default())).await;
    for world in [&world, &other] {
        world.revoke().await;
        world.raise("ann").await;
    }
    // The same two positions, and another token at the first.
    let third = World::new();
    third.revoke().await;
    third.revoke().await;
    let second = serve(third.feed(FeedSettings::default())).await;
    let switch = Switch::to(first).await;
    let rig = agent(switch.address, |_| {}).await.synced().await;
    let (_, known) = rig.watch(None).await.synced().await;
    let mut watch = rig.follow();
    event_where(&mut watch, is_synced).await;
    assert_eq!(rig.agent.status().snapshots, 1);

    switch.turn(second);
    crate::verifier::until("the agent has the other set", || rig.agent.status().snapshots == 2)
        .await;
    // The cursor is not older than what the agent has; the set behind it is the wrong one.
    let mut back = rig.watch(known.through.clone()).await;
    assert!(!back.start.resumed);
    let (_, synced) = back.synced().await;
    assert_eq!(synced.through, known.through);
    let event = event_where(&mut watch, is_connected).await;
    assert!(matches!(event, WatchEvent::Connected { resumed: false, .. }), "{event:?}");
    event_where(&mut watch, is_synced).await;
    let digest = watch.view().load().digest(START);
    assert_eq!(digest.count, 2, "two tokens, where there were a token and a subject");
}

#[tokio::test]
async fn an_agent_that_was_killed_begins_anew_and_its_neighbours_miss_nothing() {
    let world = World::new();
    let address = serve(world.feed(FeedSettings::default())).await;
    world.revoke().await;
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("agent.sock");
    let rig = agent_at(&socket, address, |_| {}).await.synced().await;
    let mut watch = rig.follow();
    event_where(&mut watch, is_synced).await;
    // With nothing missed, a restart is no reason for a snapshot.
    rig.stop().await.expect("it ends");
    let rig = agent_at(&socket, address, |_| {}).await.synced().await;
    let event = event_where(&mut watch, is_connected).await;
    assert!(matches!(event, WatchEvent::Connected { resumed: true, .. }), "{event:?}");
    event_where(&mut watch, is_synced).await;
    // What happened while it was away is older than what it holds.
    rig.stop().await.expect("it ends");
    world.revoke().await;
    world.revoke().await;
    let _rig = agent_at(&socket, address, |_| {}).await.synced().await;
    let event = event_where(&mut watch, is_connected).await;
    assert!(matches!(event, WatchEvent::Connected { resumed: false, .. }), "{event:?}");
    event_where(&mut watch, is_synced).await;
    assert_eq!(watch.view().load().len(), 3);
    assert_eq!(watch.cursor().expect("a cursor").revision, Revision(3));
}

#[tokio::test]
async fn a_server_that_is_away_for_long_is_no_reason_to_forget_or_to_claim() {
    let world = World::new();
    let feed = world.feed(FeedSettings::default());
    let switch = Switch::to(serve(Arc::clone(&feed)).await).await;
    world.revoke().await;
    let rig = agent(switch.address, |_| {}).await.synced().await;
    let mut neighbour = rig.watch(None).await;
    let (_, synced) = neighbour.synced().await;
    switch.turn(None);
    crate::verifier::until("the agent has noticed", || !rig.agent.status().connected).await;
    // Whoever comes meanwhile gets the set, as old as it is.
    let mut late = rig.watch(None).await;
    let (between, late) = late.synced().await;
    assert!(matches!(between[..], [Frame::Snapshot(_)]), "{between:?}");
    assert_eq!((&late.through, &late.as_of_time), (&synced.through, &synced.as_of_time));
    world.clock.advance(Duration::from_secs(3));
    world.revoke().await;
    tokio::time::timeout(LONG, feed.prove()).await.expect("it proves");
    switch.turn(serve(Arc::clone(&feed)).await);
    let revocations = neighbour.revocations(2).await;
    assert_eq!(revocations.len(), 1);
    loop {
        let heartbeat = neighbour.heartbeat().await;
        if heartbeat.as_of_time != synced.as_of_time {
            assert_eq!(heartbeat.through.expect("a cursor").revision, 2);
            break;
        }
    }
}

/// A source that says the same for ever, as that of an agent does which is cut off.
struct Silent(Proof);

#[tonic::async_trait]
impl Source for Silent {
    fn events_after(&self, _: Revision, _: usize) -> Result<Option<Vec<Entry>>, StoreError> {
        Ok(None)
    }

    async fn prove(&self, _: Timestamp) -> Option<Proof> {
        Some(self.0)
    }
}

/// Buckets end while the server is silent. A digest that counted them would not be that of a
/// neighbour that has dropped them.
#[tokio::test]
async fn a_digest_counts_what_both_ends_still_hold_however_long_the_server_is_silent() {
    let world = World::new();
    let view = Arc::new(View::default());
    view.insert_token(bucket_end(START.after(Duration::from_secs(300)), TOKEN_BUCKET_SECS), 7);
    let through = Cursor { log_id: LogId::from_bytes([7; 16]), revision: Revision(1) };
    let proof = Proof { as_of: START, head: through.revision };
    let known = Known { view, coarse: Vec::new(), through, oldest: through.revision };
    let clock = Arc::clone(&world.clock);
    let (entropy, encoder) = (Arc::clone(&world.entropy), Arc::new(BatchEncoder));
    let source = Arc::new(Silent(proof));
    let feed = Feed::relay(source, known, clock, entropy, encoder, FeedSettings::default());
    for (silent_for, held) in [(0, 1), (100, 1), (600, 0)] {
        world.clock.set(START.after(Duration::from_secs(silent_for)));
        feed.prove().await;
        let mut items = feed.subscribe(subscribe()).await.expect("it begins");
        let mark = loop {
            if let Some(Item::Synced(mark)) = items.next().await.expect("it goes on") {
                break mark;
            }
        };
        assert_eq!(mark.as_of, START);
        let check = mark.check.expect("a digest");
        assert!(check.counted_after >= mark.at.after(Duration::from_secs(60)), "{silent_for}");
        assert_eq!(check.digest.count, held, "{silent_for}");
    }
}
