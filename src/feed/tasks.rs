//! What goes on behind the streams: wake them, prove contact with the store, drop what has expired,
//! and cut those that take nothing.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::Shared;
use super::ring::Check;
use super::source::Proof;
use crate::domain::clock::Timestamp;
use crate::domain::view::{TOKEN_BUCKET_SECS, bucket_end};

pub(super) fn spawn(shared: &Arc<Shared>) -> Vec<AbortHandle> {
    let prove_every = shared.settings.prove_every;
    let expire_every = shared.settings.expire_every;
    vec![
        tokio::spawn(fan_out(Arc::clone(shared))).abort_handle(),
        every(prove_every, shared, |shared| async move { prove(&shared).await }),
        every(expire_every, shared, |shared| async move { expire(&shared) }),
        every(Duration::from_secs(1), shared, |shared| async move { cut_stalled(&shared) }),
    ]
}

fn every<F: Future<Output = ()> + Send + 'static>(
    period: Duration,
    shared: &Arc<Shared>,
    job: impl Fn(Arc<Shared>) -> F + Send + 'static,
) -> AbortHandle {
    let shared = Arc::clone(shared);
    let task = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            job(Arc::clone(&shared)).await;
        }
    });
    task.abort_handle()
}

/// Wakes the streams, however many there are, so that the committer wakes only this task.
async fn fan_out(shared: Arc<Shared>) {
    let mut head = shared.head.subscribe();
    while head.changed().await.is_ok() {
        head.borrow_and_update();
        shared.wake();
    }
}

/// Moves `as_of` on, as far as the source can vouch.
///
/// A proof (as_of, head) holds for whoever has been sent everything up to head, and nobody states it
/// before: streams state a proof only at positions at or past its head, and a frame carries the proof
/// that stood when it was published, whose head the ring had passed.
pub(super) async fn prove(shared: &Shared) {
    // Who does not count among the replicas may have watchers that nobody waited for. Before anything
    // else: what is proved after registering has what others did before.
    if shared.peers.as_ref().is_some_and(|peers| !peers.is_registered()) {
        return;
    }
    let began = Instant::now();
    let now = shared.clock.now();
    let Some(Proof { as_of, head }) = shared.source.prove(now).await else { return };
    // An engine may move its head a moment before it tells the observer.
    let mut seen = shared.head.subscribe();
    let wait = seen.wait_for(|seen| *seen >= head);
    match tokio::time::timeout(shared.settings.prove_every, wait).await {
        Ok(Ok(_)) => {}
        Ok(Err(_)) | Err(_) => return,
    }
    let mut ring = shared.ring();
    if as_of >= ring.proof.as_of {
        ring.proof = Proof { as_of, head: head.max(ring.proof.head) };
        ring.proved_at = Some(began);
    }
    // By the present, not by `as_of`: that may stand still, while what has expired is dropped.
    let counted_after = counted_after(now);
    // Under the ring's lock, so that the view stands exactly at the ring's head.
    let digest = shared.view.digest(counted_after);
    ring.set_check(Check { digest, counted_after });
    drop(ring);
    shared.proofs.send_modify(|count| *count = count.wrapping_add(1));
}

/// Two buckets from now: what both ends still hold, whatever their clocks say.
pub(super) fn counted_after(now: Timestamp) -> Timestamp {
    let later = now.after(Duration::from_secs(TOKEN_BUCKET_SECS));
    Timestamp::from_secs(bucket_end(later, TOKEN_BUCKET_SECS) + TOKEN_BUCKET_SECS)
}

fn expire(shared: &Shared) {
    let now = shared.clock.now();
    shared.view.expire(now);
    shared.coarse().retain(|_, revocation| now < revocation.expires_at);
}

/// Cuts the streams that should have asked for more and did not. A stream that waits for news is
/// polled at each heartbeat; one that is not polled then has a peer that accepts no byte.
fn cut_stalled(shared: &Shared) {
    let now = Instant::now();
    let head = *shared.head.borrow();
    for watcher in shared.registry.all() {
        let mut pulse = watcher.pulse();
        let due = watcher.position() < head || now >= pulse.asked_at + watcher.heartbeat;
        if !due || pulse.overdue_since.is_none() {
            pulse.overdue_since = due.then_some(now);
            continue;
        }
        let overdue = pulse.overdue_since.map_or(Duration::ZERO, |since| now - since);
        drop(pulse);
        if overdue >= shared.settings.slow_after && !watcher.cut.swap(true, Ordering::AcqRel) {
            shared.cut.fetch_add(1, Ordering::Relaxed);
            tracing::info!(watch_id = watcher.id, "cut a watcher that takes nothing");
            if let Some(close) = &watcher.close {
                close();
            }
        }
    }
}
