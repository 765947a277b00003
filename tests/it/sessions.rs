//! Sessions: who sees them.

use avouch::domain::caller::{Grant, Right};
use avouch::domain::client::Client;
use avouch::pb::v1 as pb;
use tonic::Code;

use crate::harness::{Server, bearer, client};

async fn list(
    server: &Server,
    token: &str,
    request: pb::ListSessionsRequest,
) -> Result<pb::ListSessionsResponse, tonic::Status> {
    Ok(server.sessions().list_sessions(bearer(request, token)).await?.into_inner())
}

async fn get(server: &Server, token: &str, id: &str) -> Result<pb::Session, tonic::Status> {
    let request = pb::GetSessionRequest { session_id: id.to_owned() };
    let answer = server.sessions().get_session(bearer(request, token)).await?;
    Ok(answer.into_inner().session.expect("a session"))
}

#[tokio::test]
async fn a_subject_sees_its_own_sessions_and_no_others() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let ada = server.add_user("ada").await.to_string();
    server.add_user("eve").await;
    let mut tokens = Vec::new();
    for _ in 0..5 {
        server.clock.advance(std::time::Duration::from_secs(1));
        tokens.push(server.login(&app, "ada").await);
    }
    let hers = server.login(&app, "eve").await;
    let own = &tokens[4].access_token;
    let listed = list(&server, own, pb::ListSessionsRequest::default()).await.expect("its own");
    let ids: Vec<_> = listed.sessions.iter().map(|session| session.session_id.clone()).collect();
    let newest_first: Vec<_> =
        tokens.iter().rev().map(|tokens| tokens.session_id.clone()).collect();
    assert_eq!(ids, newest_first);
    let mut paged = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = pb::ListSessionsRequest { page_size: 2, page_token, ..Default::default() };
        let page = list(&server, own, request).await.expect("its own");
        paged.extend(page.sessions.into_iter().map(|session| session.session_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(paged, newest_first);
    let theirs = pb::ListSessionsRequest { subject: ada, ..Default::default() };
    let status = list(&server, &hers.access_token, theirs).await.expect_err("not hers");
    assert_eq!(status.code(), Code::PermissionDenied);
    let foreign = get(&server, &hers.access_token, &tokens[0].session_id).await;
    let unknown = get(&server, &hers.access_token, "AAAAAAAAAAAAAAAAAAAAAA").await;
    let (foreign, unknown) = (foreign.expect_err("not hers"), unknown.expect_err("none"));
    assert_eq!(foreign.code(), Code::PermissionDenied);
    assert_eq!(foreign.details(), unknown.details(), "a foreign session looks like none");
    let nobody = server.sessions().list_sessions(pb::ListSessionsRequest::default()).await;
    assert_eq!(nobody.expect_err("nobody").code(), Code::Unauthenticated);
}

#[tokio::test]
async fn an_ended_session_is_shown_with_its_reason_when_asked_for() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let operator = server.powerful("operator").await;
    let subject = server.add_user("ada").await.to_string();
    let (gone, kept) = (server.login(&app, "ada").await, server.login(&app, "ada").await);
    let request = pb::RevokeRequest {
        client: Some(operator.clone()),
        target: Some(pb::revoke_request::Target::SessionId(gone.session_id.clone())),
        reason: pb::RevocationReason::RiskDetected.into(),
        ..Default::default()
    };
    server.identity().revoke(request).await.expect("revoked");
    let token = server.own_token(&operator).await;
    let request = |include_ended| pb::ListSessionsRequest {
        subject: subject.clone(),
        include_ended,
        ..Default::default()
    };
    let live = list(&server, &token, request(false)).await.expect("it may").sessions;
    assert_eq!(live.len(), 1);
    assert_eq!(live[0].session_id, kept.session_id);
    assert_eq!(list(&server, &token, request(true)).await.expect("it may").sessions.len(), 2);
    let session = get(&server, &token, &gone.session_id).await.expect("it may");
    assert_eq!(session.state(), pb::SessionState::Revoked);
    assert_eq!(session.revocation_reason(), pb::RevocationReason::RiskDetected);
    let session = get(&server, &token, &kept.session_id).await.expect("it may");
    assert_eq!((session.state(), session.generation), (pb::SessionState::Active, 0));
    let missing = get(&server, &token, "AAAAAAAAAAAAAAAAAAAAAA").await.expect_err("none");
    assert_eq!(missing.code(), Code::NotFound);
}

#[tokio::test]
async fn a_limited_right_shows_as_far_as_its_limit() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let subject = server.add_user("ada").await;
    let tokens = server.login(&app, "ada").await;
    let right = Grant::unlimited(Right::Sessions);
    for (id, grant, lists, sees) in [
        ("subject", Grant { subject: Some(subject.clone()), ..right.clone() }, true, true),
        (
            "client",
            Grant { client: Some("app".parse().expect("id")), ..right.clone() },
            false,
            true,
        ),
        ("audience", Grant { audience: Some("orders".into()), ..right.clone() }, false, true),
        ("other", Grant { client: Some("x".parse().expect("id")), ..right.clone() }, false, false),
        ("none", Grant::unlimited(Right::Introspect), false, false),
    ] {
        let caller = server.add_client(Client { grants: vec![grant], ..client(id) }).await;
        let token = server.own_token(&caller).await;
        let request =
            pb::ListSessionsRequest { subject: subject.to_string(), ..Default::default() };
        assert_eq!(list(&server, &token, request).await.is_ok(), lists, "{id}");
        let session = get(&server, &token, &tokens.session_id).await;
        assert_eq!(session.is_ok(), sees, "{id}");
    }
}
