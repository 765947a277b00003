//! A whole server against callers that mean harm: storms of logins, lies about lengths, garbage,
//! unknown names (invariants 10 and 11).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use avouch::app::StoreOptions;
use avouch::domain::clock::ManualClock;
use avouch::domain::scope::Names;
use avouch::domain::secret::SecretText;
use avouch::domain::session::Device;
use avouch::domain::throttle::ThrottlePolicy;
use avouch::password::{HashParams, PoolSettings};
use avouch::pb::v1 as pb;
use avouch::pb::v1::identity_service_client::IdentityServiceClient;
use avouch::pb::v1::revoke_request::Target;
use avouch::service::authenticate::{self, AuthenticateError};
use avouch::service::clients::ClientProof;
use avouch::service::journal::Origin;
use bytes::Bytes;
use http::Request;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::harness::{
    NOW, PASSWORD, Server, connect, memory, options, password_login, reason, rounds,
};
use crate::process::{Addresses, Cast, PATIENCE, Process, identity};

const AUTHENTICATE: &str = "/avouch.v1.IdentityService/Authenticate";

/// A password login that says it comes from `source`.
fn from(
    client: &pb::ClientAuthentication,
    username: &str,
    source: usize,
) -> pb::AuthenticateRequest {
    let address = format!("10.{}.{}.{}", source >> 16 & 255, source >> 8 & 255, source & 255);
    let device = pb::Device { end_user_address: address, ..Default::default() };
    pb::AuthenticateRequest { device: Some(device), ..password_login(client, username, PASSWORD) }
}

async fn server_with_real_hashes(pool: PoolSettings) -> Server {
    let mut options = options(memory());
    options.hash = HashParams::default();
    options.pool = pool;
    if let StoreOptions::Etcd(settings) = &mut options.store {
        // It is about how much etcd is asked, and not about how soon it answers: where the storm, the
        // server and etcd share few cores, that is a matter of luck.
        settings.request_timeout = Duration::from_secs(30);
        settings.deadline = Duration::from_secs(60);
    }
    Server::with(options, Arc::new(ManualClock::new(NOW))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_logins_is_shed_and_the_rest_is_answered() {
    const LOGINS: usize = 10_000;
    const CONNECTIONS: usize = 10;
    let pool = PoolSettings { workers: 2, max_queued: 8, ..PoolSettings::default() };
    let server = server_with_real_hashes(pool.clone()).await;
    let app = server.first_party("app").await;
    let operator = server.powerful("operator").await;
    server.add_user("ada").await;
    let mut sessions = Vec::new();
    for _ in 0..12 {
        sessions.push(server.login(&app, "ada").await);
    }
    let hashed_before = server.service.hash_stats().completed;

    let (admitted, shed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (next, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
    // The storm lasts at least until two sessions went through all the other calls.
    let enough_answered = Arc::new(AtomicBool::new(false));
    let mut storm = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let channel = connect(server.grpc).await;
        for _ in 0..90 {
            let mut identity = IdentityServiceClient::new(channel.clone());
            let (app, next, asked) = (app.clone(), Arc::clone(&next), Arc::clone(&asked));
            let (admitted, shed) = (Arc::clone(&admitted), Arc::clone(&shed));
            let enough_answered = Arc::clone(&enough_answered);
            storm.spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= LOGINS && enough_answered.load(Ordering::Relaxed) {
                        return;
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                    // Known and unknown names, each from a source of its own.
                    let name = if n % 2 == 0 { "ada".to_owned() } else { format!("nobody{n}") };
                    match identity.authenticate(from(&app, &name, n)).await {
                        Ok(_) => assert_eq!(n % 2, 0, "{name} logged in"),
                        Err(status) if status.code() == Code::ResourceExhausted => {
                            assert_eq!(reason(&status), "HASH_QUEUE_FULL");
                            let retry = status.get_details_retry_info().expect("RetryInfo");
                            assert!(retry.retry_delay.is_some_and(|delay| !delay.is_zero()));
                            shed.fetch_add(1, Ordering::Relaxed);
                            continue;
                        }
                        Err(status) => {
                            assert_eq!(status.code(), Code::Unauthenticated, "{status}");
                            assert_eq!(n % 2, 1, "ada is refused");
                        }
                    }
                    admitted.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }
    let over = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (service, over) = (Arc::clone(&server.service), Arc::clone(&over));
        tokio::spawn(async move {
            let (mut running, mut held) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                let stats = service.hash_stats();
                (running, held) =
                    (running.max(stats.running), held.max(stats.running + stats.queued));
                sleep(Duration::from_millis(1)).await;
            }
            (running, held)
        })
    };
    // Meanwhile everything that hashes nothing works, over a connection that the storm shares.
    for (number, session) in sessions.into_iter().enumerate() {
        let next_tokens = server.refresh(&app, &session.refresh_token).await.expect("Refresh");
        assert!(server.introspect(&operator, &next_tokens.access_token).await.active);
        let target = Target::SessionId(session.session_id.clone());
        server.revoke(&operator, target).await.expect("Revoke");
        assert!(!server.introspect(&operator, &next_tokens.access_token).await.active);
        if number == 1 {
            enough_answered.store(true, Ordering::Relaxed);
        }
    }
    while let Some(done) = storm.join_next().await {
        done.expect("the storm meets no surprise");
    }
    over.store(true, Ordering::Relaxed);
    let (running, held) = watcher.await.expect("it watched");
    let (admitted, shed) = (admitted.load(Ordering::Relaxed), shed.load(Ordering::Relaxed));
    assert_eq!(admitted + shed, asked.load(Ordering::Relaxed));
    assert!(admitted + shed >= LOGINS as u64);
    assert!(shed > 0, "nothing was shed");
    assert!(admitted > 0, "nobody got in");
    let stats = server.service.hash_stats();
    assert_eq!(stats.completed - hashed_before, admitted, "a hash for each that was let in");
    assert!(running <= pool.workers, "{running} hashes at once");
    // A job stands in the queue until a thread has woken up for it, so both are counted together.
    assert!(held <= pool.max_queued + pool.workers, "{held} hashes at once or waiting");
    assert_eq!(stats.shed_full + stats.shed_source, shed);
    // What was shed is no failed attempt: the account is as open as before.
    server.login(&app, "ada").await;
    // Nor did the store hear of it: there is a record of each that was let in, and of the logins beside
    // the storm, which are of one source.
    let lockout = ThrottlePolicy::default().lockout;
    let swept = server.service.store().sweep(10 * LOGINS, NOW.after(2 * lockout)).await;
    assert_eq!(u64::from(swept.expect("swept").attempts), admitted + 1);
    server.stop().await;
}

/// A client that speaks HTTP/2 and does not care for gRPC.
struct Rude(h2::client::SendRequest<Bytes>);

impl Rude {
    async fn connect(address: &str) -> Self {
        let io = TcpStream::connect(address).await.expect("it listens");
        let (requests, connection) = h2::client::handshake(io).await.expect("HTTP/2");
        tokio::spawn(connection);
        Self(requests)
    }

    /// Sends the head and `body`, and ends the stream if `ended`.
    async fn send(
        &mut self,
        path: &str,
        encoding: Option<&str>,
        body: Vec<u8>,
        ended: bool,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        let mut request = Request::post(format!("http://avouch.test{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(encoding) = encoding {
            request = request.header("grpc-encoding", encoding);
        }
        let mut requests = self.0.clone().ready().await?;
        let (response, mut stream) =
            requests.send_request(request.body(()).expect("a request"), false)?;
        stream.send_data(Bytes::from(body), ended)?;
        Ok((response, stream))
    }

    /// The gRPC status of the answer.
    async fn status(&mut self, path: &str, encoding: Option<&str>, body: Vec<u8>) -> Code {
        let (response, _stream) = self.send(path, encoding, body, true).await.expect("sent");
        status_of(response).await
    }
}

async fn status_of(response: h2::client::ResponseFuture) -> Code {
    let response = timeout(PATIENCE, response).await.expect("in time").expect("an answer");
    let in_head = response.headers().get("grpc-status").cloned();
    let mut body = response.into_body();
    while let Some(chunk) = body.data().await {
        let length = chunk.expect("data").len();
        body.flow_control().release_capacity(length).expect("capacity");
    }
    let status = match in_head {
        Some(status) => status,
        None => {
            let trailers = body.trailers().await.expect("trailers").expect("trailers");
            trailers.get("grpc-status").expect("a status").clone()
        }
    };
    Code::from_bytes(status.as_bytes())
}

/// A message behind its prefix.
fn framed(compressed: u8, length: u32, message: &[u8]) -> Vec<u8> {
    [&[compressed][..], &length.to_be_bytes(), message].concat()
}

fn whole(message: &[u8]) -> Vec<u8> {
    framed(0, u32::try_from(message.len()).expect("short"), message)
}

#[tokio::test]
async fn garbage_compression_and_oversize_get_the_documented_status_and_harm_nobody() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    let mut rude = Rude::connect(&server.grpc.to_string()).await;
    let mut long = vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f];
    long.extend([b'x'; 64]);
    let nested = [0x0a, 0x7f].repeat(4000);
    let garbage: [&[u8]; 6] = [
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x0a\x02\x0a\xff",
        b"\x12\x06\x0a\x04\xff\xfe\xfd\xfc",
        b"\x08\x01",
        &long,
        &nested,
    ];
    for message in garbage {
        for method in ["Authenticate", "Refresh", "Revoke", "Introspect"] {
            let path = format!("/avouch.v1.IdentityService/{method}");
            let code = rude.status(&path, None, whole(message)).await;
            let head = &message[..message.len().min(8)];
            assert!(
                matches!(code, Code::Internal | Code::InvalidArgument),
                "{method} {head:?}: {code:?}"
            );
        }
    }
    for encoding in ["gzip", "deflate", "zstd", "br"] {
        let code = rude.status(AUTHENTICATE, Some(encoding), framed(1, 3, b"abc")).await;
        assert_eq!(code, Code::Unimplemented, "{encoding}");
    }
    // The flag without the header, and a flag that is none.
    for flag in [1, 2, 255] {
        let code = rude.status(AUTHENTICATE, None, framed(flag, 3, b"abc")).await;
        assert!(matches!(code, Code::Internal | Code::Unimplemented), "{flag}: {code:?}");
    }
    // Over the limit of 16 KiB; a message that ends too soon; one that never begins.
    let large = vec![b'x'; 16 * 1024 + 1];
    assert_eq!(rude.status(AUTHENTICATE, None, whole(&large)).await, Code::OutOfRange);
    for cut in [framed(0, 100, b"abc"), vec![0, 0], Vec::new()] {
        let code = rude.status(AUTHENTICATE, None, cut).await;
        assert!(matches!(code, Code::Internal | Code::InvalidArgument), "{code:?}");
    }
    for path in ["/", "/avouch.v1.IdentityService/Nothing", "/x/y"] {
        assert_eq!(rude.status(path, None, whole(b"")).await, Code::Unimplemented, "{path}");
    }
    // Nothing of it changed anything.
    server.login(&app, "ada").await;
    assert_eq!(server.service.hash_stats().failed, 0);
    let ops = Addresses { grpc: server.grpc.to_string(), ops: server.ops.to_string() };
    let metrics = crate::process::ops(&ops, "/metrics").await;
    assert!(metrics.contains("panics"), "{metrics}");
    let panics = metrics.lines().filter(|line| line.contains("panics") && !line.starts_with('#'));
    for line in panics {
        assert!(line.ends_with(" 0"), "{line}");
    }
    let public = Addresses { grpc: server.grpc.to_string(), ops: server.public.to_string() };
    let keys = crate::process::ops(&public, "/.well-known/jwks.json").await;
    assert!(keys.contains("ES256"), "{keys}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lies_about_lengths_take_no_memory() {
    const MIB: usize = 1024 * 1024;
    let home = tempfile::tempdir().expect("a directory");
    let data = home.path().join("data");
    let mut process = Process::start(&data, &[]);
    let addresses = process.serving().await;
    let cast = Cast::of(&data);
    let mut bystander = identity(&addresses).await;
    let login = || password_login(&cast.login, "ada", &cast.password);
    bystander.authenticate(login()).await.expect("a login");
    let before = process.resident_bytes();

    // 4 MiB are refused at once; 16 KiB may come, and are waited for.
    let mut held = Vec::new();
    for n in 0..20 {
        let mut rude = Rude::connect(&addresses.grpc).await;
        for _ in 0..100 {
            let length = if n % 2 == 0 { 4 * 1024 * 1024 } else { 16 * 1024 };
            let body = framed(0, length, b"");
            held.push((length, rude.send(AUTHENTICATE, None, body, false).await.expect("sent")));
        }
    }
    let (mut refused, mut waiting) = (0, Vec::new());
    for (length, (response, stream)) in held {
        if length > 16 * 1024 {
            assert_eq!(status_of(response).await, Code::OutOfRange);
            refused += 1;
        } else {
            waiting.push((response, stream));
        }
    }
    assert_eq!((refused, waiting.len()), (1000, 1000));
    bystander.authenticate(login()).await.expect("a login while others lie");
    let grown = process.resident_bytes().saturating_sub(before);
    assert!(grown < 64 * MIB, "{} MiB for 2,000 lies", grown / MIB);
    drop(waiting);
    bystander.authenticate(login()).await.expect("a login afterwards");
    process.terminate();
    assert_eq!(process.end().await.status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets_during_authenticate_free_no_thread_that_hashes() {
    use prost::Message as _;
    let pool = PoolSettings {
        workers: 1,
        max_queued: 1000,
        queue_max_wait: Duration::from_secs(600),
        source_share: 1,
    };
    let server = server_with_real_hashes(pool).await;
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    let before = server.service.hash_stats();
    let mut submitted = 0;
    for round in 0..5 {
        let mut rude = Rude::connect(&server.grpc.to_string()).await;
        let mut streams = Vec::new();
        for n in 0..20 {
            let message = from(&app, "ada", round * 20 + n).encode_to_vec();
            let sent = rude.send(AUTHENTICATE, None, whole(&message), true).await;
            streams.push(sent.expect("sent"));
            submitted += 1;
        }
        // Once one runs, all of their callers leave.
        let runs = async {
            while server.service.hash_stats().running == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, runs).await.expect("one runs");
        for (_, stream) in &mut streams {
            stream.send_reset(h2::Reason::CANCEL);
        }
        assert!(server.service.hash_stats().running <= 1, "more threads than there are");
    }
    let drained = async {
        loop {
            let stats = server.service.hash_stats();
            assert!(stats.running <= 1, "more threads than there are");
            if stats.running == 0 && stats.queued == 0 {
                return stats;
            }
            sleep(Duration::from_millis(1)).await;
        }
    };
    let stats = timeout(PATIENCE, drained).await.expect("the queue empties");
    let (done, left) = (stats.completed - before.completed, stats.abandoned - before.abandoned);
    assert!(done + left <= submitted, "{done} hashed and {left} left of {submitted}");
    assert!(done >= 1);
    server.login(&app, "ada").await;
    server.stop().await;
}

/// Not a test by itself: the body of the next one, which runs it in a process of its own so that its
/// memory is its own.
#[tokio::test]
#[ignore = "started by unknown_names_take_a_bounded_amount_of_memory"]
async fn unknown_names_on_their_own() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut options = options(crate::harness::sled(directory.path()));
    options.pool = PoolSettings { source_share: 1, ..options.pool };
    if let StoreOptions::Sled { settings, .. } = &mut options.store {
        settings.cache_bytes = 4 << 20;
    }
    let clock = Arc::new(ManualClock::new(NOW));
    let server = Server::with(options, Arc::clone(&clock)).await;
    let app = server.first_party("app").await;
    let secret = SecretText::new(app.client_secret.clone());
    // Long names, so that whoever keeps them shows it. Not over gRPC: both ends would be this process.
    let ask = async |n: usize| {
        let request = authenticate::Request {
            client: ClientProof {
                id: app.client_id.parse().ok(),
                secret: Some(&secret),
                certificate_names: &[],
            },
            grant: authenticate::Grant::Password {
                username: format!("{n}{}", "x".repeat(200)),
                password: SecretText::new(PASSWORD.to_owned()),
            },
            scope: Names::default(),
            audience: Names::default(),
            device: Device {
                address: format!("10.0.{}.{}", n >> 8, n & 255).into(),
                ..Device::default()
            },
        };
        match server.service.authenticate(request, &Origin::default()).await {
            Err(AuthenticateError::Refused | AuthenticateError::Busy(_)) => {}
            other => panic!("{n}: {other:?}"),
        }
    };
    let mut seen = Vec::new();
    let names = rounds(2_500, 5_000);
    for batch in 0..4 {
        let mut n = batch * names;
        while n < (batch + 1) * names {
            futures_util::future::join_all((n..n + 100).map(&ask)).await;
            n += 100;
        }
        // What they left is over after the lockout, and swept.
        clock.advance(Duration::from_secs(86_400));
        while server.service.sweep().await.expect("swept").more {}
        let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
        let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
        server.journal.take();
        seen.push(pages.expect("a number") * 4096);
    }
    let grown = seen[3].saturating_sub(seen[0]);
    assert!(grown < 8 << 20, "{} MiB for {} names: {seen:?}", grown >> 20, 3 * names);
    server.stop().await;
}

#[test]
fn unknown_names_take_a_bounded_amount_of_memory() {
    let program = std::env::current_exe().expect("this program");
    let ran = std::process::Command::new(program)
        .args(["--ignored", "--exact", "hostile::unknown_names_on_their_own"])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
}

async fn health(channel: &Channel, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel.clone()).check(request).await.expect("an answer");
    answer.into_inner().status()
}

const SERVICES: [&str; 5] = [
    "",
    "avouch.v1.IdentityService",
    "avouch.v1.SessionService",
    "avouch.v1.AdminService",
    "avouch.v1.RevocationService",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_names_every_service_and_says_so_before_it_goes() {
    let server = Server::start().await;
    let serving = async {
        for service in SERVICES {
            while health(&server.channel, service).await != ServingStatus::Serving {
                sleep(Duration::from_millis(5)).await;
            }
        }
    };
    timeout(PATIENCE, serving).await.expect("it serves");
    let unknown = HealthCheckRequest { service: "avouch.v1.Nothing".to_owned() };
    let status = HealthClient::new(server.channel.clone()).check(unknown).await.expect_err("none");
    assert_eq!(status.code(), Code::NotFound);
    // Whoever watches hears of the drain, and then the stream ends: one that is left open, as by a
    // probe or a load balancer, must not hold the drain until its deadline.
    let mut watches = Vec::new();
    for service in SERVICES {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut client = HealthClient::new(server.channel.clone());
        let mut watch = client.watch(request).await.expect("a stream").into_inner();
        let first = watch.message().await.expect("a message").expect("more");
        assert_eq!(first.status(), ServingStatus::Serving, "{service}");
        watches.push((service, watch));
    }
    let stopping = tokio::spawn(server.stop());
    let mut held = Vec::new();
    for (service, mut watch) in watches {
        let next = timeout(PATIENCE, watch.message()).await.expect("in time");
        let next = next.expect("a message").expect("more");
        assert_eq!(next.status(), ServingStatus::NotServing, "{service}");
        let end = timeout(PATIENCE, watch.message()).await.expect("in time");
        assert_eq!(end.expect("a good end"), None, "{service}");
        held.push(watch);
    }
    let ended = timeout(PATIENCE, stopping).await.expect("in time").expect("it stops");
    assert_eq!(ended.drained.aborted, 0, "nothing was cut");
}

#[tokio::test]
async fn reflection_is_served_only_where_it_is_asked_for() {
    for wanted in [true, false] {
        let mut options = options(memory());
        options.reflection = wanted;
        let server = Server::with(options, Arc::new(ManualClock::new(NOW))).await;
        let mut rude = Rude::connect(&server.grpc.to_string()).await;
        for version in ["v1", "v1alpha"] {
            let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
            // list_services: "*"
            let code = rude.status(&path, None, whole(b"\x3a\x01*")).await;
            assert_eq!(code, if wanted { Code::Ok } else { Code::Unimplemented }, "{version}");
        }
        server.stop().await;
    }
}
