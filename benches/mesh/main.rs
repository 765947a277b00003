//! What avouch adds to a request that goes through Envoy: the same Envoy without it, with an ext_authz
//! server that only says yes, and with `avouch sidecar`, in turns, one request in flight.
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
    envoy: Envoy,
    /// In microseconds.
    latencies: Vec<f64>,
}

fn main() -> Result<(), Failure> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let (rounds, requests) = if quick { (2, 100) } else { (11, 1000) };
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
        rows.push(Row { name, envoy, latencies: Vec::new() });
    }
    for _ in 0..rounds {
        for row in &mut rows {
            let mut connection = Connection::open(row.envoy.address, &avouch.token).await?;
            // The first ones open connections and fill caches.
            for _ in 0..requests / 10 {
                connection.request().await?;
            }
            for _ in 0..requests {
                let begun = Instant::now();
                connection.request().await?;
                row.latencies.push(begun.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    print(&mut rows);
    Ok(())
}

fn print(rows: &mut [Row]) {
    println!("{:<42} {:>8} {:>8} {:>9} {:>9}", "", "p50 us", "p99 us", "p50 added", "requests");
    let mut base = None;
    let mut added = Vec::new();
    for row in rows {
        let (p50, p99) = (percentile(&mut row.latencies, 50), percentile(&mut row.latencies, 99));
        let more = p50 - *base.get_or_insert(p50);
        added.push(more);
        let count = row.latencies.len();
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
