//! Frames on their way from the server to the neighbours.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use super::lock;
use super::read::{cursor, entries};
use crate::client::watch::Relay;
use crate::domain::event::{Entry, Event, Target};
use crate::domain::ids::{Cursor, Revision};
use crate::feed::Feed;
use crate::grpc::frame;
use crate::pb::v1;
use crate::pb::v1::watch_revocations_response::Frame;

/// How long neighbours may take to apply what somebody waits for: as long as a Revoke can wait.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// How many waits there may be at once. The server is not told of what comes over it, and says so.
const MAX_WAITS: usize = 256;

/// A set that is being fetched, as far as the view does not hold it.
#[derive(Default)]
pub(super) struct Building {
    pub(super) coarse: Vec<Entry>,
    pub(super) key_set: Option<(Revision, Bytes)>,
}

impl Building {
    fn add(&mut self, entries: Vec<Entry>) {
        let is_coarse = |entry: &Entry| match &entry.event {
            Event::Revocation(revocation) => {
                !matches!(revocation.target, Target::Token { .. } | Target::Session { .. })
            }
            Event::KeySetChanged { .. } => false,
        };
        self.coarse.extend(entries.into_iter().filter(is_coarse));
    }
}

/// What the heartbeats of one stream said of whether it shows everything.
#[derive(Default)]
struct Looks {
    last: Option<v1::Heartbeat>,
    /// Whether one had a digest.
    digest: bool,
    /// How many should have had one.
    without: u32,
}

/// Passes on what the server says, to the neighbours or into the set that they are to get.
pub(super) struct Relaying {
    building: Mutex<Option<Building>>,
    feed: Mutex<Option<Arc<Feed>>>,
    waits: Arc<Semaphore>,
    looks: Mutex<Looks>,
    /// Whether the server leaves something out.
    limited: AtomicBool,
}

impl Default for Relaying {
    fn default() -> Self {
        Self {
            building: Mutex::default(),
            feed: Mutex::default(),
            waits: Arc::new(Semaphore::new(MAX_WAITS)),
            looks: Mutex::default(),
            limited: AtomicBool::new(false),
        }
    }
}

impl Relaying {
    /// What neighbours are served.
    pub(super) fn feed(&self) -> Option<Arc<Feed>> {
        lock(&self.feed).clone()
    }

    /// Serves this from now on.
    pub(super) fn serve(&self, feed: Arc<Feed>) {
        *lock(&self.feed) = Some(feed);
    }

    /// Serves nothing from now on.
    pub(super) fn stop(&self) -> Option<Arc<Feed>> {
        lock(&self.feed).take()
    }

    /// Whether a set is being fetched.
    pub(super) fn is_building(&self) -> bool {
        lock(&self.building).is_some()
    }

    /// Whether the server leaves something out.
    pub(super) fn is_limited(&self) -> bool {
        self.limited.load(Ordering::Acquire)
    }

    /// Finds out by heartbeats whether the server leaves something out, where `effective_filter` could
    /// not say so. Between two of them it proved contact, at the position of both, so that it has a
    /// digest for that; it keeps it to itself when the stream does not show everything. Once it may
    /// have been an event that came just then.
    fn look_at(&self, heartbeat: &v1::Heartbeat) {
        const OFTEN: u32 = 3;
        let mut looks = lock(&self.looks);
        if heartbeat.digest.is_some() {
            looks.digest = true;
        } else if let Some(last) = &looks.last
            && last.through == heartbeat.through
            && last.as_of_time != heartbeat.as_of_time
        {
            looks.without += 1;
        }
        looks.last = Some(heartbeat.clone());
        if !looks.digest && looks.without >= OFTEN {
            self.limited.store(true, Ordering::Release);
        }
    }

    /// What was fetched, if anything was.
    pub(super) fn built(&self) -> Option<Building> {
        lock(&self.building).take()
    }

    /// What is being fetched will not be complete.
    pub(super) fn abandon(&self) {
        drop(self.built());
    }
}

impl Relay for Relaying {
    fn take(&self, frame: &Frame) -> Option<()> {
        let mut building = lock(&self.building);
        match frame {
            Frame::Start(start) => {
                *building = (!start.resumed).then(Building::default);
                *lock(&self.looks) = Looks::default();
                let filter = start.effective_filter.as_ref();
                if filter.is_some_and(|it| *it != v1::RevocationFilter::default()) {
                    self.limited.store(true, Ordering::Release);
                }
            }
            Frame::Reset(_) => *building = Some(Building::default()),
            Frame::KeySet(keys) => {
                let through = cursor(keys.through.as_ref()?)?.revision;
                let frame = frame::encode(Frame::KeySet(keys.clone()));
                match (&mut *building, self.feed()) {
                    (Some(building), _) => building.key_set = Some((through, frame)),
                    (None, Some(feed)) => feed.set_key_set(through, frame),
                    (None, None) => {}
                }
            }
            Frame::Snapshot(chunk) => {
                let entries = entries(&chunk.revocations)?;
                if let Some(building) = &mut *building {
                    building.add(entries);
                }
            }
            Frame::Batch(batch) => {
                let through = cursor(batch.through.as_ref()?)?.revision;
                let entries = entries(&batch.revocations)?;
                match (&mut *building, self.feed()) {
                    (Some(building), _) => building.add(entries),
                    (None, Some(feed)) => feed.publish(&entries, through),
                    (None, None) => {}
                }
            }
            // What is claimed is passed on once the set was checked.
            Frame::Heartbeat(heartbeat) => self.look_at(heartbeat),
            Frame::Synced(_) | Frame::GoAway(_) | Frame::AckRequest(_) => {}
        }
        Some(())
    }

    fn applied(&self, through: Cursor) -> BoxFuture<'static, bool> {
        let feed = self.feed().filter(|feed| feed.head().log_id == through.log_id);
        let place = Arc::clone(&self.waits).try_acquire_owned();
        async move {
            let (Some(feed), Ok(_place)) = (feed, place) else { return false };
            feed.wait_for_acks(through.revision, ACK_WAIT).await.complete
        }
        .boxed()
    }
}
