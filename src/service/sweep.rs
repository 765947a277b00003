//! Removes what is over, a little at a time, so that nobody waits for it. Of the replicas of one store
//! one does it at a time, and none whose clock is far from those of the others: it would remove
//! revocations of tokens that live on by their clocks.

use std::time::Duration;

use tokio::sync::watch;

use super::Service;
use crate::store::{StoreError, Swept};

/// How many records of each kind one step removes.
const STEP: usize = 256;
/// The pause between two steps, so that requests come in between.
const PAUSE: Duration = Duration::from_millis(20);

/// What came of being asked to sweep.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Turn {
    /// All that is over is gone.
    Swept(Swept),
    /// Another replica does it.
    Another,
    /// The clock here is far from those of the others.
    ClockOff,
}

impl Service {
    /// Removes all that is over by now, if it is the turn of this replica, which is asked `every` so
    /// often.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn sweep_in_turn(&self, every: Duration) -> Result<Turn, StoreError> {
        if self.feed.clock_standing().is_some_and(|standing| standing.is_off()) {
            self.has_turn.send_replace(false);
            return Ok(Turn::ClockOff);
        }
        // Somewhat longer than to the next time, so that who has the turn keeps it.
        let lasts = every.saturating_mul(3) / 2;
        let turn = self.store.take_sweep_turn(self.sweeper, lasts, self.now()).await;
        if let Ok(has_turn) = turn {
            self.has_turn.send_replace(has_turn);
        }
        match turn {
            Ok(false) => Ok(Turn::Another),
            Ok(true) => self.sweep().await.map(Turn::Swept),
            // To take a turn is to write, which a store without space refuses; to sweep makes space.
            Err(error) => {
                tracing::debug!(%error, "whose turn it is to sweep cannot be told");
                self.sweep().await.map(Turn::Swept)
            }
        }
    }

    /// Whether this replica had its turn when it last asked: what one of all replicas is to do, and need
    /// not be done at every moment, is done by the one that has.
    pub fn has_turn(&self) -> watch::Receiver<bool> {
        self.has_turn.subscribe()
    }

    /// Removes all that is over by now.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn sweep(&self) -> Result<Swept, StoreError> {
        let now = self.now();
        let mut total = Swept::default();
        loop {
            let step = self.store.sweep(STEP, now).await?;
            total.sessions += step.sessions;
            total.events += step.events;
            total.attempts += step.attempts;
            if !step.more {
                return Ok(total);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
