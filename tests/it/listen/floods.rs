//! Peers that send too much: tests 76 to 79 and 82 of the security rules.

use std::collections::HashSet;

use avouch::listen::settings::ListenSettings;

use super::support::*;
use crate::alone::alone;

const ENHANCE_YOUR_CALM: u32 = 11;
const REFUSED_STREAM: [u8; 4] = 7_u32.to_be_bytes();

#[tokio::test]
async fn the_101st_stream_is_refused_and_the_limit_announced() {
    let server = Server::plain();
    let mut peer = Raw::open(&server, &[]).await;
    let settings = peer.next_of(SETTINGS).await.expect("settings");
    let announced: HashSet<&[u8]> = settings.payload.chunks(6).collect();
    assert!(announced.contains(&[0, 3, 0, 0, 0, 100][..]), "streams: {announced:?}");
    assert!(announced.contains(&[0, 6, 0, 0, 0x40, 0][..]), "header list: {announced:?}");
    let block = post_block("/hold");
    for stream in (1..).step_by(2).take(101) {
        peer.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)).await;
    }
    let refused = peer.next_of(RST_STREAM).await.expect("a refusal");
    assert_eq!((refused.stream, &refused.payload[..]), (201, &REFUSED_STREAM[..]));
    server.serves_a_bystander().await;
}

#[tokio::test]
async fn rapid_reset_ends_the_connection_and_nobody_elses() {
    let server = Server::plain();
    let mut peer = Raw::open(&server, &[]).await;
    let block = post_block("/hold");
    let mut flood = Vec::new();
    for stream in (1..).step_by(2).take(5000) {
        flood.extend(frame(HEADERS, END_HEADERS, stream, &block));
        flood.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
    }
    peer.send(&flood).await;
    assert_eq!(peer.until_closed().await, Some(ENHANCE_YOUR_CALM));
    server.serves_a_bystander().await;
    server.shows(|seen| seen.active == 0).await;
}

#[tokio::test]
async fn a_continuation_flood_ends_the_connection() {
    let server = Server::plain();
    let mut peer = Raw::open(&server, &[]).await;
    let mut flood = frame(HEADERS, END_STREAM, 1, &post_block("/echo"));
    for _ in 0..10_000 {
        flood.extend(frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b"));
    }
    peer.send(&flood).await;
    assert_eq!(peer.until_closed().await, Some(ENHANCE_YOUR_CALM));
    server.serves_a_bystander().await;
}

/// A block with one entry of 4000 bytes for the dynamic table, which it then names again and again.
fn bomb(times: usize) -> Vec<u8> {
    let mut block = post_block("/echo");
    block.extend(b"\x40\x01a\x7f\xa1\x1e");
    block.extend([b'b'; 4000]);
    block.extend(vec![0xbe; times]);
    frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)
}

#[tokio::test]
async fn headers_over_the_limit_end_their_stream_and_far_over_it_the_connection() {
    let server = Server::plain();
    let mut peer = Raw::open(&server, &[]).await;
    peer.send(&bomb(5)).await;
    let answer = loop {
        let frame = peer.next().await.expect("an answer, not the end of the connection");
        if frame.stream == 1 {
            break frame;
        }
    };
    // 431, or a reset.
    assert!(answer.kind == HEADERS || answer.kind == RST_STREAM, "{answer:?}");
    peer.send(&frame(PING, 0, 0, &[7; 8])).await;
    let pong = peer.next_of(PING).await.expect("the connection lives");
    assert_eq!(pong.payload, [7; 8]);

    let mut worse = Raw::open(&server, &[]).await;
    // Stands for 20 MB.
    worse.send(&bomb(5000)).await;
    assert!(worse.until_closed().await.is_some(), "a GOAWAY with a reason");
    server.serves_a_bystander().await;
}

#[tokio::test]
async fn a_message_that_lies_about_its_length_takes_no_memory() {
    if !alone("listen::floods::a_message_that_lies_about_its_length_takes_no_memory") {
        return;
    }
    // With the deadlines of production: 2,000 calls may take a slow machine a while.
    let server = Server::start(ListenSettings::default(), None);
    let before = resident_bytes();
    let mut peers = Vec::new();
    for _ in 0..20 {
        let mut client = Client::over(server.connect().await).await;
        let mut calls = Vec::new();
        for stream in 0..100_u32 {
            let length = if stream % 2 == 0 { 4 << 20 } else { (4 << 20) + 1_u32 };
            let (response, mut send) =
                soon(client.open("/grpc.health.v1.Health/Check")).await.expect("sent");
            let prefix = [&[0][..], &length.to_be_bytes()].concat();
            send.send_data(prefix.into(), false).expect("sent");
            calls.push((response, send));
        }
        peers.push((client, calls));
    }
    for (_, calls) in &mut peers {
        for (response, _) in calls {
            // OUT_OF_RANGE, at once: the announcement alone is over the limit.
            assert_eq!(grpc_status(&soon(response).await.expect("a response")), Some("11"));
        }
    }
    let growth = resident_bytes().saturating_sub(before);
    assert!(growth < 64 << 20, "grew by {growth} bytes");
}

#[tokio::test]
async fn empty_frames_end_the_connection() {
    let server = Server::plain();
    let mut peer = Raw::open(&server, &[]).await;
    let mut flood = frame(HEADERS, END_HEADERS, 1, &post_block("/hold"));
    for _ in 0..20_000 {
        flood.extend(frame(DATA, 0, 1, &[]));
    }
    peer.send(&flood).await;
    assert_eq!(peer.until_closed().await, Some(ENHANCE_YOUR_CALM));
    server.serves_a_bystander().await;
}

#[tokio::test]
async fn pings_and_settings_whose_answers_nobody_reads_end_the_connection() {
    if !alone("listen::floods::pings_and_settings_whose_answers_nobody_reads_end_the_connection") {
        return;
    }
    let server = Server::plain();
    let before = resident_bytes();
    for (kind, payload) in [(PING, &[0; 8][..]), (SETTINGS, &[0, 4, 0, 0, 0xff, 0xff])] {
        let stalled = server.stats().stalled;
        let flood = frame(kind, 0, 0, payload).repeat(1000);
        let mut peer = Raw::open(&server, &[]).await;
        // Writes until the server, which cannot get rid of its answers, reads no more.
        while peer.send(&flood).await {}
        server.shows(|seen| seen.stalled > stalled && seen.active == 0).await;
    }
    let growth = resident_bytes().saturating_sub(before);
    assert!(growth < 64 << 20, "grew by {growth} bytes");
    server.serves_a_bystander().await;
}

#[tokio::test]
async fn one_address_gets_its_share_and_all_together_theirs() {
    for (max_connections, max_connections_per_peer) in [(3, 100), (100, 3)] {
        let settings = ListenSettings { max_connections, max_connections_per_peer, ..quick() };
        let server = Server::start(settings, None);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(Client::over(server.connect().await).await);
        }
        closed(&mut server.connect().await).await;
        let seen = server.stats();
        assert_eq!((seen.accepted, seen.refused_global + seen.refused_peer), (3, 1));
        assert_eq!(seen.refused_peer, u64::from(max_connections_per_peer == 3));
        for client in held {
            client.connection.abort();
        }
        server.shows(|seen| seen.active == 0).await;
        server.serves_a_bystander().await;
    }
}
