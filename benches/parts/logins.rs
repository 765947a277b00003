//! Whether the time of a failed login says who exists: over gRPC, on a store on the disk, one call at
//! a time, the kinds in random turns.

use std::sync::Arc;
use std::time::Duration;

use avouch::app::journal::Audited;
use avouch::app::{Deps, ListenOptions, Options, StoreOptions, build};
use avouch::audit::AuditLog;
use avouch::crypto::OsEntropy;
use avouch::domain::caller::Caller;
use avouch::domain::client::{Client, ClientType, Lifetimes, ReuseDetection};
use avouch::domain::clock::Timestamp;
use avouch::domain::entropy::Entropy;
use avouch::domain::event::MAX_ACCESS_LIFETIME;
use avouch::domain::key::{Algorithm, RingPolicy};
use avouch::domain::scope::Names;
use avouch::domain::secret::SecretText;
use avouch::domain::throttle::ThrottlePolicy;
use avouch::feed::FeedSettings;
use avouch::listen::settings::ListenSettings;
use avouch::password::{HashParams, Hasher, PasswordHash, PasswordPolicy, Pepper, PoolSettings};
use avouch::pb::v1 as pb;
use avouch::pb::v1::authenticate_request::Grant;
use avouch::pb::v1::identity_service_client::IdentityServiceClient;
use avouch::service::admin::users::NewUser;
use avouch::service::journal::Origin;
use avouch::service::{Service, Settings};
use avouch::store::codec::SCHEMA_VERSION;
use avouch::store::sled::SledSettings;
use avouch::store::{Changed, UserChange};
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::Failure;
use crate::statistics::{mann_whitney, percentile};

const PASSWORD: &str = "correct horse battery staple";
const WRONG: &str = "incorrect horse battery staple";
/// How many names each kind has; they are asked about in turns.
const NAMES: usize = 100;
/// This many failures from one source cost nothing.
const FREE_FAILURES: u32 = 5;
/// Where those come from that are locked out.
const LOCKED_OUT: &str = "192.0.2.1";

/// Settings of any cost, as a stored hash may have them.
fn params(memory_kib: u32, passes: u32) -> Result<HashParams, Failure> {
    let zeros = format!("{}${}", "A".repeat(22), "A".repeat(43));
    let text = format!("$argon2id$v=19$m={memory_kib},t={passes},p=1${zeros}");
    Ok(*PasswordHash::from_phc(&text)?.params())
}

fn options(dir: &std::path::Path, hash: HashParams) -> Result<Options, Failure> {
    let settings = SledSettings { min_free_bytes: 0, ..SledSettings::new(SCHEMA_VERSION) };
    Ok(Options {
        store: StoreOptions::Sled { path: dir.join("db"), settings },
        encryption_key: SecretText::new(
            "3f8a1c5e7b9d2046a8c0e2f416385a7c9ebd0f21436587a9cbed0f1234a6b7c8".to_owned(),
        ),
        ring: RingPolicy::new(Algorithm::Es256, MAX_ACCESS_LIFETIME),
        service: Settings {
            issuer: "https://id.example.com".into(),
            own_audience: "avouch".into(),
            throttle: ThrottlePolicy {
                free_failures: FREE_FAILURES,
                first_delay: Duration::from_secs(86_400),
                max_delay: Duration::from_secs(86_400),
                ..ThrottlePolicy::default()
            },
            max_sessions_per_subject: 100,
        },
        lifetimes: Lifetimes::default(),
        hash,
        pepper: Pepper::default(),
        pool: PoolSettings::default(),
        passwords: PasswordPolicy::default(),
        feed: FeedSettings::default(),
        certificate_grants: Vec::new(),
        grpc: ListenOptions {
            address: "127.0.0.1:0".parse()?,
            settings: ListenSettings::default(),
            tls: None,
        },
        public: None,
        ops: None,
        max_request_bytes: 16 * 1024,
        max_response_bytes: 64 * 1024,
        request_timeout: Duration::from_secs(10),
        reflection: false,
        sweep_interval: Duration::from_secs(3600),
        drain_timeout: Duration::from_secs(1),
    })
}

fn client() -> Result<Client, Failure> {
    Ok(Client {
        id: "bench".parse()?,
        display_name: "Benchmark".into(),
        kind: ClientType::Confidential,
        secret_digest: None,
        first_party: true,
        scope: Names::new(["orders:read"])?,
        audience: Names::new(["orders"])?,
        grants: Vec::new(),
        certificate_names: Vec::new(),
        lifetimes: Lifetimes::default(),
        reuse_detection: ReuseDetection::Enforce,
        disabled: false,
        created_at: Timestamp::default(),
    })
}

/// What the users of a kind are.
enum Users {
    Nobody,
    WithHash(HashParams),
    WithoutPassword,
    Disabled,
}

/// A kind of failed login.
struct Kind {
    name: &'static str,
    users: Users,
    password: &'static str,
    /// Whether the source has failed too often.
    locked_out: bool,
    /// Which kind it must look like.
    like: usize,
}

fn kinds(current: HashParams) -> Result<[Kind; 10], Failure> {
    let (memory, passes) = (current.memory_kib(), current.iterations());
    let kind = |name, users, password| Kind { name, users, password, locked_out: false, like: 0 };
    let less_memory = params((memory / 4).max(8), passes)?;
    let fewer_passes = params(memory, (passes / 2).max(1))?;
    let other_shape = params((memory / 2).max(8), passes * 2)?;
    Ok([
        kind("unknown", Users::Nobody, WRONG),
        kind("unknown, again", Users::Nobody, WRONG),
        kind("wrong password", Users::WithHash(current), WRONG),
        kind("no password", Users::WithoutPassword, WRONG),
        kind("disabled, wrong password", Users::Disabled, WRONG),
        kind("disabled, right password", Users::Disabled, PASSWORD),
        kind("hash with less memory", Users::WithHash(less_memory), WRONG),
        kind("hash with fewer passes", Users::WithHash(fewer_passes), WRONG),
        Kind { locked_out: true, like: 8, ..kind("locked out, unknown", Users::Nobody, PASSWORD) },
        Kind {
            locked_out: true,
            like: 8,
            ..kind("locked out, known", Users::WithHash(other_shape), PASSWORD)
        },
    ])
}

async fn make_users(service: &Service, number: usize, kind: &Kind) -> Result<(), Failure> {
    let (system, origin) = (Caller::system(), Origin::default());
    let failed = |error| format!("a user: {error:?}");
    for n in 0..NAMES {
        let hash = match kind.users {
            Users::Nobody => return Ok(()),
            Users::WithHash(params) => Some(params),
            Users::WithoutPassword | Users::Disabled => None,
        };
        let password = (!matches!(kind.users, Users::WithoutPassword))
            .then(|| SecretText::new(PASSWORD.to_owned()));
        let new = NewUser {
            username: name(number, n),
            display_name: "A user".into(),
            password,
            scope: Names::default(),
        };
        let user = service.create_user(&system, new, &origin).await.map_err(failed)?;
        if let Some(params) = hash {
            let pool = PoolSettings { workers: 1, ..PoolSettings::default() };
            let hasher = Hasher::new(params, pool, Arc::new(OsEntropy))?;
            let hash = hasher.hash(0, SecretText::new(PASSWORD.to_owned())).await?;
            let change = UserChange { password_hash: Some(hash.to_phc()), ..UserChange::default() };
            let subject = user.subject.clone();
            match service.store().change_user(subject, change, None, service.now()).await? {
                Changed::Done(..) => {}
                other => return Err(format!("a hash: {other:?}").into()),
            }
        }
        if let Users::Disabled = kind.users {
            service
                .set_user_disabled(&system, user.subject, true, &origin)
                .await
                .map_err(failed)?;
        }
    }
    Ok(())
}

/// Names of one length, which say nothing of their kind.
fn name(kind: usize, n: usize) -> String {
    format!("user-{kind:02}-{n:06}")
}

fn request(
    secret: &str,
    kind: usize,
    n: usize,
    password: &str,
    source: String,
) -> pb::AuthenticateRequest {
    pb::AuthenticateRequest {
        client: Some(pb::ClientAuthentication {
            client_id: "bench".to_owned(),
            client_secret: secret.to_owned(),
        }),
        grant: Some(Grant::Password(pb::PasswordGrant {
            username: name(kind, n % NAMES),
            password: password.to_owned(),
        })),
        device: Some(pb::Device { end_user_address: source, ..Default::default() }),
        ..Default::default()
    }
}

/// Prints a line for each kind.
pub(crate) async fn measure(samples: usize, hash: (u32, u32)) -> Result<(), Failure> {
    let dir = crate::directory()?;
    let audit = Arc::new(AuditLog::file(&dir.path().join("audit.jsonl"), 65_536)?);
    let current = params(hash.0, hash.1)?;
    let bound =
        build(options(dir.path(), current)?, Deps::system(Arc::new(Audited(audit)))).await?;
    let (service, shutdown) = (Arc::clone(&bound.service), bound.shutdown.clone());
    let address = bound.grpc_address;
    let serving = tokio::spawn(bound.serve());
    let (_, secret) = service
        .create_client(&Caller::system(), client()?, &Origin::default())
        .await
        .map_err(|error| format!("the client: {error:?}"))?;
    let secret = secret.ok_or("no secret")?;
    let kinds = kinds(current)?;
    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
    let mut identity = IdentityServiceClient::new(channel);
    for (number, kind) in kinds.iter().enumerate() {
        make_users(&service, number, kind).await?;
        for n in 0..if kind.locked_out { NAMES } else { 0 } {
            for failures in 0..=FREE_FAILURES {
                let request = request(secret.expose(), number, n, WRONG, LOCKED_OUT.to_owned());
                match identity.authenticate(request).await {
                    Err(status) if status.code() == Code::Unauthenticated => {}
                    other => {
                        return Err(format!("after {failures} failures: {other:?}").into());
                    }
                }
            }
        }
    }

    let entropy: &dyn Entropy = &OsEntropy;
    let mut times = vec![Vec::with_capacity(samples); kinds.len()];
    // The first ones warm up.
    for n in 0..samples + NAMES {
        let mut turns: Vec<(u64, usize)> =
            (0..kinds.len()).map(|kind| (u64::from_be_bytes(entropy.bytes()), kind)).collect();
        turns.sort_unstable();
        for (_, number) in turns {
            let kind = &kinds[number];
            let source = if kind.locked_out {
                LOCKED_OUT.to_owned()
            } else {
                format!("10.{}.{}.{}", n >> 16 & 255, n >> 8 & 255, n & 255)
            };
            let request = request(secret.expose(), number, n, kind.password, source);
            let begun = Instant::now();
            let answer = identity.authenticate(request).await;
            let took = begun.elapsed().as_secs_f64() * 1e6;
            let wanted =
                if kind.locked_out { Code::ResourceExhausted } else { Code::Unauthenticated };
            match answer {
                Err(status) if status.code() == wanted => {}
                other => return Err(format!("{}: {other:?}", kind.name).into()),
            }
            if n >= NAMES {
                times[number].push(took);
            }
        }
    }
    println!("failed logins, {samples} of each kind, argon2id {current}");
    println!(
        "                                 p25 us    p50 us    p75 us   p50 - like us      %        U p"
    );
    for (kind, own) in kinds.iter().zip(&times) {
        let like = &times[kind.like];
        let (middle, usual) = (percentile(own, 0.5), percentile(like, 0.5));
        println!(
            "{:<28} {:>10.1} {middle:>9.1} {:>9.1} {:>15.1} {:>6.2} {:>10.4}",
            kind.name,
            percentile(own, 0.25),
            percentile(own, 0.75),
            middle - usual,
            (middle - usual) / usual * 100.0,
            mann_whitney(own, like),
        );
    }
    shutdown.cancel();
    serving.await?;
    Ok(())
}
