//! Revoke: who may take back what, and what comes of it (design.md, invariants 4 and 7).

use std::sync::Arc;
use std::time::Duration;

use avouch::domain::caller::{Grant, Right};
use avouch::domain::client::Client;
use avouch::domain::clock::ManualClock;
use avouch::domain::event::{Initiator, Reason, Target as Ended};
use avouch::pb::v1 as pb;
use avouch::pb::v1::revoke_request::Target;
use avouch::pb::v1::watch_revocations_response::Frame;
use avouch::service::journal::Happening;
use tonic::Code;

use crate::harness::{
    NOW, Server, assert_refused, bearer, client, memory, options, reason, wrong_fields,
};

struct Bench {
    server: Server,
    app: pb::ClientAuthentication,
    operator: pb::ClientAuthentication,
    subject: String,
    tokens: pb::TokenSet,
}

impl Bench {
    async fn new() -> Self {
        Self::on(Server::start().await).await
    }

    async fn on(server: Server) -> Self {
        let app = server.first_party("app").await;
        let operator = server.powerful("operator").await;
        let subject = server.add_user("ada").await.to_string();
        let tokens = server.login(&app, "ada").await;
        Self { server, app, operator, subject, tokens }
    }

    async fn active(&self, token: &str) -> bool {
        self.server.introspect(&self.operator, token).await.active
    }

    async fn both(&self, tokens: &pb::TokenSet) -> (bool, bool) {
        (self.active(&tokens.access_token).await, self.active(&tokens.refresh_token).await)
    }

    /// Every target that concerns the tokens of the bench.
    fn targets(&self) -> [Target; 6] {
        [
            Target::Token(self.tokens.access_token.clone()),
            Target::Token(self.tokens.refresh_token.clone()),
            Target::SessionId(self.tokens.session_id.clone()),
            Target::Subject(self.subject.clone()),
            Target::ClientId("app".to_owned()),
            Target::Everything(true),
        ]
    }

    fn denials(&self) -> usize {
        let journal = self.server.journal.take();
        journal.iter().filter(|h| matches!(h, Happening::Denied { what: "revoke", .. })).count()
    }
}

#[tokio::test]
async fn each_target_is_one_event_and_ends_what_it_names() {
    for at in 0..6 {
        let bench = Bench::new().await;
        let other = bench.server.login(&bench.app, "ada").await;
        let target = bench.targets()[at].clone();
        let answer = bench.server.revoke(&bench.operator, target.clone()).await.expect("it may");
        let log = bench.server.log();
        assert_eq!(log.len(), 1, "{target:?}");
        let event = answer.revoked.expect("an event");
        assert_eq!(event.revision, answer.cursor.expect("a cursor").revision);
        assert_eq!(event.reason(), pb::RevocationReason::AdminAction, "what stands for no reason");
        assert_eq!(event.initiating_entity(), pb::InitiatingEntity::Admin);
        assert_eq!(answer.wait_result, None, "nobody waited");
        // The token alone; its session; all sessions.
        let left = match at {
            0 => ((false, true), (true, true)),
            1 | 2 => ((false, false), (true, true)),
            _ => ((false, false), (false, false)),
        };
        assert_eq!((bench.both(&bench.tokens).await, bench.both(&other).await), left, "{target:?}");
        let matches = match at {
            0 => matches!(log[0].target, Ended::Token { .. }),
            1 | 2 => matches!(log[0].target, Ended::Session { .. }),
            3 => matches!(log[0].target, Ended::Subject { .. }),
            4 => matches!(log[0].target, Ended::Client { .. }),
            _ => matches!(log[0].target, Ended::Everything { .. }),
        };
        assert!(matches, "{:?}", log[0]);
        let refreshed = bench.server.refresh(&bench.app, &bench.tokens.refresh_token).await;
        assert_eq!(refreshed.is_ok(), at == 0, "{target:?}");
    }
}

#[tokio::test]
async fn mass_revocations_end_many_sessions_in_one_event_and_spare_what_comes_after() {
    for at in 3..6 {
        let bench = Bench::new().await;
        let mut old = vec![bench.tokens.clone()];
        for _ in 0..20 {
            old.push(bench.server.login(&bench.app, "ada").await);
        }
        let before = bench.server.service.now();
        bench.server.revoke(&bench.operator, bench.targets()[at].clone()).await.expect("it may");
        let fresh = bench.server.login(&bench.app, "ada").await;
        assert_eq!(bench.server.service.now(), before, "in the same second, on the same tick");
        assert_eq!(bench.server.log().len(), 1);
        for tokens in &old {
            assert_eq!(bench.both(tokens).await, (false, false));
        }
        assert_eq!(bench.both(&fresh).await, (true, true));
        let next = bench.server.refresh(&bench.app, &fresh.refresh_token).await.expect("good");
        assert_eq!(bench.both(&next).await, (true, true));
    }
}

#[tokio::test]
async fn who_shows_nothing_or_something_bad_revokes_nothing() {
    let bench = Bench::new().await;
    for target in bench.targets() {
        let request = pb::RevokeRequest { target: Some(target.clone()), ..Default::default() };
        let status = bench.server.identity().revoke(request.clone()).await.expect_err("nobody");
        assert_eq!(status.code(), Code::Unauthenticated);
        let wrong = pb::ClientAuthentication { client_secret: "x".to_owned(), ..bench.app.clone() };
        let status = bench.server.revoke(&wrong, target).await.expect_err("a wrong secret");
        assert_refused(&status, "a wrong secret");
        // A bad secret is not made good by a good token beside it.
        let token = bench.server.own_token(&bench.operator).await;
        let request = pb::RevokeRequest { client: Some(wrong), ..request };
        let status = bench.server.identity().revoke(bearer(request, &token)).await;
        assert_refused(&status.expect_err("a wrong secret"), "a wrong secret and a token");
    }
    assert!(bench.server.log().is_empty());
    assert_eq!(bench.both(&bench.tokens).await, (true, true));
}

#[tokio::test]
async fn a_client_may_revoke_what_was_issued_to_it_and_nothing_else() {
    let bench = Bench::new().await;
    let other = bench.server.first_party("other").await;
    bench.server.journal.take();
    for target in bench.targets() {
        let status = bench.server.revoke(&other, target.clone()).await.expect_err("not its own");
        assert_eq!(status.code(), Code::PermissionDenied, "{target:?}");
        assert_eq!(bench.denials(), 1, "{target:?}: the audit log hears of it");
    }
    assert!(bench.server.log().is_empty());
    assert_eq!(bench.both(&bench.tokens).await, (true, true));
    for (at, may) in [(0, true), (1, true), (3, false), (5, false), (4, true)] {
        let answer = bench.server.revoke(&bench.app, bench.targets()[at].clone()).await;
        assert_eq!(answer.is_ok(), may, "{:?}", bench.targets()[at]);
    }
    let log = bench.server.log();
    assert_eq!(log.len(), 3);
    assert!(log.iter().all(|event| event.cause.initiator == Initiator::User));
    assert_eq!(bench.both(&bench.tokens).await, (false, false));
}

#[tokio::test]
async fn a_subject_may_revoke_what_speaks_for_it_and_nothing_else() {
    let bench = Bench::new().await;
    let eve = bench.server.add_user("eve").await.to_string();
    let hers = bench.server.login(&bench.app, "eve").await;
    let call = async |target: Target, token: &str| {
        let request = pb::RevokeRequest { target: Some(target), ..Default::default() };
        bench.server.identity().revoke(bearer(request, token)).await
    };
    for target in bench.targets() {
        let status = call(target.clone(), &hers.access_token).await.expect_err("not hers");
        assert_eq!(status.code(), Code::PermissionDenied, "{target:?}");
    }
    assert!(bench.server.log().is_empty());
    let second = bench.server.login(&bench.app, "eve").await;
    call(Target::SessionId(second.session_id.clone()), &hers.access_token).await.expect("her own");
    assert_eq!(bench.both(&second).await, (false, false));
    call(Target::Subject(eve), &hers.access_token).await.expect("her own");
    assert_eq!(bench.both(&hers).await, (false, false));
    let status = call(Target::Token(hers.refresh_token.clone()), &hers.access_token).await;
    assert_eq!(status.expect_err("it was revoked").code(), Code::Unauthenticated);
    assert_eq!(bench.server.log().len(), 2);
    assert_eq!(bench.both(&bench.tokens).await, (true, true));
}

#[tokio::test]
async fn a_limited_right_reaches_as_far_as_its_limit() {
    let bench = Bench::new().await;
    let eve = bench.server.add_user("eve").await.to_string();
    let limited = |id: &str, grant: Grant| {
        let grants = vec![grant];
        bench.server.add_client(Client { grants, first_party: false, ..client(id) })
    };
    let revoke = Grant::unlimited(Right::Revoke);
    let audience = Grant { audience: Some("payments".into()), ..revoke.clone() };
    let other_client = Grant { client: Some("other".parse().expect("an id")), ..revoke.clone() };
    let other_subject = Grant { subject: Some(eve.parse().expect("a subject")), ..revoke.clone() };
    let introspect = Grant::unlimited(Right::Introspect);
    for (id, grant) in [
        ("by-audience", audience),
        ("by-client", other_client),
        ("by-subject", other_subject),
        ("another-right", introspect),
    ] {
        let caller = limited(id, grant).await;
        for target in bench.targets() {
            let status = bench.server.revoke(&caller, target.clone()).await.expect_err(id);
            assert_eq!(status.code(), Code::PermissionDenied, "{id} {target:?}");
        }
    }
    assert!(bench.server.log().is_empty());
    let audience = Grant { audience: Some("orders".into()), ..revoke.clone() };
    let own_client = Grant { client: Some("app".parse().expect("an id")), ..revoke.clone() };
    let own_subject =
        Grant { subject: Some(bench.subject.parse().expect("a subject")), ..revoke.clone() };
    for (id, grant, reach) in [
        ("audience", audience, [true, true, true, false, false, false]),
        ("client", own_client, [true, true, true, false, true, false]),
        ("subject", own_subject, [true, true, true, true, false, false]),
    ] {
        let caller = limited(id, grant).await;
        for (target, may) in bench.targets().into_iter().zip(reach) {
            let answer = bench.server.revoke(&caller, target.clone()).await;
            assert_eq!(answer.is_ok(), may, "{id} {target:?} {answer:?}");
        }
    }
}

#[tokio::test]
async fn what_is_unknown_or_over_is_ok_and_no_event() {
    let bench = Bench::new().await;
    let tokens = [
        "x".to_owned(),
        "a.b.c".to_owned(),
        "avr1_".to_owned(),
        format!("{}A", bench.tokens.access_token),
        format!("{}A", bench.tokens.refresh_token),
        "A".repeat(8 * 1024),
        "\u{0}".to_owned(),
    ];
    for token in tokens {
        for caller in [&bench.operator, &bench.app] {
            let answer = bench.server.revoke(caller, Target::Token(token.clone())).await;
            assert_eq!(answer.expect("no error").revoked, None, "{token}");
        }
    }
    for target in [
        Target::SessionId("AAAAAAAAAAAAAAAAAAAAAA".to_owned()),
        Target::Subject("usr_nobody".to_owned()),
        Target::ClientId("nobody".to_owned()),
    ] {
        let answer = bench.server.revoke(&bench.operator, target.clone()).await;
        assert_eq!(answer.expect("no error").revoked, None, "{target:?}");
    }
    // Five minutes, and what a verifier whose clock is behind allows.
    bench.server.clock.advance(Duration::from_secs(316));
    let expired = Target::Token(bench.tokens.access_token.clone());
    let answer = bench.server.revoke(&bench.operator, expired).await.expect("no error");
    assert_eq!(answer.revoked, None);
    assert!(bench.server.log().is_empty());
}

#[tokio::test]
async fn a_hundred_times_is_once() {
    for at in 0..3 {
        let bench = Bench::new().await;
        let target = bench.targets()[at].clone();
        for round in 0..100 {
            let answer = bench.server.revoke(&bench.operator, target.clone()).await.expect("OK");
            assert_eq!(answer.revoked.is_some(), round == 0);
        }
        assert_eq!(bench.server.log().len(), 1, "{target:?}");
    }
}

#[tokio::test]
async fn a_forged_token_ends_no_session_that_it_names() {
    let bench = Bench::new().await;
    let token = &bench.tokens.refresh_token;
    for at in 5..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(bytes).expect("ASCII");
        let answer = bench.server.revoke(&bench.app, Target::Token(forged)).await.expect("OK");
        assert_eq!(answer.revoked, None, "position {at}");
    }
    assert!(bench.server.log().is_empty());
    assert_eq!(bench.both(&bench.tokens).await, (true, true));
}

#[tokio::test]
async fn a_spent_refresh_token_still_logs_out_its_session() {
    let bench = Bench::new().await;
    let next = bench.server.refresh(&bench.app, &bench.tokens.refresh_token).await.expect("good");
    let target = Target::Token(bench.tokens.refresh_token.clone());
    bench.server.revoke(&bench.app, target).await.expect("OK").revoked.expect("an event");
    assert_eq!(bench.both(&next).await, (false, false));
}

#[tokio::test]
async fn a_wrong_hint_changes_nothing() {
    for (at, hint) in [(0, pb::TokenTypeHint::RefreshToken), (1, pb::TokenTypeHint::AccessToken)] {
        let bench = Bench::new().await;
        let request = pb::RevokeRequest {
            client: Some(bench.app.clone()),
            target: Some(bench.targets()[at].clone()),
            token_type_hint: hint.into(),
            ..Default::default()
        };
        let answer = bench.server.identity().revoke(request).await.expect("OK").into_inner();
        assert!(answer.revoked.is_some());
        assert!(!bench.active(&bench.tokens.access_token).await);
    }
}

#[tokio::test]
async fn why_and_who_travel_with_the_event() {
    let bench = Bench::new().await;
    let request = pb::RevokeRequest {
        client: Some(bench.operator.clone()),
        target: Some(Target::SessionId(bench.tokens.session_id.clone())),
        reason: pb::RevocationReason::RiskDetected.into(),
        initiating_entity: pb::InitiatingEntity::Policy.into(),
        ..Default::default()
    };
    let answer = bench.server.identity().revoke(request).await.expect("OK").into_inner();
    let event = answer.revoked.expect("an event");
    assert_eq!(event.reason(), pb::RevocationReason::RiskDetected);
    assert_eq!(event.initiating_entity(), pb::InitiatingEntity::Policy);
    assert_eq!(bench.server.log()[0].cause.reason, Reason::RiskDetected);
    let token = bench.server.own_token(&bench.operator).await;
    let list = bearer(pb::ListRevocationsRequest::default(), &token);
    let listed = bench.server.revocations().list_revocations(list).await.expect("a list");
    assert_eq!(listed.into_inner().revocations, vec![event]);
}

#[tokio::test]
async fn what_nobody_says_of_the_cause_follows_from_who_calls() {
    use pb::{InitiatingEntity as Who, RevocationReason as Why};
    let bench = Bench::new().await;
    let ada = bench.server.login(&bench.app, "ada").await.access_token;
    let app = bench.server.own_token(&bench.app).await;
    let operator = bench.server.own_token(&bench.operator).await;
    // It may revoke anything; what was issued to it is still its own.
    let grants = vec![Grant::unlimited(Right::Revoke)];
    let desk = bench.server.add_client(Client { grants, ..client("desk") }).await;
    let desk_token = bench.server.own_token(&desk).await;
    for (client, credential, said, recorded) in [
        (&bench.app, &ada, Who::Unspecified, (Why::Logout, Who::User)),
        (&bench.app, &app, Who::Unspecified, (Why::Logout, Who::User)),
        (&desk, &desk_token, Who::Unspecified, (Why::Logout, Who::User)),
        (&bench.app, &desk_token, Who::Unspecified, (Why::AdminAction, Who::Admin)),
        (&bench.app, &operator, Who::Unspecified, (Why::AdminAction, Who::Admin)),
        (&bench.app, &app, Who::Admin, (Why::AdminAction, Who::Admin)),
        (&bench.app, &operator, Who::User, (Why::Logout, Who::User)),
        (&bench.app, &operator, Who::Policy, (Why::PolicyViolation, Who::Policy)),
        (&bench.app, &operator, Who::System, (Why::AdminAction, Who::System)),
    ] {
        let tokens = bench.server.login(client, "ada").await;
        for target in [Target::Token(tokens.access_token), Target::SessionId(tokens.session_id)] {
            let request = pb::RevokeRequest {
                target: Some(target.clone()),
                initiating_entity: said.into(),
                ..Default::default()
            };
            let answer = bench.server.identity().revoke(bearer(request, credential)).await;
            let event = answer.expect("it may").into_inner().revoked.expect("an event");
            let got = (event.reason(), event.initiating_entity());
            assert_eq!(got, recorded, "{target:?}, said {said:?}");
        }
    }
}

#[tokio::test]
async fn a_malformed_request_names_its_fields_and_changes_nothing() {
    let bench = Bench::new().await;
    let good = pb::RevokeRequest {
        client: Some(bench.operator.clone()),
        target: Some(Target::SessionId(bench.tokens.session_id.clone())),
        ..Default::default()
    };
    let secret = "s3cret value";
    let second = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    for (request, field) in [
        (pb::RevokeRequest { target: None, ..good.clone() }, "target"),
        (
            pb::RevokeRequest { target: Some(Target::Everything(false)), ..good.clone() },
            "everything",
        ),
        (
            pb::RevokeRequest { target: Some(Target::SessionId(secret.into())), ..good.clone() },
            "session_id",
        ),
        (
            pb::RevokeRequest { target: Some(Target::Subject(secret.into())), ..good.clone() },
            "subject",
        ),
        (
            pb::RevokeRequest { target: Some(Target::ClientId(secret.into())), ..good.clone() },
            "client_id",
        ),
        (pb::RevokeRequest { target: Some(Target::Token(String::new())), ..good.clone() }, "token"),
        (pb::RevokeRequest { reason: 99, ..good.clone() }, "reason"),
        (pb::RevokeRequest { initiating_entity: -1, ..good.clone() }, "initiating_entity"),
        (pb::RevokeRequest { wait: second(31), ..good.clone() }, "wait"),
        (pb::RevokeRequest { wait: second(-1), ..good.clone() }, "wait"),
    ] {
        let status = bench.server.identity().revoke(request).await.expect_err(field);
        assert_eq!(wrong_fields(&status), [field]);
        assert!(!format!("{status:?}").contains(secret), "{status:?}");
    }
    assert!(bench.server.log().is_empty());
}

/// A watcher; acknowledges each request to do so, or none.
async fn watch(bench: &Bench, acknowledge: bool) -> tokio::task::JoinHandle<()> {
    let token = bench.server.own_token(&bench.operator).await;
    let request = bearer(pb::WatchRevocationsRequest::default(), &token);
    let mut revocations = bench.server.revocations();
    let mut stream = revocations.watch_revocations(request).await.expect("a stream").into_inner();
    let mut id = String::new();
    loop {
        match stream.message().await.expect("a frame").expect("more").frame {
            Some(Frame::Start(start)) => id = start.watch_id,
            Some(Frame::Synced(_)) => break,
            _ => {}
        }
    }
    tokio::spawn(async move {
        while let Ok(Some(message)) = stream.message().await {
            if let Some(Frame::AckRequest(wanted)) = message.frame
                && acknowledge
            {
                let message =
                    pb::AckRevocationsRequest { watch_id: id.clone(), applied: wanted.through };
                revocations.ack_revocations(bearer(message, &token)).await.expect("it is heard");
            }
        }
    })
}

/// What a call may take is not for the wait, which is the caller's wish.
#[tokio::test]
async fn a_revoke_may_wait_for_longer_than_a_call_may_take() {
    let mut options = options(memory());
    options.request_timeout = Duration::from_secs(5);
    let bench = Bench::on(Server::with(options, Arc::new(ManualClock::new(NOW))).await).await;
    let silent = watch(&bench, false).await;
    let request = pb::RevokeRequest {
        client: Some(bench.operator.clone()),
        target: Some(Target::SessionId(bench.tokens.session_id.clone())),
        wait: Some(prost_types::Duration { seconds: 6, nanos: 0 }),
        ..Default::default()
    };
    let answer = bench.server.identity().revoke(request).await.expect("OK").into_inner();
    let result = answer.wait_result.expect("it waited");
    assert_eq!((result.watchers_connected, result.complete), (1, false));
    silent.abort();
}

#[tokio::test]
async fn a_revoke_that_waits_says_how_many_watchers_have_applied_it() {
    let bench = Bench::new().await;
    let wait = async |target: Target, millis: i32| {
        let nanos = millis * 1_000_000;
        let request = pb::RevokeRequest {
            client: Some(bench.operator.clone()),
            target: Some(target),
            wait: Some(prost_types::Duration { seconds: 0, nanos }),
            ..Default::default()
        };
        let answer = bench.server.identity().revoke(request).await.expect("OK").into_inner();
        let result = answer.wait_result.expect("it waited");
        (result.watchers_connected, result.watchers_applied, result.complete)
    };
    let target = async || Target::SessionId(bench.server.login(&bench.app, "ada").await.session_id);
    assert_eq!(wait(target().await, 900).await, (0, 0, true));
    let quick = watch(&bench, true).await;
    assert_eq!(wait(target().await, 900).await, (1, 1, true));
    let silent = watch(&bench, false).await;
    let started = tokio::time::Instant::now();
    assert_eq!(wait(target().await, 300).await, (2, 1, false));
    assert!(started.elapsed() >= Duration::from_millis(300), "it waited to the deadline");
    // Asked again, when there is nothing left to revoke: it waits for the same, and for what was
    // never there too, which looks the same from outside.
    let again = target().await;
    let answer = bench.server.revoke(&bench.operator, again.clone()).await.expect("OK");
    assert_eq!((answer.revoked.is_some(), answer.wait_result), (true, None));
    let started = tokio::time::Instant::now();
    assert_eq!(wait(again.clone(), 300).await, (2, 1, false));
    assert!(started.elapsed() >= Duration::from_millis(300), "it waited to the deadline");
    assert_eq!(wait(Target::Token("garbage".to_owned()), 1).await, (2, 1, false));
    // A wait of zero asks nobody to be quick.
    let (connected, _, complete) = wait(target().await, 0).await;
    assert_eq!((connected, complete), (2, false));
    quick.abort();
    silent.abort();
}

#[tokio::test]
async fn introspect_sees_a_revocation_at_once_and_at_a_cursor() {
    let bench = Bench::new().await;
    let ask = async |at_least: Option<pb::Cursor>| {
        let request = pb::IntrospectRequest {
            client: Some(bench.operator.clone()),
            token: bench.tokens.access_token.clone(),
            at_least,
            ..Default::default()
        };
        bench.server.identity().introspect(request).await
    };
    assert!(ask(None).await.expect("an answer").into_inner().active);
    let target = Target::SessionId(bench.tokens.session_id.clone());
    let cursor = bench.server.revoke(&bench.operator, target).await.expect("OK").cursor;
    let cursor = cursor.expect("a cursor");
    for at_least in [None, Some(cursor.clone()), Some(pb::Cursor { revision: 0, ..cursor.clone() })]
    {
        let answer = ask(at_least).await.expect("an answer").into_inner();
        assert_eq!(answer, pb::IntrospectResponse::default());
    }
    let elsewhere = Server::start().await;
    let other_log = elsewhere.service.store().head().log_id.to_string();
    let status = ask(Some(pb::Cursor { log_id: other_log, revision: 1 })).await;
    let status = status.expect_err("another log");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "OTHER_LOG"));
    let ahead = pb::Cursor { revision: cursor.revision + 1_000, ..cursor };
    let status = ask(Some(ahead)).await.expect_err("ahead");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "REPLICA_BEHIND"));
    use tonic_types::StatusExt as _;
    assert!(status.get_details_retry_info().is_some());
    let status = ask(Some(pb::Cursor { log_id: "x".into(), revision: 1 })).await;
    let fields = wrong_fields(&status.expect_err("no log id"));
    assert!(fields.iter().all(|field| field.starts_with("at_least")), "{fields:?}");
}

/// A revocation of everything takes the watchers' tokens, too: who waits for them waits for them
/// nevertheless.
#[tokio::test]
async fn a_revoke_of_everything_waits_for_watchers_whose_own_tokens_it_took() {
    let scene = crate::verifier::Scene::new().await;
    let mut settings = scene.settings(scene.server.grpc);
    settings.watch.heartbeat = Duration::from_secs(5);
    let verifier = scene.verifier(settings).await;
    let request = pb::RevokeRequest {
        client: Some(scene.operator.clone()),
        target: Some(Target::Everything(true)),
        wait: Some(prost_types::Duration { seconds: 20, nanos: 0 }),
        ..Default::default()
    };
    let answer = scene.server.identity().revoke(request).await.expect("OK").into_inner();
    let waited = answer.wait_result.expect("a result");
    assert_eq!((waited.watchers_connected, waited.watchers_applied), (1, 1), "{waited:?}");
    assert!(waited.complete);
    let applied = verifier.status().cursor.map(|cursor| cursor.revision.0);
    assert_eq!(applied, answer.cursor.map(|cursor| cursor.revision));
}
