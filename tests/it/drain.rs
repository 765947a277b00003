//! How a server that is told to stop takes leave, and a restart under load: what was acknowledged is
//! there afterwards, and a client that tries again sees no call fail.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use avouch::client::RetrySettings;
use avouch::client::balance::{BalanceSettings, Replicas, Resolve, Target};
use avouch::client::identity::{
    ClientCredential, Deadlines, Identity, Login, Revocation, RevocationTarget,
};

use avouch::crypto::OsEntropy;
use avouch::domain::secret::SecretText;
use avouch::pb::v1 as pb;
use avouch::pb::v1::revocation_service_client::RevocationServiceClient;
use avouch::pb::v1::watch_revocations_response::Frame;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::crash::{home, login, refresh};
use crate::harness::{bearer, rounds};
use crate::process::{Addresses, Cast, PATIENCE, Process, channel, identity, ops};

/// Longer than any test: only an event ends a wait for it.
const NEVER: &str = "1h";

/// An access token of the admin client, for avouch.
async fn own_token(addresses: &Addresses, cast: &Cast) -> String {
    let request = pb::AuthenticateRequest {
        client: Some(cast.admin.clone()),
        grant: Some(pb::authenticate_request::Grant::ClientCredentials(
            pb::ClientCredentialsGrant {},
        )),
        audiences: vec!["avouch".to_owned()],
        ..Default::default()
    };
    let answer = identity(addresses).await.authenticate(request).await.expect("it is known");
    answer.into_inner().tokens.expect("tokens").access_token
}

#[tokio::test]
async fn a_server_that_is_told_to_stop_says_so_before_it_stops_serving() {
    let (_home, data) = home();
    let settings = [("server.drain_delay", NEVER), ("server.drain_timeout", NEVER)];
    let mut process = Process::start(&data, &settings);
    let addresses = process.serving().await;
    let cast = Cast::of(&data);
    let tokens = login(&mut identity(&addresses).await, &cast).await.expect("a login");
    let token = own_token(&addresses, &cast).await;
    let mut watcher = RevocationServiceClient::new(channel(&addresses).await);
    let request = bearer(pb::WatchRevocationsRequest::default(), &token);
    let mut revocations = watcher.watch_revocations(request).await.expect("a stream").into_inner();
    let mut prober = HealthClient::new(channel(&addresses).await);
    let request = HealthCheckRequest::default();
    let mut health = prober.watch(request.clone()).await.expect("a stream").into_inner();
    let first = health.message().await.expect("a message").expect("more");
    assert_eq!(first.status(), ServingStatus::Serving);
    assert!(ops(&addresses, "/readyz").await.starts_with("HTTP/1.1 200"));

    process.terminate();
    let told = timeout(PATIENCE, health.message()).await.expect("in time");
    assert_eq!(told.expect("a message").expect("more").status(), ServingStatus::NotServing);
    assert!(ops(&addresses, "/readyz").await.starts_with("HTTP/1.1 503"));
    assert!(ops(&addresses, "/livez").await.starts_with("HTTP/1.1 200"), "it is alive, though");
    // Whoever has not heard of it yet is served as ever, over a new connection, too.
    let mut late = identity(&addresses).await;
    let tokens = refresh(&mut late, &cast, &tokens.refresh_token).await.expect("a refresh");
    let mut heartbeats = 0;
    while heartbeats < 2 {
        let next = timeout(PATIENCE, revocations.message()).await.expect("in time");
        match next.expect("no end yet").expect("more").frame {
            Some(Frame::Heartbeat(_)) => heartbeats += 1,
            Some(Frame::GoAway(_)) => panic!("told to go before the delay is over"),
            _ => {}
        }
    }

    // The second signal ends the delay. Health ends, and the watcher is told where it stands.
    process.terminate();
    let end = timeout(PATIENCE, health.message()).await.expect("in time");
    assert_eq!(end.expect("a good end"), None);
    let mut gone = None;
    let status = loop {
        match timeout(PATIENCE, revocations.message()).await.expect("in time") {
            Ok(Some(message)) => {
                if let Some(Frame::GoAway(away)) = message.frame {
                    gone = Some(away.reason());
                }
            }
            Ok(None) => panic!("the stream ended without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(gone, Some(pb::GoAwayReason::Drain));
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.get_error_details().retry_info().is_some(), "{status:?}");
    let end = process.end().await;
    assert_eq!(end.status.code(), Some(0), "{end:?}");
    assert!(end.stderr.contains("aborted=0"), "no connection was cut: {}", end.stderr);

    // What it acknowledged while it was going is there.
    let mut process = Process::start(&data, &[]);
    let addresses = process.serving().await;
    let mut next = identity(&addresses).await;
    refresh(&mut next, &cast, &tokens.refresh_token).await.expect("acknowledged");
    process.kill().await;
}

/// The address behind the name, which changes with each restart, as a pod's does.
struct Name(watch::Receiver<Vec<SocketAddr>>);

#[async_trait::async_trait]
impl Resolve for Name {
    async fn resolve(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(self.0.borrow().clone())
    }
}

/// What a client was told, and must find again.
struct Held {
    session: String,
    refresh: SecretText,
    revoked: bool,
}

/// How much is asked for.
#[derive(Clone, Copy)]
struct Load {
    clients: usize,
    /// The time between two calls of a client; what it missed it makes up for. None: no time at all.
    pause: Option<Duration>,
    /// How often a session is refreshed and asked about.
    refreshes: usize,
    /// How many calls come between two restarts.
    between: usize,
}

impl Load {
    /// As quick as few clients are; or `AVOUCH_DRAIN_RATE` calls a second, of many.
    fn wanted() -> Self {
        let Some(rate) = crate::disk::variable("AVOUCH_DRAIN_RATE") else {
            return Self { clients: 8, pause: None, refreshes: 10, between: 100 };
        };
        let rate: usize = rate.parse().expect("AVOUCH_DRAIN_RATE is calls a second");
        // Few logins, for a password costs a thousand times what the rest does.
        let pause = Some(Duration::from_millis(200));
        Self { clients: (rate / 5).max(1), pause, refreshes: 100, between: 2 * rate }
    }
}

/// Logs in, refreshes, introspects and revokes until told to stop. Each call has to succeed.
async fn use_it(
    login: Identity,
    admin: Identity,
    password: SecretText,
    load: Load,
    stop: watch::Receiver<bool>,
    done: Arc<AtomicUsize>,
) -> (Vec<Held>, Vec<Duration>) {
    let mut held = Vec::new();
    let mut latencies = Vec::new();
    let mut timed = |began: Instant| {
        latencies.push(began.elapsed());
        done.fetch_add(1, Ordering::Relaxed);
    };
    let mut ticks = load.pause.map(tokio::time::interval);
    let mut turn = async || {
        if let Some(ticks) = &mut ticks {
            ticks.tick().await;
        }
    };
    while !*stop.borrow() {
        turn().await;
        let began = Instant::now();
        let credential = Login::password("ada", password.clone());
        let mut tokens = login.authenticate(credential).await.expect("a login");
        timed(began);
        for _ in 0..load.refreshes {
            if *stop.borrow() {
                break;
            }
            turn().await;
            let began = Instant::now();
            let spent = tokens.refresh_token.take().expect("a refresh token");
            tokens = login.refresh(spent).await.expect("a refresh");
            timed(began);
            turn().await;
            let began = Instant::now();
            let known = admin.introspect(tokens.access_token.clone()).await.expect("an answer");
            assert!(known.is_some_and(|it| it.active), "a token just issued is good");
            timed(began);
        }
        let revoked = held.len() % 2 == 0;
        if revoked {
            turn().await;
            let began = Instant::now();
            let target = RevocationTarget::Session(tokens.session_id.clone());
            admin.revoke(Revocation::from(target)).await.expect("a revocation");
            timed(began);
        }
        let refresh = tokens.refresh_token.expect("a refresh token");
        held.push(Held { session: tokens.session_id, refresh, revoked });
    }
    (held, latencies)
}

/// Waits until so many more calls were answered.
async fn more(done: &AtomicUsize, count: usize) {
    let from = done.load(Ordering::Relaxed);
    let enough = async {
        while done.load(Ordering::Relaxed) < from + count {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, enough).await.expect("the clients get on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_under_load_lose_nothing_and_fail_no_call_that_is_tried_again() {
    let load = Load::wanted();
    let (_home, data) = home();
    let settings = [("server.drain_delay", "200ms")];
    let mut process = Process::start(&data, &settings);
    let mut addresses = process.serving().await;
    let cast = Cast::of(&data);
    let (name, behind) = watch::channel(vec![addresses.grpc.parse().expect("an address")]);
    let replicas = Replicas::start(
        Target::plaintext("http://avouch.test:7700").expect("a target"),
        Arc::new(Name(behind)),
        BalanceSettings {
            resolve_every: Duration::from_secs(1),
            resolve_at_most_every: Duration::from_millis(20),
        },
        Arc::new(OsEntropy),
    );
    // As many tries as the time allows: what counts is the answer in the end.
    let retries =
        RetrySettings { attempts: u32::MAX, budget: u32::MAX / 10, ..RetrySettings::default() };
    let client = |who: &pb::ClientAuthentication| {
        let credential = ClientCredential::secret(&who.client_id, &who.client_secret);
        Identity::new(replicas.clone(), credential, Arc::new(OsEntropy))
            .with_retries(retries)
            .with_deadlines(Deadlines::all(PATIENCE))
    };
    let (login, admin) = (client(&cast.login), client(&cast.admin));
    let (stop, stopped) = watch::channel(false);
    let done = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..load.clients {
        // Not all at the same moment.
        sleep(load.pause.unwrap_or_default() / u32::try_from(load.clients).expect("few")).await;
        let password = SecretText::new(cast.password.clone());
        let (login, admin) = (login.clone(), admin.clone());
        clients.spawn(use_it(login, admin, password, load, stopped.clone(), Arc::clone(&done)));
    }
    let began = Instant::now();
    let restarts = rounds(3, 30);
    for _ in 0..restarts {
        more(&done, load.between).await;
        process.terminate();
        let end = process.end().await;
        assert_eq!(end.status.code(), Some(0), "{end:?}");
        assert!(end.stderr.contains("aborted=0"), "a connection was cut: {}", end.stderr);
        process = Process::start(&data, &settings);
        addresses = process.serving().await;
        name.send_replace(vec![addresses.grpc.parse().expect("an address")]);
    }
    more(&done, load.between).await;
    let took = began.elapsed();
    stop.send_replace(true);
    let mut held = Vec::new();
    let mut latencies = Vec::new();
    while let Some(client) = timeout(PATIENCE, clients.join_next()).await.expect("in time") {
        let (of_one, waits) = client.expect("no call failed");
        held.extend(of_one);
        latencies.extend(waits);
    }
    latencies.sort();
    let [half, most, last] =
        [50, 99, 100].map(|part| latencies[(latencies.len() - 1) * part / 100]);
    eprintln!(
        "{restarts} restarts, {} calls, {:.0} a second, {} sessions; median {half:?}, p99 {most:?}, longest {last:?}",
        latencies.len(),
        latencies.len() as f64 / took.as_secs_f64(),
        held.len()
    );

    // Once more, so that only what is on the disk counts.
    process.terminate();
    process.end().await;
    let mut process = Process::start(&data, &settings);
    let addresses = process.serving().await;
    let mut after = identity(&addresses).await;
    assert!(held.iter().any(|it| it.revoked) && held.iter().any(|it| !it.revoked));
    for Held { session, refresh: token, revoked } in held {
        let answer = refresh(&mut after, &cast, token.expose()).await;
        match revoked {
            false => assert_eq!(answer.expect("acknowledged").session_id, session),
            true => assert_eq!(answer.expect_err("revoked").code(), Code::Unauthenticated),
        }
    }
    process.kill().await;
}
