//! What one etcd holds of avouch, and how many of its bare transactions it takes: the measured numbers of
//! `docs/scale.md`.
//!
//! `cargo bench --bench cell`, with `-- --members 3` for a cluster on loopback, `-- --sessions N` for how
//! many are stored, `-- --seconds N` for how long each rate is measured, `-- --quick` for a look. It starts
//! etcd itself: `AVOUCH_ETCD`, or the one in `target/tools`.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::error::Error;
use std::time::Duration;

mod etcd;
mod records;
mod work;

type Failure = Box<dyn Error + Send + Sync>;

/// How much is measured.
struct Plan {
    members: usize,
    sessions: usize,
    each: Duration,
    callers: &'static [usize],
}

impl Plan {
    fn of(mut arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut plan = Self {
            members: 1,
            sessions: 1_000_000,
            each: Duration::from_secs(5),
            callers: &[1, 8, 64, 256],
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                // What cargo says.
                "--bench" => {}
                "--members" => plan.members = value()?.parse()?,
                "--sessions" => plan.sessions = value()?.parse()?,
                "--seconds" => plan.each = Duration::from_secs(value()?.parse()?),
                "--quick" => {
                    plan.sessions = 2_000;
                    plan.each = Duration::from_millis(200);
                    plan.callers = &[1, 8];
                }
                other => return Err(format!("no such flag: {other}").into()),
            }
        }
        // Each caller has sessions of its own.
        plan.sessions = plan.sessions.max(1_000);
        Ok(plan)
    }
}

fn main() -> Result<(), Failure> {
    let plan = Plan::of(std::env::args().skip(1))?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure(&plan))
}

async fn measure(plan: &Plan) -> Result<(), Failure> {
    let cluster = etcd::Cluster::start(plan.members).await?;
    println!("etcd {}, members: {}", cluster.version().await?, plan.members);
    let sample = records::session(0)?;
    println!(
        "one session: record {} + {} bytes, index entry {} bytes, due entry {} bytes (key + value)",
        sample.at.len(),
        sample.record.len(),
        sample.index.len(),
        sample.due.len(),
    );
    println!("\n{:<28}{:>12}{:>16}{:>16}", "stored", "seconds", "file, B each", "memory, B each");
    let mut work = work::Work::new(&cluster, plan.sessions);
    for kind in work::Kind::ALL {
        let before = cluster.size()?;
        let took = work.load(kind).await?;
        let after = cluster.size()?;
        println!(
            "{:<28}{:>12.1}{:>16}{:>16}",
            format!("{} {}", plan.sessions, kind.name()),
            took.as_secs_f32(),
            after.file.saturating_sub(before.file) / plan.sessions as u64,
            after.memory.saturating_sub(before.memory) / plan.sessions as u64,
        );
    }
    let size = cluster.size()?;
    println!("in all: file {} MiB, memory {} MiB", size.file >> 20, size.memory >> 20);
    println!(
        "\n{:<22}{:>10}{:>10}{:>10}{:>10}{:>18}{:>14}",
        "bare", "callers", "each s", "p50 ms", "p99 ms", "etcd CPU us each", "file, B each"
    );
    for what in work::What::ALL {
        for callers in plan.callers {
            let (before, cpu) = (cluster.size()?, cluster.cpu()?);
            let rate = work.run(what, *callers, plan.each).await?;
            let grown = cluster.size()?.file.saturating_sub(before.file);
            let cpu = cluster.cpu()?.saturating_sub(cpu);
            let done = rate.done.max(1) as f64;
            println!(
                "{:<22}{:>10}{:>10.0}{:>10.2}{:>10.2}{:>18.0}{:>14.0}",
                what.name(),
                callers,
                done / rate.took.as_secs_f64(),
                rate.quantile(0.5).as_secs_f64() * 1e3,
                rate.quantile(0.99).as_secs_f64() * 1e3,
                cpu.as_secs_f64() * 1e6 / done,
                grown as f64 / done,
            );
        }
    }
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!("load average of the machine: {load}");
    Ok(())
}
