//! A server from the moment its ports are bound to the end of its drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_sdk::trace::SdkTracer;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tower_layer::Layer as _;

use super::tasks;
use crate::grpc::health::Health;
use crate::grpc::observe::Observe;
use crate::lifecycle::{Latch, Readiness};
use crate::listen::deadline::Deadline;
use crate::listen::listener::{DrainSummary, Listener};
use crate::listen::panic::CatchPanic;
use crate::metrics::Metrics;
use crate::service::Service;

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
    /// Cancel it to end the delay of a drain, see [`Options::drain_delay`](super::Options::drain_delay).
    pub hurry: CancellationToken,
    pub(super) grpc: Listener,
    pub(super) grpc_routes: axum::Router,
    pub(super) public: Option<(Listener, axum::Router)>,
    pub(super) ops: Option<(Listener, axum::Router)>,
    pub(super) health: Health,
    pub(super) readiness: Readiness,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tracer: Option<SdkTracer>,
    pub(super) store_failed: Option<watch::Receiver<Option<String>>>,
    pub(super) store_latch: Option<Latch>,
    pub(super) request_timeout: Duration,
    pub(super) sweep_interval: Duration,
    pub(super) drain_delay: Duration,
    pub(super) drain_timeout: Duration,
    pub(super) process: u32,
}

/// How a server ended.
#[derive(Debug)]
pub struct Ended {
    /// How the gRPC connections ended.
    pub drained: DrainSummary,
    /// Why the store failed, if that is why the server ended.
    pub store_failed: Option<String>,
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
