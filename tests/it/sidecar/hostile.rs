//! Questions that nobody should ask. Each is answered, and the answer is no: an error of the call is what
//! a proxy with `failure_mode_allow` takes for leave to pass.

use std::sync::Arc;

use prost::Message as _;

use super::envoy::shop;
use super::rig::{
    AttributeContext, CheckRequest, RULES, Request, Said, Sidecar, forwarded, question,
};

#[tokio::test]
async fn no_question_makes_the_call_fail() {
    let (_server, sidecar, _, token) = shop().await;
    let no = Said::denied(403, "");
    let good = question("GET", "/public", &[]).encode_to_vec();
    assert!(sidecar.check_bytes(good.clone()).await.passes(), "the control");
    let empty = CheckRequest { attributes: None }.encode_to_vec();
    let without_request =
        CheckRequest { attributes: Some(AttributeContext::default()) }.encode_to_vec();
    let request = Some(Request { http: None });
    let without_http =
        CheckRequest { attributes: Some(AttributeContext { request, ..Default::default() }) };
    let nothing = question("", "", &[]).encode_to_vec();
    for (what, bytes) in [
        ("nothing", empty),
        ("no request", without_request),
        ("no http", without_http.encode_to_vec()),
        ("no method and no path", nothing),
        ("no protobuf", b"\xff\xff\xff\xff".to_vec()),
        ("a wrong wire type", vec![0x08, 0x01]),
        ("a field that is cut", good[..good.len() - 1].to_vec()),
        ("a length without end", vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        ("CONNECT", question("CONNECT", "orders.test:443", &[]).encode_to_vec()),
        ("a method that is none", question("GET /public", "/public", &[]).encode_to_vec()),
    ] {
        assert_eq!(sidecar.check_bytes(bytes).await, no, "{what}");
    }
    // Bytes that are no text, which a decoder of strings would fail on.
    for (field, bad) in [("cookie", "c\u{fffd}"), ("\u{fffd}", "x"), ("host", "\u{fffd}")] {
        let bytes = question("GET", "/public", &[(field, bad)]).encode_to_vec();
        let bytes = replace(&bytes, "\u{fffd}".as_bytes(), b"\xff\xfe\x80");
        assert_eq!(sidecar.check_bytes(bytes).await, no, "{field}");
    }
    for (method, path) in [("GET", "/public/\u{fffd}"), ("G\u{fffd}T", "/public")] {
        let bytes = question(method, path, &[]).encode_to_vec();
        let bytes = replace(&bytes, "\u{fffd}".as_bytes(), b"\xff\xfe\x80");
        assert_eq!(sidecar.check_bytes(bytes).await, no, "{path}");
    }
    let many: Vec<(String, String)> = (0..1000).map(|n| (format!("x-{n}"), "v".into())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(sidecar.check("GET", "/public", &many).await, no);
    for bytes in [100_000, 900_000] {
        let long = "v".repeat(bytes);
        assert!(sidecar.check("GET", "/public", &[("x-long", &long)]).await.passes(), "{bytes}");
    }
    for bytes in [1024 * 1024, 3 * 1024 * 1024, 8 * 1024 * 1024] {
        let long = "v".repeat(bytes);
        assert_eq!(sidecar.check("GET", "/public", &[("x-long", &long)]).await, no, "{bytes}");
    }
    for length in [8 * 1024 + 1, 60_000] {
        let long = "A".repeat(length);
        assert_eq!(sidecar.check_token("GET", "/orders", &long).await, Said::invalid_token());
    }
    let long = format!("/public/{}", "a".repeat(9000));
    assert_eq!(sidecar.check("GET", &long, &[]).await, no);
    let (_, metrics) = sidecar.ops("/metrics").await;
    for reason in ["malformed", "too_large", "path"] {
        let line = format!("entry=\"ext_authz\",answer=\"deny\",reason=\"{reason}\"}} ");
        let count = metrics.lines().find_map(|l| l.split_once(&line)).expect("a line").1;
        assert!(count.parse::<u64>().expect("a number") >= 1, "{reason}: {count}");
    }
    assert!(sidecar.check_token("GET", "/orders", &token).await.passes());
}

fn replace(bytes: &[u8], what: &[u8], with: &[u8]) -> Vec<u8> {
    assert_eq!(what.len(), with.len());
    let mut bytes = bytes.to_vec();
    let mut found = false;
    while let Some(at) = bytes.windows(what.len()).position(|window| window == what) {
        bytes[at..at + what.len()].copy_from_slice(with);
        found = true;
    }
    assert!(found);
    bytes
}

/// What an attacker writes in the hope that the rule for `/public` is taken, and the upstream or the proxy
/// reads another path.
const CONFUSING: [&str; 46] = [
    "/public/../orders",
    "/public/..",
    "/public/.",
    "/public/./x",
    "/public//orders",
    "//public",
    "///",
    "/public/..;/orders",
    "/public;x/../orders",
    "/public;",
    "/public%2f..%2forders",
    "/public/%2e%2e/orders",
    "/public/%2E%2E/orders",
    "/public/.%2e/orders",
    "/public/%2e./orders",
    "/public/..%2forders",
    "/public/..%5corders",
    "/public\\..\\orders",
    "/public/\\../orders",
    "/public/%5c..",
    "/public/%252e%252e/orders",
    "/public/..%252forders",
    "/public/%00",
    "/public/x%00.png",
    "/public%0d%0ax:y",
    "/public/\u{7f}",
    "/public/\t",
    "/public/ x",
    "/public/%",
    "/public/%4",
    "/public/%zz",
    "/public/%u002e",
    "/%70ublic",
    "/public/%61",
    "/public/...",
    "/public/\u{ff0e}\u{ff0e}/orders",
    "/public/%c0%ae%c0%ae/orders",
    "http://orders.test/public",
    "https://orders.test/public",
    "orders.test:443",
    "*",
    "public",
    "",
    "/public#",
    "/public/#/../orders",
    "?/public",
];

#[tokio::test]
async fn a_path_that_can_be_read_in_two_ways_does_not_pass() {
    let (_server, sidecar, _, token) = shop().await;
    let no = Said::denied(403, "");
    for path in CONFUSING {
        assert_eq!(sidecar.check("GET", path, &[]).await, no, "{path:?}");
        // Nor with a token, nor behind a query that holds something fine.
        assert_eq!(sidecar.check_token("GET", path, &token).await, no, "{path:?}");
        let query = format!("{path}?/public");
        assert_eq!(sidecar.check("GET", &query, &[]).await, no, "{query:?}");
        if path.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
            let (status, _) = sidecar.ask("/auth/forwarded", &forwarded("GET", path, None)).await;
            assert_eq!(status, 403, "{path:?}");
        }
    }
    // What only looks strange.
    for path in [
        "/public",
        "/public/",
        "/public/a..b",
        "/public/.well-known",
        "/public?../../%2e",
        "/public/caf%C3%A9",
    ] {
        assert!(sidecar.check("GET", path, &[]).await.passes(), "{path}");
    }
    // Case tells paths apart, here and in the upstream; what is not public by its letters is not.
    for path in ["/Public", "/PUBLIC/x", "/publicx", "/public.json"] {
        assert_eq!(sidecar.check("GET", path, &[]).await, no, "{path}");
    }
}

#[tokio::test]
async fn many_ask_at_once_and_each_hears_its_own_answer() {
    let (server, _, _, token) = shop().await;
    // Over TCP, for once.
    let client = server.powerful("another").await;
    let loopback = [("sidecar.ext_authz", "127.0.0.1:0")];
    let sidecar = Sidecar::start(server.grpc, client, RULES, &loopback).await;
    sidecar.verifier.synced().await;
    let (sidecar, token) = (Arc::new(sidecar), Arc::new(token));
    let mut asking = tokio::task::JoinSet::new();
    for n in 0..600 {
        let (sidecar, token) = (Arc::clone(&sidecar), Arc::clone(&token));
        asking.spawn(async move {
            match n % 3 {
                0 => assert!(sidecar.check_token("GET", "/orders", &token).await.passes()),
                1 => assert_eq!(
                    sidecar.check_token("GET", "/orders", "a.b.c").await,
                    Said::invalid_token()
                ),
                _ => assert_eq!(sidecar.check("GET", "/nowhere", &[]).await, Said::denied(403, "")),
            }
        });
    }
    while let Some(ended) = asking.join_next().await {
        ended.expect("its own answer");
    }
}
