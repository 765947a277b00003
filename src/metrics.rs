//! What is counted: typed recorders over a registry that is passed in. No label holds an id, so the
//! number of series is bounded whatever callers send. Knows nothing else of ours.

pub mod agent;
mod labels;
pub mod sidecar;

pub use labels::{Code, HashOutcome, KeyState, Level, Method, ReuseCause, Rotation, Verdict};

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use labels::{
    CauseLabels, KeyStateLabels, LevelLabels, MethodLabels, OutcomeLabels, RotationLabels,
    RpcLabels, VerdictLabels,
};

type Count = Counter<u64, AtomicU64>;
type Level64 = Gauge<i64, AtomicI64>;

/// Seconds: from a signature check to a call that waits for a hash in a storm.
const LATENCY_BUCKETS: [f64; 14] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

fn latency() -> Histogram {
    Histogram::new(LATENCY_BUCKETS)
}

/// Every recorder. Clones share the counts.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<RpcLabels, Count>,
    latency: Family<MethodLabels, Histogram, fn() -> Histogram>,
    hashes: Family<OutcomeLabels, Count>,
    hashes_queued: Level64,
    hashes_running: Level64,
    store_commits: Count,
    store_groups: Count,
    store_sync: Histogram,
    store_disk: Level64,
    store_queued: Level64,
    sessions_opened: Count,
    rotations: Family<RotationLabels, Count>,
    reuses: Family<CauseLabels, Count>,
    revocations: Family<LevelLabels, Count>,
    watchers: Level64,
    introspections: Family<VerdictLabels, Count>,
    keys: Family<KeyStateLabels, Level64>,
    audit_dropped: Level64,
    panics: Count,
}

impl Metrics {
    /// Registers every recorder under `avouch_`. What has a known set of labels starts at zero, so
    /// that a rate sees the first event.
    pub fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("avouch");
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The program", build);
        let metrics = Self {
            requests: Family::default(),
            latency: Family::new_with_constructor(latency as fn() -> Histogram),
            hashes: Family::default(),
            hashes_queued: Gauge::default(),
            hashes_running: Gauge::default(),
            store_commits: Counter::default(),
            store_groups: Counter::default(),
            store_sync: latency(),
            store_disk: Gauge::default(),
            store_queued: Gauge::default(),
            sessions_opened: Counter::default(),
            rotations: Family::default(),
            reuses: Family::default(),
            revocations: Family::default(),
            watchers: Gauge::default(),
            introspections: Family::default(),
            keys: Family::default(),
            audit_dropped: Gauge::default(),
            panics: Counter::default(),
        };
        metrics.register_each(registry);
        metrics.start_at_zero();
        metrics
    }

    fn register_each(&self, r: &mut Registry) {
        r.register("rpc_requests", "Calls that ended, by method and code", self.requests.clone());
        r.register_with_unit(
            "rpc_latency",
            "Time of a call until the head of its answer",
            Unit::Seconds,
            self.latency.clone(),
        );
        r.register("password_hashes", "Passwords hashed or turned away", self.hashes.clone());
        r.register("password_hashes_queued", "Hashes that wait", self.hashes_queued.clone());
        r.register("password_hashes_running", "Hashes that run", self.hashes_running.clone());
        r.register("store_commits", "State changes made durable", self.store_commits.clone());
        r.register(
            "store_groups",
            "Flushes, each for a group of changes",
            self.store_groups.clone(),
        );
        r.register_with_unit(
            "store_sync",
            "Time of one flush to the disk",
            Unit::Seconds,
            self.store_sync.clone(),
        );
        r.register_with_unit(
            "store_disk",
            "Size of the store",
            Unit::Bytes,
            self.store_disk.clone(),
        );
        r.register("store_queued", "State changes that wait", self.store_queued.clone());
        r.register("sessions_opened", "Logins that opened a session", self.sessions_opened.clone());
        r.register("refreshes", "Refresh tokens accepted, by how", self.rotations.clone());
        r.register(
            "refresh_reuses",
            "Spent refresh tokens presented, by cause",
            self.reuses.clone(),
        );
        r.register("revocations", "Revocations, by level", self.revocations.clone());
        r.register("watchers", "Streams of revocations open now", self.watchers.clone());
        r.register("introspections", "Introspections, by verdict", self.introspections.clone());
        r.register("signing_keys", "Signing keys, by state", self.keys.clone());
        r.register("audit_dropped_events", "Audit events lost", self.audit_dropped.clone());
        r.register("panics", "Calls that ended in a panic", self.panics.clone());
    }

    fn start_at_zero(&self) {
        for method in Method::ALL {
            drop(self.requests.get_or_create(&RpcLabels { method, code: Code::Ok }));
            drop(self.latency.get_or_create(&MethodLabels { method }));
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
            drop(self.revocations.get_or_create(&LevelLabels { level }));
        }
        for verdict in Verdict::ALL {
            drop(self.introspections.get_or_create(&VerdictLabels { verdict }));
        }
        for state in KeyState::ALL {
            drop(self.keys.get_or_create(&KeyStateLabels { state }));
        }
    }

    /// A call ended with `code`, its head sent after `latency`.
    pub fn rpc(&self, method: Method, code: Code, latency: Duration) {
        self.requests.get_or_create(&RpcLabels { method, code }).inc();
        self.latency.get_or_create(&MethodLabels { method }).observe(latency.as_secs_f64());
    }

    /// `count` more passwords were hashed or turned away.
    pub fn hashes(&self, outcome: HashOutcome, count: u64) {
        self.hashes.get_or_create(&OutcomeLabels { outcome }).inc_by(count);
    }

    /// How many hashes wait and run now.
    pub fn hash_pool(&self, queued: usize, running: usize) {
        self.hashes_queued.set(as_gauge(queued as u64));
        self.hashes_running.set(as_gauge(running as u64));
    }

    /// A group of `commits` changes was made durable by one flush that took `sync`.
    pub fn store_group(&self, commits: u64, sync: Duration) {
        self.store_commits.inc_by(commits);
        self.store_groups.inc();
        self.store_sync.observe(sync.as_secs_f64());
    }

    /// How large the store is and how many changes wait now.
    pub fn store(&self, disk_bytes: u64, queued: u64) {
        self.store_disk.set(as_gauge(disk_bytes));
        self.store_queued.set(as_gauge(queued));
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

    /// Something was revoked.
    pub fn revoked(&self, level: Level) {
        self.revocations.get_or_create(&LevelLabels { level }).inc();
    }

    /// How many watchers there are now.
    pub fn watchers(&self, count: usize) {
        self.watchers.set(as_gauge(count as u64));
    }

    /// A token was asked about.
    pub fn introspected(&self, verdict: Verdict) {
        self.introspections.get_or_create(&VerdictLabels { verdict }).inc();
    }

    /// How many signing keys are in `state` now.
    pub fn keys(&self, state: KeyState, count: usize) {
        self.keys.get_or_create(&KeyStateLabels { state }).set(as_gauge(count as u64));
    }

    /// How many audit events are lost so far.
    pub fn audit_dropped(&self, count: u64) {
        self.audit_dropped.set(as_gauge(count));
    }

    /// A call ended in a panic.
    pub fn panicked(&self) {
        self.panics.inc();
    }
}

fn as_gauge(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_was_recorded_and_starts_at_zero() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.rpc(
            Method::from_path("/avouch.v1.IdentityService/Refresh"),
            Code::Ok,
            Duration::from_millis(3),
        );
        metrics.rpc(Method::from_path("/made.up/Path"), Code::from_number(12), Duration::ZERO);
        metrics.rpc(Method::Revoke, Code::from_number(99), Duration::ZERO);
        metrics.store_group(7, Duration::from_micros(900));
        metrics.reused(ReuseCause::Replay);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "avouch_rpc_requests_total{method=\"Refresh\",code=\"OK\"} 1",
            "avouch_rpc_requests_total{method=\"Authenticate\",code=\"OK\"} 0",
            "avouch_rpc_requests_total{method=\"other\",code=\"UNIMPLEMENTED\"} 1",
            "avouch_rpc_requests_total{method=\"Revoke\",code=\"UNKNOWN\"} 1",
            "avouch_rpc_latency_seconds_bucket{le=\"0.005\",method=\"Refresh\"} 1",
            "avouch_store_commits_total 7",
            "avouch_refresh_reuses_total{cause=\"replay\"} 1",
            "avouch_refresh_reuses_total{cause=\"late_retry\"} 0",
            "avouch_build_info{version=",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }
}
