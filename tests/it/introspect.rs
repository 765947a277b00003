//! Introspect: who is told what of a good token.

use std::time::Duration;

use avouch::domain::caller::{Grant, Right};
use avouch::domain::client::Client;
use avouch::pb::v1 as pb;
use avouch::service::journal::Happening;
use tonic::Code;

use crate::harness::{ISSUER, NOW, Server, assert_refused, bearer, client, http_get, wrong_fields};

async fn ask(
    server: &Server,
    client: &pb::ClientAuthentication,
    token: &str,
) -> Result<pb::IntrospectResponse, tonic::Status> {
    let request = pb::IntrospectRequest {
        client: Some(client.clone()),
        token: token.to_owned(),
        ..Default::default()
    };
    Ok(server.identity().introspect(request).await?.into_inner())
}

#[tokio::test]
async fn a_good_token_is_described_as_it_was_issued() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let operator = server.powerful("operator").await;
    server.add_user("ada").await;
    let tokens = server.login(&app, "ada").await;
    let access = server.introspect(&operator, &tokens.access_token).await;
    assert_eq!(access.token_type, "access_token");
    assert_eq!(access.issuer, ISSUER);
    assert_eq!(access.subject, tokens.subject);
    assert_eq!(access.client_id, "app");
    assert_eq!(access.session_id, tokens.session_id);
    assert_eq!(access.scope, "read write");
    assert_eq!(access.authentication_methods, ["pwd"]);
    assert_eq!(access.expire_time, tokens.access_token_expire_time);
    assert_eq!(access.issue_time.expect("a time").seconds.unsigned_abs(), NOW.as_secs());
    let refresh = server.introspect(&operator, &tokens.refresh_token).await;
    assert!(refresh.active);
    assert_eq!(refresh.token_type, "refresh_token", "never taken for an access token");
    assert_eq!(refresh.expire_time, tokens.refresh_token_expire_time);
    for token in [&tokens.access_token, &tokens.refresh_token] {
        for answer in [&access, &refresh] {
            assert!(!format!("{answer:?}").contains(token.as_str()), "it never holds the token");
        }
    }
    // A client's own token has neither session nor user.
    let own = server.introspect(&operator, &server.own_token(&operator).await).await;
    assert_eq!((own.subject.as_str(), own.session_id.as_str()), ("operator", ""));
    assert_eq!(own.authentication_time, None);
}

#[tokio::test]
async fn a_hint_is_only_a_hint() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    let tokens = server.login(&app, "ada").await;
    for (token, hint) in [
        (&tokens.access_token, pb::TokenTypeHint::RefreshToken),
        (&tokens.refresh_token, pb::TokenTypeHint::AccessToken),
    ] {
        let request = pb::IntrospectRequest {
            client: Some(app.clone()),
            token: token.clone(),
            token_type_hint: hint.into(),
            ..Default::default()
        };
        assert!(server.identity().introspect(request).await.expect("its own").into_inner().active);
    }
}

#[tokio::test]
async fn whoever_has_no_right_learns_nothing_but_of_its_own_good_tokens() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let other = server.first_party("other").await;
    server.add_user("ada").await;
    let tokens = server.login(&app, "ada").await;
    let dead = server.login(&app, "ada").await;
    let target = pb::revoke_request::Target::SessionId(dead.session_id.clone());
    server.revoke(&app, target).await.expect("its own");
    server.journal.take();
    // Somebody else's tokens, good and bad, its own bad ones, and what is no token: one answer.
    for (asker, token) in [
        (&other, &tokens.access_token),
        (&other, &tokens.refresh_token),
        (&other, &dead.access_token),
        (&other, &dead.refresh_token),
        (&other, &"garbage".to_owned()),
        (&app, &dead.access_token),
        (&app, &dead.refresh_token),
        (&app, &"garbage".to_owned()),
    ] {
        let answer = ask(&server, asker, token).await.expect("no bad token is an error");
        assert_eq!(answer, pb::IntrospectResponse::default(), "{token}");
    }
    let recorded = server.journal.take();
    let denied =
        recorded.iter().filter(|h| matches!(h, Happening::Denied { what: "introspect", .. }));
    assert_eq!(denied.count(), 8, "the auditor learns of each");
    let (_, _, metrics) = http_get(server.ops, "/metrics", "").await;
    let not_for_caller = metrics
        .lines()
        .find(|line| line.contains("verdict=\"not_for_caller\""))
        .expect("a counter");
    assert!(not_for_caller.ends_with(" 2"), "two were good, but not its own: {not_for_caller}");
    assert!(ask(&server, &app, &tokens.access_token).await.expect("its own").active);
    let request =
        pb::IntrospectRequest { token: tokens.access_token.clone(), ..Default::default() };
    let status = server.identity().introspect(request).await.expect_err("nobody");
    assert_eq!(status.code(), Code::Unauthenticated);
    let wrong = pb::ClientAuthentication { client_secret: "x".to_owned(), ..app.clone() };
    assert_refused(&ask(&server, &wrong, "x").await.expect_err("wrong"), "a wrong secret");
    let status = ask(&server, &app, "").await.expect_err("no token");
    assert_eq!(wrong_fields(&status), ["token"]);
}

#[tokio::test]
async fn a_limited_right_says_inactive_beyond_its_limit() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let subject = server.add_user("ada").await;
    let tokens = server.login(&app, "ada").await;
    let right = Grant::unlimited(Right::Introspect);
    let id = |id: &str| Some(id.parse().expect("an id"));
    for (name, grant, sees) in [
        ("a1", Grant { audience: Some("orders".into()), ..right.clone() }, true),
        ("a2", Grant { audience: Some("payments".into()), ..right.clone() }, false),
        ("a3", Grant { audience: Some("order".into()), ..right.clone() }, false),
        ("c1", Grant { client: id("app"), ..right.clone() }, true),
        ("c2", Grant { client: id("ap"), ..right.clone() }, false),
        ("s1", Grant { subject: Some(subject.clone()), ..right.clone() }, true),
        ("s2", Grant { subject: Some("app".parse().expect("an id")), ..right.clone() }, false),
        ("two", Grant { subject: Some(subject), client: id("x"), ..right.clone() }, false),
    ] {
        let caller = server.add_client(Client { grants: vec![grant], ..client(name) }).await;
        for token in [&tokens.access_token, &tokens.refresh_token] {
            let answer = ask(&server, &caller, token).await.expect("it may ask");
            assert_eq!(answer.active, sees, "{name}");
            if !sees {
                assert_eq!(answer, pb::IntrospectResponse::default(), "{name}");
            }
        }
    }
}

#[tokio::test]
async fn an_operator_that_is_disabled_loses_its_rights_at_once() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let operator = server.powerful("operator").await;
    let admin = server.powerful("admin").await;
    let (token, credential) = (server.own_token(&operator).await, server.own_token(&admin).await);
    let message = || pb::IntrospectRequest { token: token.clone(), ..Default::default() };
    server.identity().introspect(bearer(message(), &token)).await.expect("it may");
    let disable = pb::DisableClientRequest { client_id: "operator".to_owned() };
    server.admin().disable_client(bearer(disable, &credential)).await.expect("disabled");
    let status = server.identity().introspect(bearer(message(), &token)).await;
    assert_eq!(status.expect_err("disabled").code(), Code::Unauthenticated);
    assert_refused(&ask(&server, &operator, &token).await.expect_err("disabled"), "its secret");
    let enable = pb::EnableClientRequest { client_id: "operator".to_owned() };
    server.admin().enable_client(bearer(enable, &credential)).await.expect("enabled");
    let status = server.identity().introspect(bearer(message(), &token)).await;
    assert_eq!(status.expect_err("revoked").code(), Code::Unauthenticated, "old tokens stay dead");
    assert!(!ask(&server, &operator, &token).await.expect("it may ask again").active);
    assert!(!ask(&server, &app, &token).await.expect("it may ask").active);
}

#[tokio::test]
async fn a_verified_token_is_not_remembered_beyond_its_end() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    let tokens = server.login(&app, "ada").await;
    for _ in 0..3 {
        assert!(ask(&server, &app, &tokens.access_token).await.expect("its own").active);
    }
    server.clock.advance(Duration::from_secs(300));
    let answer = ask(&server, &app, &tokens.access_token).await.expect("no bad token is an error");
    assert_eq!(answer, pb::IntrospectResponse::default(), "expired");
}
