//! How many commits a second become durable, by how many call at a time.

use std::sync::Arc;

use avouch::domain::ids::LogId;
use avouch::store::codec::SCHEMA_VERSION;
use avouch::store::engine::{Decision, Engine as _};
use avouch::store::sled::{SledEngine, SledSettings};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Failure;
use crate::statistics::count;

/// A record of its caller, and an event if one is wanted.
fn decision(caller: usize, number: usize, with_event: bool) -> Decision {
    let (key, value) = (caller.to_be_bytes().to_vec(), number.to_be_bytes().to_vec());
    Box::new(move |txn| {
        txn.put(key.clone(), value.clone());
        if with_event {
            txn.append(key.clone())?;
        }
        Ok(Box::new(()))
    })
}

/// Prints a line for each number of callers.
pub(crate) async fn measure(total: usize) -> Result<(), Failure> {
    println!("commits, sled on the disk     commits/s   a group    sync us");
    for (callers, with_event) in [1, 64, 256, 512].into_iter().flat_map(|n| [(n, true), (n, false)])
    {
        let dir = crate::directory()?;
        let settings = SledSettings { min_free_bytes: 0, ..SledSettings::new(SCHEMA_VERSION) };
        let path = dir.path().join("db");
        let engine = Arc::new(SledEngine::open(&path, &settings, LogId::from_bytes([1; 16]))?);
        let each = if callers == 1 { total / 50 } else { total / callers };
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for caller in 0..callers {
            let engine = Arc::clone(&engine);
            tasks.spawn(async move {
                for number in 0..each {
                    engine.commit(decision(caller, number, with_event)).await?;
                }
                Ok::<_, avouch::store::StoreError>(())
            });
        }
        for done in tasks.join_all().await {
            done?;
        }
        let took = begun.elapsed().as_secs_f64();
        let status = engine.status();
        let (commits, groups) = (status.commits.try_into()?, status.groups.try_into()?);
        let name =
            format!("{callers} callers{}", if with_event { ", each with an event" } else { "" });
        println!(
            "{name:<28} {:>10.0} {:>9.1} {:>10.0}",
            count(commits) / took,
            count(commits) / count(groups),
            status.sync_time.as_secs_f64() * 1e6 / count(groups),
        );
        engine.close().await;
    }
    println!();
    Ok(())
}
