//! Refresh: one line of tokens, and what breaks it (design.md, invariants 1 and 2).

use std::sync::Arc;
use std::time::Duration;

use avouch::domain::client::{Client, Lifetimes, ReuseDetection};
use avouch::domain::clock::{ManualClock, Timestamp};
use avouch::domain::event::{Initiator, Reason, Target};
use avouch::domain::session::ReuseKind;
use avouch::pb::v1 as pb;
use avouch::service::journal::{Failure, Happening};
use tonic::Code;

use crate::harness::{
    NOW, Server, assert_refused, bearer, client, options, reason, sled, wrong_fields,
};

const DAY: Duration = Duration::from_secs(86_400);

async fn bench() -> (Server, pb::ClientAuthentication, pb::ClientAuthentication, pb::TokenSet) {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let operator = server.powerful("operator").await;
    server.add_user("ada").await;
    let tokens = server.login(&app, "ada").await;
    (server, app, operator, tokens)
}

async fn with_window(server: &Server, id: &str, window: Duration) -> pb::ClientAuthentication {
    let lifetimes = Lifetimes { retry_window: window, ..Lifetimes::default() };
    server.add_client(Client { lifetimes, ..client(id) }).await
}

/// The one event is that the session was revoked for reuse.
#[track_caller]
fn assert_family_killed(server: &Server, session: &str) {
    let log = server.log();
    let [event] = &log[..] else { panic!("one event, not {}", log.len()) };
    assert_eq!(event.cause.reason, Reason::RefreshTokenReused);
    assert_eq!(event.cause.initiator, Initiator::System);
    let Target::Session { id, .. } = &event.target else { panic!("{:?}", event.target) };
    assert_eq!(id.to_string(), session);
}

fn failures(server: &Server) -> Vec<(Failure, bool)> {
    let of = |happening| match happening {
        Happening::RefreshFailed { failure, revoked, .. } => Some((failure, revoked)),
        _ => None,
    };
    server.journal.take().into_iter().filter_map(of).collect()
}

#[tokio::test]
async fn each_refresh_gives_a_new_pair_and_keeps_the_session() {
    let (server, app, operator, first) = bench().await;
    let second = server.refresh(&app, &first.refresh_token).await.expect("current");
    assert_ne!(second.refresh_token, first.refresh_token);
    assert_ne!(second.access_token, first.access_token);
    assert_eq!(second.session_id, first.session_id);
    assert_eq!(second.subject, first.subject);
    assert_eq!(second.session_expire_time, first.session_expire_time);
    // A refresh does not take back the access token of before: it is short-lived.
    assert!(server.introspect(&operator, &first.access_token).await.active);
    assert!(server.introspect(&operator, &second.refresh_token).await.active);
    let old = server.introspect(&operator, &first.refresh_token).await;
    assert_eq!(old, pb::IntrospectResponse::default());
    assert!(server.log().is_empty());
}

#[tokio::test]
async fn a_replay_kills_the_family_with_one_event() {
    let (server, app, operator, first) = bench().await;
    let second = server.refresh(&app, &first.refresh_token).await.expect("current");
    let third = server.refresh(&app, &second.refresh_token).await.expect("current");
    server.journal.take();
    let status = server.refresh(&app, &first.refresh_token).await.expect_err("replayed");
    assert_refused(&status, "the replay");
    assert_family_killed(&server, &first.session_id);
    let happened = server.journal.take();
    let revoked = happened.iter().filter(|h| matches!(h, Happening::Revoked { .. })).count();
    assert_eq!(revoked, 1, "{happened:?}");
    assert!(happened.iter().any(|happening| matches!(
        happening,
        Happening::RefreshFailed { failure: Failure::Reused(ReuseKind::Replay), revoked: true, .. }
    )));
    for token in [&first, &second, &third] {
        let status = server.refresh(&app, &token.refresh_token).await.expect_err("dead");
        assert_refused(&status, "a token of a dead family");
        for token in [&token.access_token, &token.refresh_token] {
            let answer = server.introspect(&operator, token).await;
            assert_eq!(answer, pb::IntrospectResponse::default());
        }
    }
    assert_eq!(server.log().len(), 1, "what is dead does not die again");
}

#[tokio::test]
async fn any_ancestor_is_known_after_fifty_rotations_and_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let clock = Arc::new(ManualClock::new(NOW));
    let server = Server::with(options(sled(directory.path())), clock).await;
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    for ancestor in [0, 1, 25, 48] {
        let mut line = vec![server.login(&app, "ada").await];
        for _ in 0..50 {
            server.clock.advance(Duration::from_secs(60));
            let last = &line[line.len() - 1].refresh_token;
            line.push(server.refresh(&app, last).await.expect("current"));
        }
        let before = server.log().len();
        let status = server.refresh(&app, &line[ancestor].refresh_token).await;
        assert_refused(&status.expect_err("an ancestor"), "an ancestor");
        assert_eq!(server.log().len(), before + 1);
        server.refresh(&app, &line[50].refresh_token).await.expect_err("its line is dead");
    }
    let mut line = vec![server.login(&app, "ada").await];
    for _ in 0..50 {
        let last = &line[line.len() - 1].refresh_token;
        line.push(server.refresh(&app, last).await.expect("current"));
    }
    let server = server.restart(options(sled(directory.path()))).await;
    let status = server.refresh(&app, &line[0].refresh_token).await.expect_err("an ancestor");
    assert_refused(&status, "an ancestor after a restart");
    // The log forgets by and by what no token can concern any more, so only its end is looked at.
    let last = server.log().pop().expect("an event");
    assert!(
        matches!(&last.target, Target::Session { id, .. } if id.to_string() == line[0].session_id),
        "{last:?}"
    );
    server.refresh(&app, &line[50].refresh_token).await.expect_err("its line is dead");
}

#[tokio::test]
async fn two_rotations_in_one_tick_leave_no_gap() {
    let (server, app, _, first) = bench().await;
    let second = server.refresh(&app, &first.refresh_token).await.expect("current");
    let third = server.refresh(&app, &second.refresh_token).await.expect("current");
    assert_eq!(server.service.now(), NOW, "the clock stood still");
    server.refresh(&app, &first.refresh_token).await.expect_err("two generations back");
    assert_family_killed(&server, &first.session_id);
    server.refresh(&app, &third.refresh_token).await.expect_err("dead");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_at_once_all_who_succeed_hold_the_same_successor() {
    let (server, app, _, _) = bench().await;
    let strict = with_window(&server, "strict", Duration::ZERO).await;
    for callers in [2, 8, 64] {
        let first = server.login(&app, "ada").await;
        let answers = storm(&server, &app, &first.refresh_token, callers).await;
        let won: Vec<_> =
            answers.into_iter().map(|answer| answer.expect("in the window")).collect();
        assert!(won.iter().all(|tokens| tokens.refresh_token == won[0].refresh_token));
        assert_eq!(generation(&server, &first.session_id).await, 1);
        server.refresh(&app, &won[0].refresh_token).await.expect("one line goes on");
    }
    assert!(server.log().is_empty());
    for callers in [2, 8, 64] {
        let before = server.log().len();
        let first = server.login(&strict, "ada").await;
        let answers = storm(&server, &strict, &first.refresh_token, callers).await;
        let won: Vec<_> = answers.into_iter().filter_map(Result::ok).collect();
        assert_eq!(won.len(), 1, "without a window there is one winner");
        assert_eq!(server.log().len(), before + 1, "and the losers end the session once");
        server.refresh(&strict, &won[0].refresh_token).await.expect_err("it is over");
    }
}

async fn storm(
    server: &Server,
    client: &pb::ClientAuthentication,
    token: &str,
    callers: usize,
) -> Vec<Result<pb::TokenSet, tonic::Status>> {
    let barrier = Arc::new(tokio::sync::Barrier::new(callers));
    let calls: Vec<_> = (0..callers)
        .map(|_| {
            let (mut identity, barrier) = (server.identity(), Arc::clone(&barrier));
            let request = pb::RefreshRequest {
                client: Some(client.clone()),
                refresh_token: token.to_owned(),
                ..Default::default()
            };
            tokio::spawn(async move {
                barrier.wait().await;
                let answer = identity.refresh(request).await?;
                Ok(answer.into_inner().tokens.expect("tokens"))
            })
        })
        .collect();
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.expect("no panic"));
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_refresh_in_flight_does_not_outlive_a_revocation() {
    let (server, app, operator, _) = bench().await;
    for round in 0..100 {
        let first = server.login(&app, "ada").await;
        let racing = {
            let (mut identity, client) = (server.identity(), Some(app.clone()));
            let refresh_token = first.refresh_token.clone();
            let request = pb::RefreshRequest { client, refresh_token, ..Default::default() };
            tokio::spawn(async move { identity.refresh(request).await })
        };
        let target = match round % 3 {
            0 => pb::revoke_request::Target::SessionId(first.session_id.clone()),
            1 => pb::revoke_request::Target::Subject(first.subject.clone()),
            _ => pb::revoke_request::Target::Everything(true),
        };
        server.revoke(&operator, target).await.expect("revoked");
        let mut tokens = vec![first];
        if let Ok(answer) = racing.await.expect("no panic") {
            tokens.extend(answer.into_inner().tokens);
        }
        for token in tokens.iter().flat_map(|t| [&t.access_token, &t.refresh_token]) {
            let answer = server.introspect(&operator, token).await;
            assert_eq!(answer, pb::IntrospectResponse::default(), "round {round}");
        }
    }
    assert_eq!(server.log().len(), 100);
}

async fn generation(server: &Server, session: &str) -> u32 {
    let id = session.parse().expect("a session id");
    server
        .service
        .store()
        .find_session(id)
        .await
        .expect("the store")
        .expect("it is there")
        .generation
        .0
}

#[tokio::test]
async fn inside_the_window_a_lost_answer_is_given_again() {
    let (server, app, _, first) = bench().await;
    let second = server.refresh(&app, &first.refresh_token).await.expect("current");
    server.clock.advance(Duration::from_millis(9_999));
    let again = server.refresh(&app, &first.refresh_token).await.expect("in the window");
    assert_eq!(again.refresh_token, second.refresh_token);
    assert_eq!(again.refresh_token_expire_time, second.refresh_token_expire_time);
    assert_eq!(generation(&server, &first.session_id).await, 1);
    // Asking again does not extend the window: it is measured from the rotation.
    server.clock.advance(Duration::from_millis(1));
    let status = server.refresh(&app, &first.refresh_token).await.expect_err("too late");
    assert_refused(&status, "a retry at the end of the window");
    assert_family_killed(&server, &first.session_id);
    server.refresh(&app, &second.refresh_token).await.expect_err("dead");
}

#[tokio::test]
async fn once_the_successor_is_used_its_parent_is_a_replay_inside_the_window_too() {
    let (server, app, _, first) = bench().await;
    let second = server.refresh(&app, &first.refresh_token).await.expect("current");
    server.refresh(&app, &second.refresh_token).await.expect("current");
    server.refresh(&app, &first.refresh_token).await.expect_err("its successor is spent");
    assert_family_killed(&server, &first.session_id);
}

#[tokio::test]
async fn a_window_of_zero_forgives_nothing() {
    let server = Server::start().await;
    let app = with_window(&server, "app", Duration::ZERO).await;
    server.add_user("ada").await;
    let first = server.login(&app, "ada").await;
    let second = server.refresh(&app, &first.refresh_token).await.expect("current");
    server.refresh(&app, &first.refresh_token).await.expect_err("no window");
    assert_family_killed(&server, &first.session_id);
    server.refresh(&app, &second.refresh_token).await.expect_err("dead");
}

#[tokio::test]
async fn a_token_belongs_to_its_client() {
    let (server, app, _, first) = bench().await;
    let other = server.first_party("other").await;
    let status = server.refresh(&other, &first.refresh_token).await.expect_err("not its own");
    assert_refused(&status, "another client");
    assert_family_killed(&server, &first.session_id);
    assert!(failures(&server).contains(&(Failure::Reused(ReuseKind::OtherClient), true)));
    server.refresh(&app, &first.refresh_token).await.expect_err("it was stolen");
}

#[tokio::test]
async fn the_parent_is_not_given_again_to_another_client() {
    let (server, app, _, first) = bench().await;
    let other = server.first_party("other").await;
    let second = server.refresh(&app, &first.refresh_token).await.expect("current");
    server.refresh(&other, &first.refresh_token).await.expect_err("not its own");
    assert_family_killed(&server, &first.session_id);
    server.refresh(&app, &second.refresh_token).await.expect_err("dead");
}

#[tokio::test]
async fn another_client_cannot_choose_what_its_theft_does() {
    let (server, app, _, first) = bench().await;
    let lenient = server
        .add_client(Client { reuse_detection: ReuseDetection::Report, ..client("lenient") })
        .await;
    server.refresh(&lenient, &first.refresh_token).await.expect_err("not its own");
    assert_family_killed(&server, &first.session_id);
    server.refresh(&app, &first.refresh_token).await.expect_err("dead");
}

#[tokio::test]
async fn who_does_not_prove_itself_changes_nothing() {
    let (server, app, _, first) = bench().await;
    let second = server.refresh(&app, &first.refresh_token).await.expect("current");
    let third = server.refresh(&app, &second.refresh_token).await.expect("current");
    let wrong = [
        pb::ClientAuthentication { client_secret: "wrong".to_owned(), ..app.clone() },
        pb::ClientAuthentication { client_secret: String::new(), ..app.clone() },
        pb::ClientAuthentication { client_id: "nobody".to_owned(), ..app.clone() },
        pb::ClientAuthentication { client_id: "\"".to_owned(), ..app.clone() },
        pb::ClientAuthentication { client_secret: "x".repeat(5000), ..app.clone() },
    ];
    for client in wrong {
        for token in [&first, &third] {
            let status = server.refresh(&client, &token.refresh_token).await.expect_err("nobody");
            assert_refused(&status, &client.client_id);
        }
    }
    assert!(server.log().is_empty());
    server.refresh(&app, &third.refresh_token).await.expect("it was never spent");
}

#[tokio::test]
async fn a_token_that_was_never_issued_changes_nothing() {
    let (server, app, _, first) = bench().await;
    let token = &first.refresh_token;
    for at in 5..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(bytes).expect("ASCII");
        let status = server.refresh(&app, &forged).await.expect_err("forged");
        assert_refused(&status, &format!("position {at}"));
    }
    for garbage in ["avr1_", "avr1_AAAA", "avr2_x", "x", "a.b.c", first.access_token.as_str()] {
        let status = server.refresh(&app, garbage).await.expect_err(garbage);
        assert_refused(&status, garbage);
    }
    assert!(server.log().is_empty());
    server.refresh(&app, token).await.expect("it is still current");
}

async fn refresh_scopes(
    server: &Server,
    app: &pb::ClientAuthentication,
    token: &str,
    scopes: &[&str],
    audiences: &[&str],
) -> Result<pb::TokenSet, tonic::Status> {
    let request = pb::RefreshRequest {
        client: Some(app.clone()),
        refresh_token: token.to_owned(),
        scopes: scopes.iter().map(ToString::to_string).collect(),
        audiences: audiences.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    Ok(server.identity().refresh(request).await?.into_inner().tokens.expect("tokens"))
}

#[tokio::test]
async fn scopes_narrow_for_one_token_and_never_widen() {
    let (server, app, _, first) = bench().await;
    assert_eq!(first.scopes, ["read", "write"]);
    let request = pb::AuthenticateRequest {
        scopes: vec!["read".to_owned()],
        audiences: vec!["orders".to_owned()],
        ..crate::harness::password_login(&app, "ada", crate::harness::PASSWORD)
    };
    let narrow = server.identity().authenticate(request).await.expect("in").into_inner();
    let narrow = narrow.tokens.expect("tokens");
    let token = &narrow.refresh_token;
    for (scopes, audiences) in [
        (&["write"][..], &[][..]),
        (&["read", "write"], &[]),
        (&["admin"], &[]),
        (&["READ"], &[]),
        (&[], &["avouch"]),
        (&[], &["Orders"]),
    ] {
        let status = refresh_scopes(&server, &app, token, scopes, audiences).await;
        let status = status.expect_err("more than it holds");
        assert_eq!(status.code(), Code::PermissionDenied, "{scopes:?} {audiences:?}");
    }
    for scopes in [&["read", "read"][..], &["read\u{a0}"], &[""], &["a b"], &["\u{2003}read"]] {
        let status = refresh_scopes(&server, &app, token, scopes, &[]).await;
        assert_eq!(wrong_fields(&status.expect_err("malformed")), ["scopes"], "{scopes:?}");
    }
    assert_eq!(generation(&server, &narrow.session_id).await, 0, "no such call spends the token");

    let wide = refresh_scopes(&server, &app, &first.refresh_token, &["write"], &["orders"]).await;
    let wide = wide.expect("narrower");
    assert_eq!(
        (wide.scopes, wide.audiences),
        (vec!["write".to_owned()], vec!["orders".to_owned()])
    );
    let again = server.refresh(&app, &wide.refresh_token).await.expect("current");
    assert_eq!((again.scopes, again.audiences), (first.scopes, first.audiences));
    assert!(server.log().is_empty());
}

#[tokio::test]
async fn what_a_client_lost_its_next_token_lacks() {
    let (server, app, operator, first) = bench().await;
    let credential = server.own_token(&operator).await;
    let update = |scopes: &[&str], audiences: &[&str]| {
        let registration = pb::Client {
            client_id: "app".to_owned(),
            r#type: pb::ClientType::Confidential.into(),
            first_party: true,
            scopes: scopes.iter().map(ToString::to_string).collect(),
            audiences: audiences.iter().map(ToString::to_string).collect(),
            // What a refused request spends would end the session at the next one.
            retry_window: Some(prost_types::Duration { seconds: 0, nanos: 0 }),
            ..Default::default()
        };
        let message = pb::UpdateClientRequest { client: Some(registration) };
        let mut admin = server.admin();
        let request = bearer(message, &credential);
        async move { admin.update_client(request).await.expect("updated") }
    };
    update(&["read"], &["avouch"]).await;
    let second = server.refresh(&app, &first.refresh_token).await.expect("current");
    assert_eq!(second.scopes, ["read"]);
    assert_eq!(second.audiences, ["avouch"]);
    let status = refresh_scopes(&server, &app, &second.refresh_token, &[], &["orders"]).await;
    assert_eq!(reason(&status.expect_err("lost")), "AUDIENCE_NOT_ALLOWED");
    let third = server.refresh(&app, &second.refresh_token).await.expect("it was not spent");
    update(&["read", "write"], &["avouch", "orders", "other"]).await;
    let fourth = server.refresh(&app, &third.refresh_token).await.expect("current");
    assert_eq!(fourth.scopes, first.scopes, "what the session holds, never more");
    assert_eq!(fourth.audiences, first.audiences);
    update(&["read"], &["other"]).await;
    let status = server.refresh(&app, &fourth.refresh_token).await.expect_err("nothing is left");
    assert_eq!(reason(&status), "AUDIENCE_NOT_ALLOWED");
    update(&["read"], &["orders"]).await;
    server.refresh(&app, &fourth.refresh_token).await.expect("it was not spent");
    assert!(server.log().is_empty());
}

#[tokio::test]
async fn whoever_lost_the_account_or_the_client_gets_no_more() {
    let server = Server::start().await;
    let operator = server.powerful("operator").await;
    let credential = server.own_token(&operator).await;
    let subject = server.add_user("ada").await.to_string();
    let mut admin = server.admin();
    for change in ["disable", "password", "scopes", "revoke", "client", "delete"] {
        let app = server.first_party(change).await;
        let tokens = server.login(&app, "ada").await;
        let before = server.log().len();
        match change {
            "disable" => {
                let message = pb::DisableUserRequest { subject: subject.clone() };
                admin.disable_user(bearer(message, &credential)).await.expect("done");
            }
            "password" => {
                let message = pb::SetUserPasswordRequest {
                    subject: subject.clone(),
                    password: crate::harness::PASSWORD.to_owned(),
                };
                admin.set_user_password(bearer(message, &credential)).await.expect("done");
            }
            "scopes" => {
                let scopes = Some(pb::ScopeList { scopes: vec!["read".to_owned()] });
                let message = pb::UpdateUserRequest {
                    subject: subject.clone(),
                    scopes,
                    ..Default::default()
                };
                admin.update_user(bearer(message, &credential)).await.expect("done");
            }
            "revoke" => {
                let target = pb::revoke_request::Target::Subject(subject.clone());
                server.revoke(&operator, target).await.expect("done");
            }
            "client" => {
                let message = pb::DisableClientRequest { client_id: app.client_id.clone() };
                admin.disable_client(bearer(message, &credential)).await.expect("done");
            }
            _ => {
                let message = pb::DeleteUserRequest { subject: subject.clone() };
                admin.delete_user(bearer(message, &credential)).await.expect("done");
            }
        }
        assert_eq!(server.log().len(), before + 1, "{change}: one change, one event");
        let status = server.refresh(&app, &tokens.refresh_token).await.expect_err(change);
        assert_refused(&status, change);
        for token in [&tokens.access_token, &tokens.refresh_token] {
            let answer = server.introspect(&operator, token).await;
            assert_eq!(answer, pb::IntrospectResponse::default(), "{change}");
        }
        assert_eq!(server.log().len(), before + 1, "{change}: and no second one");
        let message = pb::EnableUserRequest { subject: subject.clone() };
        if change == "disable" {
            admin.enable_user(bearer(message, &credential)).await.expect("enabled");
            let status = server.refresh(&app, &tokens.refresh_token).await.expect_err(change);
            assert_refused(&status, "after the account came back");
        }
    }
}

#[tokio::test]
async fn a_session_ends_at_its_idle_limit_to_the_millisecond() {
    let (server, app, operator, first) = bench().await;
    server.clock.set(NOW.after(7 * DAY).before(Duration::from_millis(1)));
    let second = server.refresh(&app, &first.refresh_token).await.expect("its last millisecond");
    server.clock.advance(7 * DAY);
    let status = server.refresh(&app, &second.refresh_token).await.expect_err("idle");
    assert_refused(&status, "at the idle limit");
    let answer = server.introspect(&operator, &second.refresh_token).await;
    assert_eq!(answer, pb::IntrospectResponse::default());
    assert!(failures(&server).contains(&(Failure::SessionExpired, false)));
    assert!(server.log().is_empty(), "expiry is no revocation");
}

#[tokio::test]
async fn rotation_never_moves_the_absolute_limit() {
    let (server, app, operator, mut tokens) = bench().await;
    let end = tokens.session_expire_time;
    for _ in 0..5 {
        server.clock.advance(5 * DAY);
        tokens = server.refresh(&app, &tokens.refresh_token).await.expect("in time");
        assert_eq!(tokens.session_expire_time, end);
    }
    let absolute = NOW.after(30 * DAY);
    server.clock.set(absolute.before(Duration::from_millis(1)));
    let last = server.refresh(&app, &tokens.refresh_token).await.expect("its last millisecond");
    assert_eq!(last.refresh_token_expire_time, end);
    assert_eq!(last.access_token_expire_time, end, "no token outlives its session");
    server.clock.set(absolute);
    let status = server.refresh(&app, &last.refresh_token).await.expect_err("over");
    assert_refused(&status, "at the absolute limit");
    for token in [&last.access_token, &last.refresh_token] {
        let answer = server.introspect(&operator, token).await;
        assert_eq!(answer, pb::IntrospectResponse::default());
    }
}

#[tokio::test]
async fn reuse_can_be_reported_instead_of_enforced() {
    let server = Server::start().await;
    let app = server
        .add_client(Client { reuse_detection: ReuseDetection::Report, ..client("app") })
        .await;
    server.add_user("ada").await;
    let first = server.login(&app, "ada").await;
    let second = server.refresh(&app, &first.refresh_token).await.expect("current");
    let third = server.refresh(&app, &second.refresh_token).await.expect("current");
    server.journal.take();
    let status = server.refresh(&app, &first.refresh_token).await.expect_err("still refused");
    assert_refused(&status, "a reported replay");
    assert_eq!(failures(&server), [(Failure::Reused(ReuseKind::Replay), false)]);
    assert!(server.log().is_empty());
    server.clock.advance(Duration::from_secs(11));
    server.refresh(&app, &second.refresh_token).await.expect_err("late");
    assert_eq!(failures(&server), [(Failure::Reused(ReuseKind::LateRetry), false)]);
    server.refresh(&app, &third.refresh_token).await.expect("the session goes on");
}

#[tokio::test]
async fn a_clock_that_steps_back_revives_nothing() {
    let (server, app, operator, first) = bench().await;
    let second = server.refresh(&app, &first.refresh_token).await.expect("current");
    let third = server.refresh(&app, &second.refresh_token).await.expect("current");
    for back in [Duration::from_secs(3600), DAY, 365 * 20 * DAY] {
        server.clock.set(NOW.before(back));
        if back == Duration::from_secs(3600) {
            server.refresh(&app, &first.refresh_token).await.expect_err("a replay at any time");
        }
        server.refresh(&app, &third.refresh_token).await.expect_err("revoked at any time");
        let answer = server.introspect(&operator, &third.access_token).await;
        assert_eq!(answer, pb::IntrospectResponse::default(), "not issued yet, and revoked");
    }
    server.clock.set(NOW);
    server.refresh(&app, &third.refresh_token).await.expect_err("still revoked");
    assert_eq!(server.log().len(), 1);
}

#[tokio::test]
async fn time_goes_on_where_the_store_left_off() {
    let directory = tempfile::tempdir().expect("a directory");
    // Far ahead of the machine's own clock, which the second server runs on.
    let later = Timestamp::from_secs(4_000_000_000);
    let clock = Arc::new(ManualClock::new(later));
    let server = Server::with(options(sled(directory.path())), clock).await;
    let app = server.first_party("app").await;
    let operator = server.powerful("operator").await;
    server.add_user("ada").await;
    let tokens = server.login(&app, "ada").await;
    server.clock.advance(8 * DAY);
    server.own_token(&operator).await;
    server.login(&app, "ada").await;
    server.stop().await;
    let server = Server::with_system_clock(options(sled(directory.path()))).await;
    assert!(server.service.now() >= later.after(8 * DAY));
    let status = server.refresh(&app, &tokens.refresh_token).await.expect_err("it expired");
    assert_refused(&status, "a session that had expired before the clock was lost");
    let answer = server.introspect(&operator, &tokens.access_token).await;
    assert_eq!(answer, pb::IntrospectResponse::default());
    let fresh = server.login(&app, "ada").await;
    assert!(server.introspect(&operator, &fresh.access_token).await.active);
}
