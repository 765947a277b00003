//! Stores that move from one engine to another, and backups that do: what was good stays good, what was
//! revoked stays revoked, and no two servers go on from one state.

use std::path::Path;
use std::sync::Arc;

use avouch::app::offline::Files;
use avouch::app::{BuildError, StoreOptions};
use avouch::cli::offline::{Migrate, Migrated, Offline as _, OfflineError, Place, Restore, Verify};
use avouch::config::sections;
use avouch::domain::clock::ManualClock;
use avouch::domain::ids::LogId;
use avouch::domain::secret::SecretText;
use avouch::pb::v1 as pb;
use avouch::pb::v1::revoke_request::Target;
use avouch::store::etcd::restore::EtcdRestore;
use avouch::store::sled::SledSettings;
use avouch::store::{OpenError, codec::SCHEMA_VERSION};
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{
    ENCRYPTION_KEY, NOW, Server, assert_refused, bearer, etcd, memory, on_etcd, options,
};
use crate::support::etcd::{Etcd, fresh_prefix};

mod resumed;

fn in_etcd(prefix: &str) -> Place {
    let url = Etcd::shared().url(prefix).parse().expect("a URL");
    Place::Etcd { url, access: Box::new(sections::Etcd::default()) }
}

fn directory(path: &Path) -> Place {
    Place::Directory(path.to_owned())
}

/// How a server opens what is there.
fn opened(place: &Place) -> StoreOptions {
    match place {
        Place::Directory(path) => {
            let settings = SledSettings { min_free_bytes: 0, ..SledSettings::new(SCHEMA_VERSION) };
            StoreOptions::Sled { path: path.clone(), settings }
        }
        Place::Etcd { url, access } => {
            StoreOptions::Etcd(Box::new(avouch::app::etcd::settings(url, access)))
        }
    }
}

async fn server_on(place: &Place) -> Server {
    Server::with(options(opened(place)), Arc::new(ManualClock::new(NOW))).await
}

/// Why no server starts there.
async fn refusal(place: &Place) -> OpenError {
    let clock = Arc::new(ManualClock::new(NOW));
    match Server::try_with(options(opened(place)), clock).await {
        Err(BuildError::Open(error)) => error,
        Err(other) => panic!("it failed otherwise: {other}"),
        Ok(_) => panic!("it started"),
    }
}

async fn migrate(from: &Place, to: &Place) -> Result<Migrated, OfflineError> {
    let job = Migrate { from: from.clone(), to: to.clone(), anew: false };
    Files.migrate(job, &mut |_| {}).await
}

/// Who is known, and what they hold.
struct Cast {
    app: pb::ClientAuthentication,
    operator: pb::ClientAuthentication,
    tokens: pb::TokenSet,
    /// Of a session that is revoked.
    dead: pb::TokenSet,
    /// What the session began with. It was rotated before anything moved.
    spent: pb::TokenSet,
}

impl Cast {
    async fn on(server: &Server) -> Self {
        let app = server.first_party("app").await;
        let operator = server.powerful("operator").await;
        for name in ["ada", "grace"] {
            server.add_user(name).await;
        }
        let first = server.login(&app, "ada").await;
        let tokens = server.refresh(&app, &first.refresh_token).await.expect("current");
        let dead = server.login(&app, "grace").await;
        let target = Target::SessionId(dead.session_id.clone());
        server.revoke(&operator, target).await.expect("revoked");
        let other = server.login(&app, "grace").await;
        let target = Target::Token(other.access_token);
        server.revoke(&operator, target).await.expect("revoked");
        Self { app, operator, tokens, dead, spent: first }
    }

    /// What was good is good, what was not is not, and the session goes on in one line.
    async fn goes_on(&mut self, server: &Server) {
        let active = async |token: &str| server.introspect(&self.operator, token).await.active;
        assert!(active(&self.tokens.access_token).await);
        assert!(!active(&self.dead.access_token).await);
        assert_eq!(server.log().len(), 2, "{:?}", server.log());
        let refused = server.refresh(&self.app, &self.dead.refresh_token).await;
        assert_refused(&refused.expect_err("revoked"), "revoked before it moved");
        let next = server.refresh(&self.app, &self.tokens.refresh_token).await;
        self.tokens = next.expect("current");
        server.login(&self.app, "grace").await;
    }

    /// A token that was spent before it moved ends the session after it.
    async fn ends_by_reuse(&self, server: &Server) {
        let refused = server.refresh(&self.app, &self.spent.refresh_token).await;
        assert_refused(&refused.expect_err("spent"), "reuse");
        let active = server.introspect(&self.operator, &self.tokens.access_token).await.active;
        assert!(!active, "the session is over");
        assert_eq!(server.log().len(), 3, "{:?}", server.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_moves_to_etcd_and_back_and_what_was_good_stays_good() {
    let home = tempfile::tempdir().expect("a directory");
    let places = [
        directory(&home.path().join("a")),
        in_etcd(&fresh_prefix()),
        in_etcd(&fresh_prefix()),
        directory(&home.path().join("b")),
    ];
    let mut server = server_on(&places[0]).await;
    let mut cast = Cast::on(&server).await;
    for step in places.windows(2) {
        let [from, to] = step else { panic!("two places") };
        let cursor = server.service.store().head();
        server.stop().await;
        let moved = migrate(from, to).await.expect("it moves");
        assert_eq!(moved.was, cursor, "all of it");
        assert_ne!(moved.cursor.log_id, cursor.log_id, "no watcher takes it for the old log");
        assert!(moved.records > 10, "{moved:?}");
        let error = refusal(from).await;
        assert!(matches!(error, OpenError::Moved { .. }), "{error}");
        assert!(error.to_string().contains("avouch migrate --stay"), "{error}");
        server = server_on(to).await;
        assert_eq!(server.service.store().head().log_id, moved.cursor.log_id);
        cast.goes_on(&server).await;
    }
    cast.ends_by_reuse(&server).await;
    server.stop().await;
    // On purpose, the state of before is opened again.
    for place in &places[..3] {
        Files.stay(place.clone()).await.expect("it opens again");
        server_on(place).await.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_store_is_taken_writes_nothing_more_and_ends() {
    let home = tempfile::tempdir().expect("a directory");
    let (from, to) = (in_etcd(&fresh_prefix()), directory(&home.path().join("b")));
    let server = server_on(&from).await;
    let mut cast = Cast::on(&server).await;
    migrate(&from, &to).await.expect("it moves");
    let refused = server.refresh(&cast.app, &cast.tokens.refresh_token).await;
    assert_eq!(refused.expect_err("it is gone").code(), Code::Unavailable);
    let ended = server.stop().await;
    assert!(ended.store_failed.is_some(), "{ended:?}");
    let server = server_on(&to).await;
    cast.goes_on(&server).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_restore_left_that_was_cut_off_opens_nowhere_and_a_move_removes_it() {
    let home = tempfile::tempdir().expect("a directory");
    let (from, to) = (directory(&home.path().join("a")), in_etcd(&fresh_prefix()));
    let server = server_on(&from).await;
    let mut cast = Cast::on(&server).await;
    server.stop().await;
    let StoreOptions::Etcd(settings) = opened(&to) else { panic!("an etcd") };
    let log_id = LogId::from_bytes([9; 16]);
    let begun = EtcdRestore::begin(*settings, log_id).await;
    let mut begun = begun.expect("it is empty");
    // More than fits into what is on its way at once, so that some of it is there.
    let changes = (0..5_000_u32).map(|n| {
        let key = [b"s".as_slice(), &n.to_be_bytes(), &[0; 12]].concat();
        (key, Some(b"half a session".to_vec()))
    });
    begun.apply(changes.collect()).await.expect("written");
    drop(begun);
    let error = refusal(&to).await;
    assert!(matches!(error, OpenError::Unfinished { .. }), "{error}");
    migrate(&from, &to).await.expect("it takes over what was left");
    let server = server_on(&to).await;
    cast.goes_on(&server).await;
    server.stop().await;
    let verify = Verify::Store { place: to, scratch: home.path().to_owned() };
    let found = Files.verify(verify, &mut |_| {}).await.expect("it is read");
    assert_eq!(found.problems, Vec::<String>::new());
    assert_eq!(found.records["sessions"], 4, "none of what was left: {found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_there_is_something_nothing_goes_and_the_old_store_goes_on() {
    let home = tempfile::tempdir().expect("a directory");
    let from = directory(&home.path().join("a"));
    let server = server_on(&from).await;
    let mut cast = Cast::on(&server).await;
    server.stop().await;
    let taken = in_etcd(&fresh_prefix());
    server_on(&taken).await.stop().await;
    // Of somebody else, who knows nothing of avouch.
    let prefix = fresh_prefix();
    put(&format!("/{prefix}/somebody"), b"else").await;
    let strange = in_etcd(&prefix);
    let nowhere = directory(&home.path().join("nothing"));
    for to in [&taken, &strange] {
        let error = migrate(&from, to).await.expect_err("it is taken");
        assert!(matches!(error, OfflineError::NotEmpty(_)), "{error}");
        let error = migrate(&nowhere, &in_etcd(&fresh_prefix())).await.expect_err("no store");
        assert!(error.to_string().contains("holds no store of avouch"), "{error}");
    }
    assert_eq!(get(&format!("/{prefix}/!meta")).await, None, "it is as it was");
    server_on(&taken).await.stop().await;
    let server = server_on(&from).await;
    cast.goes_on(&server).await;
    server.stop().await;
}

async fn backup(server: &Server, operator: &pb::ClientAuthentication, to: &Path) {
    let token = server.own_token(operator).await;
    let mut pieces = server.admin().create_backup(bearer(pb::CreateBackupRequest {}, &token)).await;
    let pieces = pieces.as_mut().expect("it begins").get_mut();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.message().await.expect("a piece") {
        bytes.extend(piece.chunk);
    }
    std::fs::write(to, bytes).expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_either_engine_is_restored_into_either() {
    let home = tempfile::tempdir().expect("a directory");
    let froms = [directory(&home.path().join("a")), in_etcd(&fresh_prefix())];
    for (n, from) in froms.iter().enumerate() {
        let server = server_on(from).await;
        let cast = Cast::on(&server).await;
        let file = home.path().join(format!("{n}.backup"));
        backup(&server, &cast.operator, &file).await;
        server.stop().await;
        let restore = async |to: &Place, key: &str, revoke_everything| {
            let job = Restore {
                backup: file.clone(),
                to: to.clone(),
                scratch: home.path().to_owned(),
                key: SecretText::new(key.to_owned()),
                revoke_everything,
            };
            Files.restore(job, &mut |_| {}).await
        };
        for to in [directory(&home.path().join(format!("restored-{n}"))), in_etcd(&fresh_prefix())]
        {
            let wrong = "00112233445566778899aabbccddeeff0123456789abcdeffedcba9876543210";
            let error = restore(&to, wrong, false).await.expect_err("another key");
            assert!(matches!(error, OfflineError::Key(_)), "{error}");
            restore(&to, ENCRYPTION_KEY, false).await.expect("nothing was left there");
            let server = server_on(&to).await;
            let active = async |token: &str| server.introspect(&cast.operator, token).await.active;
            assert!(active(&cast.tokens.access_token).await);
            assert!(!active(&cast.dead.access_token).await);
            server.refresh(&cast.app, &cast.tokens.refresh_token).await.expect("current");
            server.stop().await;
            let error = restore(&to, ENCRYPTION_KEY, false).await.expect_err("it is there");
            assert!(matches!(error, OfflineError::NotEmpty(_)), "{error}");
        }
        let to = in_etcd(&fresh_prefix());
        restore(&to, ENCRYPTION_KEY, true).await.expect("restored");
        let server = server_on(&to).await;
        assert!(!server.introspect(&cast.operator, &cast.tokens.access_token).await.active);
        assert_refused(
            &server.refresh(&cast.app, &cast.tokens.refresh_token).await.expect_err("revoked"),
            "everything is",
        );
        server.login(&cast.app, "ada").await;
        server.stop().await;
    }
    let left: Vec<_> = std::fs::read_dir(home.path())
        .expect("files")
        .map(|entry| entry.expect("an entry").file_name())
        .filter(|name| name.to_string_lossy().starts_with("avouch-"))
        .collect();
    assert!(left.is_empty(), "what was scratch is gone: {left:?}");
}

/// What etcd answers over HTTP with JSON, for what no command of avouch does.
async fn ask(path: &str, body: Value) -> Value {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let url = Etcd::shared().url("x");
    let address = url.trim_start_matches("etcd://").trim_end_matches("/x").to_owned();
    let mut stream = tokio::net::TcpStream::connect(&address).await.expect("it listens");
    let body = body.to_string();
    let request = format!(
        "POST /v3/kv/{path} HTTP/1.0\r\nhost: etcd\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.contains(" 200 "), "{answer}");
    serde_json::from_str(body).expect("JSON")
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

async fn put(key: &str, value: &[u8]) {
    ask("put", json!({ "key": base64(key.as_bytes()), "value": base64(value) })).await;
}

async fn get(key: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    let answer = ask("range", json!({ "key": base64(key.as_bytes()) })).await;
    let value = answer["kvs"].get(0)?["value"].as_str()?;
    Some(base64::engine::general_purpose::STANDARD.decode(value).expect("base64"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_was_replaced_opens_only_when_it_is_adopted_and_everything_is_revoked() {
    let prefix = fresh_prefix();
    let place = in_etcd(&prefix);
    let server = server_on(&place).await;
    let cast = Cast::on(&server).await;
    let log_id = server.service.store().head().log_id;
    server.stop().await;
    // As if it had been begun in another cluster: a snapshot of that was restored here.
    let at = format!("/{prefix}/!meta");
    let mut meta = get(&at).await.expect("it is there");
    meta[7] ^= 0xff;
    put(&at, &meta).await;
    let error = refusal(&place).await;
    assert!(matches!(error, OpenError::Replaced { .. }), "{error}");
    let home = tempfile::tempdir().expect("a directory");
    let error = migrate(&place, &directory(&home.path().join("b"))).await.expect_err("replaced");
    assert!(matches!(error, OfflineError::Damaged(_)), "{error}");
    let cursor = Files.adopt(place.clone()).await.expect("adopted");
    assert_ne!(cursor.log_id, log_id);
    let server = server_on(&place).await;
    assert_eq!(server.service.store().head().log_id, cursor.log_id);
    assert!(!server.introspect(&cast.operator, &cast.tokens.access_token).await.active);
    let refused = server.refresh(&cast.app, &cast.tokens.refresh_token).await;
    assert_refused(&refused.expect_err("revoked"), "everything is");
    server.login(&cast.app, "ada").await;
    server.stop().await;
}

/// The move of the harness's own: a run on etcd has its stores there.
#[tokio::test]
async fn a_run_on_etcd_is_one() {
    assert_eq!(matches!(memory(), StoreOptions::Etcd(_)), on_etcd());
    assert!(matches!(etcd(Etcd::shared(), "p"), StoreOptions::Etcd(_)));
}
