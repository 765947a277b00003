//! The table, and the targets beneath it.

use std::fmt;

use crate::load::Phase;

const MIB: f64 = 1024.0 * 1024.0;

/// One line of the table.
pub(crate) struct Row {
    name: String,
    rate: f64,
    p50: f64,
    p99: f64,
    cpu: f64,
    /// By the RPC that does nothing.
    pub(crate) ratio: Option<f64>,
    /// Resident memory of the server after it.
    pub(crate) resident: Option<u64>,
}

impl Row {
    /// A line for this phase.
    pub(crate) fn new(name: String, phase: &Phase) -> Self {
        Self {
            name,
            rate: phase.rate(),
            p50: phase.percentile(0.5) / 1e3,
            p99: phase.percentile(0.99) / 1e3,
            cpu: phase.cpu_per_call(),
            ratio: None,
            resident: None,
        }
    }
}

/// Everything that is printed.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    notes: Vec<String>,
    targets: Vec<(String, String, bool)>,
}

impl Report {
    /// Adds a line to the table.
    pub(crate) fn row(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Adds a line beneath the table.
    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Adds a target, what came of it, and whether that is enough.
    pub(crate) fn target(&mut self, what: &str, came: String, reached: bool) {
        self.targets.push((what.to_owned(), came, reached));
    }

    /// Notes the sizes of requests and answers.
    pub(crate) fn sizes(&mut self, introspect: (usize, usize), refresh: (usize, usize)) {
        self.note(format!(
            "bytes asked and answered: Introspect {} and {}, Refresh {} and {}",
            introspect.0, introspect.1, refresh.0, refresh.1
        ));
    }

    /// Notes what signatures cost, in microseconds.
    pub(crate) fn signature(&mut self, check: f64, sign: f64) {
        self.note(format!(
            "ES256 alone: one check {check:.1} us, one signature {sign:.1} us of CPU"
        ));
    }
}

/// A size in bytes as MiB.
#[expect(clippy::cast_precision_loss, reason = "no memory here comes near 2^52 bytes")]
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<30} {:>8} {:>8} {:>8} {:>12} {:>10} {:>8}",
            "", "calls/s", "p50 ms", "p99 ms", "CPU us/call", "x nothing", "RSS MiB"
        )?;
        for row in &self.rows {
            let ratio = row.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
            let resident = row.resident.map(|bytes| format!("{:.0}", mib(bytes)));
            writeln!(
                f,
                "{:<30} {:>8.0} {:>8.2} {:>8.2} {:>12.1} {:>10} {:>8}",
                row.name,
                row.rate,
                row.p50,
                row.p99,
                row.cpu,
                ratio,
                resident.unwrap_or_default()
            )?;
        }
        writeln!(f)?;
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        writeln!(f)?;
        for (what, came, reached) in &self.targets {
            let verdict = if *reached { "reached" } else { "MISSED" };
            writeln!(f, "{verdict:<8} {what:<66} {came}")?;
        }
        Ok(())
    }
}
