//! What the parts count themselves, read when somebody scrapes.

use std::sync::Arc;

use crate::domain::key::KeyState;
use crate::listen::stats::{ListenSnapshot, ListenStats};
use crate::metrics::{
    self, FeedLevels, HashOutcome, Listener, ListenerCounts, Metrics, Refusal, StoreLevels,
};
use crate::service::Service;

/// Reads everything into the metrics.
pub(super) fn report(
    service: &Service,
    listeners: &[(Listener, Arc<ListenStats>)],
    metrics: &Metrics,
) {
    let pool = service.hash_stats();
    metrics.hash_pool(pool.queued, pool.running);
    metrics.hashes(HashOutcome::Done, pool.completed.saturating_sub(pool.failed));
    metrics.hashes(HashOutcome::Shed, pool.shed_full);
    metrics.hashes(HashOutcome::ShedSource, pool.shed_source);
    metrics.hashes(HashOutcome::Abandoned, pool.abandoned);
    metrics.hashes(HashOutcome::Failed, pool.failed);

    let store = service.store().status();
    metrics.store(StoreLevels {
        commits: store.commits,
        groups: store.groups,
        queued: store.queued,
        disk_bytes: store.disk_bytes,
        free_bytes: store.free_bytes,
        low_space: store.low_space,
    });

    let feed = service.feed();
    let stats = feed.stats();
    metrics.feed(FeedLevels {
        watchers: stats.watchers,
        lag: feed.watchers().iter().map(|watcher| watcher.lag).max().unwrap_or_default(),
        cut: stats.cut,
        reread: stats.reread,
        live: stats.live,
        revision: stats.head.0,
        as_of: std::time::Duration::from_millis(stats.as_of.as_millis()).as_secs_f64(),
        ring_entries: stats.ring_entries,
        ring_bytes: stats.ring_bytes,
        replicas: feed.replicas().map_or(1, |replicas| replicas.len()),
        clock_ahead: feed.clock_standing().map_or(0.0, |clocks| clocks.ahead_seconds()),
    });

    let keys = service.key_states();
    let count = |state| keys.iter().filter(|key| **key == state).count();
    metrics.keys(metrics::KeyState::Announced, count(KeyState::Announced));
    metrics.keys(metrics::KeyState::Active, count(KeyState::Active));
    metrics.keys(metrics::KeyState::Retired, count(KeyState::Retired));
    metrics.keys(metrics::KeyState::Revoked, count(KeyState::Revoked));

    let mut panics = 0;
    for (listener, stats) in listeners {
        let snapshot = stats.snapshot();
        panics += snapshot.handler_panics;
        metrics.listener(*listener, &counts(&snapshot));
    }
    metrics.panics(panics);
    metrics.process();
}

fn counts(snapshot: &ListenSnapshot) -> ListenerCounts {
    ListenerCounts {
        active: snapshot.active,
        accepted: snapshot.accepted,
        refused: [
            (Refusal::Full, snapshot.refused_global),
            (Refusal::Peer, snapshot.refused_peer),
            (Refusal::Handshake, snapshot.handshake_failures),
            (Refusal::Silent, snapshot.first_bytes_timeouts),
            (Refusal::Stalled, snapshot.stalled),
        ],
        certificate_end: snapshot.certificate_not_after.map(|end| end.as_secs()),
    }
}
