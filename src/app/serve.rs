//! `avouch serve`: a checked configuration becomes a running server, which ends at a signal or when
//! its store fails.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::bootstrap::{self, Made};
use super::etcd;
use super::journal::Audited;
use super::signals::Signals;
use super::{BuildError, Deps, Ended, ListenOptions, Options, StoreOptions, build};
use crate::audit::{AuditEvent, AuditLog, AuditName, AuditOpenError, Collector};
use crate::cli::files::{ADDRESSES, Addresses};
use crate::config::sections::ClientAuth;
use crate::config::{AuditOutput, Config, SecretFileError, read_secret_file};
use crate::crypto;
use crate::domain::clock::Timestamp;
use crate::domain::event::MAX_ACCESS_LIFETIME;
use crate::domain::key::RingPolicy;
use crate::domain::secret::SecretText;
use crate::feed::FeedSettings;
use crate::grpc::caller::CertificateGrant;
use crate::listen::settings::{ListenSettings, Protocol};
use crate::listen::tls::{self, TlsSettings};
use crate::metrics::Metrics;
use crate::password::{HashParams, PasswordPolicy, Pepper, PoolSettings};
use crate::service::Settings;
use crate::store::codec::SCHEMA_VERSION;
use crate::store::sled::SledSettings;
use crate::telemetry::{self, TelemetryError, Traces};

/// How long the last lines of the audit log may take.
const AUDIT_PATIENCE: Duration = Duration::from_secs(5);

/// Why the server did not start, or ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It did not start.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A file with a secret cannot be used.
    #[error(transparent)]
    SecretFile(#[from] SecretFileError),
    /// The audit log cannot be opened.
    #[error(transparent)]
    Audit(#[from] AuditOpenError),
    /// A setting that only its owner could check.
    #[error("{key}: {problem}")]
    Setting {
        /// Which.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What it said.
        source: std::io::Error,
    },
    /// Traces could not be set up.
    #[error(transparent)]
    Traces(#[from] TelemetryError),
    /// The store failed while the server ran.
    #[error("the store has failed: {0}; start avouch again, so that the data is checked")]
    StoreFailed(String),
}

/// What a server that has started can say of itself.
#[derive(Debug)]
pub struct Started {
    /// Where gRPC is served.
    pub grpc: SocketAddr,
    /// Where the public keys are served.
    pub public: Option<SocketAddr>,
    /// Where metrics and probes are served.
    pub ops: Option<SocketAddr>,
    /// The data directory.
    pub data: PathBuf,
    /// What the first start made.
    pub made: Made,
}

fn setting<E: std::fmt::Display>(key: &'static str) -> impl FnOnce(E) -> ServeError {
    move |error| ServeError::Setting { key, problem: error.to_string() }
}

/// The options that a configuration stands for. `encryption_key` is what its key file holds.
///
/// # Errors
/// When a setting is out of the bounds that its owner sets, or a file cannot be read.
pub fn options(config: &Config, encryption_key: SecretText) -> Result<Options, ServeError> {
    let limits = &config.limits;
    let settings = ListenSettings {
        protocol: Protocol::Http2,
        max_connections: limits.max_connections,
        max_connections_per_peer: limits.max_connections_per_peer,
        handshake_timeout: limits.handshake_timeout,
        first_bytes_timeout: limits.first_bytes_timeout,
        request_body_timeout: limits.request_body_timeout,
        write_stall_timeout: limits.write_stall_timeout,
        max_connection_age: limits.max_connection_age,
        max_connection_age_grace: limits.max_connection_age_grace,
        max_concurrent_streams: limits.max_concurrent_streams,
        max_local_error_reset_streams: limits.max_local_error_reset_streams,
        max_pending_accept_reset_streams: limits.max_pending_accept_reset_streams,
        max_header_list_size: u32_of(limits.max_header_bytes.0),
        initial_stream_window_size: u32_of(limits.stream_window_bytes.0),
        initial_connection_window_size: u32_of(limits.connection_window_bytes.0),
        max_send_buf_size: usize_of(limits.send_buffer_bytes.0),
        http2_keepalive_interval: limits.keepalive_interval,
        http2_keepalive_timeout: limits.keepalive_timeout,
        tcp_nodelay: limits.tcp_nodelay,
        tcp_keepalive: limits.tcp_keepalive,
        backlog: limits.backlog,
        ..ListenSettings::default()
    };
    let tls = tls_settings(config);
    // The public listener shows the same certificate and asks nobody for one.
    let public_tls = tls.as_ref().map(|tls| TlsSettings {
        reload_interval: tls.reload_interval,
        ..TlsSettings::new(tls.cert_file.clone(), tls.key_file.clone())
    });
    let listen = |address, tls| ListenOptions { address, settings: settings.clone(), tls };
    let password = &config.password;
    let hash = HashParams::new(password.memory_kib, password.iterations, password.parallelism)
        .map_err(setting("password"))?;
    let mut pool = PoolSettings {
        max_queued: password.max_queued,
        queue_max_wait: password.queue_max_wait,
        ..PoolSettings::default()
    };
    if let Some(workers) = password.workers {
        pool.workers = usize::try_from(workers.get()).unwrap_or(usize::MAX);
    }
    let mut passwords = PasswordPolicy::new(password.min_length, password.max_length)
        .map_err(setting("password.min_length"))?
        .naming(["avouch"]);
    if let Some(path) = &password.blocklist_file {
        let text = std::fs::read_to_string(path).map_err(setting("password.blocklist_file"))?;
        passwords = passwords.blocking(text.lines());
    }
    let pepper = match &password.pepper_file {
        None => Pepper::default(),
        Some(path) => pepper(&read_secret_file(path)?).map_err(setting("password.pepper_file"))?,
    };
    // Only --dev goes without: then it is the public listener, once its port is known.
    let issuer = config.issuer.url.clone().unwrap_or_default();
    Ok(Options {
        store: store_options(config),
        encryption_key,
        backup_key: config.keys.backup_key_file.as_deref().map(read_secret_file).transpose()?,
        ring: RingPolicy {
            announce_for: config.keys.announce_for,
            rotate_every: config.keys.rotate_every,
            ..RingPolicy::new(config.keys.algorithm, MAX_ACCESS_LIFETIME)
        },
        service: Settings {
            issuer: issuer.into(),
            own_audience: config.issuer.audience.as_str().into(),
            throttle: config.throttle.policy(),
            max_sessions_per_subject: config.sessions.max_per_subject.get(),
        },
        lifetimes: config.tokens.lifetimes(),
        hash,
        pepper,
        pool,
        passwords,
        feed: FeedSettings {
            max_watchers: limits.max_watchers,
            max_watchers_per_caller: limits.max_watchers_per_caller,
            ..FeedSettings::default()
        },
        certificate_grants: config
            .grants
            .iter()
            .map(|grant| CertificateGrant {
                name: grant.certificate_name.clone(),
                grant: grant.grant.clone(),
            })
            .collect(),
        grpc: listen(config.server.listen, tls),
        public: Some(listen(config.server.public_listen, public_tls)),
        ops: Some(listen(config.server.ops_listen, None)),
        max_request_bytes: usize_of(limits.max_request_bytes.0),
        max_response_bytes: usize_of(limits.max_response_bytes.0),
        request_timeout: limits.request_timeout,
        reflection: config.server.reflection,
        sweep_interval: config.store.sweep_interval,
        drain_delay: config.server.drain_delay,
        drain_timeout: config.server.drain_timeout,
    })
}

fn store_options(config: &Config) -> StoreOptions {
    if let Some(url) = &config.store.url {
        return StoreOptions::Etcd(Box::new(etcd::settings(url, &config.etcd)));
    }
    let settings = SledSettings {
        cache_bytes: config.store.cache_bytes.0,
        min_free_bytes: config.store.min_free_bytes.0,
        ..SledSettings::new(SCHEMA_VERSION)
    };
    StoreOptions::Sled { path: config.data_dir(), settings }
}

/// The keys in a pepper file: a line each, a version and a key, `1 NmZk…=`.
fn pepper(text: &SecretText) -> Result<Pepper, String> {
    let mut keys = Vec::new();
    for (number, line) in (1..).zip(text.expose().lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let (version, key) = line.trim().split_once([' ', '\t']).unwrap_or((line, ""));
        let version = version.parse::<NonZeroU16>().map_err(|_| {
            format!("line {number}: must be a version from 1 to 65535, a space and a key")
        })?;
        let key = crypto::key_from_text(key).map_err(|error| format!("line {number}: {error}"))?;
        keys.push((version, key));
    }
    Pepper::new(keys).map_err(|error| error.to_string())
}

fn u32_of(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn tls_settings(config: &Config) -> Option<TlsSettings> {
    let (cert, key) = (config.tls.cert_file.clone()?, config.tls.key_file.clone()?);
    Some(TlsSettings {
        client_ca_file: config.tls.client_ca_file.clone(),
        client_auth: match config.tls.client_auth {
            ClientAuth::None => tls::ClientAuth::None,
            ClientAuth::Optional => tls::ClientAuth::Optional,
            ClientAuth::Required => tls::ClientAuth::Required,
        },
        reload_interval: config.tls.reload_interval,
        ..TlsSettings::new(cert, key)
    })
}

/// Serves until a signal comes or the store fails. `started` is called once everything is bound.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(config: Config, started: impl FnOnce(&Started)) -> Result<(), ServeError> {
    let data = config.data_dir();
    let io = |what: String| move |source| ServeError::Io { what, source };
    // Before anything else: whoever finds the server by its file may send a signal at once, and one
    // that comes while it starts is a wish to stop, not a crash.
    let mut signals = Signals::catch().map_err(io("cannot wait for signals".to_owned()))?;
    make_directory(&data).map_err(io(format!("cannot create {}", data.display())))?;
    let key_file = match &config.keys.encryption_key_file {
        Some(path) => path.clone(),
        None => bootstrap::dev_encryption_key(&data)?,
    };
    let encryption_key = read_secret_file(&key_file)?;
    let audit = Arc::new(open_audit(&config)?);
    let traces = config.telemetry.otlp_endpoint.as_deref();
    let percent = config.telemetry.sample_percent;
    let traces = traces.map(|url| Traces::to(url, percent)).transpose()?;
    let deps = Deps {
        tracer: traces.as_ref().map(Traces::tracer),
        ..Deps::system(Arc::new(Audited(Arc::clone(&audit))))
    };
    let metrics = Arc::clone(&deps.metrics);
    let bound = build(options(&config, encryption_key)?, deps).await?;
    let service = Arc::clone(&bound.service);
    let lifetimes = config.tokens.lifetimes();
    // One server alone needs not say where it is.
    let host = config.store.url.as_ref().map(|_| host_name());
    let (dev, host) = (config.dev, host.as_deref());
    let made = match &config.server.admin_client_file {
        Some(path) => bootstrap::given::register(&service, path, lifetimes).await?,
        None => bootstrap::first_credentials(&service, &data, dev, lifetimes, host).await?,
    };
    if let (Some(name), Some(at), Some(_)) = (&made.elsewhere, made.made, host) {
        tracing::info!(
            %name, %at,
            "the credentials of the client `admin` are in admin-client.json in the server.files_dir of the replica that made it"
        );
    }
    let facts = Started {
        grpc: bound.grpc_address,
        public: bound.public_address,
        ops: bound.ops_address,
        data: data.clone(),
        made,
    };
    if let (Some(public), Some(ops)) = (facts.public, facts.ops) {
        Addresses { grpc: facts.grpc, public, ops }
            .write(&data)
            .map_err(io(format!("cannot write {}", data.join(ADDRESSES).display())))?;
    }
    let (shutdown, hurry) = (bound.shutdown.clone(), bound.hurry.clone());
    tokio::spawn(async move {
        for (token, said) in [(shutdown, "draining"), (hurry, "a second signal: no more delay")] {
            signals.next().await;
            tracing::info!("{said}");
            token.cancel();
        }
    });
    let counting = tokio::spawn(count_lost(Arc::clone(&audit), Arc::clone(&metrics)));
    let note = |name, at: Timestamp, reason: &str| {
        audit.record(&AuditEvent::new(name, at).reason(reason));
    };
    note(AuditName::SysStartup, service.now(), env!("CARGO_PKG_VERSION"));
    tracing::info!(summary = %config.summary(), "serving");
    started(&facts);
    let Ended { drained, store_failed } = bound.serve().await;
    tracing::info!(drained = drained.drained, aborted = drained.aborted, "stopped");
    if let Some(traces) = traces {
        // It blocks, and a collector that hangs must not keep the process from its end.
        _ = tokio::task::spawn_blocking(move || traces.end()).await;
    }
    let reason = store_failed.as_deref().unwrap_or("signal");
    note(AuditName::SysShutdown, service.now(), reason);
    counting.abort();
    // A disk that hangs must not keep the process from its end.
    if !matches!(timeout(AUDIT_PATIENCE, audit.flush()).await, Ok(Ok(()))) {
        tracing::error!("the audit log could not be written to its end");
    }
    match store_failed {
        None => Ok(()),
        Some(why) => Err(ServeError::StoreFailed(why)),
    }
}

fn open_audit(config: &Config) -> Result<AuditLog, ServeError> {
    let most = config.audit.max_queued;
    Ok(match config.audit_output() {
        AuditOutput::Stdout => AuditLog::stdout(most)?,
        AuditOutput::File(path) => AuditLog::file(&path, most)?,
        AuditOutput::Otlp { endpoint, ca_file } => {
            let ca_pem = ca_file.map(std::fs::read).transpose();
            let ca_pem = ca_pem.map_err(setting("audit.otlp_ca_file"))?;
            let resource = telemetry::resource_attributes();
            AuditLog::otlp(Collector { endpoint, ca_pem, resource }, most)?
        }
    })
}

/// Keeps the counter of audit events that are lost, as they found no room to wait or could not be
/// written, and whether that is so now.
async fn count_lost(audit: Arc<AuditLog>, metrics: Arc<Metrics>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        metrics.audit(audit.dropped() + audit.failed(), audit.is_down());
    }
}

/// What this machine, or this pod, is called.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().filter(char::is_ascii_graphic).take(64).collect();
    if name.is_empty() { "an unnamed host".to_owned() } else { name }
}

/// Creates the data directory for its owner alone.
fn make_directory(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "3f8a1c5e7b9d2046a8c0e2f416385a7c9ebd0f21436587a9cbed0f1234a6b7c8";

    fn read(text: &str) -> Result<Pepper, String> {
        pepper(&SecretText::new(text.to_owned()))
    }

    #[test]
    fn a_pepper_is_versions_and_keys_and_says_what_is_wrong_without_showing_them() {
        let newer = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyE=";
        let pepper = read(&format!("2 {newer}\n\n 1\t{KEY} \n")).unwrap();
        assert_eq!(pepper.current().map(NonZeroU16::get), Some(2));
        for (text, problem) in [
            (String::new(), "holds no key"),
            (KEY.to_owned(), "line 1: must be a version"),
            (format!("0 {KEY}"), "line 1: must be a version"),
            (format!("65536 {KEY}"), "line 1: must be a version"),
            (format!("1 {KEY}\n1 {newer}"), "version 1 stands there twice"),
            (format!("1 {KEY}\n2 {}", &KEY[..62]), "line 2: the key file must hold"),
            (format!("1 {}", &KEY[..32]), "line 1: the key file must hold"),
            (format!("1 {}", "ab".repeat(32)), "line 1: the key in the key file is not random"),
            ("1".to_owned(), "line 1: the key file must hold"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(problem), "{error}");
            assert!(!error.contains(&KEY[..16]), "{error}");
        }
    }
}
