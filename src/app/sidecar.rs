//! `avouch sidecar`: a checked configuration becomes a gate that proxies ask, until a signal comes.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Endpoint;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower_layer::Layer as _;

use super::own_token::own_token;
use super::signals::Signals;
use crate::client::token_source::TokenSource;
use crate::client::upstream::Upstream;
use crate::client::watch::WatchSettings;
use crate::config::rules;
use crate::config::sidecar::{self as config, SidecarConfig};
use crate::crypto::OsEntropy;
use crate::domain::address::Address;
use crate::domain::clock::{Clock, SystemClock};
use crate::domain::entropy::Entropy;
use crate::http::ops;
use crate::lifecycle::Readiness;
use crate::listen::deadline::Deadline;
use crate::listen::listener::{DrainSummary, ListenError, Listener};
use crate::listen::panic::CatchPanic;
use crate::listen::settings::{ListenSettings, Protocol};
use crate::metrics::sidecar::{SidecarMetrics, VerifierLevels};
use crate::metrics::view::ViewLevels;
use crate::pb::v1;
use crate::sidecar::ext_authz::{Authorization, SERVICE_NAME};
use crate::sidecar::{Gate, Rule, forward_auth};
use crate::verifier::{AskServer, Policy, Requirement, Verifier, VerifierSettings};

/// How long one question may take. The server is given half a second within it.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// The headers of the requests that are asked about: Envoy's own limit is 60 KiB.
const MAX_HEADER_BYTES: u32 = 64 * 1024;

/// What a sidecar is made of.
pub struct SidecarOptions {
    /// The checked configuration.
    pub config: SidecarConfig,
    /// How to reach the server, certificates included.
    pub server: Upstream,
    /// Who the sidecar is to the server, when its certificate does not say.
    pub client: Option<v1::ClientAuthentication>,
}

/// Why a sidecar did not start.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// A listener did not bind.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The agent cannot be named by a URL.
    #[error("sidecar.agent cannot be used: {0}")]
    Agent(#[from] tonic::transport::Error),
    /// The operating system refused.
    #[error("cannot wait for signals: {0}")]
    Signal(#[from] std::io::Error),
}

/// A sidecar that is bound and not yet served.
pub struct BoundSidecar {
    /// Where Envoy asks.
    pub ext_authz: Option<Address>,
    /// Where nginx, Traefik and Caddy ask.
    pub forward_auth: Option<Address>,
    /// Where metrics and probes are.
    pub ops: Option<Address>,
    /// What it knows of revocations.
    pub verifier: Verifier,
    /// Cancel it to drain and stop.
    pub shutdown: CancellationToken,
    listeners: Listeners,
    gate: Arc<Gate>,
    registry: Arc<Registry>,
    metrics: Arc<SidecarMetrics>,
    drain_timeout: Duration,
    /// Keeps the sidecar's own token fresh; ends when it is dropped.
    keeping: JoinSet<()>,
}

struct Listeners {
    ext_authz: Option<Listener>,
    forward_auth: Option<Listener>,
    ops: Option<Listener>,
}

fn bind(
    address: Option<&Address>,
    protocol: Protocol,
    mode: u32,
    entropy: &Arc<dyn Entropy>,
) -> Result<Option<Listener>, ListenError> {
    let settings = ListenSettings {
        protocol,
        // Envoy sends the questions of one worker over one connection.
        max_concurrent_streams: 1_000,
        initial_connection_window_size: 4 * 1024 * 1024,
        max_header_list_size: MAX_HEADER_BYTES,
        // A proxy keeps idle connections to ask over, nginx for 60 s: it must be the one to close them.
        first_bytes_timeout: Duration::from_secs(120),
        socket_mode: mode,
        ..ListenSettings::default()
    };
    let bind = |address: &Address| {
        Listener::bind_to(address.clone(), settings.clone(), None, Arc::clone(entropy))
    };
    address.map(bind).transpose()
}

/// Binds the listeners, logs in, and begins to follow revocations.
///
/// # Errors
/// When a listener cannot be bound. A server that cannot be reached is no error: the sidecar is not
/// ready until it is.
pub async fn build(options: SidecarOptions) -> Result<BoundSidecar, SidecarError> {
    let SidecarOptions { config, server, client } = options;
    let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let sidecar = &config.sidecar;
    let mode = sidecar.socket_mode.0;
    let listeners = Listeners {
        ext_authz: bind(sidecar.ext_authz.as_ref(), Protocol::Http2, mode, &entropy)?,
        forward_auth: bind(sidecar.forward_auth.as_ref(), Protocol::Auto, mode, &entropy)?,
        ops: bind(sidecar.ops.as_ref(), Protocol::Auto, mode, &entropy)?,
    };
    let mut keeping = JoinSet::new();
    let tokens = match client {
        Some(client) => {
            let (transport, entropy) = (server.transport.clone(), Arc::clone(&entropy));
            Some(own_token(client, transport, Arc::clone(&clock), entropy, &mut keeping).await)
        }
        None => None,
    };
    let authorization = tokens.as_ref().map(TokenSource::authorization);
    let refused = tokens.as_ref().map(TokenSource::refused);
    let agent = sidecar.agent.as_ref().map(agent_at).transpose()?;
    // An agent asks for no credential, so it is shown none.
    let shown = authorization.clone().filter(|_| agent.is_none());
    let followed = agent.map_or_else(|| server.watch(), |agent| WatchSettings::new(vec![agent]));
    let watch = WatchSettings {
        filter: v1::RevocationFilter { audiences: config.audiences(), client_ids: Vec::new() },
        subscriber_id: sidecar.name.clone(),
        authorization: shown,
        refused,
        ..followed
    };
    let settings = VerifierSettings {
        leeway: sidecar.leeway,
        max_staleness: sidecar.max_staleness,
        policy: policy(sidecar.policy),
        remembered: sidecar.remembered_tokens,
        ..VerifierSettings::new(sidecar.issuer.clone().unwrap_or_default(), watch)
    };
    let ask = Arc::new(AskServer::new(server.transport, authorization));
    let verifier = Verifier::start(settings, clock, entropy, Some(ask));
    let mut registry = Registry::default();
    let metrics = Arc::new(SidecarMetrics::register(&mut registry));
    let rules = config.rules.map(|name, rule| rule_of(&config.sidecar, name, rule));
    let gate = Arc::new(Gate::new(verifier.clone(), rules, Arc::clone(&metrics)));
    let local = |listener: &Option<Listener>| listener.as_ref().map(|it| it.local().clone());
    Ok(BoundSidecar {
        ext_authz: local(&listeners.ext_authz),
        forward_auth: local(&listeners.forward_auth),
        ops: local(&listeners.ops),
        verifier,
        shutdown: CancellationToken::new(),
        listeners,
        gate,
        registry: Arc::new(registry),
        metrics,
        drain_timeout: config.sidecar.drain_timeout,
        keeping,
    })
}

fn agent_at(address: &Address) -> Result<Endpoint, SidecarError> {
    let url = match address {
        Address::Tcp(address) => format!("http://{address}"),
        Address::Unix(_) => address.to_string(),
    };
    Ok(Endpoint::from_shared(url)?)
}

const fn policy(policy: config::Policy) -> Policy {
    match policy {
        config::Policy::Closed => Policy::Closed,
        config::Policy::Introspect => Policy::Introspect,
        config::Policy::Open => Policy::Open,
    }
}

fn rule_of(sidecar: &config::Sidecar, name: String, rule: &rules::Rule) -> Rule {
    let audience = if rule.audience.is_empty() { &sidecar.audience } else { &rule.audience };
    Rule {
        name: name.into(),
        public: rule.public,
        requirement: Requirement { audience: audience.clone(), scope: rule.scope.clone() },
        policy: policy(rule.policy.unwrap_or(sidecar.policy)),
        max_staleness: rule.max_staleness.unwrap_or(sidecar.max_staleness),
        forward_token: rule.forward_token.unwrap_or(sidecar.forward_token),
    }
}

impl BoundSidecar {
    /// Serves until [`BoundSidecar::shutdown`] is cancelled, then drains: probes and health say that it
    /// goes, checks finish, and metrics are there to the end.
    pub async fn serve(self) -> DrainSummary {
        let readiness = Readiness::default();
        let latch = readiness.register("revocations");
        let health = HealthReporter::new();
        let health_server = HealthServer::new(HealthService::from_health_reporter(health.clone()));
        set_health(&health, ServingStatus::NotServing).await;

        let mut http = JoinSet::new();
        let stop_http = CancellationToken::new();
        if let Some(listener) = self.listeners.ops {
            let (metrics, verifier) = (Arc::clone(&self.metrics), self.verifier.clone());
            let router =
                ops::router(self.registry, readiness.clone(), move || report(&metrics, &verifier));
            http.spawn(listener.serve(router, stop_http.clone(), Duration::from_secs(2)));
        }
        let mut checks = JoinSet::new();
        let stop_checks = CancellationToken::new();
        let drain = self.drain_timeout;
        if let Some(listener) = self.listeners.forward_auth {
            let router = forward_auth::router(Arc::clone(&self.gate));
            checks.spawn(listener.serve(router, stop_checks.clone(), drain));
        }
        if let Some(listener) = self.listeners.ext_authz {
            let routes = Routes::new(Authorization::new(Arc::clone(&self.gate)))
                .add_service(health_server.max_decoding_message_size(1024))
                .prepare()
                .into_axum_router();
            let stack =
                CatchPanic::new(listener.stats()).layer(Deadline::new(ANSWER_WITHIN).layer(routes));
            checks.spawn(listener.serve(stack, stop_checks.clone(), drain));
        }
        let verifier = self.verifier.clone();
        let synced = tokio::spawn({
            let health = health.clone();
            async move {
                verifier.synced().await;
                latch.release();
                set_health(&health, ServingStatus::Serving).await;
                tracing::info!("ready: the set of revocations is complete");
            }
        });
        self.shutdown.cancelled().await;
        readiness.drain();
        synced.abort();
        // Its end first, or it might say the contrary after.
        let _ended = synced.await;
        set_health(&health, ServingStatus::NotServing).await;
        stop_checks.cancel();
        let mut summary = DrainSummary::default();
        while let Some(ended) = checks.join_next().await {
            let ended = ended.unwrap_or_default();
            summary.drained += ended.drained;
            summary.aborted += ended.aborted;
        }
        drop(self.keeping);
        stop_http.cancel();
        while http.join_next().await.is_some() {}
        summary
    }
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for name in ["", SERVICE_NAME] {
        health.set_service_status(name, status).await;
    }
}

fn report(metrics: &SidecarMetrics, verifier: &Verifier) {
    let (status, stats) = (verifier.status(), verifier.stats());
    metrics.report(&VerifierLevels {
        view: ViewLevels {
            synced: status.synced,
            connected: status.connected,
            age: status.age,
            lag: status.lag,
            revision: status.cursor.map_or(0, |cursor| cursor.revision.0),
            entries: status.entries,
            bytes: status.bytes,
        },
        partial: status.partial,
        asked: stats.asked,
        opened: stats.opened,
    });
}

/// Serves until a signal comes.
///
/// # Errors
/// See [`SidecarError`].
pub async fn serve(options: SidecarOptions) -> Result<(), SidecarError> {
    let mut signals = Signals::catch()?;
    let summary = options.config.summary();
    let bound = build(options).await?;
    let show = |address: &Option<Address>| {
        address.as_ref().map_or_else(|| "off".to_owned(), ToString::to_string)
    };
    tracing::info!(
        ext_authz = show(&bound.ext_authz),
        forward_auth = show(&bound.forward_auth),
        ops = show(&bound.ops),
        %summary,
        "serving"
    );
    let shutdown = bound.shutdown.clone();
    tokio::spawn(async move {
        signals.next().await;
        tracing::info!("draining");
        shutdown.cancel();
    });
    let drained = bound.serve().await;
    tracing::info!(drained = drained.drained, aborted = drained.aborted, "stopped");
    Ok(())
}
