//! ext_authz: who passes, with which headers, and what the others hear.

use std::collections::BTreeSet;

use avouch::pb::v1 as pb;
use prost::Message as _;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::rig::{HeaderMap, HeaderValue, RULES, Said, Sidecar, question, until};
use crate::harness::{Server, memory, options, sled};
use crate::process::metric;
use crate::tokens::payload;

/// A server, a sidecar, and a user's token.
pub(super) async fn shop() -> (Server, Sidecar, pb::ClientAuthentication, String) {
    let server = Server::with_system_clock(options(memory())).await;
    let sidecar = Sidecar::beside(&server, RULES, &[]).await;
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    let token = server.login(&app, "ada").await.access_token;
    (server, sidecar, app, token)
}

const OURS: [&str; 6] = [
    "x-avouch-subject",
    "x-avouch-client-id",
    "x-avouch-scope",
    "x-avouch-session-id",
    "x-avouch-token-id",
    "x-avouch-expires",
];

#[tokio::test]
async fn a_good_token_passes_and_the_upstream_learns_who_it_is() {
    let (_server, sidecar, _, token) = shop().await;
    let Said::Pass { set, removed } = sidecar.check_token("GET", "/orders/7?x=1", &token).await
    else {
        panic!("it is good");
    };
    let claims = payload(&token);
    let text = |name: &str| claims[name].as_str().expect("text").to_owned();
    let expected = [
        text("sub"),
        text("client_id"),
        text("scope"),
        text("sid"),
        text("jti"),
        claims["exp"].to_string(),
    ];
    let expected: Vec<_> = OURS.iter().map(|name| (*name).to_owned()).zip(expected).collect();
    assert_eq!(set, expected);
    // Envoy removes after it sets.
    assert!(removed.iter().all(|name| !OURS.contains(&name.as_str())), "{removed:?}");
    assert!(!removed.contains(&"authorization".to_owned()));
    let Said::Pass { set, removed } = sidecar.check_token("GET", "/swap", &token).await else {
        panic!("it is good");
    };
    assert_eq!(set.len(), 6);
    assert!(removed.contains(&"authorization".to_owned()), "claims in place of the token");
}

#[tokio::test]
async fn a_token_of_a_client_itself_has_no_session_and_leaves_no_room_for_one() {
    let (server, sidecar, app, _) = shop().await;
    let request = pb::AuthenticateRequest {
        client: Some(app),
        grant: Some(pb::authenticate_request::Grant::ClientCredentials(
            pb::ClientCredentialsGrant {},
        )),
        audiences: vec!["orders".to_owned()],
        ..Default::default()
    };
    let answer = server.identity().authenticate(request).await.expect("tokens").into_inner();
    let token = answer.tokens.expect("tokens").access_token;
    let Said::Pass { set, removed } = sidecar.check_token("GET", "/orders", &token).await else {
        panic!("it is good");
    };
    assert!(!set.iter().any(|(name, _)| name == "x-avouch-session-id"));
    assert!(removed.contains(&"x-avouch-session-id".to_owned()));
}

#[tokio::test]
async fn identity_headers_of_a_client_go_in_every_spelling() {
    let (_server, sidecar, _, token) = shop().await;
    let bearer = format!("Bearer {token}");
    let forged = [
        "x-avouch-subject",
        "X-Avouch-Client-Id",
        "x_avouch_subject",
        "X_AVOUCH_SCOPE",
        "x-avouch_subject",
        "x_avouch-token_id",
        "x-avouch-made-up",
        "x_avouch_made_up",
        "x.avouch.subject",
        "X-AVOUCH-EXPIRES",
    ];
    let mut headers: Vec<(&str, &str)> = forged.iter().map(|name| (*name, "root")).collect();
    let near = ["x-avouchsubject", "avouch-subject", "x-other"];
    headers.extend(near.iter().map(|name| (*name, "fine")));
    for (path, with_token) in [("/orders", true), ("/public/a", false)] {
        let mut headers = headers.clone();
        if with_token {
            headers.push(("authorization", &bearer));
        }
        let Said::Pass { set, removed } = sidecar.check("GET", path, &headers).await else {
            panic!("it passes");
        };
        let removed: BTreeSet<String> = removed.into_iter().collect();
        for name in forged {
            let name = name.to_ascii_lowercase();
            let overwritten = set.iter().any(|(set, value)| *set == name && value != "root");
            assert!(overwritten != removed.contains(&name), "{path}: {name}, {set:?}, {removed:?}");
        }
        assert!(near.iter().all(|name| !removed.contains(*name)));
        assert_eq!(set.is_empty(), !with_token);
    }
    // Envoy may be told to show only some headers: what was not shown goes as well.
    for (path, headers) in
        [("/orders", vec![("authorization", bearer.as_str())]), ("/public/a", vec![])]
    {
        let Said::Pass { set, removed } = sidecar.check("GET", path, &headers).await else {
            panic!("it passes");
        };
        for name in OURS {
            assert!(set.iter().any(|(set, _)| set == name) != removed.contains(&name.to_owned()));
            assert!(removed.contains(&name.replace('-', "_")), "{name} on {path}");
            assert!(removed.contains(&name.replacen('-', "_", 1)), "{name} on {path}");
        }
    }
    // The same when Envoy sends the headers raw, each as often as it came.
    let mut raw = question("GET", "/orders", &[]);
    let http = raw.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap();
    http.headers.clear();
    let header = |key: &str, value: &str| HeaderValue {
        key: key.into(),
        value: String::new(),
        raw_value: value.as_bytes().to_vec(),
    };
    http.header_map = Some(HeaderMap {
        headers: vec![
            header("authorization", &bearer),
            header("x_avouch_subject", "a"),
            header("x_avouch_subject", "b"),
            header("x-avouch-foo", "c"),
        ],
    });
    let Said::Pass { removed, .. } = sidecar.check_bytes(raw.encode_to_vec()).await else {
        panic!("it passes");
    };
    assert!(
        ["x_avouch_subject", "x-avouch-foo"].iter().all(|name| removed.contains(&(*name).into()))
    );
}

#[tokio::test]
async fn a_claim_that_cannot_stand_in_a_header_does_not_pass() {
    let (server, sidecar, _, _) = shop().await;
    for id in ["app{x}", "app<x>", "app%0d%0a"] {
        let app = server.first_party(id).await;
        let token = server.login(&app, "ada").await.access_token;
        let said = sidecar.check_token("GET", "/orders", &token).await;
        assert_eq!(said, Said::denied(403, ""), "{id}");
    }
}

#[tokio::test]
async fn everybody_who_does_not_pass_hears_what_rfc_6750_has_for_them() {
    let (server, sidecar, _, token) = shop().await;
    let anybody = Said::denied(401, "Bearer");
    assert_eq!(sidecar.check("GET", "/orders", &[]).await, anybody);
    assert_eq!(sidecar.check("GET", "/orders", &[("authorization", "Basic YTpi")]).await, anybody);
    assert_eq!(sidecar.check_token("GET", "/orders", "a.b.c").await, Said::invalid_token());
    for value in
        ["Bearer", "Bearer  a", "Bearer a,Bearer b", &format!("Bearer {token},Bearer {token}")]
    {
        let said = sidecar.check("GET", "/orders", &[("authorization", value)]).await;
        assert_eq!(said, Said::invalid_token(), "{value}");
    }
    let twice = [
        ("authorization", format!("Bearer {token}")),
        ("Authorization", format!("Bearer {token}")),
    ];
    let twice: Vec<_> = twice.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(sidecar.check("GET", "/orders", &twice).await, Said::invalid_token());
    // For another audience it is as bad as any; a scope that is missing is named.
    assert_eq!(sidecar.check_token("GET", "/other", &token).await, Said::invalid_token());
    let scope = "Bearer error=\"insufficient_scope\", scope=\"admin\"";
    let said = sidecar.check_token("POST", "/orders.v1.Orders/Get", &token).await;
    assert_eq!(said, Said::denied(403, scope));
    // Where no rule is, no token helps.
    for (method, path) in
        [("GET", "/"), ("GET", "/ordersx"), ("DELETE", "/orders"), ("GET", "/orders.v1.Orders/Get")]
    {
        assert_eq!(
            sidecar.check_token(method, path, &token).await,
            Said::denied(403, ""),
            "{path}"
        );
    }
    assert!(sidecar.check_token("POST", "/orders", &token).await.passes());
    assert!(sidecar.check("DELETE", "/public", &[]).await.passes());
    // On a public path a bad token is nobody's business.
    assert!(sidecar.check_token("GET", "/public", "a.b.c").await.passes());
    drop(server);
}

#[tokio::test]
async fn a_revoked_token_is_refused_once_revoke_has_waited() {
    let (server, sidecar, app, token) = shop().await;
    assert!(sidecar.check_token("GET", "/orders", &token).await.passes());
    let other = server.login(&app, "ada").await.access_token;
    assert!(sidecar.check_token("GET", "/orders", &other).await.passes());
    let request = pb::RevokeRequest {
        client: Some(app),
        target: Some(pb::revoke_request::Target::Token(token.clone())),
        wait: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
        ..Default::default()
    };
    let answer = server.identity().revoke(request).await.expect("revoked").into_inner();
    assert!(
        answer.wait_result.is_some_and(|it| it.complete && it.watchers_applied == 1),
        "{answer:?}"
    );
    assert_eq!(sidecar.check_token("GET", "/orders", &token).await, Said::invalid_token());
    assert!(sidecar.check_token("GET", "/orders", &other).await.passes(), "another session");
    // What is not for this workload is not held here.
    let held = sidecar.verifier.status().entries;
    let operator = server.powerful("operator").await;
    let request = pb::RevokeRequest {
        target: Some(pb::revoke_request::Target::Token(server.own_token(&operator).await)),
        client: Some(operator),
        wait: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
        ..Default::default()
    };
    server.identity().revoke(request).await.expect("revoked");
    assert_eq!(sidecar.verifier.status().entries, held);
    let (_, metrics) = sidecar.ops("/metrics").await;
    let revoked =
        "avouch_sidecar_requests_total{entry=\"ext_authz\",answer=\"deny\",reason=\"revoked\"}";
    assert!(metrics.contains(&format!("{revoked} 1")), "{metrics}");
    assert!(metric(&metrics, "avouch_sidecar_applied_revision") >= 1.0);
    assert!(metric(&metrics, "avouch_sidecar_view_entries") >= 1.0);
    assert!(metric(&metrics, "avouch_sidecar_view_synced") == 1.0);
    assert!(metric(&metrics, "avouch_sidecar_view_age_seconds") < 60.0);
    assert!(metric(&metrics, "avouch_sidecar_latency_seconds_count") >= 4.0);
}

async fn health(sidecar: &Sidecar, name: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: name.to_owned() };
    let answer = HealthClient::new(sidecar.envoy.clone()).check(request).await.expect("an answer");
    answer.into_inner().status()
}

#[tokio::test]
async fn it_is_ready_once_the_set_is_complete_and_not_before() {
    // The server's port is taken, and nobody serves there yet.
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = taken.local_addr().expect("an address");
    let stranger = pb::ClientAuthentication { client_id: "x".into(), client_secret: "y".into() };
    let sidecar = Sidecar::start(address, stranger, RULES, &[("sidecar.policy", "open")]).await;
    for name in ["", "envoy.service.auth.v3.Authorization"] {
        assert_eq!(health(&sidecar, name).await, ServingStatus::NotServing);
    }
    assert_eq!(sidecar.ops("/readyz").await.0, 503);
    assert_eq!(sidecar.ops("/livez").await.0, 200);
    // Not even `open` lets anybody in whose token was never looked at.
    let said = sidecar.check_token("GET", "/orders", "a.b.c").await;
    assert_eq!(said, Said::Failed(tonic::Code::Unavailable));
    let (status, head) = sidecar
        .ask(
            "/auth/nginx",
            b"x-original-method: GET\r\nx-original-uri: /orders\r\nauthorization: Bearer a.b.c\r\n",
        )
        .await;
    assert_eq!(status, 503);
    assert!(head.contains("retry-after: 1"), "{head}");
    // What needs no token needs no revocations either.
    assert!(sidecar.check("GET", "/public", &[]).await.passes());
    assert_eq!(sidecar.check("GET", "/orders", &[]).await, Said::denied(401, "Bearer"));
    drop((taken, sidecar));

    let server = Server::with_system_clock(options(memory())).await;
    let sidecar = Sidecar::beside(&server, RULES, &[]).await;
    until("serving", async || health(&sidecar, "").await == ServingStatus::Serving).await;
    assert_eq!(
        health(&sidecar, "envoy.service.auth.v3.Authorization").await,
        ServingStatus::Serving
    );
    assert_eq!(sidecar.ops("/readyz").await, (200, "ready\n".into()));
    let socket = sidecar.directory.path().join("authz.sock");
    assert!(socket.exists());
    // Who watches its health, and the kubelet, learn that it goes before it is gone.
    let request = HealthCheckRequest { service: String::new() };
    let watch = HealthClient::new(sidecar.envoy.clone()).watch(request).await;
    let mut watch = watch.expect("an answer").into_inner();
    let mut next = async || watch.message().await.expect("a message").expect("it goes on").status();
    assert_eq!(next().await, ServingStatus::Serving);
    sidecar.shutdown.cancel();
    assert_eq!(next().await, ServingStatus::NotServing);
    assert_eq!(sidecar.ops("/readyz").await, (503, "draining\n".into()));
    drop(watch);
    let summary = sidecar.stop().await;
    assert_eq!(summary.aborted, 0);
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_server_that_comes_late_is_followed_from_then_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state");
    let server = Server::with_system_clock(options(sled(&path))).await;
    let address = server.grpc;
    let client = server.powerful("sidecar").await;
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    let token = server.login(&app, "ada").await.access_token;
    server.stop().await;
    let sidecar = Sidecar::start(address, client, RULES, &[]).await;
    assert_eq!(sidecar.ops("/readyz").await.0, 503);
    let said = sidecar.check_token("GET", "/orders", &token).await;
    assert_eq!(said, Said::Failed(tonic::Code::Unavailable));
    let mut same_port = options(sled(&path));
    same_port.grpc.address = address;
    let _server = Server::with_system_clock(same_port).await;
    until("ready", async || sidecar.ops("/readyz").await.0 == 200).await;
    assert!(sidecar.check_token("GET", "/orders", &token).await.passes());
}
