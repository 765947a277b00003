//! The composition root: puts the layers together and says what it bound. The only file that sees
//! them all; it decides nothing that one of them could.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_sdk::trace::SdkTracer;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower_layer::Layer as _;

use crate::crypto::stream::StreamKey;
use crate::crypto::{KeyFileError, OsEntropy, Sealer};
use crate::domain::client::Lifetimes;
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::entropy::Entropy;
use crate::domain::ids::LogId;
use crate::domain::key::{KeyRecord, RingPolicy};
use crate::domain::secret::SecretText;
use crate::feed::{Feed, FeedSettings};
use crate::grpc::admin::Admin;
use crate::grpc::caller::{Callers, CertificateGrant};
use crate::grpc::convert::token::to_jwk;
use crate::grpc::frame::{self, BatchEncoder};
use crate::grpc::health::Health;
use crate::grpc::identity::Identity;
use crate::grpc::observe::Observe;
use crate::grpc::session::Sessions;
use crate::grpc::watch::RevocationServer;
use crate::http::public::{KeySetDocument, Metadata};
use crate::http::{ops, public};
use crate::keys::KeyRing;
use crate::lifecycle::{Latch, Readiness};
use crate::listen::deadline::Deadline;
use crate::listen::listener::{DrainSummary, ListenError, Listener};
use crate::listen::panic::CatchPanic;
use crate::listen::settings::{ListenSettings, Protocol};
use crate::listen::tls::TlsSettings;
use crate::metrics::{self, Metrics};
use crate::password::{HashParams, Hasher, PasswordPolicy, Pepper, PoolSettings};
use crate::pb;
use crate::service::journal::Journal;
use crate::service::key_admin::{KeeperError, KeyKeeper, KeyPublisher};
use crate::service::{Parts, Service, Settings};
use crate::store::codec::SCHEMA_VERSION;
use crate::store::etcd::{EtcdEngine, EtcdSettings};
use crate::store::ledger::Ledger;
use crate::store::memory::{MemoryEngine, SharedReplica};
use crate::store::sled::{SledEngine, SledSettings};
use crate::store::{OpenError, Store, StoreError};

pub mod agent;
pub mod bootstrap;
mod clock;
pub mod etcd;
pub mod journal;
pub mod offline;
mod own_token;
mod scrape;
pub mod serve;
pub mod sidecar;
mod tasks;

/// Where state lives.
#[derive(Clone, Debug)]
pub enum StoreOptions {
    /// In memory, for tests: it is gone with the process.
    Memory,
    /// In a memory that several servers in this process share, for tests.
    Shared(SharedReplica),
    /// In a directory.
    Sled {
        /// The directory.
        path: PathBuf,
        /// How the engine behaves; its schema version is set here.
        settings: SledSettings,
    },
    /// In etcd, shared with other servers; its schema version is set here.
    Etcd(Box<EtcdSettings>),
}

/// A listener for gRPC or HTTP.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// Where to listen; port 0 for any.
    pub address: SocketAddr,
    /// Its limits.
    pub settings: ListenSettings,
    /// Its certificate; none for plaintext.
    pub tls: Option<TlsSettings>,
}

/// Everything that an operator decides.
#[derive(Clone)]
pub struct Options {
    /// Where state lives.
    pub store: StoreOptions,
    /// The contents of the file with the key-encryption key.
    pub encryption_key: SecretText,
    /// The contents of the file with the key for backups; none for the key-encryption key.
    pub backup_key: Option<SecretText>,
    /// When signing keys change.
    pub ring: RingPolicy,
    /// The service as a whole.
    pub service: Settings,
    /// Lifetimes for clients that set none.
    pub lifetimes: Lifetimes,
    /// The cost of a password hash.
    pub hash: HashParams,
    /// What passwords are hashed with besides their salt.
    pub pepper: Pepper,
    /// The threads that hash.
    pub pool: PoolSettings,
    /// Which passwords may be set.
    pub passwords: PasswordPolicy,
    /// The feed.
    pub feed: FeedSettings,
    /// What certificates are granted.
    pub certificate_grants: Vec<CertificateGrant>,
    /// The gRPC listener.
    pub grpc: ListenOptions,
    /// The listener for the public keys and the metadata; none leaves it out.
    pub public: Option<ListenOptions>,
    /// The listener for metrics and probes; none leaves it out.
    pub ops: Option<ListenOptions>,
    /// The largest request message, in bytes.
    pub max_request_bytes: usize,
    /// The largest response message, in bytes.
    pub max_response_bytes: usize,
    /// How long a unary call may take.
    pub request_timeout: Duration,
    /// Whether gRPC reflection is served.
    pub reflection: bool,
    /// How often what is over is removed.
    pub sweep_interval: Duration,
    /// How long everything is served as before once a drain began, while health and readiness already
    /// tell of it.
    pub drain_delay: Duration,
    /// How long the rest of a drain may take.
    pub drain_timeout: Duration,
}

/// What tests replace.
pub struct Deps {
    /// What time it is; none for the system's clock, which starts where the store left off.
    pub clock: Option<Arc<dyn Clock>>,
    /// Where random bytes come from.
    pub entropy: Arc<dyn Entropy>,
    /// Who is told what happened, besides the metrics.
    pub journal: Arc<dyn Journal>,
    /// Where the counters are registered.
    pub registry: Arc<Registry>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Where the spans of calls begin; none for no traces.
    pub tracer: Option<SdkTracer>,
    /// More gRPC services on the same stack; the benchmark adds the one that does nothing.
    pub more: Option<fn(Routes) -> Routes>,
}

impl Deps {
    /// What production uses, but for the journal.
    pub fn system(journal: Arc<dyn Journal>) -> Self {
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::register(&mut registry));
        let registry = Arc::new(registry);
        Self {
            clock: None,
            entropy: Arc::new(OsEntropy),
            journal,
            registry,
            metrics,
            tracer: None,
            more: None,
        }
    }
}

/// Why the server did not start. The text tells an operator what to do.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The store did not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key-encryption key is none.
    #[error("the key-encryption key cannot be used: {0}")]
    KeyFile(#[from] KeyFileError),
    /// The key for backups is none.
    #[error("the backup key cannot be used: {0}")]
    BackupKey(#[source] KeyFileError),
    /// The key ring did not open.
    #[error("the key ring cannot be opened: {0}")]
    Keys(#[from] KeeperError),
    /// The hashing threads did not start.
    #[error("the password hasher cannot be started: {0}")]
    Hasher(String),
    /// The replicas that run agree on another time than this machine.
    #[error(
        "the clock of this machine shows {here}, those of the replicas that run {others}; set it right, and start again"
    )]
    Clock {
        /// What it shows here.
        here: Timestamp,
        /// What the middle one of theirs showed some seconds ago.
        others: Timestamp,
    },
    /// A listener did not bind.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The first credentials could not be made.
    #[error("the first credentials cannot be made: {0}")]
    Bootstrap(String),
    /// gRPC reflection did not start.
    #[error("gRPC reflection cannot be started: {0}")]
    Reflection(String),
}

/// A server that is bound and not yet served.
pub struct Bound {
    /// The service, for tests and for what runs beside the server.
    pub service: Arc<Service>,
    /// Where gRPC is served.
    pub grpc_address: SocketAddr,
    /// Where the public keys are served.
    pub public_address: Option<SocketAddr>,
    /// Where metrics and probes are served.
    pub ops_address: Option<SocketAddr>,
    /// Cancel it to drain and stop.
    pub shutdown: CancellationToken,
    /// Cancel it to end the delay of a drain, see [`Options::drain_delay`].
    pub hurry: CancellationToken,
    grpc: Listener,
    grpc_routes: axum::Router,
    public: Option<(Listener, axum::Router)>,
    ops: Option<(Listener, axum::Router)>,
    health: Health,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    tracer: Option<SdkTracer>,
    store_failed: Option<watch::Receiver<Option<String>>>,
    store_latch: Option<Latch>,
    request_timeout: Duration,
    sweep_interval: Duration,
    drain_delay: Duration,
    drain_timeout: Duration,
    process: u32,
}

/// How a server ended.
#[derive(Debug)]
pub struct Ended {
    /// How the gRPC connections ended.
    pub drained: DrainSummary,
    /// Why the store failed, if that is why the server ended.
    pub store_failed: Option<String>,
}

struct PublishKeys(Arc<Feed>, Arc<dyn Store>);

impl KeyPublisher for PublishKeys {
    fn publish(&self, keys: &[KeyRecord]) {
        use crate::domain::key::KeyState;
        let published = keys.iter().filter(|key| key.state != KeyState::Revoked);
        let through = self.1.head();
        let frame = frame::key_set(through, published.map(to_jwk).collect());
        self.0.set_key_set(through.revision, frame);
    }
}

/// What `/readyz` says that a server without its store waits for.
const STORE: &str = "store";

type OpenStore = (Arc<dyn Store>, Option<watch::Receiver<Option<String>>>);

/// Opens the store; where there is none yet, it begins with `log_id`.
async fn open_store(
    options: &StoreOptions,
    log_id: LogId,
    entropy: &Arc<dyn Entropy>,
    metrics: &Metrics,
) -> Result<OpenStore, OpenError> {
    match options {
        StoreOptions::Memory => Ok((Arc::new(Ledger::new(MemoryEngine::new(log_id))), None)),
        StoreOptions::Shared(replica) => Ok((Arc::new(Ledger::new(replica.clone())), None)),
        StoreOptions::Sled { path, settings } => {
            let settings = SledSettings {
                schema_version: SCHEMA_VERSION,
                recorder: metrics.store_recorder(),
                ..settings.clone()
            };
            let engine = SledEngine::open(path, &settings, log_id)?;
            let failed = engine.failed();
            Ok((Arc::new(Ledger::new(engine)), Some(failed)))
        }
        StoreOptions::Etcd(settings) => {
            let settings = EtcdSettings {
                schema_version: SCHEMA_VERSION,
                recorder: metrics.store_recorder(),
                ..EtcdSettings::clone(settings)
            };
            let engine = EtcdEngine::open(settings, log_id, Arc::clone(entropy)).await?;
            let failed = engine.failed();
            Ok((Arc::new(Ledger::new(engine)), Some(failed)))
        }
    }
}

/// Opens the store and the keys, starts the feed and the hashing threads, and binds the listeners.
///
/// # Errors
/// See [`BuildError`].
pub async fn build(options: Options, deps: Deps) -> Result<Bound, BuildError> {
    let readiness = Readiness::default();
    let serving = readiness.register("listeners");
    let entropy = deps.entropy;
    // Bound first: a port that is taken is told before the store is opened, and whoever connects
    // meanwhile waits in the backlog.
    let grpc = bind(options.grpc, &entropy)?;
    let public = options.public.map(|listen| bind_http(listen, &entropy)).transpose()?;
    let ops = options.ops.map(|listen| bind_http(listen, &entropy)).transpose()?;
    let mut settings = options.service;
    if settings.issuer.is_empty() {
        let address = public.as_ref().map_or_else(|| grpc.local_addr(), Listener::local_addr);
        settings.issuer = format!("http://{address}").into();
    }
    let sealer = Arc::new(Sealer::from_file_contents(options.encryption_key.expose().as_bytes())?);
    let backup_key = options.backup_key.as_ref().unwrap_or(&options.encryption_key);
    let backup_key = StreamKey::from_file_contents(backup_key.expose().as_bytes())
        .map_err(BuildError::BackupKey)?;
    let metrics = deps.metrics;
    let log_id = LogId::from_bytes(entropy.bytes());
    let (store, store_failed) = open_store(&options.store, log_id, &entropy, &metrics).await?;
    let store_is_away = store.board().is_some();
    let clock = clock::of(&*store, deps.clock).await?;
    let keeper = KeyKeeper {
        store: Arc::clone(&store),
        sealer,
        entropy: Arc::clone(&entropy),
        policy: options.ring,
    };
    let (stored, ring) = keeper.open(clock.now()).await?;
    let keys = Arc::new(KeyRing::new(ring));
    let feed = Feed::join(
        Arc::clone(&store),
        Arc::clone(&clock),
        Arc::clone(&entropy),
        Arc::new(BatchEncoder),
        options.feed,
    )
    .await?;
    feed.measure(metrics.feed_recorder());
    let key_publisher = Arc::new(PublishKeys(Arc::clone(&feed), Arc::clone(&store)));
    key_publisher.publish(&stored.keys);
    let entropy_of_hashes = Arc::clone(&entropy);
    let hasher = Hasher::with_pepper(options.hash, options.pepper, options.pool, entropy_of_hashes)
        .map_err(|error| BuildError::Hasher(error.to_string()))?;
    hasher.measure(metrics.hash_recorder());
    let service = Arc::new(Service::new(Parts {
        store,
        clock,
        entropy: Arc::clone(&entropy),
        keys: Arc::clone(&keys),
        feed,
        hasher: Arc::new(hasher),
        passwords: options.passwords,
        journal: Arc::new(journal::Metered::new(deps.journal, Arc::clone(&metrics))),
        settings: settings.clone(),
        keeper,
        backup_key,
        key_publisher,
        ring: (&stored).into(),
    }));

    let limits = (options.max_request_bytes, options.max_response_bytes);
    let (health, health_server) = Health::new().await;
    let callers = Arc::new(Callers::new(Arc::clone(&service), options.certificate_grants));
    let mut routes = routes(&service, &callers, options.lifetimes, limits)
        .add_service(health_server.max_decoding_message_size(1024));
    if options.reflection {
        routes = add_reflection(routes)?;
    }
    if let Some(more) = deps.more {
        routes = more(routes);
    }
    let grpc_routes = routes.prepare().into_axum_router();

    let public = public.map(|listener| {
        let metadata = Metadata {
            issuer: settings.issuer.to_string(),
            algorithms: vec![options.ring.algorithm.as_str()],
        };
        let source = move || {
            let ring = keys.current();
            let etag = ring.etag().trim_matches('"').to_owned();
            KeySetDocument { body: ring.jwks_json().clone(), etag }
        };
        (listener, public::router(source, &metadata))
    });
    let mut listeners = vec![(metrics::Listener::Grpc, grpc.stats())];
    if let Some((listener, _)) = &public {
        listeners.push((metrics::Listener::Public, listener.stats()));
    }
    let ops = ops.map(|listener| {
        let (service, metrics) = (Arc::clone(&service), Arc::clone(&metrics));
        listeners.push((metrics::Listener::Ops, listener.stats()));
        let before_scrape = move || scrape::report(&service, &listeners, &metrics);
        (listener, ops::router(deps.registry, readiness.clone(), before_scrape))
    });
    // Before the last of the others is released, or the server would be ready in between.
    let store_latch = store_is_away.then(|| readiness.register(STORE));
    drop(serving);
    Ok(Bound {
        service,
        grpc_address: grpc.local_addr(),
        public_address: public.as_ref().map(|(listener, _)| listener.local_addr()),
        ops_address: ops.as_ref().map(|(listener, _)| listener.local_addr()),
        shutdown: CancellationToken::new(),
        hurry: CancellationToken::new(),
        grpc,
        grpc_routes,
        public,
        ops,
        health,
        readiness,
        metrics,
        tracer: deps.tracer,
        store_failed,
        store_latch,
        request_timeout: options.request_timeout,
        sweep_interval: options.sweep_interval,
        drain_delay: options.drain_delay,
        drain_timeout: options.drain_timeout,
        process: u32::from_be_bytes(entropy.bytes()),
    })
}

fn bind(options: ListenOptions, entropy: &Arc<dyn Entropy>) -> Result<Listener, ListenError> {
    Listener::bind(options.address, options.settings, options.tls, Arc::clone(entropy))
}

/// The HTTP listeners speak both versions, as whoever reads a key set may.
fn bind_http(
    mut options: ListenOptions,
    entropy: &Arc<dyn Entropy>,
) -> Result<Listener, ListenError> {
    options.settings.protocol = Protocol::Auto;
    bind(options, entropy)
}

fn routes(
    service: &Arc<Service>,
    callers: &Arc<Callers>,
    lifetimes: Lifetimes,
    (max_request, max_response): (usize, usize),
) -> Routes {
    use pb::v1::admin_service_server::AdminServiceServer;
    use pb::v1::identity_service_server::IdentityServiceServer;
    use pb::v1::session_service_server::SessionServiceServer;
    let identity = Identity::new(Arc::clone(service), Arc::clone(callers));
    let sessions = Sessions::new(Arc::clone(service), Arc::clone(callers));
    let admin = Admin::new(Arc::clone(service), Arc::clone(callers), lifetimes);
    let revocations = RevocationServer::new(
        Arc::clone(service.feed()),
        Arc::clone(callers) as Arc<dyn crate::grpc::watch::Authorize>,
    );
    // A page of a thousand sessions or clients is larger than any other answer.
    let max_page = max_response.max(4 * 1024 * 1024);
    Routes::new(
        IdentityServiceServer::new(identity)
            .max_decoding_message_size(max_request)
            .max_encoding_message_size(max_response),
    )
    .add_service(
        SessionServiceServer::new(sessions)
            .max_decoding_message_size(max_request)
            .max_encoding_message_size(max_page),
    )
    .add_service(
        AdminServiceServer::new(admin)
            .max_decoding_message_size(max_request.max(64 * 1024))
            .max_encoding_message_size(max_page),
    )
    .add_service(revocations)
}

fn add_reflection(routes: Routes) -> Result<Routes, BuildError> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let failed = |error: tonic_reflection::server::Error| BuildError::Reflection(error.to_string());
    Ok(routes
        .add_service(builder().build_v1().map_err(failed)?)
        .add_service(builder().build_v1alpha().map_err(failed)?))
}

impl Bound {
    /// Serves until [`Bound::shutdown`] is cancelled or the store fails, then drains: health says
    /// NOT_SERVING, the delay passes, the watchers are told to go, calls finish, the store is closed.
    pub async fn serve(self) -> Ended {
        let Self { service, shutdown, hurry, health, readiness, drain_timeout, .. } = self;
        let mut background = JoinSet::new();
        background.spawn(tasks::sweep(
            Arc::clone(&service),
            Arc::clone(&self.metrics),
            self.sweep_interval,
        ));
        background.spawn(tasks::count_sessions(Arc::clone(&service), Arc::clone(&self.metrics)));
        background.spawn(tasks::roll_keys(Arc::clone(&service)));
        background.spawn(tasks::keep_time(Arc::clone(&service)));
        let store_is_away = self.store_latch.is_some();
        let contact = tasks::Contact {
            health: health.clone(),
            readiness: readiness.clone(),
            awaited: self.store_latch,
        };
        background.spawn(contact.watch(Arc::clone(&service)));

        // HTTP first and last: probes and metrics answer while gRPC drains.
        let stop_http = CancellationToken::new();
        let mut http = JoinSet::new();
        for (listener, router) in [self.public, self.ops].into_iter().flatten() {
            http.spawn(listener.serve(router, stop_http.clone(), Duration::from_secs(2)));
        }
        let stop_grpc = CancellationToken::new();
        let stats = self.grpc.stats();
        let routes = Deadline::new(self.request_timeout).layer(self.grpc_routes);
        let stack = CatchPanic::new(stats).layer(routes);
        let observe = Observe::new(self.metrics, self.process).tracing(self.tracer);
        let stack = observe.layer(stack);
        let grpc = tokio::spawn(self.grpc.serve(stack, stop_grpc.clone(), drain_timeout));
        if !store_is_away {
            health.serving().await;
        }

        let mut store_failed = tokio::select! {
            () = shutdown.cancelled() => None,
            why = failed(self.store_failed.clone()) => Some(why),
        };
        readiness.drain();
        // First, so that nothing says SERVING again.
        background.shutdown().await;
        health.not_serving().await;
        if store_failed.is_none() {
            store_failed = tokio::select! {
                () = sleep(self.drain_delay) => None,
                () = hurry.cancelled() => None,
                // Nothing is left to serve with.
                why = failed(self.store_failed) => Some(why),
            };
        }
        if let Some(why) = &store_failed {
            tracing::error!(%why, "the store has failed; the server stops so that it is checked when it opens again");
        }
        health.end_streams();
        service.feed().drain();
        stop_grpc.cancel();
        let drained = grpc.await.unwrap_or(DrainSummary { drained: 0, aborted: 0 });
        service.feed().leave().await;
        service.store().close().await;
        stop_http.cancel();
        while http.join_next().await.is_some() {}
        Ended { drained, store_failed }
    }
}

/// Returns once the store has failed.
async fn failed(failed: Option<watch::Receiver<Option<String>>>) -> String {
    if let Some(mut failed) = failed
        && let Ok(why) = failed.wait_for(Option::is_some).await
        && let Some(why) = &*why
    {
        return why.clone();
    }
    std::future::pending().await
}
