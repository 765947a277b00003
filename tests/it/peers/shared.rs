//! What one replica did, as the others know it: keys, registrations, throttles, sessions, and reads
//! that wait for a revision.

use std::time::Duration;

use avouch::domain::caller::Caller;
use avouch::domain::key::{KeyState, MAC_ROTATE_EVERY};
use avouch::domain::secret::SecretText;
use avouch::jwt::TokenError;
use avouch::pb::v1 as pb;
use avouch::pb::v1::revoke_request::Target;
use avouch::service::access::AccessError;
use avouch::service::journal::Origin;
use avouch::service::revoke::{Request, RevokeError, Stated, What};
use avouch::store::StoreError;
use tokio::time::Instant;
use tonic::Code;

use super::rig::Fleet;
use crate::harness::{PASSWORD, Server, assert_refused, password_login, reason};

fn two(fleet: &Fleet) -> (&Server, &Server) {
    (&fleet.servers[0], &fleet.servers[1])
}

async fn new_signer(server: &Server) {
    let (system, origin) = (Caller::system(), Origin::default());
    server.service.create_key(&system, None, &origin).await.expect("announced");
    server.service.rotate_key(&system, &origin).await.expect("rotated");
}

/// A token that is signed `here` by a key that is not known `there`.
async fn token_of_a_new_key(
    here: &Server,
    there: &Server,
    client: &pb::ClientAuthentication,
) -> String {
    // The first is the key that was in reserve, which is known there; and the ring is read there every
    // five seconds, perhaps just now.
    loop {
        new_signer(here).await;
        let token = here.own_token(client).await;
        let known = there.service.access_tokens().check(&token, there.service.now());
        if known.err() == Some(AccessError::Invalid(TokenError::UnknownKey)) {
            return token;
        }
    }
}

#[tokio::test]
async fn a_token_is_good_at_a_replica_that_has_not_heard_of_its_key() {
    let fleet = Fleet::of(2).await;
    let (here, there) = two(&fleet);
    let operator = here.powerful("operator").await;
    fleet.lines[1].hold_events();
    let token = token_of_a_new_key(here, there, &operator).await;
    let checked = there.service.check_access(&token, there.service.now()).await;
    assert!(checked.is_ok(), "{checked:?}");
    // Whoever names keys that nobody has makes nobody read the ring each time.
    let reads = fleet.memory.reads();
    let (_, rest) = token.split_once('.').expect("a header");
    for at in 0..50 {
        use base64::Engine as _;
        let header = format!(r#"{{"alg":"ES256","typ":"at+jwt","kid":"nobody-{at}"}}"#);
        let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(header);
        let forged = format!("{header}.{rest}");
        assert!(there.service.check_access(&forged, there.service.now()).await.is_err());
    }
    let looked = fleet.memory.reads() - reads;
    assert!(looked < 25, "{looked} reads for 50 forged tokens");
}

/// To say that it revoked nothing would leave a good token good.
#[tokio::test]
async fn a_token_whose_key_cannot_be_looked_for_is_not_called_unknown() {
    let fleet = Fleet::of(2).await;
    let (here, there) = two(&fleet);
    let operator = here.powerful("operator").await;
    fleet.lines[1].hold_events();
    let token = token_of_a_new_key(here, there, &operator).await;
    fleet.lines[1].cut();
    let (system, origin) = (Caller::system(), Origin::default());
    let revoke = || {
        let what = What::Token(SecretText::new(token.clone()));
        there.service.revoke(
            &system,
            Request { what, stated: Stated::default(), wait: None },
            &origin,
        )
    };
    let refused = revoke().await;
    assert!(matches!(refused, Err(RevokeError::Store(StoreError::Unavailable(_)))), "{refused:?}");
    fleet.lines[1].heal();
    fleet.lines[1].release_events();
    let entry = loop {
        match revoke().await {
            Ok(outcome) => break outcome.entry,
            // It looks once a second.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    assert!(entry.is_some());
}

#[tokio::test]
async fn keys_that_another_replica_changed_are_in_use_when_the_event_comes() {
    let fleet = Fleet::of(2).await;
    let (here, there) = two(&fleet);
    let etag = |server: &Server| server.service.keys().current().etag().to_owned();
    let began = Instant::now();
    // The ring is read every five seconds in any case.
    for _ in 0..3 {
        new_signer(here).await;
        while etag(there) != etag(here) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_refresh_token_is_good_at_a_replica_that_has_not_heard_of_its_mac_key() {
    let fleet = Fleet::of(2).await;
    let (here, there) = two(&fleet);
    let app = here.first_party("app").await;
    here.add_user("ada").await;
    fleet.lines[1].hold_events();
    loop {
        for server in &fleet.servers {
            server.clock.advance(MAC_ROTATE_EVERY);
        }
        here.service.roll_keys().await.expect("rolled");
        // The ring is read there every five seconds, perhaps just now.
        let new = here.service.keys().current().active_mac();
        if !there.service.keys().current().has_mac(new) {
            break;
        }
    }
    let tokens = here.login(&app, "ada").await;
    let next = there.refresh(&app, &tokens.refresh_token).await.expect("it is good");
    here.refresh(&app, &next.refresh_token).await.expect("and so is what came of it");
}

#[tokio::test]
async fn keys_that_are_rotated_at_two_replicas_at_once_are_rotated_once() {
    let fleet = Fleet::of(2).await;
    let (here, there) = two(&fleet);
    let (system, origin) = (Caller::system(), Origin::default());
    for _ in 0..5 {
        let announced = here.service.create_key(&system, None, &origin).await.expect("announced");
        assert_eq!(here.service.keys().current().etag(), there.service.keys().current().etag());
        let (first, second) = tokio::join!(
            here.service.rotate_key(&system, &origin),
            there.service.rotate_key(&system, &origin),
        );
        for signing in [first.expect("rotated"), second.expect("rotated")] {
            assert_eq!((&signing.id, signing.state), (&announced.id, KeyState::Active));
        }
        // The other takes it over with the event.
        while here.service.keys().current().etag() != there.service.keys().current().etag() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    // What is due is done once, too.
    for server in &fleet.servers {
        server.clock.advance(Duration::from_secs(400 * 86_400));
    }
    let version = here.service.store().ring().await.expect("the ring").version;
    for _ in 0..4 {
        let (first, second) = tokio::join!(here.service.roll_keys(), there.service.roll_keys());
        first.expect("rolled");
        second.expect("rolled");
    }
    let ring = here.service.store().ring().await.expect("the ring");
    let macs = ring.mac_keys.iter().filter(|key| key.created_at == here.service.now()).count();
    let signing = ring.keys.iter().filter(|key| key.created_at == here.service.now()).count();
    assert!(macs == 1 && signing <= 2, "{macs} and {signing} new keys");
    let state = |state| ring.keys.iter().filter(|key| key.state == state).count();
    assert_eq!((state(KeyState::Active), state(KeyState::Announced)), (1, 1));
    assert!(ring.version > version);
}

#[tokio::test]
async fn a_client_that_is_disabled_at_one_replica_is_so_at_the_others_with_the_event() {
    let fleet = Fleet::of(2).await;
    let (here, there) = two(&fleet);
    let operator = here.powerful("operator").await;
    let app = here.first_party("app").await;
    here.add_user("ada").await;
    let token = here.login(&app, "ada").await.access_token;
    for client in [&operator, &app] {
        there.introspect(client, &token).await;
    }
    let id = operator.client_id.parse().expect("an id");
    here.service
        .set_client_disabled(&Caller::system(), id, true, &Origin::default())
        .await
        .expect("disabled");
    // It is in memory there, and younger than a second.
    let request = pb::IntrospectRequest {
        client: Some(operator.clone()),
        token: token.clone(),
        ..Default::default()
    };
    let refused = there.identity().introspect(request).await.expect_err("it is disabled");
    assert_refused(&refused, "a client that was disabled elsewhere");
    // One that logs in or refreshes is held against the store, whatever has been heard of.
    let tokens = there.login(&app, "ada").await;
    fleet.lines[1].hold_events();
    let id = app.client_id.parse().expect("an id");
    here.service
        .set_client_disabled(&Caller::system(), id, true, &Origin::default())
        .await
        .expect("disabled");
    let login = there.identity().authenticate(password_login(&app, "ada", PASSWORD)).await;
    assert_refused(&login.expect_err("it is disabled"), "a login");
    let refreshed = there.refresh(&app, &tokens.refresh_token).await;
    assert_refused(&refreshed.expect_err("it is disabled"), "a refresh");
}

#[tokio::test]
async fn failed_logins_count_wherever_they_were_tried() {
    let fleet = Fleet::with(2, |options| options.service.throttle.free_failures = 4).await;
    let (here, there) = two(&fleet);
    let app = here.first_party("app").await;
    here.add_user("ada").await;
    for at in 0..6 {
        let server = if at % 2 == 0 { here } else { there };
        let login = server.identity().authenticate(password_login(&app, "ada", "wrong")).await;
        let code = login.expect_err("it is wrong").code();
        let expected = if at < 5 { Code::Unauthenticated } else { Code::ResourceExhausted };
        assert_eq!(code, expected, "attempt {at}");
    }
}

#[tokio::test]
async fn a_token_that_is_refreshed_at_all_replicas_at_once_has_one_successor() {
    let fleet = Fleet::of(3).await;
    let app = fleet.servers[0].first_party("app").await;
    fleet.servers[0].add_user("ada").await;
    let mut token = fleet.servers[0].login(&app, "ada").await.refresh_token;
    for _ in 0..5 {
        let refreshes = (0..12).map(|at| {
            let request = pb::RefreshRequest {
                client: Some(app.clone()),
                refresh_token: token.clone(),
                ..Default::default()
            };
            let mut identity = fleet.servers[at % 3].identity();
            tokio::spawn(async move { identity.refresh(request).await })
        });
        let mut successors = Vec::new();
        for refresh in refreshes.collect::<Vec<_>>() {
            let answer = refresh.await.expect("an answer").expect("it is good");
            successors.push(answer.into_inner().tokens.expect("tokens").refresh_token);
        }
        successors.dedup();
        assert_eq!(successors.len(), 1);
        token = successors.swap_remove(0);
    }
}

#[tokio::test]
async fn an_answer_waits_for_the_revision_it_is_to_be_as_new_as() {
    let fleet = Fleet::of(2).await;
    let (here, there) = two(&fleet);
    let app = here.first_party("app").await;
    let operator = here.powerful("operator").await;
    here.add_user("ada").await;
    let tokens = here.login(&app, "ada").await;
    fleet.lines[1].hold_events();
    let target = Target::SessionId(tokens.session_id.clone());
    let cursor = here.revoke(&operator, target).await.expect("it may").cursor;
    let request = pb::IntrospectRequest {
        client: Some(operator.clone()),
        token: tokens.access_token.clone(),
        at_least: cursor.clone(),
        ..Default::default()
    };
    let began = Instant::now();
    let behind = there.identity().introspect(request.clone()).await.expect_err("it lags");
    assert_eq!((behind.code(), reason(&behind).as_str()), (Code::Unavailable, "REPLICA_BEHIND"));
    assert!(began.elapsed() >= Duration::from_secs(2), "it waited");
    let waiting = tokio::spawn({
        let (mut identity, request) = (there.identity(), request.clone());
        async move { identity.introspect(request).await }
    });
    fleet.lines[1].release_events();
    let answer = waiting.await.expect("an answer").expect("it has come").into_inner();
    assert_eq!(answer, pb::IntrospectResponse::default());
    let other = pb::Cursor { log_id: "AAAAAAAAAAAAAAAAAAAAAA".to_owned(), ..cursor.expect("one") };
    let request = pb::IntrospectRequest { at_least: Some(other), ..request };
    let refused = there.identity().introspect(request).await.expect_err("no such log");
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::FailedPrecondition, "OTHER_LOG")
    );
}

#[tokio::test]
async fn a_session_that_is_opened_at_one_replica_is_ended_at_another() {
    let fleet = Fleet::of(2).await;
    let (here, there) = two(&fleet);
    let app = here.first_party("app").await;
    here.add_user("ada").await;
    let tokens = here.login(&app, "ada").await;
    let next = there.refresh(&app, &tokens.refresh_token).await.expect("it is good");
    there.refresh(&app, &next.refresh_token).await.expect("it is good");
    // Reuse is reuse, wherever the token is used again.
    let reused = here.refresh(&app, &tokens.refresh_token).await;
    assert_refused(&reused.expect_err("it was used"), "reuse");
    assert!(!there.introspect(&app, &next.access_token).await.active);
}
