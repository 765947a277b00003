//! Whether etcd is the one that it was, by how far its own log has come.
//!
//! Two things only ever grow in the life of one cluster: the term of its leaders, and *by how much the
//! index of its raft log is ahead of the revision*. Every entry of that log adds one to the index, and one or
//! nothing to the revision: a change adds one, and an election, a new member, a change that comes to nothing
//! add none. A snapshot keeps the revision and not the log. Who restores one begins a log anew, in the
//! first term and with a few entries at the old revision: it is behind by as much as was ever written, and
//! stays so, as each change adds as much to the one as to the other. To add to the revision
//! (`--bump-revision`) makes it worse.
//!
//! So now and then a replica writes down where etcd's log stands, as [`Mark`]. A mark that went back with
//! the snapshot shows it all the same: it says by how much the index *was* ahead. What has to be true for
//! that, and for a healthy etcd never to be taken for another:
//!
//! * *A mark says no more than was so.* The index is asked for first, of one member, which may be behind. The
//!   revision is that of the mark itself, which is written after.
//! * *What is held against it says no less than is so.* First a change is carried out that comes to
//!   nothing: an entry, which the member that answers has applied. Then that member is asked how far the log
//!   is that it knows of. One that has just been started or was sent a snapshot by its leader may say
//!   nothing, or what was before, until it has applied an entry; this one has. If another answers, as
//!   behind a balancer, the two are asked again.
//! * *It is said three times* before it is believed.
//!
//! It is found at the start, and by replicas that run within seconds, as `!meta` says from then on that the
//! records went back: each further try adds entries to the log, and would in the end have hidden it.
//!
//! Not found is: all members put back with their logs, as by a snapshot of their disks; one of them that is
//! made the whole cluster and was behind (`--force-new-cluster`). Neither shows in what etcd knows. Where
//! a replica kept a file (`seen.rs`), that one knows.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::client::{CallError, Client, found, revision_of};
use super::keys::Keys;
use super::meta::{Meta, Standing};
use super::pb::request_op::Request as Op;
use super::pb::{DeleteRangeRequest, KeyValue, RequestOp, StatusResponse, TxnRequest};
use super::request::{put, range_of_one, read, unchanged};

/// The layout of a mark.
const LAYOUT: u8 = 1;
/// How often the same has to be said before it is believed.
const TIMES: u32 = 3;
/// How long to wait before it is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// Where etcd's log stood at some moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Mark {
    /// The term of the leader.
    pub(super) term: u64,
    /// How many entries the log had.
    pub(super) index: u64,
    /// The revision.
    pub(super) revision: i64,
}

impl Mark {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![LAYOUT];
        bytes.extend_from_slice(&self.term.to_be_bytes());
        bytes.extend_from_slice(&self.index.to_be_bytes());
        bytes
    }

    /// The mark that stands at a key. Its revision is that at which it was written.
    fn decode(kv: &KeyValue) -> Option<Self> {
        let (layout, rest) = kv.value.split_first()?;
        let (term, rest) = rest.split_first_chunk::<8>()?;
        let index = <[u8; 8]>::try_from(rest).ok()?;
        let (term, index) = (u64::from_be_bytes(*term), u64::from_be_bytes(index));
        (*layout == LAYOUT).then_some(Self { term, index, revision: kv.mod_revision })
    }

    /// By how much the index is ahead of the revision.
    fn lead(&self) -> i128 {
        i128::from(self.index) - i128::from(self.revision)
    }

    /// Whether a log that was at `before` may now be here; if not, what shows it.
    pub(super) fn comes_after(&self, before: &Self) -> Result<(), String> {
        if self.term >= before.term && self.lead() >= before.lead() {
            return Ok(());
        }
        Err(format!(
            "etcd's log has {} entries at revision {}, in term {}, and had {} at revision {}, in term {}; it goes back like this when a snapshot is restored",
            self.index, self.revision, self.term, before.index, before.revision, before.term
        ))
    }
}

/// What is known from before of how far etcd was.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Known {
    /// Where its log stood.
    pub(super) mark: Mark,
    /// The highest revision of any answer.
    pub(super) revision: i64,
}

impl Known {
    /// Keeps in mind what a look has shown.
    pub(super) fn learn(&mut self, look: &Look) {
        self.revision = look.now.revision.max(self.revision);
        if let Some(mark) = look.mark.filter(|mark| mark.revision > self.mark.revision) {
            self.mark = mark;
        }
    }
}

/// What etcd says of itself.
#[derive(Clone, Debug)]
pub(super) struct Look {
    /// Where its log stands at least.
    pub(super) now: Mark,
    /// The mark that is there, if there is one.
    pub(super) mark: Option<Mark>,
    /// When the mark was put there; zero if there is none.
    pub(super) marked: i64,
    /// What the member says besides.
    pub(super) status: StatusResponse,
    /// Whether all this is from one member.
    from_one: bool,
}

impl Look {
    /// What is to be kept in mind of it; nothing without a mark.
    pub(super) fn known(&self) -> Option<Known> {
        Some(Known { mark: self.mark?, revision: self.now.revision })
    }

    /// Whether it goes on from the mark and from `known`; if not, what shows that it does not.
    fn goes_on(&self, known: Option<&Known>) -> Result<(), String> {
        if let Some(known) = known
            && self.now.revision < known.revision
        {
            return Err(format!(
                "etcd is at revision {} and was at revision {} before",
                self.now.revision, known.revision
            ));
        }
        let known = known.map(|known| &known.mark);
        self.mark.iter().chain(known).try_for_each(|before| self.now.comes_after(before))
    }
}

/// Asks etcd where it stands.
pub(super) async fn look(
    client: &Client,
    keys: &Keys,
    deadline: Instant,
) -> Result<Look, CallError> {
    let at = keys.raft();
    // It removes, and so costs no room: one that has none left is asked too.
    let remove = DeleteRangeRequest { key: at.clone().into(), ..DeleteRangeRequest::default() };
    let nothing = TxnRequest {
        compare: vec![unchanged(at.clone(), i64::MAX)],
        success: vec![RequestOp { request: Some(Op::RequestDeleteRange(remove)) }],
        failure: vec![read(range_of_one(at))],
    };
    let answer = client.txn(nothing, deadline).await?;
    let status = client.status(deadline).await?;
    let member = |header: Option<&super::pb::ResponseHeader>| header.map(|header| header.member_id);
    let from_one = member(answer.header.as_ref()) == member(status.header.as_ref());
    let revision = revision_of(&answer);
    let now = Mark { term: status.raft_term, index: status.raft_index, revision };
    let there = found(answer).pop().and_then(|found| found.kvs.into_iter().next());
    let marked = there.as_ref().map_or(0, |kv| kv.mod_revision);
    Ok(Look { now, mark: there.as_ref().and_then(Mark::decode), marked, status, from_one })
}

/// Asks etcd where it stands, and whether it goes on from the mark that is there and from `known`.
///
/// # Errors
/// [`CallError::Replaced`] when it does not, which is then written down for all.
pub(super) async fn prove(
    client: &Client,
    keys: &Keys,
    known: Option<&Known>,
    deadline: Instant,
) -> Result<Look, CallError> {
    let mut times = 0;
    loop {
        let doubt = match look(client, keys, deadline).await {
            Ok(look) => match look.goes_on(known) {
                Ok(()) => return Ok(look),
                Err(what) if look.from_one => {
                    times += 1;
                    if times >= TIMES {
                        condemn(client, keys, deadline).await;
                        return Err(CallError::Replaced(what));
                    }
                    CallError::Unknown(what)
                }
                Err(_) => CallError::Unknown(
                    "it cannot be asked of one member how far it is: name the members, not what stands before them".to_owned(),
                ),
            },
            Err(CallError::Unknown(why)) => CallError::Unknown(why),
            Err(error) => return Err(error),
        };
        if Instant::now() + PAUSE >= deadline {
            return Err(doubt);
        }
        sleep(PAUSE).await;
    }
}

/// Puts down that the records went back, so that nobody goes on with them.
pub(super) async fn condemn(client: &Client, keys: &Keys, deadline: Instant) {
    let own = client.ranges(vec![range_of_one(keys.meta())], deadline).await;
    let kv = own.ok().and_then(|(mut found, _)| found.pop()?.kvs.pop());
    let Some((kv, meta)) = kv.and_then(|kv| Meta::decode(&kv.value).map(|meta| (kv, meta))) else {
        return;
    };
    if meta.standing != Standing::Whole {
        return;
    }
    let meta = Meta { standing: Standing::WentBack, ..meta };
    if let Err(error) = super::meta::write(client, keys, &meta, kv.mod_revision, deadline).await {
        tracing::warn!(%error, "that the records in etcd went back could not be written there");
    }
}

/// Writes where the log stood at `look`, unless another has written since. Gives the mark.
pub(super) async fn mark(
    client: &Client,
    keys: &Keys,
    look: &Look,
    deadline: Instant,
) -> Result<Option<Mark>, CallError> {
    let txn = TxnRequest {
        compare: vec![unchanged(keys.raft(), look.marked)],
        success: vec![put(keys.raft(), look.now.encode())],
        failure: Vec::new(),
    };
    let answer = client.txn(txn, deadline).await?;
    let revision = revision_of(&answer);
    Ok(answer.succeeded.then_some(Mark { revision, ..look.now }))
}

/// Writes down where the log stands, whatever stood there: the records were begun just now, or are
/// adopted.
pub(super) async fn begin(
    client: &Client,
    keys: &Keys,
    deadline: Instant,
) -> Result<Look, CallError> {
    while Instant::now() < deadline {
        let look = look(client, keys, deadline).await?;
        // Of another member the index may be behind, which is no harm.
        if let Some(mark) = mark(client, keys, &look, deadline).await? {
            return Ok(Look { mark: Some(mark), marked: mark.revision, ..look });
        }
    }
    Err(CallError::Unknown("others write down how far it is".to_owned()))
}
