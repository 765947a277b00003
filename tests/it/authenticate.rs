//! Authenticate: a credential for tokens, and one answer for no (design.md, invariant 9).

use std::sync::Arc;
use std::time::Duration;

use avouch::app::{Options, StoreOptions};
use avouch::domain::caller::Caller;
use avouch::domain::client::{Client, ClientType};
use avouch::domain::clock::ManualClock;
use avouch::domain::entropy::SeededEntropy;
use avouch::domain::event::{Cause, Initiator, Reason, Target};
use avouch::domain::scope::Names;
use avouch::domain::secret::{SecretBytes, SecretText};
use avouch::domain::throttle::ThrottlePolicy;
use avouch::password::{HashParams, Hasher, Pepper, PoolSettings};
use avouch::pb::v1 as pb;
use avouch::service::admin::users::NewUser;
use avouch::service::journal::{Failure, Happening, Origin};
use avouch::store::{Changed, ClientChange, UserChange};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::{
    NOW, OWN_AUDIENCE, PASSWORD, Server, assert_refused, bearer, client, memory, options,
    password_login, reason, sled, wrong_fields,
};

async fn try_login(
    server: &Server,
    request: pb::AuthenticateRequest,
) -> Result<pb::TokenSet, tonic::Status> {
    Ok(server.identity().authenticate(request).await?.into_inner().tokens.expect("tokens"))
}

fn failures(server: &Server) -> Vec<Failure> {
    let of = |happening| match happening {
        Happening::LoginFailed { failure, .. } => Some(failure),
        _ => None,
    };
    server.journal.take().into_iter().filter_map(of).collect()
}

#[tokio::test]
async fn every_no_is_the_same_no() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let admin = server.powerful("admin").await;
    let credential = server.own_token(&admin).await;
    server.add_user("ada").await;
    let disabled = server.add_user("dora").await.to_string();
    let message = pb::DisableUserRequest { subject: disabled };
    server.admin().disable_user(bearer(message, &credential)).await.expect("disabled");
    let new = NewUser {
        username: "nopass".to_owned(),
        display_name: "".into(),
        password: None,
        scope: Names::default(),
    };
    let system = Caller::system();
    server.service.create_user(&system, new, &Origin::default()).await.expect("created");
    let wrong =
        |secret: &str| pb::ClientAuthentication { client_secret: secret.to_owned(), ..app.clone() };
    let nobody = pb::ClientAuthentication { client_id: "nobody".to_owned(), ..app.clone() };
    server.journal.take();
    let mut answers = Vec::new();
    for (client, name, password, failure) in [
        (&app, "nobody", PASSWORD, Failure::UnknownUser),
        (&app, "ada", "wrong", Failure::WrongPassword),
        (&app, "dora", PASSWORD, Failure::UserDisabled),
        (&app, "dora", "wrong", Failure::WrongPassword),
        (&app, "nopass", PASSWORD, Failure::NoPassword),
        (&wrong("x"), "ada", PASSWORD, Failure::WrongClientSecret),
        (&wrong(""), "ada", PASSWORD, Failure::WrongClientSecret),
        (&nobody, "ada", PASSWORD, Failure::UnknownClient),
    ] {
        let status = try_login(&server, password_login(client, name, password)).await;
        let status = status.expect_err(name);
        assert_refused(&status, name);
        assert_eq!(failures(&server), [failure], "the audit log knows why");
        let keys: Vec<_> = status.metadata().keys().map(|key| format!("{key:?}")).collect();
        answers.push((status.details().to_vec(), keys));
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
    server.login(&app, "ada").await;
}

#[tokio::test]
async fn the_password_grant_is_for_first_party_clients_and_a_secret_for_confidential_ones() {
    let server = Server::start().await;
    server.add_user("ada").await;
    let third = server.add_client(Client { first_party: false, ..client("third") }).await;
    for password in [PASSWORD, "wrong"] {
        let status = try_login(&server, password_login(&third, "ada", password)).await;
        let status = status.expect_err("not first-party");
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(reason(&status), "CLIENT_NOT_FIRST_PARTY");
    }
    let public = server.add_client(Client { kind: ClientType::Public, ..client("public") }).await;
    assert!(public.client_secret.is_empty());
    server.login(&public, "ada").await;
    let pretends = pb::ClientAuthentication { client_secret: "x".to_owned(), ..public.clone() };
    let status = try_login(&server, password_login(&pretends, "ada", PASSWORD)).await;
    assert_refused(&status.expect_err("it has no secret"), "a public client with a secret");
    let status = try_login(&server, client_credentials(&public)).await.expect_err("public");
    assert_eq!(reason(&status), "CLIENT_NOT_CONFIDENTIAL");
}

fn client_credentials(client: &pb::ClientAuthentication) -> pb::AuthenticateRequest {
    pb::AuthenticateRequest {
        client: Some(client.clone()),
        grant: Some(pb::authenticate_request::Grant::ClientCredentials(
            pb::ClientCredentialsGrant {},
        )),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_client_for_itself_gets_no_refresh_token_and_no_session() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let tokens = try_login(&server, client_credentials(&app)).await.expect("it is known");
    assert_eq!((tokens.refresh_token.as_str(), tokens.session_id.as_str()), ("", ""));
    assert_eq!((tokens.refresh_token_expire_time, tokens.session_expire_time), (None, None));
    assert_eq!(tokens.subject, "app");
    let claims = crate::tokens::payload(&tokens.access_token);
    for absent in ["sid", "auth_time", "amr"] {
        assert_eq!(claims.get(absent), None, "{absent}");
    }
}

#[tokio::test]
async fn more_than_the_client_may_have_is_denied_and_what_is_asked_for_is_what_is_given() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    for base in [password_login(&app, "ada", PASSWORD), client_credentials(&app)] {
        for (scopes, audiences, why) in [
            (&["admin"][..], &[][..], "SCOPE_NOT_ALLOWED"),
            (&["read", "admin"], &[], "SCOPE_NOT_ALLOWED"),
            (&["Read"], &[], "SCOPE_NOT_ALLOWED"),
            (&[], &["payments"], "AUDIENCE_NOT_ALLOWED"),
            (&[], &["orders", "payments"], "AUDIENCE_NOT_ALLOWED"),
            (&[], &["orders/"], "AUDIENCE_NOT_ALLOWED"),
        ] {
            let (scopes, audiences) = (names(scopes), names(audiences));
            let request = pb::AuthenticateRequest { scopes, audiences, ..base.clone() };
            let status = try_login(&server, request).await.expect_err(why);
            assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, why));
        }
        let request = pb::AuthenticateRequest {
            scopes: names(&["write"]),
            audiences: names(&[OWN_AUDIENCE]),
            ..base
        };
        let tokens = try_login(&server, request).await.expect("within");
        assert_eq!((tokens.scopes, tokens.audiences), (names(&["write"]), names(&[OWN_AUDIENCE])));
    }
}

#[tokio::test]
async fn one_name_in_many_spellings_is_one_account() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let alice = server.add_user("alice").await.to_string();
    let zoe = server.add_user("zo\u{eb}").await.to_string();
    for (name, subject) in [
        ("alice", &alice),
        ("ALICE", &alice),
        ("Alice", &alice),
        ("\u{ff21}lice", &alice),
        ("\u{ff41}\u{ff4c}\u{ff49}\u{ff43}\u{ff45}", &alice),
        ("zo\u{eb}", &zoe),
        ("zoe\u{308}", &zoe),
        ("ZOE\u{308}", &zoe),
    ] {
        assert_eq!(&server.login(&app, name).await.subject, subject, "{name}");
    }
    for name in ["\u{ff21}LICE", "Alice", "alice"] {
        let new = NewUser {
            username: name.to_owned(),
            display_name: "".into(),
            password: None,
            scope: Names::default(),
        };
        let created = server.service.create_user(&Caller::system(), new, &Origin::default()).await;
        assert!(created.is_err(), "{name} is taken");
    }
    for name in ["alice ", " alice", "ali\u{200d}ce", "al\u{0}ice", "\u{fb01}sh", "a\u{202e}b"] {
        let status = try_login(&server, password_login(&app, name, PASSWORD)).await;
        let status = status.expect_err(name);
        assert_eq!(wrong_fields(&status), ["password.username"], "{name:?}");
        assert!(!format!("{status:?}").contains(name), "never echoed: {status:?}");
    }
    // Another letter is another name: the dotless i.
    let status = try_login(&server, password_login(&app, "al\u{131}ce", PASSWORD)).await;
    assert_refused(&status.expect_err("nobody"), "a dotless i");
}

#[tokio::test]
async fn a_password_is_its_characters_in_either_normal_form_and_nothing_less() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let set = "caf\u{e9} cl\u{e9}ment horse battery";
    let new = NewUser {
        username: "ada".to_owned(),
        display_name: "".into(),
        password: Some(SecretText::new(set.to_owned())),
        scope: Names::default(),
    };
    let system = Caller::system();
    server.service.create_user(&system, new, &Origin::default()).await.expect("created");
    let decomposed = set.replace('\u{e9}', "e\u{301}");
    for password in [set, &decomposed] {
        try_login(&server, password_login(&app, "ada", password)).await.expect("the same text");
    }
    let upper = set.to_uppercase();
    let (before, after) = (format!(" {set}"), format!("{set} "));
    for password in [&upper, &before, &after, &set[..set.len() - 1], &set.replace('\u{e9}', "e")] {
        let status = try_login(&server, password_login(&app, "ada", password)).await;
        assert_refused(&status.expect_err("another password"), password);
    }
}

#[tokio::test]
async fn a_malformed_request_names_all_its_fields_and_no_value() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    let value = "s3cret\u{1}value";
    let good = password_login(&app, "ada", PASSWORD);
    let device = |device: pb::Device| Some(device);
    for (request, fields) in [
        (pb::AuthenticateRequest { client: None, ..good.clone() }, &["client.client_id"][..]),
        (pb::AuthenticateRequest { grant: None, ..good.clone() }, &["grant"]),
        (password_login(&app, "", ""), &["password.username", "password.password"]),
        (password_login(&app, &"x".repeat(1025), "x"), &["password.username"]),
        (password_login(&app, "ada", &"x".repeat(4097)), &["password.password"]),
        (
            pb::AuthenticateRequest {
                scopes: vec![value.to_owned()],
                audiences: vec!["a".to_owned(), "a".to_owned()],
                ..good.clone()
            },
            &["scopes", "audiences"],
        ),
        (
            pb::AuthenticateRequest {
                device: device(pb::Device { device_name: value.into(), ..Default::default() }),
                ..good.clone()
            },
            &["device.device_name"],
        ),
        (
            pb::AuthenticateRequest {
                device: device(pb::Device { end_user_address: value.into(), ..Default::default() }),
                ..good
            },
            &["device.end_user_address"],
        ),
    ] {
        let status = try_login(&server, request).await.expect_err("malformed");
        assert_eq!(wrong_fields(&status), fields);
        assert!(!format!("{status:?}").contains("s3cret"), "{status:?}");
    }
    let subject = server.login(&app, "ada").await.subject.parse().expect("a subject");
    let sessions =
        server.service.store().sessions_of(&subject, None, 100).await.expect("the store");
    assert_eq!(sessions.len(), 1, "what was malformed opened nothing");
}

fn throttled(store: StoreOptions) -> Options {
    let mut options = options(store);
    options.service.throttle = ThrottlePolicy { free_failures: 3, ..Default::default() };
    options
}

fn from(request: pb::AuthenticateRequest, address: &str) -> pb::AuthenticateRequest {
    let device = pb::Device { end_user_address: address.to_owned(), ..Default::default() };
    pb::AuthenticateRequest { device: Some(device), ..request }
}

#[tokio::test]
async fn guesses_are_slowed_by_account_and_source_whether_or_not_the_name_exists() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = || sled(directory.path());
    let server = Server::with(throttled(store()), Arc::new(ManualClock::new(NOW))).await;
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    server.add_user("eve").await;
    let mut answers = Vec::new();
    for name in ["ada", "nobody"] {
        for _ in 0..4 {
            let status = try_login(&server, password_login(&app, name, "wrong")).await;
            assert_refused(&status.expect_err("wrong"), name);
        }
        // The right password does not help while the source waits.
        let status = try_login(&server, password_login(&app, name, PASSWORD)).await;
        let status = status.expect_err("throttled");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert_eq!(reason(&status), "TOO_MANY_ATTEMPTS");
        let delay = status.get_details_retry_info().expect("RetryInfo").retry_delay;
        assert_eq!(delay, Some(Duration::from_secs(1)));
        answers.push((status.message().to_owned(), status.details().to_vec()));
    }
    assert_eq!(answers[0], answers[1], "names that exist look like names that do not");
    try_login(&server, from(password_login(&app, "ada", PASSWORD), "203.0.113.9"))
        .await
        .expect("another source is not affected");
    server.login(&app, "eve").await;
    let server = server.restart(throttled(store())).await;
    let status = try_login(&server, password_login(&app, "ada", PASSWORD)).await;
    assert_eq!(status.expect_err("it remembers").code(), Code::ResourceExhausted);
    server.clock.set(NOW.before(Duration::from_secs(3600)));
    let status = try_login(&server, password_login(&app, "ada", PASSWORD)).await;
    let status = status.expect_err("a clock that steps back is no way out");
    assert_eq!(status.code(), Code::ResourceExhausted);
    server.clock.set(NOW.after(Duration::from_secs(1)));
    server.login(&app, "ada").await;
    for _ in 0..4 {
        let status = try_login(&server, password_login(&app, "ada", "wrong")).await;
        assert_refused(&status.expect_err("wrong"), "success reset the count");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn parallel_guesses_are_counted_before_they_are_looked_at() {
    let server = Server::with(throttled(memory()), Arc::new(ManualClock::new(NOW))).await;
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    let guesses: Vec<_> = (0..64)
        .map(|_| {
            let (mut identity, request) = (server.identity(), password_login(&app, "ada", "wrong"));
            tokio::spawn(async move { identity.authenticate(request).await.expect_err("wrong") })
        })
        .collect();
    let mut looked_at = 0;
    for guess in guesses {
        match guess.await.expect("no panic").code() {
            Code::Unauthenticated => looked_at += 1,
            code => assert_eq!(code, Code::ResourceExhausted),
        }
    }
    assert_eq!(looked_at, 4, "three that are free and the one that starts the wait");
}

#[tokio::test]
async fn a_new_password_that_the_rules_refuse_is_no_failed_guess() {
    let server = Server::with(throttled(memory()), Arc::new(ManualClock::new(NOW))).await;
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    for _ in 0..10 {
        let message = pb::ChangePasswordRequest {
            client: Some(app.clone()),
            username: "ada".to_owned(),
            password: PASSWORD.to_owned(),
            new_password: "short".to_owned(),
            device: None,
        };
        let status = server.admin().change_password(message).await.expect_err("too short");
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    }
    server.login(&app, "ada").await;
}

/// A server where ada may have three sessions, her client, and one with every right.
async fn server_for_three_sessions() -> (Server, pb::ClientAuthentication, pb::ClientAuthentication)
{
    let mut options = options(memory());
    options.service.max_sessions_per_subject = 3;
    let server = Server::with(options, Arc::new(ManualClock::new(NOW))).await;
    let app = server.first_party("app").await;
    let operator = server.powerful("operator").await;
    server.add_user("ada").await;
    (server, app, operator)
}

#[tokio::test]
async fn beyond_the_limit_the_oldest_session_goes_with_its_event() {
    let (server, app, operator) = server_for_three_sessions().await;
    let mut sessions = Vec::new();
    for number in 0..6 {
        server.clock.advance(Duration::from_secs(1));
        sessions.push(server.login(&app, "ada").await);
        let log = server.log();
        assert_eq!(log.len(), usize::try_from(number).expect("small").saturating_sub(2));
    }
    for (event, gone) in server.log().iter().zip(&sessions) {
        assert_eq!(event.cause.reason, Reason::SessionSuperseded);
        assert!(
            matches!(&event.target, Target::Session { id, .. } if id.to_string() == gone.session_id)
        );
    }
    for (number, tokens) in sessions.iter().enumerate() {
        for token in [&tokens.access_token, &tokens.refresh_token] {
            assert_eq!(server.introspect(&operator, token).await.active, number >= 3);
        }
    }
}

#[tokio::test]
async fn after_the_limit_is_lowered_a_login_ends_what_is_beyond_it_each_with_its_event() {
    let directory = tempfile::tempdir().expect("a directory");
    let limited = |limit| {
        let mut options = options(sled(directory.path()));
        options.service.max_sessions_per_subject = limit;
        options
    };
    let server = Server::with(limited(10), Arc::new(ManualClock::new(NOW))).await;
    let app = server.first_party("app").await;
    let operator = server.powerful("operator").await;
    server.add_user("ada").await;
    server.add_user("eve").await;
    let mut sessions = Vec::new();
    for _ in 0..10 {
        server.clock.advance(Duration::from_secs(1));
        sessions.push(server.login(&app, "ada").await);
        server.login(&app, "eve").await;
    }
    // One that is over already gets no second event.
    let target = pb::revoke_request::Target::SessionId(sessions[1].session_id.clone());
    server.revoke(&app, target).await.expect("its own");
    let server = server.restart(limited(3)).await;
    server.journal.take();
    sessions.push(server.login(&app, "ada").await);
    let ended = server.log().into_iter().filter_map(|event| match event.target {
        Target::Session { id, .. } if event.cause.reason == Reason::SessionSuperseded => {
            Some(id.to_string())
        }
        _ => None,
    });
    let gone = [0, 2, 3, 4, 5, 6, 7].map(|number: usize| sessions[number].session_id.clone());
    assert_eq!(ended.collect::<Vec<_>>(), gone, "the oldest first, and nobody else's");
    let journal = server.journal.take();
    let told = journal.iter().filter(|happening| match happening {
        Happening::Revoked { .. } => true,
        Happening::LoginSucceeded { evicted, .. } => evicted.is_some(),
        _ => false,
    });
    assert_eq!(told.count(), gone.len(), "the audit log hears of each");
    assert_eq!(live_sessions(&server, &operator, &sessions).await, 3);
    for tokens in &sessions[8..] {
        server.refresh(&app, &tokens.refresh_token).await.expect("it goes on");
    }
    sessions.push(server.login(&app, "ada").await);
    assert_eq!(server.log().len(), gone.len() + 2, "from here on one goes for each that comes");
}

/// Few enough to be seen at one look, which finds that there are too many.
#[tokio::test]
async fn after_the_limit_is_lowered_a_little_a_login_ends_what_is_beyond_it() {
    lower_the_limit_after(0).await;
}

/// So many have ended since that a look ends with as many live ones as the limit allows, and there are more.
#[tokio::test]
async fn ended_sessions_do_not_hide_live_ones_from_a_lowered_limit() {
    lower_the_limit_after(3).await;
}

/// Five live sessions, then some that end at once; then three are allowed.
async fn lower_the_limit_after(ended: usize) {
    let directory = tempfile::tempdir().expect("a directory");
    let limited = |limit| {
        let mut options = options(sled(directory.path()));
        options.service.max_sessions_per_subject = limit;
        options
    };
    let server = Server::with(limited(50), Arc::new(ManualClock::new(NOW))).await;
    let app = server.first_party("app").await;
    let operator = server.powerful("operator").await;
    server.add_user("ada").await;
    let mut sessions = Vec::new();
    for _ in 0..5 {
        server.clock.advance(Duration::from_secs(1));
        sessions.push(server.login(&app, "ada").await);
    }
    for _ in 0..ended {
        server.clock.advance(Duration::from_secs(1));
        let tokens = server.login(&app, "ada").await;
        let target = pb::revoke_request::Target::SessionId(tokens.session_id);
        server.revoke(&app, target).await.expect("its own");
    }
    let server = server.restart(limited(3)).await;
    server.clock.advance(Duration::from_secs(1));
    sessions.push(server.login(&app, "ada").await);
    assert_eq!(live_sessions(&server, &operator, &sessions).await, 3);
    for tokens in &sessions[3..] {
        server.refresh(&app, &tokens.refresh_token).await.expect("it goes on");
    }
    assert_eq!(server.log().len(), ended + 3, "each with an event of its own");
}

async fn live_sessions(
    server: &Server,
    client: &pb::ClientAuthentication,
    sessions: &[pb::TokenSet],
) -> usize {
    let mut live = 0;
    for tokens in sessions {
        live += usize::from(server.introspect(client, &tokens.refresh_token).await.active);
    }
    live
}

#[tokio::test]
async fn ended_sessions_do_not_hide_live_ones_from_the_limit() {
    let (server, app, operator) = server_for_three_sessions().await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        server.clock.advance(Duration::from_secs(1));
        sessions.push(server.login(&app, "ada").await);
    }
    for _ in 0..10 {
        server.clock.advance(Duration::from_secs(1));
        let tokens = server.login(&app, "ada").await;
        let target = pb::revoke_request::Target::SessionId(tokens.session_id);
        server.revoke(&app, target).await.expect("its own");
    }
    for _ in 0..3 {
        server.clock.advance(Duration::from_secs(1));
        sessions.push(server.login(&app, "ada").await);
    }
    assert_eq!(live_sessions(&server, &operator, &sessions).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn logins_at_once_stay_within_the_limit() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut options = options(sled(directory.path()));
    options.service.max_sessions_per_subject = 3;
    let server = Server::with(options, Arc::new(ManualClock::new(NOW))).await;
    let app = server.first_party("app").await;
    let operator = server.powerful("operator").await;
    server.add_user("ada").await;
    let logins: Vec<_> = (0..32)
        .map(|_| {
            let (mut identity, request) =
                (server.identity(), password_login(&app, "ada", PASSWORD));
            tokio::spawn(async move { identity.authenticate(request).await })
        })
        .collect();
    let mut sessions = Vec::new();
    for login in logins {
        if let Ok(answer) = login.await.expect("no panic") {
            sessions.push(answer.into_inner().tokens.expect("tokens"));
        }
    }
    assert!(sessions.len() > 3, "{} logins succeeded", sessions.len());
    assert_eq!(live_sessions(&server, &operator, &sessions).await, 3);
}

#[tokio::test]
async fn a_login_hashes_anew_when_the_parameters_have_risen() {
    let directory = tempfile::tempdir().expect("a directory");
    let clock = Arc::new(ManualClock::new(NOW));
    let server = Server::with(options(sled(directory.path())), clock).await;
    let app = server.first_party("app").await;
    let subject = server.add_user("ada").await;
    let hash = async |server: &Server| {
        let user =
            server.service.store().find_user(&subject).await.expect("the store").expect("ada");
        user.password_hash.expect("a hash").expose().to_owned()
    };
    let tokens = server.login(&app, "ada").await;
    let old = hash(&server).await;
    assert!(old.contains("m=64,t=1,p=1"), "{old}");
    let mut risen = options(sled(directory.path()));
    risen.hash = HashParams::new(7168, 5, 1).expect("strong");
    let server = server.restart(risen).await;
    let status = try_login(&server, password_login(&app, "ada", "wrong")).await;
    assert_refused(&status.expect_err("wrong"), "wrong");
    assert_eq!(hash(&server).await, old, "a wrong password changes nothing");
    server.login(&app, "ada").await;
    let new = hash(&server).await;
    assert!(new.contains("m=7168,t=5,p=1"), "{new}");
    server.login(&app, "ada").await;
    assert_eq!(hash(&server).await, new, "once is enough");
    assert!(server.log().is_empty(), "the password is the same: nothing is revoked");
    server.refresh(&app, &tokens.refresh_token).await.expect("the session goes on");
}

/// A stored hash of [`PASSWORD`] with these settings, from another server.
async fn hash_with(hash: HashParams) -> SecretText {
    let entropy = Arc::new(SeededEntropy::new(1));
    let pool = PoolSettings { workers: 1, ..PoolSettings::default() };
    let hasher = Hasher::new(hash, pool, entropy).expect("a hasher");
    hasher.hash(0, SecretText::new(PASSWORD.to_owned())).await.expect("a hash").to_phc()
}

/// Time is not looked at here: what takes it is. `cargo bench --bench parts -- --only logins` measures.
#[tokio::test]
async fn every_refused_login_costs_the_same_work_whoever_exists() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut options = options(sled(directory.path()));
    options.hash = HashParams::new(12_288, 3, 1).expect("strong");
    options.service.throttle = ThrottlePolicy { free_failures: 1, ..Default::default() };
    let server = Server::with(options, Arc::new(ManualClock::new(NOW))).await;
    let app = server.first_party("app").await;
    let system = Caller::system();
    let legacy = hash_with(HashParams::weak_for_tests()).await;
    let shaped = hash_with(HashParams::new(7168, 5, 1).expect("strong")).await;
    for (name, password, hash, disabled) in [
        ("current", true, None, false),
        ("disabled", true, None, true),
        ("without", false, None, false),
        ("legacy", false, Some(legacy), false),
        ("legacy-disabled", false, Some(shaped.clone()), true),
        ("shaped", false, Some(shaped), false),
    ] {
        let new = NewUser {
            username: name.to_owned(),
            display_name: "".into(),
            password: password.then(|| SecretText::new(PASSWORD.to_owned())),
            scope: Names::default(),
        };
        let user = server.service.create_user(&system, new, &Origin::default()).await;
        let subject = user.expect("the user is new").subject;
        let change =
            UserChange { password_hash: hash, disabled: Some(disabled), ..UserChange::default() };
        let store = server.service.store();
        store.change_user(subject, change, None, NOW).await.expect("changed");
    }
    let counted = || {
        let (hashes, store) = (server.service.hash_stats(), server.service.store().status());
        (hashes.completed, hashes.work_kib, store.commits)
    };
    for (number, (name, password)) in (0..).zip([
        ("nobody", "wrong"),
        ("nobody", PASSWORD),
        ("current", "wrong"),
        ("disabled", "wrong"),
        ("disabled", PASSWORD),
        ("without", PASSWORD),
        ("legacy", "wrong"),
        ("legacy-disabled", PASSWORD),
        ("shaped", "wrong"),
    ]) {
        // Each is the first from its source, as whoever looks for names would make it.
        let number: u8 = number;
        let request = from(password_login(&app, name, password), &format!("10.0.0.{number}"));
        let before = counted();
        let status = try_login(&server, request).await.expect_err(name);
        let after = counted();
        assert_refused(&status, name);
        assert_eq!(after.0 - before.0, 1, "{name}: one hash");
        let (work, usual) = (after.1 - before.1, 12_288 * 3);
        assert!(work.abs_diff(usual) * 100 <= usual, "{name}: {work} KiB of work");
        assert_eq!(after.2 - before.2, 1, "{name}: one commit");
    }
    // Whoever is locked out waits for no hash and makes the same commits, known or not.
    let mut locked_out = Vec::new();
    for name in ["nobody", "current"] {
        for attempt in 0..3 {
            let before = counted();
            let request = from(password_login(&app, name, "wrong"), "10.0.1.1");
            let status = try_login(&server, request).await.expect_err(name);
            let after = counted();
            let code = if attempt < 2 { Code::Unauthenticated } else { Code::ResourceExhausted };
            assert_eq!(status.code(), code, "{name}");
            locked_out.push((after.0 - before.0, after.1 - before.1, after.2 - before.2));
        }
    }
    assert_eq!(locked_out[..3], locked_out[3..]);
    assert_eq!(locked_out[2].0, 0, "no hash");
}

#[tokio::test]
async fn with_a_pepper_the_store_and_the_password_are_not_enough() {
    let directory = tempfile::tempdir().expect("a directory");
    let seasoned = |keys: &[(u16, u8)]| {
        let mut options = options(sled(directory.path()));
        let key = |&(version, byte)| {
            (std::num::NonZeroU16::new(version).expect("a version"), SecretBytes::new([byte; 32]))
        };
        if !keys.is_empty() {
            options.pepper = Pepper::new(keys.iter().map(key).collect()).expect("a pepper");
        }
        options
    };
    let server = Server::with(seasoned(&[]), Arc::new(ManualClock::new(NOW))).await;
    let app = server.first_party("app").await;
    let subject = server.add_user("ada").await;
    let hash = async |server: &Server| {
        let user =
            server.service.store().find_user(&subject).await.expect("the store").expect("ada");
        user.password_hash.expect("a hash").expose().to_owned()
    };
    let tokens = server.login(&app, "ada").await;
    let plain = hash(&server).await;
    assert!(!plain.contains("keyid"), "{plain}");

    // A pepper comes: hashes without it still check, and the next login replaces them.
    let server = server.restart(seasoned(&[(1, 1)])).await;
    let status = try_login(&server, password_login(&app, "ada", "wrong")).await;
    assert_refused(&status.expect_err("wrong"), "wrong");
    assert_eq!(hash(&server).await, plain, "a wrong password changes nothing");
    server.login(&app, "ada").await;
    let first = hash(&server).await;
    assert!(first.contains(",keyid=AAE$"), "{first}");
    server.login(&app, "ada").await;
    assert_eq!(hash(&server).await, first, "once is enough");

    // A newer key comes.
    let mut server = server.restart(seasoned(&[(1, 1), (2, 2)])).await;
    server.login(&app, "ada").await;
    let second = hash(&server).await;
    assert!(second.contains(",keyid=AAI$"), "{second}");

    // The store and the password without the key, with another key of its version, with an old one.
    for keys in [&[][..], &[(2, 3)], &[(1, 1)]] {
        server = server.restart(seasoned(keys)).await;
        let status = try_login(&server, password_login(&app, "ada", PASSWORD)).await;
        assert_refused(&status.expect_err("the key is missing"), "the key is missing");
        assert_eq!(hash(&server).await, second, "it changes nothing");
    }
    // The old key is of no use any more.
    let server = server.restart(seasoned(&[(2, 2)])).await;
    server.login(&app, "ada").await;
    assert!(server.log().is_empty(), "the password is the same: nothing is revoked");
    server.refresh(&app, &tokens.refresh_token).await.expect("the session goes on");
}

#[tokio::test]
async fn two_users_with_one_password_have_two_hashes_and_no_plain_text() {
    let server = Server::start().await;
    let hash = async |name: &str| {
        let subject = server.add_user(name).await;
        let user =
            server.service.store().find_user(&subject).await.expect("the store").expect("a user");
        user.password_hash.expect("a hash").expose().to_owned()
    };
    let (ada, eve) = (hash("ada").await, hash("eve").await);
    assert_ne!(ada, eve);
    assert!(ada.starts_with("$argon2id$") && !ada.contains(PASSWORD));
}

/// The moment between the commit that disables a client and the news of it in the service, where the
/// registration is still in memory.
#[tokio::test]
async fn a_client_that_was_disabled_this_moment_gets_nothing() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    let tokens = server.login(&app, "ada").await;
    let cause = Cause { reason: Reason::ClientDisabled, initiator: Initiator::Admin };
    let id = app.client_id.parse().expect("an id");
    let disabled = ClientChange::Disabled(true);
    let changed = server.service.store().change_client(id, disabled, Some(cause), NOW).await;
    assert!(matches!(changed, Ok(Changed::Done(_, Some(_)))));
    let by_secret = pb::AuthenticateRequest {
        client: Some(app.clone()),
        grant: Some(pb::authenticate_request::Grant::ClientCredentials(
            pb::ClientCredentialsGrant {},
        )),
        ..Default::default()
    };
    for (request, what) in
        [(by_secret, "by its secret"), (password_login(&app, "ada", PASSWORD), "by password")]
    {
        assert_refused(&try_login(&server, request).await.expect_err(what), what);
    }
    let status = server.refresh(&app, &tokens.refresh_token).await.expect_err("disabled");
    assert_refused(&status, "by refresh");
}
