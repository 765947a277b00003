//! What a node agent tells of itself.

use std::time::Duration;

use prometheus_client::registry::Registry;

use super::register::Register;
use super::{Count, Level64, Seconds, as_gauge, raise};

/// How an agent is doing, as it is told before each scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct AgentLevels {
    /// Whether a complete set is served.
    pub synced: bool,
    /// Whether the stream from the server is there.
    pub connected: bool,
    /// How long ago the moment was up to which all revocations are known.
    pub age: Option<Duration>,
    /// How long the newest revocation took from its commit until it was here.
    pub lag: Option<Duration>,
    /// The revision up to which everything is passed on.
    pub revision: u64,
    /// How many revocations are held.
    pub entries: usize,
    /// What they take.
    pub bytes: usize,
    /// Who watches here.
    pub neighbours: usize,
    /// How many revisions the last of them is behind.
    pub behind: u64,
    /// Events held for those who resume.
    pub ring_entries: usize,
    /// What they take.
    pub ring_bytes: usize,
    /// Neighbours cut so far because they took nothing.
    pub cut: u64,
    /// Sets fetched whole so far.
    pub snapshots: u64,
}

/// The recorders of a node agent.
#[derive(Debug)]
pub struct AgentMetrics {
    synced: Level64,
    connected: Level64,
    age: Seconds,
    lag: Seconds,
    revision: Level64,
    entries: Level64,
    bytes: Level64,
    neighbours: Level64,
    behind: Level64,
    ring_entries: Level64,
    ring_bytes: Level64,
    cut: Count,
    snapshots: Count,
}

impl AgentMetrics {
    /// Registers every recorder under `avouch_agent_`, at zero.
    pub fn register(registry: &mut Registry) -> Self {
        let mut r = Register::avouch(registry).under("agent");
        Self {
            synced: r.number("synced", "1 while a complete set is served"),
            connected: r
                .number("upstream_connected", "1 while the stream from the server is there"),
            age: r.seconds("age", "Time since the moment up to which all revocations are known"),
            lag: r
                .seconds("lag", "Time of the newest revocation from its commit until it was here"),
            revision: r
                .number("applied_revision", "The revision up to which everything is passed on"),
            entries: r.number("entries", "Revocations held"),
            bytes: r.bytes("view", "Memory of the revocations held"),
            neighbours: r.number("neighbours", "Streams of neighbours open now"),
            behind: r.number("neighbours_behind", "Revisions that the last neighbour is behind"),
            cut: r.number("neighbours_cut", "Neighbours cut, as they took nothing"),
            ring_entries: r.number("ring_entries", "Events held for neighbours that resume"),
            ring_bytes: r.bytes("ring", "Memory of the events held for neighbours"),
            snapshots: r.number("snapshots", "Sets fetched whole"),
        }
    }

    /// How the agent is doing now.
    pub fn report(&self, levels: &AgentLevels) {
        self.synced.set(levels.synced.into());
        self.connected.set(levels.connected.into());
        // Nothing is known before the first set, which is no age of zero.
        self.age.set(levels.age.map_or(f64::INFINITY, |age| age.as_secs_f64()));
        self.lag.set(levels.lag.unwrap_or_default().as_secs_f64());
        self.revision.set(as_gauge(levels.revision));
        self.entries.set(as_gauge(levels.entries as u64));
        self.bytes.set(as_gauge(levels.bytes as u64));
        self.neighbours.set(as_gauge(levels.neighbours as u64));
        self.behind.set(as_gauge(levels.behind));
        self.ring_entries.set(as_gauge(levels.ring_entries as u64));
        self.ring_bytes.set(as_gauge(levels.ring_bytes as u64));
        raise(&self.cut, levels.cut);
        raise(&self.snapshots, levels.snapshots);
    }
}
