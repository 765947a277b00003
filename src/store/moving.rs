//! What a move leaves where it writes, so that it can go on after it was cut off. Knows no engine.
//!
//! While a store moves nobody writes to it, and each capture of it gives the same records in the same
//! order. So a mark says how many of them are there, and what those come to. It is written with them, and
//! whoever goes on holds it against what is there, or against what the store gives once more.

use crate::domain::ids::LogId;

/// The layout of a mark.
const LAYOUT: u8 = 1;

/// Records that move, in the state that they are in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Source {
    /// The log that they are of.
    pub log_id: LogId,
    /// When they were last changed: how many groups were written to a directory, or the revision of etcd
    /// at which they were taken.
    pub changed: u64,
    /// What the fingerprints of all of them come to, in a directory; the id of the cluster, in etcd.
    pub print: u128,
}

/// So much of it is there.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Progress {
    /// How many records, from the first that a capture gives.
    pub records: u64,
    /// What their fingerprints come to.
    pub digest: u128,
    /// How many of the events among them, where those are written last.
    pub events: u64,
}

/// What is left of a move that was cut off.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mark {
    /// What moves.
    pub source: Source,
    /// How much of it is there.
    pub progress: Progress,
    /// From where a capture gives the rest: see [`Capture::place`](super::backup::Capture::place).
    pub place: Vec<u8>,
}

impl Mark {
    /// Nothing of it is there yet.
    pub fn new(source: Source) -> Self {
        Self { source, progress: Progress::default(), place: Vec::new() }
    }

    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let Self { source, progress, place } = self;
        let mut bytes = vec![LAYOUT];
        bytes.extend_from_slice(source.log_id.as_bytes());
        bytes.extend_from_slice(&source.changed.to_be_bytes());
        bytes.extend_from_slice(&source.print.to_be_bytes());
        bytes.extend_from_slice(&progress.records.to_be_bytes());
        bytes.extend_from_slice(&progress.digest.to_be_bytes());
        bytes.extend_from_slice(&progress.events.to_be_bytes());
        bytes.extend_from_slice(place);
        bytes
    }

    /// Reads what [`Mark::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let ([LAYOUT], rest) = bytes.split_first_chunk::<1>()? else { return None };
        let (log_id, rest) = rest.split_first_chunk::<16>()?;
        let (changed, rest) = rest.split_first_chunk::<8>()?;
        let (print, rest) = rest.split_first_chunk::<16>()?;
        let (records, rest) = rest.split_first_chunk::<8>()?;
        let (digest, rest) = rest.split_first_chunk::<16>()?;
        let (events, place) = rest.split_first_chunk::<8>()?;
        Some(Self {
            source: Source {
                log_id: LogId::from_bytes(*log_id),
                changed: u64::from_be_bytes(*changed),
                print: u128::from_be_bytes(*print),
            },
            progress: Progress {
                records: u64::from_be_bytes(*records),
                digest: u128::from_be_bytes(*digest),
                events: u64::from_be_bytes(*events),
            },
            place: place.to_vec(),
        })
    }

    /// Why a move of `source` does not go on from here, if it does not.
    pub fn refusal(&self, source: &Source) -> Option<&'static str> {
        if self.source.log_id != source.log_id {
            return Some("another store");
        }
        (self.source != *source).then_some(CHANGED)
    }
}

/// What a move that was cut off was of, when it was of this store and that was written to since.
pub(super) const CHANGED: &str = "this store, which was opened or has changed since,";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_reads_back_and_no_part_of_it_does() {
        let source = Source { log_id: LogId::from_bytes([3; 16]), changed: 5, print: 7 << 90 };
        let progress = Progress { records: 11, digest: 13 << 80, events: 17 };
        let mark = Mark { source, progress, place: b"here".to_vec() };
        let bytes = mark.encode();
        assert_eq!(Mark::decode(&bytes), Some(mark.clone()));
        let without_place = bytes.len() - 4;
        assert_eq!(Mark::decode(&bytes[..without_place]), Some(Mark { place: vec![], ..mark }));
        for end in 0..without_place {
            assert_eq!(Mark::decode(&bytes[..end]), None);
        }
        assert_eq!(Mark::decode(&[b"\x02", &bytes[1..]].concat()), None);
    }

    #[test]
    fn a_move_goes_on_with_the_same_store_in_the_same_state_alone() {
        let source = Source { log_id: LogId::from_bytes([3; 16]), changed: 5, print: 7 };
        let mark = Mark::new(source);
        assert_eq!(mark.refusal(&source), None);
        let other = Source { log_id: LogId::from_bytes([4; 16]), ..source };
        assert_eq!(mark.refusal(&other), Some("another store"));
        for changed in [Source { changed: 6, ..source }, Source { print: 8, ..source }] {
            assert_eq!(mark.refusal(&changed), Some(CHANGED));
        }
    }
}
