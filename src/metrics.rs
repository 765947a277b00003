//! What is counted: typed recorders over a registry that is passed in. No label holds an id, so the
//! number of series is bounded whatever callers send. Knows nothing else of ours.

pub mod agent;
mod labels;
mod process;
mod recorder;
mod register;
pub mod sidecar;
pub mod view;

pub use labels::{
    Code, HashOutcome, KeyState, Level, Listener, Method, Outcome, Refusal, ReuseCause, Rotation,
    Swept, Verdict,
};
pub use recorder::{FeedRecorder, HashRecorder, StoreRecorder};

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use labels::{
    CauseLabels, KeyStateLabels, LevelLabels, ListenerLabels, MethodLabels, OutcomeLabels,
    RefusalLabels, ResultLabels, RotationLabels, RpcLabels, SweptLabels, VerdictLabels,
};
use process::Process;
use register::Register;

type Count = Counter<u64, AtomicU64>;
type Level64 = Gauge<i64, AtomicI64>;
type Seconds = Gauge<f64, AtomicU64>;

/// Seconds: from a signature check to a call that waits for a hash in a storm.
const LATENCY_BUCKETS: [f64; 14] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

/// State changes: from a change alone to the largest group.
const GROUP_BUCKETS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

fn latency() -> Histogram {
    Histogram::new(LATENCY_BUCKETS)
}

/// Sets a counter to what its owner has counted. Never back: two scrapes may overtake each other.
fn raise(counter: &Count, total: u64) {
    counter.inner().fetch_max(total, Ordering::Relaxed);
}

/// Every recorder. Clones share the counts.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<RpcLabels, Count>,
    latency: Family<RpcLabels, Histogram, fn() -> Histogram>,
    in_flight: Family<MethodLabels, Level64>,
    hashes: Family<OutcomeLabels, Count>,
    hashes_queued: Level64,
    hashes_running: Level64,
    hash: HashRecorder,
    store_commits: Count,
    store_groups: Count,
    store_disk: Level64,
    store_free: Level64,
    store_low: Level64,
    store_queued: Level64,
    store: StoreRecorder,
    sessions: Gauge<f64, AtomicU64>,
    sessions_opened: Count,
    rotations: Family<RotationLabels, Count>,
    reuses: Family<CauseLabels, Count>,
    revocations_live: Level64,
    watchers: Level64,
    watcher_lag: Level64,
    watchers_cut: Count,
    watcher_reads: Count,
    feed_revision: Level64,
    feed_as_of: Seconds,
    feed_ring_entries: Level64,
    feed_ring_bytes: Level64,
    replicas: Level64,
    clock_ahead: Seconds,
    feed: FeedRecorder,
    introspections: Family<VerdictLabels, Count>,
    keys: Family<KeyStateLabels, Level64>,
    sweeps: Family<ResultLabels, Count>,
    swept: Family<SweptLabels, Count>,
    sweep_duration: Histogram,
    audit_dropped: Count,
    audit_down: Level64,
    panics: Count,
    connections: Family<ListenerLabels, Level64>,
    accepted: Family<ListenerLabels, Count>,
    refused: Family<RefusalLabels, Count>,
    certificate_end: Family<ListenerLabels, Seconds>,
    process: Process,
}

/// What a listener has counted.
#[derive(Clone, Copy, Debug)]
pub struct ListenerCounts {
    /// Connections open now.
    pub active: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections refused or closed, by why.
    pub refused: [(Refusal, u64); Refusal::ALL.len()],
    /// When its certificate ends, in seconds since the epoch.
    pub certificate_end: Option<u64>,
}

/// What the feed shows now.
#[derive(Clone, Copy, Debug, Default)]
pub struct FeedLevels {
    /// How many watch.
    pub watchers: usize,
    /// How many revisions the last of them is behind.
    pub lag: u64,
    /// Streams that were cut because they took nothing.
    pub cut: u64,
    /// Times that a stream was behind the ring and read the store.
    pub reread: u64,
    /// Revocations that are live.
    pub live: usize,
    /// The newest revision.
    pub revision: u64,
    /// How many replicas share the store.
    pub replicas: usize,
    /// How far the clock here is ahead of those of the others, in seconds.
    pub clock_ahead: f64,
    /// How far this replica can vouch, in seconds since the epoch.
    pub as_of: f64,
    /// Entries in the ring.
    pub ring_entries: usize,
    /// About how many bytes the ring takes.
    pub ring_bytes: usize,
}

/// What the store shows now.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoreLevels {
    /// State changes made durable.
    pub commits: u64,
    /// Groups they were made durable in.
    pub groups: u64,
    /// State changes that wait.
    pub queued: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Bytes free on its disk.
    pub free_bytes: u64,
    /// Whether it refuses writes because space is low.
    pub low_space: bool,
}

impl Metrics {
    /// Registers every recorder under `avouch_`, and what is known of the process under `process_`.
    /// What has a known set of labels starts at zero, so that a rate sees the first event.
    pub fn register(registry: &mut Registry) -> Self {
        let process = Process::register(registry);
        let r = &mut Register::avouch(registry);
        let metrics = Self {
            requests: r.number("rpc_requests", "Calls that ended, by method and code"),
            latency: r.made_in_seconds(
                "rpc_latency",
                "Time of a call until the head of its answer, by method and code",
                Family::new_with_constructor(latency as fn() -> Histogram),
            ),
            in_flight: r
                .number("rpc_in_flight", "Calls that are going on, streams included, by method"),
            panics: r.number("panics", "Calls that ended in a panic"),
            hashes: r.number("password_hashes", "Passwords hashed or turned away"),
            hashes_queued: r.number("password_hashes_queued", "Hashes that wait"),
            hashes_running: r.number("password_hashes_running", "Hashes that run"),
            hash: HashRecorder::register(r),
            store_commits: r.number("store_commits", "State changes made durable"),
            store_groups: r.number("store_groups", "Flushes, each for a group of changes"),
            store: StoreRecorder::register(r),
            store_queued: r.number("store_queued", "State changes that wait"),
            store_disk: r.bytes("store_disk", "Size of the store"),
            store_free: r.bytes("store_free", "Room left on the disk of the store"),
            store_low: r
                .number("store_low_space", "1 while writes are refused because space is low"),
            sweeps: r.number("sweeps", "Sweeps of what is over, by result"),
            swept: r.number("swept_records", "Records that sweeps removed, by kind"),
            sweep_duration: r.made_in_seconds("sweep_duration", "Time of one sweep", latency()),
            sessions: r.made(
                "sessions",
                "Sessions in the store, with those that are over and not swept yet, as counted of late; \
                 NaN before that",
                Gauge::default(),
            ),
            sessions_opened: r.number("sessions_opened", "Logins that opened a session"),
            rotations: r.number("refreshes", "Refresh tokens accepted, by how"),
            reuses: r.number("refresh_reuses", "Spent refresh tokens presented, by cause"),
            introspections: r.number("introspections", "Introspections, by verdict"),
            keys: r.number("signing_keys", "Signing keys, by state"),
            audit_dropped: r.number("audit_dropped_events", "Audit events lost"),
            audit_down: r.number(
                "audit_down",
                "1 while the audit log cannot be written and administrators change nothing",
            ),
            revocations_live: r.number(
                "revocations_live",
                "Revocations held because a token that they concern may be alive",
            ),
            feed: FeedRecorder::register(r),
            watchers: r.number("watchers", "Streams of revocations open now"),
            watcher_lag: r.number(
                "watcher_lag_revisions",
                "Revisions that the watcher furthest behind is behind",
            ),
            watchers_cut: r.number("watchers_cut", "Streams ended because they took nothing"),
            watcher_reads: r.number(
                "watcher_store_reads",
                "Times that a stream was behind the ring and read the store",
            ),
            feed_revision: r.number("feed_revision", "The newest revision"),
            feed_as_of: r.seconds(
                "feed_as_of_timestamp",
                "Until when this server vouches that its streams show every revocation",
            ),
            feed_ring_entries: r.number("feed_ring_entries", "Events in the ring"),
            feed_ring_bytes: r.bytes("feed_ring", "Memory of the ring, about"),
            replicas: r.number(
                "replicas",
                "Replicas that share the store, this one among them; 1 where there can be no other",
            ),
            clock_ahead: r.seconds(
                "clock_ahead",
                "How far the clock is ahead of the middle one of the other replicas; below 0, behind",
            ),
            connections: r.number("connections", "Connections open now, by listener"),
            accepted: r.number("connections_accepted", "Connections accepted, by listener"),
            refused: r.number(
                "connections_refused",
                "Connections refused, or closed for what the peer did, by listener and reason",
            ),
            certificate_end: r.seconds(
                "tls_certificate_not_after_timestamp",
                "When the certificate of a listener ends; 0 without one",
            ),
            process,
        };
        metrics.start_at_zero();
        metrics
    }

    fn start_at_zero(&self) {
        // Nobody has counted, which is no store without sessions.
        self.sessions.set(f64::NAN);
        for method in Method::ALL {
            drop(self.requests.get_or_create(&RpcLabels { method, code: Code::Ok }));
            drop(self.latency.get_or_create(&RpcLabels { method, code: Code::Ok }));
            drop(self.in_flight.get_or_create(&MethodLabels { method }));
        }
        for outcome in HashOutcome::ALL {
            drop(self.hashes.get_or_create(&OutcomeLabels { outcome }));
        }
        for kind in Rotation::ALL {
            drop(self.rotations.get_or_create(&RotationLabels { kind }));
        }
        for cause in ReuseCause::ALL {
            drop(self.reuses.get_or_create(&CauseLabels { cause }));
        }
        for level in Level::ALL {
            drop(self.feed.revocations.get_or_create(&LevelLabels { level }));
        }
        for verdict in Verdict::ALL {
            drop(self.introspections.get_or_create(&VerdictLabels { verdict }));
        }
        for state in KeyState::ALL {
            drop(self.keys.get_or_create(&KeyStateLabels { state }));
        }
        for result in Outcome::ALL {
            drop(self.sweeps.get_or_create(&ResultLabels { result }));
        }
        for kind in Swept::ALL {
            drop(self.swept.get_or_create(&SweptLabels { kind }));
        }
    }

    /// What the hashing threads record in.
    pub fn hash_recorder(&self) -> HashRecorder {
        self.hash.clone()
    }

    /// What the store records in.
    pub fn store_recorder(&self) -> StoreRecorder {
        self.store.clone()
    }

    /// What the feed records in.
    pub fn feed_recorder(&self) -> FeedRecorder {
        self.feed.clone()
    }

    /// A call began.
    pub fn rpc_began(&self, method: Method) {
        self.in_flight.get_or_create(&MethodLabels { method }).inc();
    }

    /// A call that began ended with `code`, its head sent after `latency`.
    pub fn rpc(&self, method: Method, code: Code, latency: Duration) {
        let labels = RpcLabels { method, code };
        self.requests.get_or_create(&labels).inc();
        self.latency.get_or_create(&labels).observe(latency.as_secs_f64());
        self.in_flight.get_or_create(&MethodLabels { method }).dec();
    }

    /// So many passwords had this outcome so far.
    pub fn hashes(&self, outcome: HashOutcome, total: u64) {
        raise(&self.hashes.get_or_create(&OutcomeLabels { outcome }), total);
    }

    /// How many hashes wait and run now.
    pub fn hash_pool(&self, queued: usize, running: usize) {
        self.hashes_queued.set(as_gauge(queued as u64));
        self.hashes_running.set(as_gauge(running as u64));
    }

    /// What the store shows now.
    pub fn store(&self, levels: StoreLevels) {
        raise(&self.store_commits, levels.commits);
        raise(&self.store_groups, levels.groups);
        self.store_queued.set(as_gauge(levels.queued));
        self.store_disk.set(as_gauge(levels.disk_bytes));
        self.store_free.set(as_gauge(levels.free_bytes));
        self.store_low.set(i64::from(levels.low_space));
    }

    /// So many sessions are in the store.
    pub fn sessions(&self, count: u64) {
        self.sessions.set(as_float(count));
    }

    /// A login opened a session.
    pub fn session_opened(&self) {
        self.sessions_opened.inc();
    }

    /// A refresh token was accepted.
    pub fn refreshed(&self, kind: Rotation) {
        self.rotations.get_or_create(&RotationLabels { kind }).inc();
    }

    /// A spent refresh token was presented.
    pub fn reused(&self, cause: ReuseCause) {
        self.reuses.get_or_create(&CauseLabels { cause }).inc();
    }

    /// What the feed shows now.
    pub fn feed(&self, levels: FeedLevels) {
        self.watchers.set(as_gauge(levels.watchers as u64));
        self.watcher_lag.set(as_gauge(levels.lag));
        raise(&self.watchers_cut, levels.cut);
        raise(&self.watcher_reads, levels.reread);
        self.revocations_live.set(as_gauge(levels.live as u64));
        self.feed_revision.set(as_gauge(levels.revision));
        self.feed_as_of.set(levels.as_of);
        self.feed_ring_entries.set(as_gauge(levels.ring_entries as u64));
        self.feed_ring_bytes.set(as_gauge(levels.ring_bytes as u64));
        self.replicas.set(as_gauge(levels.replicas as u64));
        self.clock_ahead.set(levels.clock_ahead);
    }

    /// A token was asked about.
    pub fn introspected(&self, verdict: Verdict) {
        self.introspections.get_or_create(&VerdictLabels { verdict }).inc();
    }

    /// How many signing keys are in `state` now.
    pub fn keys(&self, state: KeyState, count: usize) {
        self.keys.get_or_create(&KeyStateLabels { state }).set(as_gauge(count as u64));
    }

    /// A sweep ended after `took`.
    pub fn sweep_ended(&self, result: Outcome, took: Duration) {
        self.sweeps.get_or_create(&ResultLabels { result }).inc();
        self.sweep_duration.observe(took.as_secs_f64());
    }

    /// A sweep removed records.
    pub fn swept(&self, kind: Swept, count: u32) {
        self.swept.get_or_create(&SweptLabels { kind }).inc_by(u64::from(count));
    }

    /// How many audit events are lost so far, and whether more would be now.
    pub fn audit(&self, lost: u64, down: bool) {
        raise(&self.audit_dropped, lost);
        self.audit_down.set(down.into());
    }

    /// How many calls ended in a panic so far.
    pub fn panics(&self, total: u64) {
        raise(&self.panics, total);
    }

    /// What a listener has counted.
    pub fn listener(&self, listener: Listener, counts: &ListenerCounts) {
        let labels = ListenerLabels { listener };
        self.connections.get_or_create(&labels).set(as_gauge(counts.active));
        raise(&self.accepted.get_or_create(&labels), counts.accepted);
        for (reason, total) in counts.refused {
            raise(&self.refused.get_or_create(&RefusalLabels { listener, reason }), total);
        }
        let end = counts.certificate_end.unwrap_or_default();
        self.certificate_end.get_or_create(&labels).set(as_float(end));
    }

    /// Reads what the system knows of this process.
    pub fn process(&self) {
        self.process.read();
    }
}

fn as_gauge(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53, beyond every number here")]
const fn as_float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_was_recorded_and_starts_at_zero() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.rpc_began(Method::Refresh);
        metrics.rpc_began(Method::Refresh);
        metrics.rpc(
            Method::from_path("/avouch.v1.IdentityService/Refresh"),
            Code::Ok,
            Duration::from_millis(3),
        );
        metrics.rpc(Method::from_path("/made.up/Path"), Code::from_number(12), Duration::ZERO);
        metrics.rpc(Method::Revoke, Code::from_number(99), Duration::ZERO);
        metrics.store(StoreLevels { commits: 7, ..StoreLevels::default() });
        metrics.store(StoreLevels { commits: 6, ..StoreLevels::default() });
        metrics.store_recorder().group(3, Duration::from_micros(900));
        metrics.reused(ReuseCause::Replay);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "avouch_rpc_requests_total{method=\"Refresh\",code=\"OK\"} 1",
            "avouch_rpc_requests_total{method=\"Authenticate\",code=\"OK\"} 0",
            "avouch_rpc_requests_total{method=\"other\",code=\"UNIMPLEMENTED\"} 1",
            "avouch_rpc_requests_total{method=\"Revoke\",code=\"UNKNOWN\"} 1",
            "avouch_rpc_latency_seconds_bucket{le=\"0.005\",method=\"Refresh\",code=\"OK\"} 1",
            "avouch_rpc_in_flight{method=\"Refresh\"} 1",
            "avouch_store_commits_total 7",
            "avouch_store_group_changes_bucket{le=\"4.0\"} 1",
            "avouch_refresh_reuses_total{cause=\"replay\"} 1",
            "avouch_refresh_reuses_total{cause=\"late_retry\"} 0",
            "avouch_revocations_total{level=\"session\"} 0",
            "avouch_build_info{version=",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }
}
