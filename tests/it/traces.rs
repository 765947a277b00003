//! Spans on their way to a collector, which keeps what it gets.

use avouch::pb::v1 as pb;
use opentelemetry_proto::tonic::trace::v1::Span;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::Request;

use crate::crash::Identity;
use crate::harness::password_login;
use crate::process::{Cast, Process, identity};
use crate::support::collector::{Collector, attribute};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const OTHER_TRACE: &str = "11111111111111111111111111111111";

fn traced<T>(message: T, traceparent: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = traceparent.parse().expect("metadata");
    request.metadata_mut().insert("traceparent", value);
    let state = "vendor=a-thing-that-the-caller-should-not-have-sent";
    request.metadata_mut().insert("tracestate", state.parse().expect("metadata"));
    request
}

/// The program, and a collector that it sends its spans to.
struct Traced {
    collector: Collector,
    process: Process,
    server: Identity,
    cast: Cast,
    _home: TempDir,
}

impl Traced {
    async fn start() -> Self {
        let collector = Collector::default();
        let endpoint = collector.serve();
        let home = tempfile::tempdir().expect("a directory");
        let data = home.path().join("data");
        let mut process = Process::start(&data, &[("telemetry.otlp_endpoint", endpoint.as_str())]);
        let server = identity(&process.serving().await).await;
        Self { collector, process, server, cast: Cast::of(&data), _home: home }
    }
}

#[tokio::test]
async fn a_refresh_is_a_span_in_the_callers_trace_without_a_secret() {
    let Traced { collector, process, mut server, cast, _home } = Traced::start().await;
    let login = password_login(&cast.login, "ada", &cast.password);
    let first = server.authenticate(login).await.expect("in").into_inner().tokens.expect("tokens");
    let refresh = |token: &str| pb::RefreshRequest {
        client: Some(cast.login.clone()),
        refresh_token: token.to_owned(),
        ..Default::default()
    };
    let request = traced(refresh(&first.refresh_token), &format!("00-{TRACE}-{PARENT}-01"));
    let answer = server.refresh(request).await.expect("refreshed");
    let id = answer.metadata().get("x-request-id").expect("an id").to_str().expect("text");
    let id = id.to_owned();
    let second = answer.into_inner().tokens.expect("tokens");
    // A caller that says that it is not traced is not.
    let request = traced(refresh(&second.refresh_token), &format!("00-{OTHER_TRACE}-{PARENT}-00"));
    let third = server.refresh(request).await.expect("refreshed").into_inner().tokens;
    let third = third.expect("tokens");
    // And one that says nonsense begins a trace.
    let request = traced(refresh("avr1_nonsense-that-nobody-issued"), "nonsense");
    server.refresh(request).await.expect_err("never issued");
    process.terminate();
    let end = process.end().await;
    assert!(end.status.success(), "{end:?}");

    let spans = collector.spans();
    let calls: Vec<&Span> = spans
        .iter()
        .filter(|span| {
            !span.attributes.is_empty() && attribute(&span.attributes, "rpc.method").is_some()
        })
        .collect();
    let names: Vec<_> = calls.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["Authenticate", "Refresh", "Refresh"], "{spans:#?}");
    let span = calls[1];
    assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.into(), PARENT.into()));
    assert_eq!(attribute(&span.attributes, "rpc.system").as_deref(), Some("grpc"));
    assert_eq!(attribute(&span.attributes, "rpc.method").as_deref(), Some("Refresh"));
    assert_eq!(attribute(&span.attributes, "rpc.grpc.status_code").as_deref(), Some("0"));
    assert_eq!(attribute(&span.attributes, "avouch.request_id"), Some(id));
    assert_eq!(span.attributes.len(), 4, "{span:#?}");
    assert!(span.events.is_empty() && span.trace_state.is_empty(), "{span:#?}");
    assert!(span.end_time_unix_nano > span.start_time_unix_nano, "{span:#?}");
    let failed = calls[2];
    assert_eq!(attribute(&failed.attributes, "rpc.grpc.status_code").as_deref(), Some("16"));
    assert_ne!(hex(&failed.trace_id), TRACE);
    assert!(spans.iter().all(|span| hex(&span.trace_id) != OTHER_TRACE), "that one is not traced");

    let sent = collector.bytes();
    let secrets = [
        &cast.password,
        &cast.login.client_secret,
        &first.access_token,
        &first.refresh_token,
        &second.access_token,
        &second.refresh_token,
        &third.refresh_token,
        &"avr1_nonsense-that-nobody-issued".to_owned(),
        &"a-thing-that-the-caller".to_owned(),
    ];
    for secret in secrets {
        let seen = sent.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!seen, "{secret} is in a span");
    }
}

/// The parts of a call in the order in which they began: what they are, and what came of them.
fn parts(spans: &[Span], call: &Span) -> Vec<String> {
    let mut parts: Vec<&Span> =
        spans.iter().filter(|span| span.parent_span_id == call.span_id).collect();
    parts.sort_by_key(|span| span.start_time_unix_nano);
    let text = |span: &&Span| {
        assert_eq!(span.trace_id, call.trace_id, "{span:#?}");
        assert!(span.start_time_unix_nano >= call.start_time_unix_nano, "{span:#?}");
        assert!(span.end_time_unix_nano <= call.end_time_unix_nano, "{span:#?}");
        let known = ["db.operation.name", "avouch.outcome", "error.type"];
        assert!(span.attributes.iter().all(|it| known.contains(&it.key.as_str())), "{span:#?}");
        let told = known.iter().filter_map(|key| attribute(&span.attributes, key));
        [span.name.clone()].into_iter().chain(told).collect::<Vec<_>>().join(", ")
    };
    parts.iter().map(text).collect()
}

#[tokio::test]
async fn the_parts_of_a_call_are_spans_below_its_own() {
    let Traced { collector, process, mut server, cast, _home } = Traced::start().await;
    let login = password_login(&cast.login, "ada", &cast.password);
    let answer = server.authenticate(login).await.expect("in").into_inner();
    let tokens = answer.tokens.expect("tokens");
    let login = password_login(&cast.login, "ada", "not the password at all");
    server.authenticate(login).await.expect_err("wrong");
    let refresh = pb::RefreshRequest {
        client: Some(cast.login.clone()),
        refresh_token: tokens.refresh_token.clone(),
        ..Default::default()
    };
    server.refresh(refresh.clone()).await.expect("refreshed");
    server.refresh(refresh.clone()).await.expect("retried");
    let revoke = pb::RevokeRequest {
        client: Some(cast.login.clone()),
        target: Some(pb::revoke_request::Target::SessionId(tokens.session_id.clone())),
        wait: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
        ..Default::default()
    };
    server.revoke(revoke.clone()).await.expect("revoked");
    server.revoke(pb::RevokeRequest { wait: None, ..revoke }).await.expect("revoked before");
    server.refresh(refresh.clone()).await.expect_err("it is over");
    // Who says that a call is not traced gets no span of a part of it either.
    let request = traced(refresh, &format!("00-{OTHER_TRACE}-{PARENT}-00"));
    server.refresh(request).await.expect_err("it is over");
    process.terminate();
    let end = process.end().await;
    assert!(end.status.success(), "{end:?}");

    let spans = collector.spans();
    let calls = spans.iter().filter(|span| attribute(&span.attributes, "rpc.method").is_some());
    let seen: Vec<(&str, Vec<String>)> =
        calls.map(|call| (call.name.as_str(), parts(&spans, call))).collect();
    let expected = [
        (
            "Authenticate",
            vec![
                "store commit, begin_attempt, allowed",
                "password queue",
                "password hash",
                "store commit, open_session, open",
                "sign",
            ],
        ),
        (
            "Authenticate",
            vec!["store commit, begin_attempt, allowed", "password queue", "password hash"],
        ),
        ("Refresh", vec!["store commit, rotate, rotated", "sign"]),
        ("Refresh", vec!["store commit, rotate, retried", "sign"]),
        ("Revoke", vec!["store commit, revoke_session, revoked", "feed wait, applied"]),
        ("Revoke", vec!["store commit, revoke_session, already"]),
        ("Refresh", vec!["store commit, rotate, revoked"]),
    ];
    assert_eq!(seen.len(), expected.len(), "{seen:#?}");
    for (seen, expected) in seen.iter().zip(&expected) {
        assert_eq!((seen.0, seen.1.iter().map(String::as_str).collect()), *expected);
    }
    // Nothing that names anybody.
    let sent = collector.bytes();
    for word in ["usr_", &*tokens.session_id, &*cast.login.client_id] {
        let seen = sent.windows(word.len()).any(|window| window == word.as_bytes());
        assert!(!seen, "{word} is in a span");
    }
}

#[tokio::test]
async fn a_collector_that_is_not_there_holds_up_nobody() {
    without_a_collector(false).await;
}

#[tokio::test]
async fn a_collector_that_says_nothing_holds_up_nobody() {
    without_a_collector(true).await;
}

async fn without_a_collector(connects: bool) {
    let home = tempfile::tempdir().expect("a directory");
    let data = home.path().join("data");
    // Connections wait in its backlog for good, or find that nobody listens any more.
    let port = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let endpoint = format!("http://{}", port.local_addr().expect("an address"));
    let _kept = connects.then_some(port);
    let mut process = Process::start(&data, &[("telemetry.otlp_endpoint", endpoint.as_str())]);
    let addresses = process.serving().await;
    let cast = Cast::of(&data);
    let login = password_login(&cast.login, "ada", &cast.password);
    identity(&addresses).await.authenticate(login).await.expect("in");
    process.terminate();
    let end = process.end().await;
    assert!(end.status.success(), "{end:?}");
}

#[tokio::test]
async fn an_endpoint_that_makes_no_sense_is_refused() {
    let home = tempfile::tempdir().expect("a directory");
    for (key, value) in [
        ("telemetry.otlp_endpoint", "https://collector:4317"),
        ("telemetry.otlp_endpoint", "collector:4317"),
        ("telemetry.otlp_endpoint", "http://collector:4317/v1/traces"),
        ("telemetry.sample_percent", "101"),
    ] {
        let mut process = Process::start(&home.path().join("data"), &[(key, value)]);
        let end = process.outcome().await.expect_err("it does not start");
        assert_eq!(end.status.code(), Some(64), "{end:?}");
        assert!(end.stderr.contains(key), "{end:?}");
    }
}
