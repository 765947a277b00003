//! Removes what is over, a little at a time, so that nobody waits for it.

use std::time::Duration;

use super::Service;
use crate::store::{StoreError, Swept};

/// How many records of each kind one step removes.
const STEP: usize = 256;
/// The pause between two steps, so that requests come in between.
const PAUSE: Duration = Duration::from_millis(20);

impl Service {
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
