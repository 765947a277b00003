//! What an operator decides, what tests replace, and what may be wrong with either.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_sdk::trace::SdkTracer;
use prometheus_client::registry::Registry;
use tonic::service::Routes;

use crate::crypto::{KeyFileError, OsEntropy};
use crate::domain::client::Lifetimes;
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::entropy::Entropy;
use crate::domain::key::RingPolicy;
use crate::domain::secret::SecretText;
use crate::feed::FeedSettings;
use crate::grpc::caller::CertificateGrant;
use crate::listen::listener::ListenError;
use crate::listen::settings::ListenSettings;
use crate::listen::tls::TlsSettings;
use crate::metrics::Metrics;
use crate::password::{HashParams, PasswordPolicy, Pepper, PoolSettings};
use crate::service::Settings;
use crate::service::journal::Journal;
use crate::service::key_admin::KeeperError;
use crate::store::etcd::EtcdSettings;
use crate::store::memory::SharedReplica;
use crate::store::sled::SledSettings;
use crate::store::{OpenError, StoreError};

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
