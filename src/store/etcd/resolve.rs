//! What became of a transaction whose answer was lost.
//!
//! When the connection breaks, time runs out or the leader goes, a transaction may have been carried
//! out, may be on its way still, or may be lost. To look whether it was is not enough: it could be
//! carried out after the look. So, in this order:
//!
//! 1. *It is stopped.* Every transaction that writes compares the fence of its engine, a key that
//!    nobody needs for anything else, with what it was when it was sent. To put the fence again is a
//!    transaction of its own; once that is answered, each one that was sent before has either been
//!    carried out at a lower revision, or its compare fails whenever it comes. A put of the fence whose
//!    own answer is lost does no harm if it comes late: it stops transactions that are then tried again.
//! 2. *It is looked for.* Each transaction leaves a witness: the event it appends, whose key is random;
//!    or a record that it puts and that was there before, whose value ends with a stamp that no other
//!    attempt has; or else a mark, a key of the engine's that is put besides, with the stamp. etcd keeps
//!    what was there before: from the revision of the fence back to that from before it was sent, the
//!    witness is read version by version. If one has the stamp, the transaction was carried out at that
//!    very revision. If none has, it was not, and never will be.
//! 3. *Then there is an answer.* Carried out: what the decision said then, at that revision, and no run
//!    of it again: a rotation that is presented with its own token a second time would see reuse.
//!    Not: the decision runs again on what is there now.
//!
//! Where this cannot be done before the deadline, or a version that had to be seen is compacted away, the
//! caller is told that the outcome is unknown.

use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::client::{CallError, found, revision_of};
use super::core::Core;
use super::keys::{Stamp, stamp_of};
use super::pb::{RangeResponse, TxnRequest};
use super::request::{put, range_of_one, read};
use crate::store::StoreError;

/// The most versions of a witness that are looked at.
const MAX_STEPS: usize = 256;

/// Where a transaction leaves what shows that it was carried out.
#[derive(Clone, Debug)]
pub(super) enum Witness {
    /// The event of this key, which nobody else puts.
    Event(Vec<u8>),
    /// A record that was there before, or the mark, which is never removed.
    Stamped { at: Vec<u8>, stamp: Stamp },
}

impl Core {
    /// The revision at which a transaction was carried out that was sent when the engine had seen
    /// `floor`; none if it was not, and never will be.
    pub(super) async fn resolve(
        &self,
        witness: &Witness,
        floor: i64,
        deadline: Instant,
    ) -> Result<Option<i64>, StoreError> {
        let unknown = |error: CallError| {
            self.note(&error);
            StoreError::Unavailable(format!("whether the change was made is unknown: {error}"))
        };
        let (at, stamp) = match witness {
            Witness::Event(at) => (at, None),
            Witness::Stamped { at, stamp } => (at, Some(*stamp)),
        };
        let mut version = self.move_fence(at.clone(), deadline).await.map_err(unknown)?;
        for _ in 0..MAX_STEPS {
            let Some(kv) = version.kvs.first() else {
                // An event is not swept while its change is waited for, and a mark is never removed. A
                // record may have been, after the transaction put it.
                if stamp.is_none() || *at == self.keys.mark(self.fence.number) {
                    return Ok(None);
                }
                let gone = "what would show it was removed".to_owned();
                return Err(unknown(CallError::Unknown(gone)));
            };
            match stamp {
                None => return Ok(Some(kv.mod_revision)),
                Some(stamp) if stamp_of(&kv.value) == Some(stamp) => {
                    return Ok(Some(kv.mod_revision));
                }
                Some(_) if kv.mod_revision <= floor => return Ok(None),
                Some(_) => {}
            }
            let revision = kv.mod_revision - 1;
            let range = super::pb::RangeRequest { revision, ..range_of_one(at.clone()) };
            let (mut versions, _) =
                self.client.ranges(vec![range], deadline).await.map_err(unknown)?;
            version = versions.pop().unwrap_or_default();
        }
        Err(unknown(CallError::Unknown("too much was written since".to_owned())))
    }

    /// Stops what was sent before, and reads a key as of just then.
    async fn move_fence(&self, at: Vec<u8>, deadline: Instant) -> Result<RangeResponse, CallError> {
        // One at a time: each stops all that were sent before it.
        let _moving = self.fence.moving.lock().await;
        let fence = self.keys.fence(self.fence.number);
        let success = vec![put(fence, self.stamp().to_vec()), read(range_of_one(at))];
        let txn = TxnRequest { success, ..TxnRequest::default() };
        let answer = self.client.txn(txn, deadline).await?;
        let revision = revision_of(&answer);
        self.fence.changed.fetch_max(revision, Ordering::AcqRel);
        Ok(found(answer).pop().unwrap_or_default())
    }
}
