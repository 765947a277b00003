//! Reads the whole state as of one point while the committer goes on.
//!
//! A scan reads what it meets; meanwhile each group that the committer has synced leaves here what it
//! wrote. Of that, what lies behind the scan is given once more, and what lies ahead the scan will
//! meet. So when the committer, between two groups, hands over the rest with its own record, what was
//! given is the state at that moment: the digest in that record says whether it is.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::oneshot;

use super::Shared;
use super::committer::Job;
use super::reads::guarded;
use super::record::{Meta, unseal};
use crate::store::StoreError;
use crate::store::backup::{Capture, CaptureError, Captured, Change, Point};
use crate::store::engine::Value;
use crate::store::group::is_engine_key;

/// How many bytes of records are read at a time.
const CHUNK_BYTES: usize = 48 << 10;
/// How much may wait for a slow reader. A record that is written again takes its own place.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// What was written since it was last asked.
#[derive(Default)]
struct Waiting {
    changes: BTreeMap<Vec<u8>, Option<Value>>,
    bytes: usize,
    /// There was no room, and the capture is void.
    overrun: bool,
}

/// Where the committer leaves what it has written.
pub(super) struct Recorder {
    waiting: Mutex<Waiting>,
    max_bytes: usize,
}

impl Recorder {
    fn new(max_bytes: usize) -> Self {
        Self { waiting: Mutex::default(), max_bytes }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a group wrote. It must be called after the write is visible: a scan that begins
    /// once this was taken out must not meet what was there before.
    pub(super) fn add<'a>(&self, writes: impl Iterator<Item = (&'a Vec<u8>, &'a Option<Value>)>) {
        let size = |value: &Option<Value>| value.as_ref().map_or(0, Vec::len);
        let mut waiting = self.waiting();
        if waiting.overrun {
            return;
        }
        for (key, value) in writes {
            let added = key.len() + size(value);
            let replaced = waiting.changes.insert(key.clone(), value.clone());
            let replaced = replaced.map_or(0, |old| key.len() + size(&old));
            waiting.bytes = (waiting.bytes + added).saturating_sub(replaced);
        }
        if waiting.bytes > self.max_bytes {
            *waiting = Waiting { overrun: true, ..Waiting::default() };
        }
    }

    fn take(&self) -> Result<BTreeMap<Vec<u8>, Option<Value>>, CaptureError> {
        let mut waiting = self.waiting();
        if waiting.overrun {
            return Err(CaptureError::TooSlow);
        }
        waiting.bytes = 0;
        Ok(std::mem::take(&mut waiting.changes))
    }
}

/// What the committer hands over between two groups.
pub(super) struct Reached {
    pub(super) meta: Meta,
    rest: Result<BTreeMap<Vec<u8>, Option<Value>>, CaptureError>,
}

impl Reached {
    /// The moment is now: nothing was written since `meta`.
    pub(super) fn now(meta: Meta, recorder: Option<&Recorder>) -> Self {
        let rest = recorder.map_or(Err(CaptureError::Busy), Recorder::take);
        Self { meta, rest }
    }
}

/// A slot for the one recorder that there may be.
#[derive(Default)]
pub(super) struct Recording(Mutex<Weak<Recorder>>);

impl Recording {
    /// The recorder, if a capture goes on.
    pub(super) fn current(&self) -> Option<Arc<Recorder>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    fn begin(&self, max_bytes: usize) -> Result<Arc<Recorder>, CaptureError> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if current.strong_count() > 0 {
            return Err(CaptureError::Busy);
        }
        let recorder = Arc::new(Recorder::new(max_bytes));
        *current = Arc::downgrade(&recorder);
        Ok(recorder)
    }
}

type Submit = Box<dyn Fn(Job) -> Result<(), StoreError> + Send>;

/// How far it is.
enum Progress {
    /// Everything up to this key was read.
    Scanning(Option<sled::IVec>),
    /// Everything was read and given.
    Done(Point),
}

/// A capture that goes on.
pub(super) struct SledCapture {
    shared: Arc<Shared>,
    submit: Submit,
    recorder: Arc<Recorder>,
    progress: Progress,
}

impl SledCapture {
    pub(super) fn begin(
        shared: Arc<Shared>,
        submit: Submit,
        place: &[u8],
    ) -> Result<Self, CaptureError> {
        let recorder = shared.recording.begin(MAX_WAITING_BYTES)?;
        let last = (!place.is_empty()).then(|| sled::IVec::from(place));
        Ok(Self { shared, submit, recorder, progress: Progress::Scanning(last) })
    }

    /// The next records of the scan; none when there are no more.
    fn scan(&mut self) -> Result<Vec<Change>, CaptureError> {
        let Progress::Scanning(last) = &mut self.progress else { return Ok(Vec::new()) };
        // A new one each time: it sees all that was written before it was made.
        let start = last.as_ref().map_or(Bound::Unbounded, |last| Bound::Excluded(last.clone()));
        let mut records = self.shared.db.range((start, Bound::<sled::IVec>::Unbounded));
        let (mut found, mut bytes) = (Vec::new(), 0);
        while bytes < CHUNK_BYTES {
            let Some((key, stored)) = guarded(|| records.next().transpose())? else { break };
            if !is_engine_key(&key) {
                let (value, _) = unseal(&key, &stored).ok_or_else(|| {
                    StoreError::Corrupt("a record does not match its checksum".to_owned())
                })?;
                bytes += key.len() + value.len();
                found.push((key.to_vec(), Some(value.to_vec())));
            }
            *last = Some(key);
        }
        Ok(found)
    }

    /// What was written behind the scan.
    fn behind(&self) -> Result<Vec<Change>, CaptureError> {
        let Progress::Scanning(Some(last)) = &self.progress else { return Ok(Vec::new()) };
        Ok(self.recorder.take()?.into_iter().filter(|(key, _)| key[..] <= last[..]).collect())
    }

    fn reach(&mut self) -> Result<Vec<Change>, CaptureError> {
        let (caller, reached) = oneshot::channel();
        (self.submit)(Job::Point(caller))?;
        let gone = |_| StoreError::Unavailable("it was closed meanwhile".to_owned());
        let Reached { meta, rest } = reached.blocking_recv().map_err(gone)?;
        let Meta { log_id, head, counter, digest, .. } = meta;
        self.progress = Progress::Done(Point { log_id, head, counter, digest });
        Ok(rest?.into_iter().collect())
    }
}

impl Capture for SledCapture {
    fn next(&mut self) -> Result<Captured, CaptureError> {
        if let Progress::Done(point) = self.progress {
            return Ok(Captured::Point(point));
        }
        // What was written behind the scan goes after what the scan has read before.
        let behind = self.behind()?;
        if !behind.is_empty() {
            return Ok(Captured::Changes(behind));
        }
        let found = self.scan()?;
        if found.is_empty() {
            self.reach().map(Captured::Changes)
        } else {
            Ok(Captured::Changes(found))
        }
    }

    /// The last key.
    fn place(&self) -> Vec<u8> {
        match &self.progress {
            Progress::Scanning(Some(last)) => last.to_vec(),
            Progress::Scanning(None) | Progress::Done(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_again_takes_its_own_place_and_too_much_voids_the_capture() {
        let recorder = Recorder::new(10);
        let put = |key: &str, value: &str| {
            let (key, value) = (key.as_bytes().to_vec(), Some(value.as_bytes().to_vec()));
            recorder.add([(&key, &value)].into_iter());
        };
        for value in ["one", "two", "six"] {
            put("key", value);
        }
        let taken = recorder.take().unwrap();
        assert_eq!(taken, BTreeMap::from([(b"key".to_vec(), Some(b"six".to_vec()))]));
        put("key", "seven");
        assert_eq!(recorder.take().unwrap().len(), 1);
        put("key", "more than ten");
        put("k", "");
        assert_eq!(recorder.take(), Err(CaptureError::TooSlow));
    }

    #[test]
    fn there_is_one_capture_at_a_time() {
        let recording = Recording::default();
        assert!(recording.current().is_none());
        let first = recording.begin(1).unwrap();
        assert!(recording.current().is_some());
        assert_eq!(recording.begin(1).err(), Some(CaptureError::Busy));
        drop(first);
        assert!(recording.current().is_none() && recording.begin(1).is_ok());
    }
}
