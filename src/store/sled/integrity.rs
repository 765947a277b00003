//! Whether an opened database has everything that was acknowledged. sled ends recovery without an
//! error where it cannot read on, so only a count and a digest from outside can tell.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::mark::Mark;
use super::open::panic_text;
use super::record::{META_KEY, Meta, unseal};
use crate::store::engine::Order;

/// How many groups the database may be ahead of its mark: those between their own sync and the
/// mark's, twice that when the newest slot of the mark is torn. More means that the mark is not of
/// this database's last run.
const MAX_AHEAD: u64 = 16;

/// How many records a scan reads before it says how far it has come.
const CHUNK: usize = 1024;

/// Reads every record and compares what they come to with what the database and the mark say.
/// Gives what is wrong.
pub(super) fn verify(db: &sled::Db, meta: &Meta, mark: &Mark) -> Result<(), String> {
    if meta.log_id != mark.log_id {
        return Err("the high-water mark belongs to another database".to_owned());
    }
    if meta.counter < mark.counter {
        return Err(format!(
            "acknowledged commits are missing: it ends with commit {}, but commit {} was acknowledged",
            meta.counter, mark.counter
        ));
    }
    if meta.counter - mark.counter > MAX_AHEAD {
        return Err(format!(
            "the high-water mark is too old: it says commit {}, the database says {}",
            mark.counter, meta.counter
        ));
    }
    let digest = digest(db)?;
    if digest != meta.digest {
        return Err("records are missing or changed".to_owned());
    }
    if meta.counter == mark.counter && meta.digest != mark.digest {
        return Err("it does not hold what was acknowledged".to_owned());
    }
    Ok(())
}

/// How far two scans from both ends have come.
#[derive(Default)]
struct Covered {
    /// The last key that the scan from the first has counted.
    low: Option<sled::IVec>,
    /// The last key that the scan from the last has counted.
    high: Option<sled::IVec>,
    /// They have met, and every record is counted.
    met: bool,
    digest: u128,
}

/// Reads all records with two threads, from both ends until they meet: wherever the records lie,
/// each thread does what it can.
pub(super) fn digest(db: &sled::Db) -> Result<u128, String> {
    let covered = Mutex::new(Covered::default());
    let scan = |order| {
        catch_unwind(AssertUnwindSafe(|| scan(db, order, &covered)))
            .map_err(|panic| format!("a record cannot be read: {}", panic_text(&*panic)))?
    };
    thread::scope(|threads| {
        let other = threads.spawn(|| scan(Order::Descending));
        scan(Order::Ascending)?;
        other.join().map_err(|panic| panic_text(&*panic))?
    })?;
    Ok(covered.into_inner().unwrap_or_else(PoisonError::into_inner).digest)
}

fn scan(db: &sled::Db, order: Order, covered: &Mutex<Covered>) -> Result<(), String> {
    let mut records: Box<dyn Iterator<Item = _>> = match order {
        Order::Ascending => Box::new(db.iter()),
        Order::Descending => Box::new(db.iter().rev()),
    };
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        for record in records.by_ref().take(CHUNK) {
            let (key, stored) =
                record.map_err(|error| format!("a record cannot be read: {error}"))?;
            let (_, print) = unseal(&key, &stored).ok_or("a record does not match its checksum")?;
            let print = if *key == *META_KEY { 0 } else { print };
            chunk.push((key, print));
        }
        let mut covered = covered.lock().unwrap_or_else(PoisonError::into_inner);
        if covered.met || chunk.is_empty() {
            // Whoever reaches the other end has counted all that the other scan has not.
            covered.met = true;
            return Ok(());
        }
        for (key, print) in chunk {
            let beyond = match order {
                Order::Ascending => covered.high.as_ref().is_some_and(|high| key >= *high),
                Order::Descending => covered.low.as_ref().is_some_and(|low| key <= *low),
            };
            if beyond {
                covered.met = true;
                return Ok(());
            }
            covered.digest = covered.digest.wrapping_add(print);
            match order {
                Order::Ascending => covered.low = Some(key),
                Order::Descending => covered.high = Some(key),
            }
        }
    }
}
