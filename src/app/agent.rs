//! `avouch node-agent`: follows one server for a whole machine, until a signal comes.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower_layer::Layer as _;

use super::own_token::own_token;
use super::signals::Signals;
use crate::agent::{Agent, AgentSettings, Neighbours, Unfit};
use crate::client::token_source::TokenSource;
use crate::client::upstream::Upstream;
use crate::client::watch::WatchSettings;
use crate::crypto::OsEntropy;
use crate::domain::address::Address;
use crate::domain::clock::{Clock, SystemClock};
use crate::domain::entropy::Entropy;
use crate::feed::FeedSettings;
use crate::grpc::frame::BatchEncoder;
use crate::grpc::watch::RevocationServer;
use crate::http::ops;
use crate::lifecycle::Readiness;
use crate::listen::deadline::Deadline;
use crate::listen::listener::{DrainSummary, ListenError, Listener};
use crate::listen::panic::CatchPanic;
use crate::listen::settings::{ListenSettings, Protocol};
use crate::metrics::agent::{AgentLevels, AgentMetrics};
use crate::metrics::view::ViewLevels;
use crate::pb::v1;

/// How long a call may take until its answer begins: longer than a cursor may be ahead.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How often the server is asked to say something. What a neighbour knows is older by at most this
/// than if it asked itself.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How old `as_of` may be before the stream is no longer worth beginning here.
const FROZEN_AFTER: Duration = Duration::from_secs(5);

/// What an agent is made of.
#[derive(Clone)]
pub struct AgentOptions {
    /// Where neighbours connect: a Unix socket or a loopback address.
    pub listen: Address,
    /// Who may write to the socket may watch.
    pub socket_mode: u32,
    /// Where metrics and probes are; none leaves them out.
    pub ops: Option<Address>,
    /// How to reach the server, certificates included.
    pub server: Upstream,
    /// Who the agent is to the server, when its certificate does not say.
    pub client: Option<v1::ClientAuthentication>,
    /// The name of this agent in the server's metrics and logs.
    pub name: String,
    /// The most revocations to hold.
    pub max_entries: u64,
    /// The most streams of neighbours.
    pub max_neighbours: usize,
    /// How neighbours are served, but for how many.
    pub feed: FeedSettings,
    /// How long a drain may take.
    pub drain_timeout: Duration,
}

impl AgentOptions {
    /// An agent at `listen` for the server behind `server`, with the usual limits.
    pub fn new(listen: Address, server: impl Into<Upstream>) -> Self {
        Self {
            listen,
            socket_mode: 0o660,
            ops: None,
            server: server.into(),
            client: None,
            name: "avouch-node-agent".to_owned(),
            max_entries: 4_000_000,
            max_neighbours: 1024,
            feed: FeedSettings::default(),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Why an agent did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Whoever can reach the address can watch, and this one is reachable from other machines.
    #[error(
        "{0} is reachable from other machines, and an agent asks nobody who they are: listen on unix:///path or on a loopback address"
    )]
    NotLocal(Address),
    /// A listener did not bind.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The operating system refused.
    #[error("cannot wait for signals: {0}")]
    Signal(#[from] std::io::Error),
    /// It cannot have the whole set.
    #[error(transparent)]
    Unfit(#[from] Unfit),
}

/// An agent that is bound and not yet served.
pub struct BoundAgent {
    /// Where neighbours connect.
    pub address: Address,
    /// Where metrics and probes are.
    pub ops: Option<Address>,
    /// What it follows and has.
    pub agent: Arc<Agent>,
    /// Cancel it to drain and stop.
    pub shutdown: CancellationToken,
    listener: Listener,
    ops_listener: Option<Listener>,
    drain_timeout: Duration,
    // Whoever drops it stops the logins.
    _keeping: JoinSet<()>,
}

/// Binds the listeners, logs in, and begins to follow.
///
/// # Errors
/// When a listener cannot be bound. A server that cannot be reached is no error: the agent is not
/// ready until it is.
pub async fn build(options: AgentOptions) -> Result<BoundAgent, AgentError> {
    if !options.listen.is_local() {
        return Err(AgentError::NotLocal(options.listen));
    }
    let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
    let bind = |address: Address, protocol| {
        let settings = ListenSettings {
            protocol,
            // Peers on one machine share an address: the cap for all of them is the only one.
            max_connections_per_peer: ListenSettings::default().max_connections,
            // Streams end by themselves, with a go-away, before their connection does.
            max_connection_age: Duration::from_secs(3600),
            socket_mode: options.socket_mode,
            ..ListenSettings::default()
        };
        Listener::bind_to(address, settings, None, Arc::clone(&entropy))
    };
    let listener = bind(options.listen, Protocol::Http2)?;
    let ops_listener = options.ops.map(|address| bind(address, Protocol::Auto)).transpose()?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let server = options.server;
    let mut keeping = JoinSet::new();
    let tokens = match options.client {
        Some(client) => {
            let (transport, entropy) = (server.transport.clone(), Arc::clone(&entropy));
            Some(own_token(client, transport, clock, entropy, &mut keeping).await)
        }
        None => None,
    };
    let authorization = tokens.as_ref().map(TokenSource::authorization);
    let refused = tokens.as_ref().map(TokenSource::refused);
    let watch = WatchSettings {
        heartbeat: HEARTBEAT,
        subscriber_id: options.name,
        authorization,
        refused,
        max_entries: options.max_entries,
        ..server.watch()
    };
    let feed = FeedSettings {
        max_watchers: options.max_neighbours,
        // All neighbours are one caller: the socket does not tell them apart.
        max_watchers_per_caller: options.max_neighbours,
        ..options.feed
    };
    let settings = AgentSettings { watch, feed };
    let agent = Arc::new(Agent::start(settings, entropy, Arc::new(BatchEncoder)));
    Ok(BoundAgent {
        address: listener.local().clone(),
        ops: ops_listener.as_ref().map(|listener| listener.local().clone()),
        agent,
        shutdown: CancellationToken::new(),
        listener,
        ops_listener,
        drain_timeout: options.drain_timeout,
        _keeping: keeping,
    })
}

impl BoundAgent {
    /// Serves until [`BoundAgent::shutdown`] is cancelled, then drains: probes and health say that it
    /// goes, neighbours are told to go, and metrics are there to the end.
    ///
    /// # Errors
    /// When it cannot have the whole set; it drains then, too.
    pub async fn serve(self) -> Result<DrainSummary, Unfit> {
        let Self { agent, shutdown, drain_timeout, .. } = self;
        let readiness = Readiness::default();
        let latch = readiness.register("revocations");
        let health = HealthReporter::new();
        let health_server = HealthServer::new(HealthService::from_health_reporter(health.clone()));
        set_health(&health, false, false).await;
        let mut http = JoinSet::new();
        let stop_http = CancellationToken::new();
        if let Some(listener) = self.ops_listener {
            let mut registry = Registry::default();
            let metrics = AgentMetrics::register(&mut registry);
            let agent = Arc::clone(&agent);
            let report = move || report(&metrics, &agent);
            let router = ops::router(Arc::new(registry), readiness.clone(), report);
            http.spawn(listener.serve(router, stop_http.clone(), Duration::from_secs(2)));
        }
        let revocations = RevocationServer::following(agent.feed(), Arc::new(Neighbours));
        let routes = Routes::new(revocations)
            .add_service(health_server.max_decoding_message_size(1024))
            .prepare()
            .into_axum_router();
        let stats = self.listener.stats();
        let stack = CatchPanic::new(stats).layer(Deadline::new(ANSWER_WITHIN).layer(routes));
        let stop = CancellationToken::new();
        let grpc = tokio::spawn(self.listener.serve(stack, stop.clone(), drain_timeout));
        let follow_health = tokio::spawn(tell_health(Arc::clone(&agent), health.clone(), latch));

        let unfit = tokio::select! {
            () = shutdown.cancelled() => None,
            why = agent.unfit() => Some(why),
        };
        shutdown.cancel();
        readiness.drain();
        follow_health.abort();
        // Its end first, or it might say the contrary after.
        let _ended = follow_health.await;
        set_health(&health, false, false).await;
        agent.drain();
        stop.cancel();
        let summary = grpc.await.unwrap_or_default();
        stop_http.cancel();
        while http.join_next().await.is_some() {}
        unfit.map_or(Ok(summary), Err)
    }
}

/// Says whether the agent has a set, and whether a stream is worth beginning here.
async fn tell_health(agent: Arc<Agent>, health: HealthReporter, latch: crate::lifecycle::Latch) {
    agent.synced().await;
    latch.release();
    tracing::info!("ready");
    let mut ticks = tokio::time::interval(Duration::from_millis(250));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let fresh = agent.status().age.is_some_and(|age| age <= FROZEN_AFTER);
        set_health(&health, true, fresh).await;
    }
}

async fn set_health(health: &HealthReporter, ready: bool, fresh: bool) {
    use v1::revocation_service_server::SERVICE_NAME;
    for (name, serving) in [("", ready), (SERVICE_NAME, fresh)] {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        health.set_service_status(name, status).await;
    }
}

fn report(metrics: &AgentMetrics, agent: &Agent) {
    let status = agent.status();
    metrics.report(&AgentLevels {
        view: ViewLevels {
            synced: status.synced,
            connected: status.connected,
            age: status.age,
            lag: status.lag,
            revision: status.cursor.map_or(0, |cursor| cursor.revision.0),
            entries: status.entries,
            bytes: status.bytes,
        },
        neighbours: status.neighbours,
        behind: status.behind,
        ring_entries: status.ring_entries,
        ring_bytes: status.ring_bytes,
        cut: status.cut,
        snapshots: status.snapshots,
    });
}

/// Serves until a signal comes, or until it cannot have the whole set.
///
/// # Errors
/// See [`AgentError`].
pub async fn serve(options: AgentOptions) -> Result<(), AgentError> {
    let mut signals = Signals::catch()?;
    let bound = build(options).await?;
    let ops = bound.ops.as_ref().map_or_else(|| "off".to_owned(), ToString::to_string);
    tracing::info!(address = %bound.address, ops, "serving");
    let shutdown = bound.shutdown.clone();
    tokio::spawn(async move {
        signals.next().await;
        tracing::info!("draining");
        shutdown.cancel();
    });
    let drained = bound.serve().await?;
    tracing::info!(drained = drained.drained, aborted = drained.aborted, "stopped");
    Ok(())
}
