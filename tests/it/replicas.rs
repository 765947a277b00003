//! Three servers on one etcd, as the clients of any of them see it: what one does the others know, and
//! what can be done once is done once (invariants 1, 4, 5 and 7).

use std::sync::Arc;
use std::time::Duration;

use avouch::app::bootstrap::first_credentials;
use avouch::domain::client::Lifetimes;
use avouch::domain::clock::ManualClock;
use avouch::domain::event::{Event, Target as Ended};
use avouch::domain::ids::{Revision, SessionId};
use avouch::domain::key::KeyState;
use avouch::domain::throttle::ThrottlePolicy;
use avouch::pb::v1 as pb;
use avouch::pb::v1::authenticate_request::Grant as Credential;
use avouch::pb::v1::revoke_request::Target;
use avouch::pb::v1::watch_revocations_response::Frame;
use avouch::service::sweep::Turn;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{
    NOW, PASSWORD, Server, assert_refused, bearer, etcd, http_get, options, password_login, rounds,
};
use crate::process::PATIENCE;
use crate::race::at_once;
use crate::support::etcd::{Etcd, fresh_prefix};

/// Three servers on one prefix, begun at once, with one clock.
async fn three() -> [Server; 3] {
    three_with(|_| {}).await
}

async fn three_with(change: impl Fn(&mut avouch::app::Options)) -> [Server; 3] {
    let (prefix, clock) = (fresh_prefix(), Arc::new(ManualClock::new(NOW)));
    let start = || {
        let mut options = options(etcd(Etcd::shared(), &prefix));
        change(&mut options);
        Server::with(options, Arc::clone(&clock))
    };
    let (a, b, c) = tokio::join!(start(), start(), start());
    [a, b, c]
}

async fn keys_of(server: &Server) -> String {
    let (status, _, body) = http_get(server.public, "/.well-known/jwks.json", "").await;
    assert_eq!(status, 200);
    body
}

/// Lets all of these go at once; what came of each, in their order.
async fn together<T, F>(calls: impl IntoIterator<Item = F>) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    at_once(calls.into_iter().map(|call| Box::pin(call) as BoxFuture<'static, T>).collect()).await
}

/// Waits until `found` has something to say; what it was is asked for again and again.
async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, found: impl Fn() -> F) -> T {
    let waiting = async {
        loop {
            if let Some(it) = found().await {
                return it;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn servers_that_start_at_once_on_nothing_share_one_ring_and_make_one_admin() {
    for _ in 0..rounds(3, 30) {
        let servers = three().await;
        let keys = keys_of(&servers[0]).await;
        assert_eq!(keys_of(&servers[1]).await, keys);
        assert_eq!(keys_of(&servers[2]).await, keys);
        let ring = servers[0].service.store().ring().await.expect("the ring");
        assert_eq!((ring.version, ring.mac_keys.len()), (1, 1), "made by one");

        let homes = [(); 3].map(|()| tempfile::tempdir().expect("a directory"));
        let starts = servers.iter().zip(&homes).enumerate().map(|(n, (server, home))| {
            let (service, home) = (Arc::clone(&server.service), home.path().to_owned());
            let host = format!("pod-{n}");
            async move {
                let lifetimes = Lifetimes::default();
                let made = first_credentials(&service, &home, false, lifetimes, Some(&host)).await;
                made.expect("there is one afterwards")
            }
        });
        let made = together(starts).await;
        let makers: Vec<usize> = (0..3).filter(|n| made[*n].admin_client.is_some()).collect();
        assert_eq!(makers.len(), 1, "{made:?}");
        let maker = makers[0];
        for n in 0..3 {
            let files: Vec<_> = std::fs::read_dir(homes[n].path()).expect("files").collect();
            assert_eq!(files.len(), usize::from(n == maker), "{files:?}");
            if n != maker {
                let says = made[n].elsewhere.as_deref().expect("where it was made");
                assert_eq!(says, format!("First admin client, made on pod-{maker}"));
            }
        }
        let admin = crate::process::credentials(homes[maker].path(), "admin-client.json");
        for server in &servers {
            server.own_token(&admin).await;
        }
        for server in servers {
            server.stop().await;
        }
    }
}

#[tokio::test]
async fn a_start_that_was_cut_off_after_the_admin_was_made_is_finished_by_the_next() {
    let [a, b, c] = three().await;
    let home = tempfile::tempdir().expect("a directory");
    let start = async |server: &Server| {
        first_credentials(&server.service, home.path(), false, Lifetimes::default(), None)
            .await
            .expect("it starts")
    };
    let path = start(&a).await.admin_client.expect("made");
    // As if the process had died before the file had its name.
    let draft = home.path().join("admin-client.json.x.draft");
    std::fs::rename(&path, &draft).expect("renamed");
    let other = home.path().join("admin-client.json.y.draft");
    std::fs::write(&other, "{\"client_id\": \"admin\", \"client_secret\": \"another\"}")
        .expect("written");
    let made = start(&b).await;
    assert!(made.admin_client.is_none() && made.elsewhere.is_none(), "{made:?}");
    assert!(path.exists() && !draft.exists() && !other.exists());
    c.own_token(&crate::process::credentials(home.path(), "admin-client.json")).await;
}

#[tokio::test]
async fn a_session_may_use_another_replica_for_each_call() {
    let [a, b, c] = three().await;
    let app = a.first_party("app").await;
    let operator = b.powerful("operator").await;
    c.add_user("ada").await;
    let first = a.login(&app, "ada").await;
    let second = b.refresh(&app, &first.refresh_token).await.expect("it is current");
    assert_eq!(first.session_id, second.session_id);
    for server in [&a, &b, &c] {
        assert!(server.introspect(&operator, &second.access_token).await.active);
    }
    let target = Target::SessionId(second.session_id.clone());
    let revoked = c.revoke(&operator, target).await.expect("revoked");
    let request = pb::IntrospectRequest {
        client: Some(operator.clone()),
        token: second.access_token.clone(),
        at_least: revoked.cursor,
        ..Default::default()
    };
    for server in [&a, &b, &c] {
        let answer = server.identity().introspect(request.clone()).await.expect("an answer");
        assert!(!answer.into_inner().active, "it was revoked before the cursor");
        let refused = server.refresh(&app, &second.refresh_token).await.expect_err("revoked");
        assert_refused(&refused, "the session is over everywhere");
        let id: SessionId = second.session_id.parse().expect("an id");
        let [one] = &server.log()[..] else { panic!("one change, one event: {:?}", server.log()) };
        assert!(matches!(&one.target, Ended::Session { id: ended, .. } if *ended == id));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_token_at_three_replicas_at_once_gets_one_successor() {
    let servers = three().await;
    let app = servers[0].first_party("app").await;
    servers[1].add_user("ada").await;
    let mut tokens = servers[2].login(&app, "ada").await;
    let id: SessionId = tokens.session_id.parse().expect("an id");
    for round in 0..rounds(40, 2_000) {
        let calls = (0..9).map(|n| {
            let (mut identity, app) = (servers[n % 3].identity(), app.clone());
            let refresh_token = tokens.refresh_token.clone();
            async move {
                let request =
                    pb::RefreshRequest { client: Some(app), refresh_token, ..Default::default() };
                identity.refresh(request).await.expect("within the retry window").into_inner()
            }
        });
        let mut answers = together(calls).await.into_iter();
        let first = answers.next().and_then(|answer| answer.tokens).expect("tokens");
        for answer in answers {
            assert_eq!(answer.tokens.expect("tokens").refresh_token, first.refresh_token);
        }
        let session = servers[round % 3].service.store().find_session(id).await;
        let session = session.expect("an answer").expect("it lives");
        assert_eq!(session.generation.0, u32::try_from(round).expect("few") + 1);
        tokens = first;
    }
    assert!(servers.iter().all(|server| server.log().is_empty()), "nobody was taken for a thief");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_token_that_is_used_twice_ends_the_session_on_every_replica() {
    let [a, b, c] = three().await;
    let app = a.first_party("app").await;
    a.add_user("ada").await;
    let first = a.login(&app, "ada").await;
    let second = b.refresh(&app, &first.refresh_token).await.expect("current");
    let third = c.refresh(&app, &second.refresh_token).await.expect("current");
    assert_refused(&a.refresh(&app, &first.refresh_token).await.expect_err("spent"), "reuse");
    for server in [&a, &b, &c] {
        assert_refused(
            &server.refresh(&app, &third.refresh_token).await.expect_err("over"),
            "over",
        );
    }
}

#[tokio::test]
async fn what_one_replica_revokes_every_stream_shows() {
    let servers = three().await;
    let app = servers[0].first_party("app").await;
    let operator = servers[0].powerful("operator").await;
    servers[0].add_user("ada").await;
    let token = servers[0].own_token(&operator).await;
    let mut streams = Vec::new();
    for server in &servers {
        let watch = pb::WatchRevocationsRequest::default();
        let stream = server.revocations().watch_revocations(bearer(watch, &token)).await;
        let mut stream = stream.expect("a stream").into_inner();
        loop {
            let frame = stream.message().await.expect("a frame").expect("no end").frame;
            if let Some(Frame::Synced(_)) = frame {
                break;
            }
        }
        streams.push(stream);
    }
    for revoker in &servers {
        let tokens = revoker.login(&app, "ada").await;
        let target = Target::SessionId(tokens.session_id.clone());
        let cursor = revoker.revoke(&operator, target).await.expect("revoked").cursor;
        let cursor = cursor.expect("a cursor");
        for stream in &mut streams {
            let shown = timeout(PATIENCE, async {
                loop {
                    let frame = stream.message().await.expect("a frame").expect("no end").frame;
                    if let Some(Frame::Batch(batch)) = frame
                        && let Some(one) = batch.revocations.first()
                    {
                        return (one.revision, batch.revocations.len());
                    }
                }
            });
            assert_eq!(shown.await.expect("in time"), (cursor.revision, 1));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keys_that_are_due_at_every_replica_are_rotated_once() {
    let servers = three().await;
    let day = Duration::from_secs(86_400);
    let signing = async |server: &Server| {
        let keys = server.service.store().ring().await.expect("the ring").keys;
        let in_state = |state| keys.iter().filter(|key| key.state == state).count();
        (in_state(KeyState::Active), in_state(KeyState::Announced), keys.len())
    };
    assert_eq!(signing(&servers[0]).await.0, 1);
    for _ in 0..rounds(3, 20) {
        // The servers look by themselves, too, and may be first.
        let before = servers[0].service.store().ring().await.expect("the ring").version;
        servers[0].clock.advance(day * 31);
        let rolls = servers.iter().map(|server| {
            let service = Arc::clone(&server.service);
            async move { service.roll_keys().await.expect("rolled") }
        });
        together(rolls).await;
        let (active, announced, _) = signing(&servers[1]).await;
        assert!(active == 1 && announced <= 1, "{active} active, {announced} announced");
        let after = servers[0].service.store().ring().await.expect("the ring").version;
        assert!(after > before, "something was due");
        assert!(after - before <= 2, "each of the two rings at most once: {before} {after}");
    }
    let keys = keys_of(&servers[0]).await;
    for server in &servers[1..] {
        assert_eq!(keys_of(server).await, keys);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_three_replicas_that_are_asked_to_rotate_at_once_one_does() {
    let servers = three().await;
    let operator = servers[0].powerful("operator").await;
    let token = servers[0].own_token(&operator).await;
    let mut admin = servers[0].admin();
    let announced = admin.create_key(bearer(pb::CreateKeyRequest::default(), &token)).await;
    let next = announced.expect("announced").into_inner().key.expect("a key");
    let next = next.public_key.expect("a public key").kid;
    let calls = servers.iter().map(|server| {
        let (mut admin, request) = (server.admin(), bearer(pb::RotateKeyRequest {}, &token));
        async move { admin.rotate_key(request).await }
    });
    for answer in together(calls).await {
        let key = answer.expect("rotated").into_inner().key.expect("a key");
        assert_eq!(key.public_key.expect("a public key").kid, next, "by one of them");
    }
    // The others follow the event, and sign with that key.
    for server in &servers {
        eventually("the key signs everywhere", || async {
            let token = server.own_token(&operator).await;
            (crate::keys::kid(&token) == next).then_some(())
        })
        .await;
    }
    let changes = servers[2].service.store().events_after(Revision(0), 100).expect("the log");
    let changes = changes.iter().filter(|it| matches!(it.event, Event::KeySetChanged { .. }));
    assert_eq!(changes.count(), 2, "the first keys, the rotation");
}

#[tokio::test]
async fn a_key_that_one_replica_revokes_signs_nowhere_and_verifies_nowhere() {
    let [a, b, c] = three().await;
    let operator = a.powerful("operator").await;
    let token = a.own_token(&operator).await;
    let stolen = crate::keys::kid(&token);
    let request = pb::RevokeKeyRequest { kid: stolen.clone(), ..Default::default() };
    a.admin().revoke_key(bearer(request, &token)).await.expect("revoked");
    for server in [&a, &b, &c] {
        eventually("the next key signs", || async {
            let fresh = server.own_token(&operator).await;
            (crate::keys::kid(&fresh) != stolen).then_some(())
        })
        .await;
        assert!(!server.introspect(&operator, &token).await.active);
    }
}

#[tokio::test]
async fn guesses_are_counted_over_all_replicas() {
    let servers = three_with(|options| {
        options.service.throttle = ThrottlePolicy { free_failures: 2, ..ThrottlePolicy::default() };
    })
    .await;
    let app = servers[0].first_party("app").await;
    servers[0].add_user("ada").await;
    for (n, server) in servers.iter().enumerate() {
        let guess = password_login(&app, "ada", &format!("wrong guess {n}"));
        let refused = server.identity().authenticate(guess).await.expect_err("wrong");
        assert_refused(&refused, "the first ones are looked at");
    }
    for server in &servers {
        let right = password_login(&app, "ada", PASSWORD);
        let refused = server.identity().authenticate(right).await.expect_err("too soon");
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    }
}

#[tokio::test]
async fn a_secret_that_was_replaced_at_one_replica_is_good_at_no_other() {
    let servers = three().await;
    let app = servers[0].first_party("app").await;
    let operator = servers[0].powerful("operator").await;
    servers[0].add_user("ada").await;
    // The other remembers the registration, for up to a second.
    servers[1].login(&app, "ada").await;
    let credential = servers[0].own_token(&operator).await;
    let replace =
        pb::RotateClientSecretRequest { client_id: app.client_id.clone(), ..Default::default() };
    servers[0].admin().rotate_client_secret(bearer(replace, &credential)).await.expect("replaced");
    let by_password = password_login(&app, "ada", PASSWORD);
    let by_secret = pb::AuthenticateRequest {
        client: Some(app.clone()),
        grant: Some(Credential::ClientCredentials(pb::ClientCredentialsGrant {})),
        ..Default::default()
    };
    for request in [by_secret, by_password] {
        let refused = servers[1].identity().authenticate(request).await.expect_err("replaced");
        assert_refused(&refused, "the secret is another");
    }
}

/// How many transactions an etcd was asked for, as it says itself.
async fn transactions(etcd: &Etcd) -> u64 {
    let (status, _, body) = http_get(etcd.address(0), "/metrics", "").await;
    assert_eq!(status, 200);
    let asked = body.lines().find(|line| {
        line.starts_with("grpc_server_started_total{") && line.contains("grpc_method=\"Txn\"")
    });
    asked.and_then(|line| line.split(' ').next_back()).expect("a count").parse().expect("a number")
}

/// Holds that a call takes at most so many transactions of an etcd that nobody else uses: fewer where the
/// server still knows what it read a moment ago. It asks for a few of its own now and then, so the call is made
/// until it is alone.
async fn takes(etcd: &Etcd, most: u64, what: &str, call: impl AsyncFn()) {
    let alone = async {
        loop {
            let before = transactions(etcd).await;
            call().await;
            let took = transactions(etcd).await - before;
            assert!(took > 0, "{what} asked nothing");
            if took <= most {
                return;
            }
        }
    };
    timeout(PATIENCE, alone).await.unwrap_or_else(|_| panic!("{what} takes more than {most}"));
}

#[tokio::test]
async fn a_call_asks_etcd_no_more_often_than_it_must() {
    let own = Etcd::start(1);
    let clock = Arc::new(ManualClock::new(NOW));
    let server = Server::with(options(etcd(&own, "calls")), clock).await;
    let app = server.first_party("app").await;
    let operator = server.powerful("operator").await;
    for name in ["ada", "eve", "bob"] {
        server.add_user(name).await;
    }
    // The attempt, what is known of user and client, the user's sessions, and the new one.
    takes(&own, 4, "Authenticate by password", async || {
        server.login(&app, "ada").await;
    })
    .await;
    takes(&own, 2, "Authenticate by a wrong password", async || {
        let wrong = password_login(&app, "ada", "not this one");
        server.identity().authenticate(wrong).await.expect_err("refused");
    })
    .await;
    takes(&own, 2, "Authenticate by an unknown name", async || {
        let unknown = password_login(&app, "nobody", "not this one");
        server.identity().authenticate(unknown).await.expect_err("refused");
    })
    .await;
    takes(&own, 1, "Authenticate by a client secret", async || {
        server.own_token(&app).await;
    })
    .await;
    let credential = server.own_token(&operator).await;
    takes(&own, 2, "ListUsers", async || {
        let page = bearer(pb::ListUsersRequest::default(), &credential);
        let page = server.admin().list_users(page).await.expect("users").into_inner();
        assert_eq!(page.users.len(), 3);
    })
    .await;
    takes(&own, 2, "ListClients", async || {
        let page = bearer(pb::ListClientsRequest::default(), &credential);
        let page = server.admin().list_clients(page).await.expect("clients").into_inner();
        assert_eq!(page.clients.len(), 2);
    })
    .await;
    let token = Mutex::new(server.login(&app, "ada").await.refresh_token);
    takes(&own, 1, "Refresh", async || {
        let mut token = token.lock().await;
        *token = server.refresh(&app, &token).await.expect("a successor").refresh_token;
    })
    .await;
    let session = Mutex::new(String::new());
    takes(&own, 5, "Authenticate and Revoke", async || {
        let tokens = server.login(&app, "eve").await;
        let target = Target::SessionId(tokens.session_id.clone());
        server.revoke(&app, target).await.expect("its own");
        *session.lock().await = tokens.session_id;
    })
    .await;
    let again = Target::SessionId(session.lock().await.clone());
    takes(&own, 1, "Revoke once more", async || {
        server.revoke(&app, again.clone()).await.expect("its own");
    })
    .await;
}

/// How many sessions a server says there are; NaN when it does not say.
async fn sessions_told(server: &Server) -> f64 {
    let (status, _, body) = http_get(server.ops, "/metrics", "").await;
    assert_eq!(status, 200);
    let told = body.lines().find_map(|line| line.strip_prefix("avouch_sessions "));
    told.expect("it is there").parse().expect("a number")
}

#[tokio::test]
async fn sessions_are_counted_where_the_turn_to_sweep_is_and_nowhere_else() {
    const EVERY: Duration = Duration::from_secs(3600);
    let servers = three().await;
    let app = servers[0].first_party("app").await;
    servers[0].add_user("ada").await;
    // Each has asked when it started, and one of them has the turn; so it stays while time stands still.
    let mut standing = Vec::new();
    for server in &servers {
        let turn = server.service.sweep_in_turn(EVERY).await.expect("an answer");
        standing.push(matches!(turn, Turn::Swept(_)));
    }
    let first = standing.iter().position(|has_turn| *has_turn).expect("one has it");
    assert_eq!(standing.iter().filter(|has_turn| **has_turn).count(), 1);
    let counted = async |server: &Server| {
        eventually("a count", async || {
            let told = sessions_told(server).await;
            told.is_finite().then_some(told)
        })
        .await
    };
    counted(&servers[first]).await;
    let next = (first + 1) % 3;
    for server in servers.iter().filter(|server| server.ops != servers[first].ops) {
        assert!(sessions_told(server).await.is_nan(), "it has no turn, and counts nothing");
    }
    for server in &servers {
        server.login(&app, "ada").await;
    }
    // The one that had the turn does not ask again in time, and finds that another has it.
    servers[0].clock.advance(EVERY * 2);
    let turn = servers[next].service.sweep_in_turn(EVERY).await.expect("an answer");
    assert!(matches!(turn, Turn::Swept(_)), "{turn:?}");
    assert_eq!(counted(&servers[next]).await, 3.0);
    let turn = servers[first].service.sweep_in_turn(EVERY).await.expect("an answer");
    assert_eq!(turn, Turn::Another);
    eventually("the old count is gone", async || {
        sessions_told(&servers[first]).await.is_nan().then_some(())
    })
    .await;
}

async fn health(server: &Server, name: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: name.to_owned() };
    let answer = HealthClient::new(server.channel.clone()).check(request).await.expect("an answer");
    answer.into_inner().status()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_without_its_etcd_says_so_and_serves_again_once_it_is_back() {
    const NAMES: [&str; 4] = [
        "",
        "avouch.v1.IdentityService",
        "avouch.v1.RevocationService",
        "avouch.v1.SessionService",
    ];
    let own = Etcd::start(1);
    let server = Server::with_system_clock(options(etcd(&own, "p"))).await;
    let operator = server.powerful("operator").await;
    let until = async |wanted: ServingStatus, ready: u16| {
        for name in NAMES {
            eventually("its health", || async {
                (health(&server, name).await == wanted).then_some(())
            })
            .await;
        }
        let (status, _, body) = http_get(server.ops, "/readyz", "").await;
        assert_eq!(status, ready, "{body}");
        body
    };
    until(ServingStatus::Serving, 200).await;
    own.pause(0);
    let body = until(ServingStatus::NotServing, 503).await;
    assert!(body.contains("waiting for: store"), "{body}");
    let request = pb::IntrospectRequest {
        client: Some(operator.clone()),
        token: "none".to_owned(),
        ..Default::default()
    };
    let refused = server.identity().introspect(request).await.expect_err("nobody knows");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    own.resume(0);
    until(ServingStatus::Serving, 200).await;
    server.own_token(&operator).await;
}
