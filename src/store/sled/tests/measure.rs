//! Numbers, by hand: `cargo test --release measure -- --ignored --nocapture --test-threads 1`.

use super::*;
use crate::store::engine_suite::{count, decision, put};

#[test]
#[ignore = "prints how many commits a second become durable"]
fn measure_commits() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let callers = [1_u64, 64, 256, 512];
    for (callers, with_event) in callers.into_iter().flat_map(|n| [(n, true), (n, false)]) {
        let (_outer, path) = fresh();
        let engine = Arc::new(open(&path).unwrap());
        let total = if callers == 1 { 4_000 } else { 200_000 };
        let begun = tokio::time::Instant::now();
        runtime.block_on(async {
            let tasks: Vec<_> = (0..callers)
                .map(|caller| {
                    let engine = Arc::clone(&engine);
                    tokio::spawn(async move {
                        for n in 0..total / callers {
                            let key = caller.to_be_bytes();
                            let decision =
                                if with_event { count(&key) } else { put(&key, &n.to_be_bytes()) };
                            engine.commit(decision).await.unwrap();
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
        });
        let took = begun.elapsed();
        let status = engine.status();
        println!(
            "{callers} callers, event {with_event}: {:.0} commits/s, {:.1} to a group, {:?} to sync one",
            status.commits as f64 / took.as_secs_f64(),
            status.commits as f64 / status.groups as f64,
            status.sync_time / u32::try_from(status.groups).unwrap(),
        );
    }
}

#[test]
#[ignore = "prints how long a directory with a million records takes to open"]
fn measure_open() {
    const RECORDS: u64 = 1_000_000;
    let (outer, path) = fresh();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let engine = open(&path).unwrap();
    runtime.block_on(async {
        for batch in 0..RECORDS / 1000 {
            let fill = decision(move |txn| {
                for n in batch * 1000..(batch + 1) * 1000 {
                    // Spread like random identifiers.
                    let mut key = b"s/".to_vec();
                    key.extend_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
                    key.extend_from_slice(&n.to_be_bytes());
                    txn.put(key, vec![u8::try_from(n % 251).unwrap_or_default(); 180]);
                }
                Ok(())
            });
            engine.commit(fill).await.unwrap();
        }
    });
    let status = engine.status();
    println!("filled: {} MiB on disk, {}", status.disk_bytes >> 20, memory());
    drop(engine);
    println!("closed: {}", memory());
    for cache_mib in [64, 64, 8] {
        let begun = tokio::time::Instant::now();
        let settings = SledSettings { cache_bytes: cache_mib << 20, ..SledSettings::new(1) };
        let engine = SledEngine::open(&path, &settings, LOG).unwrap();
        println!("opened in {:?}, {cache_mib} MiB of cache: {}", begun.elapsed(), memory());
        drop(engine);
    }
    println!("left at {}", outer.keep().join("data").display());
}

/// What the million takes, alone: `measure_open` leaves behind what the allocator keeps.
#[test]
#[ignore = "prints the memory of an open directory; its input is a line `CACHE_MIB PATH`"]
fn measure_memory() {
    let mut words = String::new();
    io::stdin().read_line(&mut words).unwrap();
    let Some((cache_mib, path)) = words.trim().split_once(' ') else { return };
    let cache_bytes = cache_mib.parse::<u64>().unwrap() << 20;
    let settings = SledSettings { cache_bytes, ..SledSettings::new(1) };
    let engine = SledEngine::open(Path::new(path), &settings, LOG).unwrap();
    println!("{cache_mib} MiB of cache: {}", memory());
    drop(engine);
}

fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    format!("{} {}", line("VmRSS"), line("VmHWM"))
}
