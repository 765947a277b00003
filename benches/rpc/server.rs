//! The server under test, in a process of its own, so that what it uses is its own. It talks with the
//! bench over stdin and stdout: a command a line, an answer a line.

use std::error::Error;
use std::io::{BufRead as _, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use avouch::app::journal::Audited;
use avouch::app::{Deps, ListenOptions, Options, StoreOptions, build};
use avouch::audit::AuditLog;
use avouch::crypto::OsEntropy;
use avouch::domain::caller::{Caller, Grant, Right};
use avouch::domain::claims::Claims;
use avouch::domain::client::{Client, ClientType, Lifetimes, ReuseDetection};
use avouch::domain::clock::Timestamp;
use avouch::domain::entropy::Entropy;
use avouch::domain::event::MAX_ACCESS_LIFETIME;
use avouch::domain::ids::{ClientId, Epochs, Generation, LogId};
use avouch::domain::key::{Algorithm, MacKeyId, RingPolicy};
use avouch::domain::scope::Names;
use avouch::domain::secret::{SecretBytes, SecretText};
use avouch::domain::session::{Device, Session};
use avouch::domain::throttle::ThrottlePolicy;
use avouch::feed::FeedSettings;
use avouch::listen::settings::ListenSettings;
use avouch::password::{HashParams, PasswordPolicy, Pepper, PoolSettings};
use avouch::service::admin::users::NewUser;
use avouch::service::journal::Origin;
use avouch::service::{Service, Settings};
use avouch::store::codec::SCHEMA_VERSION;
use avouch::store::etcd::EtcdSettings;
use avouch::store::ledger::Ledger;
use avouch::store::sled::{SledEngine, SledSettings};
use avouch::store::{NewSession, Opened, Store, StoreError};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::nothing;

/// The client that calls, with every right, and its secret.
pub(crate) const CLIENT: &str = "bench";
pub(crate) const SECRET: &str = "avs1_3mhpIoSIGkkqxg0sUzqwFXe4Jnp0mUzJ4qQwWrXk1Hk";
/// The password of every user.
pub(crate) const PASSWORD: &str = "correct horse battery staple";
/// What every key of the server begins with in etcd.
pub(crate) const PREFIX: &str = "bench/";
/// How much memory sled may use for pages.
pub(crate) const CACHE_BYTES: u64 = 64 << 20;

type Failure = Box<dyn Error + Send + Sync>;

fn settings() -> SledSettings {
    SledSettings {
        cache_bytes: CACHE_BYTES,
        min_free_bytes: 0,
        ..SledSettings::new(SCHEMA_VERSION)
    }
}

fn database(dir: &Path) -> PathBuf {
    dir.join("db")
}

/// Sled in `dir`, or the etcd that listens there.
fn store(dir: &Path, etcd: Option<&str>) -> StoreOptions {
    let Some(member) = etcd else {
        return StoreOptions::Sled { path: database(dir), settings: settings() };
    };
    // More patience than by default: a busy machine shall make an answer late, not an error.
    StoreOptions::Etcd(Box::new(EtcdSettings {
        request_timeout: Duration::from_secs(8),
        deadline: Duration::from_secs(9),
        ..EtcdSettings::new(vec![member.to_owned()], PREFIX.to_owned(), SCHEMA_VERSION)
    }))
}

fn options(dir: &Path, etcd: Option<&str>) -> Result<Options, Failure> {
    let address = "127.0.0.1:0".parse()?;
    Ok(Options {
        store: store(dir, etcd),
        encryption_key: SecretText::new(
            "3f8a1c5e7b9d2046a8c0e2f416385a7c9ebd0f21436587a9cbed0f1234a6b7c8".to_owned(),
        ),
        backup_key: None,
        ring: RingPolicy::new(Algorithm::Es256, MAX_ACCESS_LIFETIME),
        service: Settings {
            issuer: "https://id.example.com".into(),
            own_audience: "avouch".into(),
            throttle: ThrottlePolicy::default(),
            max_sessions_per_subject: 100,
        },
        lifetimes: Lifetimes::default(),
        hash: HashParams::default(),
        pepper: Pepper::default(),
        pool: PoolSettings::default(),
        passwords: PasswordPolicy::default(),
        feed: FeedSettings { max_watchers_per_caller: 10_000, ..FeedSettings::default() },
        certificate_grants: Vec::new(),
        grpc: ListenOptions { address, settings: ListenSettings::default(), tls: None },
        public: None,
        ops: None,
        max_request_bytes: 16 * 1024,
        max_response_bytes: 64 * 1024,
        request_timeout: Duration::from_secs(10),
        reflection: true,
        sweep_interval: Duration::from_secs(3600),
        drain_delay: Duration::ZERO,
        drain_timeout: Duration::from_secs(1),
    })
}

fn client() -> Result<Client, Failure> {
    Ok(Client {
        id: CLIENT.parse()?,
        display_name: "Benchmark".into(),
        kind: ClientType::Confidential,
        secret_digest: None,
        first_party: true,
        scope: Names::new(["orders:read", "orders:write"])?,
        audience: Names::new(["orders", "avouch"])?,
        grants: Right::ALL.map(Grant::unlimited).into(),
        certificate_names: Vec::new(),
        lifetimes: Lifetimes { access: Duration::from_secs(3600), ..Lifetimes::default() },
        reuse_detection: ReuseDetection::Enforce,
        disabled: false,
        created_at: Timestamp::default(),
    })
}

/// A session such as a login makes, each of a subject of its own.
fn session(number: usize, mac_key: MacKeyId, now: Timestamp) -> Result<Session, Failure> {
    let entropy: &dyn Entropy = &OsEntropy;
    let lifetimes = Lifetimes::default();
    Ok(Session {
        id: entropy.session_id(),
        subject: format!("user-{number:012}").parse()?,
        client: CLIENT.parse()?,
        scope: Names::new(["orders:read", "orders:write"])?,
        audience: Names::new(["orders", "avouch"])?,
        epochs: Epochs::default(),
        nonce: SecretBytes::new(entropy.bytes()),
        generation: Generation::default(),
        mac_key,
        created_at: now,
        rotated_at: now,
        idle_expires_at: now.after(lifetimes.idle),
        expires_at: now.after(lifetimes.absolute),
        access_expires_at: now.after(MAX_ACCESS_LIFETIME),
        methods: Names::new(["pwd"])?,
        device: Device::default(),
        revoked: None,
    })
}

async fn open(store: &dyn Store, session: Session, now: Timestamp) -> Result<(), StoreError> {
    let new =
        NewSession { session, max_per_subject: 100, looked_beyond: true, clear_attempts: None };
    match store.open_session(new, now).await? {
        Opened::Open { .. } => Ok(()),
        Opened::Stale | Opened::LookBeyond => Err(StoreError::Internal("the epochs are not zero")),
    }
}

/// Fills a store with sessions, without a server.
pub(crate) async fn fill(dir: &Path, sessions: usize, now: Timestamp) -> Result<(), Failure> {
    std::fs::create_dir_all(dir)?;
    // Larger groups than a server's fill it sooner.
    let settings = SledSettings { max_group: 4096, ..settings() };
    let engine = SledEngine::open(&database(dir), &settings, LogId::from_bytes([1; 16]))?;
    let ledger = Arc::new(Ledger::new(engine));
    // The key does not exist yet; nothing here is ever refreshed.
    let each = stream::iter(0..sessions).map(|number| {
        let ledger = Arc::clone(&ledger);
        async move {
            let session = session(number, MacKeyId::default(), now)?;
            tokio::spawn(async move { open(&*ledger, session, now).await }).await??;
            Ok::<_, Failure>(())
        }
    });
    each.buffer_unordered(8192).try_collect::<()>().await?;
    ledger.close().await;
    Ok(())
}

/// Serves from this directory, or from etcd, until stdin ends.
pub(crate) async fn serve(dir: &Path, etcd: Option<&str>) -> Result<(), Failure> {
    let audit = Arc::new(AuditLog::file(&dir.join("audit.jsonl"), 65_536)?);
    let deps = Deps { more: Some(nothing::add), ..Deps::system(Arc::new(Audited(audit))) };
    let bound = build(options(dir, etcd)?, deps).await?;
    let (service, shutdown) = (Arc::clone(&bound.service), bound.shutdown.clone());
    let secret = SecretText::new(SECRET.to_owned());
    let (system, origin) = (Caller::system(), Origin::default());
    if service.store().find_client(&CLIENT.parse()?).await?.is_none() {
        service
            .create_client_with(&system, client()?, Some(&secret), &origin)
            .await
            .map_err(|error| format!("the client: {error:?}"))?;
    }
    let address = bound.grpc_address;
    let serving = tokio::spawn(bound.serve());
    say(&address.to_string())?;
    let (commands, mut received) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if commands.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(line) = received.recv().await {
        let mut words = line.split_whitespace();
        let (verb, count) = (words.next().unwrap_or_default(), words.next());
        let count: usize = count.unwrap_or("0").parse()?;
        match verb {
            // More at once than one fdatasync of sled takes; etcd would have them wait for each other.
            "sessions" => {
                give_sessions(&service, dir, count, if etcd.is_some() { 128 } else { 1024 })
                    .await?;
            }
            "tokens" => give_tokens(&service, dir, count)?,
            "users" => give_users(&service, count).await?,
            _ => return Err(format!("no such command: {verb}").into()),
        }
        say("done")?;
    }
    shutdown.cancel();
    serving.await?;
    Ok(())
}

fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Opens sessions and writes the id, the refresh token and an access token of each to a file.
async fn give_sessions(
    service: &Arc<Service>,
    dir: &Path,
    count: usize,
    at_once: usize,
) -> Result<(), Failure> {
    let now = service.now();
    let ring = service.keys().current();
    let each = stream::iter(0..count).map(|number| {
        let ring = Arc::clone(&ring);
        let store = Arc::clone(service.store());
        async move {
            let session = session(number, ring.active_mac(), now)?;
            let refresh = ring
                .mint_refresh(session.id, session.generation, &session.nonce, session.mac_key)
                .ok_or("no such MAC key")?;
            let line = format!("{} {}", session.id, refresh.expose());
            tokio::spawn(async move { open(&*store, session, now).await }).await??;
            Ok::<_, Failure>(line)
        }
    });
    let lines: Vec<String> = each.buffer_unordered(at_once).try_collect().await?;
    std::fs::write(dir.join("sessions"), lines.join("\n"))?;
    Ok(())
}

/// Writes access tokens to a file, each of another session.
fn give_tokens(service: &Arc<Service>, dir: &Path, count: usize) -> Result<(), Failure> {
    let entropy: &dyn Entropy = &OsEntropy;
    let now = Timestamp::from_secs(service.now().as_secs());
    let ring = service.keys().current();
    let client: ClientId = CLIENT.parse()?;
    let mut out = BufWriter::new(std::fs::File::create(dir.join("tokens"))?);
    for number in 0..count {
        let claims = Claims {
            issuer: service.settings().issuer.clone(),
            subject: format!("user-{number:012}").parse()?,
            audience: Names::new(["orders", "avouch"])?,
            client: client.clone(),
            scope: Names::new(["orders:read", "orders:write"])?,
            token_id: entropy.token_id(),
            session: Some(entropy.session_id()),
            issued_at: now,
            not_before: now,
            expires_at: now.after(Duration::from_secs(3000)),
            authenticated_at: Some(now),
            methods: Names::new(["pwd"])?,
            epochs: Epochs::default(),
        };
        let token = ring.signing().encode(&claims)?;
        writeln!(out, "{}", token.expose())?;
    }
    out.flush()?;
    Ok(())
}

async fn give_users(service: &Arc<Service>, count: usize) -> Result<(), Failure> {
    for number in 0..count {
        let user = NewUser {
            username: format!("user{number}"),
            display_name: "A user".into(),
            password: Some(SecretText::new(PASSWORD.to_owned())),
            scope: Names::default(),
        };
        service
            .create_user(&Caller::system(), user, &Origin::default())
            .await
            .map_err(|error| format!("a user: {error:?}"))?;
    }
    Ok(())
}
