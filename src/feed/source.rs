//! Where the events of a feed come from, and how far it can vouch for having all of them.

use std::sync::Arc;

use async_trait::async_trait;

use crate::domain::clock::Timestamp;
use crate::domain::event::Entry;
use crate::domain::ids::Revision;
use crate::store::{Store, StoreError};

/// How far a feed can vouch: every Revoke that was acknowledged before `as_of` is at or before
/// `head`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Proof {
    /// The moment; the Unix epoch while nothing was proved.
    pub as_of: Timestamp,
    /// The position.
    pub head: Revision,
}

/// Where the events of a feed come from.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// The next `limit` events after a position, in order. None from a source that keeps no log:
    /// its feed has the live set and the newest events, and begins a stream that needs more anew.
    ///
    /// # Errors
    /// When the log cannot be read.
    fn events_after(&self, after: Revision, limit: usize)
    -> Result<Option<Vec<Entry>>, StoreError>;

    /// How far it can vouch. `now` was read before the call. None when it cannot tell now.
    async fn prove(&self, now: Timestamp) -> Option<Proof>;
}

/// The store of this replica.
pub(super) struct Stored(pub(super) Arc<dyn Store>);

#[async_trait]
impl Source for Stored {
    fn events_after(
        &self,
        after: Revision,
        limit: usize,
    ) -> Result<Option<Vec<Entry>>, StoreError> {
        self.0.events_after(after, limit).map(Some)
    }

    /// Why `as_of` cannot overtake an event. Let t be the moment read first, and let a Revoke be
    /// acknowledged before t. Its event was durable before that, so the head of the store, which is
    /// read after t, is at or past it. Between the two reads the store proves contact: a replica that
    /// is cut off from its store could still read an old head, while others acknowledge. Its t then
    /// never becomes an `as_of`.
    async fn prove(&self, now: Timestamp) -> Option<Proof> {
        if !self.0.prove_contact().await {
            return None;
        }
        Some(Proof { as_of: now, head: self.0.head().revision })
    }
}
