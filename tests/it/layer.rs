//! The tower layer in front of a tonic service and an axum one, on sockets, with a real avouch behind
//! the verifier.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use avouch::domain::scope::Names;
use avouch::layer::VerifyLayer;
use avouch::pb::v1 as pb;
use avouch::verifier::{Policy, Requirement, VerifiedToken};
use axum::body::Body;
use axum::routing::{get, post};
use axum::{Extension, Router};
use http_body_util::BodyExt as _;
use pb::revoke_request::Target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{bearer, connect, reason};
use crate::support::proxy::Proxy;
use crate::verifier::{LONG, Scene, until, until_stale};

fn requirement(scope: &[&str]) -> Requirement {
    let names = |names: &[&str]| Names::new(names).expect("names");
    Requirement { audience: names(&["orders"]), scope: names(scope) }
}

/// A gRPC health service and some HTTP routes, all behind the layer. `uploading` is told when an upload
/// has begun.
async fn serve(layer: VerifyLayer, uploading: Arc<Notify>) -> SocketAddr {
    let (_reporter, health) = tonic_health::server::health_reporter();
    let who = |Extension(token): Extension<Arc<VerifiedToken>>| async move {
        token.claims.subject.to_string()
    };
    let live = || async {
        let first = futures_util::stream::once(async { Ok::<_, Infallible>("first\n") });
        let rest = futures_util::stream::pending();
        Body::from_stream(futures_util::StreamExt::chain(first, rest))
    };
    let endless = || async {
        let chunk = bytes::Bytes::from_static(&[b'x'; 16 * 1024]);
        Body::from_stream(futures_util::stream::repeat_with(move || {
            Ok::<_, Infallible>(chunk.clone())
        }))
    };
    let upload = move |body: Body| async move {
        uploading.notify_one();
        body.collect().await.map(|body| body.to_bytes().len().to_string()).unwrap_or_default()
    };
    let routes = tonic::service::Routes::new(health)
        .into_axum_router()
        .merge(
            Router::new()
                .route("/who", get(who))
                .route("/live", get(live))
                .route("/endless", get(endless))
                .route("/upload", post(upload)),
        )
        .layer(layer);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, routes).await });
    address
}

/// A server, a verifier, and a protected service.
struct Stage {
    scene: Scene,
    service: SocketAddr,
    verifier: avouch::verifier::Verifier,
    uploading: Arc<Notify>,
}

impl Stage {
    async fn new(scope: &[&str]) -> Self {
        let scene = Scene::new().await;
        let verifier = scene.verifier(scene.settings(scene.server.grpc)).await;
        let layer = VerifyLayer::new(verifier.clone(), requirement(scope));
        let uploading = Arc::new(Notify::new());
        let service = serve(layer, Arc::clone(&uploading)).await;
        Self { scene, service, verifier, uploading }
    }

    async fn check(&self, authorization: Option<&str>) -> Result<(), Status> {
        let mut request = Request::new(HealthCheckRequest::default());
        if let Some(value) = authorization {
            request.metadata_mut().insert("authorization", value.parse().expect("metadata"));
        }
        HealthClient::new(connect(self.service).await).check(request).await.map(drop)
    }

    /// The head and the beginning of the body of an answer to GET; whatever had come when it ended.
    async fn get(&self, path: &str, authorization: Option<&str>) -> String {
        let mut stream =
            send(self.service, "GET", path, authorization, "connection: close\r\n").await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }
}

async fn send(
    to: SocketAddr,
    method: &str,
    path: &str,
    authorization: Option<&str>,
    headers: &str,
) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.expect("a connection");
    let authorization =
        authorization.map(|it| format!("authorization: {it}\r\n")).unwrap_or_default();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: orders\r\n{authorization}{headers}\r\n");
    stream.write_all(head.as_bytes()).await.expect("it is sent");
    stream
}

fn with(token: &str) -> String {
    format!("Bearer {token}")
}

#[tokio::test]
async fn a_good_token_gets_through_and_the_service_sees_whose_it_is() {
    let stage = Stage::new(&["read"]).await;
    let ada = stage.scene.login("ada").await;
    stage.check(Some(&with(&ada.access_token))).await.expect("good");
    let answer = stage.get("/who", Some(&with(&ada.access_token))).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with(&ada.subject), "{answer}");
}

#[tokio::test]
async fn every_refusal_has_its_own_words_in_grpc_and_in_http() {
    let stage = Stage::new(&["read", "admin"]).await;
    let scene = &stage.scene;
    let narrow = scene.login("ada").await.access_token;
    let elsewhere = scene.server.own_token(&scene.operator).await;
    let revoked = scene.login("ben").await.access_token;
    scene.revoke(&stage.verifier, Target::Token(revoked.clone())).await;
    let invalid = "bearer error=\"invalid_token\"";
    for (what, authorization, code, why, http, challenge) in [
        ("nothing", None, Code::Unauthenticated, "TOKEN_MISSING", 401, "bearer"),
        (
            "a password",
            Some("Basic YTpi".to_owned()),
            Code::Unauthenticated,
            "TOKEN_MISSING",
            401,
            "bearer",
        ),
        (
            "two",
            Some("Bearer a, Bearer b".to_owned()),
            Code::Unauthenticated,
            "TOKEN_NOT_ACCEPTED",
            401,
            invalid,
        ),
        ("rubbish", Some(with("a.b.c")), Code::Unauthenticated, "TOKEN_NOT_ACCEPTED", 401, invalid),
        (
            "revoked",
            Some(with(&revoked)),
            Code::Unauthenticated,
            "TOKEN_NOT_ACCEPTED",
            401,
            invalid,
        ),
        (
            "of another audience",
            Some(with(&elsewhere)),
            Code::Unauthenticated,
            "TOKEN_NOT_ACCEPTED",
            401,
            invalid,
        ),
        (
            "too narrow",
            Some(with(&narrow)),
            Code::PermissionDenied,
            "INSUFFICIENT_SCOPE",
            403,
            "bearer error=\"insufficient_scope\", scope=\"admin read\"",
        ),
    ] {
        let status = stage.check(authorization.as_deref()).await.expect_err(what);
        assert_eq!((status.code(), reason(&status).as_str()), (code, why), "{what}");
        let answer = stage.get("/who", authorization.as_deref()).await.to_ascii_lowercase();
        assert!(answer.starts_with(&format!("http/1.1 {http}")), "{what}: {answer}");
        assert!(answer.contains(&format!("www-authenticate: {challenge}\r\n")), "{what}: {answer}");
        assert!(!answer.contains("ada"), "{what}: {answer}");
    }
}

#[tokio::test]
async fn what_nobody_can_judge_is_unavailable_and_not_the_callers_fault() {
    let scene = Scene::new().await;
    let proxy = Proxy::to(scene.server.grpc).await;
    let verifier = scene.verifier(scene.impatient(proxy.address)).await;
    let limit = Duration::from_millis(1500);
    let layer = VerifyLayer::new(verifier.clone(), requirement(&[]));
    let closed = serve(layer.clone().with_policy(Policy::Closed, limit), Arc::default()).await;
    let open = serve(layer.with_policy(Policy::Open, limit), Arc::default()).await;
    let token = scene.login("ada").await.access_token;
    proxy.mute(true);
    until_stale(&verifier, &token).await;
    let request = || bearer(HealthCheckRequest::default(), &token);
    let status = HealthClient::new(connect(closed).await).check(request()).await;
    let status = status.expect_err("closed");
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unavailable, "REVOCATIONS_UNKNOWN")
    );
    let mut stream =
        send(closed, "GET", "/who", Some(&with(&token)), "connection: close\r\n").await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
    assert!(!answer.contains("www-authenticate"), "{answer}");
    HealthClient::new(connect(open).await).check(request()).await.expect("open");
}

#[tokio::test]
async fn an_open_stream_ends_when_its_session_is_revoked() {
    let stage = Stage::new(&[]).await;
    let scene = &stage.scene;
    let ada = scene.login("ada").await;
    let ben = scene.login("ben").await;
    let mut client = HealthClient::new(connect(stage.service).await);
    let mut open = async |token: &str| {
        let request = bearer(HealthCheckRequest::default(), token);
        let mut stream = client.watch(request).await.expect("it opens").into_inner();
        stream.message().await.expect("a message").expect("a message");
        stream
    };
    let mut hers = open(&ada.access_token).await;
    let mut his = open(&ben.access_token).await;
    let mut text = send(stage.service, "GET", "/live", Some(&with(&ada.access_token)), "").await;
    let mut begun = Vec::new();
    while !begun.ends_with(b"first\n\r\n") {
        begun.push(timeout(LONG, text.read_u8()).await.expect("in time").expect("a byte"));
    }
    until("all three wait for their end", || stage.verifier.status().guarded == 3).await;

    scene.revoke(&stage.verifier, Target::SessionId(ada.session_id)).await;
    let ended = timeout(LONG, hers.message()).await.expect("it ends").expect_err("with an error");
    assert_eq!((ended.code(), reason(&ended).as_str()), (Code::Unauthenticated, "TOKEN_REVOKED"));
    let mut rest = Vec::new();
    // A chunked body that ends without its last chunk is broken, for everybody to see.
    let end = timeout(LONG, text.read_to_end(&mut rest)).await.expect("it ends");
    assert!(!rest.ends_with(b"0\r\n\r\n"), "{rest:?} {end:?}");
    assert_eq!(stage.verifier.status().guarded, 1, "the other stream goes on");
    assert!(timeout(Duration::from_millis(200), his.message()).await.is_err(), "it is open");
}

/// What never waits is never woken; it ends all the same.
#[tokio::test]
async fn an_answer_that_is_always_ready_ends_too() {
    let stage = Stage::new(&[]).await;
    let ada = stage.scene.login("ada").await;
    let authorization = with(&ada.access_token);
    let mut endless = send(stage.service, "GET", "/endless", Some(&authorization), "").await;
    let mut chunk = vec![0; 64 * 1024];
    let count = endless.read(&mut chunk).await.expect("it begins");
    assert!(count > 0);
    stage.scene.revoke(&stage.verifier, Target::SessionId(ada.session_id)).await;
    let end = async { while endless.read(&mut chunk).await.is_ok_and(|count| count > 0) {} };
    timeout(LONG, end).await.expect("it ends");
}

#[tokio::test]
async fn a_request_that_is_still_being_sent_ends_too() {
    let stage = Stage::new(&[]).await;
    let ada = stage.scene.login("ada").await;
    let headers = "content-length: 1000\r\nconnection: close\r\n";
    let mut upload =
        send(stage.service, "POST", "/upload", Some(&with(&ada.access_token)), headers).await;
    upload.write_all(b"a part").await.expect("it is sent");
    timeout(LONG, stage.uploading.notified()).await.expect("it begins");
    until("the upload waits for its end", || stage.verifier.status().guarded == 1).await;
    stage.scene.revoke(&stage.verifier, Target::Subject(ada.subject)).await;
    let mut answer = vec![0; 1024];
    let count = timeout(LONG, upload.read(&mut answer)).await.expect("in time").expect("an answer");
    let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert!(answer.contains("invalid_token"), "{answer}");
}
