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
/// How many a capture reads at a time. A move writes as many into a directory at once, and sled takes
/// ten times the memory for batches of a whole page: 3.3 GB for a million sessions.
const CAPTURED: i64 = 1_000;
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
    /// The first key that is wanted.
    from: Vec<u8>,
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
    /// Whether all of it is before a key.
    fn is_before(&self, key: &[u8]) -> bool {
        match self {
            Self::One(at) => at.as_slice() < key,
            Self::Beneath(at, _) => at.as_slice() < key && !key.starts_with(at),
        }
    }

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
        let (size, patience) = (PAGE, client.request_timeout());
        Self { client, parts, revision, size, patience, from: Vec::new() }
    }

    /// Of these, the ones from a key on, for a capture.
    fn captured_from(self, from: Vec<u8>) -> Self {
        Self { size: CAPTURED, from, ..self }
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
                    let kvs = found.into_iter().flat_map(|found| found.kvs);
                    let kvs: Vec<_> = kvs.filter(|kv| *kv.key >= *self.from).collect();
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
        let is_wanted = |part: &Part| !part.is_before(&self.from);
        let mut parts = vec![Part::One(at)];
        parts.retain(is_wanted);
        let longer: Vec<_> =
            longer.into_iter().filter(|at| is_wanted(&Part::Beneath(at.clone(), 1))).collect();
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

/// From where a capture reads.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Place {
    /// The first key that is still to be read, as a decision knows it.
    from: Vec<u8>,
    /// The key of the pack that this is the first entry of. Empty when it is none.
    pack: Vec<u8>,
}

impl Place {
    fn encode(&self) -> Vec<u8> {
        // No key is as long as that.
        let len = u16::try_from(self.pack.len()).unwrap_or(u16::MAX);
        [&len.to_be_bytes(), self.pack.as_slice(), &self.from].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (len, rest) = bytes.split_first_chunk::<2>()?;
        let (pack, from) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        Some(Self { from: from.to_vec(), pack: pack.to_vec() })
    }

    /// Behind a page, and with what of it is not packed yet.
    fn behind(packer: &Packer, last: &[u8]) -> Self {
        match packer.pending() {
            Some((at, first)) => Self { from: first.to_vec(), pack: at.to_vec() },
            None => Self { from: [last, &[0]].concat(), pack: Vec::new() },
        }
    }
}

/// What a capture gives next, and where it is then.
type Piece = Result<(Captured, Place), CaptureError>;

/// A capture that goes on.
pub(super) struct EtcdCapture {
    pages: mpsc::Receiver<Piece>,
    point: Option<Point>,
    place: Place,
    _only: Arc<()>,
}

impl EtcdCapture {
    /// Begins, over a connection of its own.
    pub(super) fn begin(
        settings: &EtcdSettings,
        log_id: LogId,
        capturing: &Capturing,
    ) -> Result<Self, CaptureError> {
        Self::begin_at(settings, log_id, capturing, Place::default(), 0)
    }

    /// Begins at the [`place`](Capture::place) of another, of the same records in the same state, which
    /// had given what comes to this digest.
    pub(super) fn go_on(
        settings: &EtcdSettings,
        log_id: LogId,
        place: &[u8],
        digest: u128,
    ) -> Result<Self, CaptureError> {
        let place = Place::decode(place).ok_or_else(|| {
            StoreError::Corrupt("where a capture was cut off cannot be read".to_owned())
        })?;
        Self::begin_at(settings, log_id, &Capturing::default(), place, digest)
    }

    fn begin_at(
        settings: &EtcdSettings,
        log_id: LogId,
        capturing: &Capturing,
        place: Place,
        digest: u128,
    ) -> Result<Self, CaptureError> {
        let only = capturing.begin()?;
        let (to, pages) = mpsc::channel(PAGES_AHEAD);
        let (client, keys) = (Client::new(settings, 0), Keys::new(&settings.prefix));
        let from = place.clone();
        tokio::spawn(async move {
            if let Err(error) = read(&client, &keys, log_id, (from, digest), &to).await {
                _ = to.send(Err(error)).await;
            }
        });
        Ok(Self { pages, point: None, place, _only: only })
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
    (from, mut digest): (Place, u128),
    to: &mpsc::Sender<Piece>,
) -> Result<(), CaptureError> {
    let head = range_of_one(keys.head());
    let (found, revision) = client.ranges(vec![head], Instant::now() + PATIENCE).await?;
    let head = found.first().and_then(|found| found.kvs.first()).map_or(0, |kv| kv.mod_revision);
    let mut pages = Pages::new(client, keys, revision).captured_from(keys.at(&from.from));
    let mut packer = if from.pack.is_empty() { Packer::default() } else { Packer::at(from.pack) };
    let mut place = Place { from: from.from, pack: Vec::new() };
    while let Some(page) = pages.next().await? {
        let mut records = Vec::with_capacity(page.len());
        for kv in &page {
            match record(keys, kv)? {
                Some((key, _)) if is_index_key(&key) => records.extend(packer.push(key)),
                Some(record) => {
                    // What comes behind the entries of a kind is given behind all of them.
                    records.extend(packer.finish());
                    records.push(record);
                }
                None => {}
            }
        }
        let last = page.last().and_then(|kv| keys.key_at(&kv.key)).unwrap_or_default();
        place = Place::behind(&packer, last);
        let changes = given(records, &mut digest);
        // Whoever reads has gone.
        if !changes.is_empty() && send(to, Captured::Changes(changes), &place).await.is_err() {
            return Ok(());
        }
    }
    if let Some(pack) = packer.finish() {
        // Behind everything there is.
        place = Place { from: vec![u8::MAX; 2], pack: Vec::new() };
        let changes = given(vec![pack], &mut digest);
        if send(to, Captured::Changes(changes), &place).await.is_err() {
            return Ok(());
        }
    }
    let number = |revision: i64| u64::try_from(revision).unwrap_or_default();
    let point = Point { log_id, head: Revision(number(head)), counter: number(revision), digest };
    _ = send(to, Captured::Point(point), &place).await;
    Ok(())
}

/// Gives a piece; an error when whoever reads has gone.
async fn send(to: &mpsc::Sender<Piece>, piece: Captured, place: &Place) -> Result<(), ()> {
    to.send(Ok((piece, place.clone()))).await.map_err(drop)
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
        let (read, place) = self.pages.blocking_recv().ok_or_else(gone)??;
        self.place = place;
        if let Captured::Point(point) = &read {
            self.point = Some(*point);
        }
        Ok(read)
    }

    fn place(&self) -> Vec<u8> {
        self.place.encode()
    }
}
