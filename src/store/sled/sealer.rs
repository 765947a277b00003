//! The thread behind the committer: moves the high-water mark past what is durable, tells the
//! observer, then the callers. Meanwhile the committer is at the next group.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;

use tokio::sync::oneshot;

use super::Shared;
use super::capture::Reached;
use super::committer::Outcome;
use super::health::Step;
use super::mark::{Mark, MarkFile};
use crate::domain::ids::Revision;
use crate::store::engine::LoggedEvent;

/// How many synced groups may wait for the sealer. Each lets the database be one further ahead of
/// its mark.
pub(super) const BACKLOG: usize = 2;

/// A decision that was run, and who waits for it.
pub(super) struct Decided {
    pub(super) outcome: Outcome,
    pub(super) caller: oneshot::Sender<Outcome>,
}

/// A group that the database has synced.
pub(super) struct Sealing {
    /// The mark to set before anyone is told; none when the group wrote nothing.
    pub(super) mark: Option<Mark>,
    /// Its events, in order.
    pub(super) events: Vec<LoggedEvent>,
    /// The newest revision after it.
    pub(super) head: Revision,
    /// Its decisions.
    pub(super) decided: Vec<Decided>,
    /// Who waits for something to be durable.
    pub(super) probes: Vec<oneshot::Sender<()>>,
    /// Who waits for the point after it.
    pub(super) points: Vec<(oneshot::Sender<Reached>, Reached)>,
}

/// The state of the thread.
pub(super) struct Sealer {
    pub(super) shared: Arc<Shared>,
    pub(super) mark: MarkFile,
    pub(super) groups: Receiver<Sealing>,
}

impl Sealer {
    /// Works until the committer has ended, or the engine fails.
    pub(super) fn run(mut self) {
        while let Ok(first) = self.groups.recv() {
            let mut groups = vec![first];
            // The newest mark covers the groups before it.
            groups.extend(self.groups.try_iter().take(BACKLOG));
            if self.seal(groups).is_none() {
                return;
            }
        }
    }

    fn seal(&mut self, groups: Vec<Sealing>) -> Option<()> {
        let Self { shared, mark, .. } = self;
        let newest = groups.iter().rev().find_map(|group| group.mark);
        shared.health.within_deadline(Step::Seal, || match newest {
            Some(newest) => {
                mark.write(newest)
                    .map_err(|error| format!("the high-water mark cannot be synced: {error}"))?;
                shared.health.sealed_now();
                Ok(())
            }
            None => Ok(()),
        })?;
        for group in groups {
            shared.health.within_deadline(Step::Seal, || {
                if group.mark.is_some() {
                    shared.head.store(group.head.0, Ordering::Release);
                    if let Some(observer) = shared.observer() {
                        observer.durable(&group.events, group.head);
                    }
                }
                Ok(())
            })?;
            let done = group.decided.iter().filter(|decided| decided.outcome.is_ok()).count();
            shared.counters.commits.fetch_add(done as u64, Ordering::Relaxed);
            // A caller that has gone away needs no answer.
            for Decided { outcome, caller } in group.decided {
                _ = caller.send(outcome);
            }
            for caller in group.probes {
                _ = caller.send(());
            }
            for (caller, reached) in group.points {
                _ = caller.send(reached);
            }
        }
        Some(())
    }
}
