//! Reads the whole state as of one revision while others write: etcd keeps what was there then.
//!
//! The revision is that of a linearizable read, so everything that was acknowledged before is in it. If
//! etcd compacts it while pages are still to be read, the capture is void and says so.
//!
//! Index entries, which stand here one by one, are given in packs as sled keeps them, so that a backup
//! is the same whichever engine it is of.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::client::{CallError, Client};
use super::keys::{EVENT, Keys, unstamped};
use super::pb::{KeyValue, RangeRequest, RangeResponse};
use super::request::{MAX_OPS, range_of_one};
use super::settings::EtcdSettings;
use crate::domain::ids::{LogId, Revision};
use crate::store::StoreError;
use crate::store::backup::{Capture, CaptureError, Captured, Change, Point};
use crate::store::engine::{ENGINE_PREFIX, KeyRange, Value, event_key, is_index_key};
use crate::store::sled::{Packer, fingerprint};

/// How many records are read at a time, at most.
const PAGE: i64 = 8_000;
/// How many pages wait for a slow reader. The revision does not wait: see [`CaptureError::Compacted`].
const PAGES_AHEAD: usize = 8;
/// The least that is asked for at a time where pages do not come in time.
const LEAST: i64 = 16;
/// How long one try of a page may take at most.
const LONGEST: Duration = Duration::from_secs(10);
/// How long to wait before a page is asked for again.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a page may take, with all that are asked for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that begins in one way as of one revision, in the order of the keys, part by part. A range
/// with a limit would be no page: to say whether there is more, etcd walks its index to the end of the
/// range each time. So the keys are parted by what they begin with, until a part is small.
///
/// What does not come in time is asked for again, half as much of it, and with twice the time: on a slow
/// way, or of a slow member, no page of a fixed size would ever come within a fixed time.
pub(super) struct Pages<'a> {
    client: &'a Client,
    parts: Vec<Part>,
    revision: i64,
    /// How many records are read at a time.
    size: i64,
    /// How long that may take.
    patience: Duration,
}

/// Keys that are still to be read.
#[derive(Clone)]
enum Part {
    /// This one.
    One(Vec<u8>),
    /// So many that begin so.
    Beneath(Vec<u8>, i64),
}

impl Part {
    const fn count(&self) -> i64 {
        match self {
            Self::One(_) => 1,
            Self::Beneath(_, count) => *count,
        }
    }

    fn range(self) -> RangeRequest {
        match self {
            Self::One(at) => range_of_one(at),
            Self::Beneath(at, _) => beneath(&at),
        }
    }
}

impl<'a> Pages<'a> {
    /// Of everything under the prefix.
    pub(super) fn new(client: &'a Client, keys: &Keys, revision: i64) -> Self {
        Self::beneath(client, keys.at(b""), i64::MAX, revision)
    }

    /// Of the keys that begin so, which are so many, or fewer.
    pub(super) fn beneath(client: &'a Client, at: Vec<u8>, count: i64, revision: i64) -> Self {
        let parts = if count > 0 { vec![Part::Beneath(at, count)] } else { Vec::new() };
        Self { client, parts, revision, size: PAGE, patience: client.request_timeout() }
    }

    /// The next keys; none after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<KeyValue>>, CallError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let page = self.page();
            if page.is_empty() {
                match self.parts.pop() {
                    Some(Part::Beneath(at, _) | Part::One(at)) => self.split(at).await?,
                    None => return Ok(None),
                }
                continue;
            }
            let ranges = page.iter().cloned().map(|part| self.at(part.range())).collect();
            match self.client.long_ranges(ranges, self.patience).await {
                Ok(found) => {
                    let kvs: Vec<_> = found.into_iter().flat_map(|found| found.kvs).collect();
                    if !kvs.is_empty() {
                        return Ok(Some(kvs));
                    }
                }
                Err(CallError::Unknown(why)) if Instant::now() < deadline => {
                    self.parts.extend(page.into_iter().rev());
                    self.size = (self.size / 2).max(LEAST);
                    self.patience = (self.patience * 2).min(LONGEST.max(self.patience));
                    tracing::debug!(why, size = self.size, "a page is read again, with less in it");
                    sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The parts that come next, as many as make a page.
    fn page(&mut self) -> Vec<Part> {
        let (mut page, mut room) = (Vec::new(), self.size);
        while page.len() < MAX_OPS
            && let Some(part) = self.parts.pop_if(|part| part.count() <= room)
        {
            room -= part.count();
            page.push(part);
        }
        page
    }

    async fn split(&mut self, at: Vec<u8>) -> Result<(), CallError> {
        let longer: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| [&at[..], &[byte]].concat()).collect();
        let mut parts = vec![Part::One(at)];
        for some in longer.chunks(MAX_OPS) {
            let count = |at: &Vec<u8>| RangeRequest { count_only: true, ..beneath(at) };
            let counted = self.read(some.iter().map(count).collect()).await?;
            let counted = some.iter().zip(counted).filter(|(_, found)| found.count > 0);
            parts.extend(counted.map(|(at, found)| Part::Beneath(at.clone(), found.count)));
        }
        self.parts.extend(parts.into_iter().rev());
        Ok(())
    }

    async fn read(&self, ranges: Vec<RangeRequest>) -> Result<Vec<RangeResponse>, CallError> {
        let ranges = ranges.into_iter().map(|range| self.at(range)).collect();
        Ok(self.client.ranges(ranges, Instant::now() + PATIENCE).await?.0)
    }

    fn at(&self, range: RangeRequest) -> RangeRequest {
        RangeRequest { revision: self.revision, ..range }
    }
}

/// All keys that begin so.
pub(super) fn beneath(at: &[u8]) -> RangeRequest {
    let KeyRange { start, end } = KeyRange::prefix(at);
    let (key, range_end) = (start.into(), end.unwrap_or_else(|| vec![0]).into());
    RangeRequest { key, range_end, ..RangeRequest::default() }
}

/// The record that stands at a key, as decisions know it; none if it is the engine's own.
pub(super) fn record(keys: &Keys, kv: &KeyValue) -> Result<Option<(Vec<u8>, Value)>, StoreError> {
    let Some(key) = keys.key_at(&kv.key) else { return Ok(None) };
    match key.first() {
        None | Some(&ENGINE_PREFIX) => Ok(None),
        Some(&EVENT) => {
            let revision = Revision(u64::try_from(kv.mod_revision).unwrap_or_default());
            Ok(Some((event_key(revision), kv.value.to_vec())))
        }
        Some(_) => Ok(Some((key.to_vec(), unstamped(key, &kv.value)?))),
    }
}

/// A slot for the one capture that there may be.
#[derive(Debug, Default)]
pub(super) struct Capturing(Mutex<Weak<()>>);

impl Capturing {
    fn begin(&self) -> Result<Arc<()>, CaptureError> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if current.strong_count() > 0 {
            return Err(CaptureError::Busy);
        }
        let only = Arc::new(());
        *current = Arc::downgrade(&only);
        Ok(only)
    }
}

/// A capture that goes on.
pub(super) struct EtcdCapture {
    pages: mpsc::Receiver<Result<Captured, CaptureError>>,
    point: Option<Point>,
    _only: Arc<()>,
}

impl EtcdCapture {
    /// Begins, over a connection of its own.
    pub(super) fn begin(
        settings: &EtcdSettings,
        log_id: LogId,
        capturing: &Capturing,
    ) -> Result<Self, CaptureError> {
        let only = capturing.begin()?;
        let (to, pages) = mpsc::channel(PAGES_AHEAD);
        let (client, keys) = (Client::new(settings, 0), Keys::new(&settings.prefix));
        tokio::spawn(async move {
            if let Err(error) = read(&client, &keys, log_id, &to).await {
                _ = to.send(Err(error)).await;
            }
        });
        Ok(Self { pages, point: None, _only: only })
    }
}

impl From<CallError> for CaptureError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Compacted => Self::Compacted,
            other => Self::Store(other.into()),
        }
    }
}

async fn read(
    client: &Client,
    keys: &Keys,
    log_id: LogId,
    to: &mpsc::Sender<Result<Captured, CaptureError>>,
) -> Result<(), CaptureError> {
    let head = range_of_one(keys.head());
    let (found, revision) = client.ranges(vec![head], Instant::now() + PATIENCE).await?;
    let head = found.first().and_then(|found| found.kvs.first()).map_or(0, |kv| kv.mod_revision);
    let mut pages = Pages::new(client, keys, revision);
    let (mut digest, mut packer) = (0_u128, Packer::default());
    while let Some(page) = pages.next().await? {
        let mut records = Vec::with_capacity(page.len());
        for kv in &page {
            match record(keys, kv)? {
                Some((key, _)) if is_index_key(&key) => records.extend(packer.push(key)),
                Some(record) => records.push(record),
                None => {}
            }
        }
        let changes = given(records, &mut digest);
        // Whoever reads has gone.
        if !changes.is_empty() && to.send(Ok(Captured::Changes(changes))).await.is_err() {
            return Ok(());
        }
    }
    let changes = given(packer.finish().into_iter().collect(), &mut digest);
    if !changes.is_empty() && to.send(Ok(Captured::Changes(changes))).await.is_err() {
        return Ok(());
    }
    let number = |revision: i64| u64::try_from(revision).unwrap_or_default();
    let point = Point { log_id, head: Revision(number(head)), counter: number(revision), digest };
    _ = to.send(Ok(Captured::Point(point))).await;
    Ok(())
}

/// Records as a capture gives them. Adds what they come to.
fn given(records: Vec<(Vec<u8>, Value)>, digest: &mut u128) -> Vec<Change> {
    for (key, value) in &records {
        *digest = digest.wrapping_add(fingerprint(key, value));
    }
    records.into_iter().map(|(key, value)| (key, Some(value))).collect()
}

impl Capture for EtcdCapture {
    fn next(&mut self) -> Result<Captured, CaptureError> {
        if let Some(point) = self.point {
            return Ok(Captured::Point(point));
        }
        let gone = || StoreError::Unavailable("it was closed meanwhile".to_owned());
        let read = self.pages.blocking_recv().ok_or_else(gone)??;
        if let Captured::Point(point) = &read {
            self.point = Some(*point);
        }
        Ok(read)
    }
}
