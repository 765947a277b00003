//! Processes that are killed, stopped, started twice and started on damaged data: what was
//! acknowledged is there, or the server does not start and says why (invariant 3).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use avouch::domain::entropy::{Entropy, SeededEntropy};
use avouch::pb::v1 as pb;
use avouch::pb::v1::admin_service_client::AdminServiceClient;
use avouch::pb::v1::identity_service_client::IdentityServiceClient;
use avouch::pb::v1::revocation_service_client::RevocationServiceClient;
use avouch::pb::v1::revoke_request::Target;
use avouch::pb::v1::watch_revocations_response::Frame;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::harness::{bearer, password_login};
use crate::process::{Addresses, Cast, PATIENCE, Process, channel, identity, metric, ops};

/// One session as its client knows it.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) session: String,
    /// The refresh tokens that were acknowledged, oldest first.
    pub(crate) refresh: Vec<String>,
    /// The access tokens likewise.
    pub(crate) access: Vec<String>,
    /// What became of its revocation.
    pub(crate) revoked: Revoked,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Revoked {
    NotAsked,
    Unanswered,
    Acknowledged,
}

impl Line {
    pub(crate) fn new(tokens: pb::TokenSet) -> Self {
        let mut line = Self {
            session: tokens.session_id.clone(),
            refresh: Vec::new(),
            access: Vec::new(),
            revoked: Revoked::NotAsked,
        };
        line.push(tokens);
        line
    }

    pub(crate) fn push(&mut self, tokens: pb::TokenSet) {
        self.refresh.push(tokens.refresh_token);
        self.access.push(tokens.access_token);
    }

    pub(crate) fn current(&self) -> &str {
        self.refresh.last().expect("a line begins with a login")
    }
}

pub(crate) type Identity = IdentityServiceClient<Channel>;

pub(crate) async fn login(identity: &mut Identity, cast: &Cast) -> Result<pb::TokenSet, Status> {
    let request = password_login(&cast.login, "ada", &cast.password);
    Ok(identity.authenticate(request).await?.into_inner().tokens.expect("tokens"))
}

pub(crate) async fn refresh(
    i: &mut Identity,
    cast: &Cast,
    token: &str,
) -> Result<pb::TokenSet, Status> {
    let request = pb::RefreshRequest {
        client: Some(cast.login.clone()),
        refresh_token: token.to_owned(),
        ..Default::default()
    };
    Ok(i.refresh(request).await?.into_inner().tokens.expect("tokens"))
}

async fn revoke(i: &mut Identity, cast: &Cast, session: &str) -> Result<(), Status> {
    let request = pb::RevokeRequest {
        client: Some(cast.admin.clone()),
        target: Some(Target::SessionId(session.to_owned())),
        ..Default::default()
    };
    i.revoke(request).await.map(drop)
}

pub(crate) async fn active(i: &mut Identity, cast: &Cast, token: &str) -> bool {
    let request = pb::IntrospectRequest {
        client: Some(cast.admin.clone()),
        token: token.to_owned(),
        ..Default::default()
    };
    i.introspect(request).await.expect("an answer").into_inner().active
}

/// How many calls were acknowledged, over all clients.
type Progress = Arc<AtomicUsize>;

/// Waits until so many are.
async fn until(progress: &Progress, count: usize) {
    let enough = async {
        while progress.load(Ordering::Relaxed) < count {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, enough).await.expect("the clients get on");
}

/// Logs in, refreshes and revokes until the server is gone; what it acknowledged until then.
async fn load(channel: Channel, cast: Cast, seed: u64, progress: Progress) -> Vec<Line> {
    let entropy = SeededEntropy::new(seed);
    let mut identity = IdentityServiceClient::new(channel);
    let mut lines: Vec<Line> = Vec::new();
    let pick = |n: usize| usize::from(draw::<1>(&entropy)[0]) % n;
    loop {
        progress.fetch_add(1, Ordering::Relaxed);
        let open: Vec<usize> =
            (0..lines.len()).filter(|n| lines[*n].revoked == Revoked::NotAsked).collect();
        if open.len() < 2 {
            match login(&mut identity, &cast).await {
                Ok(tokens) => lines.push(Line::new(tokens)),
                Err(_) => return lines,
            }
            continue;
        }
        let line = &mut lines[open[pick(open.len())]];
        if pick(8) == 0 {
            line.revoked = Revoked::Unanswered;
            match revoke(&mut identity, &cast, &line.session.clone()).await {
                Ok(()) => line.revoked = Revoked::Acknowledged,
                Err(_) => return lines,
            }
        } else {
            match refresh(&mut identity, &cast, line.current()).await {
                Ok(tokens) => line.push(tokens),
                Err(_) => return lines,
            }
        }
    }
}

/// Holds everything that was acknowledged against the server.
pub(crate) async fn check(addresses: &Addresses, cast: &Cast, lines: &[Line]) {
    let mut server = identity(addresses).await;
    for line in lines {
        match line.revoked {
            Revoked::Acknowledged => {
                for token in [line.current(), line.access.last().expect("an access token")] {
                    assert!(!active(&mut server, cast, token).await, "a revocation is lost");
                }
                let refused = refresh(&mut server, cast, line.current()).await;
                let status = refused.expect_err("a revocation is lost");
                assert_eq!(status.code(), Code::Unauthenticated);
            }
            // Either it is revoked or it is not, but not half.
            Revoked::Unanswered => {
                let token = line.access.last().expect("an access token");
                let access = active(&mut server, cast, token).await;
                let renewed = refresh(&mut server, cast, line.current()).await.is_ok();
                assert_eq!(access, renewed, "half a revocation");
            }
            Revoked::NotAsked => {
                // The last acknowledged token is the current one, or the parent of one whose
                // acknowledgement was lost: the successor is there to be had.
                let next = refresh(&mut server, cast, line.current()).await;
                let next = next.expect("an acknowledged token is lost");
                assert_eq!(next.session_id, line.session);
                assert!(active(&mut server, cast, &next.refresh_token).await);
                // Its ancestors are spent, for all the restarts in between.
                if line.refresh.len() > 1 {
                    let first = &line.refresh[0];
                    let status = refresh(&mut server, cast, first).await.expect_err("spent");
                    assert_eq!(status.code(), Code::Unauthenticated);
                    assert!(!active(&mut server, cast, &next.refresh_token).await, "reuse kills");
                    assert!(!active(&mut server, cast, &next.access_token).await, "reuse kills");
                } else {
                    assert!(active(&mut server, cast, &next.access_token).await);
                }
            }
        }
    }
}

fn draw<const N: usize>(entropy: &SeededEntropy) -> [u8; N] {
    let entropy: &dyn Entropy = entropy;
    entropy.bytes()
}

/// A number of milliseconds below `limit`.
fn moment(entropy: &SeededEntropy, limit: u16) -> Duration {
    Duration::from_millis(u64::from(u16::from_be_bytes(draw(entropy)) % limit))
}

/// A directory for a server, and room beside it.
fn home() -> (tempfile::TempDir, PathBuf) {
    let home = tempfile::tempdir().expect("a directory");
    let data = home.path().join("data");
    (home, data)
}

/// Lets several clients go at a server for a while and kills it in the middle.
async fn load_and_kill(
    process: Process,
    addresses: &Addresses,
    cast: &Cast,
    seed: u64,
) -> Vec<Line> {
    let progress = Progress::default();
    let mut clients = JoinSet::new();
    for n in 0..4 {
        let channel = channel(addresses).await;
        clients.spawn(load(channel, cast.clone(), seed * 8 + n, Arc::clone(&progress)));
    }
    let entropy = SeededEntropy::new(seed);
    until(&progress, 40 + usize::from(draw::<1>(&entropy)[0])).await;
    sleep(moment(&entropy, 20)).await;
    process.kill().await;
    clients.join_all().await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kills_under_load_and_while_starting() {
    let (_home, data) = home();
    let entropy = SeededEntropy::new(14);
    let mut dead: Vec<Line> = Vec::new();
    let (mut refreshed, mut revoked) = (0, 0);
    for round in 0..6 {
        let mut process = Process::start(&data, &[]);
        let addresses = process.serving().await;
        let cast = Cast::of(&data);
        let lines = load_and_kill(process, &addresses, &cast, round).await;
        // Killed twice more before it is up.
        for _ in 0..2 {
            let process = Process::start(&data, &[]);
            sleep(moment(&entropy, 150)).await;
            process.kill().await;
        }
        let mut process = Process::start(&data, &[]);
        let addresses = process.serving().await;
        check(&addresses, &cast, &lines).await;
        // What was revoked in earlier rounds has seen several deaths by now.
        check(&addresses, &cast, &dead).await;
        process.kill().await;
        refreshed += lines.iter().map(|line| line.refresh.len() - 1).sum::<usize>();
        let acknowledged = |line: &Line| line.revoked == Revoked::Acknowledged;
        revoked += lines.iter().filter(|line| acknowledged(line)).count();
        dead.extend(lines.into_iter().filter(acknowledged).take(5));
    }
    assert!(refreshed > 8 && revoked > 0, "the load was none: {refreshed} {revoked}");
}

#[tokio::test]
async fn a_first_start_that_is_killed_leaves_nothing_that_nobody_can_open() {
    let entropy = SeededEntropy::new(27);
    for _ in 0..4 {
        let (_home, data) = home();
        for _ in 0..4 {
            let process = Process::start(&data, &[]);
            sleep(moment(&entropy, 300)).await;
            process.kill().await;
        }
        let mut process = Process::start(&data, &[]);
        let addresses = process.serving().await;
        let cast = Cast::of(&data);
        let mut server = identity(&addresses).await;
        let tokens = login(&mut server, &cast).await.expect("the credentials are good");
        assert!(active(&mut server, &cast, &tokens.access_token).await);
        process.kill().await;
    }
}

pub(crate) async fn admin_token(addresses: &Addresses, cast: &Cast) -> String {
    let request = pb::AuthenticateRequest {
        client: Some(cast.admin.clone()),
        grant: Some(pb::authenticate_request::Grant::ClientCredentials(
            pb::ClientCredentialsGrant {},
        )),
        ..Default::default()
    };
    let answer = identity(addresses).await.authenticate(request).await.expect("a login");
    answer.into_inner().tokens.expect("tokens").access_token
}

/// The tests here restart servers within the retry window of their configuration, but the clients of
/// the first start had the built-in one of 10 s.
#[tokio::test]
async fn the_first_clients_live_by_the_configuration() {
    let (_home, data) = home();
    let mut process = Process::start(&data, &[("tokens.access_lifetime", "2m")]);
    let addresses = process.serving().await;
    let token = admin_token(&addresses, &Cast::of(&data)).await;
    let mut server = AdminServiceClient::new(channel(&addresses).await);
    for client in ["login", "admin"] {
        let request = pb::GetClientRequest { client_id: client.to_owned() };
        let answer = server.get_client(bearer(request, &token)).await.expect("it is there");
        let client = answer.into_inner().client.expect("a client");
        let seconds = |duration: Option<prost_types::Duration>| duration.map(|it| it.seconds);
        assert_eq!(seconds(client.retry_window), Some(300));
        assert_eq!(seconds(client.access_token_lifetime), Some(120));
    }
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_answers_what_is_in_flight_sends_watchers_away_and_exits_with_0() {
    const LOGINS: usize = 6;
    let (_home, data) = home();
    // Hashes that take a while, one at a time, and logins that may wait for them.
    let slow = [
        ("password.memory_kib", "65536"),
        ("password.iterations", "8"),
        ("password.workers", "1"),
        ("password.queue_max_wait", "60s"),
        ("limits.request_timeout", "60s"),
    ];
    let mut process = Process::start(&data, &slow);
    let addresses = process.serving().await;
    let cast = Cast::of(&data);
    let token = admin_token(&addresses, &cast).await;
    let mut watcher = RevocationServiceClient::new(channel(&addresses).await);
    let request = bearer(pb::WatchRevocationsRequest::default(), &token);
    let mut watch = watcher.watch_revocations(request).await.expect("a stream").into_inner();
    let first = watch.message().await.expect("a frame").expect("more").frame;
    assert!(matches!(first, Some(Frame::Start(_))), "{first:?}");

    let mut calls = JoinSet::new();
    for n in 0..LOGINS {
        let (mut server, cast) = (identity(&addresses).await, cast.clone());
        calls.spawn(async move {
            let mut request = password_login(&cast.login, "ada", &cast.password);
            // A source of their own, so that none is turned away for the others.
            request.device =
                Some(pb::Device { end_user_address: format!("192.0.2.{n}"), ..Default::default() });
            let answer = server.authenticate(request).await?;
            Ok::<_, Status>(answer.into_inner().tokens.expect("tokens"))
        });
    }
    let in_flight = async {
        loop {
            let text = ops(&addresses, "/metrics").await;
            let hashing = metric(&text, "avouch_password_hashes_queued")
                + metric(&text, "avouch_password_hashes_running");
            // Some may be done; all of the rest have arrived.
            if hashing >= 2.0 {
                return;
            }
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, in_flight).await.expect("they arrive");
    process.terminate();
    let drained = async {
        loop {
            match watch.message().await {
                Ok(Some(message)) => {
                    if let Some(Frame::GoAway(away)) = message.frame {
                        return away.reason();
                    }
                }
                other => panic!("the stream ended without a go-away: {other:?}"),
            }
        }
    };
    let reason = timeout(PATIENCE, drained).await.expect("in time");
    assert_eq!(reason, pb::GoAwayReason::Drain);
    let mut answered = Vec::new();
    for call in calls.join_all().await {
        match call {
            Ok(tokens) => answered.push(tokens),
            // One that came after the signal may be told so, clearly.
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
    }
    assert!(answered.len() >= 2, "what was in flight is answered: {}", answered.len());
    let end = process.end().await;
    assert_eq!(end.status.code(), Some(0), "{end:?}");

    // And what it answered is there after a restart.
    let mut process = Process::start(&data, &slow);
    let addresses = process.serving().await;
    let mut server = identity(&addresses).await;
    for tokens in answered {
        refresh(&mut server, &cast, &tokens.refresh_token).await.expect("acknowledged");
    }
    process.kill().await;
}

#[tokio::test]
async fn sigterm_at_the_first_moment_is_a_clean_end_too() {
    let (_home, data) = home();
    for _ in 0..8 {
        let mut process = Process::start(&data, &[]);
        process.serving().await;
        process.terminate();
        let end = process.end().await;
        assert_eq!(end.status.code(), Some(0), "{end:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_loses_nothing_that_was_acknowledged() {
    let (_home, data) = home();
    for round in 100..102 {
        let mut process = Process::start(&data, &[]);
        let addresses = process.serving().await;
        let cast = Cast::of(&data);
        let progress = Progress::default();
        let mut clients = JoinSet::new();
        for n in 0..4 {
            let (channel, progress) = (channel(&addresses).await, Arc::clone(&progress));
            clients.spawn(load(channel, cast.clone(), round * 8 + n, progress));
        }
        until(&progress, 60).await;
        process.terminate();
        let lines: Vec<Line> = clients.join_all().await.into_iter().flatten().collect();
        let end = process.end().await;
        assert_eq!(end.status.code(), Some(0), "{end:?}");
        assert!(lines.iter().any(|line| line.refresh.len() > 1), "the load was none");
        let mut process = Process::start(&data, &[]);
        let addresses = process.serving().await;
        check(&addresses, &cast, &lines).await;
        process.kill().await;
    }
}

#[tokio::test]
async fn a_second_process_on_the_directory_is_refused_and_does_not_disturb_the_first() {
    let (_home, data) = home();
    let mut first = Process::start(&data, &[]);
    let addresses = first.serving().await;
    let end = match Process::start(&data, &[]).outcome().await {
        Err(end) => end,
        Ok(second) => panic!("two processes on one directory: {second:?}"),
    };
    assert!(!end.status.success());
    assert!(end.stderr.contains("is in use by another avouch process"), "{}", end.stderr);
    let cast = Cast::of(&data);
    let mut server = identity(&addresses).await;
    let tokens = login(&mut server, &cast).await.expect("the first one serves");
    revoke(&mut server, &cast, &tokens.session_id).await.expect("and commits");
    // Whoever looks for the server finds the one that serves.
    assert_eq!(first.serving().await.grpc, addresses.grpc);
    first.terminate();
    assert_eq!(first.end().await.status.code(), Some(0));
}

#[tokio::test]
async fn another_encryption_key_is_refused_with_a_reason() {
    let (home, data) = home();
    let mut process = Process::start(&data, &[]);
    process.serving().await;
    process.terminate();
    assert_eq!(process.end().await.status.code(), Some(0));
    let cases = [
        (
            "other.key",
            "3f8a1c5e7b9d2046a8c0e2f416385a7c9ebd0f21436587a9cbed0f1234a6b7c8\n",
            "key ring cannot be opened",
        ),
        ("short.key", "3f8a1c5e7b9d2046\n", "key-encryption key cannot be used"),
        ("empty.key", "", "key-encryption key cannot be used"),
    ];
    for (name, contents, wanted) in cases {
        use std::os::unix::fs::PermissionsExt as _;
        let path = home.path().join(name);
        std::fs::write(&path, contents).expect("a key file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("a mode");
        let path = path.display().to_string();
        let mut process = Process::start(&data, &[("keys.encryption_key_file", &path)]);
        let Err(end) = process.outcome().await else { panic!("{name}: it serves") };
        assert!(!end.status.success(), "{name}");
        assert!(end.stderr.contains(wanted), "{name}: {}", end.stderr);
        assert!(!end.stderr.contains("panicked"), "{name}: {}", end.stderr);
        let secret = contents.trim_end();
        assert!(secret.is_empty() || !end.stderr.contains(secret), "{name}: {}", end.stderr);
    }
    // With its own key it serves as before.
    let mut process = Process::start(&data, &[]);
    let addresses = process.serving().await;
    login(&mut identity(&addresses).await, &Cast::of(&data)).await.expect("a login");
    process.kill().await;
}

/// The files in which the store keeps its state.
fn store_files(data: &Path) -> Vec<PathBuf> {
    // Not of the store: what operators read, and what is written anew at each start.
    const OTHERS: [&str; 6] = [
        "addresses.json",
        "admin-client.json",
        "login-client.json",
        "ada.password",
        "audit.jsonl",
        "encryption.key",
    ];
    let mut files = Vec::new();
    let mut directories = vec![data.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() {
                directories.push(path);
            } else if !OTHERS.contains(&name) && path.metadata().is_ok_and(|m| m.len() > 0) {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).expect("copied");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_is_refused_with_a_reason_or_does_no_harm() {
    let (home, data) = home();
    let mut process = Process::start(&data, &[]);
    let addresses = process.serving().await;
    let cast = Cast::of(&data);
    let mut lines = load_and_kill(process, &addresses, &cast, 7).await;
    lines.retain(|line| line.revoked != Revoked::Unanswered);
    lines.truncate(6);
    assert!(!lines.is_empty());

    let entropy = SeededEntropy::new(92);
    let files = store_files(&data);
    let mut outcomes: HashMap<&str, u32> = HashMap::new();
    for round in 0..24_usize {
        let copied = home.path().join(format!("flip-{round}"));
        copy(&data, &copied);
        // Every file has its turn; where the data is, the flips are spread over what is written.
        let file = files[round % files.len()].strip_prefix(&data).expect("below it");
        let path = copied.join(file);
        let mut bytes = std::fs::read(&path).expect("a file");
        let written = bytes.iter().rposition(|byte| *byte != 0).map_or(bytes.len(), |n| n + 1);
        let at = usize::try_from(u64::from_be_bytes(draw(&entropy))).expect("64 bit") % written;
        bytes[at] ^= 1 << (draw::<1>(&entropy)[0] % 8);
        std::fs::write(&path, bytes).expect("written");
        let what = format!("bit in byte {at} of {}", file.display());

        let mut process = Process::start(&copied, &[]);
        match process.outcome().await {
            Ok(addresses) => {
                check(&addresses, &cast, &lines).await;
                *outcomes.entry("served").or_default() += 1;
                process.kill().await;
            }
            Err(end) => {
                assert!(end.status.code().is_some_and(|code| code != 0), "{what}: {end:?}");
                let clear = ["is damaged", "schema version", "key ring cannot be opened"];
                assert!(clear.iter().any(|text| end.stderr.contains(text)), "{what}: {end:?}");
                *outcomes.entry("refused").or_default() += 1;
            }
        }
        std::fs::remove_dir_all(&copied).expect("removed");
    }
    assert!(outcomes.get("refused").is_some_and(|n| *n > 0), "no flip was noticed: {outcomes:?}");
}
