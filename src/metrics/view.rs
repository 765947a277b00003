//! What everybody tells who follows the revocations: a sidecar and a node agent in the same words.

use std::time::Duration;

use super::register::Register;
use super::{Level64, Seconds, as_gauge};

/// How it is with the revocations that somebody holds, as it is told before each scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct ViewLevels {
    /// Whether a complete set has come.
    pub synced: bool,
    /// Whether the stream is there.
    pub connected: bool,
    /// How long ago the moment was up to which all revocations are known.
    pub age: Option<Duration>,
    /// How long the newest revocation took from its commit until it was in force here.
    pub lag: Option<Duration>,
    /// The revision up to which everything is in force.
    pub revision: u64,
    /// How many revocations are held.
    pub entries: usize,
    /// What they take, in bytes.
    pub bytes: usize,
}

/// The recorders of it.
#[derive(Debug)]
pub(super) struct ViewMetrics {
    synced: Level64,
    connected: Level64,
    age: Seconds,
    lag: Seconds,
    revision: Level64,
    entries: Level64,
    bytes: Level64,
}

impl ViewMetrics {
    pub(super) fn register(r: &mut Register<'_>) -> Self {
        Self {
            synced: r.number("view_synced", "1 once the set of revocations was complete"),
            connected: r.number("view_connected", "1 while the stream is there"),
            age: r
                .seconds("view_age", "Time since the moment up to which all revocations are known"),
            lag: r.seconds(
                "view_lag",
                "Time of the newest revocation from its commit until it was in force here",
            ),
            revision: r
                .number("applied_revision", "The revision up to which everything is in force"),
            entries: r.number("view_entries", "Revocations held"),
            bytes: r.bytes("view", "Memory of the revocations held"),
        }
    }

    pub(super) fn report(&self, levels: &ViewLevels) {
        self.synced.set(levels.synced.into());
        self.connected.set(levels.connected.into());
        // Nothing is known before the first set, which is no age of zero.
        self.age.set(levels.age.map_or(f64::INFINITY, |age| age.as_secs_f64()));
        self.lag.set(levels.lag.unwrap_or_default().as_secs_f64());
        self.revision.set(as_gauge(levels.revision));
        self.entries.set(as_gauge(levels.entries as u64));
        self.bytes.set(as_gauge(levels.bytes as u64));
    }
}
