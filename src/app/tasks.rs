//! What runs beside the requests.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::STORE;
use crate::grpc::health::Health;
use crate::lifecycle::{Latch, Readiness};
use crate::metrics::{Metrics, Outcome, Swept};
use crate::service::Service;

fn every(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Removes what is over. Each sweep commits the time, too, so that a clock that is set back while
/// nobody calls does not run time backwards after a restart.
pub(super) async fn sweep(service: Arc<Service>, metrics: Arc<Metrics>, period: Duration) {
    let mut ticks = every(period);
    loop {
        ticks.tick().await;
        let began = Instant::now();
        match service.sweep().await {
            Ok(swept) => {
                metrics.swept(Swept::Sessions, swept.sessions);
                metrics.swept(Swept::Events, swept.events);
                metrics.swept(Swept::Attempts, swept.attempts);
                metrics.sweep_ended(Outcome::Ok, began.elapsed());
                tracing::debug!(?swept, "swept");
            }
            Err(error) => {
                metrics.sweep_ended(Outcome::Failed, began.elapsed());
                tracing::warn!(%error, "cannot sweep");
            }
        }
    }
}

/// The sessions are counted no more often than this, and take a thousandth of the time at the most.
const COUNT_PAUSE: Duration = Duration::from_secs(15);

/// Counts the sessions: not at each scrape, as it reads an index of all of them.
pub(super) async fn count_sessions(service: Arc<Service>, metrics: Arc<Metrics>) {
    loop {
        let began = Instant::now();
        match service.store().count_sessions().await {
            Ok(count) => metrics.sessions(count),
            Err(error) => tracing::warn!(%error, "cannot count the sessions"),
        }
        tokio::time::sleep(COUNT_PAUSE.max(began.elapsed() * 1000)).await;
    }
}

/// Rotates keys when they are due, and follows what another replica did as soon as its event is here.
pub(super) async fn roll_keys(service: Arc<Service>) {
    let mut ticks = every(Duration::from_secs(5));
    let mut changes = service.feed().key_changes();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Ok(()) = changes.changed() => {}
        }
        if let Err(error) = service.roll_keys().await {
            tracing::error!(%error, "cannot roll the signing keys");
        }
    }
}

/// How old `as_of` may be before the stream of revocations is no longer worth following here.
const FROZEN_AFTER: Duration = Duration::from_secs(2);

/// Who hears whether the store proves contact.
pub(super) struct Contact {
    pub(super) health: Health,
    pub(super) readiness: Readiness,
    /// That the store has not proved contact yet, where the store is on other machines: without it no
    /// call is answered here, while another replica may have it.
    pub(super) awaited: Option<Latch>,
}

impl Contact {
    /// Says NOT_SERVING for the stream while the store cannot prove contact, so that watchers go to
    /// another replica; and for everything, and not ready, where calls should go to another, too.
    pub(super) async fn watch(self, service: Arc<Service>) {
        let Self { health, readiness, mut awaited } = self;
        let store_is_away = awaited.is_some();
        let mut ticks = every(Duration::from_millis(250));
        loop {
            ticks.tick().await;
            let age = service.now().since(service.feed().as_of());
            let fresh = age <= FROZEN_AFTER;
            if !store_is_away {
                health.revocations(fresh).await;
            } else if fresh == awaited.is_some() {
                if fresh {
                    health.serving().await;
                    awaited = None;
                } else {
                    tracing::warn!(
                        age_s = age.as_secs(),
                        "the store does not answer; this replica serves nothing until it does"
                    );
                    awaited = Some(readiness.register(STORE));
                    health.not_serving().await;
                }
                health.revocations(fresh).await;
            }
        }
    }
}
