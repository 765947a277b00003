//! Peers that take their time, test 81 of the security rules.

use std::time::Duration;

use avouch::listen::settings::{ListenSettings, Protocol};
use h2::client::Builder;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::sleep;

use super::support::*;

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let server = Server::plain();
    closed(&mut server.connect().await).await;
    server.shows(|seen| seen.first_bytes_timeouts == 1 && seen.active == 0).await;
    server.serves_a_bystander().await;
}

#[tokio::test]
async fn a_preface_without_settings_is_not_enough() {
    let server = Server::plain();
    let mut peer = server.connect().await;
    peer.write_all(PREFACE).await.expect("sent");
    peer.write_all(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3]).await.expect("sent");
    closed(&mut peer).await;
    server.shows(|seen| seen.first_bytes_timeouts == 1 && seen.active == 0).await;
}

#[tokio::test]
async fn a_dribbled_preface_does_not_buy_time() {
    let server = Server::plain();
    let mut peer = server.connect().await;
    for byte in PREFACE {
        if peer.write_all(&[*byte]).await.is_err() {
            break;
        }
        sleep(Duration::from_millis(40)).await;
    }
    closed(&mut peer).await;
    server.shows(|seen| seen.first_bytes_timeouts == 1 && seen.active == 0).await;
}

#[tokio::test]
async fn a_slow_http1_head_is_closed_and_a_whole_one_served() {
    for protocol in [Protocol::Http1, Protocol::Auto] {
        let server = Server::start(ListenSettings { protocol, ..quick() }, None);
        let mut slow = server.connect().await;
        slow.write_all(b"GET /peer HTTP/1.1\r\nhost: a\r\n").await.expect("sent");
        let mut good = server.connect().await;
        good.write_all(b"GET /peer HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("sent");
        let mut answer = [0; 15];
        soon(good.read_exact(&mut answer)).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        closed(&mut slow).await;
        // Nor may a connection be kept for a second request that does not come.
        closed(&mut good).await;
        server.shows(|seen| seen.active == 0).await;
    }
}

#[tokio::test]
async fn auto_speaks_http2_too() {
    let server = Server::start(ListenSettings { protocol: Protocol::Auto, ..quick() }, None);
    server.serves_a_bystander().await;
}

#[tokio::test]
async fn a_body_that_does_not_arrive_ends_its_call_only() {
    let server = Server::plain();
    let mut client = Client::over(server.connect().await).await;
    let (silent, _keep) = soon(client.open("/grpc.health.v1.Health/Check")).await.expect("sent");
    let (dripping, mut drip) =
        soon(client.open("/grpc.health.v1.Health/Check")).await.expect("sent");
    let dripper = tokio::spawn(async move {
        for byte in [0_u8, 0, 0, 1, 0].iter().cycle() {
            if drip.send_data(vec![*byte].into(), false).is_err() {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
    });
    for response in [silent, dripping] {
        let response = soon(response).await.expect("a response");
        assert_eq!(grpc_status(&response), Some("4"));
        // Not the deadline of the call, which comes later.
        let message = response.headers()["grpc-message"].to_str().expect("ASCII");
        assert!(message.contains("did%20not%20arrive"), "{message}");
        assert!(response.headers().contains_key("grpc-status-details-bin"));
    }
    dripper.abort();
    assert_eq!(
        soon(client.post("/echo", b"same connection")).await.as_deref(),
        Ok("same connection")
    );
}

#[tokio::test]
async fn a_peer_that_gives_no_window_is_closed() {
    let server = Server::plain();
    for path in ["/endless", "/idle"] {
        let before = server.stats().stalled;
        let builder = Builder::new().initial_window_size(0).clone();
        let mut client = Client::with(server.connect().await, &builder).await;
        let (response, mut send) = soon(client.open(path)).await.expect("sent");
        send.send_data(Vec::new().into(), true).expect("sent");
        let _response = soon(response).await.expect("the head needs no window");
        let _ended = soon(client.connection).await.expect("no panic");
        server.shows(|seen| seen.stalled == before + 1 && seen.active == 0).await;
    }
    server.serves_a_bystander().await;
}

#[tokio::test]
async fn a_peer_that_never_reads_its_socket_is_closed() {
    let server = Server::plain();
    // All the window that there can be: only the socket holds the output back.
    let mut peer = Raw::open(&server, &[0, 4, 0x7f, 0xff, 0xff, 0xff]).await;
    peer.send(&frame(8, 0, 0, &[0x7f, 0, 0, 0])).await;
    peer.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &post_block("/endless"))).await;
    server.shows(|seen| seen.stalled == 1 && seen.active == 0).await;
    server.serves_a_bystander().await;
}

#[tokio::test]
async fn a_stream_that_waits_for_its_handler_is_no_stall() {
    let server = Server::plain();
    let mut client = Client::over(server.connect().await).await;
    let (response, mut send) = soon(client.open("/idle")).await.expect("sent");
    send.send_data(Vec::new().into(), true).expect("sent");
    let mut body = soon(response).await.expect("a head").into_body();
    assert_eq!(soon(body.data()).await.expect("data").expect("data"), "one");
    sleep(2 * quick().write_stall_timeout).await;
    assert_eq!(soon(client.post("/echo", b"still here")).await.as_deref(), Ok("still here"));
    assert_eq!(server.stats().stalled, 0);
}
