//! Whether the records of a store make sense together: each can be read, and what points to another
//! finds it. Reads only, and knows no engine.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher as _};

use super::codec::{self, key};
use super::engine::{KeyRange, Order, Reads, TIME_KEY, Value};
use super::{Level, StoreError};
use crate::domain::event::{Event, Revocation, Target};
use crate::domain::ids::{ClientId, Revision, SessionId, SubjectId};
use crate::domain::key::{KeyState, MacKeyId, MacKeyState};
use crate::domain::session::Session;

/// How many records are read at a time.
const PAGE: usize = 1024;
/// How many problems are told one by one.
const MAX_PROBLEMS: usize = 100;

/// What a look at every record found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Findings {
    /// How many records there are, by kind.
    pub records: BTreeMap<&'static str, u64>,
    /// What makes no sense. It names no secret.
    pub problems: Vec<String>,
    /// How many more there are.
    pub more_problems: u64,
}

impl Findings {
    fn add(&mut self, problem: impl Into<String>) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem.into());
        } else {
            self.more_problems += 1;
        }
    }

    /// Keeps what could be read, and tells what could not.
    fn read<T>(&mut self, what: &str, read: Result<T, StoreError>) -> Option<T> {
        match read {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(format!("{what}: {error}"));
                None
            }
        }
    }
}

/// Calls `look` with each record of a kind.
fn each(
    reads: &dyn Reads,
    kind: &[u8],
    mut look: impl FnMut(&[u8], &Value) -> Result<(), StoreError>,
) -> Result<u64, StoreError> {
    let mut range = KeyRange::prefix(kind);
    let mut count = 0;
    loop {
        let page = reads.scan(&range, Order::Ascending, PAGE)?;
        for (at, value) in &page {
            look(at, value)?;
            count += 1;
        }
        let Some((last, _)) = page.last().filter(|_| page.len() == PAGE) else { return Ok(count) };
        range.start.clone_from(last);
        range.start.push(0);
    }
}

fn tail<const N: usize>(at: &[u8]) -> Option<[u8; N]> {
    at.last_chunk::<N>().copied()
}

fn id<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Looks at every record. `head` is the newest revision.
///
/// # Errors
/// When a record cannot be read at all. What is read and makes no sense is a problem in the findings.
pub fn check(reads: &dyn Reads, head: Revision) -> Result<Findings, StoreError> {
    let mut found = Findings::default();
    accounts(reads, &mut found)?;
    sessions(reads, &mut found)?;
    events(reads, head, &mut found)?;
    attempts(reads, &mut found)?;
    keys(reads, &mut found)?;
    // Whatever is of none of these kinds was not written by this version.
    let mut others = 0;
    let mut from = Vec::new();
    for kind in b"acehikmnpstuxz" {
        others += count(reads, KeyRange { start: from, end: Some(vec![*kind]) })?;
        from = KeyRange::prefix(&[*kind]).end.unwrap_or_default();
    }
    others += count(reads, KeyRange { start: from, end: None })?;
    if others > 0 {
        found.add(format!("{others} records are of no known kind"));
    }
    Ok(found)
}

fn count(reads: &dyn Reads, range: KeyRange) -> Result<usize, StoreError> {
    Ok(reads.scan(&range, Order::Ascending, PAGE)?.len())
}

fn accounts(reads: &dyn Reads, found: &mut Findings) -> Result<(), StoreError> {
    let users = each(reads, b"u", |at, value| {
        let Some(subject) = id::<SubjectId>(&at[1..]) else {
            found.add("the key of a user is no subject");
            return Ok(());
        };
        let read = codec::read_user(subject.clone(), value);
        if let Some(user) = found.read("a user", read) {
            let named = reads.get(&key::username(&user.username))?;
            if named.as_deref() != Some(subject.as_str().as_bytes()) {
                found.add(format!("the name of the user {subject} does not lead to it"));
            }
        }
        Ok(())
    })?;
    let names = each(reads, b"n", |_, value| {
        let user = id::<SubjectId>(value).map(|subject| reads.get(&key::user(&subject)));
        if user.transpose()?.flatten().is_none() {
            found.add("a name leads to no user");
        }
        Ok(())
    })?;
    let clients = each(reads, b"c", |at, value| {
        match id::<ClientId>(&at[1..]) {
            Some(client) => _ = found.read("a client", codec::read_client(client, value)),
            None => found.add("the key of a client is no client id"),
        }
        Ok(())
    })?;
    let epochs = each(reads, b"p", |_, value| {
        let number = found.read("an epoch", codec::read_number(value));
        if number.is_some_and(|number| u32::try_from(number).is_err()) {
            found.add("an epoch is out of range");
        }
        Ok(())
    })?;
    for (kind, count) in
        [("users", users), ("names", names), ("clients", clients), ("epochs", epochs)]
    {
        found.records.insert(kind, count);
    }
    Ok(())
}

fn number(reads: &dyn Reads, at: &[u8]) -> Result<u64, StoreError> {
    reads.get(at)?.map_or(Ok(0), |bytes| codec::read_number(&bytes))
}

/// What each epoch is, by the key of its record. An unreadable one was told already.
fn epochs(reads: &dyn Reads) -> Result<HashMap<Vec<u8>, u64>, StoreError> {
    let mut epochs = HashMap::new();
    each(reads, b"p", |at, value| {
        if let Ok(number) = codec::read_number(value) {
            epochs.insert(at.to_vec(), number);
        }
        Ok(())
    })?;
    Ok(epochs)
}

/// Keys, in whatever order they come: equal for equal keys, and hardly ever else.
#[derive(Default, Eq, PartialEq)]
struct Sum {
    keys: u64,
    hashes: u64,
}

impl Sum {
    fn add(&mut self, key: &[u8]) {
        let mut hasher = DefaultHasher::new();
        hasher.write(key);
        self.keys += 1;
        self.hashes = self.hashes.wrapping_add(hasher.finish());
    }
}

fn sessions(reads: &dyn Reads, found: &mut Findings) -> Result<(), StoreError> {
    let mut due = HashSet::new();
    each(reads, b"x", |at, _| {
        due.extend(tail::<16>(at));
        Ok(())
    })?;
    let epochs = epochs(reads)?;
    let epoch = |at: &[u8]| epochs.get(at).copied().unwrap_or_default();
    let global = epoch(&key::epoch(&Level::Everything));
    let mut wanted = Sum::default();
    let sessions = each(reads, b"s", |at, value| {
        let Some(bytes) = at.get(1..).and_then(|rest| <[u8; 16]>::try_from(rest).ok()) else {
            found.add("the key of a session is no session id");
            return Ok(());
        };
        let id = SessionId::from_bytes(bytes);
        let Some(session) = found.read("a session", codec::read_session(id, value)) else {
            return Ok(());
        };
        wanted.add(&key::session_of(&session));
        if !due.contains(&bytes) {
            found.add(format!("the session {id} is never looked at again"));
        }
        let client = epoch(&key::client_epoch(&session.client));
        let subject = epoch(&key::subject_epoch(&session.subject));
        let held = session.epochs;
        if [(held.global, global), (held.client, client), (held.subject, subject)]
            .iter()
            .any(|(held, now)| u64::from(held.0) > *now)
        {
            found.add(format!("the session {id} has an epoch that is still to come"));
        }
        Ok(())
    })?;
    let mut entries = Sum::default();
    each(reads, b"i", |at, _| {
        entries.add(at);
        Ok(())
    })?;
    found.records.insert("sessions", sessions);
    if entries != wanted {
        // To look for each by itself takes several times as long, so only to say what is wrong.
        astray(reads, found)?;
        let entries = entries.keys;
        found.add(format!(
            "{sessions} sessions have {entries} entries among those of their subjects"
        ));
    }
    Ok(())
}

/// Which sessions are not among those of their subjects, and which entries lead to none.
fn astray(reads: &dyn Reads, found: &mut Findings) -> Result<(), StoreError> {
    let session = |id: SessionId| -> Result<Option<Session>, StoreError> {
        let bytes = reads.get(&key::session(id))?;
        // What cannot be read was told already.
        Ok(bytes.and_then(|bytes| codec::read_session(id, &bytes).ok()))
    };
    each(reads, b"s", |at, _| {
        let id = tail::<16>(at).map(SessionId::from_bytes);
        if let Some(session) = id.map(session).transpose()?.flatten()
            && reads.get(&key::session_of(&session))?.is_none()
        {
            found.add(format!("the session {} is not among those of its subject", session.id));
        }
        Ok(())
    })?;
    each(reads, b"i", |at, _| {
        let id = tail::<16>(at).map(SessionId::from_bytes);
        let session = id.map(session).transpose()?.flatten();
        if session.is_none_or(|session| key::session_of(&session) != at) {
            found.add("an entry of a subject's sessions leads to none");
        }
        Ok(())
    })?;
    Ok(())
}

fn events(reads: &dyn Reads, head: Revision, found: &mut Findings) -> Result<(), StoreError> {
    let mut tokens = HashSet::new();
    let events = each(reads, b"e", |at, value| {
        let revision = tail::<8>(at).map_or(u64::MAX, u64::from_be_bytes);
        if at.len() != 9 || revision > head.0 || revision == 0 {
            found.add(format!("an event has revision {revision}, the newest is {head}"));
        }
        let event = found.read("an event", codec::read_event(value));
        if let Some(Event::Revocation(Revocation { target, .. })) = event {
            match target {
                Target::Token { id, .. } => {
                    tokens.insert(*id.as_bytes());
                    if reads.get(&key::revoked_token(id))?.is_none() {
                        found.add(format!("event {revision} revokes a token that is not revoked"));
                    }
                }
                Target::Session { id, .. } => {
                    let bytes = reads.get(&key::session(id))?;
                    let session = bytes.map(|bytes| codec::read_session(id, &bytes)).transpose()?;
                    if session.is_some_and(|session| session.revoked.is_none()) {
                        found
                            .add(format!("event {revision} revokes a session that is not revoked"));
                    }
                }
                Target::Everything { epoch: raised } => {
                    behind(reads, &Level::Everything, raised.0, revision, found)?;
                }
                Target::Client { id, epoch: raised } => {
                    behind(reads, &Level::Client(id), raised.0, revision, found)?;
                }
                Target::Subject { id, epoch: raised } => {
                    behind(reads, &Level::Subject(id), raised.0, revision, found)?;
                }
                Target::Key { .. } => {}
            }
        }
        Ok(())
    })?;
    let revoked = each(reads, b"t", |at, _| {
        if tail::<16>(at).is_none_or(|id| !tokens.contains(&id)) {
            found.add("a revoked token has no event");
        }
        Ok(())
    })?;
    found.records.insert("events", events);
    found.records.insert("revoked tokens", revoked);
    Ok(())
}

/// Whether an epoch is lower than an event says that it was raised to.
fn behind(
    reads: &dyn Reads,
    level: &Level,
    raised: u32,
    revision: u64,
    found: &mut Findings,
) -> Result<(), StoreError> {
    if number(reads, &key::epoch(level))? < u64::from(raised) {
        found.add(format!("event {revision} raised an epoch that is lower now"));
    }
    Ok(())
}

fn attempts(reads: &dyn Reads, found: &mut Findings) -> Result<(), StoreError> {
    let mut due = HashSet::new();
    each(reads, b"z", |at, _| {
        due.extend(tail::<16>(at));
        Ok(())
    })?;
    let attempts = each(reads, b"a", |at, value| {
        _ = found.read("a throttle record", codec::read_attempts(value));
        if tail::<16>(at).is_none_or(|id| !due.contains(&id)) {
            found.add("a throttle record is never looked at again");
        }
        Ok(())
    })?;
    found.records.insert("throttle records", attempts);
    Ok(())
}

fn keys(reads: &dyn Reads, found: &mut Findings) -> Result<(), StoreError> {
    let (mut active, mut active_mac) = (0, 0);
    let signing = each(reads, b"k", |at, value| {
        let record = id(&at[1..]).map(|id| codec::read_key(id, value));
        match record {
            Some(read) => {
                let record = found.read("a signing key", read);
                active += u32::from(record.is_some_and(|key| key.state == KeyState::Active));
            }
            None => found.add("the key of a signing key is no key id"),
        }
        Ok(())
    })?;
    let mac = each(reads, b"h", |at, value| {
        let number = MacKeyId(tail::<4>(at).map_or(0, u32::from_be_bytes));
        let record = found.read("a MAC key", codec::read_mac_key(number, value));
        active_mac += u32::from(record.is_some_and(|key| key.state == MacKeyState::Active));
        Ok(())
    })?;
    let ring = number(reads, codec::RING_KEY)?;
    let made = ring > 0 || signing > 0 || mac > 0;
    if made && (active != 1 || active_mac != 1 || ring == 0) {
        found.add(format!(
            "the key ring, version {ring}, has {active} active signing keys and {active_mac} active MAC keys"
        ));
    }
    if let Some(bytes) = reads.get(TIME_KEY)? {
        _ = found.read("the latest moment", codec::read_number(&bytes));
    }
    found.records.insert("signing keys", signing);
    found.records.insert("MAC keys", mac);
    Ok(())
}
