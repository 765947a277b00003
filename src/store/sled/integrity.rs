//! Whether an opened database has everything that was acknowledged. sled ends recovery without an
//! error where it cannot read on, so only a count and a digest from outside can tell.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::mark::Mark;
use super::open::panic_text;
use super::record::{META_KEY, Meta, unseal};

/// How many groups the database may be ahead of its mark: those between their own sync and the
/// mark's, twice that when the newest slot of the mark is torn. More means that the mark is not of
/// this database's last run.
const MAX_AHEAD: u64 = 16;

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
    let digest = catch_unwind(AssertUnwindSafe(|| digest(db)))
        .map_err(|panic| format!("a record cannot be read: {}", panic_text(&*panic)))??;
    if digest != meta.digest {
        return Err("records are missing or changed".to_owned());
    }
    if meta.counter == mark.counter && meta.digest != mark.digest {
        return Err("it does not hold what was acknowledged".to_owned());
    }
    Ok(())
}

fn digest(db: &sled::Db) -> Result<u128, String> {
    let mut digest = 0_u128;
    for record in db.iter() {
        let (key, stored) = record.map_err(|error| format!("a record cannot be read: {error}"))?;
        let (_, print) = unseal(&key, &stored).ok_or("a record does not match its checksum")?;
        if *key != *META_KEY {
            digest = digest.wrapping_add(print);
        }
    }
    Ok(digest)
}
