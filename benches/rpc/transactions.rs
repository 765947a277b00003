//! The transactions of etcd that Refresh and Revoke are made of, sent bare: the same compares, puts and
//! sizes, without avouch around them.
//!
//! What a call puts is read back from etcd after one was made: whatever was last changed with the record of
//! its session. What it compares cannot be read back: the session, the three epochs, and the two records of
//! the engine, as `store/etcd/commit.rs` says. If one is not so, all are read.

use std::sync::Arc;

use avouch::domain::ids::SessionId;
use avouch::store::Level;
use avouch::store::codec::key;
use tokio::sync::Mutex;
use tonic::Status;
use tonic::transport::Channel;

use crate::Failure;
use crate::etcd::pb;
use crate::server::{CLIENT, PREFIX};

type Kv = pb::kv_client::KvClient<Channel>;

/// What every bare key begins with: as long as the server's prefix.
const BARE: &str = "bared/";
/// The subject of a session, as long as those of the server's sessions.
const SUBJECT: &str = "user-000000000000";
/// What is written now and then, and belongs to no call.
const TIME: &[u8] = b"m/time";

/// What one call puts.
pub(crate) struct Puts {
    /// Each key without the prefix, and its value.
    puts: Vec<(Vec<u8>, bytes::Bytes)>,
    /// The session of the call.
    session: [u8; 16],
}

/// What etcd holds under the server's prefix, and was last changed with the record of this session.
pub(crate) async fn puts_of(channel: Channel, id: &str) -> Result<Puts, Failure> {
    let id: SessionId = id.parse()?;
    let mut kv = Kv::new(channel).max_decoding_message_size(64 << 20);
    // A slash is followed by a zero.
    let end = PREFIX.replace('/', "0");
    let all = pb::RangeRequest {
        key: PREFIX.as_bytes().to_vec().into(),
        range_end: end.into_bytes().into(),
        ..Default::default()
    };
    let all = kv.range(all).await?.into_inner().kvs;
    let at = [PREFIX.as_bytes(), &key::session(id)].concat();
    let own = all.iter().find(|kv| kv.key == at).ok_or("the session is not in etcd")?;
    let changed = own.mod_revision;
    let together = all.iter().filter(|kv| kv.mod_revision == changed);
    let puts = together
        .map(|kv| (kv.key[PREFIX.len()..].to_vec(), kv.value.clone()))
        .filter(|(key, _)| key != TIME);
    Ok(Puts { puts: puts.collect(), session: *id.as_bytes() })
}

impl Puts {
    /// How many, and how long their keys and values are, with the prefix.
    pub(crate) fn sizes(&self) -> String {
        let each = self
            .puts
            .iter()
            .map(|(key, value)| format!("{} + {}", BARE.len() + key.len(), value.len()));
        let each: Vec<_> = each.collect();
        format!("{} ({} bytes)", each.len(), each.join(", "))
    }

    /// The same puts for another session; what has a random name gets another one.
    fn of(&self, session: [u8; 16], random: [u8; 16]) -> Vec<pb::RequestOp> {
        let put = |(key, value): &(Vec<u8>, bytes::Bytes)| {
            let mut key = key.clone();
            if key.first() == Some(&b'e') {
                key.splice(1.., random);
            } else if let Some(at) = key.windows(16).position(|part| part == self.session) {
                key[at..at + 16].copy_from_slice(&session);
            }
            let request = pb::PutRequest { key: under(&key), value: value.clone(), lease: 0 };
            pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(request)) }
        };
        self.puts.iter().map(put).collect()
    }
}

fn under(key: &[u8]) -> bytes::Bytes {
    [BARE.as_bytes(), key].concat().into()
}

fn unchanged(at: &bytes::Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        result: pb::compare::CompareResult::Equal.into(),
        target: pb::compare::CompareTarget::Mod.into(),
        key: at.clone(),
        target_union: Some(pb::compare::TargetUnion::ModRevision(revision)),
        range_end: Default::default(),
    }
}

/// A session of the bare transactions: when its record was last changed.
type Known = (SessionId, i64);

/// Callers with sessions of their own, so that no two meet.
pub(crate) struct Bare {
    channel: Channel,
    puts: Puts,
    /// What is compared besides the session, and never changes.
    still: Vec<bytes::Bytes>,
    sessions: Vec<Mutex<(usize, Vec<Known>)>>,
}

impl Bare {
    /// Stores sessions for so many callers.
    pub(crate) async fn new(
        channel: Channel,
        puts: Puts,
        callers: usize,
    ) -> Result<Arc<Self>, Failure> {
        /// For each caller, as the tokens that are refreshed.
        const EACH: usize = 4;
        let client = CLIENT.parse()?;
        let subject = SUBJECT.parse()?;
        let mut still: Vec<_> = [
            key::epoch(&Level::Everything),
            key::client_epoch(&client),
            key::subject_epoch(&subject),
        ]
        .iter()
        .map(|key| under(key))
        .collect();
        still.extend([under(b"!meta"), under(b"!fence/00")]);
        let mut kv = Kv::new(channel.clone());
        let mut sessions = Vec::with_capacity(callers);
        for _ in 0..callers {
            let mut of_one = Vec::with_capacity(EACH);
            for _ in 0..EACH {
                of_one.push((SessionId::from_bytes(random()), 0));
            }
            let success = of_one.iter().flat_map(|(id, _)| puts.of(*id.as_bytes(), random()));
            // etcd takes no key twice in a transaction.
            let success = success.filter(|operation| match &operation.request {
                Some(pb::request_op::Request::RequestPut(put)) => {
                    put.key.get(BARE.len()) == Some(&b's')
                }
                _ => false,
            });
            let txn = pb::TxnRequest { success: success.collect(), ..Default::default() };
            let header = kv.txn(txn).await?.into_inner().header.ok_or("no header")?;
            for (_, changed) in &mut of_one {
                *changed = header.revision;
            }
            sessions.push(Mutex::new((0, of_one)));
        }
        Ok(Arc::new(Self { channel, puts, still, sessions }))
    }

    /// One transaction of a caller.
    pub(crate) async fn call(&self, caller: usize) -> Result<bool, Status> {
        let mut own = self.sessions[caller].lock().await;
        let (turn, sessions) = &mut *own;
        let at = *turn % sessions.len();
        *turn += 1;
        let (id, changed) = &mut sessions[at];
        let record = under(&key::session(*id));
        let mut compare = vec![unchanged(&record, *changed)];
        compare.extend(self.still.iter().map(|at| unchanged(at, 0)));
        let read = |key: &bytes::Bytes| {
            let range = pb::RangeRequest { key: key.clone(), ..Default::default() };
            pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(range)) }
        };
        let failure = std::iter::once(&record).chain(&self.still).map(read).collect();
        let success = self.puts.of(*id.as_bytes(), random());
        let txn = pb::TxnRequest { compare, success, failure };
        let answer = Kv::new(self.channel.clone()).txn(txn).await?.into_inner();
        if !answer.succeeded {
            return Err(Status::aborted("a bare transaction met another"));
        }
        *changed = answer.header.map_or(0, |header| header.revision);
        Ok(true)
    }
}

fn random() -> [u8; 16] {
    let entropy: &dyn avouch::domain::entropy::Entropy = &avouch::crypto::OsEntropy;
    entropy.bytes()
}
