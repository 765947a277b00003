//! Backups: what they hold, what is made of them, and what is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use avouch::app::offline::Files;
use avouch::cli::offline::{
    Offline as _, OfflineError, Place, Restore, Restored, Verified, Verify,
};
use avouch::client::watch::{Watch, WatchEvent, WatchSettings};
use avouch::crypto::stream::{StreamKey, StreamOpener, StreamSealer};
use avouch::domain::clock::ManualClock;
use avouch::domain::entropy::{Entropy, SeededEntropy};
use avouch::domain::ids::{LogId, Revision};
use avouch::domain::secret::SecretText;
use avouch::pb::v1 as pb;
use avouch::pb::v1::admin_service_client::AdminServiceClient;
use avouch::pb::v1::revoke_request::Target;
use avouch::service::journal::Happening;
use avouch::store::backup::{Chunk, ChunkWriter, End, read_chunk, write_end};
use avouch::store::codec::SCHEMA_VERSION;
use avouch::store::engine::{Engine as _, KeyRange, Order, Reads as _};
use avouch::store::ledger::Ledger;
use avouch::store::sled::{SledEngine, SledSettings};
use avouch::store::{Level, NewSession, Store as _};
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Endpoint;

use super::harness::{NOW, Server, bearer, options, reason, rounds, sled};
use super::process::{self, PATIENCE, Process};

mod killed;
#[path = "../../examples/fill/sessions.rs"]
pub(crate) mod sessions;

const KEY: &str = super::harness::ENCRYPTION_KEY;

/// A backup that `token` may make, in its messages.
async fn stream(
    server: &Server,
    token: &str,
) -> Result<(Vec<Vec<u8>>, pb::BackupPoint), tonic::Status> {
    let request = bearer(pb::CreateBackupRequest {}, token);
    let mut pieces = server.admin().create_backup(request).await?.into_inner();
    let (mut chunks, mut point) = (Vec::new(), None);
    while let Some(piece) = pieces.message().await? {
        assert!(point.is_none(), "nothing comes after the point");
        chunks.push(piece.chunk);
        point = piece.point;
    }
    Ok((chunks, point.expect("a point")))
}

/// A whole backup, in a file.
async fn save(server: &Server, token: &str, to: &Path) -> pb::BackupPoint {
    let (chunks, point) = stream(server, token).await.expect("a backup");
    std::fs::write(to, chunks.concat()).expect("it is written");
    point
}

async fn restore_with(
    backup: &Path,
    directory: &Path,
    key: &str,
    revoke_everything: bool,
) -> Result<Restored, OfflineError> {
    let job = Restore {
        backup: backup.to_owned(),
        to: Place::Directory(directory.to_owned()),
        scratch: std::env::temp_dir(),
        key: SecretText::new(key.to_owned()),
        revoke_everything,
    };
    Files.restore(job, &mut |_| {}).await
}

async fn restore(backup: &Path, directory: &Path) -> Result<Restored, OfflineError> {
    restore_with(backup, directory, KEY, false).await
}

async fn verify(backup: &Path) -> Result<Verified, OfflineError> {
    let key = SecretText::new(KEY.to_owned());
    Files.verify(Verify::Backup { path: backup.to_owned(), key }, &mut |_| {}).await
}

async fn verify_directory(path: &Path) -> Result<Verified, OfflineError> {
    Files
        .verify(
            Verify::Store {
                place: Place::Directory(path.to_owned()),
                scratch: std::env::temp_dir(),
            },
            &mut |_| {},
        )
        .await
}

fn revoke_session(id: &str) -> Target {
    Target::SessionId(id.to_owned())
}

/// A server on `dir` with an administrator and its token, a client and a user.
struct Cast {
    server: Server,
    admin: pb::ClientAuthentication,
    web: pb::ClientAuthentication,
    token: String,
}

impl Cast {
    async fn start(dir: &Path) -> Self {
        let server = Server::with(options(sled(dir)), Arc::new(ManualClock::new(NOW))).await;
        let admin = server.powerful("admin").await;
        let web = server.first_party("web").await;
        server.add_user("ada").await;
        let token = server.own_token(&admin).await;
        Self { server, admin, web, token }
    }

    /// The same people with another server.
    async fn on(self, dir: &Path) -> Self {
        let clock = Arc::clone(&self.server.clock);
        self.server.stop().await;
        let server = Server::with(options(sled(dir)), clock).await;
        Self { server, ..self }
    }
}

fn follow(address: SocketAddr, token: &str) -> Watch {
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let value: tonic::metadata::MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
    let settings = WatchSettings {
        heartbeat: Duration::from_millis(100),
        authorization: Some(Arc::new(move || Some(value.clone()))),
        ..WatchSettings::new(vec![endpoint.unwrap()])
    };
    Watch::new(settings, Arc::new(SeededEntropy::new(1)))
}

async fn event_where(watch: &mut Watch, wanted: impl Fn(&WatchEvent) -> bool) -> WatchEvent {
    let found = async {
        loop {
            let event = watch.next().await;
            if wanted(&event) {
                return event;
            }
        }
    };
    timeout(PATIENCE, found).await.expect("the event in time")
}

/// What the log of a server says, in a form that does not depend on its name.
fn log(server: &Server) -> Vec<String> {
    let entries = server.service.store().events_after(Revision(0), 1_000_000).expect("the log");
    entries.iter().map(|entry| format!("{entry:?}")).collect()
}

#[tokio::test]
async fn a_restored_server_goes_on_where_the_backup_was_made() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new, file) = (dir.path().join("old"), dir.path().join("new"), dir.path().join("b"));
    let cast = Cast::start(&old).await;
    let kept = cast.server.login(&cast.web, "ada").await;
    let revoked = cast.server.login(&cast.web, "ada").await;
    cast.server.revoke(&cast.admin, revoke_session(&revoked.session_id)).await.unwrap();
    let point = save(&cast.server, &cast.token, &file).await;
    let saved = log(&cast.server);
    assert_eq!(point.cursor.unwrap().revision, cast.server.service.store().head().revision.0);
    let found = verify(&file).await.unwrap();
    assert!(found.records["records"] > 10, "{found:?}");
    // After the backup, and so not in it.
    let late = cast.server.login(&cast.web, "ada").await;
    cast.server.revoke(&cast.admin, revoke_session(&late.session_id)).await.unwrap();
    let before = cast.server.service.store().head();

    let restored = restore(&file, &new).await.unwrap();
    assert_eq!(restored.saved.log_id, before.log_id);
    assert_ne!(restored.cursor.log_id, before.log_id);
    assert_eq!(restored.records["users"], 1);
    assert!(verify_directory(&new).await.unwrap().problems.is_empty());

    let cast = cast.on(&new).await;
    assert_eq!(log(&cast.server), saved);
    assert_eq!(cast.server.service.store().head(), restored.cursor);
    assert!(cast.server.introspect(&cast.admin, &kept.access_token).await.active);
    assert!(!cast.server.introspect(&cast.admin, &revoked.access_token).await.active);
    assert!(cast.server.refresh(&cast.web, &revoked.refresh_token).await.is_err());
    assert!(cast.server.refresh(&cast.web, &late.refresh_token).await.is_err(), "never opened");
    cast.server.refresh(&cast.web, &kept.refresh_token).await.unwrap();
    let again = cast.server.login(&cast.web, "ada").await;
    assert!(cast.server.introspect(&cast.admin, &again.access_token).await.active);

    // A cursor of the old log gets the whole set of the new one, in force once it is complete.
    let request = pb::WatchRevocationsRequest {
        resume_after: Some(pb::Cursor {
            log_id: before.log_id.to_string(),
            revision: before.revision.0,
        }),
        ..Default::default()
    };
    let mut frames = cast
        .server
        .revocations()
        .watch_revocations(bearer(request, &cast.token))
        .await
        .unwrap()
        .into_inner();
    let (mut reset, mut chunks) = (false, 0);
    loop {
        use pb::watch_revocations_response::Frame;
        let frame = timeout(PATIENCE, frames.message()).await.unwrap().unwrap().unwrap();
        match frame.frame.unwrap() {
            Frame::Reset(_) => reset = true,
            Frame::Snapshot(_) => chunks += 1,
            Frame::Synced(synced) => {
                let through = synced.through.unwrap();
                assert_eq!(through.log_id, restored.cursor.log_id.to_string());
                assert!(through.revision >= restored.cursor.revision.0);
                break;
            }
            _ => {}
        }
    }
    assert!(reset && chunks > 0, "reset {reset}, {chunks} chunks");
    cast.server.stop().await;
}

#[tokio::test]
async fn a_refresh_token_that_was_rotated_after_the_backup_is_current_again() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new, file) = (dir.path().join("old"), dir.path().join("new"), dir.path().join("b"));
    let cast = Cast::start(&old).await;
    let (first, other) =
        (cast.server.login(&cast.web, "ada").await, cast.server.login(&cast.web, "ada").await);
    save(&cast.server, &cast.token, &file).await;
    let second = cast.server.refresh(&cast.web, &first.refresh_token).await.unwrap();
    let successor = cast.server.refresh(&cast.web, &other.refresh_token).await.unwrap();
    restore(&file, &new).await.unwrap();
    let cast = cast.on(&new).await;

    // Whoever kept the older token goes on with it, and gets the very successor.
    let again = cast.server.refresh(&cast.web, &first.refresh_token).await.unwrap();
    assert_eq!(again.refresh_token, second.refresh_token);
    // The successor is of a generation that has not been: reuse, which ends the session.
    assert!(cast.server.refresh(&cast.web, &successor.refresh_token).await.is_err());
    assert!(cast.server.refresh(&cast.web, &other.refresh_token).await.is_err());
    cast.server.stop().await;
}

#[tokio::test]
async fn revoking_everything_with_the_restore_ends_what_was_issued_before() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new, file) = (dir.path().join("old"), dir.path().join("new"), dir.path().join("b"));
    let cast = Cast::start(&old).await;
    let before = cast.server.login(&cast.web, "ada").await;
    save(&cast.server, &cast.token, &file).await;
    // Its epoch is higher than any in the backup.
    cast.server.revoke(&cast.admin, Target::Everything(true)).await.unwrap();
    let after = cast.server.login(&cast.web, "ada").await;
    let restored = restore_with(&file, &new, KEY, true).await.unwrap();
    assert_eq!(restored.cursor.revision.0, restored.saved.revision.0 + 1, "one event");
    let cast = cast.on(&new).await;
    for tokens in [&before, &after] {
        assert!(!cast.server.introspect(&cast.admin, &tokens.access_token).await.active);
        assert!(cast.server.refresh(&cast.web, &tokens.refresh_token).await.is_err());
    }
    let again = cast.server.login(&cast.web, "ada").await;
    assert!(cast.server.introspect(&cast.admin, &again.access_token).await.active);
    cast.server.stop().await;
}

/// Whether the directory is as a restore should leave it that failed.
fn untouched(path: &Path) -> bool {
    !path.exists()
}

#[tokio::test]
async fn a_backup_with_any_byte_changed_or_missing_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (new, file, bad) = (dir.path().join("new"), dir.path().join("b"), dir.path().join("bad"));
    let cast = Cast::start(&dir.path().join("old")).await;
    let (chunks, _) = stream(&cast.server, &cast.token).await.unwrap();
    let whole = chunks.concat();
    assert!(whole.len() < 20_000, "{}", whole.len());
    std::fs::write(&file, &whole).unwrap();
    verify(&file).await.unwrap();
    // Read from beginning to end, each byte by itself. A directory is made for some.
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1 << (at % 8);
        std::fs::write(&bad, &changed).unwrap();
        assert!(verify(&bad).await.is_err(), "byte {at}");
        if at % 500 == 0 {
            assert!(restore(&bad, &new).await.is_err(), "byte {at}");
            assert!(untouched(&new), "byte {at}");
        }
    }
    // Cut off at any byte, and said so. What lacks its first eight may be anything.
    let cut_off = |error: OfflineError, end: usize| {
        let expected = if end < 8 { "it is no backup of avouch" } else { "it is cut off after" };
        assert!(matches!(error, OfflineError::Damaged(_)), "byte {end}: {error:?}");
        assert!(error.to_string().contains(expected), "byte {end}: {error}");
    };
    let shorter = std::fs::OpenOptions::new().write(true).open(&bad).unwrap();
    std::fs::write(&bad, &whole).unwrap();
    for end in (0..whole.len()).rev() {
        shorter.set_len(end as u64).unwrap();
        cut_off(verify(&bad).await.expect_err("cut off"), end);
        if end % 500 == 0 {
            cut_off(restore(&bad, &new).await.expect_err("cut off"), end);
            assert!(untouched(&new), "byte {end}");
        }
    }
    let mut cut = 0;
    for (n, chunk) in chunks.iter().enumerate() {
        for end in [cut, cut + 1, cut + chunk.len() / 2, cut + chunk.len() - 1] {
            std::fs::write(&bad, &whole[..end]).unwrap();
            let error = restore(&bad, &new).await.expect_err("cut off");
            assert!(matches!(error, OfflineError::Damaged(_)), "chunk {n}, {end}: {error:?}");
            assert!(untouched(&new));
        }
        cut += chunk.len();
    }
    std::fs::write(&bad, [&whole[..], b"x"].concat()).unwrap();
    assert!(matches!(restore(&bad, &new).await, Err(OfflineError::Damaged(_))));
    // Chunks that are swapped, missing or there twice.
    let n = chunks.len();
    assert!(n >= 3, "{n}");
    for order in [vec![0, 2, 1], vec![0, 2], vec![0, 1, 1, 2], vec![0, 1]] {
        let moved: Vec<u8> = order.iter().flat_map(|n| chunks[*n].clone()).collect();
        std::fs::write(&bad, moved).unwrap();
        assert!(matches!(restore(&bad, &new).await, Err(OfflineError::Damaged(_))), "{order:?}");
    }

    let other = KEY.replace('a', "b");
    let error = restore_with(&file, &new, &other, false).await.expect_err("another key");
    assert!(matches!(error, OfflineError::Key(_)), "{error:?}");
    let mut newer = whole.clone();
    newer[12] += 1;
    std::fs::write(&bad, newer).unwrap();
    let error = restore(&bad, &new).await.expect_err("another schema");
    assert!(matches!(&error, OfflineError::Version(text) if text.contains("schema")), "{error:?}");
    assert!(untouched(&new));

    // Not where something is, be it a store or anything else; that stays as it is.
    std::fs::create_dir(&new).unwrap();
    std::fs::write(new.join("mine"), "mine").unwrap();
    assert!(matches!(restore(&file, &new).await, Err(OfflineError::NotEmpty(_))));
    assert_eq!(std::fs::read_dir(&new).unwrap().count(), 1);
    std::fs::remove_file(new.join("mine")).unwrap();
    restore(&file, &new).await.expect("an empty one is fine");
    assert!(matches!(restore(&file, &new).await, Err(OfflineError::NotEmpty(_))));
    cast.server.stop().await;
}

/// Sealed well, but not what a store was: by a program that errs.
#[tokio::test]
async fn records_that_do_not_come_to_the_point_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (new, file) = (dir.path().join("new"), dir.path().join("b"));
    let cast = Cast::start(&dir.path().join("old")).await;
    let (chunks, _) = stream(&cast.server, &cast.token).await.unwrap();
    let key = StreamKey::from_file_contents(KEY.as_bytes()).unwrap();
    let whole = chunks.concat();
    let mut opener = StreamOpener::new(&whole[..], &key, SCHEMA_VERSION).unwrap();
    let (mut changes, mut end) = (Vec::new(), None);
    while let Some(chunk) = opener.next_chunk().unwrap() {
        match read_chunk(&chunk).unwrap() {
            Chunk::Changes(more) => changes.extend(more),
            Chunk::End(at) => end = Some(at),
        }
    }
    let end = end.unwrap();
    let sealed = |changes: &[(Vec<u8>, Option<Vec<u8>>)], end: &End| {
        let entropy = SeededEntropy::new(5);
        let (mut sealer, mut bytes) = StreamSealer::new(&key, SCHEMA_VERSION, &entropy).unwrap();
        let mut writer = ChunkWriter::default();
        changes.iter().for_each(|change| writer.push(change));
        bytes.extend(sealer.seal(&writer.take(), false).unwrap());
        bytes.extend(sealer.seal(&write_end(end), true).unwrap());
        bytes
    };
    std::fs::write(&file, sealed(&changes, &end)).unwrap();
    verify(&file).await.expect("it is what it was");
    let fewer = End { changes: end.changes - 1, ..end };
    let mut other = changes.clone();
    other[0].1 = Some(b"other".to_vec());
    for (what, bytes) in [
        ("one is missing", sealed(&changes[1..], &fewer)),
        ("one is missing, and counted", sealed(&changes[1..], &end)),
        ("one is another", sealed(&other, &end)),
    ] {
        std::fs::write(&file, bytes).unwrap();
        assert!(matches!(verify(&file).await, Err(OfflineError::Damaged(_))), "{what}");
        assert!(matches!(restore(&file, &new).await, Err(OfflineError::Damaged(_))), "{what}");
        assert!(untouched(&new), "{what}");
    }
    cast.server.stop().await;
}

#[tokio::test]
async fn a_restore_that_was_cut_off_serves_nobody_and_can_be_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let (new, file) = (dir.path().join("new"), dir.path().join("b"));
    let cast = Cast::start(&dir.path().join("old")).await;
    save(&cast.server, &cast.token, &file).await;
    restore(&file, &new).await.unwrap();
    // As a kill just before the end leaves it.
    std::fs::write(new.join("restore.unfinished"), "").unwrap();
    let settings = SledSettings::new(SCHEMA_VERSION);
    let opened = SledEngine::open(&new, &settings, LogId::from_bytes([1; 16]));
    let error = opened.err().expect("it does not open").to_string();
    assert!(error.contains("cut off") && error.contains("avouch restore"), "{error}");
    assert!(verify_directory(&new).await.is_err());
    restore(&file, &new).await.unwrap();
    assert!(verify_directory(&new).await.unwrap().problems.is_empty());
    cast.server.stop().await;
}

#[tokio::test]
async fn only_administrators_make_backups_and_one_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let cast = Cast::start(&dir.path().join("old")).await;
    let web = cast.server.own_token(&cast.web).await;
    let error = stream(&cast.server, &web).await.expect_err("no right");
    assert_eq!(error.code(), Code::PermissionDenied);
    let first = cast.server.service.store().capture().expect("the first");
    let error = stream(&cast.server, &cast.token).await.expect_err("the second");
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert_eq!(reason(&error), "BACKUP_IN_PROGRESS");
    drop(first);
    _ = cast.server.journal.take();
    stream(&cast.server, &cast.token).await.expect("the next");
    let recorded: Vec<&str> = cast
        .server
        .journal
        .take()
        .iter()
        .filter_map(|happening| match happening {
            Happening::Attempted { what, .. } => Some(*what),
            Happening::Administered { action, .. } => Some(*action),
            _ => None,
        })
        .collect();
    assert_eq!(recorded, ["create_backup", "backup_created"]);
    cast.server.stop().await;

    let memory = Server::start().await;
    let admin = memory.powerful("admin").await;
    let token = memory.own_token(&admin).await;
    assert_eq!(stream(&memory, &token).await.expect_err("none").code(), Code::Unimplemented);
}

/// Whoever reads slowly gets the whole backup, however young the server wants its connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_outlives_the_age_of_its_connection() {
    const AGE: Duration = Duration::from_millis(200);
    let dir = tempfile::tempdir().unwrap();
    let (old, file) = (dir.path().join("old"), dir.path().join("b"));
    fill(&old, 20_000).await;
    let mut options = options(sled(&old));
    options.grpc.settings.max_connection_age = AGE;
    options.grpc.settings.max_connection_age_grace = AGE;
    let server = Server::with(options, Arc::new(ManualClock::new(NOW))).await;
    let admin = server.powerful("admin").await;
    let token = server.own_token(&admin).await;
    // Little is on its way at a time, so that most of the backup has to wait for the reader.
    let channel = Endpoint::from_shared(format!("http://{}", server.grpc)).unwrap();
    let channel = channel.initial_stream_window_size(64 << 10).connect().await.unwrap();
    let mut api = AdminServiceClient::new(channel);
    let began = tokio::time::Instant::now();
    let request = bearer(pb::CreateBackupRequest {}, &token);
    let mut pieces = api.create_backup(request).await.unwrap().into_inner();
    let (mut whole, mut point, mut slow) = (Vec::new(), None, 0);
    while let Some(piece) = pieces.message().await.expect("it is not cut off") {
        whole.extend(piece.chunk);
        point = piece.point;
        // Older than any connection may become, the jitter included.
        if began.elapsed() < 5 * AGE {
            tokio::time::sleep(AGE / 4).await;
            slow = whole.len();
        }
    }
    assert!(point.is_some() && slow < whole.len() / 2, "{slow} of {}", whole.len());
    std::fs::write(&file, &whole).unwrap();
    verify(&file).await.expect("it is whole");
    // What kept it open is over: the connection goes, and its next call comes over another.
    let request = bearer(pb::CreateBackupRequest {}, &token);
    api.create_backup(request).await.expect("another connection");
    server.stop().await;
}

/// Opens sessions, many at a time.
async fn fill(dir: &Path, sessions: usize) {
    sessions::fill(dir, sessions, 0, NOW).await;
}

/// Every record of a directory, but for the name of its log.
pub(crate) fn records(dir: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let settings = SledSettings { min_free_bytes: 0, ..SledSettings::new(SCHEMA_VERSION) };
    let engine = SledEngine::open(dir, &settings, LogId::from_bytes([1; 16])).unwrap();
    let all = engine.scan(&KeyRange::prefix(b""), Order::Ascending, usize::MAX).unwrap();
    all.into_iter().collect()
}

/// Each writer opens sessions and revokes what it opened, and keeps what was acknowledged. Whatever
/// was before the backup began is in it; what was acknowledged after it ended is not; nothing is half
/// in it, which the digest and the check of the restore say.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_backup_under_load_shows_one_moment() {
    const WRITERS: usize = 16;
    let dir = tempfile::tempdir().unwrap();
    let (old, file) = (dir.path().join("old"), dir.path().join("b"));
    fill(&old, rounds(20_000, 200_000)).await;
    let cast = Cast::start(&old).await;
    for round in 0..rounds(3, 20) {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicUsize::new(0));
        let load = (0..WRITERS).map(|writer| {
            let store = Arc::clone(cast.server.service.store());
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(async move {
                let entropy: &dyn Entropy =
                    &SeededEntropy::new(1_000 + (round * 100 + writer) as u64);
                // What was acknowledged, with how much had been when it was.
                let mut acked = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let session = sessions::session(2_000_000 + writer, entropy, NOW);
                    let id = session.id;
                    let new = NewSession {
                        session,
                        max_per_subject: 5,
                        looked_beyond: true,
                        clear_attempts: None,
                    };
                    store.open_session(new, NOW).await.unwrap();
                    let opened = done.fetch_add(1, Ordering::SeqCst);
                    let cause = super::support::world::CAUSE;
                    let revoked = store.revoke_session(id, cause, NOW).await.unwrap();
                    let revision = revoked.entry().map(|entry| entry.revision);
                    let at = done.fetch_add(1, Ordering::SeqCst);
                    acked.push((id, opened, revision, at));
                }
                acked
            })
        });
        let load: Vec<_> = load.collect();
        let enough = async |count| {
            while done.load(Ordering::SeqCst) < count {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, enough(200)).await.expect("the writers get on");
        let began = done.load(Ordering::SeqCst);
        let point = save(&cast.server, &cast.token, &file).await.cursor.unwrap().revision;
        let ended = done.load(Ordering::SeqCst);
        assert!(ended > began, "writes went on");
        timeout(PATIENCE, enough(ended + 200)).await.expect("the writers get on");
        stop.store(true, Ordering::Relaxed);

        let new = dir.path().join(format!("new{round}"));
        verify(&file).await.expect("it is one moment");
        let restored = restore(&file, &new).await.expect("it is one moment");
        assert_eq!(restored.saved.revision, Revision(point));
        let settings = SledSettings { min_free_bytes: 0, ..SledSettings::new(SCHEMA_VERSION) };
        let engine = SledEngine::open(&new, &settings, LogId::from_bytes([1; 16])).unwrap();
        let ledger = Ledger::new(engine);
        let (mut before, mut after) = (0, 0);
        for writer in load {
            for (id, opened, revision, at) in writer.await.unwrap() {
                let session = ledger.find_session(id).await.unwrap();
                if opened < began {
                    assert!(session.is_some(), "a session that was acknowledged is missing");
                }
                let revoked = session.is_some_and(|session| session.revoked.is_some());
                let revision = revision.expect("it was not revoked before");
                assert_eq!(revoked, revision.0 <= point, "event {revision}, point {point}");
                if at < began {
                    assert!(revision.0 <= point, "a revocation that was acknowledged is missing");
                    before += 1;
                }
                // The second half of those that came after the end.
                if at >= ended + WRITERS {
                    assert!(revision.0 > point);
                    after += 1;
                }
            }
        }
        assert!(before > 0 && after > 0, "{before} before, {after} after");
        ledger.close().await;
    }
    cast.server.stop().await;
}

/// Revokes a subject of [`fill`].
async fn raise(server: &Server, number: usize) {
    let level = Level::Subject(format!("user-{number:012}").parse().unwrap());
    let cause = super::support::world::CAUSE;
    server.service.store().raise_epoch(level, cause, NOW).await.unwrap();
}

/// An address that stands for the server that it is told to stand for, as a name would.
async fn name_of(server: SocketAddr) -> (SocketAddr, watch::Sender<SocketAddr>) {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (target, servers) = watch::channel(server);
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = listener.accept().await {
            let to = *servers.borrow();
            tokio::spawn(async move {
                if let Ok(mut server) = tokio::net::TcpStream::connect(to).await {
                    _ = tokio::io::copy_bidirectional(&mut peer, &mut server).await;
                }
            });
        }
    });
    (address, target)
}

/// The records of a large store, packs and all, come back as they were, and a watcher goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_filled_store_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new, file) = (dir.path().join("old"), dir.path().join("new"), dir.path().join("b"));
    let sessions = rounds(5_000, 1_000_000);
    let begun = tokio::time::Instant::now();
    let took = |what: &str| println!("{what} at {:.1} s", begun.elapsed().as_secs_f64());
    fill(&old, sessions).await;
    took("filled");
    let cast = Cast::start(&old).await;
    for subject in 0..40 {
        raise(&cast.server, subject).await;
    }
    let (address, target) = name_of(cast.server.grpc).await;
    let mut watch = follow(address, &cast.token);
    event_where(&mut watch, |it| matches!(it, WatchEvent::Synced(_))).await;
    assert_eq!(watch.view().load().len(), 40);
    took("started");
    save(&cast.server, &cast.token, &file).await;
    took("backup");
    for subject in 40..43 {
        raise(&cast.server, subject).await;
    }
    while watch.view().load().len() < 43 {
        timeout(PATIENCE, watch.next()).await.expect("the new ones come");
    }
    println!("{} bytes", std::fs::metadata(&file).unwrap().len());
    let clock = Arc::clone(&cast.server.clock);
    cast.server.stop().await;
    verify(&file).await.unwrap();
    took("verify-store --backup");
    let restored = restore(&file, &new).await.unwrap();
    took("restored");
    assert_eq!(restored.records["sessions"], sessions as u64);
    let found = verify_directory(&new).await.unwrap();
    took("verify-store --data-dir");
    if sessions <= 10_000 {
        // But for the three that came later.
        let (was, is) = (records(&old), records(&new));
        let late: Vec<_> = was.keys().filter(|key| is.get(*key) != was.get(*key)).collect();
        assert_eq!(late.len(), 6, "an epoch and an event each: {late:?}");
        assert!(is.keys().all(|key| was.contains_key(key)));
    }
    assert!(found.problems.is_empty(), "{found:?}");
    assert_eq!(found.records["events"], restored.records["events"]);

    // The watcher comes back with its cursor of the old log, and gets the whole set of the new one.
    let server = Server::with(options(sled(&new)), clock).await;
    target.send_replace(server.grpc);
    event_where(&mut watch, |it| matches!(it, WatchEvent::Reset)).await;
    assert_eq!(watch.view().load().len(), 43, "what it knows stays in force");
    event_where(&mut watch, |it| matches!(it, WatchEvent::Synced(_))).await;
    assert_eq!(watch.view().load().len(), 40);
    assert_eq!(watch.cursor().unwrap().log_id, restored.cursor.log_id);
    raise(&server, 50).await;
    while watch.view().load().len() < 41 {
        timeout(PATIENCE, watch.next()).await.expect("the new one comes");
    }
    took("watched");
    server.stop().await;
}

#[test]
fn what_is_wrong_with_the_records_is_found() {
    use avouch::store::check::check;
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        fill(dir.path(), 3).await;
        let settings = SledSettings { min_free_bytes: 0, ..SledSettings::new(SCHEMA_VERSION) };
        let engine = SledEngine::open(dir.path(), &settings, LogId::from_bytes([1; 16])).unwrap();
        assert!(check(&engine, Revision(0)).unwrap().problems.is_empty());
        let first = |kind: &[u8]| {
            engine.scan(&KeyRange::prefix(kind), Order::Ascending, 1).unwrap().remove(0)
        };
        let (session, index, due) = (first(b"s"), first(b"i").0, first(b"x").0);
        let event = [b"e".as_slice(), &9_u64.to_be_bytes()].concat();
        let write = |key: &[u8], value: Option<Vec<u8>>| {
            let key = key.to_vec();
            let decision: avouch::store::engine::Decision = Box::new(move |txn| {
                match &value {
                    Some(value) => txn.put(key.clone(), value.clone()),
                    None => txn.delete(key.clone()),
                }
                Ok(Box::new(()))
            });
            engine.commit(decision)
        };
        for (key, value) in [
            (session.0.clone(), None),
            (session.0.clone(), Some(b"\x01".to_vec())),
            (index.clone(), None),
            (due, None),
            (b"nada".to_vec(), Some(b"usr_nobody".to_vec())),
            (event, Some(b"\x01".to_vec())),
            ([b"t".as_slice(), &[7; 16]].concat(), Some(Vec::new())),
            (b"psuser-000000000000".to_vec(), Some(b"\x01".to_vec())),
            (b"a0123456701234567".to_vec(), Some(Vec::new())),
            (b"m/ring".to_vec(), Some(1_u64.to_be_bytes().to_vec())),
            (b"qwhat".to_vec(), Some(Vec::new())),
        ] {
            let was = engine.get(&key).unwrap();
            write(&key, value).await.unwrap();
            // What an epoch or an attempt holds may not even be readable.
            let found = check(&engine, Revision(0));
            let name = String::from_utf8_lossy(&key).into_owned();
            assert!(found.is_err() || !found.unwrap().problems.is_empty(), "{name}");
            write(&key, was).await.unwrap();
            assert!(check(&engine, Revision(0)).unwrap().problems.is_empty(), "{name}");
        }
        // As many as there were, but one of another subject.
        let (mut moved, entry) = (index.clone(), engine.get(&index).unwrap());
        moved[1] ^= 1;
        write(&index, None).await.unwrap();
        write(&moved, entry).await.unwrap();
        let problems = check(&engine, Revision(0)).unwrap().problems.join("; ");
        assert!(problems.contains("is not among those of its subject"), "{problems}");
        assert!(problems.contains("leads to none"), "{problems}");
        engine.close().await;
    });
}

fn avouch(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_avouch")).args(arguments).env_clear().output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The commands as people type them, on a server that they run, sealed with a backup key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_do_it_and_each_mistake_has_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { dir.path().join(name) };
    let (old, new, file, key) = (at("old"), at("new"), at("b"), at("backup.key"));
    avouch::cli::files::write_private(&key, &KEY.replace('a', "c")).unwrap();
    let mut server = Process::start(&old, &[("keys.backup_key_file", text(&key))]);
    let addresses = server.serving().await;
    let url = format!("http://{}", addresses.grpc);
    let admin = old.join("admin-client.json");
    let backup = |to: &str| {
        avouch(&["backup", to, "--server", &url, "--credentials", text(&admin), "--json"])
    };
    let output = backup(text(&file));
    assert!(output.status.success(), "{}", said(&output));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!(summary["bytes"], bytes.len());
    let digest: String =
        avouch::crypto::sha256(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(summary["sha256"], digest);
    // To stdout it is the file and nothing else.
    let piped = backup("-");
    assert!(piped.status.success() && piped.stdout.starts_with(b"avouchbk"), "{}", said(&piped));
    // Where nothing can be written nothing is left.
    assert_eq!(backup(text(&at("no/such/b"))).status.code(), Some(1));
    let exposed = |needle: &[u8]| bytes.windows(needle.len()).any(|part| part == needle);
    assert!(!exposed(b"$argon2") && !exposed(b"ada"), "it is sealed");

    // The server has it open.
    let verify = |arguments: &[&str]| avouch(&[&["verify-store"], arguments].concat());
    assert_eq!(verify(&["--data-dir", text(&old)]).status.code(), Some(1));
    server.terminate();
    server.end().await;
    let found = verify(&["--data-dir", text(&old)]);
    assert_eq!(found.status.code(), Some(0), "{}", said(&found));
    assert_eq!(verify(&["--data-dir", text(&at("none"))]).status.code(), Some(1));
    assert!(!at("none").exists(), "looking makes nothing");

    let restore = |file: &Path, key: &Path, to: &Path| {
        let (file, key, to) = (text(file), text(key), text(to));
        avouch(&["restore", file, "--key-file", key, "--data-dir", to, "--revoke-everything"])
    };
    let encryption = std::fs::read_dir(&old)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().is_some_and(|name| text(Path::new(name)).contains("key")));
    let encryption = encryption.expect("the key of --dev");
    std::fs::write(at("cut"), &bytes[..bytes.len() - 1]).unwrap();
    let mut newer = bytes.clone();
    newer[8] += 1;
    std::fs::write(at("newer"), newer).unwrap();
    for (file, key, to, code, word) in [
        (&at("cut"), &key, &new, 65, "cut off"),
        (&at("newer"), &key, &new, 76, "format 2"),
        (&file, &encryption, &new, 77, "another key"),
        (&file, &key, &old, 73, "not empty"),
        (&at("none"), &key, &new, 1, "No such file"),
    ] {
        let output = restore(file, key, to);
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        assert!(said(&output).contains(word), "{}", said(&output));
        assert!(!new.exists());
    }
    let checked = verify(&["--backup", text(&file), "--key-file", text(&key)]);
    assert_eq!(checked.status.code(), Some(0), "{}", said(&checked));
    let output = restore(&file, &key, &new);
    assert!(output.status.success(), "{}", said(&output));

    // With the key of --dev beside it, it serves: the administrator is known.
    std::fs::copy(&encryption, new.join(encryption.file_name().unwrap())).unwrap();
    let mut server = Process::start(&new, &[]);
    let addresses = server.serving().await;
    let mut identity = process::identity(&addresses).await;
    let request = pb::AuthenticateRequest {
        client: Some(process::credentials(&old, "admin-client.json")),
        grant: Some(pb::authenticate_request::Grant::ClientCredentials(
            pb::ClientCredentialsGrant {},
        )),
        audiences: vec!["avouch".to_owned()],
        ..Default::default()
    };
    identity.authenticate(request).await.expect("the client is in the backup");
    server.terminate();
    server.end().await;
}

/// A directory of backups holds the newest ones, whatever else lies there, and loses none to a command
/// that fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_keeps_the_newest_backups() {
    let dir = tempfile::tempdir().unwrap();
    let backups = dir.path().join("backups");
    let key = dir.path().join("backup.key");
    avouch::cli::files::write_private(&key, KEY).unwrap();
    let mut server =
        Process::start(&dir.path().join("data"), &[("keys.backup_key_file", text(&key))]);
    let url = format!("http://{}", server.serving().await.grpc);
    let admin = dir.path().join("data/admin-client.json");
    let into = |url: &str, more: &[&str]| {
        let to = ["backup", "--directory", text(&backups), "--server", url, "--json"];
        avouch(&[&to[..], &["--credentials", text(&admin)], more].concat())
    };
    let names = || -> BTreeSet<String> {
        let found = std::fs::read_dir(&backups).unwrap();
        found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };

    let output = into(&url, &[]);
    assert!(output.status.code() == Some(1) && !backups.exists(), "{}", said(&output));
    std::fs::create_dir(&backups).unwrap();
    // Nothing of this is a whole backup of this command, and only the draft is.
    let foreign = [
        "avouch-20200101T000000.000Z.backup.old",
        "avouch-2020-01-01T00:00:00.000Z.backup",
        "avouch-20200101T000000.000Z",
        "avouch-latest.backup",
        "20200101T000000.000Z.backup",
    ];
    let inner = "avouch-20200101T000000.000Z.backup";
    let [oldest, older, future] = [
        "avouch-20200101T000001.000Z.backup",
        "avouch-20200101T000001.001Z.backup",
        "avouch-29990101T000000.000Z.backup",
    ];
    for name in foreign.iter().chain(&[oldest, older, future, "avouch.backup.new"]) {
        std::fs::write(backups.join(name), "old").unwrap();
    }
    std::fs::create_dir(backups.join(inner)).unwrap();
    let held: BTreeSet<String> = foreign.iter().chain(&[inner]).map(ToString::to_string).collect();
    let lock = ".avouch.backup.lock".to_owned();

    // Whoever cannot make one removes none.
    let before = names();
    let nobody = into("http://127.0.0.1:1", &["--keep", "1"]);
    assert_eq!(nobody.status.code(), Some(1), "{}", said(&nobody));
    assert_eq!(names(), before);

    let mut all = Vec::new();
    let mut make = |more: &[&str]| -> serde_json::Value {
        let output = into(&url, more);
        assert!(output.status.success(), "{}", said(&output));
        let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let file = PathBuf::from(summary["file"].as_str().unwrap());
        assert_eq!(file.parent(), Some(&*backups));
        let moment = summary["point_time"].as_str().unwrap().replace(['-', ':'], "");
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(name, format!("avouch-{moment}.backup"));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let checked = avouch(&["verify-store", "--backup", text(&file), "--key-file", text(&key)]);
        assert!(checked.status.success(), "{}", said(&checked));
        all.push(name);
        summary["removed"].clone()
    };
    let gone = |names: &[&str]| -> serde_json::Value {
        names.iter().map(|name| text(&backups.join(name)).to_owned()).collect()
    };
    assert_eq!(make(&[]), gone(&[]));
    // One that a clock set wrong made is the newest of them, and never in the place of the new one.
    assert_eq!(make(&["--keep", "3"]), gone(&[oldest, older]));
    assert_eq!(make(&["--keep", "9"]), gone(&[]));
    let last = make(&["--keep", "1"]);
    assert_eq!(last, gone(&[&all[0], &all[1], &all[2], future]));
    let left = held.into_iter().chain([lock.clone(), all[3].clone()]).collect();
    assert_eq!(names(), left);

    // One at a time: the other would write over the draft of the first.
    let taken = std::fs::File::open(backups.join(&lock)).unwrap();
    rustix::fs::flock(&taken, rustix::fs::FlockOperation::NonBlockingLockShared).unwrap();
    let second = into(&url, &["--keep", "1"]);
    assert_eq!(second.status.code(), Some(1), "{}", said(&second));
    assert!(said(&second).contains("another command writes a backup"), "{}", said(&second));
    assert_eq!(names(), left);
    drop(taken);

    for wrong in [
        &["backup"][..],
        &["backup", "--keep", "1", "b"],
        &["backup", "--directory", "d", "b"],
        &["backup", "--directory", "d", "--keep", "0"],
    ] {
        assert_eq!(avouch(wrong).status.code(), Some(2), "{wrong:?}");
    }
    server.terminate();
    server.end().await;
}
