//! What runs beside the requests.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::STORE;
use crate::grpc::health::Health;
use crate::lifecycle::{Latch, Readiness};
use crate::metrics::{Metrics, Outcome, Swept};
use crate::service::Service;
use crate::service::sweep::Turn;

fn every(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Removes what is over. Each sweep, and each turn that is asked for, commits the time, too, so that a
/// clock that is set back while nobody calls does not run time backwards after a restart.
pub(super) async fn sweep(service: Arc<Service>, metrics: Arc<Metrics>, period: Duration) {
    let mut ticks = every(period);
    loop {
        ticks.tick().await;
        let began = Instant::now();
        match service.sweep_in_turn(period).await {
            Ok(Turn::Another) => tracing::debug!("another replica sweeps"),
            Ok(Turn::ClockOff) => {
                tracing::error!(
                    "nothing is swept here: the clock is far from those of the other replicas"
                );
            }
            Ok(Turn::Swept(swept)) => {
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

/// Counts the sessions: not at each scrape, as it reads an index of all of them, and of the replicas of
/// one store only where the turn to sweep is.
pub(super) async fn count_sessions(service: Arc<Service>, metrics: Arc<Metrics>) {
    let mut turn = service.has_turn();
    // The other end is held by the service.
    while turn.wait_for(|has_turn| *has_turn).await.is_ok() {
        let began = Instant::now();
        match service.store().count_sessions().await {
            Ok(count) => metrics.sessions(Some(count)),
            Err(error) => {
                // Another may count them meanwhile, and what was here is old.
                metrics.sessions(None);
                tracing::warn!(%error, "cannot count the sessions");
            }
        }
        let pause = COUNT_PAUSE.max(began.elapsed() * 1000);
        let lost = timeout(pause, turn.wait_for(|has_turn| !*has_turn)).await.is_ok();
        if lost {
            metrics.sessions(None);
        }
    }
}

/// Rotates keys when they are due, and follows what another replica did as soon as its event is here.
pub(super) async fn roll_keys(service: Arc<Service>) {
    let mut ticks = every(Duration::from_secs(5));
    let mut changes = service.feed().key_changes();
    loop {
        let followed = tokio::select! {
            _ = ticks.tick() => service.roll_keys().await,
            // The other end is held by the feed, which the service holds.
            Ok(()) = changes.changed() => service.follow_keys().await,
        };
        if let Err(error) = followed {
            tracing::error!(%error, "cannot roll the signing keys, or follow them");
        }
    }
}

/// Keeps the clock in step with those of the other replicas.
pub(super) async fn keep_time(service: Arc<Service>) {
    if service.store().board().is_none() {
        return;
    }
    let mut ticks = every(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        // Without contact there is nobody to keep up with, and others say so.
        if let Err(error) = service.keep_time().await {
            tracing::debug!(%error, "cannot read the latest time of the store");
        }
    }
}

/// How long contact with the store may be unproved before the stream of revocations is no longer
/// worth following here.
const FROZEN_AFTER: Duration = Duration::from_secs(2);
/// How long until nothing is worth asking here. Longer than a store takes to find a new leader: who
/// leaves for that comes back to as much trouble elsewhere.
const CUT_OFF_AFTER: Duration = Duration::from_secs(5);
/// What a replica waits for whose clock is far from those of the others.
const CLOCK: &str = "a clock that agrees with the other replicas";

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
    /// another replica; and for everything, and not ready, when that lasts and calls should go to
    /// another, too. A clock that is far from those of the other replicas is as bad.
    pub(super) async fn watch(self, service: Arc<Service>) {
        let Self { health, readiness, awaited } = self;
        let store_is_away = awaited.is_some();
        let mut serving = !store_is_away;
        let (mut cut_off, mut outvoted) = (awaited, None);
        let began = Instant::now();
        let mut ticks = every(Duration::from_millis(250));
        loop {
            ticks.tick().await;
            let proved = service.feed().proved_ago();
            let unproved = proved.unwrap_or_else(|| began.elapsed());
            let clocks = service.feed().clock_standing().unwrap_or_default();
            // Time never runs backwards: a clock that was set right is not yet in step.
            let stands_still = outvoted.is_some() && clocks.others >= 2 && service.time_is_ahead();
            let is_outvoted = clocks.outvoted || stands_still;
            if store_is_away {
                let is_cut_off = proved.is_none_or(|ago| ago > CUT_OFF_AFTER);
                hold(&mut cut_off, is_cut_off, &readiness, STORE);
                hold(&mut outvoted, is_outvoted, &readiness, CLOCK);
            }
            let serve = cut_off.is_none() && outvoted.is_none();
            if serve != serving {
                serving = serve;
                health.calls(serve).await;
            }
            health.revocations(unproved <= FROZEN_AFTER && serve).await;
        }
    }
}

/// Takes a latch while something is amiss, and says so in the log.
fn hold(latch: &mut Option<Latch>, amiss: bool, readiness: &Readiness, what: &'static str) {
    match (amiss, latch.take()) {
        (true, None) => {
            tracing::error!(waiting_for = what, "this replica is out of service");
            *latch = Some(readiness.register(what));
        }
        (false, Some(held)) => {
            tracing::info!(waited_for = what, "this replica is in service");
            held.release();
        }
        (_, held) => *latch = held,
    }
}
