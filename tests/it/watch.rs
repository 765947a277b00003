//! WatchRevocations on a socket: what servers and clients say to each other.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use avouch::client::watch::{Lost, Watch, WatchEvent, WatchSettings};
use avouch::domain::entropy::SeededEntropy;
use avouch::domain::ids::Revision;
use avouch::feed::{Feed, FeedSettings};
use avouch::pb::v1;
use avouch::pb::v1::revocation_service_client::RevocationServiceClient;
use avouch::pb::v1::watch_revocations_response::Frame;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::support::proxy::Proxy;
use crate::support::serve::{NOBODY, channel, endpoint, serve};
use crate::support::world::{LOG, World};

/// Longer than anything here takes; a test that waits for it has failed.
const LONG: Duration = Duration::from_secs(20);

type Client = RevocationServiceClient<Channel>;

async fn begin(settings: FeedSettings) -> (World, Arc<Feed>, std::net::SocketAddr) {
    let world = World::new();
    let feed = world.feed(settings);
    let address = serve(Arc::clone(&feed)).await;
    (world, feed, address)
}

async fn client(address: std::net::SocketAddr) -> Client {
    RevocationServiceClient::new(channel(address).await)
}

fn request() -> v1::WatchRevocationsRequest {
    v1::WatchRevocationsRequest {
        heartbeat_interval: Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 }),
        subscriber_id: "pod".to_owned(),
        ..v1::WatchRevocationsRequest::default()
    }
}

fn cursor(revision: u64) -> v1::Cursor {
    v1::Cursor { log_id: LOG.to_string(), revision }
}

async fn next(frames: &mut Streaming<v1::WatchRevocationsResponse>) -> Result<Frame, Status> {
    let message = timeout(LONG, frames.message()).await.expect("a frame in time")?;
    message.and_then(|it| it.frame).ok_or_else(|| Status::ok("the end"))
}

fn name(frame: &Frame) -> &'static str {
    match frame {
        Frame::Start(_) => "start",
        Frame::Snapshot(_) => "snapshot",
        Frame::Synced(_) => "synced",
        Frame::Batch(_) => "batch",
        Frame::Heartbeat(_) => "heartbeat",
        Frame::Reset(_) => "reset",
        Frame::GoAway(_) => "go_away",
        Frame::KeySet(_) => "key_set",
        Frame::AckRequest(_) => "ack_request",
    }
}

/// The names of the frames up to and with the first `last`.
async fn names_until(
    frames: &mut Streaming<v1::WatchRevocationsResponse>,
    last: &str,
) -> Vec<&'static str> {
    let mut names = Vec::new();
    while names.last() != Some(&last) {
        names.push(name(&next(frames).await.unwrap()));
    }
    names
}

#[tokio::test]
async fn a_new_watcher_gets_start_key_set_snapshot_synced_and_then_what_happens() {
    let (world, feed, address) = begin(FeedSettings::default()).await;
    feed.set_key_set(Revision(0), avouch::grpc::frame::key_set(feed.head(), Vec::new()));
    world.revoke().await;
    let mut client = client(address).await;
    let mut frames = client.watch_revocations(request()).await.unwrap().into_inner();
    let names = names_until(&mut frames, "synced").await;
    assert_eq!(names, ["start", "key_set", "snapshot", "synced"]);
    assert_eq!(names_until(&mut frames, "heartbeat").await, ["heartbeat"]);
    world.revoke().await;
    let names = names_until(&mut frames, "batch").await;
    assert!(names[..names.len() - 1].iter().all(|it| *it == "heartbeat"), "{names:?}");
    assert_eq!(feed.watchers()[0].subscriber, "pod");
}

#[tokio::test]
async fn a_resumed_watcher_gets_what_it_missed_and_no_snapshot() {
    let (world, _feed, address) = begin(FeedSettings::default()).await;
    for _ in 0..3 {
        world.revoke().await;
    }
    let resume = v1::WatchRevocationsRequest { resume_after: Some(cursor(1)), ..request() };
    let mut client = client(address).await;
    let mut frames = client.watch_revocations(resume).await.unwrap().into_inner();
    assert!(matches!(next(&mut frames).await, Ok(Frame::Start(start)) if start.resumed));
    let mut revisions = Vec::new();
    loop {
        match next(&mut frames).await.unwrap() {
            Frame::Batch(batch) => revisions.extend(batch.revocations.iter().map(|it| it.revision)),
            Frame::Synced(synced) => {
                assert_eq!(synced.through, Some(cursor(3)));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(revisions, [2, 3]);
}

#[tokio::test]
async fn a_cursor_of_another_log_is_answered_in_band() {
    let (world, _feed, address) = begin(FeedSettings::default()).await;
    world.revoke().await;
    let other = v1::Cursor { log_id: "AAAAAAAAAAAAAAAAAAAAAA".to_owned(), revision: 9 };
    let resume = v1::WatchRevocationsRequest { resume_after: Some(other), ..request() };
    let mut client = client(address).await;
    let mut frames = client.watch_revocations(resume).await.unwrap().into_inner();
    let names = names_until(&mut frames, "synced").await;
    assert_eq!(names, ["start", "reset", "snapshot", "synced"]);
}

#[tokio::test]
async fn a_cursor_ahead_of_the_replica_is_unavailable_and_says_why() {
    let settings =
        FeedSettings { behind_wait: Duration::from_millis(50), ..FeedSettings::default() };
    let (_world, _feed, address) = begin(settings).await;
    let resume = v1::WatchRevocationsRequest { resume_after: Some(cursor(1)), ..request() };
    let status = client(address).await.watch_revocations(resume).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "REPLICA_BEHIND");
    assert_eq!(details.error_info().unwrap().domain, "avouch");
    assert!(details.retry_info().is_some());
}

#[tokio::test]
async fn a_filter_hides_what_was_not_asked_for_and_nothing_else() {
    let (world, _feed, address) = begin(FeedSettings::default()).await;
    let filter = v1::RevocationFilter { audiences: vec!["mail".to_owned()], ..Default::default() };
    let asked = v1::WatchRevocationsRequest { filter: Some(filter), ..request() };
    let mut client = client(address).await;
    let mut frames = client.watch_revocations(asked).await.unwrap().into_inner();
    names_until(&mut frames, "synced").await;
    world.revoke_of("shop", "api").await;
    world.revoke_of("shop", "mail").await;
    world.raise("ann").await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        if let Frame::Batch(batch) = next(&mut frames).await.unwrap() {
            seen.extend(batch.revocations.iter().map(|it| it.revision));
        }
    }
    assert_eq!(seen, [2, 3]);
}

#[tokio::test]
async fn bad_requests_and_callers_without_the_right_are_refused() {
    let (_world, feed, address) = begin(FeedSettings::default()).await;
    let mut client = client(address).await;
    let long = v1::WatchRevocationsRequest { subscriber_id: "x".repeat(257), ..request() };
    let bad_log = v1::Cursor { log_id: "?".to_owned(), revision: 1 };
    let bad_cursor = v1::WatchRevocationsRequest { resume_after: Some(bad_log), ..request() };
    let clients = v1::RevocationFilter { client_ids: vec![String::new()], ..Default::default() };
    let bad_filter = v1::WatchRevocationsRequest { filter: Some(clients), ..request() };
    for (request, field) in [
        (long, "subscriber_id"),
        (bad_cursor, "resume_after.log_id"),
        (bad_filter, "filter.client_ids"),
    ] {
        let status = client.watch_revocations(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, field);
    }
    let mut denied = Request::new(request());
    denied.metadata_mut().insert("authorization", NOBODY.parse().unwrap());
    let status = client.watch_revocations(denied).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(feed.stats().watchers, 0);
}

#[tokio::test]
async fn a_drain_says_go_away_and_ends_the_stream() {
    let (_world, feed, address) = begin(FeedSettings::default()).await;
    let mut client = client(address).await;
    let mut frames = client.watch_revocations(request()).await.unwrap().into_inner();
    names_until(&mut frames, "synced").await;
    feed.drain();
    let names = names_until(&mut frames, "go_away").await;
    assert_eq!(names[names.len() - 2], "heartbeat", "the last position first");
    assert_eq!(next(&mut frames).await.unwrap_err().code(), Code::Unavailable);
    let status = client.watch_revocations(request()).await.unwrap_err();
    assert_eq!(status.get_error_details().error_info().unwrap().reason, "DRAINING");
}

#[tokio::test]
async fn the_list_shows_every_live_revocation_a_page_at_a_time() {
    let (world, _feed, address) = begin(FeedSettings::default()).await;
    for _ in 0..5 {
        world.revoke().await;
    }
    let mut client = client(address).await;
    let mut seen = Vec::new();
    let mut page_token = String::new();
    loop {
        let page = v1::ListRevocationsRequest { page_size: 2, page_token };
        let page = client.list_revocations(page).await.unwrap().into_inner();
        assert!(page.revocations.len() <= 2);
        seen.extend(page.revocations.iter().map(|it| it.revision));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, [1, 2, 3, 4, 5]);
    let bad = v1::ListRevocationsRequest { page_size: 2, page_token: "?".to_owned() };
    let status = client.list_revocations(bad).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

/// A peer that opens a watch and then reads nothing, with windows so small that the first frame
/// fills them.
async fn stalled(address: std::net::SocketAddr) -> impl Sized {
    let stream = TcpStream::connect(address).await.unwrap();
    let (send, connection) =
        h2::client::Builder::new().initial_window_size(16).handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut send = send.ready().await.unwrap();
    let uri = format!("http://{address}/avouch.v1.RevocationService/WatchRevocations");
    let head = http::Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut body) = send.send_request(head, false).unwrap();
    body.send_data(bytes::Bytes::from_static(&[0; 5]), true).unwrap();
    let response = timeout(LONG, response).await.unwrap().unwrap();
    (send, connection, response)
}

/// Security row 85: not a question of time, but of whether Revoke returns at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_stalled_watchers_do_not_hold_up_revoke() {
    const WATCHERS: usize = 1000;
    let (world, feed, address) =
        begin(FeedSettings { ring_entries: 64, ..Default::default() }).await;
    let mut held = Vec::new();
    while held.len() < WATCHERS {
        held.extend(futures_util::future::join_all((0..50).map(|_| stalled(address))).await);
    }
    assert_eq!(feed.stats().watchers, WATCHERS);
    for _ in 0..500 {
        timeout(LONG, world.revoke()).await.expect("revoke returns while they are stalled");
    }
    assert!(feed.stats().ring_entries <= 64, "nothing is queued for them");
    assert_eq!(feed.stats().watchers, WATCHERS, "and they are still there");
}

#[tokio::test]
async fn a_peer_that_accepts_no_byte_is_cut_from_its_connection() {
    let settings = FeedSettings { slow_after: Duration::from_secs(1), ..FeedSettings::default() };
    let (world, feed, address) = begin(settings).await;
    let held = stalled(address).await;
    world.revoke().await;
    let gone = async {
        while feed.stats().watchers > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, gone).await.expect("the connection is closed");
    assert_eq!(feed.stats().cut, 1);
    drop(held);
}

fn follow(endpoints: Vec<tonic::transport::Endpoint>) -> Watch {
    follow_by(Duration::from_millis(100), endpoints)
}

fn follow_by(heartbeat: Duration, endpoints: Vec<tonic::transport::Endpoint>) -> Watch {
    let settings = WatchSettings { heartbeat, ..WatchSettings::new(endpoints) };
    Watch::new(settings, Arc::new(SeededEntropy::new(1)))
}

async fn event_where(watch: &mut Watch, wanted: impl Fn(&WatchEvent) -> bool) -> WatchEvent {
    let found = async {
        loop {
            let event = watch.next().await;
            if wanted(&event) {
                return event;
            }
        }
    };
    timeout(LONG, found).await.expect("the event in time")
}

const fn is_synced(event: &WatchEvent) -> bool {
    matches!(event, WatchEvent::Synced(_))
}

#[tokio::test]
async fn the_client_holds_the_set_and_answers_who_waits_for_it() {
    let (world, feed, address) = begin(FeedSettings::default()).await;
    world.revoke().await;
    world.raise("ann").await;
    let mut watch = follow(vec![endpoint(address)]);
    assert!(watch.fresh().is_none());
    event_where(&mut watch, is_synced).await;
    let view = watch.view();
    assert_eq!(view.load().len(), 2);
    let entry = world.revoke().await;
    let acked = tokio::spawn(async move { feed.wait_for_acks(entry.revision, LONG).await });
    while !acked.is_finished() {
        let _event = timeout(LONG, watch.next()).await.expect("something happens");
    }
    let acked = acked.await.unwrap();
    assert_eq!((acked.connected, acked.applied, acked.complete), (1, 1, true));
    assert_eq!(view.load().len(), 3);
    assert_eq!(watch.cursor().unwrap().revision, Revision(3));
}

const fn is_lost(event: &WatchEvent) -> bool {
    matches!(event, WatchEvent::Disconnected { .. })
}

/// Row f, on the client: the cursor says what is applied, and the next stream goes on from it.
#[tokio::test]
async fn the_client_resumes_at_another_replica_after_a_drain() {
    let (world, first, address) = begin(FeedSettings::default()).await;
    world.revoke().await;
    // Another replica over the same store.
    let other = serve(world.feed(FeedSettings::default())).await;
    let mut watch = follow(vec![endpoint(address), endpoint(other)]);
    event_where(&mut watch, is_synced).await;
    first.drain();
    let lost = event_where(&mut watch, is_lost).await;
    let WatchEvent::Disconnected { lost: Lost::GoAway(reason), .. } = lost else {
        panic!("{lost:?}")
    };
    assert_eq!(reason, v1::GoAwayReason::Drain);
    assert_eq!(watch.view().load().len(), 1, "known revocations stay in force");
    world.revoke().await;
    let connected = |it: &WatchEvent| matches!(it, WatchEvent::Connected { .. });
    let event = event_where(&mut watch, connected).await;
    assert!(matches!(event, WatchEvent::Connected { resumed: true, .. }), "{event:?}");
    event_where(&mut watch, is_synced).await;
    assert_eq!(watch.cursor().unwrap().revision, Revision(2));
    assert_eq!(watch.view().load().len(), 2);
}

/// Row h, on the client: the old set is in force until the new one is whole, and gone then.
#[tokio::test]
async fn the_client_enforces_the_old_set_until_the_one_of_another_log_is_complete() {
    let (world, first, address) = begin(FeedSettings::default()).await;
    for _ in 0..3 {
        world.revoke().await;
    }
    let restored = World::of(avouch::domain::ids::LogId::from_bytes([9; 16]));
    restored.raise("ann").await;
    let other = serve(restored.feed(FeedSettings::default())).await;
    let mut watch = follow(vec![endpoint(address), endpoint(other)]);
    event_where(&mut watch, is_synced).await;
    let view = watch.view();
    first.drain();
    event_where(&mut watch, |it| matches!(it, WatchEvent::Reset)).await;
    assert_eq!(view.load().len(), 3);
    event_where(&mut watch, is_synced).await;
    assert_eq!(view.load().len(), 1);
    assert_eq!(watch.cursor().unwrap().revision, Revision(1));
}

#[tokio::test]
async fn the_client_fetches_the_set_anew_when_the_digest_says_that_it_is_another() {
    let (world, _feed, address) = begin(FeedSettings::default()).await;
    world.revoke().await;
    let mut watch = follow(vec![endpoint(address)]);
    event_where(&mut watch, is_synced).await;
    let view = watch.view();
    let end = 1_800_000_000 + 600;
    view.load().insert_token(end, 0xdead);
    let lost = event_where(&mut watch, is_lost).await;
    assert!(matches!(lost, WatchEvent::Disconnected { lost: Lost::DigestMismatch, .. }));
    assert_eq!(view.load().len(), 2, "what it has stays in force");
    event_where(&mut watch, is_synced).await;
    assert_eq!(view.load().len(), 1);
}

/// A resumed stream begins with frames of before: they must not turn the clock back, nor pass for fresh.
#[tokio::test]
async fn what_a_client_missed_does_not_turn_its_clock_back() {
    let (world, first, address) = begin(FeedSettings::default()).await;
    let other = serve(world.feed(FeedSettings::default())).await;
    let mut watch = follow(vec![endpoint(address), endpoint(other)]);
    event_where(&mut watch, is_synced).await;
    first.drain();
    event_where(&mut watch, is_lost).await;
    world.revoke().await;
    let before = watch.fresh().expect("synced");
    // What the server's clock has come to meanwhile; it is told by nothing but what passes here.
    let passed = Duration::from_secs(1);
    tokio::time::sleep(passed).await;
    let event = event_where(&mut watch, |it| matches!(it, WatchEvent::Batch(..))).await;
    let WatchEvent::Batch(_, told) = event else { panic!("{event:?}") };
    assert_eq!(told.sent, before.sent, "the frame is as old as the revocation");
    let now = watch.fresh().expect("synced").server_time(tokio::time::Instant::now());
    assert!(now >= before.sent.after(passed), "{now} after {}", before.sent);
    assert_eq!(watch.cursor().unwrap().revision, Revision(1), "what was applied counts");
    event_where(&mut watch, is_synced).await;
}

/// What is taken for the server's clock comes back to it when that has stood still: or everything would
/// look old for as long as the stream lives, and tokens would end too early.
#[tokio::test]
async fn a_server_clock_that_stood_still_is_told_anew() {
    let (world, _feed, address) = begin(FeedSettings::default()).await;
    let world = Arc::new(world);
    // Set back, it stands so long. A stream that shows nothing new for 2.5 s is left for that.
    let stands = Arc::new(Mutex::new(Duration::ZERO));
    let running = tokio::spawn({
        let (world, stands) = (Arc::clone(&world), Arc::clone(&stands));
        async move {
            let mut shown = tokio::time::Instant::now();
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                shown += std::mem::take(&mut *stands.lock().expect("nobody panics"));
                let now = tokio::time::Instant::now();
                world.clock.advance(now.saturating_duration_since(shown));
                shown = shown.max(now);
            }
        }
    });
    let mut watch = follow_by(Duration::from_secs(1), vec![endpoint(address)]);
    // On a busy machine a stream may be lost for something else first.
    let told_anew = async {
        loop {
            match watch.next().await {
                WatchEvent::Synced(_) => {
                    *stands.lock().expect("nobody panics") = Duration::from_secs(2);
                }
                WatchEvent::Disconnected { lost: Lost::Late, .. } => return,
                _ => {}
            }
        }
    };
    timeout(3 * LONG, told_anew).await.expect("it is told anew");
    let ahead = |watch: &Watch| {
        let told = watch.fresh().expect("synced").server_time(tokio::time::Instant::now());
        told.since(avouch::domain::clock::Clock::now(&*world.clock))
    };
    assert!(ahead(&watch) >= Duration::from_secs(1), "{:?}", ahead(&watch));
    event_where(&mut watch, is_synced).await;
    assert!(ahead(&watch) < Duration::from_secs(1), "{:?}", ahead(&watch));
    running.abort();
}

/// A server that vouches for nothing new and whose clock stands is left for that, and not begun anew as
/// one that was only set back: with each beginning it would look fresh.
#[tokio::test]
async fn a_clock_that_stands_while_nothing_is_vouched_for_is_no_reason_to_begin_anew() {
    let (_world, _feed, address) = begin(FeedSettings::default()).await;
    let mut watch = follow_by(Duration::from_secs(1), vec![endpoint(address)]);
    event_where(&mut watch, is_synced).await;
    let left = |it: &WatchEvent| {
        matches!(it, WatchEvent::Disconnected { lost: Lost::Frozen | Lost::Late, .. })
    };
    let lost = event_where(&mut watch, left).await;
    assert!(matches!(lost, WatchEvent::Disconnected { lost: Lost::Frozen, .. }), "{lost:?}");
}

/// While a store proves nothing, no new digest is made; the last one must not outlive what it counts.
#[tokio::test]
async fn a_digest_is_not_held_against_what_has_expired_since() {
    let (world, _feed, address) = begin(FeedSettings::default()).await;
    world.revoke().await;
    let mut watch = follow(vec![endpoint(address)]);
    event_where(&mut watch, is_synced).await;
    let mut frames = client(address).await.watch_revocations(request()).await.unwrap().into_inner();
    loop {
        match next(&mut frames).await.unwrap() {
            Frame::Synced(v1::Synced { digest: Some(_), .. })
            | Frame::Heartbeat(v1::Heartbeat { digest: Some(_), .. }) => break,
            _ => {}
        }
    }
    world.store.engine().freeze();
    world.clock.advance(Duration::from_secs(4 * 3600));
    let mut frames = client(address).await.watch_revocations(request()).await.unwrap().into_inner();
    loop {
        match next(&mut frames).await.unwrap() {
            Frame::Synced(synced) => {
                assert_eq!(synced.digest, None, "it counted what has expired since");
                break;
            }
            Frame::Start(_) | Frame::KeySet(_) | Frame::Snapshot(_) => {}
            other => panic!("{other:?}"),
        }
    }
    for _ in 0..20 {
        let event = timeout(LONG, watch.next()).await.expect("something happens");
        // A slow machine may be silent for three heartbeats.
        let other = |lost: &Lost| !matches!(lost, Lost::Silent);
        let gave_up = matches!(&event, WatchEvent::Disconnected { lost, .. } if other(lost));
        assert!(!gave_up, "{event:?}");
    }
    let mut young = follow(vec![endpoint(address)]);
    let event = timeout(LONG, async {
        loop {
            match young.next().await {
                WatchEvent::Connected { .. } | WatchEvent::KeySet(_) => {}
                other => return other,
            }
        }
    });
    let event = event.await.expect("in time");
    assert!(matches!(event, WatchEvent::Synced(_)), "{event:?}");
}

/// A stream that is never silent has no heartbeats: what has expired goes nevertheless.
#[tokio::test]
async fn a_busy_stream_drops_what_has_expired() {
    let (world, _feed, address) = begin(FeedSettings::default()).await;
    for _ in 0..50 {
        world.revoke().await;
    }
    let settings = WatchSettings {
        // None will come in time.
        heartbeat: Duration::from_secs(30),
        ..WatchSettings::new(vec![endpoint(address)])
    };
    let mut watch = Watch::new(settings, Arc::new(SeededEntropy::new(1)));
    event_where(&mut watch, is_synced).await;
    assert_eq!(watch.view().load().len(), 50);
    world.clock.advance(Duration::from_secs(4 * 3600));
    let shrunk = async {
        while watch.view().load().len() >= 50 {
            world.raise("ann").await;
            let event = watch.next().await;
            assert!(matches!(event, WatchEvent::Batch(..)), "{event:?}");
        }
    };
    timeout(LONG, shrunk).await.expect("it shrinks");
}

#[tokio::test]
async fn the_client_says_when_it_is_refused_and_goes_on_when_it_is_not() {
    let (world, _feed, address) = begin(FeedSettings::default()).await;
    world.revoke().await;
    let allowed = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = Arc::clone(&allowed);
    let settings = WatchSettings {
        authorization: Some(Arc::new(move || {
            let name = if flag.load(std::sync::atomic::Ordering::Relaxed) { "me" } else { NOBODY };
            name.parse().ok()
        })),
        ..WatchSettings::new(vec![endpoint(address)])
    };
    let mut watch = Watch::new(settings, Arc::new(SeededEntropy::new(1)));
    let refused = timeout(LONG, watch.next()).await.expect("an answer in time");
    assert!(matches!(refused, WatchEvent::Refused(Code::PermissionDenied, _)), "{refused:?}");
    allowed.store(true, std::sync::atomic::Ordering::Relaxed);
    event_where(&mut watch, is_synced).await;
}

/// Row c: k8s#65012. The connection answers at the level of TCP and of HTTP/2, and says nothing.
#[tokio::test]
async fn the_client_gives_up_a_stream_that_is_silent_for_three_heartbeats() {
    let (world, feed, address) = begin(FeedSettings::default()).await;
    let proxy = Proxy::to(address).await;
    let mut watch = follow(vec![endpoint(proxy.address)]);
    event_where(&mut watch, is_synced).await;
    proxy.mute(true);
    let lost = event_where(&mut watch, is_lost).await;
    assert!(matches!(lost, WatchEvent::Disconnected { lost: Lost::Silent, .. }), "{lost:?}");
    proxy.mute(false);
    world.revoke().await;
    let connected = |it: &WatchEvent| matches!(it, WatchEvent::Connected { .. });
    let event = event_where(&mut watch, connected).await;
    assert!(matches!(event, WatchEvent::Connected { resumed: true, .. }), "{event:?}");
    event_where(&mut watch, is_synced).await;
    assert_eq!(watch.cursor(), Some(feed.head()));
}

/// Who looks elsewhere in between, as in a `select!`, notices it as well.
#[tokio::test]
async fn a_silent_stream_is_given_up_by_a_client_who_waits_in_many_short_turns() {
    let (_world, _feed, address) = begin(FeedSettings::default()).await;
    let proxy = Proxy::to(address).await;
    let mut watch = follow(vec![endpoint(proxy.address)]);
    event_where(&mut watch, is_synced).await;
    proxy.mute(true);
    let lost = timeout(LONG, async {
        loop {
            match timeout(Duration::from_millis(20), watch.next()).await {
                Ok(event) if is_lost(&event) => return event,
                Ok(_) | Err(_) => {}
            }
        }
    });
    let lost = lost.await.expect("it is noticed in time");
    assert!(matches!(lost, WatchEvent::Disconnected { lost: Lost::Silent, .. }), "{lost:?}");
}
