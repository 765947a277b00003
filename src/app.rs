//! The composition root: puts the layers together and says what it bound. The only file that sees
//! them all; it decides nothing that one of them could.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::routes::{add_reflection, routes};
use crate::crypto::Sealer;
use crate::crypto::stream::StreamKey;
use crate::domain::entropy::Entropy;
use crate::domain::ids::LogId;
use crate::domain::key::KeyRecord;
use crate::feed::Feed;
use crate::grpc::caller::Callers;
use crate::grpc::convert::token::to_jwk;
use crate::grpc::frame::{self, BatchEncoder};
use crate::grpc::health::Health;
use crate::http::public::{KeySetDocument, Metadata};
use crate::http::{ops, public};
use crate::keys::KeyRing;
use crate::lifecycle::Readiness;
use crate::listen::listener::{ListenError, Listener};
use crate::listen::settings::Protocol;
use crate::metrics::{self, Metrics};
use crate::password::Hasher;
use crate::service::key_admin::{KeyKeeper, KeyPublisher};
use crate::service::{Parts, Service};
use crate::store::codec::SCHEMA_VERSION;
use crate::store::etcd::{EtcdEngine, EtcdSettings};
use crate::store::ledger::Ledger;
use crate::store::memory::MemoryEngine;
use crate::store::sled::{SledEngine, SledSettings};
use crate::store::{OpenError, Store};

pub mod agent;
pub mod bootstrap;
mod bound;
mod clock;
pub mod etcd;
pub mod journal;
pub mod offline;
mod options;
mod own_token;
mod routes;
mod scrape;
pub mod serve;
pub mod sidecar;
mod signals;
mod tasks;

pub use self::bound::{Bound, Ended};
pub use self::options::{BuildError, Deps, ListenOptions, Options, StoreOptions};

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
