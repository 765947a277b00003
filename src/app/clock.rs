//! The clock of a server: its own, no earlier than what the store has seen, and in step with those of
//! the other replicas.

use std::sync::Arc;
use std::time::Duration;

use super::BuildError;
use crate::domain::clock::{Clock, SharedClock, SystemClock, Timestamp};
use crate::feed;
use crate::store::Store;

/// How far the clock of a server that starts may be from those of the replicas that run. What they
/// last said of theirs may be twenty seconds old.
const MAX_APART: Duration = Duration::from_secs(60);
const SAID_WITHIN: Duration = Duration::from_secs(20);
/// From which difference on the store's time is worth a line in the log.
const WORTH_SAYING: Duration = Duration::from_secs(60);

const BEHIND: &str = "the clock is behind the newest time in the store, and time stands still until it has caught up";

/// The clock to use with this store; `given` takes the place of the system's.
///
/// # Errors
/// [`BuildError::Clock`] when the replicas that run agree on another time.
pub(super) async fn of(
    store: &dyn Store,
    given: Option<Arc<dyn Clock>>,
) -> Result<Arc<dyn Clock>, BuildError> {
    let floor = store.time_floor();
    let Some(board) = store.board() else {
        return Ok(given.unwrap_or_else(|| {
            let wall = SystemClock::default().now();
            say(floor, wall, BEHIND);
            Arc::new(SystemClock::starting_at(floor))
        }));
    };
    let own = given.unwrap_or_else(|| Arc::new(SystemClock::default()));
    let wall = own.wall();
    let mut others = feed::clocks_of(&*board).await?;
    others.sort_unstable();
    if let Some(middle) = others.get(others.len() / 2).copied() {
        let ahead = wall.since(middle).saturating_sub(SAID_WITHIN);
        let behind = middle.since(wall);
        if ahead > MAX_APART || behind > MAX_APART {
            return Err(BuildError::Clock { here: wall, others: middle });
        }
        // They run on though somebody committed at a later time: that one was wrong.
        let mark = store.latest_time().await?;
        say(mark, wall, "another replica has had a clock that is far ahead; it is not followed");
        return Ok(Arc::new(SharedClock::following(own, mark)));
    }
    say(floor, wall, BEHIND);
    Ok(Arc::new(SharedClock::starting_at(own, floor)))
}

fn say(latest: Timestamp, wall: Timestamp, what: &str) {
    if latest.since(wall) > WORTH_SAYING {
        tracing::error!(%latest, clock = %wall, what);
    }
}
