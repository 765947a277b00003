//! What the notes of replicas say. Fields are only ever added at the end: whoever reads the note of a
//! newer version takes what it knows of it.

use std::time::Duration;

use crate::domain::clock::Timestamp;
use crate::domain::ids::Revision;
use crate::store::board::Lease;

const REPLICA: &str = "replica/";
const WAIT: &str = "wait/";
/// The longest version that is told.
const MAX_VERSION_BYTES: usize = 64;

/// What a note is about, by its name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum About {
    /// A replica is there.
    Replica(String),
    /// Somebody waits.
    Question(String),
    /// A replica answers.
    Answer { question: String, replica: String },
}

impl About {
    pub(super) fn read(name: &str) -> Option<Self> {
        if let Some(id) = name.strip_prefix(REPLICA) {
            return Some(Self::Replica(id.to_owned()));
        }
        let rest = name.strip_prefix(WAIT)?;
        Some(match rest.split_once('/') {
            None => Self::Question(rest.to_owned()),
            Some((question, replica)) => {
                Self::Answer { question: question.to_owned(), replica: replica.to_owned() }
            }
        })
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::Replica(id) => format!("{REPLICA}{id}"),
            Self::Question(id) => format!("{WAIT}{id}"),
            Self::Answer { question, replica } => format!("{WAIT}{question}/{replica}"),
        }
    }
}

/// A replica that is there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Registration {
    /// How many watched there when this was written.
    pub watchers: u32,
    /// Since when it runs, by its clock.
    pub started_at: Timestamp,
    /// What its clock showed when this was written.
    pub clock: Timestamp,
    /// Its version of avouch.
    pub version: String,
}

/// Somebody waits until the watchers have applied everything up to here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Question {
    pub(super) through: Revision,
    /// How long to wait from now on: clocks differ.
    pub(super) limit: Duration,
    /// What to put the answer up under.
    pub(super) lease: Lease,
}

/// How many of the watchers of one replica have.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Answer {
    pub(super) applied: u32,
    pub(super) of: u32,
}

impl Registration {
    pub(super) fn write(&self) -> Vec<u8> {
        let mut bytes = self.watchers.to_be_bytes().to_vec();
        bytes.extend(self.started_at.as_millis().to_be_bytes());
        bytes.extend(self.clock.as_millis().to_be_bytes());
        let version = &self.version.as_bytes()[..self.version.len().min(MAX_VERSION_BYTES)];
        bytes.push(u8::try_from(version.len()).unwrap_or(0));
        bytes.extend(version);
        bytes
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (watchers, rest) = bytes.split_first_chunk::<4>()?;
        let (started_at, rest) = rest.split_first_chunk::<8>()?;
        let (clock, rest) = rest.split_first_chunk::<8>()?;
        let (length, rest) = rest.split_first()?;
        let version = std::str::from_utf8(rest.get(..usize::from(*length))?).ok()?;
        Some(Self {
            watchers: u32::from_be_bytes(*watchers),
            started_at: Timestamp::from_millis(u64::from_be_bytes(*started_at)),
            clock: Timestamp::from_millis(u64::from_be_bytes(*clock)),
            version: version.to_owned(),
        })
    }
}

impl Question {
    pub(super) fn write(&self) -> Vec<u8> {
        let limit = u64::try_from(self.limit.as_millis()).unwrap_or(u64::MAX);
        [self.through.0.to_be_bytes(), limit.to_be_bytes(), self.lease.0.to_be_bytes()].concat()
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (through, rest) = bytes.split_first_chunk::<8>()?;
        let (limit, rest) = rest.split_first_chunk::<8>()?;
        let lease = rest.first_chunk::<8>()?;
        Some(Self {
            through: Revision(u64::from_be_bytes(*through)),
            limit: Duration::from_millis(u64::from_be_bytes(*limit)),
            lease: Lease(i64::from_be_bytes(*lease)),
        })
    }
}

impl Answer {
    pub(super) fn write(self) -> Vec<u8> {
        [self.applied.to_be_bytes(), self.of.to_be_bytes()].concat()
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (applied, rest) = bytes.split_first_chunk::<4>()?;
        let of = rest.first_chunk::<4>()?;
        Some(Self { applied: u32::from_be_bytes(*applied), of: u32::from_be_bytes(*of) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_as_written_with_more_at_their_end_and_never_in_part() {
        let registration = Registration {
            watchers: 7,
            started_at: Timestamp::from_millis(1),
            clock: Timestamp::from_millis(u64::MAX),
            version: "0.1.0".to_owned(),
        };
        let question =
            Question { through: Revision(9), limit: Duration::from_millis(1500), lease: Lease(-3) };
        let answer = Answer { applied: 2, of: 3 };
        let (mut first, mut second, mut third) =
            (registration.write(), question.write(), answer.write());
        for bytes in [&mut first, &mut second, &mut third] {
            bytes.extend([1, 2, 3]);
        }
        assert_eq!(Registration::read(&first), Some(registration));
        assert_eq!(Question::read(&second), Some(question));
        assert_eq!(Answer::read(&third), Some(answer));
        assert!((0..first.len() - 3).all(|end| Registration::read(&first[..end]).is_none()));
        assert!((0..second.len() - 3).all(|end| Question::read(&second[..end]).is_none()));
        assert!((0..third.len() - 3).all(|end| Answer::read(&third[..end]).is_none()));
    }

    #[test]
    fn names_say_what_a_note_is_about() {
        let (question, replica) = ("q".to_owned(), "r".to_owned());
        for about in [
            About::Replica(replica.clone()),
            About::Question(question.clone()),
            About::Answer { question, replica },
        ] {
            assert_eq!(About::read(&about.name()), Some(about));
        }
        assert_eq!(About::read("something/else"), None);
    }
}
