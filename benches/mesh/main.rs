//! What avouch adds to a request that goes through Envoy: the same Envoy without it, with an ext_authz
//! server that only says yes, and with `avouch sidecar`, one request in flight. They take turns of some
//! milliseconds, and what is added is told turn by turn, so that whatever else the machine does is in
//! both.
//!
//! `cargo bench --bench mesh`, or with `-- --quick` for a look. Envoy comes with `tests/run`.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::error::Error;
use std::path::{Path, PathBuf};

use tokio::time::Instant;

mod beside;
mod envoy;
mod yes;

use beside::{Avouch, Connection};
use envoy::Envoy;

type Failure = Box<dyn Error + Send + Sync>;

/// Microseconds that the sidecar may add to half of the requests.
const TARGET_MICROS: f64 = 200.0;

/// One way to go through Envoy.
struct Row {
    name: &'static str,
    _envoy: Envoy,
    connection: Connection,
    /// In microseconds.
    latencies: Vec<f64>,
    /// By how much the middle one of each turn is above that of the first row.
    added: Vec<f64>,
}

fn main() -> Result<(), Failure> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let (rounds, requests) = if quick { (3, 50) } else { (101, 100) };
    tokio::runtime::Runtime::new()?.block_on(bench(rounds, requests))
}

async fn bench(rounds: usize, requests: usize) -> Result<(), Failure> {
    let program = envoy::program()?;
    let dir = tempfile::tempdir()?;
    let workload = beside::workload().await?;
    let yes = dir.path().join("yes.sock");
    yes::serve(&yes)?;
    let avouch = Avouch::start(dir.path()).await?;
    let mut rows = Vec::new();
    for (name, authz, filters) in [
        ("Envoy alone", &yes, &[][..]),
        ("and an ext_authz server that says yes", &yes, &[envoy::EXT_AUTHZ]),
        ("and the sidecar instead", &avouch.ext_authz, &[envoy::EXT_AUTHZ]),
        (
            "and the signature by Envoy (jwt_authn)",
            &avouch.ext_authz,
            &[envoy::JWT_AUTHN, envoy::EXT_AUTHZ],
        ),
    ] {
        let places = envoy::Places { keys: &avouch.public, authz, workload };
        let config = envoy::config(&places, filters)?;
        let dir: PathBuf = dir.path().join(format!("envoy-{}", rows.len()));
        let envoy = Envoy::start(&program, &dir, &config).await?;
        let mut connection = Connection::open(envoy.address, &avouch.token).await?;
        // The first ones open connections and fill caches.
        for _ in 0..requests {
            connection.request().await?;
        }
        let (latencies, added) = (Vec::new(), Vec::new());
        rows.push(Row { name, _envoy: envoy, connection, latencies, added });
    }
    for _ in 0..rounds {
        let mut alone = None;
        for row in &mut rows {
            let mut turn = Vec::with_capacity(requests);
            for _ in 0..requests {
                let begun = Instant::now();
                row.connection.request().await?;
                turn.push(begun.elapsed().as_secs_f64() * 1e6);
            }
            row.latencies.extend_from_slice(&turn);
            let p50 = percentile(&mut turn, 50);
            row.added.push(p50 - *alone.get_or_insert(p50));
        }
    }
    print(&mut rows);
    Ok(())
}

fn print(rows: &mut [Row]) {
    println!("{:<42} {:>8} {:>8} {:>9} {:>9}", "", "p50 us", "p99 us", "p50 added", "requests");
    let mut added = Vec::new();
    for row in rows {
        let (p50, p99) = (percentile(&mut row.latencies, 50), percentile(&mut row.latencies, 99));
        let (more, count) = (percentile(&mut row.added, 50), row.latencies.len());
        added.push(more);
        println!("{:<42} {p50:>8.0} {p99:>8.0} {more:>9.0} {count:>9}", row.name);
    }
    if let [_, yes, sidecar, ..] = added[..] {
        println!("\nthe sidecar against one that says yes: {:+.0} us", sidecar - yes);
        let reached = if sidecar < TARGET_MICROS { "reached" } else { "MISSED " };
        println!("{reached}  the sidecar adds less than {TARGET_MICROS:.0} us: {sidecar:.0} us");
    }
}

/// The value that so many of a hundred values do not exceed.
fn percentile(values: &mut [f64], part: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() * part).div_ceil(100).saturating_sub(1);
    values.get(at).copied().unwrap_or(f64::NAN)
}

/// Reads a file that somebody else is about to write.
async fn appears(path: &Path) -> Result<String, Failure> {
    let deadline = Instant::now() + std::time::Duration::from_secs(60);
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) if !text.trim().is_empty() => return Ok(text),
            _ if Instant::now() > deadline => {
                return Err(format!("{} does not appear", path.display()).into());
            }
            _ => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}
