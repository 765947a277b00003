//! How connections and listeners end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use avouch::domain::entropy::SeededEntropy;
use avouch::listen::listener::{DrainSummary, Listener};
use avouch::listen::settings::ListenSettings;
use tokio::net::TcpStream;

use super::support::*;

#[tokio::test]
async fn an_old_connection_is_asked_to_go_and_then_closed() {
    let settings = ListenSettings {
        max_connection_age: Duration::from_millis(300),
        max_connection_age_grace: Duration::from_millis(300),
        ..quick()
    };
    let server = Server::start(settings, None);
    let mut peer = Raw::open(&server, &[]).await;
    peer.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &post_block("/hold"))).await;
    let goaway = peer.next_of(GOAWAY).await.expect("asked to go");
    assert_eq!(goaway.payload[4..8], [0; 4], "no error");
    assert_eq!(server.stats().aged, 1);
    // The held call keeps the connection busy, so the grace has to end it.
    peer.until_closed().await;
    server.shows(|seen| seen.active == 0).await;
    server.serves_a_bystander().await;
}

#[tokio::test]
async fn a_connection_that_is_kept_open_outlives_its_grace_but_not_every_bound() {
    const KEPT: Duration = Duration::from_millis(1_500);
    let settings = ListenSettings {
        max_connection_age: Duration::from_millis(100),
        max_connection_age_grace: Duration::from_millis(100),
        max_kept_open: KEPT,
        ..quick()
    };
    let server = Server::start(settings, None);
    let mut peer = Raw::open(&server, &[]).await;
    peer.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &post_block("/keep"))).await;
    peer.next_of(GOAWAY).await.expect("asked to go");
    let asked = Instant::now();
    peer.until_closed().await;
    // The peer learns of the GOAWAY a little later than the server begins to count.
    assert!(asked.elapsed() > KEPT / 2, "{:?}", asked.elapsed());
    server.shows(|seen| seen.active == 0).await;
}

#[tokio::test]
async fn a_handler_can_close_its_connection() {
    let server = Server::plain();
    let mut client = Client::over(server.connect().await).await;
    assert!(soon(client.post("/close", b"")).await.is_err());
    server.shows(|seen| seen.active == 0).await;
}

#[tokio::test]
async fn a_panic_costs_its_own_call_only() {
    let server = Server::plain();
    let mut client = Client::over(server.connect().await).await;
    let (response, mut send) = soon(client.open("/panic")).await.expect("sent");
    send.send_data(Vec::new().into(), true).expect("sent");
    assert_eq!(grpc_status(&soon(response).await.expect("a response")), Some("13"));
    assert_eq!(server.stats().handler_panics, 1);
    assert_eq!(soon(client.post("/echo", b"alive")).await.as_deref(), Ok("alive"));
}

#[tokio::test]
async fn a_drain_lets_calls_finish() {
    let server = Server::plain();
    let mut client = Client::over(server.connect().await).await;
    let (response, mut send) = soon(client.open("/echo")).await.expect("sent");
    send.send_data(b"half".as_slice().into(), false).expect("sent");
    server.shows(|seen| seen.active == 1).await;
    // Once the server answered a PING it has also seen the request before it.
    assert_eq!(soon(client.post("/echo", b"first")).await.as_deref(), Ok("first"));
    server.shutdown.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    send.send_data(b" whole".as_slice().into(), true).expect("sent");
    let mut body = soon(response).await.expect("an answer").into_body();
    assert_eq!(soon(body.data()).await.expect("data").expect("data"), "half whole");
    drop((body, send, client.requests));
    assert!(TcpStream::connect(server.address).await.is_err(), "nobody listens any more");
    let summary = soon(server.task).await.expect("no panic");
    assert_eq!(summary, DrainSummary { drained: 1, aborted: 0 });
}

#[tokio::test]
async fn a_drain_sends_idle_peers_away_at_once() {
    let server = Server::plain();
    let mut client = Client::over(server.connect().await).await;
    assert_eq!(soon(client.post("/echo", b"seen")).await.as_deref(), Ok("seen"));
    server.shutdown.cancel();
    let summary = soon(server.task).await.expect("no panic");
    assert_eq!(summary, DrainSummary { drained: 1, aborted: 0 });
    assert!(soon(client.post("/echo", b"late")).await.is_err());
}

#[tokio::test]
async fn a_drain_cuts_what_is_left_at_its_deadline() {
    let server = Server::plain();
    let mut holding = Client::over(server.connect().await).await;
    let (response, _send) = soon(holding.open("/hold")).await.expect("sent");
    assert_eq!(soon(holding.post("/echo", b"seen")).await.as_deref(), Ok("seen"));
    let _silent = server.connect().await;
    server.shows(|seen| seen.active == 2).await;
    server.shutdown.cancel();
    // The silent one has no call to finish and goes at once; the other at the deadline.
    let summary = soon(server.task).await.expect("no panic");
    assert_eq!(summary, DrainSummary { drained: 1, aborted: 1 });
    assert!(soon(response).await.is_err());
}

#[tokio::test]
async fn a_port_in_use_is_said_so() {
    let server = Server::plain();
    let jitter = Arc::new(SeededEntropy::new(1));
    let error = Listener::bind(server.address, ListenSettings::default(), None, jitter)
        .expect_err("in use")
        .to_string();
    assert!(error.contains(&server.address.to_string()), "{error}");
    assert!(error.contains("another process listens there"), "{error}");
}
