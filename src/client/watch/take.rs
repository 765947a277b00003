//! What a frame does to the set, to the cursor, and to how fresh the set is.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use v1::watch_revocations_response::Frame;

use super::apply::{apply_chunk, apply_revocation, moment, read_cursor, write_cursor};
use super::{Fresh, LONGEST_PAUSE, Lost, Watch, WatchEvent};
use crate::domain::clock::Timestamp;
use crate::domain::ids::Cursor;
use crate::domain::view::View;
use crate::pb::v1;

/// How often what has expired is dropped, at the most, when there are no heartbeats.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);
/// How long an acknowledgement may take.
const ACK_DEADLINE: Duration = Duration::from_secs(1);

const MALFORMED: Lost = Lost::Protocol("a frame could not be understood");

impl Watch {
    /// Takes a frame in.
    pub(super) fn take(
        &mut self,
        response: v1::WatchRevocationsResponse,
    ) -> Result<Option<WatchEvent>, Lost> {
        let received = Instant::now();
        // A frame of a kind that a newer server knows says nothing about the set: those that do are
        // fixed.
        let Some(frame) = response.frame else { return Ok(None) };
        if let Some(relay) = &self.settings.relay {
            relay.take(&frame).ok_or(MALFORMED)?;
        }
        match frame {
            Frame::Start(start) => Ok(Some(self.begin(start))),
            Frame::KeySet(keys) => Ok(Some(WatchEvent::KeySet(keys))),
            Frame::Reset(_) => {
                self.pending = Some(self.empty_view());
                Ok(Some(WatchEvent::Reset))
            }
            Frame::Snapshot(chunk) => self.change(|view| apply_chunk(view, &chunk)).map(|()| None),
            Frame::Batch(batch) => {
                let revocations = batch.revocations;
                self.change(|view| {
                    revocations.iter().try_for_each(|it| apply_revocation(view, it))
                })?;
                let sent = batch.send_time.as_ref();
                let fresh = self.fresh_of(
                    batch.through.as_ref(),
                    batch.as_of_time.as_ref(),
                    sent,
                    received,
                )?;
                self.advance(fresh);
                // A stream that is never silent has no heartbeats.
                if received.saturating_duration_since(self.expired_at) >= EXPIRE_EVERY {
                    self.expire(fresh.sent, received);
                }
                Ok(Some(WatchEvent::Batch(revocations, fresh)))
            }
            Frame::Synced(synced) => self.synced(&synced, received).map(Some),
            Frame::Heartbeat(beat) => {
                let sent = beat.send_time.as_ref();
                let fresh =
                    self.fresh_of(beat.through.as_ref(), beat.as_of_time.as_ref(), sent, received)?;
                self.advance(fresh);
                self.expire(fresh.sent, received);
                self.verify(&self.view.load(), beat.digest, fresh.sent)?;
                self.move_on(fresh.as_of, received)?;
                Ok(Some(WatchEvent::Heartbeat(fresh)))
            }
            Frame::GoAway(go_away) => {
                let after = go_away.reconnect_after.and_then(|it| Duration::try_from(it).ok());
                if let Some(live) = &mut self.live {
                    let after = after.unwrap_or_default().min(LONGEST_PAUSE);
                    live.go_away = Some((go_away.reason(), after));
                }
                Ok(None)
            }
            Frame::AckRequest(request) => {
                let through = request.through.as_ref();
                let through = through.and_then(read_cursor).ok_or(MALFORMED)?;
                self.acknowledge(through);
                Ok(None)
            }
        }
    }

    /// The set is complete.
    fn synced(&mut self, synced: &v1::Synced, received: Instant) -> Result<WatchEvent, Lost> {
        if let Some(live) = &mut self.live {
            live.synced = true;
            // What was told by frames of before is too long ago.
            live.quickest = None;
        }
        let sent = synced.send_time.as_ref();
        let fresh =
            self.fresh_of(synced.through.as_ref(), synced.as_of_time.as_ref(), sent, received)?;
        // What is in force may not go back in time: the replica lacks what is known here.
        let behind = self.fresh.is_some_and(|known| {
            known.through.log_id == fresh.through.log_id
                && known.through.revision > fresh.through.revision
        });
        if behind {
            return Err(Lost::Behind);
        }
        if let Some(pending) = &self.pending {
            self.verify(pending, synced.digest, fresh.sent)?;
        } else {
            self.verify(&self.view.load(), synced.digest, fresh.sent)?;
        }
        if let Some(complete) = self.pending.take() {
            self.view.store(Arc::new(complete));
        }
        self.tries = 0;
        self.cursor = Some(fresh.through);
        self.fresh = Some(fresh);
        Ok(WatchEvent::Synced(fresh))
    }

    fn fresh_of(
        &mut self,
        through: Option<&v1::Cursor>,
        as_of: Option<&prost_types::Timestamp>,
        sent: Option<&prost_types::Timestamp>,
        received: Instant,
    ) -> Result<Fresh, Lost> {
        let mut fresh = fresh(through, as_of, sent, received)?;
        if let Some(live) = &mut self.live {
            let here = live.server_time(fresh.sent, received);
            // Frames of before are late, and tell nothing.
            if live.synced && live.is_late(here.since(fresh.sent), fresh.as_of, received) {
                return Err(Lost::Late);
            }
            fresh.sent = here;
        }
        Ok(fresh)
    }

    fn begin(&mut self, start: v1::WatchStart) -> WatchEvent {
        // Without a resume a whole set follows. What is in force stays so until that is complete.
        self.pending = (!start.resumed).then(|| self.empty_view());
        if let Some(live) = &mut self.live {
            let heartbeat = start.heartbeat_interval.and_then(|it| Duration::try_from(it).ok());
            live.begin(&start.watch_id, heartbeat);
        }
        WatchEvent::Connected { watch_id: start.watch_id, resumed: start.resumed }
    }

    fn empty_view(&self) -> View {
        View::with_limit(self.settings.max_entries)
    }

    fn change(&self, change: impl FnOnce(&View) -> Option<()>) -> Result<(), Lost> {
        let changed = match &self.pending {
            Some(pending) => change(pending),
            None => change(&self.view.load()),
        };
        changed.ok_or(MALFORMED)
    }

    /// What was applied moves the cursor, never what was only received; and what is being fetched
    /// anew is not in force yet.
    fn advance(&mut self, fresh: Fresh) {
        if self.pending.is_none() {
            self.cursor = Some(fresh.through);
            if self.fresh.is_some() && self.live.as_ref().is_some_and(|live| live.synced) {
                self.fresh = Some(fresh);
            }
        }
    }

    fn expire(&mut self, now: Timestamp, received: Instant) {
        self.expired_at = received;
        self.view.load().expire(now);
    }

    /// Holds a set against what the server says of its own at `sent`.
    fn verify(
        &self,
        view: &View,
        digest: Option<v1::SetDigest>,
        sent: Timestamp,
    ) -> Result<(), Lost> {
        let Some(digest) = digest else { return Ok(()) };
        let Some(after) = digest.counted_after_time.as_ref().and_then(moment) else {
            return Ok(());
        };
        // What was counted then may be gone from either side by now.
        if view.is_partial() || after <= sent {
            return Ok(());
        }
        let own = view.digest(after);
        if own.count == digest.live_count && own.xor == digest.xor_of_keys {
            return Ok(());
        }
        Err(Lost::DigestMismatch)
    }

    fn acknowledge(&self, through: Cursor) {
        let (Some(live), Some(applied)) = (&self.live, self.cursor) else { return };
        if applied.log_id != through.log_id || applied.revision < through.revision {
            return;
        }
        let mut client = live.client.clone();
        let mut request = self.settings.authorized(v1::AckRevocationsRequest {
            watch_id: live.watch_id.clone(),
            applied: Some(write_cursor(applied)),
        });
        request.set_timeout(ACK_DEADLINE);
        let relay = self.settings.relay.clone();
        // Beside the stream, which goes on meanwhile. Whoever waits has a deadline of its own.
        tokio::spawn(async move {
            let served = match relay {
                Some(relay) => relay.applied(through).await,
                None => true,
            };
            if served {
                // Unless it arrives, whoever waits is told that it did not.
                let _acknowledged = client.ack_revocations(request).await;
            }
        });
    }
}

fn fresh(
    through: Option<&v1::Cursor>,
    as_of: Option<&prost_types::Timestamp>,
    sent: Option<&prost_types::Timestamp>,
    received: Instant,
) -> Result<Fresh, Lost> {
    Ok(Fresh {
        through: through.and_then(read_cursor).ok_or(MALFORMED)?,
        as_of: as_of.and_then(moment).unwrap_or_default(),
        sent: sent.and_then(moment).ok_or(MALFORMED)?,
        received,
    })
}
