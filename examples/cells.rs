//! What cells would have to carry: 100 million live sessions over some cells, by the rules of
//! `docs/scale.md`. It simulates a design; avouch has one cell. The same seed gives the same table.
//!
//! ```sh
//! cargo run --release --example cells
//! cargo run --release --example cells -- --sessions 10000000 --cells 4 --seed 7
//! ```

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Live sessions in all.
    pub sessions: u64,
    /// Cells.
    pub cells: usize,
    /// Slots that the subjects' hashes fall into; a table gives each slot a cell.
    pub slots: usize,
    /// Tenants, which some deployments have: groups of subjects whose tokens only their own services take.
    pub tenants: usize,
    /// Days that a session lives on average.
    pub life_days: f64,
    /// The part of the live sessions that is in use at the busiest hour.
    pub active: f64,
    /// Seconds between two refreshes of a session that is in use.
    pub refresh_secs: f64,
    /// The part of the sessions that ends by a revocation.
    pub revoked: f64,
    /// How much busier the busiest hour is than the average.
    pub peak: f64,
    /// Sidecars.
    pub sidecars: u64,
    /// Sidecars on one node, which share an agent.
    pub per_node: u64,
    /// Seconds that an event of a session is kept.
    pub kept_secs: f64,
    /// What everything is drawn from.
    pub seed: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            sessions: 100_000_000,
            cells: 32,
            slots: 4096,
            tenants: 2_000,
            life_days: 10.0,
            active: 0.05,
            refresh_secs: 240.0,
            revoked: 0.1,
            peak: 3.0,
            sidecars: 20_000,
            per_node: 20,
            kept_secs: 1_300.0,
            seed: 1,
        }
    }
}

/// How sessions come to a cell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Placement {
    /// By the subject: its hash gives a slot, the table of slots a cell.
    BySubject,
    /// By the tenant: each tenant has one cell, the least loaded when it came.
    ByTenant,
}

/// What one placement makes of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Sessions in each cell.
    pub sessions: Vec<u64>,
    /// Rotations a second in the fullest cell, at the busiest hour.
    pub rotations: f64,
    /// Logins a second there.
    pub logins: f64,
    /// Revocations a second there.
    pub revocations: f64,
    /// Cells that a sidecar follows, on average.
    pub cells_followed: f64,
    /// Streams that a cell serves, when each sidecar has its own.
    pub streams: f64,
    /// The same, when each node has one agent.
    pub streams_of_agents: f64,
    /// Frames a second to one sidecar: heartbeats and events.
    pub frames: f64,
    /// Bytes a second to one sidecar.
    pub bytes: f64,
    /// Revocations that one sidecar holds.
    pub held: f64,
    /// The part of the sessions that stands still when the fullest cell is out.
    pub hit_sessions: f64,
    /// The part of the sidecars that miss news of some of their tokens then.
    pub hit_sidecars: f64,
}

/// A stream of random numbers (SplitMix64): the same seed, the same numbers, on every machine.
struct Random(u64);

impl Random {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below one.
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        (self.part() * bound as f64) as usize
    }
}

/// Bytes of one heartbeat and of one event on the wire, gRPC and HTTP/2 framing included.
const HEARTBEAT_BYTES: f64 = 60.0;
const EVENT_BYTES: f64 = 140.0;
/// Sessions of one subject at most: what `limits.max_sessions_per_subject` is for.
const PER_SUBJECT: f64 = 100.0;

/// How many sessions the next subject has: most have one or two, few have many (Pareto, 1.5).
fn of_subject(random: &mut Random) -> u64 {
    (1.0 / (1.0 - random.part()).powf(1.0 / 1.5)).min(PER_SUBJECT) as u64
}

/// The size of each tenant, in shares: a few have most of the people (Zipf).
fn tenants(plan: &Plan) -> Vec<f64> {
    (1..=plan.tenants).map(|rank| 1.0 / (rank as f64).powf(0.8)).collect()
}

/// Puts every session into its cell; for a placement by tenant also the cell of each tenant.
fn place(plan: &Plan, placement: Placement) -> (Vec<u64>, Vec<usize>) {
    let mut random = Random(plan.seed);
    let mut cells = vec![0_u64; plan.cells];
    match placement {
        Placement::BySubject => {
            let mut left = plan.sessions;
            while left > 0 {
                let sessions = of_subject(&mut random).min(left);
                // The slots are dealt out in turn.
                let slot = random.below(plan.slots);
                cells[slot % plan.cells] += sessions;
                left -= sessions;
            }
            (cells, Vec::new())
        }
        Placement::ByTenant => {
            let shares = tenants(plan);
            let all: f64 = shares.iter().sum();
            // They come in any order, each to the cell that is the least full by then.
            let mut order: Vec<usize> = (0..shares.len()).collect();
            for at in (1..order.len()).rev() {
                order.swap(at, random.below(at + 1));
            }
            let mut homes = vec![0; shares.len()];
            for tenant in order {
                let least = (0..cells.len()).min_by_key(|cell| cells[*cell]).unwrap_or(0);
                cells[least] += (plan.sessions as f64 * shares[tenant] / all) as u64;
                homes[tenant] = least;
            }
            (cells, homes)
        }
    }
}

/// Simulates a plan under one placement.
pub fn simulate(plan: &Plan, placement: Placement) -> Outcome {
    let (sessions, homes) = place(plan, placement);
    let all: u64 = sessions.iter().sum();
    let fullest = sessions.iter().copied().max().unwrap_or(0) as f64;
    let day = 86_400.0;
    let born = 1.0 / (plan.life_days * day) * plan.peak;
    let revocations = fullest * born * plan.revoked;
    // Half of the sidecars stand before services that everybody uses; the others belong to one tenant
    // each, as many as it has people.
    let mut random = Random(plan.seed ^ 0x5eed);
    let shares = tenants(plan);
    let total: f64 = shares.iter().sum();
    let out = (0..sessions.len()).max_by_key(|cell| sessions[*cell]).unwrap_or(0);
    let (mut followed, mut events, mut hit) = (0.0, 0.0, 0_u64);
    let mut nodes: Vec<BTreeSet<usize>> = Vec::new();
    for sidecar in 0..plan.sidecars {
        if sidecar % plan.per_node == 0 {
            nodes.push(BTreeSet::new());
        }
        let everybody = sidecar % 2 == 0;
        let mut at = random.part() * total;
        let tenant = shares.iter().position(|share| {
            at -= share;
            at <= 0.0
        });
        let tenant = tenant.unwrap_or(0);
        let seen_by: Vec<usize> = match (placement, everybody) {
            (Placement::ByTenant, false) => vec![homes[tenant]],
            _ => (0..plan.cells).collect(),
        };
        followed += seen_by.len() as f64;
        hit += u64::from(seen_by.contains(&out));
        // A filter by audience shows a sidecar of a tenant that tenant's revocations alone.
        let share = if everybody { 1.0 } else { shares[tenant] / total };
        events += all as f64 * born * plan.revoked * share;
        if let Some(node) = nodes.last_mut() {
            node.extend(seen_by);
        }
    }
    let sidecars = plan.sidecars as f64;
    let (followed, events) = (followed / sidecars, events / sidecars);
    let agents: usize = nodes.iter().map(BTreeSet::len).sum();
    Outcome {
        rotations: fullest * plan.active / plan.refresh_secs,
        logins: fullest * born,
        revocations,
        cells_followed: followed,
        streams: sidecars * followed / plan.cells as f64,
        streams_of_agents: agents as f64 / plan.cells as f64,
        frames: followed + events,
        bytes: followed * HEARTBEAT_BYTES + events * EVENT_BYTES,
        held: events * plan.kept_secs,
        hit_sessions: fullest / all as f64,
        hit_sidecars: hit as f64 / sidecars,
        sessions,
    }
}

/// How full the fullest of all cells is against the mean, so many days after one was added. New sessions
/// go where the slots now point; the old ones stay where they are until they end.
pub fn after_adding_one(plan: &Plan, days: f64) -> f64 {
    let before = plan.cells as f64;
    let gone = 1.0 - (-days / plan.life_days).exp();
    let old = (1.0 - gone) / before + gone / (before + 1.0);
    old * (before + 1.0)
}

/// The table.
pub fn report(plan: &Plan) -> String {
    let both = [Placement::BySubject, Placement::ByTenant].map(|it| simulate(plan, it));
    let mean = plan.sessions as f64 / plan.cells as f64;
    let fullest = |it: &Outcome| it.sessions.iter().copied().max().unwrap_or(0) as f64;
    type Row = (&'static str, fn(&Outcome) -> f64, usize);
    const ROWS: [Row; 11] = [
        ("rotations/s, fullest cell, peak", |it| it.rotations, 0),
        ("logins/s, fullest cell, peak", |it| it.logins, 1),
        ("revocations/s, fullest cell, peak", |it| it.revocations, 2),
        ("cells a sidecar follows", |it| it.cells_followed, 1),
        ("streams a cell serves, one a sidecar", |it| it.streams, 0),
        ("streams a cell serves, one a node", |it| it.streams_of_agents, 0),
        ("frames/s to a sidecar, peak", |it| it.frames, 1),
        ("bytes/s to a sidecar, peak", |it| it.bytes, 0),
        ("revocations a sidecar holds", |it| it.held, 0),
        ("% of sessions hit, fullest cell out", |it| it.hit_sessions * 100.0, 2),
        ("% of sidecars hit", |it| it.hit_sidecars * 100.0, 1),
    ];
    let mut out = String::new();
    // Writing to a text does not fail.
    let mut line = |text: String| _ = writeln!(out, "{text}");
    line(format!(
        "{} sessions, {} cells, {} slots, {} tenants, {} sidecars on {} nodes, seed {}",
        plan.sessions,
        plan.cells,
        plan.slots,
        plan.tenants,
        plan.sidecars,
        plan.sidecars.div_ceil(plan.per_node),
        plan.seed,
    ));
    line(format!("{:<40}{:>14}{:>14}", "", "by subject", "by tenant"));
    let mut row = |name: &str, value: &dyn Fn(&Outcome) -> f64, digits: usize| {
        let [subject, tenant] = both.each_ref().map(|it| format!("{:.*}", digits, value(it)));
        line(format!("{name:<40}{subject:>14}{tenant:>14}"));
    };
    row("sessions, fullest cell", &fullest, 0);
    row("fullest cell against the mean", &|it| fullest(it) / mean, 3);
    for (name, value, digits) in ROWS {
        row(name, &value, digits);
    }
    for days in [0.0, 5.0, 10.0, 30.0] {
        let name = format!("one cell added, after {days} days: fullest");
        row(&name, &|_| after_adding_one(plan, days), 3);
    }
    out
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut plan = Plan::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or(format!("{argument} needs a value"))?;
        match argument.as_str() {
            "--sessions" => plan.sessions = value.parse()?,
            "--cells" => plan.cells = value.parse()?,
            "--slots" => plan.slots = value.parse()?,
            "--tenants" => plan.tenants = value.parse()?,
            "--life-days" => plan.life_days = value.parse()?,
            "--active" => plan.active = value.parse()?,
            "--refresh-secs" => plan.refresh_secs = value.parse()?,
            "--revoked" => plan.revoked = value.parse()?,
            "--peak" => plan.peak = value.parse()?,
            "--sidecars" => plan.sidecars = value.parse()?,
            "--per-node" => plan.per_node = value.parse()?,
            "--seed" => plan.seed = value.parse()?,
            other => return Err(format!("no such flag: {other}").into()),
        }
    }
    if plan.cells == 0 || plan.slots < plan.cells || plan.tenants == 0 || plan.per_node == 0 {
        return Err(
            "there must be cells, tenants and nodes, and at least a slot for each cell".into()
        );
    }
    std::io::stdout().write_all(report(&plan).as_bytes())?;
    Ok(())
}
