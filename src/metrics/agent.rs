//! What a node agent tells of itself.

use prometheus_client::registry::Registry;

use super::register::Register;
use super::view::{ViewLevels, ViewMetrics};
use super::{Count, Level64, as_gauge, raise};

/// How an agent is doing, as it is told before each scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct AgentLevels {
    /// What it passes on.
    pub view: ViewLevels,
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
    view: ViewMetrics,
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
            view: ViewMetrics::register(&mut r),
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
        self.view.report(&levels.view);
        self.neighbours.set(as_gauge(levels.neighbours as u64));
        self.behind.set(as_gauge(levels.behind));
        self.ring_entries.set(as_gauge(levels.ring_entries as u64));
        self.ring_bytes.set(as_gauge(levels.ring_bytes as u64));
        raise(&self.cut, levels.cut);
        raise(&self.snapshots, levels.snapshots);
    }
}
