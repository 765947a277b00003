//! The numbers on the screen: what two looks at the metrics say of the time between them.

use serde_json::{Value, json};
use tokio::time::Instant;

use super::sample::Sample;

/// One method.
pub(super) struct Call {
    pub(super) method: String,
    pub(super) rate: f64,
    pub(super) not_ok: f64,
    pub(super) in_flight: f64,
    pub(super) p50: Option<f64>,
    pub(super) p99: Option<f64>,
}

/// Everything that is shown. Rates are per second, times are milliseconds.
pub(super) struct Board {
    pub(super) calls: Vec<Call>,
    pub(super) rotated: f64,
    pub(super) retried: f64,
    /// As they were counted last; none before that.
    pub(super) sessions: Option<f64>,
    /// Since the start of the server.
    pub(super) reuses: f64,
    pub(super) hashes: f64,
    pub(super) hashes_shed: f64,
    pub(super) hashes_queued: f64,
    pub(super) hashes_running: f64,
    pub(super) commits: f64,
    pub(super) commit_p99: Option<f64>,
    pub(super) store_queued: f64,
    pub(super) store_bytes: f64,
    pub(super) watchers: f64,
    pub(super) lag: f64,
    pub(super) frames: f64,
    pub(super) revoked: f64,
    pub(super) live: f64,
    pub(super) propagation_p50: Option<f64>,
    pub(super) propagation_p99: Option<f64>,
    pub(super) cpu: f64,
    pub(super) resident_bytes: f64,
    /// What somebody should look at, in words.
    pub(super) warnings: Vec<&'static str>,
}

/// A stream that is told nothing fresh for this long, in seconds, is frozen.
const FROZEN_AFTER: f64 = 0.9;

/// Two looks.
struct Span<'a> {
    before: &'a Sample,
    now: &'a Sample,
    seconds: f64,
}

impl Span<'_> {
    /// A counter that went back belongs to a server that has begun anew.
    fn rate(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let more = self.now.sum(name, labels) - self.before.sum(name, labels);
        more.max(0.0) / self.seconds
    }

    /// In milliseconds; none when nothing was measured meanwhile.
    fn quantile(&self, part: f64, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let before = self.before.buckets(name, labels);
        let new = self.now.buckets(name, labels).into_iter().map(|(bound, count)| {
            let known = before.iter().find(|(other, _)| *other == bound);
            (bound, (count - known.map_or(0.0, |(_, count)| *count)).max(0.0))
        });
        let new: Vec<(f64, f64)> = new.collect();
        let all = new.last()?.1;
        let wanted = all * part;
        let (mut lower, mut below) = (0.0, 0.0);
        for (bound, count) in new {
            if count >= wanted && count > below {
                if bound.is_infinite() {
                    return Some(lower * 1000.0);
                }
                let within = (wanted - below) / (count - below);
                return Some((lower + (bound - lower) * within) * 1000.0);
            }
            (lower, below) = (bound, count);
        }
        None
    }
}

impl Span<'_> {
    fn warnings(&self) -> Vec<&'static str> {
        const AS_OF: &str = "avouch_feed_as_of_timestamp_seconds";
        let level = |name| self.now.sum(name, &[]);
        // By its own clock alone: the server's may say something else.
        let frozen = self.seconds >= FROZEN_AFTER
            && level(AS_OF) > 0.0
            && self.now.sum(AS_OF, &[]) <= self.before.sum(AS_OF, &[]);
        let key = [("state", "active")];
        let keyless = !self.now.values("avouch_signing_keys", "state").is_empty()
            && self.now.sum("avouch_signing_keys", &key) == 0.0;
        [
            (frozen, "the streams are told nothing fresh: the store proves no contact"),
            (level("avouch_store_low_space") > 0.0, "space is low: nobody logs in or refreshes"),
            (level("avouch_audit_down") > 0.0, "the audit log is down: nothing is administered"),
            (keyless, "no key signs: no tokens are issued"),
        ]
        .into_iter()
        .filter_map(|(is_so, what)| is_so.then_some(what))
        .collect()
    }
}

impl Board {
    pub(super) fn between(
        (before, then): &(Sample, Instant),
        (now, at): &(Sample, Instant),
    ) -> Self {
        const REQUESTS: &str = "avouch_rpc_requests_total";
        const LATENCY: &str = "avouch_rpc_latency_seconds_bucket";
        const COMMIT: &str = "avouch_store_commit_seconds_bucket";
        const PROPAGATION: &str = "avouch_revocation_propagation_seconds_bucket";
        const HASHES: &str = "avouch_password_hashes_total";
        let seconds = at.saturating_duration_since(*then).as_secs_f64().max(0.001);
        let span = Span { before, now, seconds };
        let mut calls = Vec::new();
        for method in now.values(REQUESTS, "method") {
            let of = [("method", method.as_str())];
            let in_flight = now.sum("avouch_rpc_in_flight", &of);
            if now.sum(REQUESTS, &of) == 0.0 && in_flight == 0.0 {
                continue;
            }
            let rate = span.rate(REQUESTS, &of);
            let ok = span.rate(REQUESTS, &[of[0], ("code", "OK")]);
            calls.push(Call {
                rate,
                not_ok: (rate - ok).max(0.0),
                in_flight,
                p50: span.quantile(0.5, LATENCY, &of),
                p99: span.quantile(0.99, LATENCY, &of),
                method,
            });
        }
        calls.sort_by(|a, b| b.rate.total_cmp(&a.rate));
        let refreshes = |kind| span.rate("avouch_refreshes_total", &[("kind", kind)]);
        let hashes = |outcome| span.rate(HASHES, &[("outcome", outcome)]);
        let level = |name| now.sum(name, &[]);
        Self {
            calls,
            rotated: refreshes("rotated"),
            retried: refreshes("retried"),
            sessions: Some(level("avouch_sessions")).filter(|count| count.is_finite()),
            reuses: level("avouch_refresh_reuses_total"),
            hashes: hashes("done"),
            hashes_shed: hashes("shed") + hashes("shed_source"),
            hashes_queued: level("avouch_password_hashes_queued"),
            hashes_running: level("avouch_password_hashes_running"),
            commits: span.rate("avouch_store_commits_total", &[]),
            commit_p99: span.quantile(0.99, COMMIT, &[]),
            store_queued: level("avouch_store_queued"),
            store_bytes: level("avouch_store_disk_bytes"),
            watchers: level("avouch_watchers"),
            lag: level("avouch_watcher_lag_revisions"),
            frames: span.rate("avouch_watcher_frames_total", &[]),
            revoked: span.rate("avouch_revocations_total", &[]),
            live: level("avouch_revocations_live"),
            propagation_p50: span.quantile(0.5, PROPAGATION, &[]),
            propagation_p99: span.quantile(0.99, PROPAGATION, &[]),
            cpu: span.rate("process_cpu_seconds_total", &[]),
            resident_bytes: level("process_resident_memory_bytes"),
            warnings: span.warnings(),
        }
    }

    /// For pipes.
    pub(super) fn json(&self) -> Value {
        let calls: Vec<Value> = self
            .calls
            .iter()
            .map(|call| {
                json!({
                    "method": call.method,
                    "per_second": short(call.rate),
                    "not_ok_per_second": short(call.not_ok),
                    "in_flight": whole(call.in_flight),
                    "p50_ms": call.p50.map(short),
                    "p99_ms": call.p99.map(short),
                })
            })
            .collect();
        json!({
            "calls": calls,
            "refreshes": {
                "rotated_per_second": short(self.rotated),
                "retried_per_second": short(self.retried),
                "reuses": whole(self.reuses),
            },
            "sessions": self.sessions.map(whole),
            "passwords": {
                "hashed_per_second": short(self.hashes),
                "shed_per_second": short(self.hashes_shed),
                "queued": whole(self.hashes_queued),
                "running": whole(self.hashes_running),
            },
            "store": {
                "changes_per_second": short(self.commits),
                "change_p99_ms": self.commit_p99.map(short),
                "queued": whole(self.store_queued),
                "bytes": whole(self.store_bytes),
            },
            "watchers": {
                "open": whole(self.watchers),
                "lag": whole(self.lag),
                "frames_per_second": short(self.frames),
            },
            "revocations": {
                "per_second": short(self.revoked),
                "live": whole(self.live),
                "propagation_p50_ms": self.propagation_p50.map(short),
                "propagation_p99_ms": self.propagation_p99.map(short),
            },
            "process": { "cores": short(self.cpu), "resident_bytes": whole(self.resident_bytes) },
            "warnings": self.warnings,
        })
    }

    /// For eyes: short enough for 80 columns.
    pub(super) fn lines(&self) -> Vec<String> {
        vec![
            format!(
                "watchers   {:.0} open, the last {:.0} revisions behind, {:.1} frames/s",
                self.watchers, self.lag, self.frames
            ),
            format!(
                "revoked    {:.1}/s, {:.0} live; to streams p50 {} p99 {}",
                self.revoked,
                self.live,
                millis(self.propagation_p50),
                millis(self.propagation_p99)
            ),
            format!(
                "tokens     {:.1} rotated/s, {:.1} retried/s; {:.0} reused; {} sessions",
                self.rotated,
                self.retried,
                self.reuses,
                self.sessions.map_or_else(|| "-".to_owned(), |count| format!("{count:.0}"))
            ),
            format!(
                "passwords  {:.1} hashed/s, {:.1} shed/s; {:.0} waiting, {:.0} running",
                self.hashes, self.hashes_shed, self.hashes_queued, self.hashes_running
            ),
            format!(
                "store      {:.1} changes/s, p99 {}; {:.0} waiting, {} on disk",
                self.commits,
                millis(self.commit_p99),
                self.store_queued,
                mebibytes(self.store_bytes)
            ),
            format!("process    {:.2} cores, {}", self.cpu, mebibytes(self.resident_bytes)),
        ]
    }
}

pub(super) const HEADING: [&str; 6] = ["METHOD", "CALLS/S", "NOT OK/S", "NOW", "P50 MS", "P99 MS"];

impl Call {
    /// As one row below the heading.
    pub(super) fn row(&self) -> [String; 6] {
        let time =
            |time: Option<f64>| time.map_or_else(|| "-".to_owned(), |time| format!("{time:.2}"));
        [
            self.method.clone(),
            format!("{:.1}", self.rate),
            format!("{:.1}", self.not_ok),
            format!("{:.0}", self.in_flight),
            time(self.p50),
            time(self.p99),
        ]
    }
}

fn millis(time: Option<f64>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{time:.2} ms"))
}

fn mebibytes(bytes: f64) -> String {
    format!("{:.0} MiB", bytes / 1_048_576.0)
}

/// Thousandths are all that a rate or a quantile is good for.
fn short(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// A count, without a decimal point.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is a count")]
fn whole(number: f64) -> u64 {
    number.round() as u64
}
