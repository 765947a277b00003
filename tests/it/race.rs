//! Calls that meet: whatever the order in which they come out, there is one line of generations,
//! nothing that was taken back lives, and one change is one event (invariants 1, 3, 4 and 7).

use std::sync::Arc;

use avouch::domain::clock::ManualClock;
use avouch::domain::event::Event;
use avouch::domain::ids::{KeyId, SessionId};
use avouch::domain::key::KeyState;
use avouch::pb::v1 as pb;
use avouch::pb::v1::admin_service_client::AdminServiceClient;
use avouch::pb::v1::identity_service_client::IdentityServiceClient;
use avouch::pb::v1::revoke_request::Target;
use avouch::service::journal::Happening;
use futures_util::future::BoxFuture;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::harness::{
    NOW, PASSWORD, Server, bearer, connect, options, password_login, reason, rounds, sled,
};

/// Lets all of these go at once; what came of each, in their order.
pub(crate) async fn at_once<T: Send + 'static>(calls: Vec<BoxFuture<'static, T>>) -> Vec<T> {
    let barrier = Arc::new(Barrier::new(calls.len()));
    let mut tasks = JoinSet::new();
    for (n, call) in calls.into_iter().enumerate() {
        let barrier = Arc::clone(&barrier);
        tasks.spawn(async move {
            barrier.wait().await;
            (n, call.await)
        });
    }
    let mut done = tasks.join_all().await;
    done.sort_by_key(|(n, _)| *n);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

async fn connections(server: &Server, count: usize) -> Vec<Channel> {
    let mut channels = Vec::new();
    for _ in 0..count {
        channels.push(connect(server.grpc).await);
    }
    channels
}

fn refresh_request(client: &pb::ClientAuthentication, token: &str) -> pb::RefreshRequest {
    pb::RefreshRequest {
        client: Some(client.clone()),
        refresh_token: token.to_owned(),
        ..Default::default()
    }
}

async fn refresh(channel: Channel, request: pb::RefreshRequest) -> Result<pb::TokenSet, Status> {
    let answer = IdentityServiceClient::new(channel).refresh(request).await?;
    Ok(answer.into_inner().tokens.expect("tokens"))
}

/// `callers` present `token` at once, over all of the connections.
async fn present(
    channels: &[Channel],
    callers: usize,
    client: &pb::ClientAuthentication,
    token: &str,
) -> Vec<Result<pb::TokenSet, Status>> {
    let calls = (0..callers).map(|n| {
        let call = refresh(channels[n % channels.len()].clone(), refresh_request(client, token));
        Box::pin(call) as BoxFuture<'static, _>
    });
    at_once(calls.collect()).await
}

async fn generation(server: &Server, session: &str) -> u32 {
    let id: SessionId = session.parse().expect("a session id");
    let session = server.service.store().find_session(id).await.expect("an answer").expect("known");
    session.generation.0
}

/// How often the session moved, and how often a caller was told of it again.
fn rotations(happenings: &[Happening]) -> (usize, usize) {
    let refreshed = |again: bool| {
        happenings
            .iter()
            .filter(|h| matches!(h, Happening::Refreshed { retry, .. } if *retry == again))
            .count()
    };
    (refreshed(false), refreshed(true))
}

/// Everybody got the one successor, and the session moved once. Returns that successor.
async fn one_line(
    server: &Server,
    before: u32,
    answers: Vec<Result<pb::TokenSet, Status>>,
) -> pb::TokenSet {
    let callers = answers.len();
    let mut answers = answers.into_iter().map(|answer| answer.expect("inside the retry window"));
    let first = answers.next().expect("there are callers");
    for other in answers {
        assert_eq!(other.refresh_token, first.refresh_token, "two successors");
        assert_eq!(other.session_id, first.session_id);
    }
    assert_eq!(generation(server, &first.session_id).await, before + 1);
    assert_eq!(rotations(&server.journal.take()), (1, callers - 1));
    first
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn five_hundred_refreshes_of_one_token_make_one_step_and_one_successor() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    let login = server.login(&app, "ada").await;
    let channels = connections(&server, 10).await;
    server.journal.take();
    let answers = present(&channels, 500, &app, &login.refresh_token).await;
    let next = one_line(&server, 0, answers).await;
    // The line goes on from the successor, and its second use spends the ancestor for good.
    server.refresh(&app, &next.refresh_token).await.expect("it is current");
    let head = server.service.store().head().revision;
    let replays = present(&channels, 50, &app, &login.refresh_token).await;
    assert!(replays.into_iter().all(|r| r.is_err_and(|s| s.code() == Code::Unauthenticated)));
    let events = server.service.store().events_after(head, 10).expect("events");
    assert_eq!(events.len(), 1, "50 replays are one reuse: {events:?}");
    server.stop().await;
}

/// `rounds` times `callers` callers present the current token.
async fn rounds_of_one_line(server: &Server, rounds: u32, callers: usize) {
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    let mut current = server.login(&app, "ada").await;
    let channels = connections(server, 4).await;
    server.journal.take();
    for round in 0..rounds {
        let answers = present(&channels, callers, &app, &current.refresh_token).await;
        current = one_line(server, round, answers).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_rounds_of_callers_stay_on_one_line() {
    let server = Server::start().await;
    rounds_of_one_line(&server, 1000, rounds(6, 500)).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn hundreds_of_rounds_of_callers_stay_on_one_line_on_disk() {
    let directory = tempfile::tempdir().expect("a directory");
    let clock = Arc::new(ManualClock::new(NOW));
    let server = Server::with(options(sled(directory.path())), Arc::clone(&clock)).await;
    rounds_of_one_line(&server, rounds(200, 1000), rounds(16, 500)).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn retries_do_not_extend_the_window_and_after_it_all_of_them_are_one_reuse() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let operator = Operator::new(&server).await;
    server.add_user("ada").await;
    let channels = connections(&server, 2).await;
    let login = server.login(&app, "ada").await;
    let next = server.refresh(&app, &login.refresh_token).await.expect("current");
    for _ in 0..9 {
        server.clock.advance(std::time::Duration::from_secs(1));
        for answer in present(&channels, 4, &app, &login.refresh_token).await {
            assert_eq!(answer.expect("inside the window").refresh_token, next.refresh_token);
        }
    }
    server.clock.advance(std::time::Duration::from_secs(1));
    let head = server.service.store().head().revision;
    let late = present(&channels, 16, &app, &login.refresh_token).await;
    assert!(late.iter().all(Result::is_err), "the window is 10 s from the rotation");
    assert_eq!(server.service.store().events_after(head, 10).expect("events").len(), 1);
    let request = pb::GetSessionRequest { session_id: login.session_id };
    let session = server.sessions().get_session(bearer(request, &operator.token)).await;
    let session = session.expect("known").into_inner().session.expect("a session");
    assert_eq!(session.state(), pb::SessionState::Revoked);
    assert_eq!(session.revocation_reason(), pb::RevocationReason::RefreshTokenReused);
    server.stop().await;
}

/// Without a retry window the losers are replays: at most one caller wins, and the family is dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_a_retry_window_there_is_at_most_one_winner_and_the_family_dies() {
    let server = Server::start().await;
    let mut client = crate::harness::client("strict");
    client.lifetimes.retry_window = std::time::Duration::ZERO;
    let strict = server.add_client(client).await;
    let operator = server.powerful("operator").await;
    server.add_user("ada").await;
    let channels = connections(&server, 4).await;
    for _ in 0..100 {
        let login = server.login(&strict, "ada").await;
        let head = server.service.store().head().revision;
        let answers = present(&channels, 8, &strict, &login.refresh_token).await;
        let winners: Vec<_> = answers.into_iter().filter_map(Result::ok).collect();
        assert_eq!(winners.len(), 1);
        for token in [&winners[0].refresh_token, &winners[0].access_token, &login.access_token] {
            assert!(!server.introspect(&operator, token).await.active);
        }
        let events = server.service.store().events_after(head, 10).expect("events");
        assert_eq!(events.len(), 1, "one family, one death: {events:?}");
    }
    server.stop().await;
}

/// What may happen to a session while it is being refreshed.
#[derive(Clone, Copy, Debug)]
enum Blow {
    Session,
    RefreshToken,
    Subject,
    Disable,
    SetPassword,
    ChangePassword,
    DisableClient,
    Client,
    Everything,
}

impl Blow {
    const ALL: [Self; 9] = [
        Self::Session,
        Self::RefreshToken,
        Self::Subject,
        Self::Disable,
        Self::SetPassword,
        Self::ChangePassword,
        Self::DisableClient,
        Self::Client,
        Self::Everything,
    ];
}

/// Somebody who may do anything, over a connection of their own.
#[derive(Clone)]
struct Operator {
    client: pb::ClientAuthentication,
    token: String,
    channel: Channel,
}

impl Operator {
    async fn new(server: &Server) -> Self {
        let client = server.powerful("operator").await;
        let token = server.own_token(&client).await;
        Self { client, token, channel: connect(server.grpc).await }
    }

    async fn again(&mut self, server: &Server) {
        self.token = server.own_token(&self.client).await;
    }

    fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    async fn revoke(&self, target: Target) -> Result<pb::RevokeResponse, Status> {
        let request = pb::RevokeRequest {
            client: Some(self.client.clone()),
            target: Some(target),
            ..Default::default()
        };
        Ok(IdentityServiceClient::new(self.channel.clone()).revoke(request).await?.into_inner())
    }

    /// Does it; true once it is acknowledged.
    async fn strike(self, blow: Blow, victim: Victim) -> bool {
        let subject = victim.subject.clone();
        let done = match blow {
            Blow::Session => self.revoke(Target::SessionId(victim.session)).await.map(drop),
            Blow::RefreshToken => self.revoke(Target::Token(victim.refresh)).await.map(drop),
            Blow::Subject => self.revoke(Target::Subject(subject)).await.map(drop),
            Blow::Client => self.revoke(Target::ClientId(victim.client.client_id)).await.map(drop),
            Blow::Everything => self.revoke(Target::Everything(true)).await.map(drop),
            Blow::Disable => {
                let request = bearer(pb::DisableUserRequest { subject }, &self.token);
                self.admin().disable_user(request).await.map(drop)
            }
            Blow::SetPassword => {
                let password = PASSWORD.to_owned();
                let request = pb::SetUserPasswordRequest { subject, password };
                self.admin().set_user_password(bearer(request, &self.token)).await.map(drop)
            }
            Blow::ChangePassword => {
                let request = pb::ChangePasswordRequest {
                    client: Some(victim.client),
                    username: "ada".to_owned(),
                    password: PASSWORD.to_owned(),
                    new_password: PASSWORD.to_owned(),
                    device: None,
                };
                self.admin().change_password(request).await.map(drop)
            }
            Blow::DisableClient => {
                let request = pb::DisableClientRequest { client_id: victim.client.client_id };
                self.admin().disable_client(bearer(request, &self.token)).await.map(drop)
            }
        };
        done.inspect_err(|status| panic!("{blow:?}: {status}")).is_ok()
    }

    /// Lets the user and the client log in again: what was ended stays ended.
    async fn heal(&mut self, server: &Server, blow: Blow, victim: &Victim) {
        match blow {
            Blow::Disable => {
                let request = pb::EnableUserRequest { subject: victim.subject.clone() };
                self.admin().enable_user(bearer(request, &self.token)).await.expect("enabled");
            }
            Blow::DisableClient => {
                let request =
                    pb::EnableClientRequest { client_id: victim.client.client_id.clone() };
                self.admin().enable_client(bearer(request, &self.token)).await.expect("enabled");
            }
            Blow::Everything => self.again(server).await,
            _ => {}
        }
    }
}

#[derive(Clone)]
struct Victim {
    client: pb::ClientAuthentication,
    subject: String,
    session: String,
    refresh: String,
}

/// What a race may bring forth.
type Racer = BoxFuture<'static, Option<pb::TokenSet>>;

async fn all_dead(server: &Server, operator: &Operator, tokens: &[pb::TokenSet], what: &str) {
    for set in tokens {
        for token in [&set.access_token, &set.refresh_token] {
            let answer = server.introspect(&operator.client, token).await;
            assert!(!answer.active, "{what}: a token lives on");
        }
    }
}

async fn refresh_races_every_blow(server: &Server, rounds: usize) {
    let app = server.first_party("app").await;
    let subject = server.add_user("ada").await.to_string();
    let mut operator = Operator::new(server).await;
    let channels = connections(server, 2).await;
    for round in 0..rounds {
        let blow = Blow::ALL[round % Blow::ALL.len()];
        let login = server.login(&app, "ada").await;
        let victim = Victim {
            client: app.clone(),
            subject: subject.clone(),
            session: login.session_id.clone(),
            refresh: login.refresh_token.clone(),
        };
        let head = server.service.store().head().revision;
        let mut racers: Vec<Racer> = Vec::new();
        for channel in &channels {
            let call = refresh(channel.clone(), refresh_request(&app, &login.refresh_token));
            racers.push(Box::pin(async { call.await.ok() }));
        }
        // The blow is in the middle, so that neither side always starts first.
        let struck = operator.clone().strike(blow, victim.clone());
        racers.insert(round % 3, Box::pin(async { struck.await.then_some(None).flatten() }));
        let mut tokens: Vec<_> = at_once(racers).await.into_iter().flatten().collect();
        tokens.push(login);
        let what = format!("round {round}, {blow:?}");
        if !matches!(blow, Blow::Everything) {
            all_dead(server, &operator, &tokens, &what).await;
        }
        operator.heal(server, blow, &victim).await;
        all_dead(server, &operator, &tokens, &what).await;
        for set in &tokens {
            let refused = server.refresh(&app, &set.refresh_token).await.expect_err(&what);
            assert_eq!(refused.code(), Code::Unauthenticated, "{what}");
            assert_eq!(reason(&refused), "CREDENTIAL_NOT_ACCEPTED", "{what}");
        }
        let events = server.service.store().events_after(head, 10).expect("events");
        assert_eq!(events.len(), 1, "{what}: one change, one event: {events:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_refresh_outlives_what_it_races_with() {
    let server = Server::start().await;
    refresh_races_every_blow(&server, rounds(450, 1000)).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_refresh_outlives_what_it_races_with_on_disk() {
    let directory = tempfile::tempdir().expect("a directory");
    let clock = Arc::new(ManualClock::new(NOW));
    let server = Server::with(options(sled(directory.path())), clock).await;
    refresh_races_every_blow(&server, rounds(99, 1000)).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_login_outlives_what_it_races_with() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let subject = server.add_user("ada").await.to_string();
    let mut operator = Operator::new(&server).await;
    let blows = [
        Blow::SetPassword,
        Blow::Disable,
        Blow::DisableClient,
        Blow::ChangePassword,
        Blow::Subject,
        Blow::Everything,
    ];
    for round in 0..300 {
        let blow = blows[round % blows.len()];
        let victim = Victim {
            client: app.clone(),
            subject: subject.clone(),
            session: String::new(),
            refresh: String::new(),
        };
        let mut racers: Vec<Racer> = Vec::new();
        for _ in 0..2 {
            let mut identity = server.identity();
            let request = password_login(&app, "ada", PASSWORD);
            racers.push(Box::pin(async move {
                let answer = identity.authenticate(request).await;
                answer.ok().and_then(|answer| answer.into_inner().tokens)
            }));
        }
        // Not every blow ends what comes after it: only one that changes what a login needs does.
        let sets_password = matches!(blow, Blow::SetPassword | Blow::ChangePassword);
        let lasting = matches!(blow, Blow::Disable | Blow::DisableClient);
        let struck = operator.clone().strike(blow, victim.clone());
        racers.insert(round % 3, Box::pin(async { struck.await.then_some(None).flatten() }));
        let epoch =
            server.service.subject_epoch(&subject.parse().expect("a subject")).await.expect("it");
        let tokens: Vec<_> = at_once(racers).await.into_iter().flatten().collect();
        let what = format!("round {round}, {blow:?}");
        if lasting {
            all_dead(&server, &operator, &tokens, &what).await;
            operator.heal(&server, blow, &victim).await;
            all_dead(&server, &operator, &tokens, &what).await;
        } else {
            operator.heal(&server, blow, &victim).await;
            // A login that got through belongs wholly to one side: its tokens carry the old epochs
            // and are dead, or it began after the blow.
            for set in &tokens {
                let access = server.introspect(&operator.client, &set.access_token).await.active;
                let renewed = server.refresh(&app, &set.refresh_token).await.is_ok();
                assert_eq!(access, renewed, "{what}: half a session");
            }
        }
        if sets_password {
            let now = server.service.subject_epoch(&subject.parse().expect("a subject")).await;
            assert_eq!(now.expect("it").0, epoch.0 + 1, "{what}");
        }
    }
    server.stop().await;
}

/// With the old password nobody has a live session once the new one is set.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_login_with_the_old_password_outlives_the_new_one() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let subject = server.add_user("ada").await.to_string();
    let operator = Operator::new(&server).await;
    let password = |n: usize| if n == 0 { PASSWORD.to_owned() } else { format!("{PASSWORD} {n}") };
    for round in 0..200 {
        let mut racers: Vec<Racer> = Vec::new();
        for _ in 0..3 {
            let mut identity = server.identity();
            let request = password_login(&app, "ada", &password(round));
            racers.push(Box::pin(async move {
                let answer = identity.authenticate(request).await;
                answer.ok().and_then(|answer| answer.into_inner().tokens)
            }));
        }
        let request =
            pb::SetUserPasswordRequest { subject: subject.clone(), password: password(round + 1) };
        let (mut admin, request) = (operator.admin(), bearer(request, &operator.token));
        racers.insert(
            round % 4,
            Box::pin(async move {
                admin.set_user_password(request).await.expect("the password is set");
                None
            }),
        );
        let tokens: Vec<_> = at_once(racers).await.into_iter().flatten().collect();
        all_dead(&server, &operator, &tokens, &format!("round {round}")).await;
    }
    let request = password_login(&app, "ada", &password(200));
    server.identity().authenticate(request).await.expect("the newest password is good");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_revokes_of_one_session_are_one_event() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let operator = Operator::new(&server).await;
    server.add_user("ada").await;
    for round in 0..100 {
        let login = server.login(&app, "ada").await;
        let head = server.service.store().head();
        let calls = (0..12).map(|n| {
            let operator = operator.clone();
            let target = if n % 2 == 0 {
                Target::SessionId(login.session_id.clone())
            } else {
                Target::Token(login.refresh_token.clone())
            };
            let call = async move { operator.revoke(target).await.expect("revoked") };
            Box::pin(call) as BoxFuture<'static, _>
        });
        let answers: Vec<pb::RevokeResponse> = at_once(calls.collect()).await;
        let events = server.service.store().events_after(head.revision, 10).expect("events");
        assert_eq!(events.len(), 1, "round {round}: {events:?}");
        let revision = events[0].revision.0;
        assert_eq!(answers.iter().filter(|a| a.revoked.is_some()).count(), 1, "round {round}");
        for answer in &answers {
            let cursor = answer.cursor.as_ref().expect("a cursor");
            assert!(cursor.revision >= revision, "round {round}: a cursor before the event");
        }
    }
    server.stop().await;
}

/// The ring that signs is the one that is stored, whoever changed it last.
async fn ring_is_the_stored_one(server: &Server, what: &str) -> KeyId {
    let stored = server.service.store().ring().await.expect("the ring");
    let in_state = |state| {
        let of_state = stored.keys.iter().filter(move |key| key.state == state);
        of_state.map(|key| key.id.clone()).collect::<Vec<_>>()
    };
    let active = in_state(KeyState::Active);
    assert_eq!(active.len(), 1, "{what}: exactly one key signs");
    let jwks = String::from_utf8(server.service.keys().current().jwks_json().to_vec());
    let jwks = jwks.expect("text");
    for key in &stored.keys {
        let published = jwks.contains(key.id.as_str());
        assert_eq!(published, key.state != KeyState::Revoked, "{what}: {:?} {jwks}", key.state);
    }
    active[0].clone()
}

fn kid(token: &str) -> String {
    use base64::Engine as _;
    let header = token.split('.').next().expect("a header");
    let json = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header).expect("base64");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    json["kid"].as_str().expect("a kid").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_key_changes_leave_one_signer_and_every_live_token_good() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let mut operator = Operator::new(&server).await;
    server.add_user("ada").await;
    for round in 0..60 {
        let what = format!("round {round}");
        // Many announce: one key is announced.
        let calls = (0..4).map(|_| {
            let (mut admin, token) = (operator.admin(), operator.token.clone());
            let call = async move {
                let request = bearer(pb::CreateKeyRequest::default(), &token);
                let key = admin.create_key(request).await.expect("announced").into_inner().key;
                key.and_then(|key| key.public_key).expect("a key").kid
            };
            Box::pin(call) as BoxFuture<'static, _>
        });
        let mut announced = at_once(calls.collect()).await;
        announced.dedup();
        assert_eq!(announced.len(), 1, "{what}: {announced:?}");
        ring_is_the_stored_one(&server, &what).await;

        // Many rotate while somebody logs in and the old signer is taken back: one signs.
        let old = ring_is_the_stored_one(&server, &what).await.to_string();
        let mut calls: Vec<BoxFuture<'static, Option<pb::TokenSet>>> = Vec::new();
        for _ in 0..4 {
            let (mut admin, token) = (operator.admin(), operator.token.clone());
            calls.push(Box::pin(async move {
                let request = bearer(pb::RotateKeyRequest::default(), &token);
                if let Err(status) = admin.rotate_key(request).await {
                    // Another was first; or the caller's own token was signed by the key that went.
                    let code = status.code();
                    assert!(
                        matches!(code, Code::FailedPrecondition | Code::Unauthenticated),
                        "{status}"
                    );
                }
                None
            }));
        }
        for _ in 0..2 {
            let (mut identity, request) =
                (server.identity(), password_login(&app, "ada", PASSWORD));
            calls.push(Box::pin(async move {
                let answer = identity.authenticate(request).await.expect("a login");
                answer.into_inner().tokens
            }));
        }
        let revokes = round % 2 == 1;
        if revokes {
            let (mut admin, token) = (operator.admin(), operator.token.clone());
            let request = pb::RevokeKeyRequest { kid: old.clone(), ..Default::default() };
            calls.push(Box::pin(async move {
                admin.revoke_key(bearer(request, &token)).await.expect("taken back");
                None
            }));
        }
        let tokens: Vec<_> = at_once(calls).await.into_iter().flatten().collect();
        let signer = ring_is_the_stored_one(&server, &what).await;
        assert_ne!(signer.as_str(), old, "{what}: the old key does not sign");
        operator.again(&server).await;
        let next = server.login(&app, "ada").await;
        assert_eq!(kid(&next.access_token), signer.as_str(), "{what}");
        for set in &tokens {
            let live = server.introspect(&operator.client, &set.access_token).await.active;
            let taken_back = revokes && kid(&set.access_token) == old;
            assert_eq!(live, !taken_back, "{what}");
            // A key that is taken back ends access tokens, not sessions.
            server.refresh(&app, &set.refresh_token).await.expect("the session lives");
        }
        let announced = server.service.store().ring().await.expect("the ring").keys;
        assert!(announced.iter().filter(|k| k.state == KeyState::Announced).count() == 1);
    }
    let request = bearer(pb::ListKeysRequest::default(), &operator.token);
    let listed = server.admin().list_keys(request).await.expect("a list").into_inner().keys;
    let signs = |key: &&pb::Key| {
        key.public_key.as_ref().is_some_and(|key| key.state() == pb::KeyState::Active)
    };
    assert_eq!(listed.iter().filter(signs).count(), 1);
    let events = server.service.store().events_after(Default::default(), 10_000).expect("events");
    let revoked = events.iter().filter(|entry| matches!(entry.event, Event::Revocation(_)));
    assert_eq!(revoked.count(), 30, "each key that was taken back is one event");
    server.stop().await;
}
