//! Administration: who may, and that each change that ends tokens is one event.

use avouch::domain::caller::{Grant, Right};
use avouch::domain::client::Client;
use avouch::domain::event::{Initiator, Reason};
use avouch::pb::v1 as pb;
use avouch::pb::v1::admin_service_client::AdminServiceClient;
use avouch::pb::v1::authenticate_request::Grant as Credential;
use avouch::pb::v1::identity_service_client::IdentityServiceClient;
use avouch::service::journal::Happening;
use tonic::Code;

use crate::harness::{
    OWN_AUDIENCE, PASSWORD, Server, assert_refused, bearer, client, password_login, reason,
    wrong_fields,
};
use crate::process::{Cast, PATIENCE, Process, channel, metric, ops};

const NEW_PASSWORD: &str = "another horse battery staple";

struct Bench {
    server: Server,
    app: pb::ClientAuthentication,
    credential: String,
    subject: String,
}

impl Bench {
    async fn new() -> Self {
        let server = Server::start().await;
        let app = server.first_party("app").await;
        let operator = server.powerful("operator").await;
        let subject = server.add_user("ada").await.to_string();
        let credential = server.own_token(&operator).await;
        Self { server, app, credential, subject }
    }
}

fn registration(id: &str) -> pb::Client {
    pb::Client {
        client_id: id.to_owned(),
        r#type: pb::ClientType::Confidential.into(),
        audiences: vec!["orders".to_owned()],
        ..Default::default()
    }
}

/// Calls every RPC of the service with this credential, or none, and gives the statuses.
async fn every_rpc(bench: &Bench, token: Option<&str>) -> Vec<(&'static str, tonic::Status)> {
    let mut admin = bench.server.admin();
    let mut refused = Vec::new();
    let subject = bench.subject.clone();
    let client_id = "app".to_owned();
    macro_rules! call {
        ($method:ident, $message:expr) => {{
            let request = match token {
                Some(token) => bearer($message, token),
                None => tonic::Request::new($message),
            };
            let status = admin.$method(request).await.expect_err(stringify!($method));
            refused.push((stringify!($method), status));
        }};
    }
    call!(create_user, pb::CreateUserRequest { username: "eve".into(), ..Default::default() });
    call!(get_user, pb::GetUserRequest { subject: subject.clone(), ..Default::default() });
    call!(list_users, pb::ListUsersRequest::default());
    call!(update_user, pb::UpdateUserRequest { subject: subject.clone(), ..Default::default() });
    call!(
        set_user_password,
        pb::SetUserPasswordRequest { subject: subject.clone(), password: NEW_PASSWORD.into() }
    );
    call!(disable_user, pb::DisableUserRequest { subject: subject.clone() });
    call!(enable_user, pb::EnableUserRequest { subject: subject.clone() });
    call!(delete_user, pb::DeleteUserRequest { subject });
    call!(create_client, pb::CreateClientRequest { client: Some(registration("new")) });
    call!(get_client, pb::GetClientRequest { client_id: client_id.clone() });
    call!(list_clients, pb::ListClientsRequest::default());
    call!(update_client, pb::UpdateClientRequest { client: Some(registration("app")) });
    call!(
        rotate_client_secret,
        pb::RotateClientSecretRequest { client_id: client_id.clone(), revoke_issued: true }
    );
    call!(disable_client, pb::DisableClientRequest { client_id: client_id.clone() });
    call!(enable_client, pb::EnableClientRequest { client_id: client_id.clone() });
    call!(delete_client, pb::DeleteClientRequest { client_id });
    call!(create_key, pb::CreateKeyRequest::default());
    call!(get_key, pb::GetKeyRequest { kid: "x".into() });
    call!(list_keys, pb::ListKeysRequest {});
    call!(rotate_key, pb::RotateKeyRequest {});
    call!(revoke_key, pb::RevokeKeyRequest { kid: "x".into(), reason: 0 });
    refused
}

#[tokio::test]
async fn nobody_without_the_right_administers_anything() {
    let bench = Bench::new().await;
    let tokens = bench.server.login(&bench.app, "ada").await;
    let admin = Grant::unlimited(Right::Admin);
    let others = Right::ALL.into_iter().filter(|it| ![Right::Admin, Right::Backup].contains(it));
    let limited = [
        ("no-right", Vec::new()),
        ("others", others.map(Grant::unlimited).collect()),
        ("audience", vec![Grant { audience: Some("orders".into()), ..admin.clone() }]),
        ("client", vec![Grant { client: Some("app".parse().expect("id")), ..admin.clone() }]),
        (
            "subject",
            vec![Grant { subject: Some(bench.subject.parse().expect("id")), ..admin.clone() }],
        ),
    ];
    for (id, grants) in limited {
        let caller = bench.server.add_client(Client { grants, ..client(id) }).await;
        let token = bench.server.own_token(&caller).await;
        bench.server.journal.take();
        for (method, status) in every_rpc(&bench, Some(&token)).await {
            assert_eq!(status.code(), Code::PermissionDenied, "{id} {method}: {status:?}");
        }
        let journal = bench.server.journal.take();
        let denied = journal.iter().filter(|h| matches!(h, Happening::Denied { .. })).count();
        assert_eq!(denied, 21, "{id}: the audit log hears of each");
    }
    for (method, status) in every_rpc(&bench, Some(&tokens.access_token)).await {
        assert_eq!(status.code(), Code::PermissionDenied, "a user: {method}");
    }
    for (method, status) in every_rpc(&bench, None).await {
        assert_eq!(status.code(), Code::Unauthenticated, "nobody: {method}");
    }
    assert!(bench.server.log().is_empty());
    bench.server.login(&bench.app, "ada").await;
}

/// What a backup holds is sealed: who makes them has to be trusted with nothing else.
#[tokio::test]
async fn who_may_make_backups_may_do_nothing_else_here() {
    let bench = Bench::new().await;
    let others = Right::ALL.into_iter().filter(|it| ![Right::Admin, Right::Backup].contains(it));
    for (id, rights, may) in [
        ("others", others.collect(), false),
        ("admin", vec![Right::Admin], true),
        ("backup", vec![Right::Backup], true),
    ] {
        let grants = rights.into_iter().map(Grant::unlimited).collect();
        let caller = bench.server.add_client(Client { grants, ..client(id) }).await;
        let token = bench.server.own_token(&caller).await;
        let request = bearer(pb::CreateBackupRequest {}, &token);
        let answer = bench.server.admin().create_backup(request).await.map(drop);
        // Not every store has one to give.
        let denied = answer.is_err_and(|status| status.code() == Code::PermissionDenied);
        assert_eq!(denied, !may, "{id}");
        if id == "backup" {
            for (method, status) in every_rpc(&bench, Some(&token)).await {
                assert_eq!(status.code(), Code::PermissionDenied, "{method}: {status:?}");
            }
        }
    }
}

#[tokio::test]
async fn each_change_of_a_user_that_ends_tokens_is_one_event() {
    let bench = Bench::new().await;
    let mut admin = bench.server.admin();
    let subject = || bench.subject.clone();
    let ended = async |tokens: &pb::TokenSet| {
        bench.server.refresh(&bench.app, &tokens.refresh_token).await.is_err()
    };
    macro_rules! call {
        ($method:ident, $message:expr) => {
            admin.$method(bearer($message, &bench.credential)).await.expect("done").into_inner()
        };
    }
    let tokens = bench.server.login(&bench.app, "ada").await;
    let display_name = Some("Ada".to_owned());
    let answer = call!(
        update_user,
        pb::UpdateUserRequest { subject: subject(), display_name, ..Default::default() }
    );
    assert_eq!((answer.revoked, bench.server.log().len()), (None, 0));
    call!(enable_user, pb::EnableUserRequest { subject: subject() });
    assert!(!ended(&tokens).await, "no such change ends a token");

    let mut expected = Vec::new();
    for change in ["scopes", "password", "disabled", "deleted"] {
        let tokens = bench.server.login(&bench.app, "ada").await;
        let (revoked, cursor, why) = match change {
            "scopes" => {
                let scopes = Some(pb::ScopeList { scopes: vec!["read".to_owned()] });
                let message =
                    pb::UpdateUserRequest { subject: subject(), scopes, ..Default::default() };
                let answer = call!(update_user, message.clone());
                assert_eq!(call!(update_user, message).revoked, None, "no change, no event");
                (answer.revoked, answer.cursor, Reason::ClaimsChanged)
            }
            "password" => {
                let message =
                    pb::SetUserPasswordRequest { subject: subject(), password: PASSWORD.into() };
                let answer = call!(set_user_password, message);
                (answer.revoked, answer.cursor, Reason::CredentialChanged)
            }
            "disabled" => {
                let message = pb::DisableUserRequest { subject: subject() };
                let answer = call!(disable_user, message.clone());
                assert_eq!(call!(disable_user, message).revoked, None, "no change, no event");
                call!(enable_user, pb::EnableUserRequest { subject: subject() });
                (answer.revoked, answer.cursor, Reason::AccountDisabled)
            }
            _ => {
                let message = pb::DeleteUserRequest { subject: subject() };
                let answer = call!(delete_user, message.clone());
                assert_eq!(call!(delete_user, message).revoked, None, "no change, no event");
                (answer.revoked, answer.cursor, Reason::AccountDeleted)
            }
        };
        expected.push(why);
        let event = revoked.expect(change);
        assert_eq!(event.revision, cursor.expect("a cursor").revision);
        assert!(ended(&tokens).await, "{change}");
        let log = bench.server.log();
        let reasons: Vec<_> = log.iter().map(|event| event.cause.reason).collect();
        assert_eq!(reasons, expected, "{change}");
        assert_eq!(log[log.len() - 1].cause.initiator, Initiator::Admin);
    }
    let get = pb::GetUserRequest { subject: subject(), ..Default::default() };
    let status = admin.get_user(bearer(get, &bench.credential)).await.expect_err("deleted");
    assert_eq!(status.code(), Code::NotFound);
    let request = password_login(&bench.app, "ada", PASSWORD);
    let status = bench.server.identity().authenticate(request).await.expect_err("deleted");
    assert_refused(&status, "a deleted user");
    // The name is free, and who takes it now is somebody else.
    let again = bench.server.add_user("ada").await.to_string();
    assert_ne!(again, bench.subject);
}

#[tokio::test]
async fn each_change_of_a_client_that_ends_tokens_is_one_event() {
    let bench = Bench::new().await;
    let mut admin = bench.server.admin();
    macro_rules! call {
        ($method:ident, $message:expr) => {
            admin.$method(bearer($message, &bench.credential)).await.expect("done").into_inner()
        };
    }
    let id = || "app".to_owned();
    let mut app = bench.app.clone();
    for (revoke_issued, events) in [(false, 0), (true, 1)] {
        let tokens = bench.server.login(&app, "ada").await;
        let message = pb::RotateClientSecretRequest { client_id: id(), revoke_issued };
        let answer = call!(rotate_client_secret, message);
        assert_eq!(bench.server.log().len(), events);
        assert_eq!(answer.revoked.is_some(), revoke_issued);
        let request = password_login(&app, "ada", PASSWORD);
        let status = bench.server.identity().authenticate(request).await.expect_err("old secret");
        assert_refused(&status, "the old secret");
        let status = bench.server.refresh(&app, &tokens.refresh_token).await;
        assert_refused(&status.expect_err("old secret"), "a refresh with the old secret");
        app.client_secret = answer.client_secret;
        let refreshed = bench.server.refresh(&app, &tokens.refresh_token).await;
        assert_eq!(refreshed.is_err(), revoke_issued);
    }
    let tokens = bench.server.login(&app, "ada").await;
    let answer = call!(disable_client, pb::DisableClientRequest { client_id: id() });
    assert!(answer.revoked.is_some());
    let answer = call!(disable_client, pb::DisableClientRequest { client_id: id() });
    assert_eq!((answer.revoked, bench.server.log().len()), (None, 2), "no change, no event");
    let request = password_login(&app, "ada", PASSWORD);
    let status = bench.server.identity().authenticate(request).await.expect_err("disabled");
    assert_refused(&status, "a disabled client");
    call!(enable_client, pb::EnableClientRequest { client_id: id() });
    let status = bench.server.refresh(&app, &tokens.refresh_token).await.expect_err("revoked");
    assert_refused(&status, "what was issued before");
    bench.server.login(&app, "ada").await;
    let answer = call!(delete_client, pb::DeleteClientRequest { client_id: id() });
    assert!(answer.revoked.is_some());
    let answer = call!(delete_client, pb::DeleteClientRequest { client_id: id() });
    assert_eq!((answer.revoked, bench.server.log().len()), (None, 3), "no change, no event");
    let reasons: Vec<_> = bench.server.log().iter().map(|event| event.cause.reason).collect();
    assert_eq!(reasons[1..], [Reason::ClientDisabled; 2]);
}

#[tokio::test]
async fn what_is_created_can_be_read_and_listed_page_by_page() {
    let bench = Bench::new().await;
    let mut admin = bench.server.admin();
    macro_rules! call {
        ($method:ident, $message:expr) => {
            admin.$method(bearer($message, &bench.credential)).await.expect("done").into_inner()
        };
    }
    let message = pb::CreateUserRequest {
        username: "Eve".to_owned(),
        password: PASSWORD.to_owned(),
        scopes: vec!["read".to_owned()],
        ..Default::default()
    };
    let eve = call!(create_user, message.clone()).user.expect("a user");
    assert_eq!((eve.username.as_str(), eve.has_password, eve.disabled), ("eve", true, false));
    let status = admin.create_user(bearer(message, &bench.credential)).await.expect_err("taken");
    assert_eq!(status.code(), Code::AlreadyExists);
    let by_name = pb::GetUserRequest { username: "EVE".to_owned(), ..Default::default() };
    assert_eq!(call!(get_user, by_name).user, Some(eve.clone()));
    let mut seen = Vec::new();
    let mut page_token = String::new();
    loop {
        let page = call!(list_users, pb::ListUsersRequest { page_size: 1, page_token });
        seen.extend(page.users.into_iter().map(|user| user.subject));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    seen.sort();
    let mut expected = vec![bench.subject.clone(), eve.subject];
    expected.sort();
    assert_eq!(seen, expected);

    let created = call!(create_client, pb::CreateClientRequest { client: Some(registration("")) });
    let made = created.client.expect("a client");
    assert!(made.client_id.starts_with("cli_") && created.client_secret.starts_with("avs1_"));
    let get = pb::GetClientRequest { client_id: made.client_id.clone() };
    assert_eq!(call!(get_client, get).client, Some(made));
    let listed = call!(list_clients, pb::ListClientsRequest::default());
    assert_eq!(listed.clients.len(), 3);
    assert!(!format!("{listed:?}").contains(&created.client_secret));
    let request = pb::CreateClientRequest {
        client: Some(pb::Client { audiences: Vec::new(), ..registration("bad id") }),
    };
    let status = admin.create_client(bearer(request, &bench.credential)).await;
    let fields = wrong_fields(&status.expect_err("malformed"));
    assert_eq!(fields, ["client.client_id"]);
}

#[tokio::test]
async fn a_password_is_changed_by_who_knows_the_present_one() {
    let bench = Bench::new().await;
    let change = async |password: &str, new: &str| {
        let message = pb::ChangePasswordRequest {
            client: Some(bench.app.clone()),
            username: "ada".to_owned(),
            password: password.to_owned(),
            new_password: new.to_owned(),
            device: None,
        };
        bench.server.admin().change_password(message).await
    };
    let tokens = bench.server.login(&bench.app, "ada").await;
    assert_refused(&change("wrong", NEW_PASSWORD).await.expect_err("wrong"), "a wrong password");
    for weak in ["", "short", "passwordpassword", "ada"] {
        let status = change(PASSWORD, weak).await.expect_err("weak");
        assert_eq!(status.code(), Code::InvalidArgument, "{weak}: {status:?}");
    }
    assert!(bench.server.log().is_empty());
    let answer = change(PASSWORD, NEW_PASSWORD).await.expect("changed").into_inner();
    assert!(answer.revoked.is_some());
    let log = bench.server.log();
    assert_eq!(log.len(), 1);
    assert_eq!(
        (log[0].cause.reason, log[0].cause.initiator),
        (Reason::CredentialChanged, Initiator::User)
    );
    let status = bench.server.refresh(&bench.app, &tokens.refresh_token).await;
    assert_refused(&status.expect_err("revoked"), "a session from before");
    assert_refused(&change(PASSWORD, NEW_PASSWORD).await.expect_err("old"), "the old password");
    let request = password_login(&bench.app, "ada", NEW_PASSWORD);
    bench.server.identity().authenticate(request).await.expect("the new password");
}

#[tokio::test]
async fn a_password_that_was_reset_meanwhile_is_not_set_back() {
    use avouch::store::{Changed, UserChange};
    let bench = Bench::new().await;
    let subject: avouch::domain::ids::SubjectId = bench.subject.parse().expect("a subject");
    let store = bench.server.service.store();
    // What ChangePassword read before it checked the password.
    let proved_at = store.subject_epoch(&subject).await.expect("the store");
    let message = pb::SetUserPasswordRequest {
        subject: bench.subject.clone(),
        password: NEW_PASSWORD.to_owned(),
    };
    let request = bearer(message, &bench.credential);
    bench.server.admin().set_user_password(request).await.expect("reset");
    let change = UserChange {
        password_hash: Some(avouch::domain::secret::SecretText::new("stolen".to_owned())),
        if_epoch: Some(proved_at),
        ..UserChange::default()
    };
    let changed = store.change_user(subject, change, None, bench.server.service.now()).await;
    assert!(matches!(changed.expect("the store"), Changed::Stale));
    let request = password_login(&bench.app, "ada", NEW_PASSWORD);
    bench.server.identity().authenticate(request).await.expect("the reset password");
    assert_eq!(bench.server.log().len(), 1);
}

#[tokio::test]
async fn a_public_client_gets_no_rights() {
    let bench = Bench::new().await;
    let public = pb::Client {
        r#type: pb::ClientType::Public.into(),
        grants: vec![pb::Grant { right: pb::Right::Watch.into(), ..Default::default() }],
        ..registration("public")
    };
    let request = pb::CreateClientRequest { client: Some(public) };
    let status = bench.server.admin().create_client(bearer(request, &bench.credential)).await;
    assert_eq!(reason(&status.expect_err("public")), "CLIENT_NOT_CONFIDENTIAL");
}

#[tokio::test]
async fn when_the_audit_log_cannot_be_written_nothing_is_administered_and_the_rest_goes_on() {
    let place = tempfile::tempdir().expect("a directory");
    let data = place.path().join("data");
    let mut first = Process::start(&data, &[]);
    first.serving().await;
    first.terminate();
    first.end().await;

    let mut server = Process::start(&data, &[("audit.output", "/dev/full")]);
    let addresses = server.serving().await;
    let cast = Cast::of(&data);
    let channel = channel(&addresses).await;
    let mut identity = IdentityServiceClient::new(channel.clone());
    let mut admin = AdminServiceClient::new(channel);
    let own = pb::AuthenticateRequest {
        client: Some(cast.admin.clone()),
        grant: Some(Credential::ClientCredentials(pb::ClientCredentialsGrant {})),
        audiences: vec![OWN_AUDIENCE.to_owned()],
        ..Default::default()
    };
    let own = identity.authenticate(own).await.expect("it goes on").into_inner().tokens;
    let credential = own.expect("tokens").access_token;

    let new = pb::CreateUserRequest { username: "eve".to_owned(), ..Default::default() };
    let refused = [
        admin.create_user(bearer(new, &credential)).await.map(drop),
        admin
            .create_client(bearer(
                pb::CreateClientRequest { client: Some(registration("new")) },
                &credential,
            ))
            .await
            .map(drop),
        admin
            .create_key(bearer(pb::CreateKeyRequest { algorithm: "EdDSA".into() }, &credential))
            .await
            .map(drop),
        admin.rotate_key(bearer(pb::RotateKeyRequest {}, &credential)).await.map(drop),
        admin
            .disable_client(bearer(
                pb::DisableClientRequest { client_id: cast.login.client_id.clone() },
                &credential,
            ))
            .await
            .map(drop),
    ];
    for answer in refused {
        let status = answer.expect_err("it cannot be recorded");
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::Unavailable, "AUDIT_UNAVAILABLE")
        );
    }
    let users = admin.list_users(bearer(pb::ListUsersRequest::default(), &credential)).await;
    assert_eq!(users.expect("it changes nothing").into_inner().users.len(), 1, "ada alone");
    let clients = admin.list_clients(bearer(pb::ListClientsRequest::default(), &credential)).await;
    let clients = clients.expect("it changes nothing").into_inner().clients;
    assert!(clients.iter().all(|client| client.client_id != "new" && !client.disabled));
    let keys = admin.list_keys(bearer(pb::ListKeysRequest {}, &credential)).await;
    let keys = keys.expect("it changes nothing").into_inner().keys;
    let state = |key: &pb::Key| key.public_key.as_ref().expect("a key").state();
    let mut states: Vec<_> = keys.iter().map(state).collect();
    states.sort();
    assert_eq!(states, [pb::KeyState::Announced, pb::KeyState::Active], "as at the first start");

    let login = password_login(&cast.login, "ada", &cast.password);
    let tokens = identity.authenticate(login).await.expect("it goes on").into_inner().tokens;
    let tokens = tokens.expect("tokens");
    let refresh = pb::RefreshRequest {
        client: Some(cast.login.clone()),
        refresh_token: tokens.refresh_token,
        ..Default::default()
    };
    identity.refresh(refresh).await.expect("it goes on");
    let revoke = pb::RevokeRequest {
        client: Some(cast.admin),
        target: Some(pb::revoke_request::Target::SessionId(tokens.session_id)),
        ..Default::default()
    };
    let revoked = identity.revoke(revoke).await.expect("it goes on").into_inner().revoked;
    assert!(revoked.is_some());
    // Five that were refused, and at least two logins, a refresh and a revocation.
    let counted = async {
        while metric(&ops(&addresses, "/metrics").await, "avouch_audit_dropped_events_total") < 9.0
        {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.expect("lost events are counted");
    server.terminate();
    let end = server.end().await;
    assert!(end.status.success(), "{end:?}");
}

#[tokio::test]
async fn what_an_administrator_is_about_to_change_is_recorded_before_it_is_changed() {
    let bench = Bench::new().await;
    bench.server.journal.take();
    let disable = pb::DisableUserRequest { subject: bench.subject.clone() };
    let answer = bench.server.admin().disable_user(bearer(disable, &bench.credential)).await;
    answer.expect("it may");
    let journal = bench.server.journal.take();
    assert!(
        matches!(
            &journal[..],
            [
                Happening::Attempted { what: "user_disabled", .. },
                Happening::Administered { action: "user_disabled", .. },
                Happening::Revoked { .. },
            ]
        ),
        "{journal:?}"
    );
    let unknown = pb::DisableUserRequest { subject: "usr_nobody".to_owned() };
    let answer = bench.server.admin().disable_user(bearer(unknown, &bench.credential)).await;
    assert_eq!(answer.expect_err("nobody").code(), Code::NotFound);
    let journal = bench.server.journal.take();
    assert!(matches!(&journal[..], [Happening::Attempted { .. }]), "{journal:?}");
}
